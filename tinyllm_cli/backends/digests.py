"""Which content a model's name stood for when the server was last asked; a hit need not ask."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

__all__ = ["DigestMemo", "DigestStore"]


@runtime_checkable
class DigestStore(Protocol):
    """A store that remembers which digest a model name stood for."""

    def known_digest(self, host: str, model: str) -> str | None:
        """Return the last digest seen for a canonical model name at a host, None if never seen."""

    def digest_seen_at(self, host: str, model: str) -> float | None:
        """Return when the server last gave that digest, wall-clock seconds; None if it never did."""

    def remember_digest(self, host: str, model: str, digest: str, now: float) -> None:
        """Note the digest the server gave at `now`, wall-clock seconds."""


class DigestMemo:
    """A digest store for one process."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[str, float]] = {}

    def known_digest(self, host: str, model: str) -> str | None:
        """Return the last digest seen for a canonical model name at a host, None if never seen."""
        known = self._known.get((host, model))
        return None if known is None else known[0]

    def digest_seen_at(self, host: str, model: str) -> float | None:
        """Return when the server last gave that digest, wall-clock seconds; None if it never did."""
        known = self._known.get((host, model))
        return None if known is None else known[1]

    def remember_digest(self, host: str, model: str, digest: str, now: float) -> None:
        """Note the digest the server gave at `now`, wall-clock seconds."""
        self._known[host, model] = (digest, now)
