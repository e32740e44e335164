"""Everything that can go wrong when many ask at once, one row of the fault matrix per test.

The rule for all of them: one question is one generation for as long as one can serve, everybody who
stays gets the whole answer or an error, nobody waits for the dead, and who comes afterwards meets an
ordinary hit or miss.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.backends import processes
from tests.cli.crowd import ANSWER, Crowd, assert_all_answered, crowd_of
from tests.cli.outcome import assert_failed, finish, stored
from tests.conftest import Finished, Tinyllm
from tests.fake_ollama import FakeOllama, Fault
from tests.redis_server import RedisServer
from tests.running import MODEL, client_of, in_loop, off_loop, text_of
from tests.samples import answer
from tests.test_flight import WORDS, closed_by_client, settled
from tinyllm_cli.backends.memory import InMemoryBackend
from tinyllm_cli.cache import ResponseCache
from tinyllm_cli.client import CachedOllamaClient
from tinyllm_cli.errors import OllamaError
from tinyllm_cli.request import GenerateRequest
from tinyllm_cli.response import GenerateResponse

slow = pytest.mark.slow


@pytest.fixture
def crowd(tinyllm: Tinyllm, ollama: FakeOllama) -> Iterator[Crowd]:
    with crowd_of(tinyllm, ollama) as crowd:
        yield crowd


# --- one generation


@pytest.mark.parametrize("backend", [pytest.param("memory", marks=slow), "snapshot"])
@in_loop
async def test_k01_a_thousand_identical_misses(
    ollama: FakeOllama, backend: str, tmp_path: Path
) -> None:
    """One more comes when half is out, after the model's digest was learnt on the way."""
    ollama.answer = lambda body: ANSWER
    barrier = ollama.hold_after(2)
    snapshot = tmp_path / "cache" / "snapshot.sqlite3" if backend == "snapshot" else None
    async with client_of(ollama, backend=InMemoryBackend(snapshot=snapshot)) as client:
        streams = [
            asyncio.create_task(text_of(client.generate_stream("Count."))) for _ in range(500)
        ]
        wholes = [asyncio.create_task(client.generate("Count.")) for _ in range(500)]
        await off_loop(barrier.wait_for, 1)

        late: AsyncIterator[str] = client.generate_stream("Count.")
        assert [await anext(late), await anext(late)] == WORDS[:2]
        barrier.release()
        assert [piece async for piece in late] == WORDS[2:]
        assert await asyncio.gather(*streams) == [ANSWER] * 500
        answers = await asyncio.gather(*wholes)
        assert {one.response for one in answers} == {ANSWER}
        # shared, not copied: a thousand waiters of a long answer do not hold it a thousand times
        assert len({id(one) for one in answers}) == 1
        assert ollama.generations == 1

        stats = client.get_stats()["cache"]
        assert (stats["misses"], stats["coalesced"], stats["sets"]) == (1001, 1000, 1)
        await client.generate("Count.")
        assert client.get_stats()["cache"]["hits"] == 1


@pytest.mark.parametrize("number", [6, pytest.param(64, marks=slow)])
def test_k02_many_processes(
    crowd: Crowd, ollama: FakeOllama, tinyllm: Tinyllm, number: int
) -> None:
    barrier = ollama.hold()
    crowd.ask(number)
    barrier.wait_for(1)
    barrier.release()
    assert_all_answered(crowd.finish())
    assert ollama.generations == 1
    stats = json.loads(tinyllm("cache-stats", "--json").out)
    assert (stats["sets"], stats["entries"], stats["coalesced"]) == (2, 2, number - 1)
    assert (stats["misses"], stats["hits"]) == (2, number - 1)


