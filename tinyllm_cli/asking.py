"""What the leader of a flight does: get the answer by the cheapest right way, and store it.

The order: the model's digest, and a second look-up if it was news; our turn among processes, or the
answer another one stored meanwhile; generation; the digest again; store.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from . import logs
from .cache import ResponseCache
from .coherence import ModelDigests
from .entry import CacheEntry, Chunk
from .errors import OllamaStatusError, OllamaTimeoutError, OllamaUnavailableError
from .flight import Flight
from .key import canonical_body
from .lease import Turn, take_turn
from .metrics import CacheMetrics
from .ollama.chunks import assemble
from .policy import why_not_stored
from .replay import measure, replay
from .reply import Errand, Question, Upstream
from .response import GenerateResponse

__all__ = ["Leader"]


class Leader:
    """Leads the flights of one client. `cloud` stores answers of cloud models too."""

    def __init__(
        self,
        cache: ResponseCache,
        digests: ModelDigests,
        question_with: Callable[[Question, str], Question],
        *,
        cloud: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cache = cache
        self._digests = digests
        self._question_with = question_with
        self._cloud = cloud
        self._clock = clock

    async def lead(
        self, flight: Flight, question: Question, errand: Errand, produce: Upstream
    ) -> AsyncGenerator[GenerateResponse, None]:
        """Yield the chunks of an answer that was looked up in vain, and see it stored."""
        question, entry = await self._with_digest(question, errand)
        flight.key, flight.digest = question.key, question.digest
        if entry is not None:
            flight.entry, flight.outcome = entry, "hit"
        else:
            generated = self._in_turn(flight, question, errand, produce)
            async with aclosing(generated) as chunks:
                async for chunk in chunks:
                    yield chunk
        if flight.entry is not None:
            flight.response = flight.entry.response
            for chunk in replay(flight.entry, question.request.model):
                yield chunk

    async def _with_digest(
        self, question: Question, errand: Errand
    ) -> tuple[Question, CacheEntry | None]:
        """Ask the server for the model's digest; if that changes the key, look once more."""
        digest = await self._digests.ask(question.request.model)
        if digest is None and question.digest is None:
            # a busy server told us nothing, but another process may have been told meanwhile
            digest = self._digests.known(question.request.model)
        if digest is None or digest == question.digest:
            return question, None
        question = self._question_with(question, digest)
        return question, await self._look(question, errand)

    async def _look(self, question: Question, errand: Errand) -> CacheEntry | None:
        """Return a stored answer that makes the generation needless, None if there is none."""
        if errand.is_for_asker:
            return await self._cache.find(question.key, question.model, again=True)
        if errand.refresh or errand.renews is None:
            return None
        entry = await self._cache.peek(question.key)
        return entry if entry is not None and entry.created_at > errand.renews else None

    async def _in_turn(
        self, flight: Flight, question: Question, errand: Errand, produce: Upstream
    ) -> AsyncGenerator[GenerateResponse, None]:
        """Yield a generation's chunks when it is our turn; or set `flight.entry` to another's answer."""
        leases = None if errand.refresh else self._cache.leases
        async with take_turn(leases, question.key, lambda: self._look(question, errand)) as turn:
            if turn.entry is not None:
                flight.entry, flight.outcome = turn.entry, "coalesced"
                if errand.is_for_asker:
                    self._cache.count(question.model, CacheMetrics(coalesced=1))
                    logs.debug("cache_coalesced", question.key)
                return
            try:
                generated = self._generate(flight, question, errand.ttl, produce, turn)
                async with aclosing(generated) as chunks:
                    async for chunk in chunks:
                        yield chunk
            except Exception as exc:
                turn.stored = False
                if flight.chunks or not errand.is_for_asker or not _is_out_of_reach(exc):
                    raise
                flight.entry = await self._cache.find_spare(question.key, question.model)
                if flight.entry is None:
                    raise
                flight.outcome = "stale"

    async def _generate(
        self,
        flight: Flight,
        question: Question,
        ttl: float | None,
        produce: Upstream,
        turn: Turn,
    ) -> AsyncGenerator[GenerateResponse, None]:
        started = self._clock()
        pieces: list[tuple[GenerateResponse, float]] = []
        async for chunk in produce():
            pieces.append((chunk, self._clock() - started))
            yield chunk
        if not pieces:
            return
        flight.seconds = pieces[-1][1]
        if len(pieces) == 1:
            flight.response, chunks = pieces[0][0], None
        else:
            flight.response, chunks = assemble([chunk for chunk, _ in pieces]), measure(pieces)
        turn.stored = await self._store(question, flight.response, ttl, flight.seconds, chunks)

    async def _store(
        self,
        question: Question,
        response: GenerateResponse,
        ttl: float | None,
        seconds: float,
        chunks: list[Chunk] | None,
    ) -> bool:
        """Store a complete answer of the model the key names; return whether that was done."""
        reason = why_not_stored(response, cloud=self._cloud)
        if reason is None and await self._digests.ask(question.request.model) != question.digest:
            reason = "the model changed while it answered"
        if reason is not None:
            logs.debug("cache_skip", question.key, reason=reason)
            return False
        entry = self._cache.entry(
            response,
            ttl,
            seconds=seconds,
            chunks=chunks,
            request=canonical_body(question.body),
        )
        return await self._cache.store(question.key, entry, question.model)


def _is_out_of_reach(exc: Exception) -> bool:
    """Say whether the model cannot answer at all now, as RFC 5861 means an error."""
    if isinstance(exc, OllamaStatusError):
        return exc.status_code >= 500
    return isinstance(exc, (OllamaUnavailableError, OllamaTimeoutError))
