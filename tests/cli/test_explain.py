"""Does `tinyllm cache-explain` say what a run would come to, and why, without doing any of it?"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli.outcome import assert_failed
from tests.conftest import Tinyllm
from tests.fake_ollama import FakeOllama

QUESTION = "Why is the sky blue?"


def explained(tinyllm: Tinyllm, *arguments: str) -> dict[str, Any]:
    done = tinyllm("cache-explain", "--json", *arguments)
    assert (done.code, done.err) == (0, b""), done
    made: dict[str, Any] = json.loads(done.out)
    return made


def said(tinyllm: Tinyllm, *arguments: str) -> list[str]:
    done = tinyllm("cache-explain", *arguments)
    assert (done.code, done.err) == (0, b""), done
    return done.text.splitlines()


@pytest.fixture
def asked(tinyllm: Tinyllm) -> dict[str, Any]:
    """Ask a question and give the record of its answer."""
    made: dict[str, Any] = json.loads(tinyllm("run", "--json", QUESTION).out)
    return made


def test_a_hit(tinyllm: Tinyllm, asked: dict[str, Any]) -> None:
    found = explained(tinyllm, QUESTION)
    assert (found["outcome"], found["reason"], found["key"]) == ("hit", "hit", asked["key"])
    assert (found["nearest"], found["differences"]) == (asked["key"], [])
    assert 0 < found["age_s"] < 60
    first, second = said(tinyllm, QUESTION)
    assert first.startswith("hit: answered from the cache, ")
    assert second == f"key: {asked['key']}"
    # and a run agrees
    assert json.loads(tinyllm("run", "--json", QUESTION).out)["outcome"] == "hit"


def test_nothing_stored(tinyllm: Tinyllm) -> None:
    found = explained(tinyllm, QUESTION)
    assert (found["outcome"], found["reason"], found["nearest"]) == ("miss", "nothing stored", None)
    assert said(tinyllm, QUESTION)[0] == "miss: nothing like it is stored"


def test_another_request(tinyllm: Tinyllm, asked: dict[str, Any]) -> None:
    library = "registry.ollama.ai/library"
    for arguments, differences in (
        (["-s", "Be brief."], [("system", None, "Be brief.")]),
        (["-m", "llama3.2"], [("model", f"{library}/qwen2.5:0.5b", f"{library}/llama3.2:latest")]),
        (
            ["-t", "0.7", "--max-tokens", "10", "-o", "seed=1", "--json-mode", "--think"],
            [
                ("options.temperature", 0.3, 0.7),
                ("options.num_predict", 2000, 10),
                ("options.seed", None, 1),
                ("format", None, "json"),
                ("think", None, True),
            ],
        ),
    ):
        found = explained(tinyllm, *arguments, QUESTION)
        assert (found["outcome"], found["reason"]) == ("miss", "differs")
        assert found["nearest"] == asked["key"] != found["key"]
        names = ("path", "stored", "asked")
        told = [tuple(one[name] for name in names) for one in found["differences"]]
        assert sorted(told, key=str) == sorted(differences, key=str)
    lines = said(tinyllm, "-t", "0.7", "-s", "Be brief.", QUESTION)
    assert lines[0].startswith("miss: the nearest stored answer, ")
    assert lines[2] == f"nearest: {asked['key']}"
    assert sorted(lines[3:]) == [
        "  options.temperature: stored 0.3, asked 0.7",
        '  system: stored nothing, asked "Be brief."',
    ]


def test_another_prompt_is_shown_by_both_and_not_at_length(tinyllm: Tinyllm) -> None:
    tinyllm("run", "Once upon a time " * 50)
    lines = said(tinyllm, QUESTION)
    assert lines[3].startswith('  prompt: stored "Once upon a time')
    assert f'asked "{QUESTION}"' in lines[3] and len(lines[3]) < 200


def test_an_expired_one(tinyllm: Tinyllm) -> None:
    tinyllm("run", "--cache-ttl", "0.001", QUESTION)
    found = explained(tinyllm, QUESTION)
    assert (found["outcome"], found["reason"]) == ("miss", "expired")
    assert "past its TTL" in said(tinyllm, QUESTION)[0]
    # one that is kept for a bad day is no answer on a good one
    assert explained(tinyllm, "--stale-if-error", "1h", QUESTION)["reason"] == "expired"


def test_a_stale_one(tinyllm: Tinyllm) -> None:
    tinyllm("run", "--cache-ttl", "0.001", QUESTION)
    found = explained(tinyllm, "--stale-while-revalidate", "1h", QUESTION)
    assert (found["outcome"], found["reason"]) == ("hit", "stale")
    assert "renewed behind" in said(tinyllm, "--stale-while-revalidate", "1h", QUESTION)[0]


@pytest.mark.slow
def test_an_evicted_one(tinyllm: Tinyllm) -> None:
    tinyllm("run", QUESTION)
    tinyllm("run", "--cache-max-entries", "1", "Something else")
    found = explained(tinyllm, QUESTION)
    assert (found["outcome"], found["reason"], found["age_s"]) == ("miss", "evicted", None)
    assert "evicted for room" in said(tinyllm, QUESTION)[0]
    tinyllm("run", QUESTION)  # and back again
    assert explained(tinyllm, QUESTION)["reason"] == "hit"


def test_one_of_the_model_before(
    tinyllm: Tinyllm, ollama: FakeOllama, asked: dict[str, Any]
) -> None:
    ollama.repull("qwen2.5:0.5b", "w2")
    tinyllm("run", "Something else")  # a miss learns it
    found = explained(tinyllm, QUESTION)
    assert (found["outcome"], found["reason"]) == ("miss", "other model")
    assert (found["nearest"], found["differences"]) == (asked["key"], [])
    assert "another version of qwen2.5:0.5b" in said(tinyllm, QUESTION)[0]


def test_another_sample(tinyllm: Tinyllm, asked: dict[str, Any]) -> None:
    found = explained(tinyllm, "--sample", "2", QUESTION)
    assert (found["outcome"], found["reason"]) == ("miss", "other place")
    assert found["nearest"] == asked["key"] != found["key"]
    assert "another sample" in said(tinyllm, "--sample", "2", QUESTION)[0]


def test_another_namespace(tinyllm: Tinyllm, asked: dict[str, Any]) -> None:
    found = explained(tinyllm, "--namespace", "tests", QUESTION)
    assert (found["outcome"], found["nearest"]) == ("miss", asked["key"])
    assert "namespace" in said(tinyllm, "--namespace", "tests", QUESTION)[0]


def test_what_the_cache_has_no_part_in(tinyllm: Tinyllm) -> None:
    found = explained(tinyllm, "--cache-when", "deterministic", QUESTION)
    assert (found["outcome"], found["reason"]) == ("miss", "bypassed")
    assert said(tinyllm, "-m", "big:120b-cloud", QUESTION)[0].startswith("bypassed: ")


def test_explaining_asks_nobody_and_counts_nothing(
    tinyllm: Tinyllm, ollama: FakeOllama, asked: dict[str, Any]
) -> None:
    before = tinyllm("cache-stats", "--json").out
    requests = len(ollama.log)
    for arguments in ([], ["--temperature", "1"], ["--sample", "2"], ["-m", "no-such-model"]):
        explained(tinyllm, *arguments, QUESTION)
    assert (tinyllm("cache-stats", "--json").out, len(ollama.log)) == (before, requests)
    ollama.stop()
    assert explained(tinyllm, QUESTION)["reason"] == "hit"


@pytest.mark.slow
def test_explaining_does_not_keep_an_answer_from_eviction(tinyllm: Tinyllm) -> None:
    tinyllm("run", QUESTION)
    tinyllm("run", "Something else")
    explained(tinyllm, QUESTION)
    tinyllm("run", "--cache-max-entries", "2", "A third")
    assert explained(tinyllm, QUESTION)["reason"] == "evicted"


def test_the_prompt_is_read_as_run_reads_it(tinyllm: Tinyllm, asked: dict[str, Any]) -> None:
    done = tinyllm("cache-explain", "--json", stdin=QUESTION.encode())
    assert json.loads(done.out)["reason"] == "hit"
    (tinyllm.home / "question.txt").write_text(QUESTION)
    assert explained(tinyllm, "-f", "question.txt")["reason"] == "hit"


def test_what_makes_no_sense_is_said(tinyllm: Tinyllm) -> None:
    assert_failed(tinyllm("cache-explain", "--sample", "0", QUESTION), 2, "--sample")
    assert_failed(tinyllm("cache-explain"), 2)
    tinyllm.cache_dir.write_text("a file, where the directory should be")
    assert_failed(tinyllm("cache-explain", QUESTION), 6)
