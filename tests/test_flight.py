"""Is one question asked once, however many tasks ask it, and does nobody's leaving hurt the others?"""

from __future__ import annotations

import asyncio
import random
import time
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.fake_ollama import FakeOllama, Fault
from tests.running import MODEL, client_of, in_loop, off_loop, text_of
from tests.samples import answer
from tinyllm_cli.backends.memory import InMemoryBackend
from tinyllm_cli.cache import ResponseCache
from tinyllm_cli.client import CachedOllamaClient
from tinyllm_cli.errors import IncompleteAnswerError, OllamaStatusError
from tinyllm_cli.request import GenerateRequest
from tinyllm_cli.response import GenerateResponse

ANSWER = "one two three four"
WORDS = ["one", " two", " three", " four"]


async def closed_by_client(ollama: FakeOllama, number: int = 0) -> None:
    """Wait until the server has seen the client of its nth generation leave."""
    await off_loop(
        ollama.wait_until, lambda server: server.requests("/api/generate")[number].client_closed
    )


async def settled(*tasks: asyncio.Task[Any]) -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)


# --- one generation


@in_loop
async def test_a_client_without_chunks_is_asked_once_too() -> None:
    class Slow:
        asked = 0
        go = asyncio.Event()

        async def generate(self, **given: Any) -> GenerateResponse:
            self.asked += 1
            await self.go.wait()
            return answer()

        async def close(self) -> None:
            pass

    slow = Slow()
    async with CachedOllamaClient(slow, ResponseCache(InMemoryBackend())) as client:
        tasks = [asyncio.create_task(client.generate("Why?", MODEL)) for _ in range(100)]
        await asyncio.sleep(0)
        slow.go.set()
        assert await asyncio.gather(*tasks) == [answer()] * 100
    assert slow.asked == 1


@in_loop
async def test_different_questions_wait_for_nobody(ollama: FakeOllama) -> None:
    barrier = ollama.hold()
    async with client_of(ollama) as client:
        tasks = [asyncio.create_task(client.generate(f"Question {n}")) for n in range(20)]
        tasks += [asyncio.create_task(client.generate("Question 0", sample=n)) for n in (2, 3)]
        await off_loop(barrier.wait_for, 22)
        barrier.release()
        assert len({one.response for one in await asyncio.gather(*tasks)}) == 22


@in_loop
async def test_each_gets_the_answer_under_the_name_it_asked_for(ollama: FakeOllama) -> None:
    names = ("llama3.2", "LLAMA3.2:latest", "library/llama3.2")

    async def chunks(model: str) -> set[str]:
        reply = await client.ask(GenerateRequest(model, "Why?"))
        return {chunk.model async for chunk in reply.chunks()}

    async with client_of(ollama) as client:
        wholes, streams = await asyncio.gather(
            asyncio.gather(*(client.generate("Why?", model) for model in names)),
            asyncio.gather(*(chunks(model) for model in names)),
        )
    assert [one.model for one in wholes] == list(names)
    assert list(streams) == [{name} for name in names]
    assert ollama.generations == 1


@in_loop
async def test_refreshes_at_once_are_one(ollama: FakeOllama) -> None:
    ollama.drift = True
    async with client_of(ollama) as client:
        old = await client.generate("Why?")
        new = await asyncio.gather(
            *(client.generate("Why?", force_refresh=True) for _ in range(20))
        )
        assert len({one.response for one in new}) == 1
        assert new[0].response != old.response
        assert (await client.generate("Why?")).response == new[0].response
        stats = client.get_stats()["cache"]
        assert (stats["refreshed"], stats["coalesced"]) == (1, 19)
    assert ollama.generations == 2


@in_loop
async def test_who_asks_when_an_answer_is_there_does_not_get_it_as_a_refresh(
    ollama: FakeOllama,
) -> None:
    """Each asks in the very turn of the loop in which the one before had its answer."""
    ollama.drift = True
    async with client_of(ollama) as client:
        answers = [(await client.generate("Why?", force_refresh=True)).response for _ in range(10)]
        assert len(set(answers)) == ollama.generations == 10


@in_loop
async def test_a_newcomer_who_knows_of_a_newer_model_does_not_get_the_olds_answer(
    ollama: FakeOllama,
) -> None:
    barrier = ollama.hold_after(1, times=1)
    async with client_of(ollama) as client:
        of_old = asyncio.create_task(client.generate("Why?", temperature=0))
        await off_loop(barrier.wait_for, 1)
        ollama.registry["llama3.2:latest"] = "w2"
        await client.pull_model(MODEL)
        of_new = await client.generate("Why?", temperature=0)
        barrier.release()
        assert (await of_old).response != of_new.response
        assert (await client.generate("Why?", temperature=0)) == of_new
        assert await client.cache.size() == 1
    assert ollama.generations == 2


