"""The Redis backend for programs with an event loop: entries shared by all who can reach the server."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

from ..entry import CacheEntry
from ..errors import CacheError, ConfigError
from ..metrics import CacheMetrics
from . import redis_faults as faults
from . import redis_lease as leases
from .breaker import Breaker
from .inventory import Clearance, Filter, StoreStats
from .memory import DEFAULT_MAX_ENTRY_BYTES
from .redis_blocking import CONNECT_SHARE, DEFAULT_TIMEOUT_S, WALK_TIMEOUT_S, waiting_time
from .redis_links import RedisLinks
from .redis_recent import Recent
from .redis_topology import Way, open_topology
from .redis_tracking import Tracking
from .redis_url import DEFAULT_PORT, Endpoint, RedisAddress, parse_redis_url
from .redis_vault import DEFAULT_PREFIX, Vault
from .redis_walk import Progress, RedisWalk
from .redis_work import RedisWork
from .resp import ReplyError

__all__ = ["RedisBackend"]

T = TypeVar("T")


class RedisBackend:
    """Entries in a Redis-compatible server, named `<key_prefix>v1:<namespace>:<digits>`.

    `url` (see redis_url.py) replaces host, port, db and password. Every operation ends within
    `timeout` seconds or raises a CacheError; a server that failed is left alone for two seconds,
    then tried by one call. With `secret` names and entries are worth nothing to who lacks it.
    `keep_requests` True stores the question with its answer. `grace` is for how many seconds past
    their TTL the team keeps entries. `clock` is wall-clock seconds, `monotonic` measures.

    One object serves any number of tasks, and one event loop after another. Raises ConfigError for
    an address or secret that makes no sense; nothing is connected before it is used.
    """

    def __init__(
        self,
        host: str = "localhost",
        port: int = DEFAULT_PORT,
        db: int = 0,
        password: str | None = None,
        key_prefix: str = DEFAULT_PREFIX,
        *,
        url: str | None = None,
        username: str | None = None,
        namespace: str = "",
        secret: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        connect_timeout: float | None = None,
        max_entry_bytes: int = DEFAULT_MAX_ENTRY_BYTES,
        keep_requests: bool = False,
        grace: float = 0.0,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if url is not None:
            self.address = parse_redis_url(url)
        else:
            self.address = RedisAddress("single", (_endpoint(host, port),), db, username, password)
        self.key_prefix = key_prefix
        self._waiting = waiting_time(timeout)
        self._connect_timeout = self._waiting * CONNECT_SHARE
        if connect_timeout is not None:
            self._connect_timeout = min(connect_timeout, self._waiting)
        self._max_bulk = max_entry_bytes
        self._clock = clock
        self._monotonic = monotonic
        vault = Vault(key_prefix, namespace, secret, keep_requests=keep_requests)
        self._work = RedisWork(
            vault,
            open_topology(self.address),
            self.address,
            max_entry_bytes=max_entry_bytes,
            grace=grace,
            clock=clock,
        )
        self._walks = RedisWalk(self._work)
        self._breakers: dict[Endpoint, Breaker] = {}
        self._links: dict[asyncio.AbstractEventLoop, RedisLinks] = {}
        self._lifetimes: dict[RedisLinks, AsyncGenerator[None, None]] = {}
        self._recent = Recent()
        self._tracking: Tracking | None = None
        self._sending: set[asyncio.Task[None]] = set()

    # --- the backend protocol

    async def get(self, key: str) -> CacheEntry | None:
        """Return the entry under a key, None if there is none that is fresh."""
        entry = await self.look(key)
        return None if entry is None or entry.is_expired(self._clock()) else entry

    async def look(self, key: str) -> CacheEntry | None:
        """Return the entry under a key, past its TTL or not; what does not check is removed."""
        name = self._work.vault.name(key)
        endpoint = self._work.topology.home(name)
        links = self._links.get(asyncio.get_running_loop())
        link = None if endpoint is None or links is None else links.ready(endpoint)
        if link is None or endpoint is None or links is None:
            return await self._run(self._work.look(key))
        reply = await link.ask(self._work.packed_look(name))
        if not reply:
            return None
        entry = self._recent.find(name, reply)
        if entry is None:
            entry = self._work.opened(key, reply)
            if entry is not None:
                self._recent.keep(name, reply, entry)
        if entry is not None and not entry.is_expired(self._clock()):
            return entry
        if isinstance(reply, ReplyError):
            if self._work.topology.is_redirection(reply):
                return await self._run(self._work.look(key))
            links.note(endpoint, reply)
        return await self._run(self._work.judge(key, reply))

    async def set(self, key: str, entry: CacheEntry) -> None:
        """Store an entry; the server drops it when its TTL has run out by the server's own clock."""
        await self._run(self._work.set(key, entry))

    async def delete(self, key: str) -> bool:
        """Remove an entry; return whether there was one."""
        return await self._run(self._work.delete(key))

    async def clear(self) -> None:
        """Remove every entry of this namespace and nothing else, page by page."""
        await self.clear_matching(Filter())

    async def clear_matching(
        self, which: Filter, *, dry_run: bool = False, progress: Progress | None = None
    ) -> Clearance:
        """Remove the entries a filter means, or with `dry_run` only count them."""
        return await self._walk(self._walks.clear(which, dry_run, progress))

    async def size(self) -> int:
        """Return the number of entries of this namespace, by walking the key space."""
        return await self._walk(self._walks.size())

    async def close(self) -> None:
        """Send what is pending and close the connections of the running event loop."""
        try:
            await self._send_counters()
        finally:
            links = self._links.pop(asyncio.get_running_loop(), None)
            if links is not None:
                await links.close()
                await self._lifetimes.pop(links).aclose()

    # --- counters

    @property
    def keeps_metrics(self) -> bool:
        """Counters are kept for everyone who shares this namespace."""
        return True

    def count(self, model: str, metrics: CacheMetrics) -> None:
        """Add counters of one model; sent now and then, by `close`, and before `stats`."""
        if not self._work.counters.add(model, metrics):
            return
        with contextlib.suppress(RuntimeError):  # no event loop: they go with the next that runs
            task = asyncio.get_running_loop().create_task(self._send_counters_quietly())
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def stats(self) -> StoreStats:
        """Return the team's counters, the number of entries, and what the server itself evicted."""
        return await self._walk(self._walks.stats())

    async def reset_counters(self) -> None:
        """Zero the team's counters."""
        await self._run(self._work.reset_counters())

    # --- leases

    @property
    def keeps_leases(self) -> bool:
        """Leases are seen by everyone who shares this namespace."""
        return True

    async def lease(self, key: str, token: str, stale: str | None) -> str | None:
        """Take the lease of a key if it is free or its mark is `stale`; else return its mark."""
        return await self._run(leases.take(self._work, key, token, stale))

    async def beat(self, key: str, token: str) -> None:
        """Change the mark of a lease that is still `token`'s."""
        await self._run(leases.beat(self._work, key, token))

    async def release(self, key: str, token: str, note: str) -> None:
        """End a lease that is still `token`'s; with a note, leave a mark that ends with it."""
        await self._run(leases.release(self._work, key, token, note))

    # --- invalidation

    def track(self, on_invalid: Callable[[bytes | None], None]) -> Tracking:
        """Have the server say which names others change; to be called before the first use.

        `on_invalid` is given a name as `name` gives it, None for all names.
        """
        self._tracking = Tracking(self._work.vault, on_invalid)
        return self._tracking

    def name(self, key: str) -> bytes:
        """Return what the entry under a key is called in the server."""
        return self._work.vault.name(key)

    # --- inside

    async def _run(self, way: Way[T]) -> T:
        """Hold a conversation within the time one operation has."""
        try:
            # a socket's timeout starts again with every byte; this bounds the whole
            async with asyncio.timeout(self._waiting):
                return await _converse(way, await self._open_links())
        except TimeoutError as exc:
            raise faults.not_in_time(self.address) from exc

    async def _walk(self, way: Way[T]) -> T:
        """Hold a long conversation on connections of its own, so that no look-up waits behind it.

        Nor is one refused because of it: a service may end the connection over INFO and work well.
        """
        links = self._new_links({}, patience=max(self._waiting, WALK_TIMEOUT_S))
        try:
            return await _converse(way, links)
        finally:
            await links.close()

    async def _open_links(self) -> RedisLinks:
        loop = asyncio.get_running_loop()
        links = self._links.get(loop)
        if links is None:
            for ended in [one for one in self._links if one.is_closed()]:
                self._lifetimes.pop(self._links.pop(ended), None)
            links = self._links[loop] = self._new_links(self._breakers, self._tracking)
            lifetime = self._lifetimes[links] = links.lifetime(self._finish)
            await anext(lifetime)
        return links

    def _new_links(
        self,
        breakers: dict[Endpoint, Breaker],
        tracking: Tracking | None = None,
        *,
        patience: float | None = None,
    ) -> RedisLinks:
        options: dict[str, Any] = {}
        if tracking is not None:
            options = {
                "greeting": tracking.greeting,
                "on_push": tracking.on_push,
                "on_change": tracking.on_change,
            }
        return RedisLinks(
            self.address,
            breakers,
            timeout=self._waiting,
            connect_timeout=self._connect_timeout,
            max_bulk=self._max_bulk,
            patience=patience,
            new_breaker=lambda: Breaker(clock=self._monotonic),
            **options,
        )

    async def _finish(self) -> None:
        """See the running event loop off if nobody called `close` in it."""
        links = self._links.get(asyncio.get_running_loop())
        if links is not None:
            await self._send_counters_quietly()
            del self._links[asyncio.get_running_loop()]
            del self._lifetimes[links]
            await links.close()

    async def _send_counters(self) -> None:
        if self._work.counters.any():
            await self._run(self._work.flush())

    async def _send_counters_quietly(self) -> None:
        with contextlib.suppress(CacheError):  # they are kept for the next time
            await self._send_counters()


async def _converse(way: Way[T], links: RedisLinks) -> T:
    try:
        groups = next(way)
        while True:
            try:
                replies = await links.exchange(groups)
            except CacheError as exc:
                groups = way.throw(exc)
            else:
                groups = way.send(replies)
    except StopIteration as done:
        result: T = done.value
        return result


def _endpoint(host: str, port: int) -> Endpoint:
    if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
        raise ConfigError(f"the Redis port is {port!r}", hint="a port is a number from 1 to 65535")
    if not host:
        raise ConfigError("the Redis host is empty")
    return Endpoint(host, port)
