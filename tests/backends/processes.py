"""Python scripts as processes of their own, for what only a second process can show."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: What every script here begins with. `store(backend, name, text)` keeps `text` under `name`.
PRELUDE = """
import hashlib, json, os, sys, time
from tinyllm_cli.backends.inventory import Filter
from tinyllm_cli.backends.memory import InMemoryBackend
from tinyllm_cli.backends.snapshot import Snapshot
from tinyllm_cli.entry import CacheEntry
from tinyllm_cli.errors import SnapshotError
from tinyllm_cli.metrics import CacheMetrics
from tinyllm_cli.response import GenerateResponse

def key_of(name):
    return hashlib.sha256(str(name).encode()).hexdigest()

def store(backend, name, text="Because."):
    response = GenerateResponse("llama3.2", "t", text, True, done_reason="stop")
    backend.set_nowait(key_of(name), CacheEntry(response, created_at=time.time()))

def text_of(backend, name):
    found = backend.lookup(key_of(name))
    return None if found is None else found.response.response
"""


def start(
    script: str, *arguments: object, before: Sequence[str] = (), check_warnings: bool = True
) -> subprocess.Popen[str]:
    """Start a script with its arguments; `before` is a command that starts it, as setpriv does."""
    options = ["-W", "error"] if check_warnings else []
    return subprocess.Popen(
        [*before, sys.executable, *options, "-c", PRELUDE + script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a script and return what it printed; it must have ended well and in silence."""
    out, err = process.communicate(timeout=60)
    assert not err, err
    assert process.returncode == 0, f"it ended with {process.returncode}"
    return out


def run(script: str, *arguments: object, before: Sequence[str] = ()) -> str:
    """Run a script to its end and return what it printed."""
    return finish(start(script, *arguments, before=before))
