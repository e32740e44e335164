"""Ctrl-C, TERM and HUP: the command ends at once, so does the model, and nothing is stored."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import time

import pytest

from tests.cli.outcome import finish, stored
from tests.cli.terminal import Terminal
from tests.conftest import Finished, Tinyllm
from tests.fake_ollama import FakeOllama
from tests.redis_server import blackhole

AT_ONCE_S = 2.0  # a person's "at once", on a machine that does other things too
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.fixture(autouse=True)
def short_answer(ollama: FakeOllama) -> None:
    ollama.answer = lambda body: "one two three four"


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_c01_c02_while_the_model_is_silent(
    tinyllm: Tinyllm, ollama: FakeOllama, number: signal.Signals, code: int
) -> None:
    barrier = ollama.hold(times=1)
    process = tinyllm.start("run", "Count.")
    barrier.wait_for(1)
    assert _end(process, number) == (code, b"", b"")
    _assert_abandoned(tinyllm, ollama)


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("number", "code", "arguments"),
    [
        *((number, code, ()) for number, code in SIGNALS),
        (signal.SIGINT, 130, ("--no-stream",)),
        (signal.SIGTERM, 143, ("--json",)),
        (signal.SIGINT, 130, ("--no-cache",)),
    ],
)
def test_c01_c02_in_the_middle_of_an_answer(
    tinyllm: Tinyllm,
    ollama: FakeOllama,
    number: signal.Signals,
    code: int,
    arguments: tuple[str, ...],
) -> None:
    barrier = ollama.hold_after(2, times=1)
    process = tinyllm.start("run", "Count.", *arguments)
    streams = not {"--no-stream", "--json"} & {*arguments}
    assert process.stdout is not None
    if streams:
        assert process.stdout.read(7) == b"one two"
    else:
        barrier.wait_for(1)
    assert _end(process, number) == (code, b"", b"")
    _assert_abandoned(tinyllm, ollama)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_c01_c02_a_second_signal_is_as_quiet(
    tinyllm: Tinyllm, ollama: FakeOllama, number: signal.Signals, code: int
) -> None:
    barrier = ollama.hold(times=1)
    process = tinyllm.start("run", "Count.")
    barrier.wait_for(1)
    process.send_signal(number)
    assert _end(process, number) == (code, b"", b"")
    _assert_abandoned(tinyllm, ollama)


def test_c01_the_question_is_asked_anew(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    barrier = ollama.hold_after(2, times=1)
    process = tinyllm.start("run", "Count.")
    barrier.wait_for(1)
    process.send_signal(signal.SIGINT)
    assert finish(process).code == 130
    barrier.release()
    assert tinyllm("run", "Count.").out == b"one two three four\n"
    assert ollama.generations == 2


def test_c01_a_second_signal_ends_a_slow_end(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    """Another process keeps the snapshot locked, so what the command writes at its end must wait."""
    tinyllm("run", "Anything.")
    barrier = ollama.hold(times=1)
    process = tinyllm.start("run", "Count.")
    barrier.wait_for(1)
    lock = sqlite3.connect(tinyllm.snapshot, isolation_level=None)
    try:
        lock.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        code = None
        while code is None:  # two signals at once would be one
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(0.1)
        assert code == 130
        assert time.monotonic() - started < AT_ONCE_S
        assert finish(process) == Finished(130, b"", b"")
    finally:
        lock.close()


@pytest.mark.slow
def test_c01_while_the_prompt_is_read(tinyllm: Tinyllm) -> None:
    process = tinyllm.start("run", "-f", "-", stdin=subprocess.PIPE)
    assert process.stderr is not None
    # it says so itself once it has waited a while
    assert b"reading standard input" in process.stderr.readline()
    assert _end(process, signal.SIGINT) == (130, b"", b"")


def test_c01_before_it_is_connected(tinyllm: Tinyllm) -> None:
    """The server's queue is full, so the connection is never made."""
    with blackhole() as port:
        environ = {"OLLAMA_HOST": f"127.0.0.1:{port}", "TINYLLM_DIGEST_MAX_AGE": "1d"}
        process = tinyllm.start("run", "-v", "--no-cache", "Count.", environ=environ)
        assert process.stderr is not None
        assert b"cache_bypassed" in process.stderr.readline()
        assert _end(process, signal.SIGINT) == (130, b"", b"")


@pytest.mark.slow
def test_c01_while_the_answer_is_stored(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    """Another process keeps the snapshot locked; the answer is there, and is stored or it is not."""
    tinyllm("run", "Anything.")
    barrier = ollama.hold_after(4, times=1)
    process = tinyllm.start("run", "Count.")
    barrier.wait_for(1)
    lock = sqlite3.connect(tinyllm.snapshot, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    barrier.release()
    assert process.stdout is not None
    assert process.stdout.read(19) == b"one two three four\n"
    process.send_signal(signal.SIGINT)
    lock.close()
    done = finish(process)
    assert done.code in (0, 130) and b"Traceback" not in done.err
    again = tinyllm("run", "Count.")
    assert (again.code, again.out, again.err) == (0, b"one two three four\n", b"")
    assert ollama.generations in (2, 3)


def test_c01_the_terminal_stays_usable(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    waiting = ollama.hold(times=1)
    with Terminal(tinyllm, "run", "Count.") as terminal:
        terminal.wait_for(b"asking ")
        waiting.wait_for(1)
        terminal.press(b"\x03")
        assert terminal.finish() == 130
    assert not terminal.cursor_hidden()
    assert [line for line in terminal.screen() if line != "^C"] == []
    _assert_abandoned(tinyllm, ollama)


def test_c01_the_terminal_stays_usable_after_a_pull(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    barrier = ollama.hold_after(3, path="/api/pull", times=1)
    with Terminal(tinyllm, "run", "-m", "smollm2:135m", "Count.") as terminal:
        barrier.wait_for(1)
        terminal.wait_for(b"KiB")
        terminal.press(b"\x03")
        assert terminal.finish() == 130
    assert not terminal.cursor_hidden()
    assert "Traceback" not in terminal.text
    ollama.wait_until(lambda server: server.requests("/api/pull")[-1].client_closed)


def _end(process: subprocess.Popen[bytes], number: signal.Signals) -> tuple[int, bytes, bytes]:
    """Send a signal; return how the command ended, which must be soon, and what more it said."""
    started = time.monotonic()
    process.send_signal(number)
    done = finish(process)
    assert time.monotonic() - started < AT_ONCE_S
    return done.code, done.out, done.err


def _assert_abandoned(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    ollama.wait_until(lambda server: server.requests("/api/generate")[-1].client_closed)
    assert stored(tinyllm.snapshot) == 0
