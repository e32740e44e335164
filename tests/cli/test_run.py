"""`tinyllm run`: the main job, as a user meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.cli.outcome import stored
from tests.conftest import Tinyllm
from tests.fake_ollama import FakeOllama


def test_the_second_run_prints_the_same_bytes_and_asks_nothing(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    first = tinyllm("run", "What is AI?")
    assert (first.code, first.err) == (0, b"")
    assert first.out.endswith(b"\n")
    assert ollama.generations == 1
    asked = len(ollama.log)

    second = tinyllm("run", "What is AI?")
    assert (second.code, second.out, second.err) == (0, first.out, b"")
    assert len(ollama.log) == asked

    ollama.stop()
    assert tinyllm("run", "What is AI?").out == first.out


def test_the_model_gets_the_prompt_and_the_documented_defaults(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    tinyllm("run", "What is AI?")
    assert ollama.requests("/api/generate")[-1].json() == {
        "model": "qwen2.5:0.5b",
        "prompt": "What is AI?",
        "stream": True,
        "options": {"temperature": 0.3, "num_predict": 2000},
    }


def test_a_third_process_sees_one_hit_and_one_miss(tinyllm: Tinyllm) -> None:
    tinyllm("run", "What is AI?")
    tinyllm("run", "What is AI?")
    stats = json.loads(tinyllm("cache-stats", "--json").out)
    assert (stats["hits"], stats["misses"], stats["sets"], stats["entries"]) == (1, 1, 1, 1)


def test_refresh_asks_again_and_overwrites(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    ollama.drift = True
    first = tinyllm("run", "What is AI?")
    second = tinyllm("run", "--refresh", "What is AI?")
    third = tinyllm("run", "What is AI?")
    assert ollama.generations == 2
    assert first.out != second.out == third.out
    assert stored(tinyllm.snapshot) == 1


def test_no_cache_neither_reads_nor_stores_nor_counts(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    ollama.drift = True
    first = tinyllm("run", "What is AI?")
    past = tinyllm("run", "--no-cache", "What is AI?")
    assert past.out != first.out
    assert tinyllm("run", "What is AI?").out == first.out
    assert tinyllm("run", "--no-cache", "Something else").code == 0
    assert stored(tinyllm.snapshot) == 1
    stats = json.loads(tinyllm("cache-stats", "--json").out)
    assert (stats["hits"], stats["misses"], stats["sets"]) == (1, 1, 1)


def test_no_cache_creates_no_file(tinyllm: Tinyllm) -> None:
    assert tinyllm("run", "--no-cache", "What is AI?").code == 0
    assert not tinyllm.cache_dir.exists()


def test_cache_only_never_calls_the_model(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    missed = tinyllm("run", "--cache-only", "What is AI?")
    assert (missed.code, missed.out) == (7, b"")
    assert ollama.log == []

    first = tinyllm("run", "What is AI?")
    asked = len(ollama.log)
    hit = tinyllm("run", "--cache-only", "What is AI?")
    assert (hit.code, hit.out, hit.err) == (0, first.out, b"")
    assert len(ollama.log) == asked


def test_an_expired_answer_is_asked_for_again(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    ollama.drift = True
    first = tinyllm("run", "--cache-ttl", "0.001", "What is AI?")
    second = tinyllm("run", "What is AI?")
    assert ollama.generations == 2
    assert first.out != second.out
    assert json.loads(tinyllm("cache-stats", "--json").out)["expirations"] == 1


@pytest.mark.parametrize("ttl", ["0", "never"])
def test_an_answer_without_an_end_stays(tinyllm: Tinyllm, ollama: FakeOllama, ttl: str) -> None:
    tinyllm("run", "--cache-ttl", ttl, "What is AI?")
    assert tinyllm("cache-clear", "--expired", "--yes").out.startswith(b"removed 0 entries")
    tinyllm("run", "What is AI?")
    assert ollama.generations == 1


def test_one_model_under_two_spellings_is_one_answer(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    first = tinyllm("run", "-m", "llama3.2", "What is AI?")
    second = tinyllm("run", "-m", "llama3.2:latest", "What is AI?")
    assert (first.out, ollama.generations) == (second.out, 1)


def test_an_answer_is_never_given_for_another_question(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    """Each of these changes the answer, so each must be asked; the fake's answers tell them apart."""
    ollama.add_model("llava:7b", capabilities=("completion", "vision", "thinking"))
    picture = tinyllm.home / "picture.png"
    picture.write_bytes(b"\x89PNG\r\n")
    (tinyllm.home / "schema.json").write_text('{"type": "object", "properties": {}}')
    base = ["-m", "llava:7b", "What is AI?"]
    variants: list[list[str]] = [
        [],
        ["-s", "Be brief."],
        ["--temperature", "0.31"],
        ["--max-tokens", "1999"],
        ["-o", "seed=1"],
        ["-o", "stop=END"],
        ["--json-mode"],
        ["--format", "schema.json"],
        ["--image", "picture.png"],
        ["--think"],
        ["--no-think"],
        ["-m", "llama3.2"],
    ]
    answers = [tinyllm("run", *base, *variant) for variant in variants]
    assert {answer.code for answer in answers} == {0}
    assert ollama.generations == len(variants)
    assert stored(tinyllm.snapshot) == len(variants)
    for variant, answer in zip(variants[::4], answers[::4], strict=True):
        assert tinyllm("run", *base, *variant).out == answer.out
    assert ollama.generations == len(variants)


