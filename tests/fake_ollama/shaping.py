"""What does a fault do to chunks, to lines and to packets? No bytes move here."""

import itertools
import re
import zlib
from collections.abc import Iterable, Iterator

from .faults import SEPARATORS, Fault
from .reply import NDJSON, Obj, Reply, encode

_TOKEN = "la "
_BLOCK = 65_536
_CHUNK_KEYS = ("model", "remote_model", "remote_host", "created_at", "message", "response")
_MULTIBYTE = re.compile(rb"[\xc2-\xf4][\x80-\xbf]+")
_RAW_CONTROLS = {b"\\u000b": b"\x0b", b"\\f": b"\x0c", b"\\u001c": b"\x1c"}


def replacement(fault: Fault) -> Reply | None:
    """Return the reply a fault gives in place of the right one, if it is of that sort."""
    if fault.kind == "status":
        headers = list(fault.headers)
        if fault.value is None:
            return Reply(fault.number, content_type="", headers=headers)
        return Reply(fault.number, body=encode(fault.value), headers=headers)
    if fault.kind == "body":
        return Reply(fault.number, fault.text, fault.data, headers=list(fault.headers))
    return None


def shape(fault: Fault, chunks: Iterator[Obj]) -> Iterator[Obj]:
    """Return the chunks as the fault leaves them."""
    match fault.kind:
        case "error_line":
            return itertools.chain(itertools.islice(chunks, fault.after), [dict(fault.value)])
        case "clean_end":
            return _before_done(chunks, fault.after)
        case "zero_tokens":
            return (_with_text(chunk, "") for chunk in chunks if is_last(chunk))
        case "huge_line":
            return _around(chunks, iter(["x" * fault.number]))
        case "many_chunks":
            return _around(chunks, itertools.repeat(_TOKEN, fault.number))
        case "big_body":
            return _around(chunks, _blocks(fault.number))
        case "endless":
            return _around(chunks, itertools.repeat(_TOKEN))
        case "raw_separators":
            return _with_separators(chunks)
    return (alter(fault, chunk) for chunk in chunks)


def alter(fault: Fault, obj: Obj) -> Obj:
    """Return one object as the fault leaves it, whatever endpoint it belongs to."""
    match fault.kind:
        case "done_false" if is_last(obj):
            return {key: value for key, value in obj.items() if key != "done_reason"} | {
                "done": False
            }
        case "no_done_reason" if is_last(obj):
            return {key: value for key, value in obj.items() if key != "done_reason"}
        case "done_reason" if is_last(obj):
            return obj | {"done_reason": fault.text}
        case "zero_tokens" if obj.get("eval_count"):
            return {key: value for key, value in obj.items() if not key.startswith("eval_")}
        case "extra_fields":
            return obj | {"x_new": {"nested": [1, None]}, "x_null": None, "x_text": "é"}
        case "number_as_string":
            return {key: _as_string(value) for key, value in obj.items()}
        case "models_null":
            return {key: None if key in ("models", "data") else obj[key] for key in obj}
    return obj


def is_last(obj: Obj) -> bool:
    return obj.get("done") is True


def _as_string(value: object) -> object:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else value


def _before_done(chunks: Iterator[Obj], after: int) -> Iterator[Obj]:
    return itertools.islice((chunk for chunk in chunks if not is_last(chunk)), after)


def _with_text(chunk: Obj, text: str) -> Obj:
    kept = {key: value for key, value in chunk.items() if not key.startswith("eval_")}
    if "message" in chunk:
        return kept | {"message": {**chunk["message"], "content": text}}
    return kept | {"response": text}


def _around(chunks: Iterator[Obj], texts: Iterator[str]) -> Iterator[Obj]:
    """Yield the first chunk's likes with *texts*, then the final chunk."""
    whole = list(chunks)
    if not whole:
        return
    first = {key: value for key, value in whole[0].items() if key in _CHUNK_KEYS}
    first["done"] = False
    for text in texts:
        yield _with_text(first, text)
    yield whole[-1]


def _blocks(size: int) -> Iterator[str]:
    block = "y" * _BLOCK
    for _ in range(size // _BLOCK):
        yield block
    yield block[: size % _BLOCK]


def _with_separators(chunks: Iterator[Obj]) -> Iterator[Obj]:
    for index, chunk in enumerate(chunks):
        text = chunk.get("message", {}).get("content") or chunk.get("response") or ""
        yield _with_text(chunk, f"{text}a{SEPARATORS}b") if index == 1 else chunk


def frame(fault: Fault, lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the packets that carry *lines*, each of which ends in a newline."""
    match fault.kind:
        case "malformed":
            yield from _inserted(lines, fault.data + b"\n", fault.after)
        case "blank_lines":
            for line in lines:
                yield b"\n" + line
            yield b"\n"
        case "crlf":
            for line in lines:
                yield line.replace(b"\n", b"\r\n")
        case "no_final_newline":
            yield from _stripped(lines)
        case "bom":
            yield from itertools.chain([b"\xef\xbb\xbf"], lines)
        case "after_done":
            extra = (item if isinstance(item, bytes) else encode(item) for item in fault.value)
            yield from itertools.chain(lines, (line + b"\n" for line in extra))
        case "packed":
            rest = iter(lines)
            while packet := b"".join(itertools.islice(rest, fault.number or None)):
                yield packet
        case "split_utf8":
            for line in lines:
                yield from _split_characters(line)
        case "byte_by_byte":
            for line in lines:
                yield from (line[i : i + 1] for i in range(len(line)))
        case "gzip":
            yield from _gzipped(lines, fault.number)
        case "raw_separators" if fault.flag:
            for line in lines:
                for escaped, raw in _RAW_CONTROLS.items():
                    line = line.replace(escaped, raw)
                yield line
        case _:
            yield from lines


def _inserted(lines: Iterable[bytes], extra: bytes, after: int) -> Iterator[bytes]:
    rest = iter(lines)
    yield from itertools.islice(rest, after)
    yield extra
    yield from rest


def _stripped(lines: Iterable[bytes]) -> Iterator[bytes]:
    held: bytes | None = None
    for line in lines:
        if held is not None:
            yield held
        held = line
    if held is not None:
        yield held.rstrip(b"\n")


def _split_characters(line: bytes) -> Iterator[bytes]:
    start = 0
    for match in _MULTIBYTE.finditer(line):
        yield line[start : match.start() + 1]
        start = match.start() + 1
    yield line[start:]


def _gzipped(lines: Iterable[bytes], extra: int) -> Iterator[bytes]:
    # 31 = the largest window, with a gzip header and trailer.
    packer = zlib.compressobj(wbits=31)
    for line in lines:
        yield packer.compress(line) + packer.flush(zlib.Z_SYNC_FLUSH)
    for block in _blocks(extra):
        if packed := packer.compress(block.encode()):
            yield packed
    yield packer.flush()


def endless_body(obj: Obj) -> Reply:
    """Return a reply whose one JSON object never ends, for clients that do not stream."""
    start = encode(obj | {"response": ""}).partition(b'"response":"')
    lines = itertools.chain([start[0] + start[1]], itertools.repeat(_TOKEN.encode() * 1000))
    return Reply(content_type=NDJSON, lines=lines)
