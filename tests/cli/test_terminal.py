"""What does a person see? The command on a real terminal, byte by byte and as a screen."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator

import pytest

from tests.cli.outcome import assert_failed, stored
from tests.cli.terminal import Terminal
from tests.conftest import Tinyllm
from tests.fake_ollama import FakeOllama, Fault

CSI = "\x1b[2J\x1b[31mred\x1b[0m"
OSC = "\x1b]0;title\x07\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\\x1b]52;c;cm0gLXJm\x07"
STRINGS = "\x1bP1$r\x1b\\\x1b_app\x1b\\\x1b]0;never ended"
C1 = "\x9b31m\x9d0;title\x9c\x90q\x85"
CONTROLS = "\x00\x01\x07\b\b\b\r\x0b\x0c\x0e\x0f\x7f"
BIDI = "\u202eevil\u202c\u2066isolated\u2069\u200f\u200e\u061c\u2028\u2029"
HOSTILE = f"safe\n\tstart {CSI}{OSC}{C1}{CONTROLS}{BIDI}{STRINGS} end"
ASKING = b"asking "


def test_nothing_a_model_writes_reaches_the_terminal_as_a_command(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    """Cut between every two characters, in one piece, and from the cache: always the same picture."""
    pictures = []
    for chunks in ([*HOSTILE], [HOSTILE]):
        ollama.chunks = [{"response": text} for text in chunks] + [{"response": ""}]
        with Terminal(tinyllm, "run", "--refresh", "-q", "Draw.") as terminal:
            assert terminal.finish() == 0
        pictures.append(terminal.text)
    with Terminal(tinyllm, "run", "-q", "Draw.") as terminal:
        assert terminal.finish() == 0
    pictures.append(terminal.text)
    for picture in pictures:
        assert picture == pictures[0]
        assert list(_acting(picture)) == []
    assert "safe\n\tstart ␛[2J␛[31mred␛[0m" in pictures[0]
    assert "<U+009B>31m" in pictures[0] and "<U+202E>evil" in pictures[0]
    assert pictures[0].endswith("␛]0;never ended end\n")


def test_raw_is_exact_on_a_terminal_too(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    ollama.chunks = [{"response": HOSTILE}, {"response": ""}]
    for _ in ("miss", "hit"):
        with Terminal(tinyllm, "run", "--raw", "-q", "Draw.") as terminal:
            assert terminal.finish() == 0
        assert terminal.text == HOSTILE + "\n"


def test_a_pipe_gets_the_exact_bytes_though_a_person_watches(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    ollama.chunks = [{"response": HOSTILE}, {"response": ""}]
    with Terminal(tinyllm, "run", "Draw.", piped=("stdout",)) as terminal:
        assert terminal.finish() == 0
    assert terminal.pipes["stdout"] == HOSTILE.encode() + b"\n"
    assert terminal.screen() == []


def test_a_record_is_inert_and_still_json(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    ollama.chunks = [{"response": CSI + BIDI}, {"response": ""}]
    with Terminal(tinyllm, "run", "--json", "-q", "Draw.", size=(24, 400)) as terminal:
        assert terminal.finish() == 0
    assert list(_acting(terminal.text)) == []
    assert json.loads(terminal.text)["cached"] is False


def test_a_servers_error_text_is_inert(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    ollama.inject(Fault.status(500, HOSTILE[:150]))
    with Terminal(tinyllm, "run", "-q", "Draw.", piped=("stdin",)) as terminal:
        assert terminal.finish() == 4
    assert list(_acting(terminal.text)) == []
    assert terminal.text.startswith("tinyllm: Ollama refused (500): safe")
    assert terminal.text.count("\n") == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "-f", "\x1b[31m\u202ename"),
        ("run", "x", "--format", "\x1b]0;x\x07"),
        ("run", "x", "-o", "\x1b[31m"),
        ("run", "x", "--cache-ttl", "\x9b31m"),
        ("run", "x", "--cache-dir", "/\x1b[31m"),
        ("run", "x", "-m", "\u202emodel"),
        ("\x1b[31m",),
        ("cache-clear", "--key", "\x1b[31m"),
    ],
)
def test_an_argument_in_a_complaint_is_inert(tinyllm: Tinyllm, arguments: tuple[str, ...]) -> None:
    with Terminal(tinyllm, *arguments) as terminal:
        assert terminal.finish() == 2
    assert list(_acting(terminal.text)) == []


def test_log_lines_are_inert(tinyllm: Tinyllm) -> None:
    with Terminal(
        tinyllm,
        *("run", "-v", "Draw.", "--cache-backend", "redis"),
        environ={"TINYLLM_REDIS_URL": "redis://127.0.0.1:1/0"},
    ) as terminal:
        assert terminal.finish() == 0
    assert "tinyllm: ERROR cache_get_error" in terminal.text
    assert list(_acting(terminal.text)) == []


def test_markup_and_emoji_names_are_text(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    text = "[/INST] [red]x[/red] :smile: [link=http://e]array[0][/link]"
    ollama.answer = lambda body: text
    with Terminal(tinyllm, "run", "-q", "[/bold] :smile:") as terminal:
        assert terminal.finish() == 0
    assert terminal.text == text + "\n"


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


def test_no_colour_is_obeyed(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    barrier = ollama.hold(times=1)
    with Terminal(tinyllm, "run", "Count.", environ={"NO_COLOR": "1"}) as terminal:
        terminal.wait_for(ASKING)
        barrier.wait_for(1)
        barrier.release()
        assert terminal.finish() == 0
    assert not _colours(terminal.output)


@pytest.mark.parametrize("command", [("run", "Count."), ("cache-stats",), ("run", "--help")])
def test_a_dumb_terminal_and_no_terminal_get_no_escape_byte(
    tinyllm: Tinyllm, command: tuple[str, ...]
) -> None:
    with Terminal(tinyllm, *command, term="dumb", size=(50, 120)) as terminal:
        assert terminal.finish() == 0
    assert b"\x1b" not in terminal.output
    for environ in ({}, {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "CLICOLOR_FORCE": "1"}):
        plain = tinyllm(*command, environ={"TERM": "xterm-256color", **environ})
        assert plain.code == 0
        assert b"\x1b" not in plain.out + plain.err, environ


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


def test_what_a_pull_reports_is_inert(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    ollama.inject(
        Fault.body(b'{"status":"\\u001b]0;owned\\u0007 [/red]"}\n{"status":"success"}\n'),
        path="/api/pull",
    )
    with Terminal(tinyllm, "run", "-m", "smollm2:135m", "Count.") as terminal:
        assert terminal.finish() == 4
    assert "]0;owned" not in terminal.text.replace("␛]0;owned", "")


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


# Tables.


@pytest.mark.parametrize("size", [(24, 80), (24, 40), (24, 1)])
def test_statistics_fit_any_terminal(
    tinyllm: Tinyllm, ollama: FakeOllama, size: tuple[int, int]
) -> None:
    tinyllm("run", "Count.")
    with Terminal(tinyllm, "cache-stats", size=size) as terminal:
        assert terminal.finish() == 0
    if size[1] >= 40:
        assert "Hit rate" in terminal.text and "Time saved" in terminal.text
        assert all(len(line.rstrip()) <= size[1] for line in terminal.screen())


@pytest.mark.parametrize("columns", ["0", "x", "-5", ""])
def test_a_strange_number_of_columns_is_survived(tinyllm: Tinyllm, columns: str) -> None:
    done = tinyllm("cache-stats", environ={"COLUMNS": columns})
    assert (done.code, done.err) == (0, b"")


def _acting(text: str) -> Iterator[str]:
    """Yield each character of a text that could act on a terminal or turn its reading direction."""
    for character in text:
        if character in "\n\t":
            continue
        if unicodedata.category(character) in ("Cc", "Zl", "Zp") or (
            unicodedata.bidirectional(character)
            in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
            or character in "\u061c\u200e\u200f"
        ):
            yield hex(ord(character))


def _colours(output: bytes) -> bool:
    """Say whether there is a colour among the escape sequences: SGR 30-49 or 90-107."""
    for part in output.split(b"\x1b[")[1:]:
        parameters = part.split(b"m")[0]
        if b"m" in part and parameters.replace(b";", b"").isdigit():
            numbers = [int(number) for number in parameters.split(b";")]
            if any(30 <= number <= 49 or 90 <= number <= 107 for number in numbers):
                return True
    return False