# --- leaving


@in_loop
async def test_the_first_asker_leaves_and_the_others_get_their_answer(ollama: FakeOllama) -> None:
    ollama.answer = lambda body: ANSWER
    barrier = ollama.hold_after(2)
    async with client_of(ollama) as client:
        leader, *others = [asyncio.create_task(client.generate("Count.")) for _ in range(5)]
        await off_loop(barrier.wait_for, 1)
        leader.cancel()
        (gone,) = await settled(leader)
        assert isinstance(gone, asyncio.CancelledError)
        barrier.release()
        assert [one.response for one in await asyncio.gather(*others)] == [ANSWER] * 4
        assert (await client.generate("Count.")).response == ANSWER
    assert ollama.generations == 1


@in_loop
async def test_one_follower_leaves_and_takes_nobody_along(ollama: FakeOllama) -> None:
    barrier = ollama.hold_after(2)
    async with client_of(ollama) as client:
        tasks = [asyncio.create_task(client.generate("Count.")) for _ in range(5)]
        await off_loop(barrier.wait_for, 1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await client.generate("Count.")
        tasks[3].cancel()
        barrier.release()
        ends = await settled(*tasks)
        assert [type(end) for end in ends] == [
            *[GenerateResponse] * 3,
            asyncio.CancelledError,
            GenerateResponse,
        ]
    assert ollama.generations == 1


@in_loop
async def test_who_comes_while_a_question_is_being_given_up_asks_it_anew(
    ollama: FakeOllama,
) -> None:
    ollama.answer = lambda body: ANSWER
    barrier = ollama.hold_after(2, times=1)
    async with client_of(ollama) as client:
        first = asyncio.create_task(client.generate("Count."))
        await off_loop(barrier.wait_for, 1)
        first.cancel()
        await settled(first)  # the generation it led is only being cancelled now
        assert (await client.generate("Count.")).response == ANSWER
        await closed_by_client(ollama)
        barrier.release()
    assert ollama.generations == 2


@in_loop
async def test_closing_gives_up_what_is_unfinished_and_says_so(ollama: FakeOllama) -> None:
    barrier = ollama.hold_after(2)
    client = client_of(ollama)
    waiting = [asyncio.create_task(client.generate("Count.")) for _ in range(3)]
    waiting += [asyncio.create_task(client.generate("Count to ten.")) for _ in range(3)]
    await off_loop(barrier.wait_for, 2)
    started = time.monotonic()
    await client.close()
    assert time.monotonic() - started < 1
    assert [type(end) for end in await settled(*waiting)] == [IncompleteAnswerError] * 6
    await closed_by_client(ollama, 0)
    await closed_by_client(ollama, 1)
    assert await client.cache.size() == 0


@in_loop
async def test_closing_also_waits_for_what_nobody_may_join_any_more(ollama: FakeOllama) -> None:
    """A cancelled generation is still cleaning up when another has taken its place."""
    barrier = ollama.hold_after(2)
    client = client_of(ollama)
    first = asyncio.create_task(client.generate("Count."))
    await off_loop(barrier.wait_for, 1)
    first.cancel()
    await settled(first)
    second = asyncio.create_task(client.generate("Count."))
    await asyncio.sleep(0)
    await client.close()
    assert {task for task in asyncio.all_tasks() if not task.done()} <= {
        asyncio.current_task(),
        second,
    }
    await settled(second)


# --- failing


@in_loop
async def test_a_shared_error_does_not_grow_with_those_who_raise_it(ollama: FakeOllama) -> None:
    ollama.inject(Fault.status(500, "boom"))
    async with client_of(ollama) as client:
        ends = await settled(*(asyncio.create_task(client.generate("Count.")) for _ in range(200)))
    assert {type(end) for end in ends} == {OllamaStatusError}
    assert max(len(traceback.extract_tb(end.__traceback__)) for end in ends) < 40


@in_loop
async def test_tokens_that_came_before_the_error_are_seen_by_all(ollama: FakeOllama) -> None:
    ollama.answer = lambda body: ANSWER
    barrier = ollama.hold_after(2)
    ollama.inject(Fault.cut(after=3))
    async with client_of(ollama) as client:

        async def read() -> list[str]:
            seen: list[str] = []
            with pytest.raises(IncompleteAnswerError):
                async for piece in client.generate_stream("Count."):
                    seen.append(piece)
            return seen

        readers = [asyncio.create_task(read()) for _ in range(5)]
        await off_loop(barrier.wait_for, 1)
        readers.append(asyncio.create_task(read()))
        barrier.release()
        assert await asyncio.gather(*readers) == [WORDS[:3]] * 6


# --- leaving at any moment, over and over


async def _leave_at_random(
    client: CachedOllamaClient, chance: random.Random, rounds: int, size: int
) -> tuple[int, list[tuple[str, str]]]:
    """Ask in crowds and cancel each asker after a random number of turns of the loop.

    Return how many were cancelled and the question and answer of all others.
    """

    async def whole(prompt: str, refresh: bool) -> tuple[str, str]:
        return prompt, (await client.generate(prompt, force_refresh=refresh)).response

    async def stream(prompt: str, refresh: bool) -> tuple[str, str]:
        return prompt, await text_of(client.generate_stream(prompt, force_refresh=refresh))

    forms: list[Callable[[str, bool], Coroutine[Any, Any, tuple[str, str]]]] = [whole, stream]
    cancelled = 0
    given: list[tuple[str, str]] = []
    for _ in range(rounds):
        tasks: list[asyncio.Task[tuple[str, str]]] = []
        everybody = chance.random() < 0.5
        for _ in range(size):
            prompt = f"Question {chance.randrange(4)}"
            work = chance.choice(forms)(prompt, chance.random() < 0.3)
            tasks.append(asyncio.create_task(work))
            if chance.random() < 0.2:
                await asyncio.sleep(0)
        doomed = tasks if everybody else tasks[: -size // 4]
        for task in chance.sample(doomed, len(doomed)):
            for _ in range(chance.randrange(chance.choice((1, 4, 40)))):
                await asyncio.sleep(0)
            task.cancel()
        async with asyncio.timeout(60):
            for end in await settled(*tasks):
                if isinstance(end, tuple):
                    given.append(end)
                else:
                    assert isinstance(end, asyncio.CancelledError), repr(end)
                    cancelled += 1
    return cancelled, given


@pytest.mark.parametrize(
    ("backend", "cancellations"),
    [
        ("memory", 300),
        ("snapshot", 200),
        pytest.param("memory", 10_000, marks=pytest.mark.slow),
        pytest.param("snapshot", 10_000, marks=pytest.mark.slow),
    ],
)
def test_random_cancellations_hurt_nobody(
    ollama: FakeOllama, backend: str, cancellations: int, tmp_path: Path
) -> None:
    """No hang, no wrong answer, nothing left running and nothing partial stored."""
    chance = random.Random(f"{backend} {cancellations}")
    ollama.answer = lambda body: f"The whole answer to {body['prompt']}, from first to last word."
    snapshot = tmp_path / "cache" / "snapshot.sqlite3" if backend == "snapshot" else None

    @in_loop
    async def run() -> None:
        done = 0
        while done < cancellations:
            # a fresh store now and then, so that not everything is a hit
            backend = InMemoryBackend(snapshot=snapshot)
            async with client_of(ollama, backend=backend) as client:
                cancelled, given = await _leave_at_random(client, chance, rounds=5, size=20)
                done += cancelled
                for prompt, text in given:
                    assert text == f"The whole answer to {prompt}, from first to last word."
                for _, entry in backend.entries():
                    assert entry.request is not None
                    prompt = entry.request["prompt"]
                    assert entry.response.response == (
                        f"The whole answer to {prompt}, from first to last word."
                    )
                    assert entry.response.done
                await client.cache.clear()

    run()
    # the server has seen each of them out as well
    ollama.wait_until(lambda server: all(one.finished or one.client_closed for one in server.log))


@in_loop
async def test_the_cancelled_ask_again_without_waiting(ollama: FakeOllama, tmp_path: Path) -> None:
    """A lease that was just being taken when its asker left must not be waited for."""
    backend = InMemoryBackend(snapshot=tmp_path / "cache" / "snapshot.sqlite3")
    ollama.answer = lambda body: ANSWER
    async with client_of(ollama, backend=backend) as client:
        await client.generate("Count.")
        for turns in range(60):
            asker = asyncio.create_task(client.generate(f"Question {turns}"))
            for _ in range(turns):
                await asyncio.sleep(0)
            asker.cancel()
            await settled(asker)
            started = time.monotonic()
            assert (await client.generate(f"Question {turns}")).response == ANSWER
            assert time.monotonic() - started < 2, turns
