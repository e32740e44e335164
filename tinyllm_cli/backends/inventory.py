"""What a store holds, in numbers, and which part of it a clear means."""

from __future__ import annotations

from typing import NamedTuple

from ..entry import CacheEntry
from ..metrics import CacheMetrics
from ..model_name import short_model

__all__ = ["Clearance", "Filter", "ModelTotals", "StoreStats"]


class Filter(NamedTuple):
    """Which entries to remove; the conditions given must all hold, none given means every entry.

    `model` is a short canonical name, `created_before` and `expired_at` wall-clock seconds,
    `key_prefix` the first hex digits of keys.
    """

    model: str | None = None
    created_before: float | None = None
    expired_at: float | None = None
    key_prefix: str | None = None

    def matches_all(self) -> bool:
        """Say whether no condition is given."""
        return self == Filter()

    def matches(self, key: str, entry: CacheEntry) -> bool:
        """Say whether an entry is meant."""
        return (
            (self.model is None or short_model(entry.response.model) == self.model)
            and (self.created_before is None or entry.created_at <= self.created_before)
            and (self.expired_at is None or entry.is_expired(self.expired_at))
            and (self.key_prefix is None or key.startswith(self.key_prefix))
        )


class Clearance(NamedTuple):
    """What a clear removed, or would remove: number of entries and their bytes."""

    entries: int
    bytes: int


class ModelTotals(NamedTuple):
    """What a store knows of one model; the model "" holds what belongs to none."""

    model: str
    entries: int
    bytes: int
    metrics: CacheMetrics


class StoreStats(NamedTuple):
    """A whole store in numbers; `oldest` and `newest` are wall-clock seconds, None if not known.

    `estimated` says that the entries are scaled up from a sample. `server_evictions` is what a
    shared server dropped for room by `server_policy`, all its users' keys together. `behind` is
    the shared tier of a store that has two.
    """

    models: tuple[ModelTotals, ...]
    oldest: float | None = None
    newest: float | None = None
    estimated: bool = False
    server_evictions: int | None = None
    server_policy: str | None = None
    behind: StoreStats | None = None

    @property
    def entries(self) -> int:
        return sum(row.entries for row in self.models)

    @property
    def bytes(self) -> int:
        return sum(row.bytes for row in self.models)

    @property
    def metrics(self) -> CacheMetrics:
        """The counters of all models together."""
        total = CacheMetrics()
        for row in self.models:
            total.add(row.metrics)
        return total
