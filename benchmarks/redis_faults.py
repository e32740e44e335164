"""What each broken state of Redis adds to an answer, and what poisoned values do: run by reliability.py.

The servers are those of tests/, each really in the state its row names.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for tests/

from tests.redis_server import Pretender, RedisServer, blackhole, eventually, free_port, loading
from tinyllm_cli import (
    CachedOllamaClient,
    CacheEntry,
    GenerateResponse,
    RedisBackend,
    ResponseCache,
)

QUESTIONS = 20
State = Callable[[RedisServer], contextlib.AbstractContextManager[str]]


def _state(state: Callable[[RedisServer], Iterator[str]]) -> State:
    return contextlib.contextmanager(state)


@_state
def closed(server: RedisServer) -> Iterator[str]:
    yield f"redis://127.0.0.1:{free_port()}"


@_state
def black_hole(server: RedisServer) -> Iterator[str]:
    with blackhole() as port:
        yield f"redis://127.0.0.1:{port}"


@_state
def frozen(server: RedisServer) -> Iterator[str]:
    server.freeze()
    try:
        yield server.url
    finally:
        server.thaw()


@_state
def paused(server: RedisServer) -> Iterator[str]:
    with socket.create_connection(("127.0.0.1", server.port)) as other:
        other.sendall(b"CLIENT PAUSE 600000 ALL\r\n")
        other.recv(100)
        yield server.url
    server.kill()
    server.start()


def _configured(name: str, value: str, after: str) -> State:
    @contextlib.contextmanager
    def state(server: RedisServer) -> Iterator[str]:
        server.client().config_set(name, value)
        try:
            yield server.url
        finally:
            server.client().config_set(name, after)

    return state


@_state
def replica(server: RedisServer) -> Iterator[str]:
    server.client().replicaof("127.0.0.1", 1)
    try:
        yield server.url
    finally:
        server.client().replicaof("NO", "ONE")


@_state
def master_down(server: RedisServer) -> Iterator[str]:
    client = server.client()
    client.config_set("replica-serve-stale-data", "no")
    client.replicaof("127.0.0.1", 1)
    try:
        yield server.url
    finally:
        client.replicaof("NO", "ONE")
        client.config_set("replica-serve-stale-data", "yes")


@_state
def reads_its_data(server: RedisServer) -> Iterator[str]:
    with RedisServer() as own:
        for n in range(300):
            own.client().set(f"filling:{n}", b"x" * 100)
        with loading(own):
            yield own.url


@_state
def cluster_down(server: RedisServer) -> Iterator[str]:
    with RedisServer("--cluster-enabled", "yes", "--cluster-port", str(free_port())) as node:
        yield node.url


@_state
def cannot_save(server: RedisServer) -> Iterator[str]:
    with RedisServer() as own:
        client = own.client()
        client.set("x", "y")
        own.folder.joinpath("dump.rdb").mkdir()
        client.config_set("save", "3600 1")
        client.bgsave()
        eventually(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
        yield own.url


@_state
def wrong_password(server: RedisServer) -> Iterator[str]:
    yield f"redis://alice:wrong@127.0.0.1:{server.port}"


@_state
def no_rights(server: RedisServer) -> Iterator[str]:
    client = server.client()
    client.execute_command("ACL", "SETUSER", "bob", "on", ">secret", "~*", "+ping")
    try:
        yield f"redis://bob:secret@127.0.0.1:{server.port}"
    finally:
        client.acl_deluser("bob")


@_state
def no_tls(server: RedisServer) -> Iterator[str]:
    yield f"rediss://127.0.0.1:{server.port}"


def _pretending(serve: Callable[[socket.socket], None]) -> State:
    @contextlib.contextmanager
    def state(server: RedisServer) -> Iterator[str]:
        with Pretender(serve) as pretender:
            yield pretender.url

    return state


def _silent(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def _dripping(connection: socket.socket) -> None:
    connection.recv(65536)
    while True:
        connection.sendall(b"$")
        time.sleep(0.1)


def _endless(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"$999999999999\r\n")
    while True:
        connection.sendall(b"x" * 65536)


def _hangs_up(connection: socket.socket) -> None:
    connection.recv(65536)


def _speaks(words: bytes) -> Callable[[socket.socket], None]:
    def serve(connection: socket.socket) -> None:
        connection.sendall(words)
        connection.recv(65536)
        connection.sendall(words)

    return serve


STATES: dict[str, State] = {
    "port closed": closed,
    "connection never made": black_hole,
    "stopped process": frozen,
    "paused": paused,
    "takes commands, never answers": _pretending(_silent),
    "answers a byte at a time": _pretending(_dripping),
    "a value without end": _pretending(_endless),
    "hangs up on each command": _pretending(_hangs_up),
    "loading its data": reads_its_data,
    "out of memory": _configured("maxmemory", "1", "0"),
    "read-only replica": replica,
    "replica without its master": master_down,
    "cluster that is down": cluster_down,
    "cannot save, refuses writes": cannot_save,
    "too many clients": _configured("maxclients", "1", "10000"),
    "password required": _configured("requirepass", "secret", ""),
    "wrong password": wrong_password,
    "no right to read": no_rights,
    "no TLS there": no_tls,
    "a web server": _pretending(_speaks(b"HTTP/1.1 400 Bad Request\r\n\r\n")),
    "an SSH server": _pretending(_speaks(b"SSH-2.0-OpenSSH_9.2p1\r\n")),
    "binary noise": _pretending(_speaks(bytes(range(256)) * 16)),
}


class _Instant:
    """A model that answers at once: what is left is what the cache costs."""

    async def generate(self, prompt: str, **options: object) -> GenerateResponse:
        return GenerateResponse("m", "", f"Answer to {prompt}", True, done_reason="stop")

    async def close(self) -> None:
        pass


def latencies() -> Iterator[tuple[str, float, list[float], int]]:
    """Yield of each state its name, what it added to the first answer of a program, what to each
    of the next ones, in seconds, and how many answers were wrong."""
    for name, state in STATES.items():
        with RedisServer() as server, state(server) as url:
            added, wrong = asyncio.run(_ask(url))
        yield name, added[0], added[1:], wrong


async def _ask(url: str) -> tuple[list[float], int]:
    upstream = _Instant()
    backend = RedisBackend(url=url, timeout=0.5)
    client = CachedOllamaClient(upstream, ResponseCache(backend, 3600))
    added, wrong = [], 0
    for number in range(QUESTIONS):
        prompt = f"Question {number}?"
        started = time.perf_counter()
        found = await client.generate(prompt, model="m")
        taken = time.perf_counter() - started
        wrong += found.response != f"Answer to {prompt}"
        started = time.perf_counter()
        await upstream.generate(prompt, model="m")
        added.append(taken - (time.perf_counter() - started))
    await client.close()
    return added, wrong


def poisoned(times: int, seed: int) -> str:
    """Put mutations of a sound value, and of other values of ours, in its place; look each up."""
    with RedisServer() as server:
        return asyncio.run(_poison(server, times, random.Random(seed)))


async def _poison(server: RedisServer, times: int, dice: random.Random) -> str:
    backend = RedisBackend(url=server.url, timeout=20)
    key, other = "1" * 64, "2" * 64
    for name, text in ((key, "right " * 50), (other, "of another question " * 50)):
        response = GenerateResponse("m", "", text, True, done_reason="stop")
        await backend.set(name, CacheEntry(response, created_at=time.time(), ttl=3600))
    client = server.client()
    names = [name for name in client.keys("tinyllm:cache:v1:*") if b"stats" not in name]
    (ours,) = [name for name in names if key.encode() in name]
    (theirs,) = [name for name in names if other.encode() in name]
    sound, foreign = client.get(ours), client.get(theirs)
    answers = wrong = misses = tracebacks = 0
    for _ in range(times):
        client.set(ours, _mutation(sound, foreign, dice))
        try:
            found = await backend.get(key)
        except Exception:  # noqa: BLE001 - any at all is what is counted
            tracebacks += 1
            continue
        if found is None:
            misses += 1
        elif found.response.response == "right " * 50:
            answers += 1
        else:
            wrong += 1
    await backend.close()
    return (
        f"{misses:,} misses, {answers} answers that were right all the same, **{wrong} wrong**; "
        f"{tracebacks} other errors"
    )


def _mutation(sound: bytes, foreign: bytes, dice: random.Random) -> bytes:
    value = bytearray(sound)
    kind = dice.randrange(6)
    place = dice.randrange(len(value))
    if kind == 0:
        value[place] ^= 1 << dice.randrange(8)
    elif kind == 1:
        del value[place:]
    elif kind == 2:
        value[place:place] = dice.randbytes(dice.randrange(1, 20))
    elif kind == 3:
        end = dice.randrange(place, len(value))
        value[place:end] = foreign[place:end]
    elif kind == 4:
        return dice.randbytes(dice.randrange(500))
    else:
        return foreign
    return bytes(value)


def summary() -> Iterator[str]:
    """Yield the rows of the table of added latency."""
    for name, first, later, wrong in latencies():
        yield (
            f"| {name} | {first * 1000:.0f} ms | {statistics.median(later) * 1000:.1f} ms "
            f"| {max(later) * 1000:.1f} ms | {wrong} |"
        )
