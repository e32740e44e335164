"""Does the body sent to Ollama hold what was asked, field by field, and nothing that was not?"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.test_values import FULL_REQUEST, NESTED
from tinyllm_cli.errors import ConfigError
from tinyllm_cli.request import GenerateRequest

DEFAULT_BODY: dict[str, Any] = {
    "model": "m",
    "prompt": "p",
    "options": {"temperature": 0.3, "num_predict": 2000},
}


def body(**fields: Any) -> dict[str, Any]:
    return GenerateRequest("m", "p", **fields).body()


def test_the_defaults_are_those_of_the_original() -> None:
    assert body() == DEFAULT_BODY


@pytest.mark.parametrize(
    ("fields", "added"),
    [
        ({"system": "s"}, {"system": "s"}),
        ({"suffix": "s"}, {"suffix": "s"}),
        ({"template": "t"}, {"template": "t"}),
        ({"json_mode": True}, {"format": "json"}),
        ({"format": "json"}, {"format": "json"}),
        ({"format": ""}, {"format": ""}),
        ({"format": NESTED}, {"format": NESTED}),
        ({"format": NESTED, "json_mode": True}, {"format": NESTED}),
        ({"images": [b"\x00\xff", "AP8="]}, {"images": ["AP8=", "AP8="]}),
        ({"images": ["AP\n8="]}, {"images": ["AP\n8="]}),
        ({"context": []}, {"context": []}),
        ({"context": [1, 2]}, {"context": [1, 2]}),
        ({"think": False}, {"think": False}),
        ({"think": "low"}, {"think": "low"}),
        ({"truncate": False}, {"truncate": False}),
        ({"shift": True}, {"shift": True}),
        ({"top_logprobs": 0}, {"top_logprobs": 0}),
        ({"keep_alive": 0}, {"keep_alive": 0}),
        ({"keep_alive": "5m"}, {"keep_alive": "5m"}),
        ({"raw": True}, {"raw": True}),
        ({"logprobs": True}, {"logprobs": True}),
        ({"extra": {"new": [1]}}, {"new": [1]}),
        ({"extra": {"prompt": "instead"}}, {"prompt": "instead"}),
        # what the server reads as absent is not sent
        ({"system": ""}, {}),
        ({"suffix": ""}, {}),
        ({"template": ""}, {}),
        ({"images": []}, {}),
        ({"raw": False, "logprobs": False, "json_mode": False}, {}),
    ],
)
def test_each_field(fields: dict[str, Any], added: dict[str, Any]) -> None:
    assert body(**fields) == {**DEFAULT_BODY, **added}


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"temperature": 0}, {"temperature": 0, "num_predict": 2000}),
        ({"temperature": None}, {"num_predict": 2000}),
        ({"max_tokens": None}, {"temperature": 0.3}),
        ({"max_tokens": -1}, {"temperature": 0.3, "num_predict": -1}),
        ({"options": {"seed": 1}}, {"temperature": 0.3, "num_predict": 2000, "seed": 1}),
        (
            {"options": {"temperature": 1, "num_predict": 5}},
            {"temperature": 1, "num_predict": 5},
        ),
        ({"temperature": None, "max_tokens": None, "options": {"top_k": 1}}, {"top_k": 1}),
    ],
)
def test_options(fields: dict[str, Any], options: dict[str, Any]) -> None:
    assert body(**fields)["options"] == options


def test_without_any_option_there_are_none() -> None:
    assert body(temperature=None, max_tokens=None) == {"model": "m", "prompt": "p"}


def test_stream_is_not_a_matter_of_the_question() -> None:
    assert "stream" not in FULL_REQUEST.body()


def test_a_body_is_plain_json_and_belongs_to_the_caller() -> None:
    first = FULL_REQUEST.body()
    text = json.dumps(first)
    first["options"]["a"].append("changed")
    first["format"]["c"]["d"] = "changed"
    first["context"].append(9)
    assert json.dumps(FULL_REQUEST.body()) == text


@pytest.mark.parametrize(
    "image", ["not base64!", "AP8", "AP8=AP8=", "AP 8=", "data:image/png;base64,AP8=", 5, None]
)
def test_an_image_the_server_would_refuse_is_refused_here(image: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        body(images=[image])
    assert raised.value.hint


def test_a_field_that_holds_itself_is_refused() -> None:
    options: dict[str, Any] = {}
    options["again"] = options
    with pytest.raises(ConfigError):
        GenerateRequest("m", "p", options=options)


def test_takes_the_arguments_of_the_original_by_position() -> None:
    request = GenerateRequest("m", "p", "s", 0.5, 7, True)
    assert (request.system, request.temperature, request.max_tokens, request.json_mode) == (
        "s",
        0.5,
        7,
        True,
    )
