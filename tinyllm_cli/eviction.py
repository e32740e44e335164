"""Which entry goes first when room is needed. Pure.

"lru" drops what was used longest ago. "cost" drops what is cheapest to get again for the room it
takes: Greedy-Dual-Size-Frequency, rank = L + uses * seconds / size, where L is the rank of the last
entry dropped, so that what is not used ages (Cherkasova, "Improving WWW Proxies Performance with
Greedy-Dual-Size-Frequency Caching Policy", HP Laboratories 1998).
"""

from __future__ import annotations

import heapq

from .entry import CacheEntry
from .errors import ConfigError

__all__ = ["EVICTIONS", "CostOrder", "checked_eviction", "worth"]

EVICTIONS = ("lru", "cost")

# What an answer costs whose making nobody timed: better than free, so that size still counts.
_LEAST_SECONDS = 0.001


def checked_eviction(name: str) -> str:
    """Return an eviction policy's name as given; raises ConfigError for any other."""
    if name not in EVICTIONS:
        raise ConfigError(f"eviction is {name!r}", hint="use lru or cost")
    return name


def worth(seconds: float, size: int) -> float:
    """Return what one use of an entry adds to its rank: seconds of work per MiB of room."""
    return max(seconds, _LEAST_SECONDS) * 2**20 / max(size, 1)


class CostOrder:
    """The order of eviction "cost" for entries in memory; every call is O(log n) amortised."""

    def __init__(self) -> None:
        self._floor = 0.0
        self._ranks: dict[str, tuple[float, int]] = {}
        self._heap: list[tuple[float, str]] = []

    def use(self, key: str, entry: CacheEntry) -> None:
        """Note that an entry was stored or used."""
        uses = self._ranks.get(key, (0.0, 0))[1] + 1
        rank = self._floor + uses * worth(entry.seconds, entry.size)
        self._ranks[key] = (rank, uses)
        heapq.heappush(self._heap, (rank, key))
        if len(self._heap) > 64 + 4 * len(self._ranks):  # mostly ranks that are no longer true
            self._heap = [(rank, key) for key, (rank, _) in self._ranks.items()]
            heapq.heapify(self._heap)

    def forget(self, key: str) -> None:
        """Note that an entry is gone."""
        self._ranks.pop(key, None)

    def clear(self) -> None:
        """Forget every entry."""
        self._ranks.clear()
        self._heap.clear()

    def drop(self, keep: str) -> str | None:
        """Return the key to drop next, never `keep`; None if there is no other. It is forgotten."""
        held = None
        dropped = None
        while self._heap and dropped is None:
            rank, key = heapq.heappop(self._heap)
            if self._ranks.get(key, (None,))[0] != rank:
                continue  # used since, or gone
            if key == keep:
                held = (rank, key)
                continue
            dropped = key
            self._floor = max(self._floor, rank)
            del self._ranks[key]
        if held is not None:
            heapq.heappush(self._heap, held)
        return dropped
