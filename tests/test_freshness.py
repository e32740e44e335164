"""How old may an answer be, who renews it, and is each way to an answer named, counted and logged?"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Clock
from tests.fake_ollama import FakeOllama, Fault
from tests.running import MODEL, client_of, in_loop, off_loop, text_of
from tinyllm_cli.backends.memory import InMemoryBackend
from tinyllm_cli.client import CachedOllamaClient
from tinyllm_cli.errors import (
    IncompleteAnswerError,
    ModelNotFoundError,
    OllamaError,
    OllamaStatusError,
    OllamaUnavailableError,
)
from tinyllm_cli.policy import Freshness
from tinyllm_cli.request import GenerateRequest

TTL = 100
REVALIDATE = Freshness(stale_while_revalidate=10)
SPARE = Freshness(stale_if_error=30)
REQUEST = GenerateRequest(MODEL, "Why?")


@pytest.fixture(autouse=True)
def drifting(ollama: FakeOllama) -> None:
    """Have every generation give another answer, so that old and new can be told apart."""
    ollama.drift = True


def counted(client: CachedOllamaClient) -> dict[str, int]:
    """Return the counters that are not zero."""
    figures = client.get_stats()["cache"]
    names = (
        "hits",
        "misses",
        "sets",
        "stale",
        "coalesced",
        "refreshed",
        "bypassed",
        "expirations",
        "errors",
    )
    return {name: figures[name] for name in names if figures[name]}


# --- an expired answer at once, renewed behind


@pytest.mark.parametrize(
    ("age", "outcome"),
    [(TTL - 0.001, "hit"), (TTL, "stale"), (TTL + 9.999, "stale"), (TTL + 10, "miss")],
)
@in_loop
async def test_stale_while_revalidate_at_its_boundaries(
    ollama: FakeOllama, clock: Clock, age: float, outcome: str
) -> None:
    async with client_of(ollama, clock=clock, ttl=TTL, freshness=REVALIDATE) as client:
        old = await client.generate("Why?")
        clock.advance(age)
        reply = await client.ask(REQUEST)
        text = (await reply.response()).response
        assert (reply.outcome, text == old.response) == (outcome, outcome != "miss")
    assert ollama.generations == (1 if outcome == "hit" else 2)


@pytest.mark.parametrize("wait", ["whole", "stream"])
@in_loop
async def test_a_stale_answer_waits_for_nobody_and_the_next_one_is_new(
    ollama: FakeOllama, clock: Clock, wait: str
) -> None:
    client = client_of(ollama, clock=clock, ttl=TTL, freshness=REVALIDATE)
    old = await client.generate("Why?")
    clock.advance(TTL)
    barrier = ollama.hold()
    for _ in range(5):
        if wait == "whole":
            assert await client.generate("Why?") == old
        else:
            assert await text_of(client.generate_stream("Why?")) == old.response
    await off_loop(barrier.wait_for, 1)

    closing = asyncio.create_task(client.close())  # which sees the renewal out
    await off_loop(lambda: ollama.generations)  # some turns of the loop
    assert not closing.done()
    barrier.release()
    await closing
    assert ollama.generations == 2

    new = await client.generate("Why?")
    assert new.response != old.response
    assert ollama.generations == 2
    assert counted(client) == {"hits": 6, "misses": 1, "sets": 2, "stale": 5, "refreshed": 1}
    await client.close()


@in_loop
async def test_a_crowd_of_stale_hits_is_one_renewal(ollama: FakeOllama, clock: Clock) -> None:
    async with client_of(ollama, clock=clock, ttl=TTL, freshness=REVALIDATE) as client:
        old = await client.generate("Why?")
        clock.advance(TTL)
        assert await asyncio.gather(*(client.generate("Why?") for _ in range(500))) == [old] * 500
    assert ollama.generations == 2


@in_loop
async def test_several_processes_renew_an_answer_once(
    ollama: FakeOllama, clock: Clock, tmp_path: Path
) -> None:
    path = tmp_path / "cache" / "snapshot.sqlite3"
    clients = [
        client_of(
            ollama,
            backend=InMemoryBackend(snapshot=path, clock=clock),
            clock=clock,
            ttl=TTL,
            freshness=REVALIDATE,
        )
        for _ in range(5)
    ]
    old = await clients[0].generate("Why?")
    clock.advance(TTL)
    barrier = ollama.hold()
    for client in clients:
        assert (await client.generate("Why?")).response == old.response
    await off_loop(barrier.wait_for, 1)
    clock.advance(1)
    barrier.release()
    for client in clients:
        await client.close()
    assert ollama.generations == 2
    texts = {(await client.generate("Why?")).response for client in clients}
    assert len(texts) == 1 and texts != {old.response}
    for client in clients:
        await client.close()


@pytest.mark.parametrize("freshness", [REVALIDATE, Freshness(10, 30)])
@in_loop
async def test_a_renewal_that_fails_is_nobodys_failure_and_is_tried_again(
    ollama: FakeOllama, clock: Clock, freshness: Freshness
) -> None:
    client = client_of(ollama, clock=clock, ttl=TTL, freshness=freshness)
    old = await client.generate("Why?")
    clock.advance(TTL)
    ollama.inject(Fault.status(500, "boom"))
    for generations in (1, 2):
        assert await client.generate("Why?") == old
        await client.close()
        assert ollama.generations == generations
    assert (await client.generate("Why?")).response != old.response
    # what nobody was served is not counted as served
    assert counted(client) == {"hits": 3, "misses": 1, "sets": 2, "stale": 2, "refreshed": 2}
    await client.close()


@in_loop
async def test_a_renewed_answer_keeps_for_as_long_as_its_asker_said(
    ollama: FakeOllama, clock: Clock
) -> None:
    client = client_of(ollama, clock=clock, ttl=TTL, freshness=REVALIDATE)
    await client.generate("Why?")
    clock.advance(TTL)
    await client.generate("Why?", cache_ttl=5)
    await client.close()
    clock.advance(4.999)
    assert (await client.ask(REQUEST)).outcome == "hit"
    clock.advance(0.001)
    assert (await client.ask(REQUEST)).outcome == "stale"
    await client.close()


@in_loop
async def test_a_renewal_begun_late_finds_that_it_is_done(ollama: FakeOllama, clock: Clock) -> None:
    """As a process does that was started behind a hit, after another one was quicker."""
    async with client_of(ollama, clock=clock, ttl=TTL, freshness=REVALIDATE) as client:
        await client.generate("Why?", temperature=0.3)
        clock.advance(TTL)
        await client.look_after(REQUEST, [1])
        assert ollama.generations == 2
        await client.look_after(REQUEST, [1])
        assert ollama.generations == 2
        await client.cache.clear()  # or evicted meanwhile
        await client.look_after(REQUEST, [1])
        assert (ollama.generations, await client.cache.size()) == (3, 1)


# --- an expired answer because there is no other


@pytest.mark.parametrize(
    ("age", "outcome"),
    [(TTL - 0.001, "hit"), (TTL, "stale"), (TTL + 29.999, "stale"), (TTL + 30, None)],
)
@in_loop
async def test_stale_if_error_at_its_boundaries(
    ollama: FakeOllama, clock: Clock, age: float, outcome: str | None
) -> None:
    async with client_of(ollama, clock=clock, ttl=TTL, freshness=SPARE) as client:
        old = await client.generate("Why?")
        clock.advance(age)
        ollama.stop()
        reply = await client.ask(REQUEST)
        if outcome is None:
            with pytest.raises(OllamaUnavailableError):
                await reply.response()
        else:
            assert await reply.response() == old
            assert reply.outcome == outcome
            assert reply.entry is not None and reply.entry.age(clock()) == pytest.approx(age)


@in_loop
async def test_while_the_model_can_be_reached_an_expired_answer_is_not_served(
    ollama: FakeOllama, clock: Clock
) -> None:
    async with client_of(ollama, clock=clock, ttl=TTL, freshness=SPARE) as client:
        old = await client.generate("Why?")
        clock.advance(TTL)
        assert (await client.generate("Why?")).response != old.response
    assert ollama.generations == 2


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        (Fault.status(500, "boom"), None),
        (Fault.status(502, None), None),
        (Fault.html(504), None),
        (Fault.drop(), None),
        (Fault.status(400, "bad request"), OllamaStatusError),
        (Fault.status(404, "model 'llama3.2' not found"), ModelNotFoundError),
        (Fault.status(429, "slow down"), OllamaStatusError),
        (Fault.unauthorized(), OllamaStatusError),
        # the model can be reached: it has begun to answer
        (Fault.cut(after=2), IncompleteAnswerError),
        (Fault.error_line(after=1), IncompleteAnswerError),
    ],
    ids=lambda value: f"{value.kind} {value.number}" if isinstance(value, Fault) else None,
)
@in_loop
async def test_an_error_is_that_the_model_cannot_be_reached(
    ollama: FakeOllama, clock: Clock, fault: Fault, raised: type[OllamaError] | None
) -> None:
    async with client_of(ollama, clock=clock, ttl=TTL, freshness=SPARE) as client:
        old = await client.generate("Why?")
        clock.advance(TTL)
        ollama.inject(fault)
        if raised is None:
            assert await client.generate("Why?") == old
        else:
            with pytest.raises(raised):
                await client.generate("Why?")


@in_loop
async def test_everybody_who_waits_gets_the_spare_answer(ollama: FakeOllama, clock: Clock) -> None:
    async with client_of(ollama, clock=clock, ttl=TTL, freshness=SPARE) as client:
        old = await client.generate("Why?")
        clock.advance(TTL)
        barrier = ollama.hold()
        ollama.inject(Fault.status(500, "boom"))
        wholes = [asyncio.create_task(client.generate("Why?")) for _ in range(10)]
        stream = asyncio.create_task(text_of(client.generate_stream("Why?")))
        await off_loop(barrier.wait_for, 1)
        barrier.release()
        assert await asyncio.gather(*wholes) == [old] * 10
        assert await stream == old.response
        assert len(ollama.requests("/api/generate")) == 2


@in_loop
async def test_who_wants_a_new_answer_does_not_get_an_old_one_instead(
    ollama: FakeOllama, clock: Clock
) -> None:
    async with client_of(ollama, clock=clock, ttl=TTL, freshness=SPARE) as client:
        await client.generate("Why?")
        ollama.stop()
        for age in (0, TTL):
            clock.advance(age)
            with pytest.raises(OllamaUnavailableError):
                await client.generate("Why?", force_refresh=True)
        assert counted(client) == {"misses": 1, "sets": 1, "refreshed": 2}


@in_loop
async def test_serving_a_spare_answer_is_a_hit_past_its_ttl(
    ollama: FakeOllama, clock: Clock
) -> None:
    async with client_of(ollama, clock=clock, ttl=TTL, freshness=SPARE) as client:
        await client.generate("Why?")
        clock.advance(TTL)
        ollama.stop()
        for _ in range(3):
            await client.generate("Why?")
        assert counted(client) == {
            "hits": 3,
            "misses": 1,
            "sets": 1,
            "stale": 3,
            "expirations": 3,
        }


@in_loop
async def test_without_either_policy_expired_is_expired(ollama: FakeOllama, clock: Clock) -> None:
    async with client_of(ollama, clock=clock, ttl=TTL) as client:
        await client.generate("Why?")
        clock.advance(TTL)
        ollama.stop()
        with pytest.raises(OllamaUnavailableError):
            await client.generate("Why?")
        assert counted(client) == {"misses": 2, "sets": 1, "expirations": 1}


# --- renewal before the TTL is over


class Luck:
    """A random() that gives what the test says, and counts."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.draws = 0

    def __call__(self) -> float:
        self.draws += 1
        return self.value


