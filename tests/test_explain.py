"""Does a miss say which stored answer came nearest, and what stood between them?"""

from __future__ import annotations

from typing import Any

import pytest

from tests.samples import entry
from tinyllm_cli.entry import CacheEntry
from tinyllm_cli.explain import Difference, differences, explain
from tinyllm_cli.key import canonical_body
from tinyllm_cli.request import GenerateRequest


def body(prompt: str = "Why?", model: str = "llama3.2", **fields: Any) -> dict[str, Any]:
    return GenerateRequest(model, prompt, **fields).body()


def stored(*bodies: dict[str, Any]) -> list[tuple[str, CacheEntry]]:
    """Return entries by key, the most recent first."""
    return [
        (f"key {number}", entry(request=canonical_body(one))) for number, one in enumerate(bodies)
    ]


@pytest.mark.parametrize(
    ("was", "now", "expected"),
    [
        ({}, {}, []),
        ({}, {"temperature": 0.5}, [("options.temperature", 0.3, 0.5)]),
        ({}, {"options": {"seed": 1}}, [("options.seed", None, 1)]),
        ({"options": {"seed": 1}}, {}, [("options.seed", 1, None)]),
        (
            {"temperature": None, "max_tokens": None},
            {"max_tokens": None},
            [("options", None, {"temperature": 0.3})],
        ),
        ({}, {"system": "Be brief."}, [("system", None, "Be brief.")]),
        (
            {"options": {"stop": ["a", "b"]}},
            {"options": {"stop": ["a", "c", "d"]}},
            [("options.stop[1]", "b", "c"), ("options.stop[2]", None, "d")],
        ),
        ({"think": False}, {}, [("think", False, None)]),
        ({"context": []}, {"context": [0]}, [("context[0]", None, 0)]),
        (
            {"format": {"properties": {"a": {"type": "integer"}}}},
            {"format": {"properties": {"a": {"type": "string"}, "b": {}}}},
            [
                ("format.properties.a.type", "integer", "string"),
                ("format.properties.b", None, {}),
            ],
        ),
        ({"extra": {"x": None}}, {"extra": {"x": 1}}, [("x", "null", 1)]),
        ({"extra": {"x": True}}, {"extra": {"x": 1}}, [("x", True, 1)]),
        # what does not reach the model, or is spelled differently, is no difference
        ({"keep_alive": 5}, {"keep_alive": "10m"}, []),
        ({"system": ""}, {"system": None}, []),
        ({"temperature": 1}, {"temperature": 1.0}, []),
    ],
)
def test_differences_are_named_by_path(
    was: dict[str, Any], now: dict[str, Any], expected: list[tuple[str, Any, Any]]
) -> None:
    found = differences(canonical_body(body(**was)), canonical_body(body(**now)))
    assert found == [Difference(*one) for one in expected]


def test_two_orders_of_one_object_differ_where_order_matters() -> None:
    """Inside a schema the order steers the answer and is in the key; it must not go unmentioned."""
    one = {"type": "object", "properties": {"a": {}, "b": {}}}
    other = {"type": "object", "properties": {"b": {}, "a": {}}}
    found = differences(canonical_body(body(format=one)), canonical_body(body(format=other)))
    assert [difference.path for difference in found] == ["format.properties"]


def test_the_nearest_is_the_one_with_the_fewest_differences() -> None:
    nearest = explain(
        body(temperature=0.5, system="Be brief."),
        stored(
            body(temperature=0.7),
            body(temperature=0.7, system="Be brief."),
            body(temperature=0.9, system="Be brief.", options={"seed": 1}),
        ),
    )
    assert (nearest.verdict, nearest.key) == ("differs", "key 1")
    assert nearest.differences == (Difference("options.temperature", 0.7, 0.5),)


def test_of_equals_it_is_the_most_recent() -> None:
    nearest = explain(body(temperature=0.5), stored(body(temperature=0.7), body(temperature=0.9)))
    assert nearest.key == "key 0"


@pytest.mark.parametrize("other", [{"prompt": "How?"}, {"model": "qwen2.5:0.5b"}])
def test_another_question_is_further_away_than_any_setting(other: dict[str, Any]) -> None:
    nearest = explain(
        body(),
        stored(
            body(**other),
            body(system="s", suffix="x", think=True, raw=True, options={"seed": 1, "top_k": 1}),
        ),
    )
    assert nearest.key == "key 1"


def test_the_same_question_under_another_key_is_another_model_content() -> None:
    same = explain(body(), stored(body("How?"), body("Why?")))
    assert (same.verdict, same.key, same.differences) == ("other model", "key 1", ())


def test_nothing_stored_is_nothing_near() -> None:
    assert explain(body(), []).verdict == "nothing stored"
    # nor can be said of an entry whose question was not kept
    assert explain(body(), [("key", entry())]).verdict == "nothing stored"


def test_looking_stops_at_an_equal_question() -> None:
    def candidates() -> Any:
        yield from stored(body())
        raise AssertionError("there is nothing nearer")

    assert explain(body(), candidates()).key == "key 0"