class Team:
    """Machines that share a Redis and nothing else: each has a home and a cache of its own."""

    def __init__(self, machines: list[Tinyllm], server: RedisServer, ollama: FakeOllama) -> None:
        self.server = server
        self.crowds = [Crowd(machine, ollama) for machine in machines]
        for machine in machines:
            machine.environ |= {"TINYLLM_CACHE_BACKEND": "redis", "TINYLLM_REDIS_URL": server.url}
            assert machine("run", "Something else").code == 0
        assert ollama.generations == 1
        self.machines = machines

    def finish(self) -> list[Finished]:
        return [one for crowd in self.crowds for one in crowd.finish()]


@pytest.fixture
def team(another_tinyllm: Callable[[str], Tinyllm], ollama: FakeOllama) -> Iterator[Team]:
    ollama.answer = lambda body: ANSWER
    with RedisServer() as server:
        team = Team([another_tinyllm(f"machine {n}") for n in range(3)], server, ollama)
        try:
            yield team
        finally:
            for crowd in team.crowds:
                crowd.end()


@pytest.mark.slow
@pytest.mark.parametrize(
    "killed",
    [pytest.param(False, id="all live"), pytest.param(True, id="leader killed", marks=slow)],
)
def test_k03_machines_that_share_a_redis(team: Team, ollama: FakeOllama, killed: bool) -> None:
    barrier = ollama.hold_after(2, times=1)
    (leader,) = team.crowds[0].ask()
    barrier.wait_for(1)
    for crowd in team.crowds[1:]:
        crowd.ask(2)
    if killed:
        leader.kill()
        leader.wait()
    else:
        barrier.release()
    done = team.finish()
    assert_all_answered(done[1:] if killed else done)
    assert ollama.generations == (3 if killed else 2)


@pytest.mark.slow
def test_k03_the_redis_between_machines_is_down(team: Team, ollama: FakeOllama) -> None:
    """Each asks for itself, at the same time as the others, and says in a line why."""
    team.server.kill()
    barrier = ollama.hold()
    for crowd in team.crowds:
        crowd.ask()
    barrier.wait_for(3, timeout=30)
    barrier.release()
    for one in team.finish():
        assert (one.code, one.text) == (0, f"{ANSWER}\n")
        assert one.complaint.startswith("tinyllm: cache: ") and one.complaint.count("\n") == 1
    asked = ollama.generations
    team.server.start()
    assert_all_answered([machine("run", "Count.") for machine in team.machines])
    assert ollama.generations == asked + 1


# --- somebody leaves


class Teller:
    """A model within the process: an answer of `TOLD` words, one in each turn of the loop."""

    def __init__(self) -> None:
        self.generations = 0
        self.finished = 0

    async def stream_chunks(
        self, request: GenerateRequest
    ) -> AsyncGenerator[GenerateResponse, None]:
        self.generations += 1
        for number in range(TOLD):
            await asyncio.sleep(0)
            yield answer(f"{number} ", done=False, done_reason=None)
        yield answer("")
        self.finished += 1

    async def generate(self, **given: Any) -> GenerateResponse:
        raise AssertionError("it is asked for chunks")

    async def close(self) -> None:
        pass


TOLD = 6
TALE = "".join(f"{number} " for number in range(TOLD))


async def leave_at(stream: AsyncIterator[str], pieces: int) -> None:
    """Read some pieces of an answer and be cancelled while the next is awaited."""
    async for _ in stream:
        pieces -= 1
        if pieces == 0:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()


async def leader_leaves(client: CachedOllamaClient, prompt: str, pieces: int) -> list[str]:
    """Have the first of four askers cancelled; return what the others, of both kinds, were given."""
    leader = asyncio.create_task(leave_at(client.generate_stream(prompt, MODEL), pieces))
    await asyncio.sleep(0)
    streams = [
        asyncio.create_task(text_of(client.generate_stream(prompt, MODEL))) for _ in range(2)
    ]
    whole = asyncio.create_task(client.generate(prompt, MODEL))
    async with asyncio.timeout(60):
        (end,) = await settled(leader)
        assert isinstance(end, asyncio.CancelledError), repr(end)
        return [*await asyncio.gather(*streams), (await whole).response]


