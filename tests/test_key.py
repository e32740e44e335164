"""Do two requests share a key exactly when the model would be asked the same question?"""

from __future__ import annotations

import base64
import hashlib
import inspect
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyllm_cli
from tinyllm_cli.errors import ConfigError
from tinyllm_cli.key import cache_key, canonical_body, generate_cache_key
from tinyllm_cli.request import GenerateRequest

BASE: dict[str, Any] = {"model": "llama3.2", "prompt": "Why is the sky blue?"}
IMAGE = base64.b64encode(bytes(range(256))).decode()


def key(**changes: Any) -> str:
    return generate_cache_key(**{**BASE, **changes})


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


# --- what must change the key

EVERY_FIELD: dict[str, list[Any]] = {
    "model": ["llama3.3", "llama3.2:1b", "someone/llama3.2", "host.example/library/llama3.2"],
    "prompt": ["Why is the sky blue? ", "why is the sky blue?", ""],
    "system": ["Answer in verse."],
    "temperature": [None, 0, 0.31, 1],
    "max_tokens": [None, 1, 2001, -1],
    "json_mode": [True],
    "format": ["", {"type": "object"}, {"type": "array"}],
    "options": [{"seed": 1}],
    "images": [[b"\x89PNG"], [IMAGE], [IMAGE, b"\x89PNG"], [b"\x89PNG", IMAGE]],
    "think": [False, True, "low", "high"],
    "suffix": ["the end"],
    "template": ["{{ .Prompt }}"],
    "context": [[], [1], [1, 2], [2, 1]],
    "raw": [True],
    "truncate": [False, True],
    "shift": [False, True],
    "logprobs": [True],
    "top_logprobs": [0, 3],
    "extra": [{"new_field": None}, {"new_field": False}, {"new_field": "x"}, {"other": "x"}],
}
DOES_NOT_MATTER = {"keep_alive"}


def test_the_table_knows_every_field() -> None:
    assert EVERY_FIELD.keys() | DOES_NOT_MATTER == set(GenerateRequest.__slots__)


def test_every_field_changes_the_key_and_no_two_changes_meet() -> None:
    keys = {"nothing": key()}
    for name, values in EVERY_FIELD.items():
        for value in values:
            keys[f"{name}={value!r}"] = key(**{name: value})
    meeting = [
        (one, other) for one in keys for other in keys if one < other and keys[one] == keys[other]
    ]
    assert meeting == []


OPTIONS: dict[str, Any] = {
    "seed": 42,
    "top_k": 1,
    "top_p": 0.5,
    "min_p": 0.1,
    "typical_p": 0.9,
    "repeat_penalty": 1.1,
    "repeat_last_n": 32,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "num_predict": 7,
    "num_keep": 5,
    "num_ctx": 8192,
    "num_batch": 256,
    "num_gpu": 1,
    "main_gpu": 1,
    "num_thread": 4,
    "use_mmap": False,
    "draft_num_predict": 4,
    "stop": ["\n"],
    "temperature": 0.9,
    "an_option_of_next_year": 1,
}


