"""Two stores as one, for programs with an event loop: memory in front of a shared Redis.

A copy in front answers without the network for as long as it can be trusted: while the server tells
us what others change, until it says so; otherwise `front_ttl` seconds. A copy that was there first
but cannot be trusted still serves when Redis is away.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from .. import logs
from ..entry import CacheEntry
from ..errors import CacheError
from ..metrics import CacheMetrics
from .inventory import Clearance, Filter, StoreStats
from .memory import InMemoryBackend
from .redis import RedisBackend

__all__ = ["DEFAULT_FRONT_TTL_S", "TieredBackend"]

DEFAULT_FRONT_TTL_S = 30.0


class _Copy(NamedTuple):
    """Since when the front holds what the server holds, and which connections vouch for it."""

    generation: int
    since: float


class TieredBackend:
    """`front` answers first, `back` is asked and filled behind it; both are written and cleared.

    `front_ttl` is for how many seconds a copy serves where the server does not tell what changes.
    `on_fault` is told when one tier failed and the other did the work; what no tier can do raises
    CacheError. `clock` is wall-clock seconds, `monotonic` measures.
    """

    def __init__(
        self,
        front: InMemoryBackend,
        back: RedisBackend,
        *,
        front_ttl: float = DEFAULT_FRONT_TTL_S,
        on_fault: Callable[[CacheError], None] | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.front = front
        self.back = back
        self._front_ttl = front_ttl
        self._on_fault = on_fault
        self._clock = clock
        self._monotonic = monotonic
        self._tracking = back.track(self._invalid)
        self._copies: OrderedDict[str, _Copy] = OrderedDict()
        self._keys: dict[bytes, str] = {}
        self._pending: dict[bytes, object] = {}
        self._outdated: set[str] = set()
        self._removing: set[asyncio.Task[None]] = set()
        self._leased_in_front: set[str] = set()

    # --- the backend protocol

    async def get(self, key: str) -> CacheEntry | None:
        """Return the entry under a key, None if there is none that is fresh."""
        entry = await self.look(key)
        return None if entry is None or entry.is_expired(self._clock()) else entry

    async def look(self, key: str) -> CacheEntry | None:
        """Return the entry under a key, past its TTL or not; one found behind fills the front."""
        entry = self._trusted(key)
        if entry is not None:
            return entry
        name = self.back.name(key)
        copy = self._copy_now()
        mark = self._pending[name] = object()
        try:
            entry = await self.back.look(key)
        except CacheError as exc:
            spare = None if key in self._outdated else self._front_look(key)
            if spare is None:
                raise
            self._fault(exc)
            return spare
        finally:
            # gone if the server said meanwhile that the entry changed: what we were given is old
            unchanged = self._pending.get(name) is mark
            if unchanged:
                del self._pending[name]
        if entry is None:
            if self._copies.pop(key, None) is not None:
                await self._remove(key)
        elif unchanged:
            await self._fill(key, name, entry, copy)
        return entry

    async def set(self, key: str, entry: CacheEntry) -> None:
        """Store an entry in both tiers; raises CacheError if it is in front alone."""
        # in front first: should another's change be told while ours is on its way, it drops the copy
        await self._fill(key, self.back.name(key), entry, self._copy_now())
        await self.back.set(key, entry)

    async def delete(self, key: str) -> bool:
        """Remove an entry from both tiers; return whether there was one."""
        self._copies.pop(key, None)
        in_front = await self.front.delete(key)
        return await self.back.delete(key) or in_front

    async def clear(self) -> None:
        """Remove every entry of both tiers."""
        await self.clear_matching(Filter())

    async def clear_matching(self, which: Filter, *, dry_run: bool = False) -> Clearance:
        """Remove the entries a filter means from both tiers; the sums are of both."""
        if not dry_run:
            self._copies.clear()
        front = await self.front.clear_matching(which, dry_run=dry_run)
        back = await self.back.clear_matching(which, dry_run=dry_run)
        return Clearance(front.entries + back.entries, front.bytes + back.bytes)

    async def size(self) -> int:
        """Return the number of entries of the shared tier."""
        return await self.back.size()

    async def close(self) -> None:
        """Close both tiers."""
        if self._removing:
            await asyncio.gather(*self._removing, return_exceptions=True)
        try:
            await self.back.close()
        finally:
            await self.front.close()

    # --- counters and digests

    @property
    def eviction_count(self) -> int:
        """How many entries the front dropped for room."""
        return self.front.eviction_count

    @property
    def keeps_metrics(self) -> bool:
        """Counters are kept by the shared tier, and by the front if it has a snapshot."""
        return True

    def count(self, model: str, metrics: CacheMetrics) -> None:
        """Add counters of one model to both tiers."""
        self.front.count(model, metrics)
        self.back.count(model, metrics)

    async def stats(self) -> StoreStats:
        """Return the front's figures, with those of the shared tier as `behind`."""
        behind = await self.back.stats()
        return (await self.front.stats())._replace(behind=behind)

    async def reset_counters(self) -> None:
        """Zero the counters of both tiers."""
        await self.front.reset_counters()
        await self.back.reset_counters()

    def known_digest(self, host: str, model: str) -> str | None:
        """Return the last digest seen for a canonical model name at a host, None if never seen."""
        return self.front.known_digest(host, model)

    def digest_seen_at(self, host: str, model: str) -> float | None:
        """Return when the server last gave that digest, wall-clock seconds; None if it never did."""
        return self.front.digest_seen_at(host, model)

    def remember_digest(self, host: str, model: str, digest: str, now: float) -> None:
        """Note the digest the server gave at `now`, wall-clock seconds."""
        self.front.remember_digest(host, model, digest, now)

    # --- leases: the team's, or this machine's while the team's cannot be had

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

    # --- inside

    def _trusted(self, key: str) -> CacheEntry | None:
        """Return the front's copy if it is fresh and known to be what the server holds."""
        copy = self._copies.get(key)
        if copy is None:
            return None
        vouched = self._tracking.works and copy.generation == self._tracking.generation
        if not vouched and self._monotonic() - copy.since >= self._front_ttl:
            return None
        entry = self._front_look(key)
        return None if entry is None or entry.is_expired(self._clock()) else entry

    def _front_look(self, key: str) -> CacheEntry | None:
        try:
            return self.front.lookup(key)
        except CacheError as exc:
            self._fault(exc)
            return None

    def _copy_now(self) -> _Copy:
        # before anything is asked: messages from here on speak of what is about to be held
        return _Copy(self._tracking.generation, self._monotonic())

    async def _fill(self, key: str, name: bytes, entry: CacheEntry, copy: _Copy) -> None:
        self._copies[key] = copy
        self._copies.move_to_end(key)
        self._keys[name] = key
        while len(self._copies) > self.front.max_size:
            dropped, _ = self._copies.popitem(last=False)
            self._keys.pop(self.back.name(dropped), None)
        try:
            await self.front.set(key, entry)
        except CacheError as exc:
            self._fault(exc)

    async def _remove(self, key: str) -> None:
        """Remove a copy of what the server no longer has."""
        try:
            await self.front.delete(key)
        except CacheError as exc:
            self._fault(exc)
        finally:
            self._outdated.discard(key)

    def _invalid(self, name: bytes | None) -> None:
        """Take the server's word that an entry changed, or that all did (None)."""
        if name is None:
            self._pending.clear()
            self._copies.clear()
            return
        self._pending.pop(name, None)
        key = self._keys.pop(name, None)
        if key is None or self._copies.pop(key, None) is None:
            return
        self._outdated.add(key)
        task = asyncio.get_running_loop().create_task(self._remove(key))
        self._removing.add(task)
        task.add_done_callback(self._removing.discard)

    def _fault(self, exc: CacheError) -> None:
        logs.error("cache_tier_error", exc)
        self.count("", CacheMetrics(errors=1))
        if self._on_fault is not None:
            self._on_fault(exc)