@in_loop
async def test_k04_the_leader_is_cancelled(ollama: FakeOllama) -> None:
    """After each word of an answer that comes over the network, a few times over."""
    ollama.answer = lambda body: ANSWER
    async with client_of(ollama) as client:
        for number in range(24):
            pieces = 1 + number % len(WORDS)
            given = await leader_leaves(client, f"Question {number}", pieces)
            assert given == [ANSWER] * 3
        assert await client.cache.size() == 24
    assert ollama.generations == 24
    assert not any(seen.client_closed for seen in ollama.log)


@pytest.mark.parametrize("times", [300, pytest.param(10_000, marks=slow)])
def test_k04_the_leader_is_cancelled_again_and_again(times: int) -> None:
    """At random words, and some of the time another asker with it."""
    chance = random.Random(times)
    teller = Teller()

    @in_loop
    async def storm() -> None:
        backend = InMemoryBackend(max_size=10)
        async with CachedOllamaClient(teller, ResponseCache(backend)) as client:
            for number in range(times):
                pieces = chance.randint(1, TOLD)
                prompt = f"Question {number}"
                assert await leader_leaves(client, prompt, pieces) == [TALE] * 3
                assert (await client.generate(prompt, MODEL)).response == TALE
            assert (await client.cache.size(), client.cache.metrics.hits) == (10, times)

    storm()
    assert (teller.generations, teller.finished) == (times, times)


@pytest.mark.parametrize("wait", ["whole", "stream"])
@in_loop
async def test_k05_the_last_to_wait_leaves(ollama: FakeOllama, wait: str) -> None:
    """The model is stopped at once, and not before; nothing is kept, and the next asks anew."""
    ollama.answer = lambda body: ANSWER
    took: list[float] = []
    async with client_of(ollama) as client:
        for number in range(3):
            barrier = ollama.hold_after(2, times=1)
            if wait == "whole":
                tasks = [asyncio.create_task(client.generate("Count.")) for _ in range(5)]
            else:
                streams = [client.generate_stream("Count.") for _ in range(5)]
                tasks = [asyncio.create_task(text_of(one)) for one in streams]  # type: ignore[arg-type]
            await off_loop(barrier.wait_for, 1)
            for task in tasks[1:]:
                task.cancel()
            await settled(*tasks[1:])
            assert not ollama.requests("/api/generate")[number].client_closed
            left_at = time.monotonic()
            tasks[0].cancel()
            await closed_by_client(ollama, number)
            took.append(time.monotonic() - left_at)
            await settled(*tasks)
            assert await client.cache.size() == 0
            barrier.release()
        assert min(took) <= 0.2  # of three, on a machine with other work
        assert ollama.generations == 3
        for _ in ("a miss", "a hit"):
            assert (await client.generate("Count.")).response == ANSWER
    assert ollama.generations == 4


# --- the one everybody waits for fails


@pytest.mark.parametrize(
    "fault", [Fault.status(500, "boom"), Fault.cut(after=2), Fault.error_line(after=0)]
)
@in_loop
async def test_k06_the_leaders_upstream_fails(ollama: FakeOllama, fault: Fault) -> None:
    """Everybody gets the error once and nobody tries again; who comes next may."""
    barrier = ollama.hold(times=1)
    ollama.inject(fault)
    async with client_of(ollama) as client:
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(client.generate("Count.")) for _ in range(50)
        ]
        for _ in range(50):
            stream = client.generate_stream("Count.")
            tasks.append(asyncio.create_task(text_of(stream)))
        await off_loop(barrier.wait_for, 1)
        barrier.release()
        ends = await settled(*tasks)
        assert all(isinstance(end, OllamaError) for end in ends), ends
        assert len(ollama.requests("/api/generate")) == 1
        assert await client.cache.size() == 0
        assert (await client.generate("Count.")).done