def test_the_record_of_a_miss_and_of_a_hit(tinyllm: Tinyllm) -> None:
    miss, hit = (_record(tinyllm("run", "--json", "What is AI?").out) for _ in range(2))
    same = ("model", "response", "key", "prompt_eval_count", "eval_count", "done_reason")
    assert {name: miss[name] for name in same} == {name: hit[name] for name in same}
    assert miss["response"] + "\n" == tinyllm("run", "What is AI?").text
    assert (miss["model"], len(miss["key"]), miss["eval_count"] > 0) == ("qwen2.5:0.5b", 64, True)
    assert (miss["cached"], miss["outcome"], miss["age_s"], miss["saved_ms"]) == (
        False,
        "miss",
        0.0,
        0,
    )
    assert (hit["cached"], hit["outcome"]) == (True, "hit")
    assert 0 < hit["age_s"] < 60
    assert 0 <= hit["saved_ms"] <= miss["duration_ms"]


def test_the_record_of_a_refreshed_and_of_an_uncached_answer(tinyllm: Tinyllm) -> None:
    refreshed = _record(tinyllm("run", "--json", "--refresh", "What is AI?").out)
    assert (refreshed["outcome"], refreshed["cached"]) == ("refreshed", False)
    bypassed = _record(tinyllm("run", "--json", "--no-cache", "What is AI?").out)
    assert (bypassed["outcome"], bypassed["cached"], bypassed["key"]) == ("bypassed", False, None)


def test_thinking_is_kept_but_is_not_part_of_the_answer(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    ollama.add_model("thinker:1b", capabilities=("completion", "thinking"))
    command = ["run", "-m", "thinker:1b", "--think", "Why?"]
    miss = tinyllm(*command)
    assert (miss.code, miss.err) == (0, b"")
    assert b"Thinking" not in miss.out
    record = _record(tinyllm(*command, "--json").out)
    assert record["thinking"].startswith("Thinking ")
    assert record["response"].encode() + b"\n" == miss.out
    assert ollama.generations == 1


@pytest.mark.few(1)
@pytest.mark.parametrize("model", ["big:120b-cloud", "big:cloud", "alias:1b"])
def test_a_cloud_model_is_answered_and_not_stored(
    tinyllm: Tinyllm, ollama: FakeOllama, model: str
) -> None:
    ollama.add_model(model, remote_host="https://ollama.com:443", remote_model="big:120b")
    assert tinyllm("run", "-m", model, "What is AI?").code == 0
    assert tinyllm("run", "-m", model, "What is AI?").code == 0
    assert (ollama.generations, stored(tinyllm.snapshot)) == (2, 0)
    for _ in range(2):
        tinyllm("run", "-m", model, "What is AI?", environ={"TINYLLM_CACHE_CLOUD": "true"})
    assert (ollama.generations, stored(tinyllm.snapshot)) == (3, 1)


def test_two_users_of_one_machine_share_nothing(
    tinyllm: Tinyllm, another_tinyllm: Callable[[str], Tinyllm], ollama: FakeOllama
) -> None:
    tinyllm("run", "What is AI?")
    another_tinyllm("somebody")("run", "What is AI?")
    assert ollama.generations == 2
    assert tinyllm.cache_dir.stat().st_mode & 0o777 == 0o700
    assert tinyllm.snapshot.stat().st_mode & 0o777 == 0o600


def test_an_empty_answer_is_not_stored(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    ollama.chunks = [{"response": "", "done": True, "done_reason": "stop"}]
    done = tinyllm("run", "What is AI?")
    assert (done.code, done.out, done.err) == (0, b"", b"")
    assert stored(tinyllm.snapshot) == 0


def test_a_model_pulled_anew_is_asked_anew(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    """The digest is in the key; it is learnt at the next miss, never on the way of a hit."""
    first = tinyllm("run", "What is AI?")
    ollama.repull("qwen2.5:0.5b", "w2")
    tinyllm("run", "Anything else")
    second = tinyllm("run", "What is AI?")
    assert first.out != second.out
    assert ollama.generations == 3


def _record(out: bytes) -> dict[str, Any]:
    assert out.endswith(b"\n") and out.count(b"\n") == 1
    record: dict[str, Any] = json.loads(out)
    return record
