"""The cache itself: looks up, stores, counts, and forgives its store every failure.

This is the one place where a broken store becomes a miss or an unsaved answer, so that losing the
cache never loses the answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from types import TracebackType
from typing import Any, Literal, NamedTuple

from . import logs
from .backends.base import CacheBackend, LeaseStore, MetricsStore, SyncBackend
from .backends.digests import DigestMemo, DigestStore
from .entry import CacheEntry
from .errors import CacheError, ConfigError
from .key import generate_cache_key
from .metrics import CacheMetrics
from .model_name import short_model
from .policy import (
    DEFAULT_TTL_S,
    EXPIRED,
    FRESH,
    RENEW_EARLY,
    SPARE,
    STALE,
    Freshness,
    checked_freshness,
    checked_ttl,
    look,
)
from .response import GenerateResponse

__all__ = ["Found", "ResponseCache"]


class Found(NamedTuple):
    """An entry that may serve; `stale` if past its TTL, `renew` if it should be renewed behind."""

    entry: CacheEntry
    stale: bool
    renew: bool


class ResponseCache:
    """Answers by key, over any backend.

    `default_ttl` is in seconds, None = never expires; ValueError if it makes no sense. Failures of
    the store count as `errors`, are logged, reported once to `on_fault` as one line, and otherwise
    look like a miss; with `strict` they are raised instead. `digests` remembers model digests where
    the backend does not. `freshness` says how long past its TTL an answer may serve, and whether it
    is renewed early.
    """

    generate_cache_key = staticmethod(generate_cache_key)

    def __init__(
        self,
        backend: CacheBackend,
        default_ttl: float | None = DEFAULT_TTL_S,
        enable_metrics: bool = True,
        *,
        strict: bool = False,
        on_fault: Callable[[CacheError], None] | None = None,
        digests: DigestStore | None = None,
        freshness: Freshness | None = None,
        random: Callable[[], float] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.backend = backend
        self.default_ttl = checked_ttl(default_ttl)
        self.enable_metrics = enable_metrics
        self.strict = strict
        self.metrics = CacheMetrics()
        self.freshness = checked_freshness(*(freshness or ()))
        self._random = random
        self._on_fault = on_fault
        self._clock = clock
        self._sync = backend if isinstance(backend, SyncBackend) else None
        if digests is None:
            digests = backend if isinstance(backend, DigestStore) else DigestMemo()
        self._digests = digests
        # early renewal is drawn by lot, which the short way does not do
        self._short_way = None if self._sync is None or self.freshness.beta else self._sync.lookup
        #: The store through which processes agree who asks the model, None if there is none.
        self.leases: LeaseStore | None = None
        if isinstance(backend, LeaseStore) and backend.keeps_leases:
            self.leases = backend
        self._kept: MetricsStore | None = None
        if isinstance(backend, MetricsStore) and backend.keeps_metrics:
            self._kept = backend
        self._reading = _Forgiving(self, "cache_get_error")
        self._writing = _Forgiving(self, "cache_set_error")

    @property
    def needs_event_loop(self) -> bool:
        """Whether the backend can be asked from a coroutine only."""
        return self._sync is None

    # --- looking up

    async def get(self, key: str) -> GenerateResponse | None:
        """Return the answer under a key if it may serve, else None."""
        entry = self.serve(key)
        if entry is None:
            entry = await self.find(key)
        return None if entry is None else entry.response

    def serve(self, key: str, model: str = "") -> CacheEntry | None:
        """Return a fresh entry by the shortest way and count the hit; None counts nothing.

        None is no answer: the store may need an event loop, or the entry a decision.
        """
        lookup = self._short_way
        if lookup is None:
            return None
        try:
            entry = lookup(key)
        except Exception:  # noqa: BLE001 - the long way meets it again, and forgives it there
            return None
        if entry is None:
            return None
        now = self._clock()
        age = now - entry.created_at
        if age < 0 or (entry.ttl is not None and age >= entry.ttl):
            return None
        entry.access_count += 1
        entry.last_accessed = now
        if self._kept is not None:
            self._count_hit(entry, model, again=False, stale=False)
        elif self.enable_metrics:
            metrics = self.metrics
            metrics.hits += 1
            metrics.time_saved_s += entry.seconds
            metrics.tokens_saved += entry.tokens
        if logs.listening():
            logs.debug("cache_hit", key, age=round(age))
        return entry

    async def find(self, key: str, model: str = "", *, again: bool = False) -> CacheEntry | None:
        """Return the entry under a key if it may serve, else None; see `look_up`."""
        found = await self.look_up(key, model, again=again)
        return None if found is None else found.entry

    async def look_up(self, key: str, model: str = "", *, again: bool = False) -> Found | None:
        """Return the entry under a key if it may serve, else None; count a hit or a miss of `model`.

        `again` is for the second look of one request, already counted as a miss.
        """
        if self._sync is not None:
            return self.look_up_nowait(key, model, again=again)
        with self._reading:
            return self._judge(await self._raw(key), key, model, again)
        return None

    def look_up_nowait(self, key: str, model: str = "", *, again: bool = False) -> Found | None:
        """As `look_up`, without an event loop; TypeError for a backend that cannot."""
        if self._sync is None:
            raise TypeError(f"{type(self.backend).__name__} cannot answer without an event loop")
        with self._reading:
            return self._judge(self._sync.lookup(key), key, model, again)
        return None

    def find_nowait(self, key: str, model: str = "", *, again: bool = False) -> CacheEntry | None:
        """As `find`, without an event loop; TypeError for a backend that cannot."""
        found = self.look_up_nowait(key, model, again=again)
        return None if found is None else found.entry

    async def peek(self, key: str) -> CacheEntry | None:
        """Return what is stored under a key, past its TTL or not; nothing is counted."""
        with self._reading:
            return await self._raw(key)
        return None

    def is_renewed(self, entry: CacheEntry) -> bool:
        """Say whether an entry that was to be renewed no longer needs it; early renewal cannot tell."""
        return not self.freshness.beta and self.verdict(entry) == FRESH

    async def find_spare(self, key: str, model: str = "") -> CacheEntry | None:
        """Return an entry that may serve because the model cannot be reached, else None."""
        with self._reading:
            entry = await self._raw(key)
            if entry is not None and self.verdict(entry) != EXPIRED:
                self._count_hit(entry, model, again=True, stale=True)
                logs.debug("cache_stale", key, age=round(entry.age(self._clock())))
                return entry
        return None

    async def _raw(self, key: str) -> CacheEntry | None:
        """Return what is stored under a key, expired or not where the backend can say."""
        if self._sync is not None:
            return self._sync.lookup(key)
        look = getattr(self.backend, "look", self.backend.get)
        entry: CacheEntry | None = await look(key)
        return entry

    def verdict(self, entry: CacheEntry) -> str:
        """Return what an entry is good for now; one of policy.py's words."""
        if entry.ttl is None and not self.freshness.beta:
            return FRESH if not entry.comes_from_the_future(self._clock()) else EXPIRED
        chance = 1.0
        if self.freshness.beta:
            if self._random is None:
                self._random = import_module("random").random
            chance -= self._random()  # above 0, as a logarithm needs it
        return look(entry, self._clock(), self.freshness, chance)

    def _judge(self, entry: CacheEntry | None, key: str, model: str, again: bool) -> Found | None:
        """Decide whether an entry may serve, and count what was decided."""
        verdict = EXPIRED if entry is None else self.verdict(entry)
        if entry is None or verdict in (EXPIRED, SPARE):
            if again:
                return None
            if entry is not None:
                self.count(model, CacheMetrics(expirations=1))
                logs.debug("cache_expired", key, age=round(entry.age(self._clock())))
            self.count(model, CacheMetrics(misses=1))
            logs.debug("cache_miss", key)
            return None
        entry.touch()
        self._count_hit(entry, model, again=again, stale=verdict == STALE)
        if logs.listening():
            event = "cache_stale" if verdict == STALE else "cache_hit"
            logs.debug(event, key, age=round(entry.age(self._clock())))
        return Found(entry, verdict == STALE, verdict in (STALE, RENEW_EARLY))

    def _count_hit(self, entry: CacheEntry, model: str, *, again: bool, stale: bool) -> None:
        self.count(
            model,
            CacheMetrics(
                hits=1,
                misses=-1 if again else 0,
                time_saved_s=entry.seconds,
                tokens_saved=entry.response.tokens,
                stale=int(stale),
            ),
        )

    # --- storing

    async def set(self, key: str, response: GenerateResponse, ttl: float | None = None) -> None:
        """Store an answer for `ttl` seconds; None means the cache's `default_ttl`.

        Raises ConfigError (a ValueError) for a TTL that makes no sense.
        """
        await self.store(key, self.entry(response, ttl))

    def entry(
        self, response: GenerateResponse, ttl: float | None = None, **details: Any
    ) -> CacheEntry:
        """Return an entry made now; `details` are the other fields of CacheEntry."""
        kept_for = self.default_ttl if ttl is None else checked_ttl(ttl)
        now = self._clock()
        return CacheEntry(
            response,
            created_at=now,
            ttl=kept_for,
            last_accessed=now,
            grace=self.freshness.grace,
            **details,
        )

    async def store(self, key: str, entry: CacheEntry, model: str = "") -> bool:
        """Store an entry, counting it for `model`; return whether other processes will find it."""
        with self._writing:
            evicted = self.evictions()
            await self.backend.set(key, entry)
            self.count(model or short_model(entry.response.model), CacheMetrics(sets=1))
            logs.debug("cache_set", key, ttl=entry.ttl)
            if self.evictions() > evicted:
                logs.debug("cache_eviction", key, evicted=self.evictions() - evicted)
            if self.leases is None:
                return True
            held = await self._raw(key)  # one that is too large is not there
            return held is not None and held.created_at >= entry.created_at
        return False

    async def delete(self, key: str) -> bool:
        """Remove one answer; return whether there was one."""
        with self._writing:
            return await self.backend.delete(key)
        return False

    async def clear(self) -> None:
        """Remove every answer of this cache."""
        with self._writing:
            await self.backend.clear()

    async def size(self) -> int:
        """Return the number of entries held; 0 if the store cannot say."""
        with self._reading:
            return await self.backend.size()
        return 0

    async def close(self) -> None:
        """Write what is pending and close the backend."""
        with self._writing:
            await self.backend.close()

    def close_nowait(self) -> None:
        """As `close`, without an event loop; TypeError for a backend that cannot."""
        if self._sync is None:
            raise TypeError(f"{type(self.backend).__name__} cannot close without an event loop")
        with self._writing:
            self._sync.close_nowait()

    # --- the model behind a name

    def known_digest(self, host: str, model: str) -> str | None:
        """Return the last digest seen for a canonical model name at a host, None if unknown."""
        with self._reading:
            return self._digests.known_digest(host, model)
        return None

    def digest_age(self, host: str, model: str) -> float | None:
        """Return how many seconds ago a model's digest was last seen, None if it never was."""
        with self._reading:
            seen_at = self._digests.digest_seen_at(host, model)
            # a time still to come was noted under another clock: the further off, the less it says
            return None if seen_at is None else abs(self._clock() - seen_at)
        return None

    def remember_digest(self, host: str, model: str, digest: str) -> None:
        """Note the digest the server gave just now."""
        with self._writing:
            self._digests.remember_digest(host, model, digest, self._clock())

    # --- numbers

    def evictions(self) -> int:
        """Return how many entries this process dropped for room."""
        count: int = getattr(self.backend, "eviction_count", 0)
        return count

    def get_metrics(self) -> CacheMetrics:
        """Return the counters of this cache since it was built or reset."""
        self.metrics.evictions = self.evictions() - self._evictions_at_reset
        return self.metrics

    def reset_metrics(self) -> None:
        """Zero the counters of this cache; what a snapshot keeps is not touched."""
        self.metrics = CacheMetrics()
        self._evictions_at_reset = self.evictions()

    _evictions_at_reset = 0

    def count(self, model: str, counts: CacheMetrics) -> None:
        """Add to the counters of this cache, and to those its store keeps for `model`."""
        if self.enable_metrics:
            self.metrics.add(counts)
            if self._kept is not None:
                self._kept.count(model, counts)

    def _fault(self, event: str, exc: Exception) -> None:
        logs.error(event, exc)
        if self.enable_metrics:
            self.metrics.errors += 1
        if self._kept is not None:
            # straight into the counters: the store that failed may work again by the next write
            self._kept.count("", CacheMetrics(errors=1))
        if self._on_fault is not None:
            self._on_fault(
                exc if isinstance(exc, CacheError) else CacheError(f"{type(exc).__name__}: {exc}")
            )


class _Forgiving:
    """Turns a failure of the store into nothing found or nothing stored; one per kind of operation.

    A class and not a generator: it is entered on every hit.
    """

    __slots__ = ("_cache", "_event")

    def __init__(self, cache: ResponseCache, event: str) -> None:
        self._cache = cache
        self._event = event

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> Literal[False] | bool:
        # Exception, whatever its class: a store and its client library raise RuntimeError,
        # RecursionError and UnicodeError too. Ctrl-C and cancellation are not Exceptions.
        if not isinstance(exc, Exception) or isinstance(exc, ConfigError) or self._cache.strict:
            return False
        self._cache._fault(self._event, exc)
        return True