def test_k06_a_refusal_reaches_every_process(
    crowd: Crowd, ollama: FakeOllama, tinyllm: Tinyllm
) -> None:
    """None asks twice, and what they leave behind holds up nobody."""
    ollama.inject(Fault.status(500, "boom"), times=None)
    barrier = ollama.hold(times=1)
    crowd.ask(4)
    barrier.wait_for(1)
    barrier.release()
    for one in crowd.finish():
        assert (one.code, one.out) == (4, b"")
        assert_failed(one, 4, "boom")
    assert len(ollama.requests("/api/generate")) == 4
    ollama.clear_faults()
    started = time.monotonic()
    assert_all_answered([tinyllm("run", "Count.")])
    assert time.monotonic() - started < 3


@slow
@pytest.mark.parametrize(
    ("environ", "fault", "code"),
    [
        ({}, Fault.cut(after=4), 5),
        # an answer that cannot be stored is no answer for those who wait
        ({"TINYLLM_CACHE_MAX_ENTRY_BYTES": "100"}, None, 0),
    ],
    ids=["cut", "too large to store"],
)
def test_k06_when_waiting_makes_no_sense_nobody_queues(
    crowd: Crowd,
    ollama: FakeOllama,
    tinyllm: Tinyllm,
    environ: dict[str, str],
    fault: Fault | None,
    code: int,
) -> None:
    """Each tries for itself, all at the same time: a queue would take as long as all together.

    Who had not yet begun to wait when the first gave up waits for one more attempt at most.
    """
    attempt = 1.2
    if fault is not None:
        ollama.inject(fault, times=None)
    first = ollama.hold(times=1)
    crowd.ask(6, **environ)
    first.wait_for(1)
    ollama.token_delay = attempt / 3
    first.release()
    assert [one.code for one in crowd.finish()] == [code] * 6
    _, *others = sorted(logged.at for logged in ollama.requests("/api/generate"))
    assert len(others) == 5
    assert others[-1] - others[0] < 2.5 * attempt  # and not four times
    assert stored(tinyllm.snapshot) == 1


@pytest.mark.slow
@pytest.mark.parametrize("after", [2, *(pytest.param(n, marks=slow) for n in (1, 3, 4))])
def test_k07_the_holder_of_the_lease_is_killed(
    crowd: Crowd, ollama: FakeOllama, tinyllm: Tinyllm, after: int
) -> None:
    """Whatever word it had got to, it costs one more generation and its three seconds."""
    barrier = ollama.hold_after(after, times=1)
    (leader,) = crowd.ask()
    barrier.wait_for(1)
    crowd.ask(5)
    leader.kill()
    killed_at = time.monotonic()
    leader.wait()
    killed, *others = crowd.finish()
    assert time.monotonic() - killed_at < 15
    assert killed.code == -signal.SIGKILL
    assert_all_answered(others)
    assert (ollama.generations, stored(tinyllm.snapshot)) == (2, 2)


def holders(tinyllm: Tinyllm) -> list[str]:
    """Return who holds a lease, by the marks they left."""
    with contextlib.closing(sqlite3.connect(tinyllm.snapshot)) as database:
        return [row[0] for row in database.execute("SELECT token FROM leases ORDER BY token")]


