"""How the cost of each command grows with what is stored.

    python benchmarks/scale.py [--runs 15] [--entries 100 10000 100000 1000000] [--json FILE]

Every store is a snapshot filled with answers of about 1 KB before the clock starts. Ratios are of
CPU seconds against the smallest store, pair by pair in one run, median with range; "evicting miss"
is a miss in a store whose bound is reached, so that something has to go. The last column is one
`cache-clear` of everything, in seconds from start to end. A million answers take a few GB of disk and
some minutes to fill.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from processes import TINYLLM, Cost, cost, fill, fresh_home, instant_model, ratios

PROMPT = "What is AI?"
Series = dict[str, dict[int, list[Cost]]]


def measure(stores: dict[int, dict[str, str]], runs: int) -> Series:
    """Run every command on every store in turn."""
    hit = [*TINYLLM, "run", PROMPT]
    stats = [*TINYLLM, "cache-stats", "--json"]
    series: Series = {"hit": {}, "miss": {}, "evicting miss": {}, "cache-stats": {}}
    for environ in stores.values():
        cost(hit, environ)  # the miss that stores the answer
    for number in range(runs + 1):
        for entries, environ in stores.items():
            # the bound that evicts is below what is stored, and each such miss drops a little more
            full = {**environ, "TINYLLM_CACHE_MAX_ENTRIES": str(entries - number)}
            turn = {
                "hit": cost(hit, environ),
                "miss": cost([*TINYLLM, "run", f"new {number}"], environ),
                "evicting miss": cost([*TINYLLM, "run", f"newer {number}"], full),
                "cache-stats": cost(stats, environ),
            }
            if number:  # the first turn warms the file system's caches
                for name, one in turn.items():
                    series[name].setdefault(entries, []).append(one)
    return series


def show(series: Series, cleared: dict[int, float]) -> None:
    first, *more = cleared
    print(f"| CPU / the same with {first:,} | " + " | ".join(f"{n:,}" for n in more) + " |")
    print("|---" * len(cleared) + "|")

    def row(name: str, cells: list[str]) -> None:
        print(f"| {name} | " + " | ".join(cells) + " |")

    for name, costs in series.items():
        few = [one.cpu for one in costs[first]]
        row(name, [ratios([one.cpu for one in costs[n]], few) for n in more])
    for name in ("hit", "evicting miss"):
        peak = {n: f"{max(one.mib for one in costs):.1f}" for n, costs in series[name].items()}
        row(f"{name}, peak MiB ({peak[first]})", [peak[n] for n in more])
    row(f"cache-clear, seconds ({cleared[first]:.2f})", [f"{cleared[n]:.2f}" for n in more])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--entries", type=int, nargs="+", default=[100, 10_000, 100_000, 1_000_000])
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, instant_model() as host:
        stores = {}
        for entries in sorted(given.entries):
            folder = Path(home, str(entries))
            fill(folder, entries)
            stores[entries] = {**fresh_home(home, host), "TINYLLM_CACHE_DIR": str(folder)}
        series = measure(stores, given.runs)
        clear = [*TINYLLM, "cache-clear", "--yes"]
        cleared = {entries: cost(clear, environ).wall for entries, environ in stores.items()}
    show(series, cleared)
    if given.json is not None:
        medians = {
            name: {n: statistics.median(one.cpu for one in costs[n]) for n in costs}
            for name, costs in series.items()
        }
        given.json.write_text(json.dumps({"cpu_seconds": medians, "clear_seconds": cleared}))


if __name__ == "__main__":
    main()
