"""Does `--replay-speed` give a stored answer at the pace it was made?"""

from __future__ import annotations

import time

import pytest

from tests.conftest import Tinyllm
from tests.fake_ollama import FakeOllama
from tinyllm_cli import CacheEntry, GenerateResponse, InMemoryBackend


@pytest.fixture
def slow_answer(tinyllm: Tinyllm, ollama: FakeOllama) -> Tinyllm:
    """Leave an answer in the snapshot whose second half came half a second after the first."""
    tinyllm("run", "What is AI?")
    store = InMemoryBackend(10, snapshot=tinyllm.snapshot)
    [(key, entry)] = store.entries()
    response = GenerateResponse(entry.response.model, "", "first second", True, done_reason="stop")
    chunks = [(6, 0, 0, 0), (6, 0, 0, 500)]
    store.set_nowait(key, CacheEntry(response, entry.created_at, 3600, chunks=chunks))
    store.close_nowait()
    ollama.stop()
    return tinyllm


def test_the_pace_of_a_stored_answer(slow_answer: Tinyllm) -> None:
    started = time.monotonic()
    assert slow_answer("run", "--replay-speed", "1", "What is AI?").text == "first second\n"
    assert time.monotonic() - started >= 0.5


def test_it_comes_in_the_pieces_it_once_came_in(slow_answer: Tinyllm) -> None:
    process = slow_answer.start("run", "--replay-speed", "0.1", "What is AI?")
    assert process.stdout is not None
    assert process.stdout.read(6) == b"first "
    assert process.poll() is None  # five seconds before the rest
    process.kill()
    process.communicate()


@pytest.mark.few(1)
@pytest.mark.parametrize("speed", ["0", "-1", "nan", "inf"])
def test_a_speed_that_makes_no_sense(slow_answer: Tinyllm, speed: str) -> None:
    done = slow_answer("run", "--replay-speed", speed, "What is AI?")
    assert (done.code, done.out) == (2, b"")
    assert "replay speed" in done.complaint
