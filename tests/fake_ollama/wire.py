"""Which request does a body mean? Decodes JSON the way Go decodes it into a struct."""

import base64
import binascii
import hashlib
import json
import re
from typing import Any, NoReturn

from .reply import ApiError, Obj

_SURROGATE = re.compile("[\ud800-\udfff]")
_DURATION = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h))+")
_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNIT = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
THINK_LEVELS = ("low", "medium", "high", "max")

# A leading "*" marks a Go pointer: null unsets it. For the other kinds null changes nothing.
GENERATE = {
    "model": "string",
    "prompt": "string",
    "suffix": "string",
    "system": "string",
    "template": "string",
    "context": "*[]int",
    "stream": "*bool",
    "raw": "bool",
    "format": "raw",
    "images": "*images",
    "think": "*think",
    "keep_alive": "*duration",
    "options": "*map",
    "truncate": "*bool",
    "shift": "*bool",
    "logprobs": "bool",
    "top_logprobs": "int",
    "_debug_render_only": "bool",
}
CHAT = {
    name: kind
    for name, kind in GENERATE.items()
    if name not in {"prompt", "suffix", "system", "template", "context", "raw", "images"}
} | {"messages": "*messages", "tools": "*raw"}
EMBED = {
    "model": "string",
    "input": "any",
    "truncate": "*bool",
    "dimensions": "int",
    "options": "*map",
    "keep_alive": "*duration",
}
EMBEDDINGS = {
    "model": "string",
    "prompt": "string",
    "options": "*map",
    "keep_alive": "*duration",
}
SHOW = {
    "model": "string",
    "name": "string",
    "verbose": "bool",
    "system": "string",
    "options": "*map",
}
PULL = {"model": "string", "name": "string", "insecure": "bool", "stream": "*bool"}
CREATE = {
    "model": "string",
    "name": "string",
    "from": "string",
    "stream": "*bool",
    "system": "string",
    "template": "string",
    "parameters": "*map",
    "messages": "*messages",
}
COPY = {"source": "string", "destination": "string"}
_MESSAGE = {
    "role": "string",
    "content": "string",
    "thinking": "string",
    "images": "*images",
    "tool_calls": "*raw",
    "tool_name": "string",
    "tool_call_id": "string",
}


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its keys as written, before Go's rules choose among them."""


class Image(str):
    """The sha256 of an image's decoded bytes, which is all the output depends on."""


def _refuse_constant(name: str) -> NoReturn:
    raise json.JSONDecodeError("not JSON", name, 0)


_decoder = json.JSONDecoder(object_pairs_hook=_Pairs, parse_constant=_refuse_constant)


def decode(body: bytes, fields: dict[str, str], struct: str) -> Obj:
    """Return the fields of *body* that are set. Bytes after the first JSON value are ignored."""
    value = parse(body)
    if value is None:
        return {}
    if not isinstance(value, _Pairs):
        raise _mismatch(value, f"Go value of type api.{struct}")
    return _struct(value, fields, struct)


def parse(body: bytes) -> Any:
    """Return the first JSON value of *body*, its objects still lists of pairs."""
    # surrogateescape turns each bad byte into one surrogate, and Go puts U+FFFD for each of them;
    # the same step then covers lone surrogates that were written as escapes.
    text = body.decode("utf-8", "surrogateescape").lstrip(" \t\r\n")
    if not text:
        raise ApiError(400, "missing request body")
    try:
        return _decoder.raw_decode(_SURROGATE.sub("\ufffd", text))[0]
    except json.JSONDecodeError as error:
        rest = error.doc[error.pos : error.pos + 1]
        if not rest or error.msg.startswith("Unterminated"):
            raise ApiError(400, "unexpected EOF") from None
        raise ApiError(400, f"invalid character '{rest}' looking for beginning of value") from None
    except (ValueError, RecursionError):
        raise ApiError(400, "invalid JSON") from None


