"""What reaches the engine of a request, and what is refused by name because it cannot."""

from __future__ import annotations

from typing import Any

import pytest

from tinyllm_cli.embedded.orders import DEFAULT_NUM_CTX, order_for
from tinyllm_cli.errors import ConfigError
from tinyllm_cli.request import GenerateRequest


def order(**fields: Any) -> dict[str, Any]:
    return order_for(GenerateRequest("m", "Hi", **fields).body())[1]


def test_a_plain_request_is_a_conversation_of_one_turn() -> None:
    num_ctx, plain = order_for(GenerateRequest("m", "Hi").body())
    assert num_ctx == DEFAULT_NUM_CTX
    assert plain == {
        "messages": [{"role": "user", "content": "Hi"}],
        "prompt": "Hi",
        "schema": None,
        "limit": 2000,
        "stop": [],
        "sampling": {"temperature": 0.3},
    }


def test_the_system_prompt_comes_first() -> None:
    roles = [message["role"] for message in order(system="Be brief.")["messages"]]
    assert roles == ["system", "user"]


def test_a_raw_prompt_has_no_conversation() -> None:
    assert order(raw=True)["messages"] is None


def test_json_mode_is_any_object_and_a_schema_is_itself() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert order(json_mode=True)["schema"] == {}
    assert order(format="json")["schema"] == {}
    assert order(format=schema)["schema"] == schema


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", 0),
        ("seed", 42),
        ("top_k", 1),
        ("top_p", 0.5),
        ("min_p", 0.1),
        ("typical_p", 0.9),
        ("repeat_penalty", 1.1),
        ("repeat_last_n", -1),
        ("presence_penalty", -0.5),
        ("frequency_penalty", 0.5),
    ],
)
def test_sampling_options_are_passed_on(option: str, value: float) -> None:
    assert order(options={option: value})["sampling"][option] == value


def test_the_other_options_have_their_places() -> None:
    num_ctx, other = order_for(
        GenerateRequest(
            "m", "Hi", options={"num_ctx": 512, "num_predict": 7, "stop": ["a", "b"], "top_k": None}
        ).body()
    )
    assert (num_ctx, other["limit"], other["stop"]) == (512, 7, ["a", "b"])
    assert "top_k" not in other["sampling"]
    assert order(options={"num_predict": -1})["limit"] is None
    assert order(max_tokens=None)["limit"] is None
    assert order(options={"stop": "END"})["stop"] == ["END"]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"images": [b"png"]}, "images"),
        ({"think": True}, "think"),
        ({"think": False}, "think"),
        ({"suffix": "end"}, "suffix"),
        ({"template": "{{ .Prompt }}"}, "template"),
        ({"context": [1]}, "context"),
        ({"context": []}, "context"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"truncate": True}, "truncate"),
        ({"shift": False}, "shift"),
        ({"keep_alive": "5m"}, "keep_alive"),
        ({"extra": {"tools": []}}, "tools"),
        ({"options": {"num_gpu": 1}}, "num_gpu"),
        ({"options": {"mirostat": 2}}, "mirostat"),
        ({"options": {"temperature": "hot"}}, "temperature"),
        ({"options": {"temperature": True}}, "temperature"),
        ({"options": {"temperature": -1}}, "temperature"),
        ({"options": {"temperature": float("nan")}}, "temperature"),
        ({"options": {"seed": 1.5}}, "seed"),
        ({"options": {"seed": 2**32 - 1}}, "seed"),
        ({"options": {"top_p": 2}}, "top_p"),
        ({"options": {"num_ctx": 0}}, "num_ctx"),
        ({"options": {"num_predict": 0}}, "num_predict"),
        ({"options": {"num_predict": -2}}, "num_predict"),
        ({"options": {"stop": [""]}}, "stop"),
        ({"options": {"stop": 5}}, "stop"),
        ({"format": "yaml"}, "format"),
        ({"raw": True, "system": "Be brief."}, "system"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        order(**fields)
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)
