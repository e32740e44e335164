"""Does a hit still cost as little as it did? Counted, not timed, so that a busy machine says the same.

Times are for benchmarks/. Here calls are counted, which differ by a few between releases of Python:
a bound leaves room for those, and none for another layer, lock, query or import on the way.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.conftest import COMMAND, Tinyllm
from tests.samples import answer, key_of
from tinyllm_cli import CachedOllamaClient, CacheEntry, InMemoryBackend, ResponseCache

KEY = key_of("a question")
#: Seen: 1.60 to 1.73 with Python 3.11 to 3.13, and 27 queries, most of them to set the connection up.
RATIO = 1.85
QUERIES = 30


def calls_of(work: Callable[[], Awaitable[Any]]) -> int:
    """Return how many functions, Python's and C's, one call of a coroutine enters by itself."""
    entered = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal entered
        entered += event in ("call", "c_call")

    async def whole() -> int:
        nonlocal entered
        for _ in range(3):  # what is remembered is remembered by now
            assert await work() is not None
        coroutine = work()
        sys.setprofile(count)
        try:
            await coroutine
        finally:
            sys.setprofile(None)
        return entered - 1  # the last line's own

    return asyncio.run(whole())


@pytest.fixture
def backend() -> InMemoryBackend:
    backend = InMemoryBackend()
    backend.set_nowait(KEY, CacheEntry(answer("Because."), created_at=time.time(), ttl=3600))
    return backend


def test_a_hit_in_memory_is_a_few_calls(backend: InMemoryBackend) -> None:
    assert calls_of(lambda: backend.get(KEY)) <= 7


def test_a_hit_of_the_cache_is_a_few_more(backend: InMemoryBackend) -> None:
    cache = ResponseCache(backend)
    assert calls_of(lambda: cache.get(KEY)) <= 9


def test_a_whole_hit_builds_its_key_and_little_else() -> None:
    class Upstream:
        async def generate(self, **given: Any) -> Any:
            return answer("Because.")

    client = CachedOllamaClient(Upstream(), ResponseCache(InMemoryBackend()))
    short = calls_of(lambda: client.generate("Why?", "m"))
    assert short <= 36
    # what a longer prompt costs is hashing, not more calls
    assert calls_of(lambda: client.generate("Why? " * 1000, "m")) == short


# --- the whole command

COUNTED = """
import sys
sys.argv = sys.argv[1:]
entered = 0
def count(frame, event, argument):
    global entered
    entered += event in ("call", "c_call")
    if event == "c_call" and argument.__name__ in ("execute", "executemany"):
        global queries
        queries += 1
queries = 0
sys.setprofile(count)
try:
    {program}
except SystemExit:
    pass
sys.setprofile(None)
print(entered, queries, file=sys.stderr)
"""
OURS = "from tinyllm_cli.__main__ import main; main()"
#: An app of one command that takes one argument, as small as Typer makes them.
EMPTY = """import typer
    app = typer.Typer()
    @app.command()
    def main(prompt: str): print(prompt)
    app()"""


def counted(tinyllm: Tinyllm, program: str, *arguments: str) -> tuple[int, int]:
    """Return how many functions a command enters in its whole life, and how many queries it makes."""
    done = subprocess.run(
        [sys.executable, "-c", COUNTED.replace("{program}", program), "tinyllm", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=tinyllm.environ,
        cwd=tinyllm.home,
        timeout=60,
    )
    assert done.returncode == 0, done
    entered, queries = done.stderr.decode().splitlines()[-1].split()
    return int(entered), int(queries)


def test_a_command_that_hits_does_little_more_than_an_empty_one(tinyllm: Tinyllm) -> None:
    tinyllm("run", "What?")
    tinyllm("run", "What?")
    empty, _ = counted(tinyllm, EMPTY, "What?")
    hit, queries = counted(tinyllm, OURS, "run", "What?")
    assert hit / empty < RATIO
    assert 0 < queries <= QUERIES


@pytest.mark.slow
def test_a_hit_takes_little_more_time_than_an_empty_app(tinyllm: Tinyllm, tmp_path: Path) -> None:
    """The least of many runs, as CPU time: others on the machine can only add to it."""
    app = tmp_path / "app.py"
    app.write_text(EMPTY.replace("\n    ", "\n"))
    tinyllm("run", "What?")
    ours = cpu(tinyllm, [*COMMAND, "run", "What?"])
    empty = cpu(tinyllm, [sys.executable, str(app), "What?"])
    for _ in range(20):
        ours = min(ours, cpu(tinyllm, [*COMMAND, "run", "What?"]))
        empty = min(empty, cpu(tinyllm, [sys.executable, str(app), "What?"]))
    assert ours / empty < 1.5


def cpu(tinyllm: Tinyllm, command: list[str]) -> float:
    """Return the CPU seconds of a command."""
    if not hasattr(os, "wait4"):
        pytest.skip("this system does not account for one child")
    with subprocess.Popen(
        command, env=tinyllm.environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return float(used.ru_utime + used.ru_stime)
