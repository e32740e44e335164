"""Does an answer appear as it is written?"""

from __future__ import annotations

import json

from tests.cli.outcome import finish
from tests.conftest import Tinyllm
from tests.fake_ollama import FakeOllama

ANSWER = "one two three four"
WORDS = [b"one", b" two", b" three", b" four"]


def test_tokens_appear_before_the_answer_ends(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    ollama.answer = lambda body: ANSWER
    for words in range(1, len(WORDS)):
        barrier = ollama.hold_after(words, times=1)
        process = tinyllm.start("run", "--refresh", "Count.")
        assert process.stdout is not None
        expected = b"".join(WORDS[:words])
        assert process.stdout.read(len(expected)) == expected
        assert process.poll() is None
        assert not ollama.requests("/api/generate")[-1].finished
        barrier.release()
        rest = finish(process)
        assert (rest.code, expected + rest.out) == (0, ANSWER.encode() + b"\n")


def test_no_stream_prints_nothing_before_the_end(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    """Killed while the answer is held back, it has written nothing; left alone, everything."""
    ollama.answer = lambda body: ANSWER
    barrier = ollama.hold_after(3)
    process = tinyllm.start("run", "--no-stream", "Count.")
    barrier.wait_for(1)
    process.kill()
    assert finish(process).out == b""
    barrier.release()
    assert tinyllm("run", "--no-stream", "Count again.").out == ANSWER.encode() + b"\n"


def test_an_answer_cut_by_the_token_limit_is_stored_as_such(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    ollama.answer = lambda body: ANSWER
    assert tinyllm("run", "--max-tokens", "2", "Count.").out == b"one two\n"
    record = json.loads(tinyllm("run", "--max-tokens", "2", "--json", "Count.").out)
    assert (record["cached"], record["done_reason"]) == (True, "length")
