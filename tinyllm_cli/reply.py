"""How one request is being answered: from where, since when, and the chunks as they come."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from .entry import CacheEntry
from .model_name import short_model
from .ollama.chunks import assemble
from .replay import pauses, replay
from .request import GenerateRequest
from .response import GenerateResponse

if TYPE_CHECKING:
    from .flight import Flight

__all__ = ["Errand", "Question", "Reply", "Upstream", "spelled", "text_chunks", "whole_chunk"]

#: Asks the model anew each time it is called, and yields the chunks of its answer.
Upstream = Callable[[], AsyncGenerator[GenerateResponse, None]]


class Question(NamedTuple):
    """A request on its way through the cache: its key, and the model digest that is in the key."""

    request: GenerateRequest
    body: dict[str, Any]
    model: str
    key: str
    digest: str | None
    sample: int = 1


class Errand(NamedTuple):
    """What a generation is for.

    `refresh` wants an answer made now, whatever is stored. `renews` is when the entry was made that
    is to be replaced behind an answer that was served; any newer one will do. `ttl` is for the entry
    to be stored, None = the cache's default.
    """

    refresh: bool = False
    renews: float | None = None
    ttl: float | None = None

    @property
    def is_for_asker(self) -> bool:
        """Say whether somebody waits who would take a stored answer."""
        return not self.refresh and self.renews is None


class Reply:
    """One request's way to its answer; read it once, with `chunks` or with `response`.

    `question` is None where the cache has no part in it. `outcome` is final when the answer has
    been read: hit, miss, stale, refreshed, coalesced or bypassed. `renew` says that its asker is to
    have the stored answer renewed behind this one.
    """

    def __init__(
        self,
        request: GenerateRequest,
        question: Question | None,
        outcome: str,
        *,
        entry: CacheEntry | None = None,
        flight: Flight | None = None,
        direct: Upstream | None = None,
        renew: bool = False,
    ) -> None:
        self.request = request
        self.question = question
        self.renew = renew
        self._outcome = outcome
        self._entry = entry
        self._flight = flight
        self._direct = direct

    @property
    def outcome(self) -> str:
        """How the answer came about."""
        led = None if self._flight is None else self._flight.outcome
        return led or self._outcome

    @property
    def key(self) -> str | None:
        """The key the answer is stored under, None where the cache has no part in it."""
        if self._flight is not None and self._flight.key is not None:
            return self._flight.key
        return None if self.question is None else self.question.key

    @property
    def entry(self) -> CacheEntry | None:
        """The stored entry the answer came from, None if the model was asked."""
        return self._entry if self._flight is None else self._flight.entry

    @property
    def seconds(self) -> float:
        """What the model took for the answer, now or when it was stored; 0.0 if nobody measured."""
        if self.entry is not None:
            return self.entry.seconds
        return 0.0 if self._flight is None else self._flight.seconds

    async def chunks(
        self, replay_speed: float | None = None
    ) -> AsyncGenerator[GenerateResponse, None]:
        """Yield the answer's chunks as they come, or as they came; the last is `done`.

        A stored answer comes at once, or with `replay_speed` at the pace it was made, 2.0 being
        twice as fast.
        """
        if self._entry is not None:
            pace = iter(()) if replay_speed is None else pauses(self._entry, replay_speed)
            for chunk in replay(self._entry, self.request.model):
                for pause in itertools.islice(pace, 1):
                    await import_module("asyncio").sleep(pause)
                yield chunk
            return
        if self._flight is not None:
            source = self._flight.stream()
        else:
            assert self._direct is not None
            source = self._direct()
        async with aclosing(source) as chunks:
            async for chunk in chunks:
                yield self._spelled(chunk)

    async def response(self) -> GenerateResponse:
        """Return the whole answer."""
        if self._entry is not None:
            return self._spelled(self._entry.response)
        if self._flight is not None:
            return self._spelled(await self._flight.whole())
        pieces = [chunk async for chunk in self.chunks()]
        return self._spelled(pieces[0] if len(pieces) == 1 else assemble(pieces))

    def _spelled(self, response: GenerateResponse) -> GenerateResponse:
        return spelled(response, self.request.model)


def spelled(response: GenerateResponse, model: str) -> GenerateResponse:
    """Return an answer under the model's name as its asker spelled it."""
    if response.model == model or short_model(response.model) != short_model(model):
        return response
    return response.replace(model=model)


async def whole_chunk(
    answer: Awaitable[GenerateResponse],
) -> AsyncGenerator[GenerateResponse, None]:
    """Yield the answer of a client that gives it whole."""
    yield await answer


async def text_chunks(
    texts: AsyncIterator[str], model: str
) -> AsyncGenerator[GenerateResponse, None]:
    """Yield the answer of a client that gives text alone; it cannot say that it is complete."""
    async for text in texts:
        yield GenerateResponse(model=model, created_at="", response=text, done=False)
