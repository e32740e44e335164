"""What a command did, said in the words a script would use: exit code, two lines, rows stored."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.conftest import COMMAND, Finished, Tinyllm

__all__ = ["assert_failed", "finish", "in_shell", "orphaned_pipe", "stored", "stored_models"]


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
