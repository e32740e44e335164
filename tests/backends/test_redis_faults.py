"""Whatever Redis does, does each backend end in time, name the cause without a secret, and heal?"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.memory import peak_memory
from tests.redis_server import Pretender, RedisServer, blackhole, eventually, free_port
from tests.samples import answer, key_of
from tinyllm_cli.backends.inventory import Filter
from tinyllm_cli.backends.redis import RedisBackend
from tinyllm_cli.backends.redis_blocking import BlockingRedisBackend
from tinyllm_cli.backends.redis_url import parse_redis_url
from tinyllm_cli.backends.redis_vault import Vault
from tinyllm_cli.cache import ResponseCache
from tinyllm_cli.entry import CacheEntry
from tinyllm_cli.errors import BackendUnavailableError, CacheError
from tinyllm_cli.metrics import CacheMetrics

DOCUMENT = Path(__file__).parents[2].joinpath("docs", "redis.md").read_text()
KEY = key_of("a question")
BUDGET_S = 0.5
# the machine that runs this may be busy; what is tested for is seconds or minutes
SLACK_S = 2.0
PATIENT_S = 20.0  # for what is no matter of time


class Store:
    """Either backend, used in the same blocking way; in one event loop for the other's sake."""

    def __init__(self, kind: str, url: str, **options: Any) -> None:
        self.kind = kind
        options = {"timeout": PATIENT_S, **options}
        self._runner = asyncio.Runner()
        self.backend: Any
        if kind == "async":
            self.backend = RedisBackend(url=url, **options)
        else:
            vault = Vault(secret=options.pop("secret", None))
            options = {"max_entry_bytes": 8 * 2**20, **options}
            self.backend = BlockingRedisBackend(parse_redis_url(url), vault, **options)

    def get(self) -> CacheEntry | None:
        if self.kind == "async":
            found: CacheEntry | None = self._runner.run(self.backend.get(KEY))
            return found
        return self.backend.get_nowait(KEY)  # type: ignore[no-any-return]

    def set(self, entry: CacheEntry) -> None:
        if self.kind == "async":
            self._runner.run(self.backend.set(KEY, entry))
        else:
            self.backend.set_nowait(KEY, entry)

    def do(self, name: str, *arguments: Any) -> Any:
        """Call a coroutine of the backend and return what it does."""
        return self._runner.run(getattr(self.backend, name)(*arguments))

    def failure(self, call: Callable[[], object] | None = None) -> tuple[CacheError, float]:
        """Return how a call failed and after how many seconds."""
        started = time.monotonic()
        with pytest.raises(CacheError) as caught:
            (call or self.get)()
        return caught.value, time.monotonic() - started

    def close(self) -> None:
        with contextlib.suppress(CacheError):
            if self.kind == "async":
                self._runner.run(self.backend.close())
            else:
                self.backend.close_nowait()
        self._runner.close()


@pytest.fixture(params=["async", "blocking"])
def open_store(request: pytest.FixtureRequest) -> Iterator[Callable[..., Store]]:
    stores: list[Store] = []

    def open_one(url: str, **options: Any) -> Store:
        stores.append(Store(request.param, url, **options))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture(scope="module")
def running() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    running.client().flushall()
    return running


OpenStore = Callable[..., Store]


def fresh(text: str = "Because.") -> CacheEntry:
    return CacheEntry(answer(text), created_at=time.time(), ttl=60)


# --- nobody there, or nobody who answers


def test_a_refused_connection_costs_next_to_nothing(open_store: OpenStore) -> None:
    error, seconds = open_store(f"redis://127.0.0.1:{free_port()}").failure()
    assert isinstance(error, BackendUnavailableError)
    assert seconds < BUDGET_S
    assert "refused" in str(error)


