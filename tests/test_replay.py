"""Is a streamed answer given back as it came, whole, once, and under the name asked for now?"""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.samples import NOW, answer, entry
from tinyllm_cli.entry import CacheEntry, Chunk
from tinyllm_cli.ollama.chunks import assemble
from tinyllm_cli.replay import measure, pauses, replay
from tinyllm_cli.response import GenerateResponse


def chunk(text: str = "", **fields: object) -> GenerateResponse:
    """Return one line of a stream, as the server sends them before the last."""
    return answer(text).replace(**{"done": False, "done_reason": None, **fields})


FINAL = {
    "done": True,
    "done_reason": "length",
    "context": [1, 2],
    "total_duration": 100,
    "load_duration": 1,
    "prompt_eval_count": 2,
    "prompt_eval_duration": 3,
    "eval_count": 4,
    "eval_duration": 5,
}


def remembered(stream: list[GenerateResponse]) -> CacheEntry:
    """Return the entry that is stored of a stream."""
    pieces = [(piece, number / 10) for number, piece in enumerate(stream)]
    return CacheEntry(assemble(stream), created_at=NOW, chunks=measure(pieces))


def test_a_stream_is_given_back_as_it_came() -> None:
    stream = [
        chunk(thinking="Let "),
        chunk(thinking="me think."),
        chunk("Be", logprobs=[{"token": "Be"}]),
        chunk(""),
        chunk("cause", logprobs=[{"token": "ca"}, {"token": "use"}]),
        chunk(" \U0001f30d"),
        chunk("!", **FINAL),
    ]
    again = list(replay(remembered(stream), "llama3.2"))
    assert [piece.to_dict() for piece in again] == [piece.to_dict() for piece in stream]


def test_when_each_piece_came_is_remembered_in_milliseconds() -> None:
    stream = [chunk("a"), chunk("b", thinking="t"), chunk("", **FINAL)]
    assert remembered(stream).chunks == [(1, 0, 0, 0), (1, 1, 0, 100), (0, 0, 0, 200)]


def test_the_final_chunk_comes_once_and_last_and_alone_has_the_counts() -> None:
    *before, last = replay(remembered([chunk("a"), chunk("b"), chunk("c", **FINAL)]), "m")
    assert [piece.done for piece in before] == [False, False]
    assert last.done
    assert {name: last.to_dict()[name] for name in FINAL} == FINAL
    assert all(
        set(piece.to_dict()) == {"model", "created_at", "response", "done"} for piece in before
    )


def test_an_answer_that_came_whole_is_one_piece_of_text_and_the_final_chunk() -> None:
    whole = answer("Because.", thinking="hm", eval_count=4, logprobs=[{"token": "x"}])
    first, last = replay(entry(response=whole), "llama3.2")
    assert (first.response, first.thinking, first.done) == ("Because.", "hm", False)
    assert first.logprobs is not None
    assert (last.response, last.thinking, last.logprobs, last.done) == ("", None, None, True)
    assert (last.done_reason, last.eval_count) == ("stop", 4)


def test_tool_calls_come_with_the_final_chunk_unchanged() -> None:
    calls = [{"id": "call_1", "function": {"name": "f", "arguments": {"b": 1, "a": 2}}}]
    *before, last = replay(entry(response=answer(tool_calls=calls)), "m")
    assert last.to_dict()["tool_calls"] == calls
    assert all(piece.tool_calls is None for piece in before)


def test_the_model_is_spelled_as_it_is_asked_for_now() -> None:
    for piece in replay(remembered([chunk("a"), chunk("", **FINAL)]), "LLAMA3.2:latest"):
        assert piece.model == "LLAMA3.2:latest"


def test_replaying_does_not_use_up_the_entry() -> None:
    stored = remembered([chunk("a"), chunk("b", **FINAL)])
    assert list(replay(stored, "m")) == list(replay(stored, "m"))


_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=5)


@given(
    texts=st.lists(st.tuples(_TEXT, _TEXT), max_size=6),
    last=_TEXT,
)
def test_cut_anywhere_the_text_is_exactly_the_same(texts: list[tuple[str, str]], last: str) -> None:
    stream = [chunk(text, thinking=thinking or None) for text, thinking in texts]
    stream.append(chunk(last, **FINAL))
    again = list(replay(remembered(stream), "llama3.2"))
    assert [(piece.response, piece.thinking) for piece in again] == [
        (piece.response, piece.thinking) for piece in stream
    ]
    assert assemble(again) == assemble(stream)


@given(
    text=st.text(max_size=20),
    sizes=st.lists(st.tuples(*[st.integers(0, 12)] * 4), max_size=5),
)
def test_no_record_of_pieces_can_shorten_or_lengthen_an_answer(
    text: str, sizes: list[Chunk]
) -> None:
    pieces = list(replay(entry(text, chunks=sizes), "m"))
    assert "".join(piece.response for piece in pieces) == text
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert all(not one.done for one, _ in pairwise(pieces))


def test_the_pace_is_the_recorded_one_divided_by_the_speed() -> None:
    entry = CacheEntry(answer("abc"), NOW, chunks=[(1, 0, 0, 100), (1, 0, 0, 350), (1, 0, 0, 300)])
    assert list(pauses(entry, 1.0)) == pytest.approx([0.1, 0.25, 0.0])
    assert list(pauses(entry, 10.0)) == pytest.approx([0.01, 0.025, 0.0])


def test_there_is_a_pause_for_every_chunk_of_the_replay() -> None:
    whole = CacheEntry(answer("abc"), NOW)
    assert len(list(pauses(whole, 1.0))) == len(list(replay(whole, "m")))
    assert sum(pauses(whole, 1.0)) == 0
