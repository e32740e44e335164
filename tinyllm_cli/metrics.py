"""What happened, in numbers: counters that add up across calls, processes and models."""

from __future__ import annotations

from typing import Any

__all__ = ["CacheMetrics"]


class CacheMetrics:
    """Counters of a cache.

    `evictions` were dropped for room, `expirations` met at a look-up past their TTL (each is also
    a miss), `errors` are failures of the store (not misses). `time_saved_s` and `tokens_saved` add
    up what the answers behind the hits had cost when they were made. `stale` are hits served past
    their TTL, `coalesced` misses that shared another's generation, `refreshed` and `bypassed`
    requests that did not look.
    """

    __slots__ = (
        "hits",
        "misses",
        "sets",
        "evictions",
        "errors",
        "expirations",
        "time_saved_s",
        "tokens_saved",
        "stale",
        "coalesced",
        "refreshed",
        "bypassed",
    )

    def __init__(
        self,
        hits: int = 0,
        misses: int = 0,
        sets: int = 0,
        evictions: int = 0,
        errors: int = 0,
        expirations: int = 0,
        time_saved_s: float = 0,
        tokens_saved: int = 0,
        stale: int = 0,
        coalesced: int = 0,
        refreshed: int = 0,
        bypassed: int = 0,
    ) -> None:
        self.hits = hits
        self.misses = misses
        self.sets = sets
        self.evictions = evictions
        self.errors = errors
        self.expirations = expirations
        self.time_saved_s = time_saved_s
        self.tokens_saved = tokens_saved
        self.stale = stale
        self.coalesced = coalesced
        self.refreshed = refreshed
        self.bypassed = bypassed

    @property
    def total_requests(self) -> int:
        """Hits and misses together."""
        return self.hits + self.misses

    @property
    def hit_rate(self) -> float:
        """Share of requests answered from the cache, 0.0 to 1.0; 0.0 before the first request."""
        total = self.hits + self.misses
        return self.hits / total if total else 0.0

    def add(self, other: CacheMetrics) -> None:
        """Add another set of counters to this one."""
        for name in _COUNTERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CacheMetrics):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in _COUNTERS)

    __hash__ = None  # type: ignore[assignment] # it changes as it counts

    def __repr__(self) -> str:
        counts = ", ".join(f"{name}={getattr(self, name)!r}" for name in _COUNTERS)
        return f"CacheMetrics({counts})"

    def __bool__(self) -> bool:
        """Say whether anything was counted."""
        return any(getattr(self, name) for name in _COUNTERS)

    def to_dict(self) -> dict[str, Any]:
        """Return the counters with hit_rate and total_requests, by name."""
        data: dict[str, Any] = {name: getattr(self, name) for name in _COUNTERS}
        data["time_saved_s"] = round(self.time_saved_s, 3)
        data["hit_rate"] = self.hit_rate
        data["total_requests"] = self.total_requests
        return data


_COUNTERS = CacheMetrics.__slots__
