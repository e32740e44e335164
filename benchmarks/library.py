"""What a hit costs inside a program: our layers, and other caches, beside the least a cache can cost.

    python benchmarks/library.py [--rounds 15] [--peers FOLDER] [--json FILE]

The floor is an OrderedDict behind `async def` (get and move to the end); for a whole `generate` it
is the SHA-256 of the prompt and that. Every round times each candidate in turn, as CPU time per
call; printed is the median of the ratios, round by round, with the range. With --peers, the caches of
benchmarks/peer_hits.py are installed under that folder, each into an environment of its own, and
measured in a process of their own beside the same floor. Their `get` is by key; `generate` is by the
question, for those that make their own key.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from peer_hits import SMALL, Floor, cpu_per_call, numbered
from processes import MODEL, environment

from tinyllm_cli import (
    CachedOllamaClient,
    CacheEntry,
    GenerateResponse,
    InMemoryBackend,
    ResponseCache,
)

CALLS = 5_000
PEERS = {
    "cachetools": ["cachetools"],
    "cashews": ["cashews[redis]"],
    "aiocache": ["aiocache[redis]"],
    "langchain": ["langchain-core", "langchain-community", "redis"],
    "litellm": ["litellm"],
    "dspy": ["dspy"],
    "gptcache": ["gptcache"],
}
Work = Callable[[], Awaitable[Any]]


class Result(NamedTuple):
    """Nanoseconds per call, and the ratios to the floor, round by round."""

    took: Sequence[float]
    ratios: Sequence[float]


class Upstream:
    """Answers once; a hit must not come here."""

    def __init__(self, answer: GenerateResponse) -> None:
        self.calls = 0
        self.answer = answer

    async def generate(self, **given: Any) -> GenerateResponse:
        self.calls += 1
        return self.answer


async def candidates(length: int) -> dict[str, tuple[Work, str]]:
    """Return each candidate's work and the name of the floor it is held against."""
    answer = GenerateResponse(MODEL, "", "word " * (length // 5), True, eval_count=length // 5)
    floor, small_floor, fresh = Floor(), Floor(SMALL), numbered()
    backend, small = InMemoryBackend(), InMemoryBackend(SMALL)
    cache = ResponseCache(backend)
    client = CachedOllamaClient(Upstream(answer), ResponseCache(InMemoryBackend()))
    key, short, long = "k" * 64, "a" * 100, "a" * 4_000
    entry = CacheEntry(answer, created_at=time.time(), ttl=3600)
    await floor.set(key, answer)
    await backend.set(key, entry)
    for prompt in (short, long):
        await floor.set(hashlib.sha256(prompt.encode()).hexdigest(), answer)
        await client.generate(prompt, MODEL)
    return {
        "floor: get": (lambda: floor.get(key), "floor: get"),
        "InMemoryBackend.get": (lambda: backend.get(key), "floor: get"),
        "ResponseCache.get": (lambda: cache.get(key), "floor: get"),
        "floor: set": (lambda: floor.set(key, answer), "floor: set"),
        "InMemoryBackend.set": (lambda: backend.set(key, entry), "floor: set"),
        "ResponseCache.set": (lambda: cache.set(key, answer), "floor: set"),
        "floor: evicting set": (lambda: small_floor.set(fresh(), answer), "floor: evicting set"),
        "InMemoryBackend.set, evicting": (lambda: small.set(fresh(), entry), "floor: evicting set"),
        "floor: generate, 100": (lambda: floor.generate(short), "floor: generate, 100"),
        "generate, 100 characters": (lambda: client.generate(short, MODEL), "floor: generate, 100"),
        "floor: generate, 4,000": (lambda: floor.generate(long), "floor: generate, 4,000"),
        "generate, 4,000 characters": (
            lambda: client.generate(long, MODEL),
            "floor: generate, 4,000",
        ),
    }


async def ours(length: int, rounds: int) -> dict[str, Result]:
    works = await candidates(length)
    series: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, (work, _) in works.items():
            series[name].append(await cpu_per_call(work, CALLS))
    return {
        name: Result(
            series[name][1:],
            [a / b for a, b in zip(series[name][1:], series[against][1:], strict=True)],
        )
        for name, (_, against) in works.items()
    }


def others(folder: Path, rounds: int, length: int) -> dict[str, Result]:
    found: dict[str, Result] = {}
    for name, requirements in PEERS.items():
        place = environment(folder, name, requirements)
        if place is None:
            continue
        script = str(Path(__file__).with_name("peer_hits.py"))
        command = [str(place / "python"), script, name, "memory"]
        command += ["--rounds", str(rounds), "--bytes", str(length)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            print(f"{name} failed: {done.stderr.strip().splitlines()[-1]}")
            continue
        for operation, result in json.loads(done.stdout).items():
            found[f"{name}, {operation}"] = Result(**result)
    return found


def show(results: dict[str, Result], length: int) -> None:
    print(f"| values of {length:,} B | ns | x floor, median (range) |")
    print("|---|---|---|")
    for name, one in results.items():
        low, high = min(one.ratios), max(one.ratios)
        print(
            f"| {name} | {statistics.median(one.took):,.0f} "
            f"| {statistics.median(one.ratios):.2f} ({low:.2f}-{high:.2f}) |"
        )
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--peers", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    kept = {}
    for length in (2_000, 20_000):
        results = asyncio.run(ours(length, given.rounds))
        if given.peers is not None:
            results |= others(given.peers.resolve(), given.rounds, length)
        show(results, length)
        kept[length] = {name: statistics.median(one.took) for name, one in results.items()}
    if given.json is not None:
        given.json.write_text(json.dumps(kept))


if __name__ == "__main__":
    main()
