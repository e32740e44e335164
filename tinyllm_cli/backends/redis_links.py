"""The connections of one event loop, one per server: opened when needed, shared, given up together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import BackendUnavailableError, CacheError
from . import redis_faults as faults
from .breaker import Breaker
from .redis_link import RedisLink
from .redis_login import SocketAddress, find_addresses, keep_alive, login, tls_context
from .redis_topology import Exchange, Replies
from .redis_url import Endpoint, RedisAddress
from .resp import Command, Reply, ReplyError

if TYPE_CHECKING:
    import ssl

__all__ = ["Greeting", "RedisLinks"]

#: Commands for the beginning of every connection to a server of entries; may fail without harm.
Greeting = Callable[[], Sequence[Command]]


class RedisLinks:
    """Connections to the servers behind an address, for the running event loop only.

    `timeout` seconds are for one reply; a server that has answered gets `patience` seconds for the
    next, where given. `breakers` are kept by the caller, for they outlive a loop. Raises CacheError.
    """

    def __init__(
        self,
        address: RedisAddress,
        breakers: dict[Endpoint, Breaker],
        *,
        timeout: float,
        connect_timeout: float,
        max_bulk: int,
        patience: float | None = None,
        new_breaker: Callable[[], Breaker] = Breaker,
        greeting: Greeting | None = None,
        on_push: Callable[[Any], None] = lambda message: None,
        on_change: Callable[[Endpoint, bool], None] = lambda endpoint, tracked: None,
    ) -> None:
        self._address = address
        self._breakers = breakers
        self._new_breaker = new_breaker
        self._timeout = timeout
        self._patience = timeout if patience is None else patience
        self._connect_timeout = connect_timeout
        self._max_bulk = max_bulk
        self._greeting = greeting
        self._on_push = on_push
        self._on_change = on_change
        self._tls: ssl.SSLContext | None = None
        self._links: dict[Endpoint, RedisLink] = {}
        self._opening: dict[Endpoint, asyncio.Task[RedisLink]] = {}

    def ready(self, endpoint: Endpoint) -> RedisLink | None:
        """Return an open connection to a server that works, None if it takes more than that."""
        link = self._links.get(endpoint)
        if link is None or not link.alive or not self._breakers[endpoint].closed:
            return None
        return link

    async def exchange(self, groups: Exchange) -> Replies:
        """Send what is meant for each server and return the replies, in the same shape."""
        if len(groups) == 1:
            return [await self._ask(*groups[0])]
        asking = [asyncio.ensure_future(self._ask(*group)) for group in groups]
        try:
            return list(await asyncio.gather(*asking))
        except BaseException:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            raise

    def note(self, endpoint: Endpoint, error: CacheError | ReplyError) -> None:
        """Leave a server alone for a while if that is what an error calls for."""
        resting = isinstance(error, ReplyError) and faults.is_resting([error])
        if resting or isinstance(error, BackendUnavailableError):
            self._breaker(endpoint).failed()

    async def close(self) -> None:
        """Close every connection."""
        for task in list(self._opening.values()):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, CacheError):
                await task
        links, self._links = self._links, {}
        for link in links.values():
            link.close()
        if links:
            await asyncio.sleep(0)  # let the loop close the sockets

    async def lifetime(self, finish: Callable[[], Any]) -> AsyncGenerator[None, None]:
        """Call `finish` when the event loop shuts its asynchronous generators down.

        That is the one hook a loop has for its end. Started and then left alone, this generator
        sees to it that a program that forgets `close` still sends its counters and leaves no socket.
        """
        try:
            yield
        finally:
            await finish()

    # --- inside

    def _breaker(self, endpoint: Endpoint) -> Breaker:
        breaker = self._breakers.get(endpoint)
        if breaker is None:
            breaker = self._breakers[endpoint] = self._new_breaker()
        return breaker

    async def _ask(self, endpoint: Endpoint, commands: Sequence[Command]) -> list[Reply]:
        breaker = self._breaker(endpoint)
        if not breaker.allows():
            raise faults.resting(endpoint)
        link = self._links.get(endpoint)
        if link is None or not link.alive:
            link = await self._open(endpoint)
        replies = await link.ask_all(commands)
        link.timeout = self._patience
        if faults.is_resting(replies):
            breaker.failed()
        elif link.alive:
            breaker.worked()
        return replies

    async def _open(self, endpoint: Endpoint) -> RedisLink:
        """Return a new connection, the same one to all who want it at this moment."""
        task = self._opening.get(endpoint)
        if task is None:
            task = asyncio.create_task(self._connect_in_time(endpoint))
            self._opening[endpoint] = task
            task.add_done_callback(lambda done: self._opened(endpoint, done))
        try:
            return await asyncio.shield(task)
        except CacheError as exc:
            raise type(exc)(str(exc), hint=exc.hint) from exc

    def _opened(self, endpoint: Endpoint, task: asyncio.Task[RedisLink]) -> None:
        if self._opening.get(endpoint) is task:
            del self._opening[endpoint]
        if task.cancelled():
            return  # by `close`
        if task.exception() is not None:
            self._breaker(endpoint).failed()
            return
        self._links[endpoint] = task.result()

    async def _connect_in_time(self, endpoint: Endpoint) -> RedisLink:
        try:
            async with asyncio.timeout(self._connect_timeout):
                return await self._connect(endpoint)
        except (OSError, TimeoutError) as exc:
            raise faults.unreachable(endpoint, exc) from exc

    async def _connect(self, endpoint: Endpoint) -> RedisLink:
        link = RedisLink(
            endpoint,
            timeout=self._timeout,
            max_bulk=self._max_bulk,
            on_push=self._on_push,
            on_lost=self._lost,
        )
        trouble: OSError = OSError("the host name has no address")
        for family, where in await self._addresses(endpoint):
            try:
                await self._attach(link, endpoint, family, where)
                break
            except OSError as exc:
                trouble = exc
        else:
            raise trouble
        try:
            await self._greet(link)
        except BaseException:
            link.close()
            raise
        return link

    async def _attach(self, link: RedisLink, endpoint: Endpoint, family: int, where: Any) -> None:
        loop = asyncio.get_running_loop()
        tls: ssl.SSLContext | None = None
        if self._address.tls is not None:
            tls = self._tls = self._tls or tls_context(self._address.tls)
        host = None if tls is None else endpoint.host
        if not endpoint.port:
            await loop.create_unix_connection(lambda: link, where, ssl=tls, server_hostname=host)
            return
        transport, _ = await loop.create_connection(
            lambda: link, where[0], where[1], family=family, ssl=tls, server_hostname=host
        )
        keep_alive(transport.get_extra_info("socket"))

    async def _addresses(self, endpoint: Endpoint) -> list[SocketAddress]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[SocketAddress]] = loop.create_future()

        def tell(found: list[SocketAddress] | OSError) -> None:
            if answer.done():
                return
            if isinstance(found, OSError):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        def from_thread(found: list[SocketAddress] | OSError) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(tell, found)

        find_addresses(endpoint, from_thread)
        return await answer

    async def _greet(self, link: RedisLink) -> None:
        commands = login(self._address, link.endpoint)
        for reply in await link.ask_all(commands) if commands else ():
            if isinstance(reply, ReplyError):
                raise faults.refused_login(link.endpoint, reply)
        is_sentinel = self._address.kind == "sentinel" and link.endpoint in self._address.endpoints
        if self._greeting is None or is_sentinel:
            return
        # the answers say whether the server has what is asked for; without it the rest still works
        replies = await link.ask_all(self._greeting())
        refused = any(isinstance(reply, ReplyError) for reply in replies)
        self._on_change(link.endpoint, not refused)

    def _lost(self, link: RedisLink, why: CacheError | None) -> None:
        if self._links.get(link.endpoint) is link:
            del self._links[link.endpoint]
            if self._greeting is not None:
                self._on_change(link.endpoint, False)
        if why is not None:
            self._breaker(link.endpoint).failed()
