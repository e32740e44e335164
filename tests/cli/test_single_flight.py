"""Do processes that ask one thing at once cost one generation, whatever becomes of the first?"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator

import pytest

from tests.cli.crowd import ANSWER, Crowd, assert_all_answered, crowd_of
from tests.conftest import Tinyllm
from tests.fake_ollama import FakeOllama


@pytest.fixture
def crowd(tinyllm: Tinyllm, ollama: FakeOllama) -> Iterator[Crowd]:
    with crowd_of(tinyllm, ollama) as crowd:
        yield crowd


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


def test_who_wants_no_cache_waits_for_nobody(crowd: Crowd, ollama: FakeOllama) -> None:
    barrier = ollama.hold()
    (leader,) = crowd.ask()
    barrier.wait_for(1)
    crowd.processes.append(crowd._tinyllm.start("run", "--no-cache", "Count."))
    barrier.wait_for(2)
    assert leader.poll() is None
    barrier.release()
    assert_all_answered(crowd.finish())
