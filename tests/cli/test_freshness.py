"""Does the command keep its answers as fresh, and its models as current, as it was told to?"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.outcome import assert_failed, finish, stored
from tests.conftest import Finished, Tinyllm
from tests.fake_ollama import FakeOllama, Fault
from tinyllm_cli.backends.memory import InMemoryBackend

EXPIRED = ["run", "--cache-ttl", "0.001"]
REVALIDATE = [*EXPIRED, "--stale-while-revalidate", "1h"]
SPARE = [*EXPIRED, "--stale-if-error", "24h"]
QUESTION = "Why is the sky blue?"


@pytest.fixture(autouse=True)
def drifting(ollama: FakeOllama) -> None:
    """Have every generation give another answer, so that old and new can be told apart."""
    ollama.drift = True


def until(holds: Callable[[], bool], patience: float = 30) -> None:
    """Wait for what processes that nobody holds any more do to files."""
    deadline = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def renewed(tinyllm: Tinyllm, old: Finished) -> bool:
    """Say whether the snapshot holds one answer and it is another than the one that was given."""
    backend = InMemoryBackend(snapshot=tinyllm.snapshot)
    texts = [entry.response.response for _, entry in backend.entries()]
    backend.close_nowait()
    return len(texts) == 1 and texts != [old.text.removesuffix("\n")]


def left_running(tinyllm: Tinyllm) -> bool:
    """Say whether a process still works in the user's home, as a renewal does."""
    for entry in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if os.readlink(entry) == str(tinyllm.home):
                return True
        except OSError:
            continue
    return False


def record(done: Finished) -> dict[str, Any]:
    assert done.code == 0, done
    made: dict[str, Any] = json.loads(done.out)
    return made


def stats(tinyllm: Tinyllm) -> dict[str, Any]:
    return record(tinyllm("cache-stats", "--json"))


# --- an expired answer at once, renewed behind


