"""How the bytes of a large entry are made small, and large again. Pure.

zstd where the standard library (Python 3.14) or the `zstd` extra has it, else zlib, which every
Python has. The letter in the envelope says which; what this process cannot unpack is a miss.
"""

from __future__ import annotations

import importlib
import zlib
from functools import cache
from typing import Any

from .errors import CorruptEntryError, UnreadableEntryError

__all__ = ["PACK_ABOVE", "pack", "unpack"]

#: Smaller entries are stored as they are: they would gain less than they cost.
PACK_ABOVE = 4096

_ZLIB = b"z"
_ZSTD = b"s"
_ZLIB_LEVEL = 6
_ZSTD_LEVEL = 3
# An entry's digest has been checked by the time it is unpacked, but whoever may write the store may
# have made it: what unpacks to more than any answer may be is refused.
_MOST = 256 * 2**20


def pack(data: bytes) -> tuple[bytes, bytes] | None:
    """Return the letter and the packed bytes, or None where packing would gain less than a tenth."""
    if len(data) < PACK_ABOVE:
        return None
    zstd = _zstd()
    if zstd is not None:
        letter, packed = _ZSTD, bytes(zstd.compress(data, _ZSTD_LEVEL))
    else:
        letter, packed = _ZLIB, zlib.compress(data, _ZLIB_LEVEL)
    return (letter, packed) if len(packed) < len(data) * 0.9 else None


def unpack(letter: bytes, packed: bytes) -> bytes:
    """Return what was packed.

    Raises CorruptEntryError for bytes that do not unpack or unpack to too much, and
    UnreadableEntryError where this process lacks what they were packed with.
    """
    if letter == _ZLIB:
        return _bounded(zlib.decompressobj(), packed, zlib.error)
    if letter == _ZSTD:
        zstd = _zstd()
        if zstd is None:
            raise UnreadableEntryError("the entry is packed with zstd, which this Python lacks")
        return _bounded(zstd.ZstdDecompressor(), packed, zstd.ZstdError)
    raise UnreadableEntryError(f"the entry is packed in an unknown way ({letter!r})")


def _bounded(unpacker: Any, packed: bytes, error: type[Exception]) -> bytes:
    try:
        data: bytes = unpacker.decompress(packed, _MOST)
    except error as exc:
        raise CorruptEntryError(f"the entry does not unpack: {exc}") from exc
    if not unpacker.eof:
        raise CorruptEntryError("the entry unpacks to too much, or is cut off")
    return data


@cache
def _zstd() -> Any:
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None
