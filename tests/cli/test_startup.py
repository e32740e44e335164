"""What does a command load, and what does it do before the answer is out? A hit is instant."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys

import pytest

from tests.cli.outcome import finish
from tests.conftest import Tinyllm
from tests.fake_ollama import FakeOllama

HEAVY = {
    "asyncio", "httpx", "httpcore", "h11", "redis", "pydantic", "pydantic_core", "rich", "platformdirs",
    "logging", "ssl", "_ssl", "_hashlib", "hashlib", "email", "http", "urllib.request", "tomllib",
    "subprocess", "concurrent.futures", "dataclasses", "inspect", "importlib.metadata", "socket",
}  # fmt: skip
#: What Typer itself brings is Typer's choice.
EMPTY = """
import sys, typer
app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
@app.callback(invoke_without_command=True)
def start() -> None: ...
@app.command()
def run(prompt: str) -> None: ...
app(["run", "x"], standalone_mode=False)
print(" ".join(sys.modules))
"""
OURS = """
import sys
from tinyllm_cli.__main__ import main
code = main()
sys.stdout.flush()
print(" ".join(sys.modules), file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def empty() -> set[str]:
    """The modules of a command that does nothing."""
    done = subprocess.run([sys.executable, "-c", EMPTY], capture_output=True, check=True)
    return {*done.stdout.decode().split()}


def loaded(tinyllm: Tinyllm, *arguments: str) -> set[str]:
    """Return the modules a command has loaded by its end."""
    done = subprocess.run(
        [sys.executable, "-c", OURS, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=tinyllm.environ,
        cwd=tinyllm.home,
        timeout=60,
    )
    assert done.returncode == 0, done
    return {*done.stderr.decode().splitlines()[-1].split()}


def heavy(modules: set[str]) -> set[str]:
    return modules & HEAVY


def test_a_hit_loads_nothing_heavy(tinyllm: Tinyllm, empty: set[str]) -> None:
    tinyllm("run", "What?")
    for arguments in ((), ("--json",), ("-q", "--cache-ttl", "1h")):
        modules = loaded(tinyllm, "run", "What?", *arguments) - empty
        assert heavy(modules) == set()
        assert len(modules) < 90, sorted(modules)
        assert "tinyllm_cli.cli.ask" not in modules and "tinyllm_cli.cli.render" not in modules


@pytest.mark.parametrize(
    "command", [("--help",), ("run", "--help"), ("--version",), ("cache-clear", "--help")]
)
def test_help_loads_no_command_at_all(
    tinyllm: Tinyllm, empty: set[str], command: tuple[str, ...]
) -> None:
    modules = loaded(tinyllm, *command) - empty
    assert heavy(modules) == set()
    assert not {"sqlite3", "tinyllm_cli.cli.run", "tinyllm_cli.client", "json"} & modules


@pytest.mark.parametrize(
    "command", [("cache-stats", "--json"), ("cache-clear", "--yes"), ("cache-clear", "--dry-run")]
)
def test_a_command_about_the_snapshot_loads_nothing_heavy(
    tinyllm: Tinyllm, empty: set[str], command: tuple[str, ...]
) -> None:
    tinyllm("run", "What?")
    assert heavy(loaded(tinyllm, *command) - empty) == set()


def test_only_the_tables_load_rich(tinyllm: Tinyllm, empty: set[str]) -> None:
    modules = loaded(tinyllm, "cache-stats") - empty
    assert "rich" in modules
    assert not {"asyncio", "httpx", "redis", "pydantic"} & modules


def test_a_miss_loads_neither_redis_nor_rich(tinyllm: Tinyllm, empty: set[str]) -> None:
    modules = loaded(tinyllm, "run", "What?") - empty
    assert not {"redis", "rich"} & modules
    assert "tinyllm_cli.ollama.http" in modules


def test_a_hit_needs_no_network_at_all(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    first = tinyllm("run", "What?")
    asked = len(ollama.log)
    ollama.stop()
    for _ in range(2):
        hit = tinyllm("run", "What?")
        assert (hit.code, hit.out, hit.err) == (0, first.out, b"")
    assert len(ollama.log) == asked


def test_the_answer_is_out_before_its_bookkeeping(tinyllm: Tinyllm) -> None:
    """Who may only read the snapshot gets the answer at once; what is to be noted waits its turn."""
    tinyllm("run", "What?")
    answer = tinyllm("run", "What?").out
    writer = sqlite3.connect(tinyllm.snapshot, isolation_level=None)
    try:
        writer.execute("BEGIN IMMEDIATE")  # others may read, not write
        process = tinyllm.start("run", "What?")
        assert process.stdout is not None
        assert process.stdout.readline() == answer
        assert process.poll() is None
        writer.execute("ROLLBACK")
    finally:
        writer.close()
    done = finish(process)
    assert (done.code, done.err) == (0, b"")
    assert json.loads(tinyllm("cache-stats", "--json").out)["hits"] == 2
