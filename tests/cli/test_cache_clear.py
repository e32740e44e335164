"""`tinyllm cache-clear`: removes what is meant, after asking, and says how much it was."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections.abc import Iterator

import pytest

from tests.cli.outcome import assert_failed, stored, stored_models
from tests.cli.terminal import Terminal
from tests.conftest import Finished, Tinyllm
from tests.fake_ollama import FakeOllama

REMOVED = re.compile(rb"(removed|would remove) ([\d,]+) (entry|entries) \(([\d.]+ (B|KiB|MiB))\)\n")


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Tinyllm, FakeOllama]]:
    """A cache with three answers: two of one model, one of another that has expired."""
    with FakeOllama() as server:
        tinyllm = Tinyllm(tmp_path_factory.mktemp("origin"), server.url)
        tinyllm("run", "One?")
        tinyllm("run", "Two?")
        tinyllm("run", "Three?", "-m", "llama3.2", "--cache-ttl", "0.001")
        yield tinyllm, server


@pytest.fixture
def filled(origin: tuple[Tinyllm, FakeOllama], tinyllm: Tinyllm) -> Tinyllm:
    """A copy of that cache, to be cleared."""
    shutil.copytree(origin[0].cache_dir, tinyllm.cache_dir)
    tinyllm.environ["OLLAMA_HOST"] = origin[1].url
    return tinyllm


def said(done: Finished) -> tuple[str, int]:
    """Return what was done, and to how many entries."""
    assert done.code == 0, done
    found = REMOVED.fullmatch(done.out)
    assert found, done
    return found[1].decode(), int(found[2])


def test_everything_goes_and_the_sizes_are_right(
    filled: Tinyllm, origin: tuple[Tinyllm, FakeOllama]
) -> None:
    size = json.loads(filled("cache-stats", "--json").out)["bytes"]
    done = filled("cache-clear", "--yes")
    assert said(done) == ("removed", 3)
    assert f"({size / 1024:.1f} KiB)".encode() in done.out
    assert done.err == b""
    assert stored(filled.snapshot) == 0
    assert said(filled("cache-clear", "--yes")) == ("removed", 0)
    asked = origin[1].generations
    filled("run", "One?")
    assert origin[1].generations == asked + 1


def test_one_entry_is_one_entry(tinyllm: Tinyllm) -> None:
    tinyllm("run", "One?")
    assert tinyllm("cache-clear", "--yes").out.startswith(b"removed 1 entry (")


@pytest.mark.few(5)
@pytest.mark.parametrize(
    ("filters", "left"),
    [
        (["--model", "llama3.2"], 2),
        (["--model", "llama3.2:latest"], 2),
        (["--model", "qwen2.5:0.5b"], 1),
        (["--model", "nothing"], 3),
        (["--expired"], 2),
        (["--older-than", "7d"], 3),
        (["--older-than", "0.001"], 0),
        (["--model", "qwen2.5:0.5b", "--expired"], 3),
        (["--model", "llama3.2", "--expired", "--older-than", "0.001"], 2),
        (["--key", "0" * 64], 3),
    ],
    ids=str,
)
def test_filters_narrow_what_goes(filled: Tinyllm, filters: list[str], left: int) -> None:
    assert said(filled("cache-clear", "--dry-run", *filters)) == ("would remove", 3 - left)
    assert stored(filled.snapshot) == 3
    assert said(filled("cache-clear", "--yes", *filters)) == ("removed", 3 - left)
    assert stored(filled.snapshot) == left
    assert json.loads(filled("cache-stats", "--json").out)["entries"] == left


def test_a_key_is_found_by_its_beginning_in_any_case(filled: Tinyllm) -> None:
    key = json.loads(filled("run", "--json", "One?").out)["key"]
    assert said(filled("cache-clear", "--yes", "--key", f" {key[:12].upper()} ")) == ("removed", 1)
    assert filled("run", "--cache-only", "One?").code == 7
    assert filled("run", "--cache-only", "Two?").code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--key", ""],
        ["--key", "xyz"],
        ["--key", "0" * 65],
        ["--key", "%"],
        ["--older-than", "5 apples"],
        ["--older-than", "-1"],
        ["--older-than", ""],
        ["everything"],
    ],
    ids=str,
)
def test_what_makes_no_sense_clears_nothing(filled: Tinyllm, arguments: list[str]) -> None:
    assert_failed(filled("cache-clear", "--yes", *arguments), 2)
    assert stored(filled.snapshot) == 3


@pytest.mark.parametrize("answer", [b"y\n", b"Y\n", b"yes\n", b"y"])
def test_a_piped_yes_answers_the_question(filled: Tinyllm, answer: bytes) -> None:
    done = filled("cache-clear", stdin=answer)
    assert said(done) == ("removed", 3)
    assert re.fullmatch(rb"Remove 3 entries \([\d.]+ KiB\)\? \[y/N\] ", done.err)


@pytest.mark.parametrize("answer", [b"n\n", b"\n", b"no\n", b"yellow\n", b"\xff\xfe\n", b"\x00\n"])
def test_anything_else_is_a_no(filled: Tinyllm, answer: bytes) -> None:
    done = filled("cache-clear", stdin=answer, environ={"PYTHONIOENCODING": "utf-8:strict"})
    assert (done.code, done.out) == (0, b"nothing removed\n")
    assert stored(filled.snapshot) == 3


def test_no_answer_clears_nothing_and_names_the_flag(filled: Tinyllm) -> None:
    for stdin in (None, b""):
        done = filled("cache-clear", stdin=stdin)
        assert (done.code, done.out) == (2, b"")
        assert b"hint: pass --yes" in done.err
        assert b"Traceback" not in done.err
    assert stored(filled.snapshot) == 3


def test_the_question_on_a_terminal(filled: Tinyllm) -> None:
    for key, code, left in ((b"n\n", 0, 3), (b"\x04", 2, 3), (b"\x03", 130, 3), (b"y\n", 0, 0)):
        with Terminal(filled, "cache-clear") as terminal:
            terminal.wait_for(b"[y/N] ")
            terminal.press(key)
            assert terminal.finish() == code
        assert stored(filled.snapshot) == left
    assert terminal.screen()[-1].startswith("removed 3 entries")


def test_a_dry_run_asks_nobody(filled: Tinyllm) -> None:
    done = filled("cache-clear", "--dry-run")
    assert (said(done), done.err) == (("would remove", 3), b"")
    assert said(filled("cache-clear", "--dry-run", "--yes")) == ("would remove", 3)
    assert stored(filled.snapshot) == 3


def test_what_is_cleared_is_gone_from_the_disk(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    ollama.answer = lambda body: "answer-canary-0815"
    tinyllm("run", "prompt-canary-4711")
    assert b"canary" in tinyllm.snapshot.read_bytes()
    tinyllm("cache-clear", "--yes")
    for path in tinyllm.cache_dir.iterdir():
        assert b"canary" not in path.read_bytes(), path


def test_counters_stay(filled: Tinyllm) -> None:
    before = json.loads(filled("cache-stats", "--json").out)
    filled("cache-clear", "--yes")
    after = json.loads(filled("cache-stats", "--json").out)
    for name in ("hits", "misses", "sets", "evictions"):
        assert after[name] == before[name], name
    assert (after["entries"], after["bytes"]) == (0, 0)


def test_clearing_what_is_not_there_is_no_failure(tinyllm: Tinyllm) -> None:
    assert said(tinyllm("cache-clear", "--yes")) == ("removed", 0)


def test_a_locked_store_is_a_failure_of_the_command(filled: Tinyllm) -> None:
    lock = sqlite3.connect(filled.snapshot, isolation_level=None)
    try:
        lock.execute("BEGIN EXCLUSIVE")
        assert_failed(filled("cache-clear", "--yes"), 6, "locked")
    finally:
        lock.close()
    assert stored(filled.snapshot) == 3


@pytest.mark.slow
def test_redis_loses_our_entries_and_no_others(tinyllm: Tinyllm, redis_url: str) -> None:
    redis = pytest.importorskip("redis")
    server = redis.Redis.from_url(redis_url, protocol=2)
    try:
        server.set("theirs", "untouched")
        server.set("tinyllm:cache:theirs-too", "untouched")
        shared = ("--redis-url", redis_url)
        tinyllm("run", "One?", "--cache-backend", "redis", *shared)
        tinyllm("run", "Two?", "-m", "llama3.2", "--cache-backend", "redis", *shared)
        clear = ("cache-clear", "--backend", "redis", *shared)
        assert said(tinyllm(*clear, "--dry-run")) == ("would remove", 2)
        assert said(tinyllm(*clear, "--yes", "--model", "llama3.2")) == ("removed", 1)
        assert tinyllm(*clear).code == 2
        assert said(tinyllm(*clear, stdin=b"y\n")) == ("removed", 1)
        assert server.get("theirs") == server.get("tinyllm:cache:theirs-too") == b"untouched"
    finally:
        server.close()


def test_other_models_are_left(filled: Tinyllm) -> None:
    filled("cache-clear", "--yes", "--model", "qwen2.5:0.5b")
    assert len(stored_models(filled.snapshot)) == 1
