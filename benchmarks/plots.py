"""Draws the two plots of docs/performance.md from what the other scripts measured.

    python benchmarks/scale.py --json scale.json
    python benchmarks/redis_hits.py --peers FOLDER --json redis.json
    python benchmarks/plots.py scale.json redis.json docs/images

Needs matplotlib, which nothing else here does.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

INK, GRID = "#24292f", "#d0d7de"
OURS, OTHERS = "#0969da", "#8c959f"
#: Colour, and how far above or below its line's end the name stands: pairs of lines lie close.
LINES = {
    "hit": (OURS, 6),
    "cache-stats": ("#1a7f37", -6),
    "miss": ("#9a6700", 6),
    "evicting miss": ("#cf222e", -6),
}
NAMES = {
    "RedisBackend.get, hot": "tinyllm, asked before",
    "RedisBackend.get, cold": "tinyllm, not asked before",
    "bare redis-py GET, hiredis": "bare redis-py GET",
    "cashews": "cashews",
    "aiocache": "aiocache",
    "langchain": "LangChain",
}


def axes(pyplot: Any, title: str) -> tuple[Any, Any]:
    """Return a figure and its axes in the style of both plots."""
    figure, plot = pyplot.subplots(figsize=(7.2, 3.8), layout="constrained")
    plot.set_title(title, loc="left", color=INK, fontsize=11)
    plot.spines[["top", "right"]].set_visible(False)
    plot.tick_params(colors=INK)
    return figure, plot


def by_entries(pyplot: Any, measured: dict[str, Any]) -> Any:
    """Plot the CPU time of each command against what is stored."""
    figure, plot = axes(pyplot, "CPU of a whole command, by stored answers")
    for name, (colour, above) in LINES.items():
        points = sorted((int(n), s * 1000) for n, s in measured["cpu_seconds"][name].items())
        plot.plot(*zip(*points, strict=True), "o-", color=colour, markersize=4)
        plot.annotate(
            name,
            points[-1],
            xytext=(8, above),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=9,
        )
    plot.set_xscale("log")
    plot.set_ylim(bottom=0)
    plot.set_xlim(right=points[-1][0] * 8)
    plot.set_xticks([n for n, _ in points], [f"{n:,}" for n, _ in points])
    plot.minorticks_off()
    plot.set_xlabel("stored answers", color=INK)
    plot.set_ylabel("CPU, ms", color=INK)
    plot.grid(axis="y", color=GRID, linewidth=0.6)
    return figure


def by_peer(pyplot: Any, measured: dict[str, float]) -> Any:
    """Plot hits per second through Redis as multiples of a bare GET of redis-py."""
    figure, plot = axes(pyplot, "Hits per second from Redis, 64 tasks, as multiples of a bare GET")
    bars = sorted((measured[key], name) for key, name in NAMES.items() if key in measured)
    colours = [OURS if name.startswith("tinyllm") else OTHERS for _, name in bars]
    drawn = plot.barh([name for _, name in bars], [rate for rate, _ in bars], color=colours)
    plot.bar_label(drawn, fmt="%.2f", padding=4, color=INK, fontsize=9)
    plot.set_xlim(right=max(rate for rate, _ in bars) * 1.1)
    plot.set_xlabel("x bare redis-py GET in the same run", color=INK)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scale", type=Path)
    parser.add_argument("redis", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--format", default="svg", choices=["svg", "png"])
    given = parser.parse_args()
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "tinyllm"  # the same figures give the same file
    pyplot = importlib.import_module("matplotlib.pyplot")
    given.folder.mkdir(parents=True, exist_ok=True)
    for name, figure in (
        ("cost_by_entries", by_entries(pyplot, json.loads(given.scale.read_text()))),
        ("redis_hits", by_peer(pyplot, json.loads(given.redis.read_text()))),
    ):
        options: dict[str, Any] = {"metadata": {"Date": None}} if given.format == "svg" else {}
        figure.savefig(given.folder / f"{name}.{given.format}", dpi=150, **options)


if __name__ == "__main__":
    main()
