"""Where the prompt comes from: the argument, files, standard input; and what is not a prompt."""

from __future__ import annotations

import os
import pty
import socket
import subprocess
from pathlib import Path

import pytest

from tests.cli.outcome import assert_failed, finish, in_shell
from tests.cli.terminal import Terminal
from tests.conftest import Tinyllm
from tests.fake_ollama import FakeOllama


def asked(ollama: FakeOllama) -> str:
    prompt: str = ollama.requests("/api/generate")[-1].json()["prompt"]
    return prompt


@pytest.fixture
def home(tinyllm: Tinyllm) -> Path:
    (tinyllm.home / "one.txt").write_text("first\nfile\n")
    (tinyllm.home / "two.txt").write_text("second")
    (tinyllm.home / "empty.txt").write_text("")
    return tinyllm.home


@pytest.mark.few(13)
@pytest.mark.parametrize(
    ("arguments", "stdin", "prompt"),
    [
        (["What?"], None, "What?"),
        ([], b"piped\n", "piped"),
        (["What?"], b"piped\n", "piped\n\nWhat?"),
        (["What?"], b"", "What?"),
        (["-f", "one.txt"], None, "first\nfile"),
        (["-f", "one.txt", "What?"], None, "first\nfile\n\nWhat?"),
        (["What?", "-f", "two.txt", "-f", "one.txt"], None, "second\n\nfirst\nfile\n\nWhat?"),
        (["-f", "one.txt", "What?"], b"piped", "first\nfile\n\npiped\n\nWhat?"),
        (["-f", "-", "-f", "two.txt", "What?"], b"piped", "piped\n\nsecond\n\nWhat?"),
        (["-f", "empty.txt", "What?"], None, "What?"),
        (["--no-stdin", "What?"], b"piped", "What?"),
        (["--no-stdin", "-f", "-", "What?"], b"piped", "piped\n\nWhat?"),
        (["--", "-x is a flag?"], None, "-x is a flag?"),
        (["--", "--help"], None, "--help"),
        (["@one.txt"], None, "@one.txt"),
        (["  spaces stay  "], None, "  spaces stay  "),
        ([], b"two\r\nlines\r\n", "two\r\nlines"),
        ([], b"keeps\n\n", "keeps\n"),
        ([], "\ufeffwith a mark".encode(), "with a mark"),
        (["nul is text?"], b"a\x00b", "a\x00b\n\nnul is text?"),
        (["e\u0301 is not é 😀"], None, "e\u0301 is not é 😀"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_the_prompt_is_files_then_input_then_the_argument(
    tinyllm: Tinyllm,
    ollama: FakeOllama,
    home: Path,
    arguments: list[str],
    stdin: bytes | None,
    prompt: str,
) -> None:
    done = tinyllm("run", *arguments, stdin=stdin)
    assert (done.code, done.err) == (0, b"")
    assert asked(ollama) == prompt


def test_a_newline_at_the_end_of_the_input_asks_the_same(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    first = tinyllm("run", "What?")
    assert tinyllm("run", stdin=b"What?\n").out == first.out
    assert tinyllm("run", stdin=b"What?").out == first.out
    assert ollama.generations == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [("missing.txt", "No such file"), (".", "Is a directory"), ("a\x1b[31m.txt", "a␛[31m.txt")],
)
def test_a_file_that_cannot_be_read_is_named(tinyllm: Tinyllm, name: str, reason: str) -> None:
    assert_failed(tinyllm("run", "-f", name), 2, reason)
    assert_failed(tinyllm("run", "x", "--image", name), 2, reason)
    assert_failed(tinyllm("run", "x", "--format", name), 2, reason)


def test_input_that_cannot_be_read_is_a_usage_error(tinyllm: Tinyllm) -> None:
    script = 'exec 3>only-to-write; "$@" <&3'
    assert_failed(in_shell(tinyllm, script, "run", "-f", "-"), 2, "cannot read standard input")


def test_a_pipe_left_open_does_not_hold_up_who_does_not_want_it(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    reader, writer = os.pipe()
    try:
        done = finish(tinyllm.start("run", "--no-stdin", "What?", stdin=reader))
    finally:
        os.close(reader)
        os.close(writer)
    assert (done.code, done.err) == (0, b"")
    assert asked(ollama) == "What?"


def test_a_socket_or_device_somebody_left_open_is_nobodys_prompt(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert finish(tinyllm.start("run", "What?", stdin=theirs)).code == 0
    master, slave = pty.openpty()
    try:
        assert finish(tinyllm.start("run", "--refresh", "What?", stdin=slave)).code == 0
    finally:
        os.close(master)
        os.close(slave)
    assert asked(ollama) == "What?"


def test_a_pipe_that_stays_silent_is_explained(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    process = tinyllm.start("run", "What?", stdin=subprocess.PIPE)
    assert process.stdin is not None and process.stderr is not None
    assert b"--no-stdin" in process.stderr.readline()
    process.stdin.write(b"piped")
    done = finish(process)
    assert (done.code, done.err) == (0, b"")
    assert asked(ollama) == "piped\n\nWhat?"


def test_a_prompt_can_be_typed(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    with Terminal(tinyllm, "run", "-q", "-f", "-") as terminal:
        terminal.press(b"What?\n\x04")
        assert terminal.finish() == 0
    assert asked(ollama) == "What?"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds no JSON schema"),
        ('"json"', "holds no JSON schema"),
        ("[" * 100_000, "is not JSON"),
        ('{"a": NaN}', "JSON"),
    ],
    ids=["cut", "list", "text", "deep", "NaN"],
)
def test_a_schema_that_is_none_is_refused(tinyllm: Tinyllm, content: str, reason: str) -> None:
    (tinyllm.home / "schema.json").write_text(content)
    assert_failed(tinyllm("run", "x", "--format", "schema.json"), 2, reason)


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (["num_ctx=8192"], {"num_ctx": 8192}),
        (["top_p=0.5"], {"top_p": 0.5}),
        (["stop=END"], {"stop": ["END"]}),
        (['stop=["a", "b"]'], {"stop": ["a", "b"]}),
        (['stop="quoted"'], {"stop": ["quoted"]}),
        (["stop=42"], {"stop": ["42"]}),
        (["stop=a=b"], {"stop": ["a=b"]}),
        (["stop="], {"stop": [""]}),
        (["use_mmap=false"], {"use_mmap": False}),
        (["seed=1", "seed=2"], {"seed": 2}),
        (["temperature=1"], {"temperature": 1}),
        (["num_predict=5"], {"num_predict": 5}),
    ],
    ids=repr,
)
def test_an_option_is_json_where_it_parses(
    tinyllm: Tinyllm, ollama: FakeOllama, given: list[str], sent: dict[str, object]
) -> None:
    arguments = [part for pair in given for part in ("-o", pair)]
    assert tinyllm("run", "What?", *arguments).code == 0
    options = ollama.requests("/api/generate")[-1].json()["options"]
    assert {name: options[name] for name in sent} == sent


@pytest.mark.parametrize("pair", ["num_ctx", "=5", "", "seed=1e999"])
def test_an_option_that_is_none_is_refused(tinyllm: Tinyllm, ollama: FakeOllama, pair: str) -> None:
    assert_failed(tinyllm("run", "What?", "-o", pair), 2)
    assert ollama.log == []