def test_connecting_to_a_black_hole_ends_in_time(open_store: OpenStore) -> None:
    with blackhole() as port:
        store = open_store(f"redis://127.0.0.1:{port}", timeout=BUDGET_S)
        error, seconds = store.failure()
        assert "in time" in str(error)
        assert seconds < 0.3 + SLACK_S
        error, seconds = store.failure()
        assert "left alone" in str(error)
        assert seconds < BUDGET_S


def test_a_host_that_does_not_resolve_is_said_so(open_store: OpenStore) -> None:
    error, seconds = open_store("redis://no-such-host.invalid", timeout=BUDGET_S).failure()
    assert "no-such-host.invalid:6379" in str(error)
    assert seconds < 0.3 + SLACK_S


def test_a_frozen_server_costs_the_budget_once_and_is_used_again(
    open_store: OpenStore, server: RedisServer
) -> None:
    now = [0.0]
    store = open_store(server.url, monotonic=lambda: now[0], timeout=BUDGET_S)
    store.set(fresh())
    server.freeze()
    try:
        error, seconds = store.failure()
        assert "in time" in str(error)
        assert BUDGET_S - 0.1 < seconds < BUDGET_S + SLACK_S
        assert store.failure()[1] < BUDGET_S
    finally:
        server.thaw()
    now[0] += 3
    assert store.get() is not None


def drip(connection: socket.socket) -> None:
    connection.recv(65536)
    for byte in b"$5\r\nhello\r\n":
        connection.sendall(bytes([byte]))
        if DONE.wait(0.2):
            return


DONE = threading.Event()


def huge(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"$999999999999\r\n")
    with contextlib.suppress(OSError):
        while not DONE.is_set():
            connection.sendall(b"x" * 65536)