@pytest.mark.parametrize(
    ("left", "beta", "luck", "renewed"),
    [
        # due when seconds * beta * -ln(1 - luck) reaches what is left; it took two seconds
        (2.001, 1.0, 1 - 1 / math.e, False),
        (1.999, 1.0, 1 - 1 / math.e, True),
        (4.001, 2.0, 1 - 1 / math.e, False),
        (3.999, 2.0, 1 - 1 / math.e, True),
        (0.001, 1.0, 0.0, False),
        (70.0, 1.0, 1 - 2**-53, True),
    ],
)
@in_loop
async def test_a_costly_answer_is_renewed_early_by_lot(
    ollama: FakeOllama, clock: Clock, left: float, beta: float, luck: float, renewed: bool
) -> None:
    stopwatch, lot = Clock(0), Luck(luck)

    def two_seconds(body: Any) -> str:
        stopwatch.advance(2)
        return f"Answer {ollama.generations}"

    ollama.answer = two_seconds
    client = client_of(
        ollama,
        clock=clock,
        monotonic=stopwatch,
        ttl=TTL,
        freshness=Freshness(beta=beta),
        random=lot,
    )
    old = await client.generate("Why?")
    clock.advance(TTL - left)
    for _ in range(2):
        reply = await client.ask(REQUEST)
        assert (await reply.response(), reply.outcome) == (old, "hit")
    await client.close()
    assert ollama.generations == (2 if renewed else 1)
    assert lot.draws >= 2
    lot.value = 0.0
    assert ((await client.generate("Why?")) != old) is renewed
    assert client.get_stats()["cache"]["stale"] == 0
    await client.close()


