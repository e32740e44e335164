"""What an entry looks like as bytes, in every store: one JSON envelope that vouches for itself.

    {"v":1,"digest":"<64 hex>","entry":{"key":...,"created_at":...,"ttl":...,"response":{...},
     "cost":{"seconds":...,"tokens":...},"chunks":[...],"request":{...}}}

A large entry is packed; then the line says how, and the packed bytes of `entry` follow it:

    {"v":1,"digest":"<64 hex>","packed":"z"}

The digest is SHA-256 over the key, a zero byte and the bytes of `entry`, or the letter and the
packed bytes. It binds the answer to the key it is found under, so a flipped bit, a swapped row or
another connection's reply is noticed. The version fixes the algorithm; the data cannot choose a
weaker one. Bump FORMAT_VERSION with any change of the layout.
"""

from __future__ import annotations

import json
import math
from typing import Any

from .entry import CacheEntry, Chunk
from .errors import CorruptEntryError
from .packing import pack, unpack
from .response import GenerateResponse
from .sha import sha256_hex

__all__ = ["FORMAT_VERSION", "dumps", "loads"]

FORMAT_VERSION = 1

_HEAD = b'{"v":%d,"digest":"' % FORMAT_VERSION
_MIDDLE = b'","entry":'
_DIGEST_AT = len(_HEAD)
_MIDDLE_AT = _DIGEST_AT + 64
_ENTRY_AT = _MIDDLE_AT + len(_MIDDLE)
_PACKED = b'","packed":"'
_PACKED_END = b'"}\n'
_PACKED_AT = _MIDDLE_AT + len(_PACKED)
_PACKED_DATA_AT = _PACKED_AT + 1 + len(_PACKED_END)


def dumps(key: str, entry: CacheEntry, *, keep_request: bool = True) -> bytes:
    """Return the envelope of an entry stored under `key`; the request is left out if not wanted."""
    payload: dict[str, Any] = {
        "key": key,
        "created_at": entry.created_at,
        "ttl": entry.ttl,
        "response": entry.response.to_dict(),
        "cost": {"seconds": round(entry.seconds, 6), "tokens": entry.response.tokens},
    }
    if entry.chunks is not None:
        payload["chunks"] = entry.chunks
    if keep_request and entry.request is not None:
        payload["request"] = entry.request
    data = json.dumps(payload, separators=(",", ":"), allow_nan=False).encode("ascii")
    packed = pack(data)
    if packed is None:
        return b"".join((_HEAD, _digest(key, data), _MIDDLE, data, b"}"))
    letter, data = packed
    return b"".join((_HEAD, _digest(key, letter + data), _PACKED, letter, _PACKED_END, data))


def loads(key: str, blob: bytes) -> CacheEntry:
    """Return the entry in an envelope found under `key`.

    Raises CorruptEntryError for anything that is not exactly what `dumps` wrote for this key.
    """
    letter = b""
    if blob[_MIDDLE_AT:_PACKED_AT] == _PACKED:
        letter = blob[_PACKED_AT : _PACKED_AT + 1]
        sound = blob[_PACKED_AT + 1 : _PACKED_DATA_AT] == _PACKED_END
        data = blob[_PACKED_DATA_AT:]
    else:
        sound = blob[_MIDDLE_AT:_ENTRY_AT] == _MIDDLE and blob[-1:] == b"}"
        data = blob[_ENTRY_AT:-1]
    if (
        not sound
        or blob[:_DIGEST_AT] != _HEAD
        or blob[_DIGEST_AT:_MIDDLE_AT] != _digest(key, letter + data)
    ):
        raise CorruptEntryError(f"the entry {key[:12]} does not match its digest")
    if letter:
        data = unpack(letter, data)
    try:
        return _entry(key, _decoder.decode(data.decode("ascii")))
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as exc:
        raise CorruptEntryError(f"the entry {key[:12]} does not decode: {exc}") from exc


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


_decoder = json.JSONDecoder(parse_constant=_refuse)


def _digest(key: str, data: bytes) -> bytes:
    # the key is hex and the separator is not, so no two pairs give the same bytes
    return sha256_hex(b"%s\0%s" % (key.encode("ascii", "replace"), data)).encode()


def _entry(key: str, payload: dict[str, Any]) -> CacheEntry:
    if payload["key"] != key:
        raise ValueError("it belongs to another key")
    ttl = payload["ttl"]
    chunks = payload.get("chunks")
    request = payload.get("request")
    if request is not None and not isinstance(request, dict):
        raise TypeError("its request is not an object")
    return CacheEntry(
        response=GenerateResponse.from_dict(payload["response"]),
        created_at=_number(payload["created_at"]),
        ttl=None if ttl is None else _number(ttl),
        seconds=_number(payload["cost"]["seconds"]),
        chunks=None if chunks is None else _chunks(chunks),
        request=request,
    )


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError(f"{value!r} is not a number")
    return value


def _chunks(value: Any) -> list[Chunk]:
    if not isinstance(value, list):
        raise TypeError("its chunks are not a list")
    return [_chunk(chunk) for chunk in value]


def _chunk(value: Any) -> Chunk:
    text, thinking, logprobs, at = value
    if not all(type(part) is int and part >= 0 for part in value):
        raise TypeError("a chunk is not four counts")
    return text, thinking, logprobs, at
