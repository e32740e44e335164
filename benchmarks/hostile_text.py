"""Does text that wants to act on a terminal get through to it, and through a pipe unchanged? Run by
reliability.py."""

from __future__ import annotations

import hashlib
import os
import pty
import random
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from processes import TINYLLM, fresh_home

sys.path.insert(0, str(Path(__file__).parents[1]))  # for tests/

from tests.fake_ollama import FakeOllama

_PIECES = (
    "\x1b[31m", "\x1b]0;title\x07", "\x1b]52;c;aGVsbG8=\x07", "\x1b]8;;http://evil.example\x1b\\",
    "\x1bP+q544e\x1b\\", "\x1b_x\x1b\\", "\x9b2J", "\x9d0;t\x9c", "\x07", "\r", "\b", "\x7f", "\x00",
    "\u202e", "\u2066", "\u2028", "\x85", "\x1b", "\x1b[", "\x1b]", "\x1b[?1049h", "\x1b[6n",
    "plain words ", "\n", "\t", "é", "漢字", "🙂",
)  # fmt: skip
_ANSWER_CHARACTERS = 250_000


def text(dice: random.Random) -> str:
    """Return one hostile answer; the fake server sends it in pieces of any length."""
    found: list[str] = []
    length = 0
    while length < _ANSWER_CHARACTERS:
        found.append(dice.choice(_PIECES))
        length += len(found[-1])
    return "".join(found)


def shown(total: int, seed: int) -> str:
    """Show hostile answers on a terminal and through a pipe until `total` bytes were."""
    dice = random.Random(seed)
    sent = leaked = answers = unequal = 0
    with FakeOllama() as ollama, tempfile.TemporaryDirectory() as home:
        environ = {**fresh_home(home, ollama.url), "TERM": "xterm-256color"}
        while sent < total:
            hostile = text(dice)
            ollama.answer = lambda body, hostile=hostile: hostile
            prompt = f"Hostile {answers}"
            command = [*TINYLLM, "run", "--model", "llama3.2", "--max-tokens", "1000000", prompt]
            leaked += _leaked(_on_terminal(command, environ))
            piped = subprocess.run(command, env=environ, capture_output=True, check=True).stdout
            wanted = hostile.encode()
            wanted += b"" if wanted.endswith(b"\n") else b"\n"
            unequal += hashlib.sha256(piped).digest() != hashlib.sha256(wanted).digest()
            answers += 1
            sent += len(hostile.encode())
    return (
        f"{sent:,} bytes in {answers} answers, each live on a terminal and from the cache through a "
        f"pipe: **{leaked} control bytes** reached the terminal, {unequal} answers came out of the "
        "pipe other than they were sent"
    )


def _leaked(output: bytes) -> int:
    found = output.decode()
    return sum(
        one not in "\n\t" and (ord(one) < 0x20 or 0x7F <= ord(one) < 0xA0 or one in "\u202e\u2066")
        for one in found
    )


def _on_terminal(command: list[str], environ: dict[str, str]) -> bytes:
    """Return every byte a terminal is sent on its standard output."""
    master, slave = pty.openpty()
    modes = termios.tcgetattr(slave)
    modes[1] &= ~termios.OPOST  # or the terminal itself adds returns to newlines
    termios.tcsetattr(slave, termios.TCSANOW, modes)
    process = subprocess.Popen(
        command, env=environ, stdin=subprocess.DEVNULL, stdout=slave, stderr=subprocess.DEVNULL
    )
    os.close(slave)
    found = bytearray()
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:
            break
        if not piece:
            break
        found += piece
    os.close(master)
    if process.wait() != 0:
        raise SystemExit(f"{command} failed")
    return bytes(found)
