"""The memory backend: an LRU in this process and, if wanted, a snapshot file behind it."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TypeVar

from .. import codec
from ..entry import CacheEntry
from ..errors import CacheError, ConfigError, CorruptEntryError, UnreadableEntryError
from ..eviction import CostOrder, checked_eviction
from ..metrics import CacheMetrics
from ..model_name import short_model
from .base import Notice
from .digests import DigestMemo
from .inventory import Clearance, Filter, ModelTotals, StoreStats
from .snapshot import Snapshot

__all__ = ["DEFAULT_MAX_BYTES", "DEFAULT_MAX_ENTRY_BYTES", "DEFAULT_MAX_SIZE", "InMemoryBackend"]

DEFAULT_MAX_SIZE = 1000
DEFAULT_MAX_BYTES = 256 * 2**20
DEFAULT_MAX_ENTRY_BYTES = 8 * 2**20

T = TypeVar("T")

# Uses and counters are written behind, in one transaction for many hits.
_FLUSH_EVERY = 256


class InMemoryBackend:
    """Entries in memory with two bounds, `max_size` entries and `max_bytes`, safe from any thread.

    Alone it is pure memory. With `snapshot=PATH` the entries live in that file, bounded the same
    way and shared with any number of processes; memory then holds copies, dropped whenever another
    process has written. An entry above `max_entry_bytes` is not stored. `keep_requests` False
    leaves the questions out of the file. `eviction` is "lru", the least recently used goes first,
    or "cost", what is cheapest to ask again for the room it takes. `notice` is told in one line when
    a damaged file was replaced. Raises ConfigError for a bound that is not a whole number above 0.
    """

    def __init__(
        self,
        max_size: int = DEFAULT_MAX_SIZE,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        max_entry_bytes: int = DEFAULT_MAX_ENTRY_BYTES,
        snapshot: str | os.PathLike[str] | None = None,
        keep_requests: bool = True,
        eviction: str = "lru",
        clock: Callable[[], float] = time.time,
        notice: Notice | None = None,
    ) -> None:
        self.max_size = _bound("max_size", max_size)
        self.max_bytes = _bound("max_bytes", max_bytes)
        self.max_entry_bytes = min(_bound("max_entry_bytes", max_entry_bytes), max_bytes)
        self.eviction = checked_eviction(eviction)
        self.eviction_count = 0
        self._clock = clock
        self._keep_requests = keep_requests
        self._entries: OrderedDict[str, CacheEntry] = OrderedDict()
        self._bytes = 0
        self._order = CostOrder() if eviction == "cost" and snapshot is None else None
        self._writing = threading.Lock()
        self._digests = DigestMemo()
        self._snapshot: Snapshot | None = None
        self._changes: tuple[int, int] | None = None
        self._generation = 0  # counts what made copies in memory outdated
        self._behind = _WriteBehind()
        if snapshot is not None:
            self._snapshot = Snapshot(
                snapshot,
                max_entries=max_size,
                max_bytes=max_bytes,
                eviction=eviction,
                notice=notice,
            )
            # a script that forgets close() still keeps its counts
            weakref.finalize(self, _finish, self._snapshot, self._behind)
        _live.add(self)

    @property
    def snapshot(self) -> Snapshot | None:
        """The file behind this store, None if it is memory alone."""
        return self._snapshot

    # --- the backend protocol

    async def get(self, key: str) -> CacheEntry | None:
        """Return the entry under a key, None if there is none or its TTL has run out."""
        entry = self.lookup(key)
        if entry is not None and entry.is_expired(self._clock()):
            self._remove_expired(key)
            return None
        return entry

    async def set(self, key: str, entry: CacheEntry) -> None:
        """Store an entry as the most recently used, dropping the least recently used for room."""
        await self._off_loop(self.set_nowait, key, entry)

    async def delete(self, key: str) -> bool:
        """Remove an entry; return whether there was one."""
        return await self._off_loop(self._delete, key)

    async def clear(self) -> None:
        """Remove every entry, in the snapshot as well."""
        await self._off_loop(self.clear_nowait, Filter())

    async def size(self) -> int:
        """Return the number of entries held, expired ones that nobody has met since included."""
        return (await self.stats()).entries if self._snapshot is not None else len(self._entries)

    async def close(self) -> None:
        """Write pending uses and counters and close the file; the entries in memory stay."""
        await self._off_loop(self.close_nowait)

    # --- the same without an event loop

    def get_nowait(self, key: str) -> CacheEntry | None:
        """As `get`, at once; an expired entry found here is removed."""
        entry = self.lookup(key)
        if entry is not None and entry.is_expired(self._clock()):
            self._remove_expired(key)
            return None
        return entry

    def lookup(self, key: str) -> CacheEntry | None:
        """Return what is stored under a key, fresh or expired, and note its use."""
        if self._snapshot is not None:
            return self._lookup_snapshot(self._snapshot, key)
        if self._order is not None:
            with self._writing:
                entry = self._entries.get(key)
                if entry is not None:
                    self._order.use(key, entry)
            return entry
        # each step is one of the interpreter's own, so a hit takes no lock
        entry = self._entries.get(key)
        if entry is not None:
            try:  # noqa: SIM105 - suppress() would double what a hit costs
                self._entries.move_to_end(key)
            except KeyError:
                pass  # another thread dropped it since; it was there when asked for
        return entry

    def peek(self, key: str) -> CacheEntry | None:
        """Return what is stored under a key, fresh or expired, without noting a use."""
        if self._snapshot is None:
            return self._entries.get(key)
        blob = self._snapshot.get(key)
        if blob is None:
            return None
        try:
            return codec.loads(key, blob)
        except CorruptEntryError:
            return None

    def entries(self) -> Iterator[tuple[str, CacheEntry]]:
        """Yield every key and entry, the last stored first; what does not decode is passed over."""
        if self._snapshot is None:
            yield from reversed(self._held())
            return
        for key, blob in self._snapshot.scan():
            with contextlib.suppress(CorruptEntryError):
                yield key, codec.loads(key, blob)

    def set_nowait(self, key: str, entry: CacheEntry) -> None:
        """As `set`, at once; too large an entry leaves none under the key, not the one before it."""
        seen = self._generation
        blob = b""
        if self._snapshot is not None:
            blob = codec.dumps(key, entry, keep_request=self._keep_requests)
        if (len(blob) or entry.size) > self.max_entry_bytes:
            self._delete(key)
            return
        if self._snapshot is not None:
            self._put_snapshot(self._snapshot, key, entry, blob)
        self._keep(key, entry, seen, stored=True)

    def close_nowait(self) -> None:
        """As `close`, at once."""
        if self._snapshot is not None:
            try:
                self._behind.flush(self._snapshot)
            finally:
                self._snapshot.close()

    # --- counters and digests

    @property
    def keeps_metrics(self) -> bool:
        """Whether counters outlive the process: with a snapshot they do."""
        return self._snapshot is not None

    def count(self, model: str, metrics: CacheMetrics) -> None:
        """Add counters of one model (a short canonical name); a no-op without a snapshot."""
        if self._snapshot is not None and self._behind.add(model, metrics):
            with contextlib.suppress(CacheError):  # lost counts must not cost the hit they count
                self._behind.flush(self._snapshot)

    async def stats(self) -> StoreStats:
        """Return what is held and what the snapshot has counted, by every process so far."""
        return await self._off_loop(self.stats_nowait)

    def stats_nowait(self) -> StoreStats:
        """As `stats`, at once."""
        if self._snapshot is not None:
            self._behind.flush(self._snapshot)
            return self._snapshot.stats()
        rows: dict[str, list[int]] = {}
        held = self._held()
        for _, entry in held:
            row = rows.setdefault(short_model(entry.response.model), [0, 0])
            row[0] += 1
            row[1] += entry.size
        made = [entry.created_at for _, entry in held]
        models = (ModelTotals(name, n, size, CacheMetrics()) for name, (n, size) in rows.items())
        return StoreStats(tuple(models), min(made, default=None), max(made, default=None))

    async def reset_counters(self) -> None:
        """Zero the counters the snapshot keeps."""
        await self._off_loop(self.reset_counters_nowait)

    def reset_counters_nowait(self) -> None:
        """As `reset_counters`, at once."""
        if self._snapshot is not None:
            self._behind.flush(self._snapshot)
            self._snapshot.reset_counters()

    async def clear_matching(self, which: Filter, *, dry_run: bool = False) -> Clearance:
        """Remove the entries a filter means, or with `dry_run` only count them."""
        return await self._off_loop(self.clear_nowait, which, dry_run)

    def clear_nowait(self, which: Filter, dry_run: bool = False) -> Clearance:
        """As `clear_matching`, at once."""
        if self._snapshot is not None:
            cleared = self._snapshot.clear(which, dry_run=dry_run)
            if not dry_run:
                self._forget()
            return cleared
        meant = [(key, entry) for key, entry in self._held() if which.matches(key, entry)]
        if not dry_run:
            for key, _ in meant:
                self._delete(key)
        return Clearance(len(meant), sum(entry.size for _, entry in meant))

    def known_digest(self, host: str, model: str) -> str | None:
        """Return the last digest seen for a canonical model name at a host, None if never seen."""
        if self._snapshot is None:
            return self._digests.known_digest(host, model)
        known = self._snapshot.digest(host, model)
        return None if known is None else known[0]

    def digest_seen_at(self, host: str, model: str) -> float | None:
        """Return when the server last gave that digest, wall-clock seconds; None if it never did."""
        if self._snapshot is None:
            return self._digests.digest_seen_at(host, model)
        known = self._snapshot.digest(host, model)
        return None if known is None else known[1]

    def remember_digest(self, host: str, model: str, digest: str, now: float) -> None:
        """Note the digest the server gave at `now`, wall-clock seconds."""
        if self._snapshot is None:
            self._digests.remember_digest(host, model, digest, now)
        else:
            self._snapshot.remember_digest(host, model, digest, now)

    # --- leases, through the snapshot

    @property
    def keeps_leases(self) -> bool:
        """Whether other processes see the leases: with a snapshot they do."""
        return self._snapshot is not None

    async def lease(self, key: str, token: str, stale: str | None) -> str | None:
        """Take the lease of a key if it is free or its mark is `stale`; else return its mark."""
        if self._snapshot is None:
            return None
        return await self._off_loop(self._snapshot.lease, key, token, stale)

    async def beat(self, key: str, token: str) -> None:
        """Change the mark of a lease that is still `token`'s."""
        if self._snapshot is not None:
            await self._off_loop(self._snapshot.beat, key, token)

    async def release(self, key: str, token: str, note: str) -> None:
        """End a lease that is still `token`'s; with a note, leave a mark that ends with it."""
        if self._snapshot is not None:
            await self._off_loop(self._snapshot.release, key, token, note)

    # --- inside

    async def _off_loop(self, call: Callable[..., T], *args: object) -> T:
        """Run a call; where it may wait for another process's lock, in a thread of its own."""
        if self._snapshot is None:
            return call(*args)
        import asyncio

        return await asyncio.to_thread(call, *args)

    def _lookup_snapshot(self, snapshot: Snapshot, key: str) -> CacheEntry | None:
        changes = snapshot.changes()
        if changes != self._changes:  # another process wrote: what it removed must not be served
            self._forget()
            self._changes = changes
        entry = self._entries.get(key)
        if entry is None:
            seen = self._generation
            blob = snapshot.get(key)
            if blob is None:
                return None
            try:
                entry = codec.loads(key, blob)
            except UnreadableEntryError:
                return None
            except CorruptEntryError:
                snapshot.delete(key)
                return None
            self._keep(key, entry, seen)
        self._behind.use(key)
        return entry

    def _put_snapshot(self, snapshot: Snapshot, key: str, entry: CacheEntry, blob: bytes) -> None:
        evicted = snapshot.put(
            key,
            blob,
            model=short_model(entry.response.model),
            created_at=entry.created_at,
            expires_at=None if entry.ttl is None else entry.created_at + entry.ttl,
            seconds=entry.seconds,
        )
        with self._writing:
            self.eviction_count += evicted

    def _keep(self, key: str, entry: CacheEntry, seen: int, *, stored: bool = False) -> None:
        """Hold an entry in memory as the most recently used, within both bounds.

        `seen` is the generation from before the file was read or written: if another thread has
        stored or removed something since, the copy may be outdated and is not held.
        """
        with self._writing:
            old = self._entries.pop(key, None)
            if old is not None:
                self._bytes -= old.size
            outdated = seen != self._generation
            self._generation += stored
            if outdated and self._snapshot is not None:
                return
            self._entries[key] = entry
            self._bytes += entry.size
            if self._order is not None:
                self._order.use(key, entry)
            while len(self._entries) > self.max_size or self._bytes > self.max_bytes:
                self._bytes -= self._drop(keep=key).size
                if self._snapshot is None:  # otherwise it is still in the file
                    self.eviction_count += 1

    def _held(self) -> list[tuple[str, CacheEntry]]:
        with self._writing:
            while True:
                try:
                    return list(self._entries.items())
                except RuntimeError:
                    continue  # a hit in another thread moved its entry meanwhile

    def _remove_expired(self, key: str) -> None:
        # it is not served, whether it can be removed or not
        with contextlib.suppress(CacheError):
            self._delete(key)

    def _drop(self, keep: str) -> CacheEntry:
        """Take out the entry that goes first by the policy; `keep` only if there is no other."""
        if self._order is not None:
            first = self._order.drop(keep) or keep
            self._order.forget(first)
            return self._entries.pop(first)
        return self._entries.popitem(last=False)[1]

    def _delete(self, key: str) -> bool:
        removed = self._snapshot is not None and self._snapshot.delete(key)
        with self._writing:
            self._generation += 1
            entry = self._entries.pop(key, None)
            if entry is not None:
                self._bytes -= entry.size
            if self._order is not None:
                self._order.forget(key)
        return removed if self._snapshot is not None else entry is not None

    def _forget(self) -> None:
        with self._writing:
            self._generation += 1
            self._entries.clear()
            self._bytes = 0
            if self._order is not None:
                self._order.clear()

    def forget_parent(self) -> None:
        """In a forked child: what the parent has counted is the parent's to write."""
        self._writing = threading.Lock()
        self._behind.forget_parent()


