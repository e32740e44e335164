"""What killed processes and rotten bits do to the snapshot, counted: run by reliability.py."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tinyllm_cli import CacheEntry, CacheError, GenerateResponse, InMemoryBackend

NAMES = [str(number) for number in range(40)]
#: Writes until it is killed, and says what it has been promised is stored.
_WRITER = """
import os, sys, time
sys.path.insert(0, {folder!r})
from snapshot_faults import store, text_of
from tinyllm_cli import InMemoryBackend
backend = InMemoryBackend(10**6, snapshot=sys.argv[1])
for number in range(10**6):
    name = f"{{sys.argv[2]}} {{number}}"
    store(backend, name)
    os.write(1, name.encode() + b"\\n")
"""
_ONE_WRITE = """
import sys
sys.path.insert(0, {folder!r})
from snapshot_faults import store
from tinyllm_cli import CacheError, InMemoryBackend
backend = InMemoryBackend(10, snapshot=sys.argv[1])
try:
    store(backend, "new")
    backend.close_nowait()
except CacheError:
    pass
"""
_SYSCALLS = "pwrite64,ftruncate,unlink,fdatasync,fsync"


def key_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def text_of(name: str) -> str:
    """Return the one right answer to a name; how long it is depends on the name."""
    return f"answer to {name} " * (1 + int(key_of(name), 16) % 300)


def store(backend: InMemoryBackend, name: str) -> None:
    response = GenerateResponse("m", "", text_of(name), True, done_reason="stop")
    backend.set_nowait(key_of(name), CacheEntry(response, created_at=time.time()))


class Tally:
    """What was looked up in damaged stores, and what came of it."""

    def __init__(self) -> None:
        self.tried = self.answers = self.wrong = self.misses = 0
        self.tracebacks = self.set_aside = self.unhealed = 0
        self.lost: list[int] = []

    def look(self, path: Path) -> None:
        """Look everything up, then see whether the store works and what it lost."""
        self.tried += 1
        notices: list[str] = []
        backend = InMemoryBackend(10**6, snapshot=path, notice=notices.append)
        lost = 0
        try:
            for name in NAMES:
                try:
                    found = backend.lookup(key_of(name))
                except CacheError:  # the command forgives it: the model is asked
                    found = None
                if found is None:
                    lost += 1
                elif found.response.response == text_of(name):
                    self.answers += 1
                else:
                    self.wrong += 1
            try:
                store(backend, "new")
            except CacheError:
                self.unhealed += 1
            backend.close_nowait()
        except Exception:  # noqa: BLE001 - any at all is what is counted
            self.tracebacks += 1
        again = InMemoryBackend(10**6, snapshot=path)
        store(again, "new")
        healed = again.lookup(key_of("new"))
        again.close_nowait()
        self.unhealed += healed is None
        self.misses += lost
        if notices:
            self.set_aside += 1  # the file as a whole was damaged, and is kept aside
        else:
            self.lost.append(lost)

    def sentence(self) -> str:
        single = f"{statistics.mean(self.lost):.3f}, at most {max(self.lost)}" if self.lost else "-"
        return (
            f"{self.answers:,} answers, **{self.wrong} wrong**; {self.misses:,} misses; "
            f"{self.tracebacks} tracebacks; {self.set_aside:,} files set aside; entries lost where "
            f"the file stayed: {single}; {self.unhealed} stores that did not work at once"
        )


def damaged(times: int, damage: Callable[[bytearray, random.Random], None], seed: int) -> Tally:
    """Damage a sound file again and again, each time from the start."""
    tally, dice = Tally(), random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cache" / "snapshot-v1.sqlite3"
        backend = InMemoryBackend(snapshot=path)
        for name in NAMES:
            store(backend, name)
        backend.close_nowait()
        sound = path.read_bytes()
        for _ in range(times):
            content = bytearray(sound)
            damage(content, dice)
            for left in path.parent.iterdir():
                left.unlink()
            path.write_bytes(content)
            path.chmod(0o600)
            tally.look(path)
    return tally


def flip_a_bit(content: bytearray, dice: random.Random) -> None:
    place = dice.randrange(len(content) * 8)
    content[place // 8] ^= 1 << place % 8


def cut(content: bytearray, dice: random.Random) -> None:
    del content[dice.randrange(len(content)) :]


def overwrite(content: bytearray, dice: random.Random) -> None:
    """Put random bytes over a run of up to 4 KiB."""
    start = dice.randrange(len(content))
    end = min(len(content), start + dice.randrange(1, 4096))
    content[start:end] = dice.randbytes(end - start)


def kills(times: int, seed: int) -> str:
    """Kill a writer at random moments; what it was promised must be there, all else whole."""
    dice = random.Random(seed)
    promised: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cache" / "snapshot-v1.sqlite3"
        script = _WRITER.format(folder=str(Path(__file__).parent))
        for kill in range(times):
            writer = subprocess.Popen(
                [sys.executable, "-c", script, str(path), str(kill)], stdout=subprocess.PIPE
            )
            assert writer.stdout is not None
            for _ in range(dice.randrange(1, 12)):
                promised.append(writer.stdout.readline().decode().strip())
            time.sleep(dice.random() * 0.002)  # anywhere between two promises
            writer.send_signal(signal.SIGKILL)
            rest = writer.stdout.read().decode()
            promised += rest[: rest.rfind("\n") + 1].split("\n")[:-1]
            writer.stdout.close()
            writer.wait()
        notices: list[str] = []
        backend = InMemoryBackend(10**6, snapshot=path, notice=notices.append)
        lost = wrong = 0
        for name in promised:
            found = backend.lookup(key_of(name))
            lost += found is None
            wrong += found is not None and found.response.response != text_of(name)
        backend.close_nowait()
        db = sqlite3.connect(path)
        (verdict,) = db.execute("PRAGMA integrity_check").fetchone()
        db.close()
    return (
        f"{len(promised):,} answers promised, **{lost} lost, {wrong} wrong**; "
        f"{len(notices)} files set aside; integrity check at the end: {verdict}"
    )


def every_syscall() -> str:
    """Break one write at its first system call, its second, and so on, in three ways."""
    strace = shutil.which("strace")
    if strace is None:
        return "not run: there is no strace here"
    found = []
    for fault in ("signal=KILL", "error=EIO", "error=ENOSPC"):
        tally, points = Tally(), 0
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cache" / "snapshot-v1.sqlite3"
            backend = InMemoryBackend(snapshot=path)
            for name in NAMES:
                store(backend, name)
            backend.close_nowait()
            sound = path.read_bytes()
            script = _ONE_WRITE.format(folder=str(Path(__file__).parent))
            while True:
                for left in path.parent.iterdir():
                    left.unlink()
                path.write_bytes(sound)
                path.chmod(0o600)
                trace = Path(folder) / "trace"
                inject = f"inject={_SYSCALLS}:{fault}:when={points + 1}"
                files = ["-P", str(path), "-P", f"{path}-journal"]
                subprocess.run(
                    [
                        *(strace, "-f", "-qq", "-o", str(trace), *files),
                        *("-e", f"trace={_SYSCALLS}", "-e", inject),
                        *(sys.executable, "-c", script, str(path)),
                    ],
                    env=os.environ,
                    stderr=subprocess.DEVNULL,
                )
                tally.look(path)
                if "INJECTED" not in trace.read_text() and "killed" not in trace.read_text():
                    break
                points += 1
        found.append(
            f"{fault.partition('=')[2]} at {points} points: {tally.wrong} wrong, "
            f"{tally.set_aside} files set aside, {tally.unhealed} not healed"
        )
    return "; ".join(found)
