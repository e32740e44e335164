"""Where does one line of NDJSON end, and what does it say? Bytes in, objects out, no I/O.

Lines end at LF alone: U+0085, U+2028 and their like are text, though `str.splitlines` cuts there.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from ..errors import IncompleteAnswerError, OllamaProtocolError

__all__ = ["MAX_LINE", "MAX_TOTAL", "LineReader", "decode_line"]

MAX_LINE = 8_000_000  # what Ollama's own client accepts
MAX_TOTAL = 64 * 2**20
_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_MAX_DEPTH = 200  # far from where Python's own recursion would end a later walk over the value


class LineReader:
    """Cuts a stream of bytes into lines; blank lines and a CR before the LF are dropped.

    Raises OllamaProtocolError for a line above `max_line` bytes, and IncompleteAnswerError once
    more than `max_total` bytes have come in all (None: no such limit).
    """

    def __init__(self, max_line: int = MAX_LINE, max_total: int | None = MAX_TOTAL) -> None:
        self._max_line = max_line
        self._max_total = max_total
        self._total = 0
        # One growing buffer: joining the pieces anew at every feed would take quadratic time.
        self._tail = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes and return the lines they complete."""
        self._total += len(data)
        if self._max_total is not None and self._total > self._max_total:
            raise IncompleteAnswerError(f"the answer is longer than {self._max_total} bytes")
        head, *rest = data.split(b"\n")
        self._tail += head
        if not rest:
            self._check(self._tail)
            return []
        lines = [bytes(self._tail), *rest[:-1]]
        self._tail = bytearray(rest[-1])
        for line in lines:
            self._check(line)
        self._check(self._tail)
        return _without_blanks(lines)

    def end(self) -> list[bytes]:
        """Return the last line if no newline ended it; there is nothing to feed after this."""
        last, self._tail = bytes(self._tail), bytearray()
        return _without_blanks([last])

    def _check(self, line: bytes | bytearray) -> None:
        if len(line) > self._max_line:
            raise OllamaProtocolError(f"a line of the answer is longer than {self._max_line} bytes")


def decode_line(line: bytes) -> dict[str, Any]:
    """Return the JSON object a line holds; raises OllamaProtocolError for anything else.

    A byte order mark before it is passed over. Infinities, half characters and values nested
    deeper than any answer are refused, because no later step could write them down again.
    """
    try:
        value = _DECODER.decode(line.removeprefix(_BOM).decode("utf-8"))
        if _SURROGATE.search(line):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as exc:
        raise OllamaProtocolError("the answer holds a line that is not JSON") from exc
    if not isinstance(value, dict):
        raise OllamaProtocolError("the answer holds a line that is not a JSON object")
    if line.count(b"{") + line.count(b"[") > _MAX_DEPTH and _too_deep(value):
        raise OllamaProtocolError("the answer holds a line that is nested too deeply")
    return value


def _without_blanks(lines: list[bytes]) -> list[bytes]:
    return [line.removesuffix(b"\r") for line in lines if line.strip(_BLANK)]


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        _refuse(digits)
    return number


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text[:20]} is not a finite number")


_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)


def _too_deep(value: Any) -> bool:
    """Say whether *value* is nested beyond `_MAX_DEPTH`, level by level instead of by recursion."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True
