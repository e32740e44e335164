"""Which eviction policy saves more: hit rate and seconds saved, on workloads made here.

    python benchmarks/eviction.py [--requests 60000] [--seeds 3]

Each workload is a stream of prompts that repeat by Zipf's law, with answers of log-normal length
from models of different speed. The cache holds a share of all distinct answers. Every policy sees
the same stream in the same run; figures are shares of the best possible (nothing ever dropped).
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import random
import statistics
from collections.abc import Iterator
from typing import NamedTuple

from tinyllm_cli import CacheEntry, GenerateResponse, InMemoryBackend


class Workload(NamedTuple):
    """A stream of requests: how they repeat, how fast their models are, in tokens per second."""

    name: str
    prompts: int
    zipf: float
    once: float  # share of requests that are never asked again
    speeds: tuple[tuple[float, float], ...]  # (tokens per second, share)


WORKLOADS = (
    Workload("chat: mostly new questions, one model", 6_000, 0.7, 0.6, ((40, 1.0),)),
    Workload("FAQ: few questions, often", 6_000, 1.1, 0.3, ((40, 1.0),)),
    Workload("three models, flat repeats", 6_000, 0.7, 0.2, ((90, 0.6), (25, 0.3), (6, 0.1))),
    Workload("three models, steep repeats", 6_000, 0.9, 0.2, ((90, 0.6), (25, 0.3), (6, 0.1))),
)
SHARES = (0.02, 0.05, 0.2)


class Request(NamedTuple):
    key: str
    entry: CacheEntry


def requests(workload: Workload, number: int, seed: int) -> Iterator[Request]:
    """Yield the stream; the same seed gives the same one."""
    chance = random.Random(seed)
    weights = [1 / rank**workload.zipf for rank in range(1, workload.prompts + 1)]
    steps = list(itertools.accumulate(weights))
    fresh = itertools.count()
    known = [_entry(chance, workload) for _ in range(workload.prompts)]
    for _ in range(number):
        if chance.random() < workload.once:
            yield Request(f"once {next(fresh)}", _entry(chance, workload))
        else:
            number_of = bisect.bisect(steps, chance.random() * steps[-1])
            number_of = min(number_of, workload.prompts - 1)
            yield Request(f"again {number_of}", known[number_of])


def _entry(chance: random.Random, workload: Workload) -> CacheEntry:
    tokens = min(4_000, int(chance.lognormvariate(5.0, 1.3)) + 1)
    speeds, shares = zip(*workload.speeds, strict=True)
    speed = chance.choices(speeds, shares)[0]
    response = GenerateResponse("m", "", "word " * tokens, True, eval_count=tokens)
    return CacheEntry(response, created_at=0.0, seconds=tokens / speed)


class Result(NamedTuple):
    hit_rate: float
    seconds_saved: float


def play(stream: list[Request], eviction: str, max_bytes: int) -> Result:
    """Run the stream through a real backend and add up what its hits saved."""
    backend = InMemoryBackend(10**9, max_bytes=max_bytes, eviction=eviction)
    hits = 0
    saved = 0.0
    for key, entry in stream:
        if backend.lookup(key) is None:
            backend.set_nowait(key, entry)
        else:
            hits += 1
            saved += entry.seconds
    return Result(hits / len(stream), saved)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--requests", type=int, default=60_000)
    arguments.add_argument("--seeds", type=int, default=3)
    given = arguments.parse_args()
    print(
        "| workload | room | lru hits | cost hits | lru saves | cost saves | cost / lru, seconds |"
    )
    print("|---|---|---|---|---|---|---|")
    for workload in WORKLOADS:
        for share in SHARES:
            rows = []
            for seed in range(1, given.seeds + 1):
                stream = list(requests(workload, given.requests, seed))
                everything = sum({key: entry.size for key, entry in stream}.values())
                best = play(stream, "lru", 10**12)
                lru, cost = (
                    play(stream, name, int(everything * share)) for name in ("lru", "cost")
                )
                rows.append((best, lru, cost))
            print(_row(workload.name, share, rows))


def _row(name: str, share: float, rows: list[tuple[Result, Result, Result]]) -> str:
    def middle(values: list[float]) -> float:
        return statistics.median(values)

    gains = [cost.seconds_saved / lru.seconds_saved for _, lru, cost in rows]
    cells = [
        name,
        f"{share:.0%}",
        f"{middle([lru.hit_rate / best.hit_rate for best, lru, _ in rows]):.0%}",
        f"{middle([cost.hit_rate / best.hit_rate for best, _, cost in rows]):.0%}",
        f"{middle([lru.seconds_saved / best.seconds_saved for best, lru, _ in rows]):.0%}",
        f"{middle([cost.seconds_saved / best.seconds_saved for best, _, cost in rows]):.0%}",
        f"{middle(gains):.2f} ({min(gains):.2f}-{max(gains):.2f})",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