class _WriteBehind:
    """Counters and uses not yet in the file."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, CacheMetrics] = {}
        self._used: dict[str, None] = {}
        self._events = 0

    def forget_parent(self) -> None:
        """In a forked child: drop what the parent gathered, and a lock one of its threads may hold."""
        self._lock = threading.Lock()
        self._counts, self._used, self._events = {}, {}, 0

    def add(self, model: str, metrics: CacheMetrics) -> bool:
        """Add counters; return whether enough has gathered to be written."""
        with self._lock:
            self._counts.setdefault(model, CacheMetrics()).add(metrics)
            self._events += 1
            return self._events >= _FLUSH_EVERY

    def use(self, key: str) -> None:
        """Note that an entry was used, later than all others so far."""
        with self._lock:
            self._used.pop(key, None)
            self._used[key] = None

    def flush(self, snapshot: Snapshot) -> None:
        """Write what has gathered; what cannot be written is dropped, not kept for ever."""
        with self._lock:
            counts, used = self._counts, self._used
            self._counts, self._used, self._events = {}, {}, 0
        counts = {model: metrics for model, metrics in counts.items() if metrics}
        if counts or used:
            snapshot.record(counts, used)


def _finish(snapshot: Snapshot, behind: _WriteBehind) -> None:
    """Write what is pending when the backend is collected or the interpreter ends."""
    with contextlib.suppress(CacheError):
        behind.flush(snapshot)
    snapshot.close()


_live: weakref.WeakSet[InMemoryBackend] = weakref.WeakSet()


def _after_fork() -> None:
    for backend in _live:
        backend.forget_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _bound(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} is {value!r}", hint=f"{name} is a whole number of 1 or more")
    return value
