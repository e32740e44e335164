"""How commands and replies look on the wire: RESP, the protocol of Redis, versions 2 and 3.

Pure: bytes in, values out. Everything a server sends is bounded here, because what listens on the
port need not be Redis (https://redis.io/docs/latest/develop/reference/protocol-spec/).
"""

from __future__ import annotations

from typing import Any, Final

__all__ = ["NOT_YET", "Command", "Parser", "ProtocolError", "Push", "Reply", "ReplyError", "pack"]

Command = tuple[bytes | str | int, ...]
Reply = Any

_MAX_LINE = 64 * 1024
_MAX_ITEMS = 1 << 20
_MAX_DEPTH = 16
#: What comes with the largest value: the frames of its neighbours in one batch.
_SLACK = 1 << 20


class ProtocolError(Exception):
    """What arrived is not RESP, or larger than anything that was asked for."""


class ReplyError(Exception):
    """An error reply; `code` is its first word, such as NOAUTH."""

    @property
    def code(self) -> str:
        return str(self).partition(" ")[0]


class Push(list[Any]):
    """A message the server sent unasked (RESP3)."""


class _NotYet:
    """The type of NOT_YET."""


NOT_YET: Final = _NotYet()


def pack(command: Command) -> bytes:
    """Return a command as bytes; text goes as UTF-8, with what was not UTF-8 before as it was."""
    parts = [b"*%d\r\n" % len(command)]
    for word in command:
        data = word if isinstance(word, bytes) else str(word).encode("utf-8", "surrogateescape")
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


class Parser:
    """Takes bytes as they come and gives whole replies; `max_bulk` bounds one value in bytes.

    An error reply is given as a ReplyError, not raised, so that one bad reply does not shift the
    others of its batch. `gets` raises ProtocolError once what is there can never be a reply.
    """

    def __init__(self, max_bulk: int) -> None:
        self._max_bulk = max_bulk
        self._buffer = bytearray()
        self._at = 0
        self._needed = 1

    def feed(self, data: bytes) -> None:
        """Add what was received."""
        self._buffer += data

    def gets(self) -> Reply:
        """Return the next whole reply, or NOT_YET."""
        if len(self._buffer) < self._needed:
            return NOT_YET
        self._at = 0
        try:
            reply = self._value(0)
        except _MoreError as exc:
            self._needed = exc.needed
            return NOT_YET
        del self._buffer[: self._at]
        self._needed = 1
        return reply

    def _value(self, depth: int) -> Reply:
        kind, rest = self._line()
        match kind:
            case b"$" | b"=":
                data = self._bulk(rest)
                return data[4:] if data is not None and kind == b"=" else data
            case b"+":
                return rest
            case b":":
                return _integer(rest)
            case b"*" | b"~" | b">":
                return self._items(kind, rest, depth)
            case b"-":
                return ReplyError(rest.decode("utf-8", "replace"))
            case b"!":
                return ReplyError((self._bulk(rest) or b"").decode("utf-8", "replace"))
            case b"%":
                count = _length(rest, _MAX_ITEMS)
                values = [self._nested(depth) for _ in range(2 * count)]
                return list(zip(values[::2], values[1::2], strict=True))
            case b"|":  # attributes about the reply that follows
                for _ in range(2 * _length(rest, _MAX_ITEMS)):
                    self._nested(depth)
                return self._nested(depth)
            case b"_":
                return None
            case b"#":
                return rest == b"t"
            case b",":
                return _double(rest)
            case b"(":
                return rest
        raise ProtocolError(f"a reply begins with {bytes(kind)!r}")

    def _nested(self, depth: int) -> Reply:
        if depth >= _MAX_DEPTH:
            raise ProtocolError("a reply is nested too deeply")
        return self._value(depth + 1)

    def _items(self, kind: bytes, rest: bytes, depth: int) -> Reply:
        if rest == b"-1":
            return None
        items = [self._nested(depth) for _ in range(_length(rest, _MAX_ITEMS))]
        return Push(items) if kind == b">" else items

    def _line(self) -> tuple[bytes, bytes]:
        end = self._buffer.find(b"\r\n", self._at, self._at + _MAX_LINE)
        if end < 0:
            if len(self._buffer) - self._at >= _MAX_LINE:
                raise ProtocolError("a line of a reply does not end")
            if self._at < len(self._buffer) and self._buffer[self._at] not in _KINDS:
                raise ProtocolError(f"a reply begins with {bytes(self._buffer[self._at :][:1])!r}")
            raise _MoreError(len(self._buffer) + 1)
        kind = bytes(self._buffer[self._at : self._at + 1])
        rest = bytes(self._buffer[self._at + 1 : end])
        self._at = end + 2
        return kind, rest

    def _bulk(self, rest: bytes) -> bytes | None:
        if rest == b"-1":
            return None
        length = _length(rest, self._max_bulk + _SLACK)
        end = self._at + length
        if len(self._buffer) < end + 2:
            raise _MoreError(end + 2)
        if self._buffer[end : end + 2] != b"\r\n":
            raise ProtocolError("a value is longer than it says")
        data = bytes(memoryview(self._buffer)[self._at : end])
        self._at = end + 2
        return data


class _MoreError(Exception):
    """The reply has not all arrived; at least `needed` bytes of buffer make another try worthwhile."""

    def __init__(self, needed: int) -> None:
        self.needed = needed


def _integer(digits: bytes) -> int:
    sign = digits[:1] in (b"-", b"+")
    if not digits[sign:].isdigit() or len(digits) > 20:
        raise ProtocolError("a number of a reply is none")
    return int(digits)


def _double(digits: bytes) -> float:
    try:
        return float(digits[:64])
    except ValueError as exc:
        raise ProtocolError("a number of a reply is none") from exc


def _length(digits: bytes, limit: int) -> int:
    length = _integer(digits)
    if not 0 <= length <= limit:
        raise ProtocolError("a reply is larger than what was asked for")
    return length


_KINDS = frozenset(b"$=+:*~>-!%|_#,(")