@in_loop
async def test_early_renewal_is_off_unless_asked_for(ollama: FakeOllama, clock: Clock) -> None:
    lot = Luck(1 - 2**-53)
    async with client_of(ollama, clock=clock, ttl=TTL, random=lot) as client:
        await client.generate("Why?")
        clock.advance(TTL - 0.001)
        await client.generate("Why?")
    assert (lot.draws, ollama.generations) == (0, 1)


# --- every way to an answer has a name

Way = Callable[[FakeOllama, CachedOllamaClient, Clock], Any]


async def _hit(ollama: FakeOllama, client: CachedOllamaClient, clock: Clock) -> Any:
    return await client.ask(REQUEST)


async def _miss(ollama: FakeOllama, client: CachedOllamaClient, clock: Clock) -> Any:
    return await client.ask(REQUEST.replace(prompt="Something else"))


async def _stale(ollama: FakeOllama, client: CachedOllamaClient, clock: Clock) -> Any:
    clock.advance(TTL)
    return await client.ask(REQUEST)


async def _spare(ollama: FakeOllama, client: CachedOllamaClient, clock: Clock) -> Any:
    clock.advance(TTL + 20)
    ollama.stop()
    return await client.ask(REQUEST)


async def _refreshed(ollama: FakeOllama, client: CachedOllamaClient, clock: Clock) -> Any:
    return await client.ask(REQUEST, refresh=True)


