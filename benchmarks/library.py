"""What a hit costs inside a program: our layers beside the least such a cache can cost.

    python benchmarks/library.py [--rounds 15]

The floor is an OrderedDict behind `async def` (get and move to the end); for a whole `generate` it
is the SHA-256 of the prompt and that. Every round times each candidate in turn, as CPU time per
call; printed is the median of the ratios, round by round, with the range.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import statistics
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from tinyllm_cli import (
    CachedOllamaClient,
    CacheEntry,
    GenerateResponse,
    InMemoryBackend,
    ResponseCache,
)

CALLS = 5_000
MODEL = "qwen2.5:0.5b"
Work = Callable[[], Awaitable[Any]]


class Floor:
    """An LRU and nothing else."""

    def __init__(self) -> None:
        self.entries: OrderedDict[str, Any] = OrderedDict()

    async def get(self, key: str) -> Any:
        entry = self.entries.get(key)
        if entry is not None:
            self.entries.move_to_end(key)
        return entry

    async def generate(self, prompt: str) -> Any:
        return await self.get(hashlib.sha256(prompt.encode()).hexdigest())


class Upstream:
    """Answers once; a hit must not come here."""

    def __init__(self) -> None:
        self.calls = 0

    async def generate(self, **given: Any) -> GenerateResponse:
        self.calls += 1
        return answer()


def answer() -> GenerateResponse:
    return GenerateResponse(MODEL, "", "word " * 400, True, eval_count=400)


def cpu_per_call(work: Work) -> float:
    """Return nanoseconds of CPU per call."""

    async def run() -> float:
        started = time.process_time_ns()
        for _ in range(CALLS):
            await work()
        return (time.process_time_ns() - started) / CALLS

    return asyncio.run(run())


async def candidates() -> dict[str, tuple[Work, str]]:
    """Return each candidate's name, work, and the name of the floor it is held against."""
    floor, backend, upstream = Floor(), InMemoryBackend(), Upstream()
    cache = ResponseCache(backend)
    client = CachedOllamaClient(upstream, ResponseCache(InMemoryBackend()))
    key = "k" * 64
    short, long = "a" * 100, "a" * 4_000
    floor.entries[key] = answer()
    entry = CacheEntry(answer(), created_at=time.time(), ttl=3600)
    await backend.set(key, entry)
    for prompt in (short, long):
        floor.entries[hashlib.sha256(prompt.encode()).hexdigest()] = answer()
        await client.generate(prompt, MODEL)
    get = "floor get"
    return {
        get: (lambda: floor.get(key), get),
        "InMemoryBackend.get": (lambda: backend.get(key), get),
        "ResponseCache.get": (lambda: cache.get(key), get),
        "floor 100": (lambda: floor.generate(short), "floor 100"),
        "generate, 100 characters": (lambda: client.generate(short, MODEL), "floor 100"),
        "floor 4000": (lambda: floor.generate(long), "floor 4000"),
        "generate, 4,000 characters": (lambda: client.generate(long, MODEL), "floor 4000"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    works = asyncio.run(candidates())
    series: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(given.rounds + 1):
        for name, (work, _) in works.items():
            series[name].append(cpu_per_call(work))
    print("| call | ns | x floor, median (range) |")
    print("|---|---|---|")
    for name, (_, against) in works.items():
        mine, floors = series[name][1:], series[against][1:]
        ratios = [a / b for a, b in zip(mine, floors, strict=True)]
        print(
            f"| {name} | {statistics.median(mine):,.0f} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f}-{max(ratios):.2f}) |"
        )


if __name__ == "__main__":
    main()