def test_a_stale_answer_is_there_at_once_and_renewed_behind(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    """The command ends, and its output with it, while the model has not even begun to answer."""
    old = tinyllm(*REVALIDATE, QUESTION)
    barrier = ollama.hold()
    stale = tinyllm(*REVALIDATE, QUESTION)
    assert (stale.code, stale.out) == (0, old.out)
    assert "past its TTL" in stale.complaint and stale.complaint.count("\n") == 1
    barrier.wait_for(1)
    assert record(tinyllm(*REVALIDATE, "--json", QUESTION))["outcome"] == "stale"
    barrier.release()
    until(lambda: renewed(tinyllm, old))
    new = tinyllm("run", "--cache-only", *REVALIDATE[1:], QUESTION)
    assert (new.code, new.out != old.out) == (0, True)
    until(lambda: not left_running(tinyllm))


def test_it_is_renewed_behind_when_the_model_is_checked_first(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    strict = [*REVALIDATE, "--coherence", "strict", QUESTION]
    old = tinyllm(*strict)
    barrier = ollama.hold()
    stale = tinyllm(*strict)
    assert (stale.code, stale.out, ollama.generations) == (0, old.out, 1)
    barrier.wait_for(1)
    barrier.release()
    until(lambda: renewed(tinyllm, old))
    until(lambda: not left_running(tinyllm))


def test_stale_samples_are_all_renewed(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    three = [*REVALIDATE, "--samples", "3", QUESTION]
    old = tinyllm(*three)
    assert tinyllm(*three).out == old.out
    until(lambda: not left_running(tinyllm))
    assert ollama.generations == 6
    new = tinyllm("run", "--cache-only", *three[1:])
    assert (new.code, set(new.text.splitlines()) & set(old.text.splitlines())) == (0, set())


def test_from_the_cache_alone_nothing_is_renewed(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    old = tinyllm(*REVALIDATE, "--digest-max-age", "0", QUESTION)
    asked = len(ollama.log)
    stale = tinyllm(*REVALIDATE, "--digest-max-age", "0", "--cache-only", QUESTION)
    assert (stale.code, stale.out) == (0, old.out)
    until(lambda: not left_running(tinyllm))
    assert len(ollama.log) == asked


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="looks for processes in /proc")
def test_many_stale_hits_at_once_are_one_renewal(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    old = tinyllm(*REVALIDATE, QUESTION)
    barrier = ollama.hold()
    command = ["run", "-q", *REVALIDATE[3:], QUESTION]  # the new one keeps for an hour
    for process in [tinyllm.start(*command) for _ in range(6)]:
        done = finish(process)
        assert (done.code, done.out, done.err) == (0, old.out, b"")
    barrier.wait_for(1)
    barrier.release()
    until(lambda: renewed(tinyllm, old))
    until(lambda: not left_running(tinyllm))
    assert ollama.generations == 2
    figures = stats(tinyllm)
    assert (figures["hits"], figures["stale"], figures["misses"]) == (6, 6, 1)


@pytest.mark.slow
def test_a_renewal_that_fails_harms_nobody(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    old = tinyllm(*REVALIDATE, QUESTION)
    ollama.stop()
    for _ in range(2):
        stale = tinyllm(*REVALIDATE, QUESTION)
        assert (stale.code, stale.out) == (0, old.out)
        until(lambda: not left_running(tinyllm))
    assert stored(tinyllm.snapshot) == 1
    figures = stats(tinyllm)
    assert (figures["hits"], figures["stale"], figures["misses"]) == (2, 2, 1)


@pytest.mark.slow
def test_early_renewal_is_a_setting(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    """By lot, but with this beta nearly sure: a miss in a hundred million tests."""
    ollama.token_delay = 0.02
    eager = {"TINYLLM_EARLY_RENEWAL_BETA": "1000"}
    old = tinyllm("run", "--cache-ttl", "10", QUESTION)
    for _ in range(5):
        hit = tinyllm("run", "--cache-ttl", "10", QUESTION, environ=eager)
        assert (hit.code, hit.err) == (0, b"")
        if hit.out != old.out or ollama.generations > 1:
            break
    until(lambda: renewed(tinyllm, old))
    until(lambda: not left_running(tinyllm))


# --- an expired answer because there is no other


def test_with_the_server_down_an_expired_answer_serves_and_says_so(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    old = tinyllm(*SPARE, QUESTION)
    ollama.stop()
    spare = tinyllm(*SPARE, QUESTION)
    assert (spare.code, spare.out) == (0, old.out)
    assert "past its TTL" in spare.complaint and spare.complaint.count("\n") == 1
    assert record(tinyllm(*SPARE, "--json", QUESTION))["outcome"] == "stale"
    assert tinyllm(*SPARE, "-q", QUESTION).err == b""
    assert_failed(tinyllm(*EXPIRED, QUESTION), 3)
    assert_failed(tinyllm(*SPARE, "--refresh", QUESTION), 3)


def test_with_the_server_up_an_expired_answer_is_no_answer(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    old = tinyllm(*SPARE, QUESTION)
    new = tinyllm(*SPARE, QUESTION)
    assert (new.code, new.err, new.out == old.out) == (0, b"", False)
    ollama.inject(Fault.status(404, "model 'qwen2.5:0.5b' not found"))
    assert_failed(tinyllm(*SPARE, QUESTION), 4)


# --- every way to an answer has a name


def test_every_outcome_is_in_the_record_the_counters_and_the_log(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    def run(*arguments: str) -> tuple[str, bool, str]:
        done = tinyllm("run", "--json", "-v", *arguments, QUESTION)
        made = record(done)
        assert QUESTION not in done.complaint and made["response"] not in done.complaint
        if made["key"] is not None:
            assert made["key"] not in done.complaint  # shortened
        events = [line.split()[2] for line in done.complaint.splitlines() if "DEBUG" in line]
        return made["outcome"], made["cached"], " ".join(events)

    assert run() == ("miss", False, "cache_miss cache_set")
    assert run() == ("hit", True, "cache_hit")
    assert run("--refresh") == ("refreshed", False, "cache_refreshed cache_set")
    assert run("--no-cache") == ("bypassed", False, "cache_bypassed")
    assert run("--cache-when", "deterministic") == ("bypassed", False, "cache_bypassed")
    figures = stats(tinyllm)
    names = ("hits", "misses", "sets", "refreshed", "bypassed", "coalesced", "stale", "expirations")
    assert [figures[name] for name in names] == [1, 1, 2, 1, 1, 0, 0, 0]

    ollama.stop()
    tinyllm("run", "--refresh", *SPARE[1:], QUESTION)
    assert run(*SPARE[1:])[:2] == ("hit", True)  # the TTL is the entry's own


# --- which model's answer it is


def test_a_model_that_changed_answers_anew_once_it_was_noticed(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    command = ["run", "--digest-max-age", "0", "--temperature", "0", QUESTION]
    old = tinyllm(*command)
    ollama.repull("qwen2.5:0.5b", "w2")
    asked = len(ollama.requests("/api/tags"))
    barrier = ollama.hold("/api/tags")
    assert tinyllm(*command).out == old.out  # at once; the check is made behind it
    barrier.wait_for(1)
    barrier.release()
    until(lambda: not left_running(tinyllm))
    assert len(ollama.requests("/api/tags")) == asked + 1
    new = tinyllm(*command)
    assert (new.code, new.out != old.out, ollama.generations) == (0, True, 2)


def test_a_digest_that_is_young_enough_is_not_checked(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    tinyllm("run", QUESTION)
    asked = len(ollama.log)
    for _ in range(3):
        tinyllm("run", QUESTION)
    until(lambda: not left_running(tinyllm))
    assert len(ollama.log) == asked


def test_with_the_server_down_the_last_known_model_answers(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    command = ["run", "--digest-max-age", "0", QUESTION]
    old = tinyllm(*command)
    ollama.stop()
    for _ in range(2):
        again = tinyllm(*command)
        assert (again.code, again.out, again.err) == (0, old.out, b"")


@pytest.mark.slow
def test_strict_asks_first_and_fails_without_a_server(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    command = ["run", "--coherence", "strict", QUESTION]
    old = tinyllm(*command)
    asked = len(ollama.requests("/api/tags"))
    assert tinyllm(*command).out == old.out
    assert (len(ollama.requests("/api/tags")), ollama.generations) == (asked + 1, 1)
    ollama.repull("qwen2.5:0.5b", "w2")
    assert tinyllm(*command).out != old.out
    ollama.stop()
    assert_failed(tinyllm(*command), 3)


def test_a_model_that_changes_while_it_answers_leaves_nothing(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    ollama.inject(Fault.flip_digest("qwen2.5:0.5b", "w2", after=3))
    first = tinyllm("run", QUESTION)
    assert (first.code, first.err, stored(tinyllm.snapshot)) == (0, b"", 0)
    second = tinyllm("run", QUESTION)
    assert tinyllm("run", QUESTION).out == second.out != first.out
    assert (stored(tinyllm.snapshot), ollama.generations) == (1, 2)
