"""Whose turn it is to ask the model, among processes that share a store.

A lease only saves work: the store stays right without it, and a lease that is broken, lost or held
by the dead costs at most a second generation. The holder changes its mark once a second; who sees
the same mark for LEASE_S seconds of its own clock takes over. No two clocks are ever compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

from .backends.base import LeaseStore
from .entry import CacheEntry
from .errors import CacheError

__all__ = ["LEASE_S", "Turn", "take_turn"]

LEASE_S = 3.0
BEAT_S = 1.0
_POLL_S = (0.01, 0.02, 0.05, 0.1)

#: What a holder leaves behind when nobody should wait for the next: the model failed, or its answer
#: cannot be stored.
GAVE_UP = "gave up"

Look = Callable[[], Awaitable[CacheEntry | None]]


class Turn:
    """The right to ask: `entry` if another's answer came meanwhile, then nothing is to be asked.

    `stored` says how it ended: True if the answer is stored, None if the asker left (the next in
    line takes over), False if waiting for another attempt makes no sense.
    """

    def __init__(self) -> None:
        self.entry: CacheEntry | None = None
        self.stored: bool | None = None


@contextlib.asynccontextmanager
async def take_turn(
    store: LeaseStore | None,
    key: str,
    look: Look,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Turn]:
    """Wait until it is this process's turn for a key, or until `look` finds another's answer.

    Without a store, or with one that fails, it is always this process's turn. Waits for a live
    holder without limit: the holder itself gives up when the model does.
    """
    turn = Turn()
    if store is None:
        yield turn
        return
    lease = _Lease(store, key)
    try:
        with contextlib.suppress(CacheError):
            turn.entry = await _wait(lease, look, clock)
        if turn.entry is None:
            lease.keep()
        yield turn
    finally:
        await lease.end(GAVE_UP if turn.stored is False else "")


async def _wait(lease: _Lease, look: Look, clock: Callable[[], float]) -> CacheEntry | None:
    """Return when the lease is ours or waiting makes no sense; or the entry somebody else stored."""
    mark: str | None = None
    since = clock()
    waits = 0
    while True:
        stale = mark if mark is not None and clock() - since >= LEASE_S else None
        found = await lease.take(stale)
        if found is None:
            # whoever held it may have stored the answer between our look and our turn
            return await look()
        if found.endswith(GAVE_UP):
            if mark is not None:
                return None  # what failed for the holder is tried by each for itself, at once
            since -= LEASE_S  # left over from before this question: to be taken over
            mark = found
            continue
        if found != mark:
            mark, since = found, clock()
        await asyncio.sleep(_POLL_S[min(waits, len(_POLL_S) - 1)])
        waits += 1
        entry = await look()
        if entry is not None:
            return entry


class _Lease:
    """This process's claim to one key."""

    def __init__(self, store: LeaseStore, key: str) -> None:
        self._store = store
        self._key = key
        self._token = uuid.uuid4().hex
        self._held = False
        self._beating: asyncio.Task[None] | None = None

    async def take(self, stale: str | None) -> str | None:
        """Take the lease if it is free or its mark is `stale`; else return its mark."""
        taking = asyncio.ensure_future(self._store.lease(self._key, self._token, stale))
        try:
            found = await asyncio.shield(taking)
        except asyncio.CancelledError:
            # the store may be about to give it to us, and others would wait for nobody
            with contextlib.suppress(CacheError):
                self._held = await taking is None
            raise
        self._held = found is None
        return found

    def keep(self) -> None:
        """Change the mark once a second for as long as the work goes on."""
        if self._held:
            self._beating = asyncio.create_task(self._beat())

    async def end(self, note: str) -> None:
        """Give the lease back if it is ours."""
        if self._beating is not None:
            self._beating.cancel()
        if self._held:
            with contextlib.suppress(CacheError):
                await asyncio.shield(self._store.release(self._key, self._token, note))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            with contextlib.suppress(CacheError):
                await self._store.beat(self._key, self._token)
