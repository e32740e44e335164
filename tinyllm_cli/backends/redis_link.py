"""One connection to one Redis server for all tasks of an event loop.

What the tasks ask within one turn of the loop leaves in one write; replies are matched in order. A
task that is cancelled leaves its place in the queue behind, and the reply that belongs there is
thrown away, so nobody is ever given another's. A reply that is late takes the connection with it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import CacheError
from . import redis_faults as faults
from .redis_url import Endpoint
from .resp import NOT_YET, Command, Parser, ProtocolError, Push, Reply, ReplyError, pack

__all__ = ["RedisLink"]

_SLACK = 1 << 20
#: A loop that was held up this long has not had the chance to read what may have arrived in time.
_STALL_S = 0.1


class RedisLink(asyncio.Protocol):
    """A connection whose replies come within `timeout` seconds of the asking, or not at all.

    `timeout` may be changed while nobody waits.
    `on_push` is given the unasked messages of RESP3. `on_lost` is told once why the connection
    ended, None if `close` did it or nobody was waiting.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        timeout: float,
        max_bulk: int,
        on_push: Callable[[Any], None],
        on_lost: Callable[[RedisLink, CacheError | None], None],
    ) -> None:
        self.endpoint = endpoint
        self.alive = False
        self._loop = asyncio.get_running_loop()
        self.timeout = timeout
        self._max_unparsed = max_bulk + _SLACK
        self._unparsed = 0
        self._on_push = on_push
        self._on_lost = on_lost
        self._reader, self._push_type = _open_reader(max_bulk)
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._slots: deque[asyncio.Future[Reply] | _Batch] = deque()
        # how many had asked by when: replies to the first `asked` are due `timeout` after `at`
        self._marks: deque[tuple[int, float]] = deque()
        self._asked = 0
        self._answered = 0
        self._watching = False
        self._grace_given = False
        self._gone = faults.unreachable(endpoint, ConnectionResetError("it was closed"))

    # --- asking

    def ask(self, packed: bytes) -> asyncio.Future[Reply]:
        """Send one command given as bytes; the future gets its reply or a CacheError."""
        future: asyncio.Future[Reply] = self._loop.create_future()
        self._enqueue((future,), packed)
        return future

    def ask_all(self, commands: Sequence[Command]) -> asyncio.Future[list[Reply]]:
        """Send commands one after the other; the future gets all replies or a CacheError."""
        batch = _Batch(len(commands), self._loop.create_future())
        self._enqueue([batch] * len(commands), b"".join(map(pack, commands)))
        return batch.future

    def close(self) -> None:
        """Close the connection; whoever still waits is told that it is gone."""
        self._end(None)

    # --- what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.alive = True

    def data_received(self, data: bytes) -> None:
        reader, slots = self._reader, self._slots
        self._unparsed += len(data)
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not NOT_YET:
                self._unparsed = 0
                if isinstance(reply, self._push_type):
                    self._on_push(reply)
                    continue
                slot = slots.popleft()
                self._answered += 1
                if isinstance(slot, _Batch):
                    slot.take(reply)
                elif not slot.done():
                    slot.set_result(reply)
            if self._unparsed > self._max_unparsed:
                raise ProtocolError("a reply is larger than what was asked for")
        except ProtocolError as exc:
            self._end(faults.unreachable(self.endpoint, exc))
        except IndexError:  # nobody is in the queue
            unasked = ProtocolError("it sends replies nobody asked for")
            self._end(faults.unreachable(self.endpoint, unasked))

    def connection_lost(self, exc: BaseException | None) -> None:
        lost = exc or ConnectionResetError("it closed the connection")
        self._end(faults.unreachable(self.endpoint, lost) if self._slots else None)

    # --- inside

    def _enqueue(self, slots: Sequence[asyncio.Future[Reply] | _Batch], packed: bytes) -> None:
        if not self.alive:
            raise _same(self._gone)
        idle = not self._slots
        self._slots.extend(slots)
        self._asked += len(slots)
        self._out.append(packed)
        if idle:
            self._write()  # nobody to travel with
        elif len(self._out) == 1:
            self._loop.call_soon(self._write)

    def _write(self) -> None:
        out, self._out = self._out, []
        if self._transport is None or not self.alive:
            return  # whoever asked has been told
        now = self._loop.time()
        self._marks.append((self._asked, now))
        if not self._watching:
            self._watching = True
            self._loop.call_at(now + self.timeout, self._watch, now + self.timeout)
        self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def _watch(self, due: float) -> None:
        """Look for replies that are late; one timer serves all who wait."""
        self._watching = False
        marks = self._marks
        while marks and marks[0][0] <= self._answered:
            marks.popleft()
        if not marks or not self.alive:
            return
        now = self._loop.time()
        late_at = marks[0][1] + self.timeout
        if now >= late_at:
            if now - due < _STALL_S or self._grace_given:
                self._end(faults.not_in_time(self.endpoint))
                return
            self._grace_given = True  # we were late ourselves: read what is there, then judge
            late_at = now + self.timeout / 2
        else:
            self._grace_given = False
        self._watching = True
        self._loop.call_at(late_at, self._watch, late_at)

    def _end(self, why: CacheError | None) -> None:
        if not self.alive:
            return
        self.alive = False
        if self._transport is not None:
            self._transport.abort()
        slots, self._slots = self._slots, deque()
        self._gone = why or self._gone
        for future in {id(slot): slot for slot in slots}.values():
            waiter = future.future if isinstance(future, _Batch) else future
            if not waiter.done():
                waiter.set_exception(_same(self._gone))
        self._on_lost(self, why)


class _Batch:
    """A place in the queue for several replies that belong together."""

    __slots__ = ("_missing", "_replies", "future")

    def __init__(self, missing: int, future: asyncio.Future[list[Reply]]) -> None:
        self.future = future
        self._missing = missing
        self._replies: list[Reply] = []

    def take(self, reply: Reply) -> None:
        """Add the next reply; the last one completes the batch."""
        self._replies.append(reply)
        self._missing -= 1
        if not self._missing and not self.future.done():
            self.future.set_result(self._replies)


def _same(error: CacheError) -> CacheError:
    """Return an error like another: raising one twice would add up its tracebacks."""
    return type(error)(str(error), hint=error.hint)


def _open_reader(max_bulk: int) -> tuple[Any, type]:
    """Return hiredis' parser where it is installed, else ours, and its type of unasked messages."""
    try:
        import hiredis
        from hiredis.hiredis import PushNotification
    except ImportError:
        return Parser(max_bulk), Push
    reader = hiredis.Reader(
        protocolError=ProtocolError, replyError=ReplyError, notEnoughData=NOT_YET
    )
    return reader, PushNotification