def test_every_option_changes_the_key() -> None:
    keys = [key(), *(key(options={name: value}) for name, value in OPTIONS.items())]
    assert len(set(keys)) == len(OPTIONS) + 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"options": {"x": True}}, {"options": {"x": 1}}),
        ({"options": {"x": False}}, {"options": {"x": 0}}),
        ({"options": {"x": "1"}}, {"options": {"x": 1}}),
        ({"options": {"x": 0.1}}, {"options": {"x": 0.10000001}}),
        ({"options": {"stop": ["a", "b"]}}, {"options": {"stop": ["b", "a"]}}),
        ({"options": {"stop": ["a"]}}, {"options": {"stop": "a"}}),
        ({"extra": {"seed": 1}}, {"options": {"seed": 1}}),
        ({"extra": {"a": [1]}}, {"extra": {"a": ["1"]}}),
        ({"extra": {"a": 1}}, {"extra": {"a": True}}),
        ({"extra": {"a": None}}, {}),
        ({"extra": {"a": {"b": 1, "c": 2}}}, {"extra": {"a": {"c": 2, "b": 1}}}),
        (
            {"extra": {"tools": [{"type": "function", "function": {"name": "f"}}]}},
            {"extra": {"tools": [{"function": {"name": "f"}, "type": "function"}]}},
        ),
        (
            {"format": {"type": "object", "properties": {"a": {}, "b": {}}}},
            {"format": {"type": "object", "properties": {"b": {}, "a": {}}}},
        ),
        ({"format": ""}, {"format": None}),
        ({"context": []}, {"context": None}),
        ({"think": False}, {"think": None}),
        ({"think": True}, {"think": "true"}),
        ({"prompt": "caf\u00e9"}, {"prompt": "cafe\u0301"}),
        ({"prompt": "a\r\nb"}, {"prompt": "a\nb"}),
        ({"prompt": "a", "system": "bc"}, {"prompt": "ab", "system": "c"}),
        ({"model": "x:cloud"}, {"model": "x"}),
        ({"model": "x:20b-cloud"}, {"model": "x:20b"}),
    ],
)
def test_differ(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert key(**one) != key(**other)


def test_where_the_answer_comes_from_is_in_the_key() -> None:
    digest, other = "a" * 64, "b" * 64
    keys = [
        key(),
        key(namespace="team"),
        key(namespace="Team"),
        key(host="http://127.0.0.1:11434"),
        key(host="http://gpu:11434"),
        key(digest=digest),
        key(digest=other),
        key(digest=digest, namespace="team"),
        key(host=digest),
        key(namespace=digest),
    ]
    assert len(set(keys)) == len(keys)


def test_the_endpoint_is_in_the_key() -> None:
    assert (
        cache_key(BASE) == cache_key(BASE, endpoint="generate") != cache_key(BASE, endpoint="chat")
    )


def test_with_a_digest_the_host_does_not_matter() -> None:
    digest = "a" * 64
    assert key(digest=digest, host="http://one:1") == key(digest=digest, host="http://two:2")
    assert key(digest="", host="h") == key(digest=None, host="h")


# --- what must not

EQUAL: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"keep_alive": "10m"}, {}),
    ({"keep_alive": 0}, {}),
    ({"extra": {"stream": True}}, {}),
    ({"extra": {"stream": False}}, {}),
    ({"system": ""}, {"system": None}),
    ({"suffix": ""}, {"suffix": None}),
    ({"template": ""}, {"template": None}),
    ({"raw": False}, {"extra": {"raw": False}}),
    ({"logprobs": False}, {"extra": {"logprobs": None}}),
    ({"json_mode": True}, {"format": "json"}),
    ({"temperature": 0}, {"temperature": 0.0}),
    ({"temperature": 0}, {"temperature": -0.0}),
    ({"temperature": 1}, {"temperature": 1.0}),
    ({"temperature": 0.7}, {"temperature": None, "options": {"temperature": 0.7}}),
    ({"max_tokens": 9}, {"max_tokens": None, "options": {"num_predict": 9}}),
    ({"options": {"num_ctx": 4096}}, {"options": {"num_ctx": 4096.0}}),
    ({"options": {"seed": 1, "top_k": 2}}, {"options": {"top_k": 2, "seed": 1}}),
    ({"options": {"seed": None}}, {}),
    ({"options": {}}, {}),
    (
        {"options": {}, "temperature": None, "max_tokens": None},
        {"options": {"seed": None}, "temperature": None, "max_tokens": None},
    ),
    ({"extra": {"a": 1, "b": 2}}, {"extra": {"b": 2, "a": 1}}),
    ({"images": []}, {}),
    ({"images": [IMAGE]}, {"images": [bytes(range(256))]}),
    ({"images": [IMAGE]}, {"images": [IMAGE[:76] + "\n" + IMAGE[76:152] + "\r\n" + IMAGE[152:]]}),
    ({"context": [1, 2]}, {"context": (1, 2)}),
    ({"model": "llama3.2"}, {"model": "llama3.2:latest"}),
    ({"model": "llama3.2"}, {"model": " LLAMA3.2 "}),
    ({"model": "llama3.2"}, {"model": "library/llama3.2"}),
    ({"model": "llama3.2"}, {"model": "registry.ollama.ai/library/llama3.2:latest"}),
    ({"model": "llama3.2"}, {"model": "https://registry.ollama.ai/library/llama3.2"}),
    ({"model": "llama3.2"}, {"model": "llama3.2:local"}),
    ({"model": "x:20b-cloud"}, {"model": "x:20b:CLOUD"}),
]


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_do_not_differ(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert key(**one) == key(**other)


# --- what has no key

REFUSED: dict[str, dict[str, Any]] = {
    "NaN": {"temperature": float("nan")},
    "infinity": {"options": {"x": float("inf")}},
    "a lone surrogate in the prompt": {"prompt": "\ud800"},
    "a lone surrogate in an option": {"options": {"stop": ["\udfff"]}},
    "a lone surrogate in the namespace": {"namespace": "\udc80"},
    "a number as a key": {"format": {1: "a"}},
    "a number as a key deep inside": {"extra": {"a": [{"b": {1: "c"}}]}},
    "None as a key": {"options": {None: 1}},
    "true as a key": {"extra": {True: 1}},
    "mixed keys": {"extra": {"a": 1, 2: 3}},
    "deep nesting": {"extra": {"a": nested(100_000)}},
    "bytes": {"extra": {"a": b"x"}},
    "a set": {"options": {"stop": {"a"}}},
    "a number above what Python writes": {"options": {"x": 10**5000}},
    "an image that is not base64": {"images": ["not base64!"]},
    "an image with text between": {"images": [IMAGE[:8] + "!" + IMAGE[8:]]},
    "an image with text behind": {"images": ["aGVsbG8=aGVsbG8="]},
    "an image cut short": {"images": [IMAGE[:-1]]},
    "an image that is a number": {"images": [5]},
    "images that are not a list": {"extra": {"images": 5}},
    "options that are no object": {"extra": {"options": 5}},
    "a model that is no text": {"extra": {"model": 5}},
    "no model": {"extra": {"model": None}},
    "two names the server takes for one": {"extra": {"PROMPT": "Why not?"}},
    "two unknown names the server takes for one": {"extra": {"Mood": 1, "mood": 2}},
}


@pytest.mark.parametrize("changes", REFUSED.values(), ids=REFUSED.keys())
def test_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as raised:
        key(**changes)
    assert isinstance(raised.value, ValueError)
    assert len(str(raised.value)) < 200


def test_a_body_that_holds_itself_is_refused() -> None:
    body: dict[str, Any] = dict(BASE)
    body["again"] = body
    with pytest.raises(ConfigError):
        cache_key(body)


@pytest.mark.parametrize("depth", [10, 100, 900, 2_000, 10_000, 100_000])
def test_a_body_of_any_depth_has_a_key_or_is_refused(depth: int) -> None:
    body = {**BASE, "extra_field": nested(depth)}
    try:
        assert len(cache_key(body)) == 64
    except ConfigError:
        assert depth >= 900


# --- its form, which must not change by accident

GOLDEN = {
    "plain": ({}, "15ffc7a55c19e177c89e7739bc2bb2ec29a2a2c54e18c8a621744d9e5ce57c75"),
    "settings": (
        {"system": "Be brief.", "temperature": 0, "max_tokens": 64, "json_mode": True},
        "ffb0d51a793ad67e86154d876e87027755db6224e9e380eb2054396adabc1f22",
    ),
    "everything": (
        {
            "options": {"num_ctx": 4096, "stop": ["\n"], "top_p": 0.5, "seed": 1.0},
            "format": {"type": "object", "properties": {"b": {}, "a": {}}},
            "images": [b"\x89PNG"],
            "think": "low",
            "context": [],
            "raw": True,
            "extra": {"unknown": [True, None, 0.5]},
            "prompt": "Gr\u00fc\u00dfe, \u4e16\u754c \U0001f30d \x00",
        },
        "f5248dd837a806ee27714e56ea64bbdff3d103913ee02024beb159e6b809f213",
    ),
    "shared": (
        {"namespace": "team", "host": "http://127.0.0.1:11434"},
        "df639e54c075feea029535f89f1d33e0908c4efe45593515db2acbe2cd37a75e",
    ),
    "digest": (
        {"digest": "0" * 64},
        "236f725f93be32d9d23d09f545b155322e33581ae4e7dc49194d28fea101d49d",
    ),
}
SECOND_SAMPLE = "3c280f03064d9e42885db13e9ad5aea5c488b2615e6178039f20ba003ec044ce"


@pytest.mark.parametrize(("changes", "expected"), GOLDEN.values(), ids=GOLDEN.keys())
def test_the_same_key_for_ever(changes: dict[str, Any], expected: str) -> None:
    """A change here makes every stored answer unreachable; it needs a new KEY_VERSION."""
    assert key(**changes) == expected


def test_the_same_key_of_a_second_sample_for_ever() -> None:
    assert cache_key({"model": "m", "prompt": "p"}, sample=2) == SECOND_SAMPLE


def test_the_canonical_form_is_what_the_documentation_says() -> None:
    body = {"model": "m", "prompt": "p", "options": {"b": 1.0, "a": None}, "stream": True}
    canonical = [
        {"v": 1, "namespace": "n", "endpoint": "generate", "host": "h"},
        {
            "model": "registry.ollama.ai/library/m:latest",
            "options": {"b": 1},
            "prompt": hashlib.sha256(b"p").hexdigest(),
        },
    ]
    text = json.dumps(canonical, separators=(",", ":"))
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert cache_key({**body}, namespace="n", host="h") == expected


def test_a_key_is_64_hex_digits() -> None:
    assert re.fullmatch("[0-9a-f]{64}", key())


# --- any body at all

_SCALARS = st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.0, -0.0, 0.5, 1.0])
_JSON = st.recursive(
    _SCALARS | st.sampled_from(["", "a", "b", "0"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
    ),
    max_leaves=4,
)
_BODIES = st.fixed_dictionaries(
    {"model": st.sampled_from(["m", "M:latest", "n"]), "prompt": st.sampled_from(["", "a"])},
    optional={
        "options": st.none() | st.dictionaries(st.sampled_from("ab"), _JSON, max_size=2),
        "format": _JSON,
        "system": st.sampled_from(["", "a", None]),
        "images": st.lists(st.sampled_from(["YQ==", "Y\nQ==", "Yg=="]), max_size=2),
        "think": _JSON,
        "raw": st.sampled_from([True, False, None]),
        "stream": st.booleans(),
        "keep_alive": _JSON,
        "unknown": _JSON,
    },
)


@given(one=_BODIES, other=_BODIES)
def test_keys_are_equal_exactly_when_canonical_bodies_are(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    # repr tells apart what == does not: true and 1, 1 and 1.0, the order of a schema's properties
    same = repr(canonical_body(one)) == repr(canonical_body(other))
    assert (cache_key(one) == cache_key(other)) is same


@given(body=_BODIES, name=st.text(min_size=1, max_size=8), value=_JSON)
def test_a_field_nobody_thought_of_changes_the_key(
    body: dict[str, Any], name: str, value: Any
) -> None:
    # the fields that have a name here have their own rules
    if name.casefold() in {"stream", *body, *GenerateRequest.__slots__}:
        return
    assert cache_key({**body, name: value}) != cache_key(body)


@given(body=_BODIES)
def test_the_order_of_fields_does_not_matter_and_nothing_is_changed(body: dict[str, Any]) -> None:
    before = repr(body)
    assert cache_key(body) == cache_key(dict(reversed(body.items())))
    assert repr(body) == before


# --- how it is called


def test_takes_the_arguments_of_the_original_by_position() -> None:
    by_name = key(model="m", prompt="p", temperature=0.5, max_tokens=7, system="s", json_mode=True)
    assert generate_cache_key("m", "p", 0.5, 7, "s", True) == by_name
    names = list(inspect.signature(generate_cache_key).parameters)
    assert names[:6] == ["model", "prompt", "temperature", "max_tokens", "system", "json_mode"]
    assert generate_cache_key("m", "p") == generate_cache_key("m", "p", 0.3, 2000, None, False)


def test_is_the_same_function_everywhere() -> None:
    expected = key(system="s")
    assert tinyllm_cli.generate_cache_key(**BASE, system="s") == expected
    assert tinyllm_cli.ResponseCache.generate_cache_key(**BASE, system="s") == expected
    cache = tinyllm_cli.create_memory_cache()
    assert cache.generate_cache_key("llama3.2", BASE["prompt"], system="s") == expected
