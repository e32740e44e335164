"""Does a model that was pulled again ever answer with its predecessor's words?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Clock
from tests.fake_ollama import FakeOllama, Fault
from tests.running import MODEL, client_of, in_loop, off_loop, text_of
from tinyllm_cli.backends.memory import InMemoryBackend
from tinyllm_cli.client import CachedOllamaClient
from tinyllm_cli.errors import OllamaError, OllamaUnavailableError
from tinyllm_cli.request import GenerateRequest

MAX_AGE = 60
REQUEST = GenerateRequest(MODEL, "Why?", temperature=0)


@pytest.fixture
def another_ollama() -> Iterator[FakeOllama]:
    with FakeOllama() as server:
        yield server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "snapshot.sqlite3"


class Time:
    """The wall's clock and the process's, which go on together."""

    def __init__(self) -> None:
        self.wall, self.own = Clock(), Clock(0)

    def advance(self, seconds: float) -> None:
        self.wall.advance(seconds)
        self.own.advance(seconds)


@pytest.fixture
def time() -> Time:
    return Time()


def process(
    ollama: FakeOllama, time: Time, path: Path | None = None, **options: Any
) -> CachedOllamaClient:
    """Return a client as a new process has it, over the snapshot of the ones before."""
    backend = InMemoryBackend(snapshot=path, clock=time.wall)
    return client_of(
        ollama, backend=backend, ttl=None, clock=time.wall, monotonic=Clock(time.own.now), **options
    )


async def ask(client: CachedOllamaClient) -> str:
    return (await client.generate("Why?", temperature=0)).response


async def ask_once(ollama: FakeOllama, time: Time, path: Path, **options: Any) -> str:
    async with process(ollama, time, path, **options) as client:
        return await ask(client)


async def truth(ollama: FakeOllama) -> str:
    """Return what the model answers now, past every cache."""
    async with client_of(ollama, enable_cache=False) as client:
        return await ask(client)


def tags(ollama: FakeOllama) -> int:
    return len(ollama.requests("/api/tags"))


# --- between two requests


@in_loop
async def test_a_model_that_changes_between_runs_answers_anew_after_the_bound(
    ollama: FakeOllama, time: Time, path: Path
) -> None:
    """The first hit past the age is still the old answer, and the last one."""
    old = await ask_once(ollama, time, path)
    ollama.repull(MODEL, "w2")
    new = await truth(ollama)
    assert new != old
    generations = ollama.generations

    time.advance(MAX_AGE - 0.5)
    assert await ask_once(ollama, time, path) == old
    time.advance(0.5)
    assert await ask_once(ollama, time, path) == old  # and the check behind it finds the new model
    assert await ask_once(ollama, time, path) == new
    assert ollama.generations == generations + 1
    assert await ask_once(ollama, time, path) == new
    assert ollama.generations == generations + 1


@in_loop
async def test_a_digest_seen_under_a_clock_that_was_ahead_is_checked_at_once(
    ollama: FakeOllama, time: Time, path: Path
) -> None:
    time.advance(3600)
    old = await ask_once(ollama, time, path)
    ollama.repull(MODEL, "w2")
    time.advance(-3600)
    assert await ask_once(ollama, time, path) == old  # and the check behind it finds the new model
    assert await ask_once(ollama, time, path) != old


@in_loop
async def test_a_long_running_program_learns_it_too(ollama: FakeOllama, time: Time) -> None:
    client = client_of(ollama, ttl=None, clock=time.wall, monotonic=time.own)
    old = await ask(client)
    ollama.repull(MODEL, "w2")
    new = await truth(ollama)
    for _ in range(3):
        time.advance(MAX_AGE / 3 - 0.001)
        assert await ask(client) == old
    time.advance(0.003)
    assert await ask(client) == old
    await client.close()
    assert await ask(client) == new
    await client.close()


@in_loop
async def test_the_digest_is_checked_behind_an_answer_and_only_when_due(
    ollama: FakeOllama, time: Time
) -> None:
    client = client_of(ollama, ttl=None, clock=time.wall, monotonic=time.own)
    await ask(client)
    asked = tags(ollama)
    time.advance(MAX_AGE - 0.001)
    for _ in range(3):
        await ask(client)
    assert (client._behind_answers, tags(ollama)) == (set(), asked)

    time.advance(0.001)
    barrier = ollama.hold("/api/tags")
    await asyncio.gather(*(ask(client) for _ in range(50)))  # none of them waits for the check
    await off_loop(barrier.wait_for, 1)
    await asyncio.gather(*(ask(client) for _ in range(50)))
    barrier.release()
    await client.close()
    assert tags(ollama) == asked + 1

    time.advance(MAX_AGE - 0.001)
    await ask(client)
    await client.close()
    assert tags(ollama) == asked + 1
    time.advance(0.001)
    await ask(client)
    await client.close()
    assert tags(ollama) == asked + 2
    assert client.get_stats()["cache"]["hits"] == 3 + 50 + 50 + 1 + 1
    assert ollama.generations == 1


@pytest.mark.parametrize(("max_age", "checks"), [(0, 3), (5, 1), (1e9, 0)])
@in_loop
async def test_the_age_is_the_users_to_choose(
    ollama: FakeOllama, time: Time, path: Path, max_age: float, checks: int
) -> None:
    await ask_once(ollama, time, path, digest_max_age=max_age)
    asked = tags(ollama)
    for _ in range(3):
        time.advance(2)
        await ask_once(ollama, time, path, digest_max_age=max_age)
    assert tags(ollama) == asked + checks


@in_loop
async def test_every_miss_learns_the_digest_for_free(
    ollama: FakeOllama, time: Time, path: Path
) -> None:
    old = await ask_once(ollama, time, path)
    ollama.repull(MODEL, "w2")
    async with process(ollama, time, path) as client:
        await client.generate("Something else")
        assert await ask(client) != old
    async with process(ollama, time, path) as client:
        assert (await client.ask(REQUEST)).outcome == "hit"


@in_loop
async def test_a_pull_through_the_client_counts_at_once(
    ollama: FakeOllama, time: Time, path: Path
) -> None:
    async with process(ollama, time, path) as client:
        old = await ask(client)
        ollama.registry["llama3.2:latest"] = "w2"
        await client.pull_model(MODEL)
        assert await ask(client) != old
        assert await ask_once(ollama, time, path) == await truth(ollama)


@in_loop
async def test_a_model_created_over_another_is_another(
    ollama: FakeOllama, time: Time, path: Path
) -> None:
    old = await ask_once(ollama, time, path, digest_max_age=0)
    ollama.create(MODEL, MODEL, system="Answer in rhymes.")
    await ask_once(ollama, time, path, digest_max_age=0)
    new = await ask_once(ollama, time, path, digest_max_age=0)
    assert new == await truth(ollama) != old


@in_loop
async def test_the_same_model_pulled_again_keeps_its_answers(
    ollama: FakeOllama, time: Time, path: Path
) -> None:
    old = await ask_once(ollama, time, path)
    ollama.repull(MODEL, "w1")
    for _ in range(3):
        time.advance(MAX_AGE)
        assert await ask_once(ollama, time, path) == old
    assert ollama.generations == 1


@in_loop
async def test_a_model_that_comes_back_finds_its_answers(
    ollama: FakeOllama, time: Time, path: Path
) -> None:
    old = await ask_once(ollama, time, path, digest_max_age=0)
    for weights in ("w2", "w1"):
        ollama.repull(MODEL, weights)
        await ask_once(ollama, time, path, digest_max_age=0)  # old, and learns it
        await ask_once(ollama, time, path, digest_max_age=0)
    assert await ask_once(ollama, time, path, digest_max_age=0) == old
    assert ollama.generations == 2


# --- while it answers


@pytest.mark.parametrize("wait", ["whole", "stream"])
@pytest.mark.parametrize("after", [0, 1, 5])
@in_loop
async def test_a_model_that_changes_while_it_answers_is_stored_under_neither(
    ollama: FakeOllama, time: Time, path: Path, after: int, wait: str
) -> None:
    ollama.inject(Fault.flip_digest(MODEL, "w2", after=after))
    async with process(ollama, time, path) as client:
        if wait == "whole":
            old = await ask(client)
        else:
            old = await text_of(client.generate_stream("Why?", temperature=0))
        assert await client.cache.size() == 0
        assert await ask(client) == await truth(ollama) != old
        assert await client.cache.size() == 1
        # and the next one finds the new model's
        assert await ask(client) != old


@in_loop
async def test_a_model_that_changes_between_the_digest_and_the_question_is_not_stored(
    ollama: FakeOllama, time: Time, path: Path
) -> None:
    """It is the new model that answers; the digest from before is not its own."""
    barrier = ollama.hold()
    async with process(ollama, time, path) as client:
        asking = asyncio.create_task(ask(client))
        await off_loop(barrier.wait_for, 1)
        ollama.repull(MODEL, "w2")
        barrier.release()
        assert await asking == await truth(ollama)
        assert await client.cache.size() == 0
        await ask(client)
        assert await client.cache.size() == 1


# --- without a server, or one that does not tell


@in_loop
async def test_with_the_server_down_the_last_known_digest_answers(
    ollama: FakeOllama, time: Time, path: Path
) -> None:
    old = await ask_once(ollama, time, path)
    ollama.stop()
    for _ in range(3):
        time.advance(10 * MAX_AGE)
        assert await ask_once(ollama, time, path) == old


@in_loop
async def test_a_check_that_failed_is_not_repeated_before_it_is_due_again(
    ollama: FakeOllama, time: Time
) -> None:
    client = client_of(ollama, ttl=None, clock=time.wall, monotonic=time.own)
    await ask(client)
    asked = tags(ollama)
    ollama.inject(Fault.status(500, "boom"), path="/api/tags", times=None)
    for _ in range(4):
        time.advance(MAX_AGE / 2)
        await ask(client)
        await client.close()
    assert tags(ollama) == asked + 2


NO_TAGS = [Fault.status(404, "not here"), Fault.models_null(), Fault.html(), Fault.status(500)]


@pytest.mark.parametrize("fault", NO_TAGS, ids=lambda fault: f"{fault.kind} {fault.number}")
@in_loop
async def test_a_server_that_tells_no_digests_is_cached_under_its_address(
    ollama: FakeOllama, another_ollama: FakeOllama, time: Time, path: Path, fault: Fault
) -> None:
    another_ollama.repull(MODEL, "w2")
    for server in (ollama, another_ollama):
        server.inject(fault, path="/api/tags", times=None)
        for _ in range(3):
            assert await ask_once(server, time, path) == await ask_once(server, time, path)
        assert server.generations == 1
    assert await ask_once(ollama, time, path) != await ask_once(another_ollama, time, path)
    assert (ollama.generations, another_ollama.generations) == (1, 1)


@in_loop
async def test_a_digest_nobody_could_tell_is_asked_for_once_it_can_be(
    ollama: FakeOllama, time: Time, path: Path
) -> None:
    """Answers kept under the address must not outlive their model because of one bad moment."""
    ollama.inject(Fault.status(500, "boom"), path="/api/tags", times=None)
    old = await ask_once(ollama, time, path)
    ollama.clear_faults()
    ollama.repull(MODEL, "w2")
    assert await ask_once(ollama, time, path) == old  # and the check behind it is told
    assert await ask_once(ollama, time, path) == await truth(ollama) != old


@in_loop
async def test_a_digest_that_cannot_be_confirmed_is_stored_under_by_nobody(
    ollama: FakeOllama, time: Time, path: Path
) -> None:
    await ask_once(ollama, time, path)
    ollama.inject(Fault.status(500, "boom"), path="/api/tags", times=None)
    ollama.repull(MODEL, "w2")
    async with process(ollama, time, path) as client:
        await client.generate("Something else", temperature=0)
        assert await client.cache.size() == 1
    ollama.clear_faults()
    ollama.inject(Fault.status(500, "boom"), path="/api/tags")  # before, and not after
    async with process(ollama, time, path) as client:
        await client.generate("Something else again", temperature=0)
        assert await client.cache.size() == 1


@in_loop
async def test_a_digest_another_process_was_told_meanwhile_will_do(
    ollama: FakeOllama, time: Time, path: Path
) -> None:
    barrier = ollama.hold("/api/tags", times=1)
    async with process(ollama, time, path) as client:
        reply = await client.ask(REQUEST)
        answer = asyncio.create_task(reply.response())
        await off_loop(barrier.wait_for, 1)
        old = await ask_once(ollama, time, path)
        ollama.inject(Fault.status(503, "busy"), path="/api/tags")
        barrier.release()
        assert ((await answer).response, reply.outcome) == (old, "hit")
    assert ollama.generations == 1


@in_loop
async def test_one_model_on_two_servers_is_one(
    ollama: FakeOllama, another_ollama: FakeOllama, time: Time, path: Path
) -> None:
    """The digest says so; the second server is asked for that and for nothing else."""
    old = await ask_once(ollama, time, path)
    async with process(another_ollama, time, path) as client:
        reply = await client.ask(REQUEST)
        assert ((await reply.response()).response, reply.outcome) == (old, "hit")
        figures = client.get_stats()["cache"]
        assert (figures["hits"], figures["misses"]) == (1, 0)
    assert another_ollama.generations == 0


# --- asking first


@in_loop
async def test_strict_asks_before_it_answers(ollama: FakeOllama, time: Time, path: Path) -> None:
    async with process(ollama, time, path, coherence="strict") as client:
        old = await ask(client)
        for _ in range(3):
            asked = tags(ollama)
            assert await ask(client) == old
            assert tags(ollama) == asked + 1
        assert ollama.generations == 1
        ollama.repull(MODEL, "w2")
        new = await ask(client)
        assert new == await truth(ollama) != old
        assert await text_of(client.generate_stream("Why?", temperature=0)) == new
        ollama.stop()
        with pytest.raises(OllamaUnavailableError):
            await ask(client)


@pytest.mark.parametrize("fault", NO_TAGS, ids=lambda fault: f"{fault.kind} {fault.number}")
@in_loop
async def test_strict_answers_from_the_cache_only_what_it_could_check(
    ollama: FakeOllama, time: Time, path: Path, fault: Fault
) -> None:
    async with process(ollama, time, path, coherence="strict") as client:
        await ask(client)
        ollama.inject(fault, path="/api/tags", times=None)
        for generations in (2, 3):
            with suppress(OllamaError):
                await ask(client)
            assert (ollama.generations, await client.cache.size()) == (generations, 1)
        ollama.clear_faults()
        await ask(client)
        assert ollama.generations == 3


# --- the short way of repeated requests


@in_loop
async def test_a_hit_is_counted_once_whichever_way_it_takes(ollama: FakeOllama, time: Time) -> None:
    client = client_of(ollama, ttl=None, clock=time.wall, monotonic=time.own)
    await client.generate("Why?")
    hits = 0
    for model in (MODEL, "LLAMA3.2:latest", MODEL, "library/llama3.2"):
        for _ in range(3):
            assert (await client.generate("Why?", model)).model == model
            hits += 1
        time.advance(MAX_AGE)
    await client.close()
    figures = client.get_stats()["cache"]
    assert (figures["hits"], figures["misses"], ollama.generations) == (hits, 1, 1)
