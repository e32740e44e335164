"""What a store must be able to do, and what some can do beyond that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from ..entry import CacheEntry
from ..metrics import CacheMetrics
from .inventory import Clearance, Filter, StoreStats

__all__ = ["CacheBackend", "LeaseStore", "MetricsStore", "Notice", "SyncBackend"]

#: Called with one line for the user when a store had to help itself (moved a damaged file aside).
Notice = Callable[[str], None]


class CacheBackend(Protocol):
    """Where entries live: six coroutines. Failures are CacheError; anything else is a bug."""

    async def get(self, key: str) -> CacheEntry | None:
        """Return the entry under a key, None if there is none that may serve."""

    async def set(self, key: str, entry: CacheEntry) -> None:
        """Store an entry, replacing what was there."""

    async def delete(self, key: str) -> bool:
        """Remove an entry; return whether there was one."""

    async def clear(self) -> None:
        """Remove every entry of this store and nothing else."""

    async def size(self) -> int:
        """Return the number of entries held."""

    async def close(self) -> None:
        """Write what is pending and let go of files and connections; may be called twice."""


@runtime_checkable
class SyncBackend(Protocol):
    """A store that answers without waiting, so that a hit needs no event loop."""

    def lookup(self, key: str) -> CacheEntry | None:
        """Return what is stored under a key, fresh or expired, None if nothing is."""

    def get_nowait(self, key: str) -> CacheEntry | None:
        """As `get`, at once."""

    def set_nowait(self, key: str, entry: CacheEntry) -> None:
        """As `set`, at once."""

    def close_nowait(self) -> None:
        """As `close`, at once."""


@runtime_checkable
class MetricsStore(Protocol):
    """A store that keeps counters beyond the life of a process and can tell what it holds."""

    @property
    def keeps_metrics(self) -> bool:
        """Whether what is counted here outlives the process."""

    def count(self, model: str, metrics: CacheMetrics) -> None:
        """Add counters of one model; they reach the store by `close` at the latest. Never raises."""

    async def stats(self) -> StoreStats:
        """Return what the store holds and what was counted, by every process so far."""

    async def reset_counters(self) -> None:
        """Zero the kept counters; entries stay."""

    async def clear_matching(self, which: Filter, *, dry_run: bool = False) -> Clearance:
        """Remove the entries a filter means, or with `dry_run` only count them."""


@runtime_checkable
class LeaseStore(Protocol):
    """A store through which processes agree who asks the model; see lease.py for the rules."""

    @property
    def keeps_leases(self) -> bool:
        """Whether other processes see the leases of this one."""

    async def lease(self, key: str, token: str, stale: str | None) -> str | None:
        """Take the lease of a key if it is free or its mark is `stale`; else return its mark.

        None means it is `token`'s now. A mark is text that changes with every beat of its holder.
        """

    async def beat(self, key: str, token: str) -> None:
        """Change the mark of a lease that is still `token`'s."""

    async def release(self, key: str, token: str, note: str) -> None:
        """End a lease that is still `token`'s; with a note, leave a mark that ends with it."""
