"""Does an answer keep every field on its way to a dict and back, and refuse what is no answer?"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.samples import answer
from tests.test_values import FULL_RESPONSE
from tinyllm_cli.response import GenerateResponse

MINIMAL: dict[str, Any] = {"model": "m", "created_at": "t", "response": "r", "done": True}


def test_every_field_survives() -> None:
    data = json.loads(json.dumps(FULL_RESPONSE.to_dict()))
    assert GenerateResponse.from_dict(data) == FULL_RESPONSE


def test_unset_fields_are_absent_and_empty_ones_are_not() -> None:
    assert GenerateResponse(**MINIMAL).to_dict() == MINIMAL
    empty = {**MINIMAL, "done_reason": "", "thinking": "", "context": [], "eval_count": 0}
    assert GenerateResponse.from_dict(empty).to_dict() == empty


def test_a_field_of_a_later_server_is_kept() -> None:
    data = {**MINIMAL, "mood": {"joy": [0.5]}, "extra": "a field that is called extra"}
    response = GenerateResponse.from_dict(data)
    assert response.to_dict() == data
    assert response.extra is not None and response.extra["mood"]["joy"] == (0.5,)


def test_what_to_dict_gives_belongs_to_the_caller() -> None:
    FULL_RESPONSE.to_dict()["tool_calls"][0]["a"].append("changed")
    assert "changed" not in json.dumps(FULL_RESPONSE.to_dict())


@pytest.mark.parametrize(
    "changes",
    [
        {"model": None},
        {"model": 5},
        {"response": None},
        {"response": ["a"]},
        {"done": 1},
        {"done": "true"},
        {"done": None},
        {"created_at": 1.5},
        {"eval_count": "5"},
        {"eval_count": 5.0},
        {"eval_count": True},
        {"total_duration": 1e9},
        {"thinking": 5},
        {"thinking": None},
        {"done_reason": []},
        {"context": "12"},
        {"context": {"a": 1}},
        {"context": [1, "2"]},
        {"context": [1, None]},
        {"context": [True]},
        {"tool_calls": {"function": {}}},
        {"tool_calls": ["f"]},
        {"logprobs": [[]]},
        {"remote_host": 1},
    ],
)
def test_from_dict_refuses_a_field_of_another_kind(changes: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        GenerateResponse.from_dict({**MINIMAL, **changes})


@pytest.mark.parametrize("missing", MINIMAL)
def test_from_dict_refuses_an_answer_without_its_core(missing: str) -> None:
    with pytest.raises(TypeError, match=missing):
        GenerateResponse.from_dict({name: MINIMAL[name] for name in MINIMAL if name != missing})


@pytest.mark.parametrize("data", [None, [], "text", 5, [["model", "m"]]])
def test_from_dict_refuses_what_is_no_object(data: Any) -> None:
    with pytest.raises(TypeError):
        GenerateResponse.from_dict(data)


def test_tokens_are_those_read_and_written() -> None:
    assert answer(prompt_eval_count=7, eval_count=5).tokens == 12
    assert answer(eval_count=5).tokens == 5
    assert answer().tokens == 0
