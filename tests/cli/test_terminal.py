"""What does a person see? The command on a real terminal, byte by byte and as a screen."""

from __future__ import annotations

import pytest

from tests.cli.outcome import assert_failed, stored
from tests.cli.terminal import Terminal
from tests.conftest import Tinyllm
from tests.fake_ollama import FakeOllama, Fault

ASKING = b"asking "


# The spinner.


def test_a_spinner_turns_until_the_first_token_and_leaves_nothing(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    ollama.answer = lambda body: "one two three"
    waiting, writing = ollama.hold(times=1), ollama.hold_after(1, times=1)
    with Terminal(tinyllm, "run", "Count.") as terminal:
        terminal.wait_for(ASKING)
        waiting.wait_for(1)
        assert any("asking qwen2.5:0.5b" in line for line in terminal.screen())
        assert terminal.cursor_hidden()
        waiting.release()
        writing.wait_for(1)
        terminal.wait_for(b"one")
        assert terminal.screen() == ["one"]
        assert not terminal.cursor_hidden()
        writing.release()
        assert terminal.finish() == 0
    assert terminal.screen() == ["one two three"]


def test_the_spinner_is_cleared_after_a_failure(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    ollama.inject(Fault.status(500, "boom"))
    with Terminal(tinyllm, "run", "Count.") as terminal:
        assert terminal.finish() == 4
    assert terminal.screen()[0] == "tinyllm: Ollama refused (500): boom"
    assert not terminal.cursor_hidden()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "term", "piped"),
    [
        (("-q",), "xterm-256color", ()),
        ((), "dumb", ()),
        ((), "xterm-256color", ("stderr",)),
        (("-v",), "xterm-256color", ()),
    ],
    ids=["quiet", "dumb terminal", "no terminal", "verbose"],
)
def test_no_spinner_where_it_is_not_wanted(
    tinyllm: Tinyllm, ollama: FakeOllama, arguments: tuple[str, ...], term: str, piped: tuple[str]
) -> None:
    barrier = ollama.hold(times=1)
    with Terminal(tinyllm, "run", "Count.", *arguments, term=term, piped=piped) as terminal:
        barrier.wait_for(1)
        barrier.release()
        assert terminal.finish() == 0
    assert ASKING not in terminal.output + terminal.pipes.get("stderr", b"")
    assert b"\x1b" not in terminal.output + terminal.pipes.get("stderr", b"")


# The note of a hit.


def test_a_hit_says_how_old_it_is_to_a_person_only(tinyllm: Tinyllm) -> None:
    answer = tinyllm("run", "Count.")
    with Terminal(tinyllm, "run", "Count.") as terminal:
        assert terminal.finish() == 0
    note, text = terminal.screen()[-1], terminal.text
    assert note.startswith("cached ") and note.endswith(" ago, --refresh for a new one")
    assert text.startswith(answer.text)

    with Terminal(tinyllm, "run", "Count.", piped=("stdout",)) as terminal:
        assert terminal.finish() == 0
    assert terminal.pipes["stdout"] == answer.out
    assert terminal.text.startswith("cached ")

    for arguments in (["-q"], ["--json"]):
        with Terminal(tinyllm, "run", "Count.", *arguments) as terminal:
            assert terminal.finish() == 0
        assert "ago, --refresh" not in terminal.text
    assert tinyllm("run", "Count.").err == b""


