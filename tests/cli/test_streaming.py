"""Does an answer appear as it is written, and does one that breaks off leave no trace?"""

from __future__ import annotations

import json
from functools import partial

import pytest

from tests.cli.outcome import assert_failed, finish, stored
from tests.conftest import Tinyllm
from tests.fake_ollama import FakeOllama, Fault

ANSWER = "one two three four"
WORDS = [b"one", b" two", b" three", b" four"]
slow = partial(pytest.param, marks=pytest.mark.slow)
OTHER_CUTS = ("reset", "half_line", "malformed", "invalid_utf8")
PATIENCE = {"TINYLLM_IDLE_TIMEOUT": "0.3", "TINYLLM_FIRST_BYTE_TIMEOUT": "0.3"}


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


@pytest.mark.parametrize(
    ("fault", "stream"),
    [
        ("cut", "--stream"),
        ("error_line", "--stream"),
        ("clean_end", "--stream"),
        ("cut", "--no-stream"),
        *(pytest.param(name, "--stream", marks=pytest.mark.slow) for name in OTHER_CUTS),
    ],
)
def test_an_answer_cut_at_any_point_is_shown_and_not_stored(
    tinyllm: Tinyllm, ollama: FakeOllama, fault: str, stream: str
) -> None:
    ollama.answer = lambda body: ANSWER
    points = range(len(WORDS) + 1) if stream == "--stream" else (2,)
    for after in points:
        ollama.inject(getattr(Fault, fault)(after=after))
        done = tinyllm("run", stream, "Count.")
        arrived = b"".join(WORDS[:after])
        assert done.out == (arrived + b"\n" if arrived else b""), (after, done)
        assert_failed(done, 5)
        assert stored(tinyllm.snapshot) == 0, after
    assert tinyllm("run", "Count.").out == ANSWER.encode() + b"\n"
    assert ollama.generations == len(points) + 1


def test_a_last_chunk_that_is_not_done_is_not_an_answer(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    ollama.answer = lambda body: ANSWER
    ollama.inject(Fault.done_false())
    done = tinyllm("run", "Count.")
    assert done.out == ANSWER.encode() + b"\n"
    assert_failed(done, 5, "ended before its last chunk")
    assert stored(tinyllm.snapshot) == 0


@pytest.mark.parametrize(
    ("fault", "code", "out", "words"),
    [
        (Fault.stall(after=2), 5, b"one two\n", "nothing more came for 0.3 s"),
        (Fault.stall(after=0), 3, b"", "did not answer in time"),
        (Fault.stall_headers(), 3, b"", "did not answer in time"),
        (Fault.drop(), 3, b"", "lost the connection"),
        (Fault.html(), 4, b"", "not an Ollama server"),
        slow(Fault.html(502), 4, b"", "502"),
        (Fault.redirect(), 4, b"", "redirects are not followed"),
        slow(Fault.redirect(301), 4, b"", "301"),
        slow(Fault.status(400, "bad request"), 4, b"", "bad request"),
        (Fault.status(404, "model 'qwen2.5:0.5b' not found"), 4, b"", "ollama pull qwen2.5:0.5b"),
        (Fault.unauthorized(), 4, b"", "sign in"),
        slow(Fault.empty_403(), 4, b"", "403"),
        slow(Fault.status(429, "slow down"), 4, b"", "slow down"),
        (Fault.status(500, "boom"), 4, b"", "boom"),
        slow(Fault.status(500, None), 4, b"", "500"),
        slow(Fault.error_object("boom"), 4, b"", "boom"),
        (Fault.error_line("out of memory", after=2), 5, b"one two\n", "out of memory"),
        (Fault.error_line("\x1b]0;owned\x07\x9b31m", after=0), 5, b"", "]0;owned"),
        slow(Fault.error_object("boom", after=1), 5, b"one\n", "boom"),
        (Fault.body(b""), 5, b"", ""),
        (Fault.malformed(after=1), 5, b"one\n", "not JSON"),
        slow(Fault.body(b"[1]\n"), 5, b"", "not a JSON object"),
        slow(Fault.number_as_string(), 5, ANSWER.encode() + b"\n", "wrong type"),
        (Fault.huge_line(), 5, b"", "longer than"),
        slow(Fault.raw_bytes(b"SSH-2.0-OpenSSH_9.7\r\n\r\n"), 5, b"", "does not speak HTTP"),
        slow(Fault.gzip_body(), 5, b"", "compressed"),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else None,
)
def test_every_failure_of_the_server_is_a_code_and_two_lines(
    tinyllm: Tinyllm, ollama: FakeOllama, fault: Fault, code: int, out: bytes, words: str
) -> None:
    ollama.answer = lambda body: ANSWER
    ollama.inject(fault)
    done = tinyllm("run", "Count.", environ=PATIENCE)
    assert done.out == out
    assert_failed(done, code, words)
    assert not any(byte < 0x20 and byte != 0x0A for byte in done.err)
    assert stored(tinyllm.snapshot) == 0


def test_a_busy_server_is_asked_once_more(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    ollama.inject(Fault.status(503, "busy"), times=None)
    assert_failed(tinyllm("run", "Count."), 4, "busy")
    ollama.clear_faults()
    ollama.inject(Fault.status(503, "busy"))
    assert tinyllm("run", "Count.").code == 0


def test_a_broken_answer_is_no_json_record(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    ollama.inject(Fault.cut(after=2))
    done = tinyllm("run", "--json", "Count.")
    assert done.out == b""
    assert_failed(done, 5)


@pytest.mark.parametrize(
    "fault",
    [
        slow(Fault.blank_lines()),
        slow(Fault.crlf()),
        Fault.bom(),
        slow(Fault.no_final_newline()),
        Fault.byte_by_byte(),
        slow(Fault.split_utf8()),
        slow(Fault.packed(0)),
        slow(Fault.extra_fields()),
        slow(Fault.no_content_type()),
        Fault.keep_open_after_done(),
        Fault.after_done([{"response": "more", "done": False}, b"not JSON"]),
    ],
    ids=lambda fault: fault.kind,
)
def test_odd_but_whole_answers_are_answers(
    tinyllm: Tinyllm, ollama: FakeOllama, fault: Fault
) -> None:
    ollama.inject(fault)
    odd = tinyllm("run", "Count.")
    assert (odd.code, odd.out[:7], odd.out[-2:], odd.err) == (0, b"Answer ", b".\n", b"")
    assert stored(tinyllm.snapshot) == 1


def test_separators_inside_an_answer_survive_both_ways(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    ollama.inject(Fault.raw_separators())
    miss = tinyllm("run", "Count.")
    assert "a\x85\u2028\u2029\x0b\x0c\x1cb".encode() in miss.out
    assert tinyllm("run", "Count.").out == miss.out
    assert ollama.generations == 1


def test_an_answer_cut_by_the_token_limit_is_stored_as_such(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    ollama.answer = lambda body: ANSWER
    assert tinyllm("run", "--max-tokens", "2", "Count.").out == b"one two\n"
    record = json.loads(tinyllm("run", "--max-tokens", "2", "--json", "Count.").out)
    assert (record["cached"], record["done_reason"]) == (True, "length")
