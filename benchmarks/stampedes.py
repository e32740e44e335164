"""How often a stampede asks the model, also where the one who asks is killed: run by reliability.py."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from processes import TINYLLM, fresh_home

sys.path.insert(0, str(Path(__file__).parents[1]))  # for tests/

from tests.fake_ollama import FakeOllama
from tinyllm_cli import OllamaClient, create_cached_client

PROCESSES = 64
LEADERS_KILLED = 3


def in_one_process(callers: int) -> tuple[int, int]:
    """Return how many answers differed from the first, and how often the model was asked."""
    with FakeOllama() as ollama:

        async def stampede() -> int:
            client = await create_cached_client(OllamaClient(ollama.url))
            async with client:
                asked = [client.generate("Count.", model="llama3.2") for _ in range(callers)]
                found = await asyncio.gather(*asked)
            return sum(one.response != found[0].response for one in found)

        different = asyncio.run(stampede())
        return different, len(ollama.requests("/api/generate"))


def between_processes(kills: int, seed: int) -> tuple[int, int, int]:
    """Let many processes ask at once and kill who asks, a few times over.

    Return how many were left, how many of these got no answer or another one than the first, and
    how often the model was asked.
    """
    dice = random.Random(seed)
    with ExitStack() as stack:
        ollama = stack.enter_context(FakeOllama())
        home = stack.enter_context(tempfile.TemporaryDirectory())
        environ = fresh_home(home, ollama.url)
        run = [*TINYLLM, "run", "--model", "llama3.2"]
        subprocess.run([*run, "Another question"], env=environ, check=True, capture_output=True)
        before = len(ollama.requests("/api/generate"))
        barrier = ollama.hold()
        crowd = [
            subprocess.Popen(
                [*run, "Count."], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            for _ in range(PROCESSES)
        ]
        killed: set[int] = set()
        for kill in range(kills):
            ollama.wait_until(partial(_has_asked, before + kill + 1), timeout=60)
            leader = _asking(crowd, killed, ollama.requests("/api/generate")[-1].client_port)
            time.sleep(dice.random() * 0.05)
            crowd[leader].send_signal(signal.SIGKILL)
            crowd[leader].wait()
            killed.add(leader)
        ollama.wait_until(partial(_has_asked, before + kills + 1), timeout=60)
        barrier.release()
        left = [one for number, one in enumerate(crowd) if number not in killed]
        answers = [one.communicate(timeout=120)[0] for one in left]
        for one in crowd:
            for stream in (one.stdout, one.stderr):
                if stream is not None:
                    stream.close()
        bad = sum(
            one.returncode != 0 or answer != answers[0]
            for one, answer in zip(left, answers, strict=True)
        )
        return len(left), bad, len(ollama.requests("/api/generate")) - before


def _has_asked(times: int, ollama: FakeOllama) -> bool:
    return len(ollama.requests("/api/generate")) >= times


def _asking(crowd: list[subprocess.Popen[bytes]], killed: set[int], port: int) -> int:
    """Return the number of the process whose connection has this port at its own end."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    wanted = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{port:04X}")}
    for number, process in enumerate(crowd):
        if number in killed or process.poll() is not None:
            continue
        folder = f"/proc/{process.pid}/fd"
        for name in os.listdir(folder):
            try:
                if os.readlink(f"{folder}/{name}") in wanted:
                    return number
            except FileNotFoundError:
                pass
    raise SystemExit("nobody asks the model")


def summary(callers: int, seed: int) -> Iterator[str]:
    """Yield the rows of the table of stampedes."""
    different, asked = in_one_process(callers)
    yield f"| {callers:,} calls in one process | 0 | {asked} | {different} |"
    for kills in (0, LEADERS_KILLED):
        left, bad, asked = between_processes(kills, seed)
        yield f"| {PROCESSES} processes, {left} of them to the end | {kills} | {asked} | {bad} |"
