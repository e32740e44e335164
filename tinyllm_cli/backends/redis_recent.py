"""Entries decoded lately, so that the same bytes need not be decoded again."""

from __future__ import annotations

from ..entry import CacheEntry

__all__ = ["Recent"]

_MAX_BYTES = 16 * 2**20
_MAX_ENTRIES = 4096


class Recent:
    """Decoded entries by name and exact bytes, bounded by both; the first one in is the first out.

    The server is asked every time and its bytes are compared whole: this saves the hashing and
    parsing of what was found right before, and can never serve what the server no longer has.
    """

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: dict[bytes, tuple[bytes, CacheEntry]] = {}

    def find(self, name: bytes, blob: object) -> CacheEntry | None:
        """Return the entry these bytes were decoded to, None if they are not the last ones seen."""
        kept = self._kept.get(name)
        return kept[1] if kept is not None and kept[0] == blob else None

    def keep(self, name: bytes, blob: bytes, entry: CacheEntry) -> None:
        """Remember what some bytes mean."""
        old = self._kept.pop(name, None)
        self._bytes += len(blob) - (0 if old is None else len(old[0]))
        self._kept[name] = blob, entry
        while self._bytes > self._max_bytes or len(self._kept) > _MAX_ENTRIES:
            dropped, _ = self._kept.pop(next(iter(self._kept)))
            self._bytes -= len(dropped)
