"""Do the counters count, add up and report what happened?"""

from __future__ import annotations

import inspect

import pytest

from tinyllm_cli.metrics import CacheMetrics

NAMES = CacheMetrics.__slots__


def test_hit_rate_is_a_share_of_hits_and_misses() -> None:
    assert CacheMetrics(hits=3, misses=1).hit_rate == 0.75
    assert CacheMetrics(hits=3, misses=1).total_requests == 4
    assert CacheMetrics(hits=1, errors=9, sets=9, evictions=9).hit_rate == 1.0


def test_before_the_first_request_the_rate_is_zero() -> None:
    assert CacheMetrics().hit_rate == 0.0


def test_the_constructor_is_that_of_the_original() -> None:
    names = list(inspect.signature(CacheMetrics).parameters)
    assert names[:5] == ["hits", "misses", "sets", "evictions", "errors"]
    assert tuple(names) == NAMES
    assert CacheMetrics(1, 2, 3, 4, 5) == CacheMetrics(
        hits=1, misses=2, sets=3, evictions=4, errors=5
    )


def test_add_adds_every_counter() -> None:
    total = CacheMetrics(*range(1, len(NAMES) + 1))
    total.add(CacheMetrics(*([10] * len(NAMES))))
    assert [getattr(total, name) for name in NAMES] == list(range(11, 11 + len(NAMES)))


def test_to_dict_has_every_counter_and_the_two_rates() -> None:
    data = CacheMetrics(hits=1, misses=1, time_saved_s=1.23456).to_dict()
    assert data.keys() == {*NAMES, "hit_rate", "total_requests"}
    assert (data["hits"], data["hit_rate"], data["total_requests"]) == (1, 0.5, 2)
    assert data["time_saved_s"] == 1.235


@pytest.mark.parametrize("name", NAMES)
def test_any_counter_alone_makes_a_difference(name: str) -> None:
    counted = CacheMetrics(**{name: 1})
    assert counted
    assert not CacheMetrics()
    assert counted != CacheMetrics()
    assert f"{name}=1" in repr(counted)


def test_counters_change_so_they_have_no_hash() -> None:
    with pytest.raises(TypeError):
        hash(CacheMetrics())
    assert CacheMetrics() != 0
