"""Do processes that ask one thing at once cost one generation, whatever becomes of the first?"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from tests.cli.outcome import finish, stored
from tests.conftest import Finished, Tinyllm
from tests.fake_ollama import FakeOllama, Fault
from tests.redis_server import RedisServer

ANSWER = "one two three four"
Process = subprocess.Popen[bytes]


class Crowd:
    """Processes that ask the same question, ended with the test."""

    def __init__(self, tinyllm: Tinyllm, ollama: FakeOllama) -> None:
        self._tinyllm = tinyllm
        self._ollama = ollama
        self.processes: list[Process] = []

    def ask(self, number: int = 1, *arguments: str, **environ: str) -> list[Process]:
        """Start processes and wait until each has looked in vain and asked for the digest.

        From there each takes its turn: the first asks the model, the others wait for it. On a very
        busy machine one may do without the digest.
        """
        before = len(self._ollama.requests("/api/tags"))
        command = ["run", *arguments, "Count."]
        started = [self._tinyllm.start(*command, environ=environ) for _ in range(number)]
        self.processes += started
        with contextlib.suppress(AssertionError):
            self._ollama.wait_until(
                lambda server: len(server.requests("/api/tags")) >= before + number, timeout=30
            )
        return started

    def finish(self, timeout: float = 60) -> list[Finished]:
        return [finish(process, timeout) for process in self.processes]

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


@pytest.fixture
def crowd(tinyllm: Tinyllm, ollama: FakeOllama) -> Iterator[Crowd]:
    ollama.answer = lambda body: ANSWER
    crowd = Crowd(tinyllm, ollama)
    assert tinyllm("run", "Something else").code == 0  # the model's digest is known to all
    ollama.generations = 0
    ollama.log.clear()
    try:
        yield crowd
    finally:
        crowd.end()


def assert_all_answered(done: list[Finished]) -> None:
    for one in done:
        assert (one.code, one.text, one.complaint) == (0, f"{ANSWER}\n", "")


@pytest.mark.parametrize("number", [16, pytest.param(64, marks=pytest.mark.slow)])
def test_many_processes_are_one_generation(
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


@pytest.mark.slow
def test_many_processes_that_come_as_they_like_are_one_generation(
    crowd: Crowd, ollama: FakeOllama, tinyllm: Tinyllm
) -> None:
    """Nobody is held: some look while the answer is being stored, some between look and turn."""
    for round in range(8):
        command = ["run", f"Count to {round}."]
        crowd.processes += [tinyllm.start(*command) for _ in range(16)]
        assert_all_answered(crowd.finish())
        assert ollama.generations == 1 + round
        crowd.processes.clear()


def test_one_that_comes_in_the_middle_waits_too_and_says_how_it_got_its_answer(
    crowd: Crowd, ollama: FakeOllama
) -> None:
    barrier = ollama.hold_after(2)
    crowd.ask()
    barrier.wait_for(1)
    crowd.ask(1, "--json")
    barrier.release()
    leader, follower = crowd.finish()
    assert leader.text == f"{ANSWER}\n"
    record = json.loads(follower.out)
    assert (record["response"], record["outcome"], record["cached"]) == (ANSWER, "coalesced", True)
    assert ollama.generations == 1


@pytest.mark.parametrize(
    "after",
    [
        random.randint(1, 4),
        *(pytest.param(number, marks=pytest.mark.slow) for number in range(1, 5)),
    ],
    ids=lambda after: "token",
)
def test_a_leader_that_is_killed_costs_one_more_generation(
    crowd: Crowd, ollama: FakeOllama, tinyllm: Tinyllm, after: int
) -> None:
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


@pytest.mark.slow
def test_a_leader_that_is_stopped_is_not_waited_for_and_does_no_harm_later(
    crowd: Crowd, ollama: FakeOllama, tinyllm: Tinyllm
) -> None:
    barrier = ollama.hold_after(2, times=1)
    (leader,) = crowd.ask()
    barrier.wait_for(1)
    crowd.ask(2)
    leader.send_signal(signal.SIGSTOP)
    try:
        assert_all_answered([finish(process) for process in crowd.processes[1:]])
        assert ollama.generations == 2
    finally:
        leader.send_signal(signal.SIGCONT)
    barrier.release()
    assert_all_answered([finish(leader)])
    assert_all_answered([tinyllm("run", "Count.")])
    assert (ollama.generations, stored(tinyllm.snapshot)) == (2, 2)


def test_a_leader_that_is_interrupted_lets_the_next_one_in_at_once(
    crowd: Crowd, ollama: FakeOllama
) -> None:
    barrier = ollama.hold_after(2, times=1)
    (leader,) = crowd.ask()
    barrier.wait_for(1)
    crowd.ask(3)
    leader.send_signal(signal.SIGINT)
    ollama.wait_until(lambda server: server.generations == 2)
    interrupted, *others = crowd.finish()
    assert interrupted.code == 130
    assert_all_answered(others)
    assert ollama.generations == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environ", "fault", "code"),
    [
        ({}, Fault.cut(after=4), 5),
        # an answer that cannot be stored is no answer for those who wait
        ({"TINYLLM_CACHE_MAX_ENTRY_BYTES": "100"}, None, 0),
    ],
    ids=["cut", "too large to store"],
)
def test_when_waiting_makes_no_sense_nobody_queues(
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


def test_a_refusal_reaches_every_process_and_none_asks_twice(
    crowd: Crowd, ollama: FakeOllama, tinyllm: Tinyllm
) -> None:
    ollama.inject(Fault.status(500, "boom"), times=None)
    barrier = ollama.hold(times=1)
    crowd.ask(4)
    barrier.wait_for(1)
    barrier.release()
    assert [one.code for one in crowd.finish()] == [4] * 4
    assert len(ollama.requests("/api/generate")) == 4
    ollama.clear_faults()
    # what they left behind holds up nobody
    started = time.monotonic()
    assert_all_answered([tinyllm("run", "Count.")])
    assert time.monotonic() - started < 3


def test_without_a_store_everybody_asks_and_is_answered(
    crowd: Crowd, ollama: FakeOllama, tinyllm: Tinyllm
) -> None:
    shutil.rmtree(tinyllm.cache_dir)
    tinyllm.cache_dir.write_text("a file, where the directory should be")
    barrier = ollama.hold()
    crowd.ask(3)
    barrier.wait_for(3)
    barrier.release()
    for one in crowd.finish():
        assert (one.code, one.text) == (0, f"{ANSWER}\n")
        assert one.complaint.startswith("tinyllm: cache: ") and one.complaint.count("\n") == 1


@pytest.mark.parametrize(
    "killed",
    [
        pytest.param(False, id="all live"),
        pytest.param(True, id="leader killed", marks=pytest.mark.slow),
    ],
)
def test_machines_that_share_a_redis_are_one_generation(
    another_tinyllm: Callable[[str], Tinyllm], ollama: FakeOllama, killed: bool
) -> None:
    """Each has a home and a cache directory of its own; only Redis is between them."""
    ollama.answer = lambda body: ANSWER
    machines = [another_tinyllm(f"machine {number}") for number in range(3)]
    with RedisServer() as server:
        for machine in machines:
            machine.environ |= {
                "TINYLLM_CACHE_BACKEND": "redis",
                "TINYLLM_REDIS_URL": server.url,
            }
            assert machine("run", "Something else").code == 0
        assert ollama.generations == 1
        barrier = ollama.hold_after(2, times=1)
        crowds = [Crowd(machine, ollama) for machine in machines]
        try:
            (leader,) = crowds[0].ask()
            barrier.wait_for(1)
            for crowd in crowds[1:]:
                crowd.ask(2)
            if killed:
                leader.kill()
                leader.wait()
            else:
                barrier.release()
            done = [one for crowd in crowds for one in crowd.finish()]
        finally:
            for crowd in crowds:
                crowd.end()
        assert_all_answered(done[1:] if killed else done)
        assert ollama.generations == (3 if killed else 2)


def test_who_wants_no_cache_waits_for_nobody(crowd: Crowd, ollama: FakeOllama) -> None:
    barrier = ollama.hold()
    (leader,) = crowd.ask()
    barrier.wait_for(1)
    crowd.processes.append(crowd._tinyllm.start("run", "--no-cache", "Count."))
    barrier.wait_for(2)
    assert leader.poll() is None
    barrier.release()
    assert_all_answered(crowd.finish())
