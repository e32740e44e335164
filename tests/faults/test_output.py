"""Where standard output and standard error go: exact bytes, or an exit code that says why not."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.outcome import assert_failed, finish, in_shell, orphaned_pipe, stored
from tests.conftest import Finished, Tinyllm
from tests.fake_ollama import FakeOllama

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
COMMANDS = [
    ("run", "Count."),
    ("run", "--json", "Count."),
    ("run", "--no-stream", "Count."),
    ("run", "--help"),
    ("--help",),
    ("--version",),
    ("cache-stats",),
    ("cache-stats", "--json"),
    ("cache-stats", "--help"),
    ("cache-clear", "--yes"),
    ("cache-clear", "--dry-run"),
]
EXACT = "tab\there \x1b[31m \x85 \u2028 \u2029 \x0b\x0c\x1c \r\n \x00 naïve 日本 😀 \ufeff end"


@pytest.mark.few(4)
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_c04_closed_output(tinyllm: Tinyllm, command: tuple[str, ...]) -> None:
    assert_failed(in_shell(tinyllm, '"$@" >&-', *command), 8, "standard output is closed")


@pytest.mark.few(4)
@needs_full
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_c05_full_disk(tinyllm: Tinyllm, command: tuple[str, ...]) -> None:
    done = in_shell(tinyllm, '"$@" >/dev/full', *command)
    assert_failed(done, 8, "cannot write output", "No space left on device")


@pytest.mark.few(4)
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_c03_a_reader_that_has_gone(tinyllm: Tinyllm, command: tuple[str, ...]) -> None:
    assert _without_reader(tinyllm, *command) == (141, b"")


def test_c03_a_hit_into_a_broken_pipe(tinyllm: Tinyllm) -> None:
    tinyllm("run", "Count.")
    assert _without_reader(tinyllm, "run", "Count.") == (141, b"")
    assert json.loads(tinyllm("cache-stats", "--json").out)["hits"] == 1


@pytest.mark.parametrize("command", [("run", "--help"), ("cache-stats",), ("run", "Count.")])
def test_c03_head_wants_the_first_line(tinyllm: Tinyllm, command: tuple[str, ...]) -> None:
    """Whether the command or `head` ends first is chance: either way nobody complains."""
    done = in_shell(tinyllm, '"$@" | head -n 1; echo "${PIPESTATUS[0]}"', *command)
    code = int(done.out.splitlines()[-1])
    assert code in (0, 141) and done.err == b""


def test_c03_when_the_reader_leaves_the_model_stops(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    ollama.answer = lambda body: "one two three four"
    barrier = ollama.hold_after(1, times=1)
    ollama.hold_after(2, times=1)
    process = tinyllm.start("run", "Count.")
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.read(3) == b"one"
    process.stdout.close()
    barrier.release()
    assert process.wait(30) == 141
    assert process.stderr.read() == b""
    process.stderr.close()
    ollama.wait_until(lambda server: server.requests("/api/generate")[-1].client_closed)
    assert stored(tinyllm.snapshot) == 0


@needs_full
def test_c05_a_whole_answer_is_still_stored(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    ollama.token_delay = 0.02  # the first piece fails while the others are still to come
    assert in_shell(tinyllm, '"$@" >/dev/full', "run", "Count.").code == 8
    assert tinyllm("run", "Count.").code == 0
    assert ollama.generations == 1
    assert in_shell(tinyllm, '"$@" >/dev/full', "run", "Count.").code == 8


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "script", ['"$@" 2>&-', '"$@" 2>/dev/full', '"$@" <&-', '"$@" <&- 2>&-', '"$@" </dev/full']
)
def test_c04_other_closed_streams_change_nothing(
    tinyllm: Tinyllm, ollama: FakeOllama, script: str
) -> None:
    ollama.answer = lambda body: "one two three"
    for _ in ("miss", "hit"):
        assert in_shell(tinyllm, script, "run", "Count.") == Finished(0, b"one two three\n", b"")
    assert in_shell(tinyllm, script, "run", "-v", "--cache-only", "Third.").code == 7


def test_c04_all_three_closed(tinyllm: Tinyllm) -> None:
    assert in_shell(tinyllm, '"$@" <&- >&- 2>&-', "run", "Count.").code == 8


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "environ",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1:strict"},
    ],
    ids=["C locale", "ascii", "latin-1"],
)
def test_c06_what_an_encoding_lacks_is_escaped(
    tinyllm: Tinyllm, ollama: FakeOllama, environ: dict[str, str]
) -> None:
    ollama.answer = lambda body: "日本 naïve"
    for _ in ("miss", "hit"):
        done = tinyllm("run", "Count.", environ=environ)
        assert (done.code, done.err) == (0, b"")
        assert done.out.startswith(b"\\u65e5\\u672c na")
    record = tinyllm("run", "--json", "Count.", environ=environ)
    assert json.loads(record.out.decode("latin-1"))["response"] == "日本 naïve"
    for command in (("cache-stats",), ("run", "--help"), ("cache-clear", "--dry-run")):
        assert tinyllm(*command, environ=environ).code == 0
    assert_failed(
        tinyllm("run", "-f", "日本", environ=environ),
        2,
        "\\ud" if "LC_ALL" in environ else "\\u65e5",
    )


@pytest.mark.few(1)
@pytest.mark.parametrize("environ", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["", "unbuffered"])
def test_a_pipe_gets_every_byte_on_a_miss_and_on_a_hit(
    tinyllm: Tinyllm, ollama: FakeOllama, environ: dict[str, str]
) -> None:
    ollama.chunks = [*({"response": text} for text in EXACT), {"response": ""}]
    for arguments in ([], ["--refresh", "--no-stream"], ["--raw"]):
        done = tinyllm("run", *arguments, "Count.", environ=environ)
        assert done == Finished(0, EXACT.encode() + b"\n", b"")
    record = tinyllm("run", "--json", "Count.", environ=environ)
    assert json.loads(record.out)["response"] == EXACT
    assert ollama.generations == 2


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("no newline", b"no newline\n"),
        ("one newline\n", b"one newline\n"),
        ("two newlines\n\n", b"two newlines\n\n"),
        ("\n", b"\n"),
        ("carriage return\r", b"carriage return\r\n"),
        ("next line\x85", "next line\x85\n".encode()),
        ("separator\u2028", "separator\u2028\n".encode()),
    ],
)
def test_an_answer_ends_with_one_newline_more_only_if_it_has_none(
    tinyllm: Tinyllm, ollama: FakeOllama, text: str, written: bytes
) -> None:
    ollama.chunks = [{"response": text[:-1]}, {"response": text[-1]}, {"response": ""}]
    assert tinyllm("run", "Count.").out == written
    assert tinyllm("run", "Count.").out == written
    assert ollama.generations == 1


def test_a_large_answer_arrives_whole(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    block = "0123456789abcde\n" * 4096
    ollama.chunks = [{"response": block}] * 64 + [{"response": ""}]
    for _ in ("miss", "hit"):
        done = tinyllm("run", "Count.", environ={"PYTHONUNBUFFERED": "1"})
        assert (done.code, done.err, done.out == block.encode() * 64) == (0, b"", True)
    assert ollama.generations == 1


def test_a_slow_reader_gets_everything(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    """A pipe holds 64 KiB: the command waits for its reader and loses nothing."""
    block = "0123456789abcde\n" * 4096
    ollama.chunks = [{"response": block}] * 8 + [{"response": ""}]
    process = tinyllm.start("run", "Count.")
    ollama.wait_until(lambda server: server.generations == 1)
    done = finish(process)
    assert (done.code, done.out == block.encode() * 8) == (0, True)


def _without_reader(tinyllm: Tinyllm, *command: str) -> tuple[int, bytes]:
    writer = orphaned_pipe()
    try:
        process = tinyllm.start(*command, stdout=writer)
    finally:
        os.close(writer)
    done = finish(process)
    return done.code, done.err


def test_output_goes_to_a_file_as_it_is(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    ollama.answer = lambda body: "one two three"
    target = tinyllm.home / "answer.txt"
    with target.open("wb") as file:
        process = tinyllm.start("run", "Count.", stdout=file, stderr=subprocess.STDOUT)
        assert finish(process).code == 0
    assert target.read_bytes() == b"one two three\n"