@slow
@pytest.mark.parametrize("ends", ["with its answer", "by a signal"])
def test_k07_the_holder_of_the_lease_is_stopped_and_wakes_up(
    crowd: Crowd, ollama: FakeOllama, tinyllm: Tinyllm, ends: str
) -> None:
    """It takes away no lease but its own, and the answer it stores late is the same one."""
    old, new = ollama.hold_after(2, times=1), ollama.hold_after(2, times=1)
    (leader,) = crowd.ask()
    old.wait_for(1)
    before = holders(tinyllm)
    crowd.ask(2)
    leader.send_signal(signal.SIGSTOP)
    try:
        new.wait_for(1, timeout=30)
        taken = holders(tinyllm)
        assert len(before) == len(taken) == 1 and before != taken
    finally:
        leader.send_signal(signal.SIGCONT)
    if ends == "by a signal":
        leader.send_signal(signal.SIGTERM)
        assert finish(leader).code == 143
    else:
        old.release()
        assert_all_answered([finish(leader)])
    assert holders(tinyllm) == taken
    new.release()
    assert_all_answered([finish(process) for process in crowd.processes[1:]])
    assert_all_answered([tinyllm("run", "Count.")])
    assert (ollama.generations, stored(tinyllm.snapshot)) == (2, 2)
    assert holders(tinyllm) == []


# --- what is shared between those who wait

WAITERS = """
import asyncio
from tests.memory import peak_memory
from tinyllm_cli import OllamaClient, create_cached_client

async def main(url, waiters):
    client = await create_cached_client(OllamaClient(url, default_model="llama3.2"))
    others_are_done = asyncio.Event()

    async def read():
        return [piece async for piece in client.generate_stream("Tell me all.")]

    async def read_slowly():
        got = 0
        async for piece in client.generate_stream("Tell me all."):
            got += len(piece)
            await others_are_done.wait()
        return got

    async with client:
        await client.generate("Warm up.")
        before = peak_memory()
        slow = asyncio.create_task(read_slowly())
        kept = await asyncio.gather(*(read() for _ in range(waiters)))
        others_are_done.set()
        lengths = {await slow, *(sum(map(len, pieces)) for pieces in kept)}
        grown = peak_memory() - before
    print(*lengths, grown)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def test_k08_a_long_answer_and_a_slow_waiter(ollama: FakeOllama) -> None:
    """A thousand keep all they read and share one buffer; the slow one holds nobody up."""
    megabytes = 10
    ollama.inject(Fault.zero_tokens(), Fault.big_body(megabytes * 2**20))
    length, grown = map(int, processes.run(WAITERS, ollama.url, 1000).split())
    assert (length, ollama.generations) == (megabytes * 2**20, 2)
    assert grown < 8 * megabytes * 2**20


@pytest.mark.parametrize("how", ["miss", "coalesced", "hit"])
@in_loop
async def test_k09_a_caller_changes_what_it_got(ollama: FakeOllama, how: str) -> None:
    calls = [{"id": "call_1", "function": {"name": "f", "arguments": {"a": [1]}}}]
    ollama.chunks = [{"response": "Because"}, {"tool_calls": calls, "context": [1, 2]}]
    async with client_of(ollama) as client:
        if how == "coalesced":
            one, _ = await asyncio.gather(client.generate("Why?"), client.generate("Why?"))
        else:
            one = await client.generate("Why?")
            if how == "hit":
                one = await client.generate("Why?")
        before = one.to_dict()
        anything: Any = one
        with pytest.raises(AttributeError):
            anything.response = "Changed"
        function: Any = anything.tool_calls[0]["function"]
        spoilers: list[Callable[[], object]] = [
            lambda: function.update({"name": "g"}),
            lambda: function["arguments"]["a"].append(2),
            lambda: anything.tool_calls.clear(),
            lambda: anything.context.append(3),
        ]
        for spoil in spoilers:
            with pytest.raises((TypeError, AttributeError)):
                spoil()
        mine = one.to_dict()
        mine["tool_calls"][0]["function"]["arguments"]["a"].append(2)
        mine["context"].clear()
        again = await client.generate("Why?")
        assert again.to_dict() == before
    assert ollama.generations == 1


# --- the end

ENDING = """
import asyncio, gc, threading
from tinyllm_cli import OllamaClient, create_cached_client

