"""What a command did, said in the words a script would use: exit code, two lines, rows stored."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.conftest import COMMAND, Finished, Tinyllm

__all__ = [
    "assert_failed",
    "finish",
    "in_shell",
    "orphaned_pipe",
    "stored",
    "stored_models",
    "with_peak_memory",
]


def assert_failed(done: Finished, code: int, *words: str) -> None:
    """The command ended with `code`, one line of reason and one of hint, and every word in them."""
    assert done.code == code, done
    reason, hint = done.complaint.splitlines()
    assert reason.startswith("tinyllm: "), done
    assert hint.startswith("hint: ") and len(hint) > len("hint: "), done
    for word in words:
        assert word in done.complaint, done


def finish(process: subprocess.Popen[bytes], timeout: float = 30) -> Finished:
    """Wait for a command that was started."""
    out, err = process.communicate(timeout=timeout)
    return Finished(process.returncode, out or b"", err or b"")


def in_shell(
    tinyllm: Tinyllm, script: str, *arguments: str, environ: Mapping[str, str] | None = None
) -> Finished:
    """Run a shell script in which "$@" is the command; its stdin is empty."""
    done = subprocess.run(
        ["bash", "-c", script, "bash", *COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**tinyllm.environ, **(environ or {})},
        cwd=tinyllm.home,
        timeout=60,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


# A process of its own: the peak of a child begins at what its parent held when it was started, and a
# process full of tests holds more than any command may need.
_LAUNCHER = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    file.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""


def with_peak_memory(
    tinyllm: Tinyllm,
    *arguments: str,
    stdin: bytes = b"",
    environ: Mapping[str, str] | None = None,
) -> tuple[Finished, int]:
    """Run the command to its end; return it and the most bytes of memory it held at once.

    Where the system does not count in KiB, as Linux does, the bytes are 0.
    """
    report = tinyllm.home / "peak-memory"
    done = subprocess.run(
        [sys.executable, "-S", "-c", _LAUNCHER, str(report), *COMMAND, *arguments],
        input=stdin,
        capture_output=True,
        env={**tinyllm.environ, **(environ or {})},
        cwd=tinyllm.home,
        timeout=120,
    )
    peak = int(report.read_text()) * 1024 if sys.platform == "linux" else 0
    return Finished(done.returncode, done.stdout, done.stderr), peak


def orphaned_pipe() -> int:
    """Return the writing end of a pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def stored(snapshot: Path) -> int:
    """Return how many answers a snapshot holds; 0 if there is no file."""
    return len(stored_models(snapshot))


def stored_models(snapshot: Path) -> list[str]:
    """Return the model of each answer a snapshot holds."""
    if not snapshot.exists():
        return []
    database = sqlite3.connect(f"{snapshot.as_uri()}?mode=ro", uri=True)
    try:
        return [row[0] for row in database.execute("SELECT model FROM entries ORDER BY model")]
    finally:
        database.close()
