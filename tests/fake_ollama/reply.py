"""What a handler hands back, and how Go writes JSON."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Obj = dict[str, Any]

JSON = "application/json; charset=utf-8"
NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
TEXT = "text/plain; charset=utf-8"

# Go's encoder keeps JSON safe inside HTML and JavaScript. It leaves U+0085 and U+007F alone.
_HTML_SAFE = {ord(char): f"\\u{ord(char):04x}" for char in "<>&"}
_GO_ESCAPES = {**_HTML_SAFE, 0x2028: "\\u2028", 0x2029: "\\u2029"}


class ApiError(Exception):
    """A request the server refuses, with the status and the text of its ``error`` field."""

    def __init__(self, status: int, message: str, **extra: Any) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.extra = extra


@dataclass(slots=True)
class Reply:
    """One answer: either a whole ``body`` or ``lines``, each of which is flushed on its own."""

    status: int = 200
    content_type: str = JSON
    body: bytes = b""
    lines: Iterator[bytes] | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    pause: float = 0.0
    """Seconds a slow model needs before a whole body is ready."""


def encode(obj: Any, *, raw_separators: bool = False) -> bytes:
    """Return *obj* as Go marshals it; *raw_separators* leaves U+2028 and U+2029 unescaped."""
    text = json.dumps(obj, ensure_ascii=False, separators=(",", ":"))
    text = text.translate(_HTML_SAFE if raw_separators else _GO_ESCAPES)
    return text.encode("utf-8", "replace")


def error_reply(status: int, message: str, **extra: Any) -> Reply:
    return Reply(status=status, body=encode({"error": message, **extra}))


def text_reply(status: int, text: str, content_type: str = TEXT) -> Reply:
    return Reply(status=status, content_type=content_type, body=text.encode())


def now_text() -> str:
    """Return the present as RFC 3339 with nanoseconds, in UTC."""
    seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanos:09d}Z"