async def _coalesced(ollama: FakeOllama, client: CachedOllamaClient, clock: Clock) -> Any:
    other = REQUEST.replace(prompt="Something else")
    await client.ask(other)
    return await client.ask(other)


async def _bypassed(ollama: FakeOllama, client: CachedOllamaClient, clock: Clock) -> Any:
    client.cache_when = "deterministic"
    return await client.ask(REQUEST)


@pytest.mark.parametrize(
    ("way", "outcome", "counters", "event"),
    [
        (_hit, "hit", {"hits": 1}, "cache_hit"),
        (_miss, "miss", {"misses": 1, "sets": 1}, "cache_miss"),
        (_stale, "stale", {"hits": 1, "stale": 1, "refreshed": 1, "sets": 1}, "cache_stale"),
        (_spare, "stale", {"hits": 1, "stale": 1, "expirations": 1}, "cache_stale"),
        (_refreshed, "refreshed", {"refreshed": 1, "sets": 1}, "cache_refreshed"),
        (_coalesced, "coalesced", {"misses": 2, "coalesced": 1, "sets": 1}, "cache_coalesced"),
        (_bypassed, "bypassed", {"bypassed": 1}, "cache_bypassed"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
@in_loop
async def test_every_outcome_has_its_name_counter_and_log_line(
    ollama: FakeOllama,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    way: Way,
    outcome: str,
    counters: dict[str, int],
    event: str,
) -> None:
    freshness = Freshness(stale_while_revalidate=10, stale_if_error=30)
    client = client_of(ollama, clock=clock, ttl=TTL, freshness=freshness)
    await client.generate("Why?")
    client.cache.reset_metrics()
    with caplog.at_level(logging.DEBUG, "tinyllm_cli"):
        reply = await way(ollama, client, clock)
        answer = await reply.response()
        await client.close()
    assert reply.outcome == outcome
    assert counted(client) == counters
    lines = [record.getMessage() for record in caplog.records if record.name == "tinyllm_cli"]
    assert event in [line.split()[0] for line in lines]
    for line in lines:  # a shortened key, and never what was asked or answered
        assert "Why" not in line and "Something" not in line and answer.response not in line
        assert all(len(word) < 40 for word in line.split())


@in_loop
async def test_waiting_for_another_process_counts_an_expired_answer_once(
    ollama: FakeOllama, clock: Clock
) -> None:
    async with client_of(ollama, clock=clock, ttl=TTL) as client:
        await client.generate("Why?")
        clock.advance(TTL)
        key = client.question(REQUEST).key
        client.cache.reset_metrics()
        assert await client.cache.find(key) is None
        for _ in range(5):  # as who waits looks, again and again
            assert await client.cache.find(key, again=True) is None
        assert counted(client) == {"misses": 1, "expirations": 1}
        await client.generate("Why?", force_refresh=True)
        assert await client.cache.find(key, again=True) is not None
        assert counted(client) == {"hits": 1, "sets": 1, "refreshed": 1, "expirations": 1}


@in_loop
async def test_who_waited_for_another_process_has_a_hit_of_its_own_kind(
    ollama: FakeOllama, clock: Clock, tmp_path: Path
) -> None:
    path = tmp_path / "cache" / "snapshot.sqlite3"
    one, other = (
        client_of(ollama, backend=InMemoryBackend(snapshot=path, clock=clock), clock=clock, ttl=TTL)
        for _ in range(2)
    )
    await one.generate("Something else")
    barrier = ollama.hold()
    leading = asyncio.create_task(one.generate("Why?"))
    await off_loop(barrier.wait_for, 1)
    reply = await other.ask(REQUEST)
    following = asyncio.create_task(reply.response())
    barrier.release()
    assert (await following).response == (await leading).response
    assert reply.outcome == "coalesced"
    assert reply.entry is not None
    assert counted(other) == {"hits": 1, "coalesced": 1}
    assert ollama.generations == 2
    await one.close()
    await other.close()