def web(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno")


def ssh(connection: socket.socket) -> None:
    connection.sendall(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n")
    connection.recv(65536)


def garbage(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(bytes(range(256)) * 16)


def closing(connection: socket.socket) -> None:
    connection.recv(65536)


@pytest.mark.parametrize("serve", [drip, huge, web, ssh, garbage, closing])
def test_what_only_listens_is_given_up_in_time(
    open_store: OpenStore, serve: Callable[[socket.socket], None]
) -> None:
    DONE.clear()
    with Pretender(serve) as pretender:
        error, seconds = open_store(pretender.url, timeout=BUDGET_S).failure()
        DONE.set()
    assert isinstance(error, BackendUnavailableError)
    assert seconds < BUDGET_S + SLACK_S
    if serve in (huge, web, ssh, garbage):
        assert "is not Redis" in str(error)


@pytest.mark.parametrize("serve", [web, ssh, closing])
def test_what_does_not_speak_tls_is_given_up_in_time(
    open_store: OpenStore, serve: Callable[[socket.socket], None]
) -> None:
    with Pretender(serve) as pretender:
        url = pretender.url.replace("redis:", "rediss:")
        error, seconds = open_store(url, timeout=BUDGET_S).failure()
    assert isinstance(error, BackendUnavailableError)
    assert seconds < BUDGET_S + SLACK_S


def test_a_plain_server_behind_rediss_is_given_up_in_time(
    open_store: OpenStore, server: RedisServer
) -> None:
    url = server.url.replace("redis:", "rediss:")
    error, seconds = open_store(url, timeout=BUDGET_S).failure()
    assert isinstance(error, BackendUnavailableError)
    assert seconds < BUDGET_S + SLACK_S


def test_a_value_cut_anywhere_is_never_an_answer(open_store: OpenStore) -> None:
    blob = Vault().seal(KEY, fresh())
    whole = b"$%d\r\n%b\r\n" % (len(blob), blob)
    cut = [0]

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(whole[: cut[0]])

    with Pretender(serve) as pretender:
        for cut[0] in (*range(0, 40), *range(40, len(whole), 97), len(whole) - 1):
            error, _ = open_store(pretender.url).failure()
            assert isinstance(error, BackendUnavailableError)
        cut[0] = len(whole)
        assert open_store(pretender.url).get() is not None


def test_figures_come_from_a_server_that_hangs_up_on_info(
    open_store: OpenStore, server: RedisServer
) -> None:
    def serve(connection: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", server.port)) as behind:
            while request := connection.recv(65536):
                if b"INFO" in request:
                    return
                behind.sendall(request)
                connection.sendall(behind.recv(1 << 20))

    open_store(server.url).set(fresh())
    with Pretender(serve) as pretender:
        store = open_store(pretender.url)
        found = store.do("stats")
        assert (found.entries, found.server_evictions, found.server_policy) == (1, None, None)
        if store.kind == "async":
            assert store.get() is not None  # a program goes on using it


@pytest.mark.slow
def test_a_walk_waits_for_a_server_that_has_answered(
    open_store: OpenStore, server: RedisServer
) -> None:
    def serve(connection: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", server.port)) as behind:
            while request := connection.recv(65536):
                if b"SCAN" in request and DONE.wait(2.5):
                    return
                behind.sendall(request)
                connection.sendall(behind.recv(1 << 20))

    DONE.clear()
    open_store(server.url).set(fresh())
    with Pretender(serve) as pretender:
        assert open_store(pretender.url, timeout=2.0).do("stats").entries == 1
    DONE.set()


def test_a_walk_does_not_wait_for_a_silent_server(
    open_store: OpenStore, server: RedisServer
) -> None:
    store = open_store(server.url, timeout=BUDGET_S)
    server.freeze()
    try:
        error, seconds = store.failure(lambda: store.do("stats"))
    finally:
        server.thaw()
    assert "in time" in str(error)
    assert seconds < BUDGET_S + SLACK_S


# --- a server that answers, but not with data


@pytest.mark.slow
def test_a_loading_server_is_left_alone_and_then_used_again(open_store: OpenStore) -> None:
    now = [0.0]
    with RedisServer("--save", "3600 1") as server:
        store = open_store(server.url, monotonic=lambda: now[0])
        store.set(fresh())
        client = server.client()
        for n in range(60):
            client.set(f"filling:{n}", os.urandom(100))
        client.save()
        server.kill()
        slowly = ("--key-load-delay", "20000", "--loading-process-events-interval-bytes", "1024")
        server.start(*slowly, wait=False)
        eventually(lambda: _can_connect(server.port))
        now[0] += 3
        error, seconds = store.failure()
        assert isinstance(error, BackendUnavailableError)
        assert seconds < BUDGET_S + SLACK_S
        eventually(lambda: server.client().ping(), "the end of loading")
        now[0] += 3
        assert store.get() is not None


def _can_connect(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port)):
        return True


def test_a_full_server_still_serves_hits(open_store: OpenStore, server: RedisServer) -> None:
    store = open_store(server.url)
    store.set(fresh())
    server.client().config_set("maxmemory", 1)
    try:
        error, _ = store.failure(lambda: store.set(fresh()))
        assert "out of memory" in str(error)
        assert store.get() is not None
    finally:
        server.client().config_set("maxmemory", 0)
    store.set(fresh())


def test_a_replica_still_serves_hits(open_store: OpenStore, server: RedisServer) -> None:
    store = open_store(server.url)
    store.set(fresh())
    server.client().replicaof("127.0.0.1", 1)
    try:
        error, _ = store.failure(lambda: store.set(fresh()))
        assert "read-only" in str(error)
        assert store.get() is not None
        server.client().config_set("replica-serve-stale-data", "no")
        error, _ = store.failure()
        assert "MASTERDOWN" in str(error)
    finally:
        server.client().config_set("replica-serve-stale-data", "yes")
        server.client().replicaof("NO", "ONE")


def test_a_busy_server_is_left_alone(open_store: OpenStore, server: RedisServer) -> None:
    client, other = server.client(), server.new_client()
    client.config_set("busy-reply-threshold", 10)
    script = threading.Thread(target=lambda: _quietly(other.eval, "while true do end", 0))
    script.start()
    try:
        eventually(lambda: _is_busy(server))
        error, _ = open_store(server.url).failure()
        assert "BUSY" in str(error)
    finally:
        server.client().script_kill()
        script.join()
        other.close()


def _quietly(call: Callable[..., object], *arguments: object) -> None:
    with contextlib.suppress(Exception):
        call(*arguments)


def _is_busy(server: RedisServer) -> bool:
    try:
        server.client().ping()
    except redis.RedisError as exc:
        return "BUSY" in str(exc)
    return False


def test_a_cluster_behind_a_plain_url_is_named(open_store: OpenStore) -> None:
    with RedisServer("--cluster-enabled", "yes", "--cluster-port", str(free_port())) as server:
        error, _ = open_store(server.url).failure()
        assert "CLUSTERDOWN" in str(error)
        client = server.client()
        mine = client.execute_command("CLUSTER", "KEYSLOT", Vault().name(KEY))
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, mine - 1)
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", mine + 1, 16383)
        client.config_set("cluster-require-full-coverage", "no")
        error, _ = open_store(server.url).failure()
        assert "CLUSTERDOWN" in str(error) or "redis+cluster://" in str(error)


def test_something_else_under_our_name_is_left_alone(
    open_store: OpenStore, server: RedisServer
) -> None:
    name = Vault().name(KEY)
    server.client().rpush(name, "mine")
    store = open_store(server.url)
    error, _ = store.failure()
    assert "WRONGTYPE" in str(error)
    store.failure(lambda: store.set(fresh()))
    assert server.client().lrange(name, 0, -1) == [b"mine"]


def test_a_refused_login_says_so_and_nothing_secret(
    open_store: OpenStore, server: RedisServer
) -> None:
    client = server.client()
    for url in (
        f"redis://:hunter2@127.0.0.1:{server.port}",
        f"redis://alice:hunter2@127.0.0.1:{server.port}",
        f"redis://alice:hunter2@127.0.0.1:{server.port}/3",
    ):
        error, seconds = open_store(url).failure()
        assert "authentication failed" in str(error)
        assert "hunter2" not in f"{error!r} {error.hint} {error.__cause__!r}"
        assert seconds < BUDGET_S + SLACK_S
    client.acl_setuser("alice", enabled=True, passwords=["+hunter2"], keys=["other:*"], reset=True)
    try:
        error, _ = open_store(f"redis://alice:hunter2@127.0.0.1:{server.port}").failure()
        assert "GETRANGE" in str(error)
    finally:
        client.acl_deluser("alice")


def test_the_documented_rights_are_enough_and_no_more(
    open_store: OpenStore, server: RedisServer
) -> None:
    """The line is the one in docs/redis.md."""
    line = next(line for line in DOCUMENT.splitlines() if line.startswith("ACL SETUSER tinyllm "))
    words = line.replace("<password>", "password").split()
    server.client().execute_command(*words)
    try:
        store = open_store(f"redis://tinyllm:password@127.0.0.1:{server.port}")
        store.set(fresh())
        assert store.get() is not None
        name = Vault().name(KEY)
        server.client().set(name, b"poison")
        assert store.get() is None
        assert not server.client().exists(name)
        store.set(fresh())
        store.backend.count("llama3.2", CacheMetrics(hits=1))
        stats = store.do("stats")
        assert (stats.entries, stats.metrics.hits) == (1, 1)
        assert stats.server_policy == "noeviction"
        assert store.do("lease", KEY, "token", None) is None
        store.do("release", KEY, "token", "")
        assert store.do("clear_matching", Filter(model="llama3.2:latest")).entries == 1
        with redis.Redis(port=server.port, username="tinyllm", password="password") as client:
            for command in (
                ("GET", "session:1"),
                ("FLUSHDB",),
                ("KEYS", "*"),
                ("CONFIG", "GET", "*"),
            ):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.execute_command(*command)
    finally:
        server.client().acl_deluser("tinyllm")


# --- what is stored is not what we stored

POISON: dict[str, bytes] = {
    "null": b"null",
    "array": b"[]",
    "object": b"{}",
    "NaN": b"NaN",
    "5000 digits": b"9" * 5000,
    "200000 brackets": b"[" * 200_000,
    "invalid UTF-8": b"\xff\xfe" * 20,
    "BOM": b"\xef\xbb\xbf{}",
    "duplicate keys": b'{"v":1,"v":1}',
    "wrong types": b'{"v":"1","digest":1,"entry":[]}',
    "pickle": pickle.dumps(print),
    "gzip bomb": gzip.compress(bytes(50 * 2**20)),
    "of an old format": b'{"v":0,"digest":"","entry":{}}',
    "of another key": Vault().seal(key_of("another"), fresh("wrong")),
    "a sealed one": Vault(secret="a secret of the team").seal(KEY, fresh("wrong")),
    "one bit": Vault().seal(KEY, fresh()).replace(b"Because", b"becausE"),
    "cut": Vault().seal(KEY, fresh())[:-20],
    "longer": Vault().seal(KEY, fresh()) + b" ",
}


@pytest.mark.parametrize("value", POISON.values(), ids=POISON.keys())
def test_a_poisoned_value_is_a_miss_and_is_removed(
    open_store: OpenStore, server: RedisServer, value: bytes
) -> None:
    name = Vault().name(KEY)
    server.client().set(name, value)
    store = open_store(server.url)
    assert store.get() is None
    assert not server.client().exists(name)
    store.set(fresh())
    assert store.get() is not None


def test_with_fields_of_the_wrong_type_a_sound_digest_does_not_help(
    open_store: OpenStore, server: RedisServer
) -> None:
    from tinyllm_cli.sha import sha256_hex

    sound = json.loads(Vault().seal(KEY, fresh()))["entry"]
    for field, value in (
        ("response", {"model": 1}),
        ("created_at", "now"),
        ("ttl", True),
        ("chunks", [[1, 2]]),
        ("cost", None),
        ("key", key_of("another")),
    ):
        data = json.dumps({**sound, field: value}, separators=(",", ":")).encode()
        digest = sha256_hex(KEY.encode() + b"\0" + data).encode()
        name = Vault().name(KEY)
        server.client().set(name, b'{"v":1,"digest":"%b","entry":%b}' % (digest, data))
        assert open_store(server.url).get() is None
        assert not server.client().exists(name)


def test_a_huge_value_is_not_fetched_and_is_removed(
    open_store: OpenStore, server: RedisServer
) -> None:
    name = Vault().name(KEY)
    server.client().setrange(name, 200 * 2**20, b"x")
    store = open_store(server.url, max_entry_bytes=2**20)
    before = peak_memory(anew=True)
    assert store.get() is None
    assert peak_memory() - before < 8 * 2**20
    assert not server.client().exists(name)


def test_an_entry_larger_than_the_bound_is_not_stored_nor_taken_from_others(
    open_store: OpenStore, server: RedisServer
) -> None:
    import random

    large = fresh(random.Random(1).randbytes(5000).hex())
    small_store = open_store(server.url, max_entry_bytes=2000)
    small_store.set(large)
    assert server.client().dbsize() == 0
    open_store(server.url).set(large)
    assert small_store.get() is None
    assert server.client().dbsize() == 1


def test_the_cache_forgives_each_failure_and_counts_it(server: RedisServer) -> None:
    faults: list[CacheError] = []

    async def use() -> None:
        cache = ResponseCache(
            RedisBackend(url=f"redis://127.0.0.1:{free_port()}"), on_fault=faults.append
        )
        assert await cache.get(KEY) is None
        await cache.set(KEY, answer())
        assert (cache.metrics.errors, cache.metrics.misses, cache.metrics.sets) == (2, 0, 0)
        await cache.close()

    asyncio.run(use())
    assert len(faults) >= 2
