"""`tinyllm cache-stats`: figures that add up, for people and for scripts."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.cli.outcome import assert_failed
from tests.conftest import Tinyllm
from tests.fake_ollama import FakeOllama

FLAT = (
    "hits", "misses", "sets", "evictions", "errors", "expirations", "hit_rate", "total_requests",
    "entries", "bytes", "time_saved_s", "tokens_saved",
)  # fmt: skip


def stats(tinyllm: Tinyllm, *arguments: str) -> dict[str, Any]:
    done = tinyllm("cache-stats", "--json", *arguments)
    assert (done.code, done.err) == (0, b"")
    assert done.out.endswith(b"}\n") and done.out.count(b"\n") == 1
    record: dict[str, Any] = json.loads(done.out)
    return record


def test_an_empty_cache_has_figures_too(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    record = stats(tinyllm)
    assert {name: record[name] for name in FLAT} == dict.fromkeys(FLAT, 0)
    assert (record["oldest"], record["newest"], record["models"]) == (None, None, {})
    assert record["backend"] == "memory"
    assert record["path"] == str(tinyllm.snapshot)
    assert tinyllm("cache-stats").code == 0
    assert ollama.log == []


def test_the_figures_of_several_processes_add_up(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    before = time.time()
    for _ in range(3):
        tinyllm("run", "One?")
    tinyllm("run", "Two?", "-m", "llama3.2")
    tinyllm("run", "Two?", "-m", "llama3.2", "--refresh")
    tokens = json.loads(tinyllm("run", "One?", "--json").out)
    record = stats(tinyllm)
    assert (record["hits"], record["misses"], record["sets"], record["entries"]) == (3, 2, 3, 2)
    assert record["total_requests"] == 5
    assert record["hit_rate"] == pytest.approx(0.6)
    assert (record["errors"], record["evictions"], record["expirations"]) == (0, 0, 0)
    assert record["tokens_saved"] == 3 * (tokens["prompt_eval_count"] + tokens["eval_count"])
    assert record["time_saved_s"] == pytest.approx(3 * tokens["saved_ms"] / 1000, abs=0.01)
    assert before <= record["oldest"] <= record["newest"] <= time.time()
    assert 0 < record["bytes"] < record["max_bytes"]
    models = record["models"]
    assert set(models) == {"qwen2.5:0.5b", "llama3.2:latest"} or set(models) == {
        "qwen2.5:0.5b",
        "llama3.2",
    }
    assert [models["qwen2.5:0.5b"][name] for name in ("hits", "misses", "entries")] == [3, 1, 1]
    for name in ("hits", "misses", "sets", "entries", "bytes", "tokens_saved"):
        assert sum(model[name] for model in models.values()) == record[name], name
    assert ollama.generations == 3


def test_the_tables_say_the_same(tinyllm: Tinyllm) -> None:
    for _ in range(3):
        tinyllm("run", "One?")
    record = stats(tinyllm)
    rows = _rows(tinyllm("cache-stats", environ={"COLUMNS": "200"}).text)
    assert rows["Hits"] == ["2"]
    assert rows["Misses"] == ["1"]
    assert rows["Requests"] == ["3"]
    assert rows["Hit rate"] == ["66.7%"]
    assert [rows[name] for name in ("Sets", "Evictions", "Expirations", "Errors")] == [
        ["1"],
        ["0"],
        ["0"],
        ["0"],
    ]
    assert rows["Entries"] == ["1 of 10,000"]
    assert rows["Size"][0].endswith(" of 256.0 MiB")
    assert rows["Oldest"][0].endswith(" ago") and rows["Newest"][0].endswith(" ago")
    assert rows["Tokens saved"] == [f"{record['tokens_saved']:,}"]
    assert rows["Time saved"][0].endswith(" s")
    assert rows["File"] == [str(tinyllm.snapshot)]
    assert rows["qwen2.5:0.5b"][:4] == ["1", "2", "1", "66.7%"]


def test_reset_shows_the_figures_once_more_and_zeroes_them(tinyllm: Tinyllm) -> None:
    tinyllm("run", "One?")
    tinyllm("run", "One?")
    assert stats(tinyllm, "--reset")["hits"] == 1
    record = stats(tinyllm)
    assert (record["hits"], record["misses"], record["sets"]) == (0, 0, 0)
    assert (record["time_saved_s"], record["tokens_saved"]) == (0, 0)
    assert record["entries"] == 1
    tinyllm("run", "One?")
    assert stats(tinyllm)["hits"] == 1


def test_looking_counts_as_nothing(tinyllm: Tinyllm) -> None:
    tinyllm("run", "One?")
    assert stats(tinyllm) == stats(tinyllm)


def test_a_fault_of_the_store_is_counted_as_an_error_and_not_as_a_miss(tinyllm: Tinyllm) -> None:
    tinyllm("run", "One?")
    broken = ("--cache-backend", "redis", "--redis-url", "redis://127.0.0.1:1/0")
    tinyllm("run", "One?", *broken)
    record = stats(tinyllm)
    assert (record["misses"], record["sets"]) == (1, 1)


def test_redis_figures(tinyllm: Tinyllm, redis_url: str) -> None:
    shared = ("--redis-url", redis_url)
    for _ in range(3):
        tinyllm("run", "One?", "--cache-backend", "redis", *shared)
    record = stats(tinyllm, "--backend", "redis", *shared)
    assert (record["hits"], record["misses"], record["sets"], record["entries"]) == (2, 1, 1, 1)
    assert (record["bytes"], record["path"]) == (None, None)
    assert record["tokens_saved"] > 0
    rows = _rows(tinyllm("cache-stats", "--backend", "redis", *shared).text)
    assert (rows["Hits"], rows["Backend"], rows["Entries"]) == (["2"], ["redis"], ["1"])
    assert stats(tinyllm, "--backend", "redis", "--reset", *shared)["hits"] == 2
    assert stats(tinyllm, "--backend", "redis", *shared)["hits"] == 0


def test_a_redis_that_is_down_is_a_failure_of_the_command(tinyllm: Tinyllm) -> None:
    nowhere = {"TINYLLM_REDIS_URL": "redis://:canary@127.0.0.1:1/0"}
    for command in (("cache-stats",), ("cache-stats", "--json"), ("cache-clear", "--yes")):
        done = tinyllm(*command, "--backend", "redis", environ=nowhere)
        assert_failed(done, 6, "127.0.0.1:1")
        assert b"canary" not in done.err
        assert done.out == b""


def _rows(text: str) -> dict[str, list[str]]:
    """Return the rows of all tables: first cell -> the other cells."""
    rows = {}
    for line in text.splitlines():
        if line.startswith("│"):
            first, *others = [cell.strip() for cell in line.strip("│").split("│")]
            rows[first] = others
    return rows
