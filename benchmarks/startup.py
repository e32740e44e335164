"""What the command costs as a whole process: a hit beside an empty Typer app, and how it grows.

    python benchmarks/startup.py [--runs 21] [--entries 100 100000]

Run it with the Python of an environment that tinyllm is installed in. Every figure is a ratio of
CPU seconds (user and system, as the operating system accounts them) taken pair by pair in one run,
because machines differ and their speed drifts; the median is shown with the range. A hit is counted
whole: start of the interpreter, look-up, answer, counters written.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

EMPTY_APP = """
import typer
app = typer.Typer()
@app.command()
def main(name: str = "world"):
    print("hello", name)
app()
"""
FILL = """
import sys
from tinyllm_cli import CacheEntry, GenerateResponse, InMemoryBackend
path, entries = sys.argv[1:]
backend = InMemoryBackend(10**9, max_bytes=2**40, snapshot=path, keep_requests=False)
for number in range(int(entries)):
    text = f"Answer {number}. " + "word " * 200
    response = GenerateResponse("qwen2.5:0.5b", "", text, True, eval_count=200)
    entry = CacheEntry(response, created_at=1.8e9 + number, seconds=1.0)
    backend.set_nowait(f"{number:064x}", entry)
backend.close_nowait()
"""
PROMPT = "What is AI?"


class Cost(NamedTuple):
    """One process: CPU seconds and peak memory in MiB."""

    cpu: float
    mib: float


class InstantOllama(BaseHTTPRequestHandler):
    """Answers at once, so that a miss costs what tinyllm itself costs."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send(b'{"models":[{"name":"qwen2.5:0.5b","digest":"%s"}]}' % (b"0" * 64))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._send(
            b'{"model":"m","created_at":"","response":"An answer.","done":true,'
            b'"done_reason":"stop","eval_count":3}\n'
        )

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def cost(command: Sequence[str], environ: dict[str, str]) -> Cost:
    """Run a command to its end and return what it cost."""
    with subprocess.Popen(
        command,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        complaint = process.stderr.read() if process.stderr else b""
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{command} failed: {complaint.decode()}")
    return Cost(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def fill(folder: Path, entries: int) -> None:
    """Store that many answers of about 1 KB, in a process of its own: this one stays small, because
    a child's peak memory counts what it inherits."""
    command = [sys.executable, "-c", FILL, str(folder / "snapshot-v1.sqlite3"), str(entries)]
    subprocess.run(command, check=True)


def compare(name: str, ours: Sequence[Cost], others: Sequence[Cost], bar: str) -> None:
    """Print the ratio of two series, pair by pair."""
    ratios = [mine.cpu / other.cpu for mine, other in zip(ours, others, strict=True)]
    memory = max(one.mib for one in ours)
    print(
        f"| {name} | {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) "
        f"| {bar} | {statistics.median(one.cpu for one in ours) * 1000:.0f} ms | {memory:.1f} MiB |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=21)
    parser.add_argument("--entries", type=int, nargs=2, default=[100, 100_000])
    given = parser.parse_args()
    few, many = given.entries
    server = ThreadingHTTPServer(("127.0.0.1", 0), InstantOllama)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as home:
        base = {
            **os.environ,
            "HOME": home,
            "OLLAMA_HOST": f"http://127.0.0.1:{server.server_port}",
            "TINYLLM_CACHE_MAX_ENTRIES": "100000000",
            "TINYLLM_CACHE_MAX_BYTES": "900GiB",
        }
        stores: dict[int, dict[str, str]] = {}
        for entries in (few, many):
            folder = Path(home, str(entries))
            folder.mkdir(mode=0o700)
            fill(folder, entries)
            stores[entries] = {**base, "TINYLLM_CACHE_DIR": str(folder)}
        app = Path(home, "empty_app.py")
        app.write_text(EMPTY_APP)
        measure(given.runs, few, many, stores, [sys.executable, str(app)])
    server.shutdown()


def measure(
    runs: int, few: int, many: int, stores: dict[int, dict[str, str]], empty: list[str]
) -> None:
    """Run everything in turn, so that each pair saw the same machine."""
    tinyllm = [sys.executable, "-m", "tinyllm_cli"]
    hit = [*tinyllm, "run", PROMPT]
    stats = [*tinyllm, "cache-stats", "--json"]
    series: dict[str, list[Cost]] = {}
    for environ in stores.values():
        cost(hit, environ)  # the miss that stores the answer
    for number in range(runs + 1):
        turn = {
            "empty": cost(empty, stores[few]),
            "hit few": cost(hit, stores[few]),
            "hit many": cost(hit, stores[many]),
            "miss few": cost([*tinyllm, "run", f"new {number}"], stores[few]),
            "miss many": cost([*tinyllm, "run", f"new {number}"], stores[many]),
            "stats few": cost(stats, stores[few]),
            "stats many": cost(stats, stores[many]),
        }
        if number:  # the first turn warms the file system's caches
            for name, one in turn.items():
                series.setdefault(name, []).append(one)
    print("| figure | CPU ratio, median (range) | bar | median CPU | peak memory |")
    print("|---|---|---|---|---|")
    compare("hit / empty Typer app", series["hit few"], series["empty"], "1.35")
    compare(f"hit, {many:,} stored / {few:,}", series["hit many"], series["hit few"], "1.15")
    compare(f"miss, {many:,} stored / {few:,}", series["miss many"], series["miss few"], "1.3")
    compare(f"cache-stats, {many:,} / {few:,}", series["stats many"], series["stats few"], "1.5")


if __name__ == "__main__":
    main()
