"""Every figure of docs/reliability.md: faults tried, and what came of them.

    python benchmarks/reliability.py [--scale 1] [--seed 1] [--peers FOLDER] [--write]

Run it from the repository with the Python of an environment that the tests run in. The full scale
takes about half an hour on two cores; `--scale 0.05` tries a twentieth of everything. `--write` puts
the tables between the markers of docs/reliability.md; otherwise they are printed. With --peers other
programs are installed under that folder, each into an environment of its own, and their stores are
broken in the same ways. Times depend on the machine; what is counted does not.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import hostile_input
import hostile_text
import peer_faults
import redis_faults
import snapshot_faults
import stampedes

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"


class Scale(NamedTuple):
    """How many of everything are tried."""

    flips: int
    damages: int
    kills: int
    poisons: int
    inputs: int
    invocations: int
    hostile_bytes: int
    callers: int

    @classmethod
    def times(cls, share: float) -> Scale:
        full = (10_000, 1_000, 2_000, 10_000, 100_000, 2_000, 10_000_000, 10_000)
        return cls(*(max(1, int(number * share)) for number in full))


def stored(scale: Scale, seed: int) -> Iterator[str]:
    yield "| done to the snapshot | times | what came of it |"
    yield "|---|---|---|"
    for name, times, damage in (
        ("a bit flipped", scale.flips, snapshot_faults.flip_a_bit),
        ("up to 4 KiB overwritten", scale.damages, snapshot_faults.overwrite),
        ("cut anywhere", scale.damages, snapshot_faults.cut),
    ):
        yield f"| {name} | {times:,} | {snapshot_faults.damaged(times, damage, seed).sentence()} |"
    killed = snapshot_faults.kills(scale.kills, seed)
    yield f"| its writer killed at a random moment | {scale.kills:,} | {killed} |"
    yield f"| a write broken at each of its system calls | 1 | {snapshot_faults.every_syscall()} |"


def shared(scale: Scale, seed: int) -> Iterator[str]:
    yield "| Redis is | added to the first answer | to the next, median | at most | wrong answers |"
    yield "|---|---|---|---|---|"
    yield from redis_faults.summary()
    yield ""
    yield f"{scale.poisons:,} mutated values: {redis_faults.poisoned(scale.poisons, seed)}."


def together(scale: Scale, seed: int) -> Iterator[str]:
    yield "| the same question at once | askers killed | model asked | without the right answer |"
    yield "|---|---|---|---|"
    yield from stampedes.summary(scale.callers, seed)


def hostile(scale: Scale, seed: int) -> Iterator[str]:
    yield f"Text: {hostile_text.shown(scale.hostile_bytes, seed)}."
    yield ""
    yield from hostile_input.summary(scale.inputs, scale.invocations, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--peers", type=Path, default=None)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    scale = Scale.times(given.scale)
    parts: dict[str, Callable[[], Iterator[str]]] = {
        "The snapshot": lambda: stored(scale, given.seed),
        "Redis": lambda: shared(scale, given.seed),
        "Many at once": lambda: together(scale, given.seed),
        "Hostile input": lambda: hostile(scale, given.seed),
    }
    if given.peers is not None:
        peers = given.peers.resolve()
        parts["Other programs, broken in the same ways"] = lambda: peer_faults.rows(peers)
    lines = [_origin(given.seed), ""]
    for title, part in parts.items():
        started = time.monotonic()
        lines += [f"### {title}", "", *part(), ""]
        print(f"{title}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    text = "\n".join(lines)
    if not given.write:
        print(text)
        return
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")


def _origin(seed: int) -> str:
    asked = ["git", "-C", str(PAGE.parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    return (
        f"Measured {datetime.date.today()} at commit `{commit or 'unknown'}`, seed {seed}: Python "
        f"{platform.python_version()}, SQLite {sqlite3.sqlite_version}, {platform.system()}."
    )


if __name__ == "__main__":
    main()
