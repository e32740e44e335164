"""One generation for any number of askers: tasks of this process share a flight.

The generation runs in a task of its own, so no asker's cancellation reaches the others. Everybody
reads the same list of chunks from its start; who comes late gets what there is at once. When the
last asker has left, an unfinished generation is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from types import TracebackType

from .entry import CacheEntry
from .errors import IncompleteAnswerError
from .response import GenerateResponse

__all__ = ["Flight", "Flights"]

#: What a flight runs: it yields the chunks and ends when the answer is stored.
Lead = Callable[["Flight"], AsyncGenerator[GenerateResponse, None]]


class Flight:
    """One generation on its way, and everybody who waits for it.

    The leader sets `response` to the whole answer, `outcome` if it did not come from the model after
    all, `entry` to where it came from, `key` to where it is stored, `digest` to the model content it
    is of, and `seconds` to what the model took.
    """

    def __init__(self, lead: Lead) -> None:
        self.chunks: list[GenerateResponse] = []
        self.response: GenerateResponse | None = None
        self.outcome: str | None = None
        self.entry: CacheEntry | None = None
        self.key: str | None = None
        self.digest: str | None = None
        self.seconds = 0.0
        self._error: Exception | None = None
        self._trace: TracebackType | None = None
        self._answered = False
        self._askers = 0
        self._progress = asyncio.Event()
        self._ended = asyncio.Event()
        self.task = asyncio.create_task(self._run(lead))
        # a task that is cancelled before its first step never runs at all
        self.task.add_done_callback(lambda _: self._end(_given_up()))

    async def _run(self, lead: Lead) -> None:
        try:
            async for chunk in lead(self):
                self.chunks.append(chunk)
                self._answered = self._answered or chunk.done
                self._wake()
        except Exception as exc:  # noqa: BLE001 - handed on: every asker raises it
            self._end(exc)
        except BaseException:
            self._end(_given_up())
            raise
        else:
            self._end(None)

    def _end(self, error: Exception | None) -> None:
        if not self._ended.is_set():
            self._error = error
            self._trace = None if error is None else error.__traceback__
            self._ended.set()
            self._wake()

    def _wake(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()

    async def stream(self) -> AsyncGenerator[GenerateResponse, None]:
        """Yield every chunk from the first, as they come; end when the answer is stored.

        Raises what the generation raised.
        """
        self._askers += 1
        given = 0
        try:
            while True:
                while given < len(self.chunks):
                    given += 1
                    yield self.chunks[given - 1]
                if self._ended.is_set():
                    self._raise()
                    return
                await self._progress.wait()
        finally:
            self._leave()

    async def whole(self) -> GenerateResponse:
        """Return the whole answer once it is stored; raises what the generation raised."""
        self._askers += 1
        try:
            await self._ended.wait()
            self._raise()
        finally:
            self._leave()
        if self.response is None:
            raise IncompleteAnswerError("the answer has no beginning and no end")
        return self.response

    def _raise(self) -> None:
        if self._error is not None:
            # each asker would add its own frames to the one before
            raise self._error.with_traceback(self._trace)

    def _leave(self) -> None:
        self._askers -= 1
        if self._askers == 0:
            self.give_up()

    def may_answer(self, digest: str | None) -> bool:
        """Say whether a newcomer who knows the model by `digest` may wait for this answer too."""
        if self._ended.is_set() or self.task.cancelling():
            return False  # who asks after an answer, or an error, has come asks again
        return digest is None or self.digest in (None, digest)

    def give_up(self) -> None:
        """End an unfinished generation; its askers get IncompleteAnswerError."""
        # a complete answer is stored even if nobody waits any more: somebody's GPU paid for it;
        # and a second cancellation would break into what the first one cleans up
        if not self._answered and not self.task.cancelling():
            self.task.cancel()


def _given_up() -> IncompleteAnswerError:
    return IncompleteAnswerError("the question was given up before the answer ended")


class Flights:
    """The flights of one client, by event loop and question."""

    def __init__(self) -> None:
        self._open: dict[tuple[asyncio.AbstractEventLoop, str], Flight] = {}
        self._flying: set[Flight] = set()  # those that nobody may join any more among them

    def join(self, question: str, digest: str | None, lead: Lead) -> tuple[Flight, bool]:
        """Return the flight that answers a question and whether this call started it.

        `question` is a key without the model's digest, which a flight may learn on its way;
        `digest` is what this asker knows of it.
        """
        place = (asyncio.get_running_loop(), question)
        flight = self._open.get(place)
        if flight is not None and flight.may_answer(digest):
            return flight, False
        self._forget_dead_loops()
        flight = self._open[place] = Flight(lead)
        self._flying.add(flight)
        flight.task.add_done_callback(lambda _: self._land(place, flight))
        return flight, True

    def _land(self, place: tuple[asyncio.AbstractEventLoop, str], flight: Flight) -> None:
        self._flying.discard(flight)
        if self._open.get(place) is flight:
            del self._open[place]

    def _forget_dead_loops(self) -> None:
        for place, flight in list(self._open.items()):
            if place[0].is_closed():
                self._land(place, flight)

    async def close(self) -> None:
        """Give up what is unfinished and wait until complete answers are stored."""
        loop = asyncio.get_running_loop()
        flights = [flight for flight in list(self._flying) if flight.task.get_loop() is loop]
        for flight in flights:
            flight.give_up()
        await asyncio.gather(*(flight.task for flight in flights), return_exceptions=True)
