"""Does the command give several answers to one question, the same ones each time, and no more work?"""

from __future__ import annotations

import json

import pytest

from tests.cli.outcome import assert_failed, finish, stored
from tests.conftest import Tinyllm
from tests.fake_ollama import FakeOllama

QUESTION = "Roll a die."


def test_from_thirty_to_fifty_twenty_are_generated_and_the_order_stays(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    thirty = tinyllm("run", "--samples", "30", QUESTION)
    assert (thirty.code, thirty.err, ollama.generations) == (0, b"", 30)
    assert len(set(thirty.text.splitlines())) == 30
    for _ in range(2):
        fifty = tinyllm("run", "--samples", "50", QUESTION)
        assert (fifty.code, ollama.generations) == (0, 50)
        assert fifty.text.splitlines()[:30] == thirty.text.splitlines()
        assert len(set(fifty.text.splitlines())) == 50
    assert tinyllm("run", "--samples", "30", QUESTION).out == thirty.out
    assert (ollama.generations, stored(tinyllm.snapshot)) == (50, 50)


def test_one_sample_is_the_nth_of_the_set(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    first = tinyllm("run", QUESTION)
    second = tinyllm("run", "--sample", "2", QUESTION)
    three = tinyllm("run", "--samples", "3", QUESTION).text.splitlines(keepends=True)
    assert (three[:2], ollama.generations) == ([first.text, second.text], 3)
    assert tinyllm("run", "--sample", "1", QUESTION).out == first.out
    new = tinyllm("run", "--sample", "2", "--refresh", QUESTION)
    assert tinyllm("run", "--samples", "3", QUESTION).text == three[0] + new.text + three[2]
    assert ollama.generations == 4


def test_a_set_keeps_its_order_when_one_in_the_middle_is_gone(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    set_of_four = ("run", "--json", "--samples", "4", QUESTION)
    made = [json.loads(line) for line in tinyllm(*set_of_four).text.splitlines()]
    tinyllm("cache-clear", "--yes", "--key", made[1]["key"])
    again = tinyllm(*set_of_four)
    records = [json.loads(line) for line in again.text.splitlines()]
    assert [one["key"] for one in records] == [one["key"] for one in made]
    assert [one["cached"] for one in records] == [True, False, True, True]
    assert (again.code, again.err, ollama.generations) == (0, b"", 5)


def test_each_record_says_which_sample_it_is(tinyllm: Tinyllm) -> None:
    for cached in (False, True):
        done = tinyllm("run", "--json", "--samples", "3", QUESTION)
        records = [json.loads(line) for line in done.text.splitlines()]
        assert [one.get("sample", 1) for one in records] == [1, 2, 3]
        assert [one["cached"] for one in records] == [cached] * 3
        assert len({one["key"] for one in records}) == 3


def test_two_sets_at_once_are_one(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    """No index is generated twice, and none is left out."""
    tinyllm("run", "Something else")
    processes = [tinyllm.start("run", "--samples", "5", QUESTION) for _ in range(3)]
    done = [finish(process) for process in processes]
    assert {one.code for one in done} == {0}
    assert len({one.out for one in done}) == 1
    assert ollama.generations == 1 + 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sample", "0"], "--sample"),
        (["--samples", "0"], "--samples"),
        (["--sample", "x"], "--sample"),
        (["--sample", "2", "--samples", "3"], "contradict"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(
    tinyllm: Tinyllm, ollama: FakeOllama, arguments: list[str], words: str
) -> None:
    assert_failed(tinyllm("run", *arguments, QUESTION), 2, words)
    assert ollama.log == []


def test_from_the_cache_alone_a_missing_sample_is_a_miss(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    tinyllm("run", QUESTION)
    missed = tinyllm("run", "--cache-only", "--sample", "2", QUESTION)
    assert (missed.code, missed.out, ollama.generations) == (7, b"", 1)


# --- when the cache should not answer


@pytest.mark.slow
@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("arguments", "cached"),
    [
        (["--temperature", "0"], True),
        (["-o", "seed=1"], True),
        ([], False),
        (["-o", "seed=-1"], False),
    ],
)
def test_deterministic_leaves_alone_what_may_differ_each_time(
    tinyllm: Tinyllm, ollama: FakeOllama, arguments: list[str], cached: bool
) -> None:
    command = ["run", "--cache-when", "deterministic", *arguments, QUESTION]
    first, second = tinyllm(*command), tinyllm(*command)
    assert (first.code, second.code) == (0, 0)
    assert (first.out == second.out) is cached
    assert (ollama.generations, stored(tinyllm.snapshot)) == ((1, 1) if cached else (2, 0))
