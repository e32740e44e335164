"""Does a terminal obey anything but the command itself, and does the command look at what it is?"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator

import pytest

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


def test_c10_what_a_model_writes(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
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


def test_c10_raw_is_exact(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    ollama.chunks = [{"response": HOSTILE}, {"response": ""}]
    for _ in ("miss", "hit"):
        with Terminal(tinyllm, "run", "--raw", "-q", "Draw.") as terminal:
            assert terminal.finish() == 0
        assert terminal.text == HOSTILE + "\n"


def test_c10_a_pipe_gets_the_exact_bytes(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    ollama.chunks = [{"response": HOSTILE}, {"response": ""}]
    with Terminal(tinyllm, "run", "Draw.", piped=("stdout",)) as terminal:
        assert terminal.finish() == 0
    assert terminal.pipes["stdout"] == HOSTILE.encode() + b"\n"
    assert terminal.screen() == []


def test_c10_a_record_is_inert_and_still_json(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    ollama.chunks = [{"response": CSI + BIDI}, {"response": ""}]
    with Terminal(tinyllm, "run", "--json", "-q", "Draw.", size=(24, 400)) as terminal:
        assert terminal.finish() == 0
    assert list(_acting(terminal.text)) == []
    assert json.loads(terminal.text)["cached"] is False


def test_c11_a_servers_error_text(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
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
def test_c11_an_argument_in_a_complaint(tinyllm: Tinyllm, arguments: tuple[str, ...]) -> None:
    with Terminal(tinyllm, *arguments) as terminal:
        assert terminal.finish() == 2
    assert list(_acting(terminal.text)) == []


def test_c11_log_lines(tinyllm: Tinyllm) -> None:
    with Terminal(
        tinyllm,
        *("run", "-v", "Draw.", "--cache-backend", "redis"),
        environ={"TINYLLM_REDIS_URL": "redis://127.0.0.1:1/0"},
    ) as terminal:
        assert terminal.finish() == 0
    assert "tinyllm: ERROR cache_get_error" in terminal.text
    assert list(_acting(terminal.text)) == []


def test_c11_what_a_pull_reports(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    ollama.inject(
        Fault.body(b'{"status":"\\u001b]0;owned\\u0007 [/red]"}\n{"status":"success"}\n'),
        path="/api/pull",
    )
    with Terminal(tinyllm, "run", "-m", "smollm2:135m", "Count.") as terminal:
        assert terminal.finish() == 4
    assert "]0;owned" not in terminal.text.replace("␛]0;owned", "")


def test_c12_markup_and_emoji_names_are_text(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    text = "[/INST] [red]x[/red] :smile: [link=http://e]array[0][/link]"
    ollama.answer = lambda body: text
    with Terminal(tinyllm, "run", "-q", "[/bold] :smile:") as terminal:
        assert terminal.finish() == 0
    assert terminal.text == text + "\n"


def test_c17_no_colour_is_obeyed(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    barrier = ollama.hold(times=1)
    with Terminal(tinyllm, "run", "Count.", environ={"NO_COLOR": "1"}) as terminal:
        terminal.wait_for(ASKING)
        barrier.wait_for(1)
        barrier.release()
        assert terminal.finish() == 0
    assert not _colours(terminal.output)


@pytest.mark.parametrize("command", [("run", "Count."), ("cache-stats",), ("run", "--help")])
def test_c17_no_escape_byte_for_a_dumb_terminal(tinyllm: Tinyllm, command: tuple[str, ...]) -> None:
    with Terminal(tinyllm, *command, term="dumb", size=(50, 120)) as terminal:
        assert terminal.finish() == 0
    assert b"\x1b" not in terminal.output
    for environ in ({}, {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "CLICOLOR_FORCE": "1"}):
        plain = tinyllm(*command, environ={"TERM": "xterm-256color", **environ})
        assert plain.code == 0
        assert b"\x1b" not in plain.out + plain.err, environ


@pytest.mark.parametrize("size", [(24, 80), (24, 40), (24, 1)])
def test_c17_statistics_fit_any_terminal(
    tinyllm: Tinyllm, ollama: FakeOllama, size: tuple[int, int]
) -> None:
    tinyllm("run", "Count.")
    with Terminal(tinyllm, "cache-stats", size=size) as terminal:
        assert terminal.finish() == 0
    if size[1] >= 40:
        assert "Hit rate" in terminal.text and "Time saved" in terminal.text
        assert all(len(line.rstrip()) <= size[1] for line in terminal.screen())


@pytest.mark.parametrize("columns", ["0", "x", "-5", ""])
def test_c17_a_strange_number_of_columns(tinyllm: Tinyllm, columns: str) -> None:
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
