"""How many hits per second, and how late the slowest is: many callers in one process, many processes.

    python benchmarks/load.py [--rounds 5] [--seconds 2]

First one process whose tasks ask `CachedOllamaClient.generate` for stored answers, 1, 64 and 1,000
at once: memory alone, so what is measured is ours. Then 1, 8 and 64 processes on one snapshot file,
each reading and checking one answer after another from the file; each works for the given time once
all have started. Ratios are to one task or one process of the
same round; latencies are of single calls.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from processes import MODEL, fill

from tinyllm_cli import CachedOllamaClient, GenerateResponse, InMemoryBackend, ResponseCache

STORED = 20_000
READER = """
import json, random, sys, time
from tinyllm_cli import InMemoryBackend
path, entries, seconds, seed = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
backend = InMemoryBackend(10**6, snapshot=path)
draw = random.Random(seed)
backend.peek("0" * 64)
print("ready", flush=True)
sys.stdin.readline()
took, ends = [], time.perf_counter() + seconds
while (started := time.perf_counter()) < ends:
    found = backend.peek(f"{draw.randrange(entries):064x}")
    took.append(time.perf_counter() - started)
    assert found is not None
took.sort()
print(json.dumps([len(took) / seconds, took[len(took) // 2], took[len(took) * 99 // 100], took[-1]]))
backend.snapshot.close()
"""


class Load(NamedTuple):
    """Hits per second of all together; median, 99th percentile and longest call in seconds."""

    rate: float
    p50: float
    p99: float
    longest: float


class Upstream:
    async def generate(self, **given: Any) -> GenerateResponse:
        return GenerateResponse(MODEL, "", "word " * 400, True, eval_count=400)


async def tasks(number: int, calls: int) -> Load:
    """Have that many tasks make all those calls together."""
    client = CachedOllamaClient(Upstream(), ResponseCache(InMemoryBackend()))
    prompts = [f"{n:0100}" for n in range(200)]
    for prompt in prompts:
        await client.generate(prompt, MODEL)
    took: list[float] = []

    async def work(task: int) -> None:
        for n in range(calls // number):
            started = time.perf_counter()
            await client.generate(prompts[(task + n) % len(prompts)], MODEL)
            took.append(time.perf_counter() - started)
            await asyncio.sleep(0)  # a hit never waits, so the others would not have a turn

    started = time.perf_counter()
    await asyncio.gather(*map(work, range(number)))
    seconds = time.perf_counter() - started
    took.sort()
    return Load(len(took) / seconds, took[len(took) // 2], took[len(took) * 99 // 100], took[-1])


def processes(number: int, path: Path, seconds: float) -> Load:
    """Have that many processes look up at once."""
    command = [sys.executable, "-c", READER, str(path), str(STORED), str(seconds)]
    readers = [
        subprocess.Popen(
            [*command, str(seed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for seed in range(number)
    ]
    for reader in readers:
        assert reader.stdout is not None
        reader.stdout.readline()
    for reader in readers:
        assert reader.stdin is not None
        reader.stdin.write("go\n")
        reader.stdin.flush()
    rates, medians, tails, longest = [], [], [], []
    for reader in readers:
        out, _ = reader.communicate()
        rate, p50, p99, most = json.loads(out)
        rates.append(rate)
        medians.append(p50)
        tails.append(p99)
        longest.append(most)
    return Load(sum(rates), statistics.median(medians), max(tails), max(longest))


def show(name: str, loads: list[Load], first: list[Load]) -> None:
    ratios = [one.rate / other.rate for one, other in zip(loads, first, strict=True)]
    p50, p99 = (statistics.median(getattr(one, field) for one in loads) for field in ("p50", "p99"))
    print(
        f"| {name} | {statistics.median(one.rate for one in loads):,.0f} "
        f"| {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) "
        f"| {p50 * 1e6:,.0f} | {p99 * 1e6:,.0f} | {max(one.longest for one in loads) * 1e3:,.1f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    given = parser.parse_args()
    print("| at once | hits/s | x one | p50 us | p99 us | longest ms |")
    print("|---|---|---|---|---|---|")
    callers = (1, 64, 1000)
    found = [[asyncio.run(tasks(n, 100_000)) for n in callers] for _ in range(given.rounds)]
    for n, loads in zip(callers, zip(*found, strict=True), strict=True):
        show(f"{n:,} task{'s' * (n > 1)}, `generate`", list(loads), [one[0] for one in found])
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), STORED)
        path = Path(folder, "snapshot-v1.sqlite3")
        crowds = (1, 8, 64)
        found = [[processes(n, path, given.seconds) for n in crowds] for _ in range(given.rounds)]
    for n, loads in zip(crowds, zip(*found, strict=True), strict=True):
        show(f"{n} process{'es' * (n > 1)}, one snapshot", list(loads), [one[0] for one in found])


if __name__ == "__main__":
    main()
