"""Two stores as one, for the command line: this user's snapshot in front of a shared Redis.

A hit in front needs no network. What is found behind is put in front after the answer is out, for
what the server says is left of its TTL.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from .. import logs
from ..entry import CacheEntry
from ..errors import CacheError
from ..metrics import CacheMetrics
from .inventory import Clearance, Filter, StoreStats
from .memory import InMemoryBackend
from .redis_blocking import BlockingRedisBackend
from .redis_walk import Progress

__all__ = ["BlockingTieredBackend"]

T = TypeVar("T")


class BlockingTieredBackend:
    """`front` answers first, `back` is asked and filled behind it; a SyncBackend.

    `on_fault` is told when one tier failed and the other did the work; what no tier can do raises
    CacheError. `clock` is wall-clock seconds.
    """

    def __init__(
        self,
        front: InMemoryBackend,
        back: BlockingRedisBackend,
        *,
        on_fault: Callable[[CacheError], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.front = front
        self.back = back
        self._on_fault = on_fault
        self._clock = clock
        self._found: dict[str, CacheEntry] = {}
        self._leased_in_front: set[str] = set()

    # --- at once

    def lookup(self, key: str) -> CacheEntry | None:
        """Return the entry under a key, past its TTL or not; the front's if that is fresh."""
        near: CacheEntry | None = None
        try:
            near = self.front.lookup(key)
        except CacheError as exc:
            self._fault(exc)
        if near is not None and not near.is_expired(self._clock()):
            return near
        try:
            entry = self.back.lookup(key)
        except CacheError as exc:
            if near is None:
                raise
            self._fault(exc)
            return near
        if entry is None:
            return near
        self._found[key] = entry
        return entry

    def get_nowait(self, key: str) -> CacheEntry | None:
        """Return the entry under a key, None if there is none that is fresh."""
        entry = self.lookup(key)
        return None if entry is None or entry.is_expired(self._clock()) else entry

    def set_nowait(self, key: str, entry: CacheEntry) -> None:
        """Store an entry in both tiers; raises CacheError if one of them does not have it now."""
        self._found.pop(key, None)
        try:
            self.front.set_nowait(key, entry)
        finally:
            self.back.set_nowait(key, entry)

    def clear_nowait(
        self, which: Filter, dry_run: bool = False, progress: Progress | None = None
    ) -> Clearance:
        """Remove the entries a filter means from both tiers; the sums are of both."""
        self._found.clear()
        back = self.back.clear_nowait(which, dry_run, progress)
        front = self.front.clear_nowait(which, dry_run)
        return Clearance(front.entries + back.entries, front.bytes + back.bytes)

    def stats_nowait(self) -> StoreStats:
        """Return the front's figures, with those of the shared tier as `behind`."""
        behind = self.back.stats_nowait()
        return self.front.stats_nowait()._replace(behind=behind)

    def reset_counters_nowait(self) -> None:
        """Zero the counters of both tiers."""
        self.front.reset_counters_nowait()
        self.back.reset_counters_nowait()

    def close_nowait(self) -> None:
        """Fill the front with what was found behind, send the counters, and close both tiers."""
        found, self._found = self._found, {}
        try:
            for key, entry in (self.back.settle_nowait(found) if found else {}).items():
                self.front.set_nowait(key, entry)
        finally:
            try:
                # without a connection the counts of this run stay on this machine: a hit in front
                # needs no network
                if self.back.connected():
                    self.back.close_nowait()
            finally:
                self.back.hang_up()
                self.front.close_nowait()

    # --- the same for coroutines

    async def get(self, key: str) -> CacheEntry | None:
        """As `get_nowait`."""
        return await _in_thread(lambda: self.get_nowait(key))

    async def set(self, key: str, entry: CacheEntry) -> None:
        """As `set_nowait`."""
        await _in_thread(lambda: self.set_nowait(key, entry))

    async def delete(self, key: str) -> bool:
        """Remove an entry from both tiers; return whether there was one."""
        self._found.pop(key, None)
        in_front = await self.front.delete(key)
        return await self.back.delete(key) or in_front

    async def clear(self) -> None:
        """Remove every entry of both tiers."""
        await _in_thread(lambda: self.clear_nowait(Filter()))

    async def clear_matching(self, which: Filter, *, dry_run: bool = False) -> Clearance:
        """As `clear_nowait`."""
        return await _in_thread(lambda: self.clear_nowait(which, dry_run))

    async def size(self) -> int:
        """Return the number of entries of the shared tier."""
        return await self.back.size()

    async def stats(self) -> StoreStats:
        """As `stats_nowait`."""
        return await _in_thread(self.stats_nowait)

    async def reset_counters(self) -> None:
        """As `reset_counters_nowait`."""
        await _in_thread(self.reset_counters_nowait)

    async def close(self) -> None:
        """As `close_nowait`."""
        await _in_thread(self.close_nowait)

    # --- counters and leases

    @property
    def eviction_count(self) -> int:
        """How many entries the front dropped for room."""
        return self.front.eviction_count

    @property
    def keeps_metrics(self) -> bool:
        """Counters are kept in the snapshot, and in Redis for what reached it."""
        return True

    def count(self, model: str, metrics: CacheMetrics) -> None:
        """Add counters of one model to both tiers."""
        self.front.count(model, metrics)
        self.back.count(model, metrics)

    @property
    def keeps_leases(self) -> bool:
        """Leases are seen by everyone who shares the namespace."""
        return True

    async def lease(self, key: str, token: str, stale: str | None) -> str | None:
        """Take the lease of a key if it is free or its mark is `stale`; else return its mark."""
        try:
            return await self.back.lease(key, token, stale)
        except CacheError:
            self._leased_in_front.add(token)
            return await self.front.lease(key, token, stale)

    async def beat(self, key: str, token: str) -> None:
        """Change the mark of a lease that is still `token`'s."""
        await (self.front if token in self._leased_in_front else self.back).beat(key, token)

    async def release(self, key: str, token: str, note: str) -> None:
        """End a lease that is still `token`'s; with a note, leave a mark that ends with it."""
        if token in self._leased_in_front:
            self._leased_in_front.discard(token)
            await self.front.release(key, token, note)
        else:
            await self.back.release(key, token, note)

    def _fault(self, exc: CacheError) -> None:
        logs.error("cache_tier_error", exc)
        self.count("", CacheMetrics(errors=1))
        if self._on_fault is not None:
            self._on_fault(exc)


async def _in_thread(call: Callable[[], T]) -> T:
    import asyncio

    return await asyncio.to_thread(call)