async def main(how, url, snapshot):
    client = await create_cached_client(
        OllamaClient(url, default_model="qwen2.5:0.5b"), snapshot=snapshot
    )
    await client.generate("Something else")  # a hit, which is counted behind the answer
    asking = [asyncio.create_task(client.generate(f"Question {n % 3}")) for n in range(9)]
    reading = client.generate_stream("Question 0")
    first = await anext(reading)
    print("asked", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    started = time.monotonic()
    if how == "closed":
        await client.close()
        ends = await asyncio.gather(*asking, return_exceptions=True)
        assert {type(end).__name__ for end in ends} == {"IncompleteAnswerError"}, ends
    return started

started = asyncio.run(main(*sys.argv[1:]))
gc.collect()
assert time.monotonic() - started < 1
assert threading.enumerate() == [threading.main_thread()], threading.enumerate()
"""


@pytest.mark.parametrize("how", ["closed", "left"])
def test_k10_the_loop_ends_with_questions_open(
    tinyllm: Tinyllm, ollama: FakeOllama, how: str
) -> None:
    """Closed before or not, a program ends at once and in silence; what it counted is kept."""
    assert tinyllm("run", "Something else").code == 0  # makes the directory
    barrier = ollama.hold_after(2)
    process = processes.start(ENDING, how, ollama.url, tinyllm.snapshot)
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "asked\n"
    barrier.wait_for(3)
    process.stdin.write("go on\n")
    assert processes.finish(process) == ""
    ollama.wait_until(lambda server: sum(one.client_closed for one in server.log) == 3)
    barrier.release()
    stats = json.loads(tinyllm("cache-stats", "--json").out)
    assert (stats["hits"], stats["entries"]) == (1, 1)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a limit is set on a process that runs")
def test_k11_the_leader_cannot_store(crowd: Crowd, ollama: FakeOllama, tinyllm: Tinyllm) -> None:
    """From the middle of its answer on it can write no file: it says so, and another takes over."""
    import resource

    barrier = ollama.hold_after(2, times=1)
    (leader,) = crowd.ask()
    barrier.wait_for(1)
    crowd.ask(4)
    resource.prlimit(leader.pid, resource.RLIMIT_FSIZE, (0, 0))
    barrier.release()
    first, *others = crowd.finish()
    assert (first.code, first.text) == (0, f"{ANSWER}\n")
    assert first.complaint.startswith("tinyllm: cache: ") and first.complaint.count("\n") == 1
    assert_all_answered(others)
    assert (ollama.generations, stored(tinyllm.snapshot)) == (2, 2)
    assert_all_answered([tinyllm("run", "Count.")])
    assert ollama.generations == 2


@pytest.mark.parametrize("backend", ["memory", "snapshot"])
@in_loop
async def test_k11_what_is_being_read_is_evicted(
    ollama: FakeOllama, backend: str, tmp_path: Path
) -> None:
    """In a cache with room for one answer everybody gets the right one, and all of it."""
    ollama.answer = lambda body: f"The answer to {body['prompt']}, from first to last word."
    prompts = [f"Question {number}" for number in range(8)]
    snapshot = tmp_path / "cache" / "snapshot.sqlite3" if backend == "snapshot" else None
    store = InMemoryBackend(max_size=1, snapshot=snapshot)
    async with client_of(ollama, backend=store) as client:
        right = {prompt: (await client.generate(prompt)).response for prompt in prompts}
        asked = ollama.generations
        reading: AsyncIterator[str] = client.generate_stream(prompts[-1])
        first = await anext(reading)
        assert ollama.generations == asked  # it is stored,
        await client.generate(prompts[0])
        assert await client.cache.size() == 1
        assert first + await text_of(reading) == right[prompts[-1]]
        await client.generate(prompts[-1])
        assert ollama.generations == asked + 2  # and was gone while it was read
        crowd = [*prompts * 5]
        given = await asyncio.gather(*(text_of(client.generate_stream(one)) for one in crowd))
        assert given == [right[one] for one in crowd]
        assert await client.cache.size() == 1