def test_a_plain_miss_leaves_the_answer_alone_on_the_screen(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    ollama.answer = lambda body: "one two three"
    with Terminal(tinyllm, "run", "Count.") as terminal:
        assert terminal.finish() == 0
    assert terminal.screen() == ["one two three"]


# Thinking.


def test_thinking_is_shown_on_the_terminals_stderr_and_inert(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    ollama.add_model("thinker:1b", capabilities=("completion", "thinking"))
    ollama.chunks = [
        {"response": "", "thinking": "Hm \x1b[31m[/red] \u202e"},
        {"response": "Yes."},
        {"response": ""},
    ]
    command = ("run", "-m", "thinker:1b", "--think", "Why?")
    with Terminal(tinyllm, *command, "--no-cache", piped=("stdout",)) as terminal:
        assert terminal.finish() == 0
    assert terminal.pipes["stdout"] == b"Yes.\n"
    assert "Hm ␛[31m[/red] <U+202E>" in "\n".join(terminal.screen())
    with Terminal(tinyllm, *command, "--no-cache", term="dumb") as terminal:
        assert terminal.finish() == 0
    assert terminal.screen() == ["Hm ␛[31m[/red] <U+202E>", "Yes."]
    for quiet in (tinyllm(*command, "--no-cache"), tinyllm(*command, "--no-cache", "-q")):
        assert (quiet.out, quiet.err) == (b"Yes.\n", b"")


# A model that is not there.


def test_a_missing_model_is_pulled_with_a_bar_and_then_answers(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    ollama.answer = lambda body: "one two three"
    barrier = ollama.hold_after(4, path="/api/pull", times=1)
    with Terminal(tinyllm, "run", "-m", "smollm2:135m", "Count.", size=(24, 120)) as terminal:
        barrier.wait_for(1)
        terminal.wait_for(b"488.3/976.6 KiB")
        barrier.release()
        assert terminal.finish() == 0
    assert terminal.screen() == ["one two three"]
    assert not terminal.cursor_hidden()
    assert [request.path for request in ollama.log if request.path == "/api/pull"] == ["/api/pull"]
    assert tinyllm("run", "-m", "smollm2:135m", "Count.").out == b"one two three\n"
    assert (ollama.generations, stored(tinyllm.snapshot)) == (1, 1)


def test_a_pull_on_a_dumb_terminal_sends_no_escape_byte(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    ollama.answer = lambda body: "one two three"
    with Terminal(tinyllm, "run", "-m", "smollm2:135m", "Count.", term="dumb") as terminal:
        assert terminal.finish() == 0
    assert b"\x1b" not in terminal.output
    assert terminal.screen()[-1] == "one two three"


def test_a_model_nobody_has_is_a_refusal(tinyllm: Tinyllm) -> None:
    with Terminal(tinyllm, "run", "-m", "nomodel:1b", "Count.") as terminal:
        assert terminal.finish() == 4
    reason, hint = terminal.screen()[-2:]
    assert reason == "tinyllm: Ollama does not have the model 'nomodel:1b'"
    assert hint.startswith("hint: ")


@pytest.mark.slow
@pytest.mark.parametrize("piped", [("stdin",), ("stderr",)])
def test_nothing_is_pulled_without_a_person(
    tinyllm: Tinyllm, ollama: FakeOllama, piped: tuple[str]
) -> None:
    with Terminal(tinyllm, "run", "-m", "smollm2:135m", "Count.", piped=piped) as terminal:
        assert terminal.finish() == 4
    assert ollama.requests("/api/pull") == []
    assert b"ollama pull smollm2:135m" in terminal.output + terminal.pipes.get("stderr", b"")
    assert_failed(tinyllm("run", "-m", "smollm2:135m", "Count."), 4, "ollama pull smollm2:135m")


# A prompt that is the name of a command.


@pytest.mark.parametrize("name", ["run", "cache-stats", "cache-clear"])
def test_a_commands_name_is_asked_about_before_it_is_sent(
    tinyllm: Tinyllm, ollama: FakeOllama, name: str
) -> None:
    ollama.answer = lambda body: "one two three"
    with Terminal(tinyllm, "run", name) as terminal:
        terminal.wait_for(b"[y/N] ")
        assert f"tinyllm {name}" in terminal.text
        terminal.press(b"n\n")
        assert terminal.finish() == 0
    assert ollama.log == []

    with Terminal(tinyllm, "run", name, piped=("stdout",)) as terminal:
        terminal.wait_for(b"[y/N] ")
        terminal.press(b"y\n")
        assert terminal.finish() == 0
    assert terminal.pipes["stdout"] == b"one two three\n"


def test_the_question_takes_ctrl_d_for_a_no_and_ctrl_c_for_the_end(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    for key, code in ((b"\x04", 0), (b"\x03", 130)):
        with Terminal(tinyllm, "run", "cache-clear") as terminal:
            terminal.wait_for(b"[y/N] ")
            terminal.press(key)
            assert terminal.finish() == code
        assert "Traceback" not in terminal.text
    assert ollama.log == []


def test_nobody_is_asked_without_a_terminal(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    assert tinyllm("run", "cache-clear").code == 0
    assert ollama.generations == 1
