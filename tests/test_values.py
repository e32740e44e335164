"""Is a value frozen through and through, and does it compare, copy and pickle as a value should?"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from tests.samples import answer
from tinyllm_cli.request import GenerateRequest
from tinyllm_cli.response import GenerateResponse
from tinyllm_cli.values import Value, freeze, thaw

NESTED: dict[str, Any] = {"a": [1, {"b": [2]}], "c": {"d": "e"}}

# Every field differs from its default and from its neighbour, so that a swap shows.
FULL_RESPONSE = GenerateResponse(
    model="m",
    created_at="t",
    response="r",
    done=True,
    total_duration=1,
    load_duration=2,
    prompt_eval_count=3,
    prompt_eval_duration=4,
    eval_count=5,
    eval_duration=6,
    done_reason="stop",
    thinking="hm",
    context=[7, 8],
    tool_calls=[NESTED],
    logprobs=[{"token": "x"}],
    remote_model="rm",
    remote_host="rh",
    extra=NESTED,
)
FULL_REQUEST = GenerateRequest(
    model="m",
    prompt="p",
    system="s",
    temperature=0.1,
    max_tokens=2,
    json_mode=True,
    format=NESTED,
    options=NESTED,
    images=[b"x", "eA=="],
    think="low",
    suffix="u",
    template="t",
    context=[3],
    raw=True,
    truncate=True,
    shift=False,
    logprobs=True,
    top_logprobs=4,
    keep_alive="5m",
    extra=NESTED,
)


def pickled(protocol: int) -> Callable[[Any], Any]:
    return lambda value: pickle.loads(pickle.dumps(value, protocol))  # noqa: S301


VALUES: list[Value] = [FULL_RESPONSE, FULL_REQUEST, answer(), GenerateRequest("m", "p")]
WAYS: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "replace": lambda value: value.replace(),
    **{f"pickle protocol {number}": pickled(number) for number in range(2, 6)},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_copy_is_equal_in_every_field(value: Value, way: Callable[[Any], Any]) -> None:
    again = way(value)
    assert type(again) is type(value)
    assert again == value
    assert repr(again) == repr(value)
    assert hash(again) == hash(value)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_no_field_can_be_set_deleted_or_added(value: Value) -> None:
    before = repr(value)
    for name in (*value.__slots__, "brand_new"):
        with pytest.raises(AttributeError, match="frozen"):
            setattr(value, name, "changed")
        with pytest.raises(AttributeError, match="frozen"):
            delattr(value, name)
    assert repr(value) == before


@pytest.mark.parametrize("value", [FULL_RESPONSE, FULL_REQUEST], ids=["response", "request"])
def test_values_differ_if_one_field_does(value: Value) -> None:
    for name in value.__slots__:
        other = value.replace(**{name: None if name != "done" else False})
        assert other != value, name
    assert value != "something else"


def test_a_request_never_equals_a_response() -> None:
    assert GenerateRequest("m", "p") != answer()


@pytest.mark.parametrize("value", [FULL_RESPONSE, FULL_REQUEST], ids=["response", "request"])
def test_the_fields_are_declared_in_the_order_of_the_constructor(value: Value) -> None:
    code = type(value).__init__.__code__
    assert value.__slots__ == code.co_varnames[1 : code.co_argcount]


def test_repr_names_every_field() -> None:
    text = repr(FULL_REQUEST)
    assert all(f"{name}=" in text for name in GenerateRequest.__slots__)


def test_values_serve_as_keys_of_a_dict() -> None:
    assert {FULL_RESPONSE: 1}[FULL_RESPONSE.replace()] == 1
    assert hash(FULL_RESPONSE) != hash(FULL_RESPONSE.replace(response="other"))


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (FULL_RESPONSE, "tool_calls"),
        (FULL_RESPONSE, "extra"),
        (FULL_RESPONSE, "logprobs"),
        (FULL_RESPONSE, "context"),
        (FULL_REQUEST, "options"),
        (FULL_REQUEST, "extra"),
        (FULL_REQUEST, "format"),
        (FULL_REQUEST, "images"),
        (FULL_REQUEST, "context"),
    ],
)
def test_nothing_nested_can_be_changed(value: Value, name: str) -> None:
    places = [getattr(value, name)]
    seen = 0
    while places:
        place = places.pop()
        seen += 1
        with pytest.raises((TypeError, AttributeError)):
            place["new" if hasattr(place, "keys") else 0] = "changed"
        with pytest.raises(AttributeError):
            place.clear()
        inside = place.values() if hasattr(place, "keys") else place
        places += [item for item in inside if not isinstance(item, (str, bytes, int))]
    assert seen >= 1


def test_what_the_caller_keeps_is_not_what_the_value_holds() -> None:
    tool_calls = [{"function": {"arguments": {"city": "Paris"}}}]
    options: dict[str, Any] = {"stop": ["a"]}
    response = answer(tool_calls=tool_calls)
    request = GenerateRequest("m", "p", options=options)
    tool_calls[0]["function"]["arguments"]["city"] = "Rome"
    options["stop"].append("b")
    options["seed"] = 1
    assert response.to_dict()["tool_calls"] == [{"function": {"arguments": {"city": "Paris"}}}]
    assert request.body()["options"]["stop"] == ["a"]
    assert "seed" not in request.body()["options"]


def test_thawing_gives_plain_data_of_ones_own() -> None:
    frozen = freeze(NESTED)
    plain = thaw(frozen)
    assert plain == NESTED
    plain["a"][1]["b"].append(3)
    assert thaw(frozen) == NESTED