def plain(value: Any) -> Any:
    """Return *value* with dicts for objects and without lone surrogates; a later key wins."""
    if isinstance(value, _Pairs):
        return {_clean(key): plain(item) for key, item in value}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return _clean(value) if isinstance(value, str) else value


def _clean(text: str) -> str:
    return _SURROGATE.sub("\ufffd", text)


def _struct(pairs: _Pairs, fields: dict[str, str], struct: str) -> Obj:
    found: Obj = {}
    for written, value in pairs:
        name = written if written in fields else written.lower()
        if name not in fields:
            continue
        kind = fields[name]
        if value is None and kind != "raw":
            if kind.startswith("*"):
                found.pop(name, None)
            continue
        item = _convert(kind.removeprefix("*"), value, f"{struct}.{name}")
        if kind == "*map" and name in found:
            found[name] |= item
        else:
            found[name] = item
    return found


def _convert(kind: str, value: Any, where: str) -> Any:
    match kind:
        case "raw" | "any":
            return plain(value)
        case "string" if isinstance(value, str):
            return _clean(value)
        case "bool" if isinstance(value, bool):
            return value
        case "int" if isinstance(value, int) and not isinstance(value, bool):
            return value
        case "map" if isinstance(value, _Pairs):
            return plain(value)
        case "think":
            return _think(value)
        case "duration":
            return seconds(value)
        case _ if isinstance(value, list) and not isinstance(value, _Pairs):
            return _convert_list(kind, value, where)
    raise _mismatch(value, f"Go struct field {where} of type {kind}")


def _convert_list(kind: str, value: list[Any], where: str) -> list[Any]:
    match kind:
        case "[]int":
            return [_convert("int", item, where) for item in value]
        case "images":
            return [_image(item, where) for item in value]
        case "messages":
            return [_message(item, where) for item in value]
    raise _mismatch(value, f"Go struct field {where} of type {kind}")


def _message(value: Any, where: str) -> Obj:
    if not isinstance(value, _Pairs):
        raise _mismatch(value, f"Go struct field {where} of type api.Message")
    message = _struct(value, _MESSAGE, "Message")
    message["role"] = message.get("role", "").lower()
    return message


def _image(value: Any, where: str) -> Image:
    if not isinstance(value, str):
        raise _mismatch(value, f"Go struct field {where} of type api.ImageData")
    return image(value)


def image(text: str) -> Image:
    """Return the hash of a base64 image, or refuse what Go's decoder refuses."""
    try:
        data = base64.b64decode(text.replace("\n", "").replace("\r", ""), validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "illegal base64 data at input byte 0") from None
    return Image(hashlib.sha256(data).hexdigest())


def _think(value: Any) -> bool | str:
    if isinstance(value, bool) or value in THINK_LEVELS:
        return value  # type: ignore[no-any-return]
    levels = ", ".join(f'"{level}"' for level in THINK_LEVELS)
    raise ApiError(
        400, f"invalid think value: {json.dumps(plain(value))} (must be {levels}, true, or false)"
    )


def seconds(value: Any) -> float:
    """Return a keep_alive in seconds; negative stands for ever."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, str):
        raise ApiError(400, f"Unsupported type: '{type(value).__name__}'")
    if value.lstrip("+-") == "0":
        return 0.0
    if not _DURATION.fullmatch(value):
        problem = "missing unit in" if value.lstrip("+-").isdigit() else "invalid"
        raise ApiError(400, f"time: {problem} duration {json.dumps(value)}")
    total = sum(float(number) * _UNIT[unit] for number, unit in _DURATION_PART.findall(value))
    return -total if value.startswith("-") else total


def _mismatch(value: Any, target: str) -> ApiError:
    if isinstance(value, _Pairs):
        kind = "object"
    elif isinstance(value, bool):
        kind = "bool"
    elif isinstance(value, int | float):
        kind = "number"
    else:
        kind = "string" if isinstance(value, str) else "array"
    return ApiError(400, f"json: cannot unmarshal {kind} into {target}")
