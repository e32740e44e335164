"""What reaches the user's screen or pipe: exact bytes on a pipe, nothing that acts on a terminal."""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from ..errors import OutputError

__all__ = ["AnswerWriter", "BrokenOutput", "confirmed", "inert", "is_terminal", "json_line", "say"]


class BrokenOutput(Exception):
    """The reader of our standard output has gone; nothing is left to say."""


def is_terminal(stream: TextIO | None) -> bool:
    """Say whether a person looks at a stream."""
    try:
        return stream is not None and stream.isatty()
    except (ValueError, OSError):  # closed meanwhile
        return False


def inert(text: str) -> str:
    """Return text with every character that could steer a terminal made visible instead.

    Per code point and without memory, so the place where a chunk ends makes no difference. Newline
    and tab pass; other controls become their Unicode pictures or `<U+009B>`, as do the characters
    that reorder text (https://www.unicode.org/reports/tr9/).
    """
    return text.translate(_VISIBLE)


def _visible() -> dict[int, str]:
    table = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
    table[0x7F] = "\u2421"
    acting = [*range(0x80, 0xA0), 0x61C, 0x200E, 0x200F, 0x2028, 0x2029]
    acting += [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
    return table | {code: f"<U+{code:04X}>" for code in acting}


_VISIBLE = _visible()


def say(line: str) -> None:
    """Write one line for people to standard error; without one, nowhere."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(_encodable(inert(line).replace("\n", " "), sys.stderr) + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass  # there is nobody to tell, and the answer matters more


def confirmed(question: str) -> bool | None:
    """Ask on standard error and read a line of standard input; None if that ends without one.

    Not Typer's own: it writes to standard output as well, where the answer belongs.
    """
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(_encodable(inert(question), sys.stderr) + " [y/N] ")
            sys.stderr.flush()
    try:
        answer = b"" if sys.stdin is None else sys.stdin.buffer.readline(1024)
    except OSError:
        answer = b""
    if not answer and is_terminal(sys.stderr):
        say("")
    return answer.strip().lower() in (b"y", b"yes") if answer else None


def json_line(record: Mapping[str, Any]) -> str:
    """Return a record as one line of JSON, escaped as JSON does where our output cannot show it."""
    import json

    encoding = (sys.stdout.encoding or "utf-8") if sys.stdout is not None else "utf-8"
    return json.dumps(record, ensure_ascii=codecs.lookup(encoding).name != "utf-8")


class AnswerWriter:
    """Writes an answer to standard output as it comes and ends it with a newline.

    Bytes are exact unless standard output is a terminal, where `raw` False makes control characters
    inert. Characters the encoding lacks are written as backslash escapes. Raises BrokenOutput when
    the reader has gone and OutputError when nothing can be written.
    """

    def __init__(self, *, raw: bool = False) -> None:
        self._filter = is_terminal(sys.stdout) and not raw
        self._ended = True
        self.wrote = False

    def write(self, text: str) -> None:
        """Write a piece of the answer now."""
        if not text:
            return
        self.wrote = True
        self._ended = text.endswith("\n")
        self._put(inert(text) if self._filter else text)

    def finish(self) -> None:
        """End the answer with a newline unless it has one."""
        if not self._ended:
            self._put("\n")
            self._ended = True

    def _put(self, text: str) -> None:
        out = sys.stdout
        try:
            data = text.encode(out.encoding or "utf-8", "backslashreplace")
            buffer = getattr(out, "buffer", None)
            if buffer is None:
                out.write(data.decode(out.encoding or "utf-8"))
            else:
                buffer.write(data)
            out.flush()
        except BrokenPipeError as exc:
            abandon_stdout()
            raise BrokenOutput from exc
        except (OSError, ValueError) as exc:
            abandon_stdout()
            raise output_error(exc) from exc


def output_error(exc: BaseException) -> OutputError:
    """Return the error for standard output that cannot be written."""
    reason = getattr(exc, "strerror", None) or str(exc)
    code = getattr(exc, "errno", None)
    hint = "free some space" if code == errno.ENOSPC else "check where standard output goes"
    return OutputError(f"cannot write output: {reason}", hint=hint)


def abandon_stdout() -> None:
    """Point standard output at nothing, so that the interpreter does not fail on it once more at exit."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
    except OSError:
        pass


def _encodable(text: str, stream: TextIO) -> str:
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
