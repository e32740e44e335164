"""Many processes at once on one cache: no answer lost, no count lost, none mixed up."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.cli.outcome import stored
from tests.conftest import Finished, Tinyllm
from tests.fake_ollama import FakeOllama


@pytest.mark.slow
def test_the_same_question_at_once(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    """However often the model is asked, everybody gets one and the same answer, and it is kept once."""

    def ask(number: int) -> Finished:
        return tinyllm("run", "What is AI?")

    with ThreadPoolExecutor(8) as pool:
        done = [*pool.map(ask, range(8))]
    assert {(one.code, one.err) for one in done} == {(0, b"")}
    assert len({one.out for one in done}) == 1
    assert stored(tinyllm.snapshot) == 1
    assert 1 <= ollama.generations <= 8
    assert _figures(tinyllm)["errors"] == 0


@pytest.mark.slow
def test_readers_and_clearers_do_not_trip_over_each_other(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    commands = [
        ("run", "One?"),
        ("cache-stats", "--json"),
        ("cache-clear", "--yes"),
        ("run", "--refresh", "Two?"),
    ] * 4

    def run(command: tuple[str, ...]) -> Finished:
        return tinyllm(*command)

    with ThreadPoolExecutor(8) as pool:
        done = [*pool.map(run, commands)]
    assert {(one.code, one.err) for one in done} == {(0, b"")}
    assert stored(tinyllm.snapshot) <= 2
    figures = _figures(tinyllm)
    assert figures["entries"] == stored(tinyllm.snapshot)


def _figures(tinyllm: Tinyllm) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(tinyllm("cache-stats", "--json").out)
    return figures
