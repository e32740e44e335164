"""Which answers are worth storing, which stored ones may serve, and which TTLs make sense?"""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.samples import NOW, answer, entry
from tinyllm_cli.errors import ConfigError
from tinyllm_cli.policy import (
    EXPIRED,
    FRESH,
    MAX_TTL_S,
    RENEW_EARLY,
    SPARE,
    STALE,
    Freshness,
    checked_freshness,
    checked_speed,
    checked_ttl,
    is_deterministic,
    look,
    why_not_stored,
)
from tinyllm_cli.request import GenerateRequest

# --- storing


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"done_reason": "length"},
        {"done_reason": None},
        {"response": "", "thinking": "hm"},
        {"response": "", "tool_calls": [{"function": {"name": "f"}}]},
        {"response": " "},
    ],
)
def test_a_complete_answer_is_stored(fields: dict[str, Any]) -> None:
    assert why_not_stored(answer().replace(**fields)) is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"done": False}, "not complete"),
        ({"done_reason": "load"}, "load"),
        ({"done_reason": "unload"}, "unload"),
        ({"done_reason": ""}, "none given"),
        ({"done_reason": "a reason of next year"}, "next year"),
        ({"response": ""}, "empty"),
        ({"response": "", "thinking": "", "tool_calls": []}, "empty"),
        ({"remote_model": "big"}, "cloud"),
        ({"remote_host": "https://ollama.com"}, "cloud"),
    ],
)
def test_anything_else_is_not_and_the_reason_is_said(fields: dict[str, Any], reason: str) -> None:
    assert reason in (why_not_stored(answer().replace(**fields)) or "stored")


def test_an_answer_of_the_cloud_is_stored_if_the_user_says_so() -> None:
    remote = answer(remote_model="big", remote_host="https://ollama.com")
    assert why_not_stored(remote, cloud=True) is None
    assert why_not_stored(remote.replace(done=False), cloud=True) is not None


# --- serving


@pytest.mark.parametrize(
    ("age", "verdict"),
    [
        (-86_401, EXPIRED),
        (-86_400, FRESH),
        (0, FRESH),
        (99.9, FRESH),
        (100, STALE),
        (109.9, STALE),
        (110, SPARE),
        (129.9, SPARE),
        (130, EXPIRED),
        (1e9, EXPIRED),
    ],
)
def test_an_answer_grows_old_by_steps(age: float, verdict: str) -> None:
    freshness = Freshness(stale_while_revalidate=10, stale_if_error=30)
    assert look(entry(ttl=100), NOW + age, freshness, 1.0) == verdict


@pytest.mark.parametrize(("age", "verdict"), [(99.9, FRESH), (100, EXPIRED)])
def test_without_more_an_answer_is_fresh_or_expired(age: float, verdict: str) -> None:
    assert look(entry(ttl=100), NOW + age, Freshness(), 1.0) == verdict


@pytest.mark.parametrize(("age", "verdict"), [(0, FRESH), (1e12, FRESH), (-86_401, EXPIRED)])
def test_without_a_ttl_an_answer_stays_fresh(age: float, verdict: str) -> None:
    assert look(entry(ttl=None), NOW + age, Freshness(5, 5, 1.0), 1e-9) == verdict


@pytest.mark.parametrize(
    ("left", "beta", "chance", "verdict"),
    [
        # due when seconds * beta * -ln(chance) reaches what is left; -ln(1/e) is 1
        (2.1, 1.0, 1 / math.e, FRESH),
        (2.0, 1.0, 1 / math.e, RENEW_EARLY),
        (1.9, 1.0, 1 / math.e, RENEW_EARLY),
        (3.9, 2.0, 1 / math.e, RENEW_EARLY),
        (1.9, 0.0, 1e-300, FRESH),
        (0.1, 1.0, 1.0, FRESH),
        (90.0, 1.0, 1e-300, RENEW_EARLY),
    ],
)
def test_a_costly_answer_is_renewed_early_by_chance(
    left: float, beta: float, chance: float, verdict: str
) -> None:
    made = entry(ttl=100, seconds=2.0)
    assert look(made, NOW + 100 - left, Freshness(beta=beta), chance) == verdict


def test_the_grace_is_the_longer_of_the_two() -> None:
    assert Freshness(10, 30).grace == 30
    assert Freshness(30, 10).grace == 30
    assert Freshness().grace == 0


def test_a_freshness_that_makes_sense_comes_back() -> None:
    assert checked_freshness(1, 2.5, 0.5) == Freshness(1, 2.5, 0.5)
    assert checked_freshness() == Freshness()
    assert checked_freshness(MAX_TTL_S, MAX_TTL_S, 0) == Freshness(MAX_TTL_S, MAX_TTL_S)


@pytest.mark.parametrize("name", Freshness._fields)
@pytest.mark.parametrize("value", [-1, -0.1, math.nan, math.inf, 1e11, 10**400, True, "1", None])
def test_a_freshness_that_makes_none_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        checked_freshness(**{name: value})


@pytest.mark.parametrize("speed", [1, 0.001, 2.5, 1e9])
def test_a_replay_speed_that_makes_sense_comes_back(speed: float) -> None:
    assert checked_speed(speed) == speed


@pytest.mark.parametrize("speed", [0, -1, math.nan, math.inf, True, "1", None])
def test_a_replay_speed_that_makes_none_is_refused(speed: Any) -> None:
    with pytest.raises(ConfigError, match="replay speed"):
        checked_speed(speed)


# --- which requests have one answer


@pytest.mark.parametrize(
    ("fields", "deterministic"),
    [
        ({"temperature": 0}, True),
        ({"temperature": 0.0}, True),
        ({"temperature": 0.01}, False),
        ({"temperature": None}, False),
        ({"temperature": None, "max_tokens": None}, False),
        ({}, False),
        ({"options": {"seed": 0}}, True),
        ({"options": {"seed": 42}}, True),
        ({"options": {"seed": -1}}, False),
        ({"options": {"seed": True}}, False),
        ({"options": {"top_k": 1}}, True),
        ({"options": {"top_k": 2}}, False),
        ({"options": {"top_k": True}}, False),
        ({"temperature": 0, "options": {"temperature": 0.5}}, False),
        ({"options": {"temperature": False}}, False),
    ],
)
def test_deterministic(fields: dict[str, Any], deterministic: bool) -> None:
    assert is_deterministic(GenerateRequest("m", "p", **fields)) is deterministic


# --- TTLs


@pytest.mark.parametrize("ttl", [None, 1, 3600, 0.001, 1.5, MAX_TTL_S])
def test_a_ttl_that_makes_sense_comes_back(ttl: float | None) -> None:
    assert checked_ttl(ttl) == ttl


@pytest.mark.parametrize(
    "ttl",
    [0, 0.0, -0.0, -1, math.nan, math.inf, -math.inf, MAX_TTL_S + 1, 10**400, True, "60", []],
    ids=lambda value: f"{value!r:.12}",
)
def test_a_ttl_that_makes_none_is_refused(ttl: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        checked_ttl(ttl)
    assert isinstance(raised.value, ValueError)
    assert len(str(raised.value)) < 120
