"""Redis for the command line: one short-lived process, no event loop, no client library to load."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

from ..entry import CacheEntry
from ..errors import BackendUnavailableError, CacheError
from ..metrics import CacheMetrics
from . import redis_faults as faults
from . import redis_lease as leases
from .breaker import Breaker
from .inventory import Clearance, Filter, StoreStats
from .redis_socket import RedisSocket
from .redis_topology import Exchange, Replies, Way, open_topology
from .redis_url import Endpoint, RedisAddress
from .redis_vault import Vault
from .redis_walk import Progress, RedisWalk
from .redis_work import RedisWork
from .resp import Command, Reply

if TYPE_CHECKING:
    from .redis_check import Examination

__all__ = [
    "CONNECT_SHARE",
    "DEFAULT_TIMEOUT_S",
    "WALK_TIMEOUT_S",
    "BlockingRedisBackend",
    "waiting_time",
]

#: The whole of one operation, connecting included.
DEFAULT_TIMEOUT_S = 0.5
#: The part of it that connecting may take.
CONNECT_SHARE = 0.6
#: For each step of a walk through the key space, once the server has answered: somebody asked for
#: that and waits.
WALK_TIMEOUT_S = 5.0
_REPLENISHED = 0.1
_GIVING_UP_S = 0.02

T = TypeVar("T")


def waiting_time(timeout: float) -> float:
    """Return how long to wait so that giving up, which takes a moment too, is over by `timeout`."""
    return timeout - min(_GIVING_UP_S, timeout / 10)


class BlockingRedisBackend:
    """The entries of a namespace in Redis, without an event loop; a SyncBackend.

    `timeout` seconds are all that look-ups together may cost before an answer, and all that writes
    may cost after it, but for what time passing in between gives back. `clock` is wall-clock
    seconds, `monotonic` measures. Safe from any thread.
    """

    def __init__(
        self,
        address: RedisAddress,
        vault: Vault,
        *,
        max_entry_bytes: int,
        timeout: float = DEFAULT_TIMEOUT_S,
        grace: float = 0.0,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.address = address
        self._work = RedisWork(
            vault,
            open_topology(address),
            address,
            max_entry_bytes=max_entry_bytes,
            grace=grace,
            clock=clock,
        )
        self._walks = RedisWalk(self._work)
        self._max_bulk = max_entry_bytes
        self._timeout = waiting_time(timeout)
        self._monotonic = monotonic
        self._reads = _Allowance(self._timeout, monotonic)
        self._writes = _Allowance(self._timeout, monotonic)
        self._sockets: dict[Endpoint, RedisSocket] = {}
        self._breakers: dict[Endpoint, Breaker] = {}
        self._lock = Lock()

    # --- at once

    def lookup(self, key: str) -> CacheEntry | None:
        """Return the entry under a key, past its TTL or not, None if there is none."""
        return self._run(self._work.look(key), self._reads)

    def get_nowait(self, key: str) -> CacheEntry | None:
        """Return the entry under a key, None if there is none that is fresh."""
        return self._run(self._work.get(key), self._reads)

    def set_nowait(self, key: str, entry: CacheEntry) -> None:
        """Store an entry; the server drops it when its TTL has run out by the server's own clock."""
        self._run(self._work.set(key, entry), self._writes)

    def delete_nowait(self, key: str) -> bool:
        """Remove an entry; return whether there was one."""
        return self._run(self._work.delete(key), self._writes)

    def clear_nowait(
        self, which: Filter, dry_run: bool = False, progress: Progress | None = None
    ) -> Clearance:
        """Remove the entries a filter means, or with `dry_run` only count them."""
        return self._run(self._walks.clear(which, dry_run, progress))

    def size_nowait(self) -> int:
        """Return the number of entries, by walking the key space."""
        return self._run(self._walks.size())

    def stats_nowait(self) -> StoreStats:
        """Return the team's counters, the number of entries, and what the server itself evicted."""
        return self._run(self._walks.stats())

    def examine_nowait(self) -> Examination:
        """Return what the server is and what its user may not do; nothing is changed there."""
        from .redis_check import examine

        return self._run(examine(self._work))

    def reset_counters_nowait(self) -> None:
        """Zero the team's counters."""
        self._run(self._work.reset_counters(), self._writes)

    def close_nowait(self) -> None:
        """Send the counters in one write and close the connections."""
        try:
            # the replies are waited for: a proxy in between may drop what its client does not await
            if self._work.counters.any():
                self._run(self._work.flush(), self._writes)
        finally:
            self.hang_up()

    def hang_up(self) -> None:
        """Close the connections; what is not sent stays unsent."""
        for connection in self._sockets.values():
            connection.close()

    def settle_nowait(self, found: Mapping[str, CacheEntry]) -> dict[str, CacheEntry]:
        """Send the counters, and return entries found before as the server dates them, in one write."""
        return self._run(self._work.settle(found), self._writes)

    def connected(self) -> bool:
        """Say whether the server has answered, so that sending a little more costs next to nothing."""
        return any(breaker.closed for breaker in self._breakers.values())

    # --- the same for coroutines: in a thread, so that a signal is not kept waiting

    async def get(self, key: str) -> CacheEntry | None:
        """As `get_nowait`."""
        return await _in_thread(lambda: self.get_nowait(key))

    async def set(self, key: str, entry: CacheEntry) -> None:
        """As `set_nowait`."""
        await _in_thread(lambda: self.set_nowait(key, entry))

    async def delete(self, key: str) -> bool:
        """As `delete_nowait`."""
        return await _in_thread(lambda: self.delete_nowait(key))

    async def clear(self) -> None:
        """Remove every entry of the namespace."""
        await _in_thread(lambda: self.clear_nowait(Filter()))

    async def clear_matching(self, which: Filter, *, dry_run: bool = False) -> Clearance:
        """As `clear_nowait`."""
        return await _in_thread(lambda: self.clear_nowait(which, dry_run))

    async def size(self) -> int:
        """As `size_nowait`."""
        return await _in_thread(self.size_nowait)

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
    def keeps_metrics(self) -> bool:
        """Counters are kept for everyone who shares the namespace."""
        return True

    def count(self, model: str, metrics: CacheMetrics) -> None:
        """Add counters of one model; they are sent by `close` and before `stats`."""
        self._work.counters.add(model, metrics)

    @property
    def keeps_leases(self) -> bool:
        """Leases are seen by everyone who shares the namespace."""
        return True

    async def lease(self, key: str, token: str, stale: str | None) -> str | None:
        """Take the lease of a key if it is free or its mark is `stale`; else return its mark."""
        return await _in_thread(
            lambda: self._run(leases.take(self._work, key, token, stale), self._reads)
        )

    async def beat(self, key: str, token: str) -> None:
        """Change the mark of a lease that is still `token`'s."""
        await _in_thread(lambda: self._run(leases.beat(self._work, key, token), self._writes))

    async def release(self, key: str, token: str, note: str) -> None:
        """End a lease that is still `token`'s; with a note, leave a mark that ends with it."""
        await _in_thread(
            lambda: self._run(leases.release(self._work, key, token, note), self._writes)
        )

    # --- inside

    def _run(self, way: Way[T], allowance: _Allowance | None = None) -> T:
        """Hold a conversation; within an allowance as a whole, without one within a limit per step."""
        with self._lock:
            started = self._monotonic()
            seconds = None if allowance is None else allowance.left()
            try:
                groups = next(way)
                while True:
                    deadline = None
                    if seconds is not None:
                        deadline = time.monotonic() + seconds - (self._monotonic() - started)
                    try:
                        replies = self._exchange(groups, deadline)
                    except CacheError as exc:
                        groups = way.throw(exc)
                    else:
                        groups = way.send(replies)
            except StopIteration as done:
                result: T = done.value
                return result
            finally:
                if allowance is not None:
                    allowance.spend(self._monotonic() - started)

    def _exchange(self, groups: Exchange, deadline: float | None) -> Replies:
        return [self._ask(endpoint, commands, deadline) for endpoint, commands in groups]

    def _ask(
        self, endpoint: Endpoint, commands: Sequence[Command], deadline: float | None
    ) -> list[Reply]:
        breaker = self._breakers.get(endpoint)
        if breaker is None:
            breaker = self._breakers[endpoint] = Breaker(clock=self._monotonic)
            self._sockets[endpoint] = RedisSocket(
                endpoint,
                self.address,
                max_bulk=self._max_bulk,
                connect_timeout=self._timeout * CONNECT_SHARE,
            )
        if not breaker.allows():
            raise faults.resting(endpoint)
        connection = self._sockets[endpoint]
        if deadline is None:
            patience = max(self._timeout, WALK_TIMEOUT_S) if connection.answered else self._timeout
            deadline = time.monotonic() + patience
        try:
            replies = connection.exchange(commands, deadline)
        except BackendUnavailableError:
            breaker.failed()
            raise
        if faults.is_resting(replies):
            breaker.failed()
        else:
            breaker.worked()
        return replies


class _Allowance:
    """Seconds that may still be spent; a tenth of the time that passes comes back, up to the limit."""

    def __init__(self, limit: float, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._clock = clock
        self._amount = limit
        self._at = clock()

    def left(self) -> float:
        """Return how many seconds may be spent now."""
        now = self._clock()
        self._amount = min(self._limit, self._amount + _REPLENISHED * (now - self._at))
        self._at = now
        return self._amount

    def spend(self, seconds: float) -> None:
        """Note what was spent."""
        self._amount = max(0.0, self._amount - seconds)
        self._at = self._clock()


async def _in_thread(call: Callable[[], T]) -> T:
    import asyncio

    return await asyncio.to_thread(call)
