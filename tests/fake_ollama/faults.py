"""What can go wrong with one reply? Each constructor of ``Fault`` names one breakage.

``after`` counts the lines (streamed chunks, server-sent events) that arrive whole before it
happens. A reply that is not streamed is a single body: there the fault strikes in its middle.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .reply import Obj

SEPARATORS = "\x85\u2028\u2029\x0b\x0c\x1c"
"""Characters that are no line ends in NDJSON, though ``str.splitlines`` thinks so."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One scripted breakage; build it with a constructor, arm it with ``FakeOllama.inject``."""

    kind: str
    after: int = 0
    number: int = 0
    text: str = ""
    data: bytes = b""
    value: Any = None
    headers: tuple[tuple[str, str], ...] = ()
    flag: bool = False
    seconds: float = 0.0

    # Replies other than the asked one: no answer is generated for these.

    @classmethod
    def status(
        cls, status: int, error: str | None = "", *, headers: Mapping[str, str] | None = None
    ) -> "Fault":
        """An error status with ``{"error": error}``; None sends no body at all."""
        value = None if error is None else {"error": error}
        return cls("status", number=status, value=value, headers=tuple((headers or {}).items()))

    @classmethod
    def error_object(
        cls, message: str = "boom", *, status: int = 400, after: int | None = None
    ) -> "Fault":
        """An OpenAI-style error object: as an error reply, or as a line after *after* chunks."""
        value = {"error": {"message": message, "type": "api_error", "param": None, "code": None}}
        if after is None:
            return cls("status", number=status, value=value)
        return cls("error_line", after=after, value=value)

    @classmethod
    def unauthorized(cls, signin_url: str = "https://ollama.com/connect?name=H&key=K") -> "Fault":
        return cls("status", number=401, value={"error": "unauthorized", "signin_url": signin_url})

    @classmethod
    def empty_403(cls) -> "Fault":
        """The refusal of a Host or Origin: no body, no content type."""
        return cls("status", number=403)

    @classmethod
    def body(cls, data: bytes, *, status: int = 200, content_type: str = "") -> "Fault":
        """Any whole body, well framed."""
        return cls("body", number=status, data=data, text=content_type)

    @classmethod
    def html(cls, status: int = 200) -> "Fault":
        """What a captive portal or a strange server answers."""
        page = b"<!DOCTYPE html><html><body><h1>Please sign in</h1></body></html>"
        return cls.body(page, status=status, content_type="text/html; charset=utf-8")

    @classmethod
    def redirect(cls, status: int = 307, location: str = "http://127.0.0.1:1/") -> "Fault":
        return cls("body", number=status, headers=(("Location", location),))

    @classmethod
    def raw_bytes(cls, data: bytes) -> "Fault":
        """These bytes instead of an HTTP response, then the end of the connection."""
        return cls("raw_bytes", data=data)

    @classmethod
    def drop(cls) -> "Fault":
        """The connection ends without a single byte of response."""
        return cls("raw_bytes")

    # What the chunks say.

    @classmethod
    def error_line(cls, message: str = "boom", *, after: int = 1) -> "Fault":
        """An error in mid-stream: 200 and an error line; not streamed: a 500."""
        return cls("error_line", after=after, value={"error": message})

    @classmethod
    def clean_end(cls, *, after: int = 2) -> "Fault":
        """HTTP ends well after *after* chunks, without ``done``; not streamed: done is false."""
        return cls("clean_end", after=after)

    @classmethod
    def done_false(cls) -> "Fault":
        """The last chunk arrives, but says ``done: false``."""
        return cls("done_false")

    @classmethod
    def no_done_reason(cls) -> "Fault":
        return cls("no_done_reason")

    @classmethod
    def done_reason(cls, reason: str) -> "Fault":
        return cls("done_reason", text=reason)

    @classmethod
    def zero_tokens(cls) -> "Fault":
        """Only the final chunk, without text."""
        return cls("zero_tokens")

    @classmethod
    def extra_fields(cls) -> "Fault":
        """Every object has fields nobody has heard of."""
        return cls("extra_fields")

    @classmethod
    def number_as_string(cls) -> "Fault":
        """Every top-level number is a string."""
        return cls("number_as_string")

    @classmethod
    def models_null(cls) -> "Fault":
        """``models`` (or ``data``) of a listing is null."""
        return cls("models_null")

    @classmethod
    def raw_separators(cls, *, controls: bool = False) -> "Fault":
        """``SEPARATORS`` in the text of a chunk, U+0085, U+2028 and U+2029 unescaped.

        VT, FF and FS stay escaped, since raw they are no JSON; *controls* sends them raw as well.
        """
        return cls("raw_separators", flag=controls)

    @classmethod
    def huge_line(cls, size: int = 9_000_000) -> "Fault":
        """One chunk with a text of *size* bytes."""
        return cls("huge_line", number=size)

    @classmethod
    def many_chunks(cls, count: int = 100_000) -> "Fault":
        return cls("many_chunks", number=count)

    @classmethod
    def big_body(cls, size: int = 50_000_000) -> "Fault":
        """Chunks of 64 KiB until *size* bytes of text are sent."""
        return cls("big_body", number=size)

    @classmethod
    def endless(cls) -> "Fault":
        """Chunks for as long as the client reads."""
        return cls("endless")

    @classmethod
    def flip_digest(cls, name: str, weights: str, *, after: int = 1) -> "Fault":
        """The model is pulled again while its answer is on the way."""
        return cls("flip_digest", text=name, value=weights, after=after)

    # How the lines look.

    @classmethod
    def malformed(cls, *, after: int = 1, text: bytes = b'{"response": oops}') -> "Fault":
        """One extra line that is no JSON; not streamed: the whole body."""
        return cls("malformed", after=after, data=text)

    @classmethod
    def invalid_utf8(cls, *, after: int = 1) -> "Fault":
        """One extra chunk whose text is not UTF-8; not streamed: the whole body."""
        text = b'{"model":"m","response":"\xff\xfe","message":{"role":"assistant","content":"\xff"}'
        return cls.malformed(after=after, text=text + b',"done":false}')

    @classmethod
    def half_line(cls, *, after: int = 2, clean: bool = True) -> "Fault":
        """Half of a line, then the end: of the body (*clean*) or of the connection."""
        return cls("half_line", after=after, flag=clean)

    @classmethod
    def blank_lines(cls) -> "Fault":
        """A blank line before every line, and one at the end."""
        return cls("blank_lines")

    @classmethod
    def crlf(cls) -> "Fault":
        return cls("crlf")

    @classmethod
    def no_final_newline(cls) -> "Fault":
        return cls("no_final_newline")

    @classmethod
    def bom(cls) -> "Fault":
        """A UTF-8 byte order mark before the first line."""
        return cls("bom")

    @classmethod
    def after_done(cls, lines: Iterable[Obj | bytes]) -> "Fault":
        """More lines after the last: objects, or bytes sent as they are with a newline."""
        return cls("after_done", value=tuple(lines))

    # How the bytes travel.

    @classmethod
    def packed(cls, lines: int = 3) -> "Fault":
        """So many lines in one packet; 0 packs them all."""
        return cls("packed", number=lines)

    @classmethod
    def split_utf8(cls) -> "Fault":
        """Every multi-byte character is cut over two packets."""
        return cls("split_utf8")

    @classmethod
    def byte_by_byte(cls) -> "Fault":
        return cls("byte_by_byte")

    @classmethod
    def cut(cls, *, after: int = 1) -> "Fault":
        """The connection is closed in the middle of the body."""
        return cls("cut", after=after)

    @classmethod
    def reset(cls, *, after: int = 1) -> "Fault":
        """The connection is reset (RST) in the middle of the body."""
        return cls("reset", after=after)

    @classmethod
    def delay(cls, seconds: float) -> "Fault":
        """Nothing at all is sent for *seconds*, as while a model loads."""
        return cls("delay", seconds=seconds)

    @classmethod
    def stall_headers(cls) -> "Fault":
        """Not a byte, for ever."""
        return cls("stall_headers")

    @classmethod
    def stall(cls, *, after: int = 2) -> "Fault":
        """Silence after *after* chunks, for ever; ``after=0`` sends the headers only."""
        return cls("stall", after=after)

    @classmethod
    def header_drip(cls, seconds: float = 0.01) -> "Fault":
        """Headers one byte at a time, *seconds* apart, and they never end."""
        return cls("header_drip", seconds=seconds)

    @classmethod
    def keep_open_after_done(cls) -> "Fault":
        """All chunks arrive, but the body and the connection stay open."""
        return cls("keep_open")

    @classmethod
    def gzip_body(cls, *, size: int = 0) -> "Fault":
        """The body is gzip though nobody asked; *size* adds that many bytes of one letter."""
        return cls("gzip", number=size)

    @classmethod
    def wrong_length(cls, by: int = 10) -> "Fault":
        """Content-Length is off by *by*; the connection closes after the bytes there are."""
        return cls("wrong_length", number=by)

    @classmethod
    def no_content_type(cls) -> "Fault":
        return cls("no_content_type")
