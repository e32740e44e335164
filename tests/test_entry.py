"""How old is an entry, when has it expired, and what does it weigh?"""

from __future__ import annotations

import inspect
import time
from typing import Any

import pytest

from tests.samples import NOW, answer, entry
from tinyllm_cli.entry import CacheEntry

DAY = 86_400


@pytest.mark.parametrize(
    ("ttl", "later", "expired"),
    [
        (60, 0, False),
        (60, 59.999, False),
        (60, 60, True),
        (60, 60.001, True),
        (0.5, 0.499, False),
        (0.5, 0.5, True),
        (None, 0, False),
        (None, 1e12, False),
        # a clock set back a little does no harm
        (60, -1, False),
        (60, -DAY, False),
        # what comes from further ahead would outlive everything
        (60, -DAY - 1, True),
        (None, -DAY - 1, True),
    ],
)
def test_expired_means_age_has_reached_the_ttl(
    ttl: float | None, later: float, expired: bool
) -> None:
    assert entry(ttl=ttl).is_expired(NOW + later) is expired


def test_age_is_never_below_zero() -> None:
    assert entry().age(NOW + 5) == 5
    assert entry().age(NOW - 5) == 0


def test_without_a_time_it_asks_the_wall_clock() -> None:
    made = CacheEntry(answer(), created_at=time.time() - 100, ttl=50)
    assert made.is_expired()
    assert 100 <= made.age() < 200
    assert abs(made.last_accessed - time.time()) < 60
    assert not CacheEntry(answer(), created_at=time.time(), ttl=1000).is_expired()


def test_touch_notes_a_use() -> None:
    one = entry()
    one.touch(NOW + 1)
    one.touch(NOW + 2)
    assert (one.access_count, one.last_accessed) == (2, NOW + 2)
    one.touch()
    assert abs(one.last_accessed - time.time()) < 60


def test_size_grows_with_the_text() -> None:
    empty = entry("")
    assert entry("x" * 1000).size == empty.size + 1000
    assert entry("", response=answer("", thinking="y" * 10)).size == empty.size + 10
    assert entry("", request={"prompt": "z" * 10}).size == empty.size + 10
    assert entry("", request={}).size == empty.size > 0


CHANGES: dict[str, Any] = {
    "response": answer("other"),
    "created_at": NOW + 1,
    "ttl": 5,
    "access_count": 1,
    "last_accessed": NOW + 1,
    "seconds": 1.5,
    "chunks": [(1, 0, 0, 0)],
    "request": {"prompt": "p"},
    "grace": 5.0,
}


def test_entries_are_equal_if_all_fields_are() -> None:
    derived = {"tokens"}  # from the response
    assert CHANGES.keys() | derived == set(CacheEntry.__slots__)
    assert entry() == entry()
    assert all(entry(**{name: value}) != entry() for name, value in CHANGES.items())
    assert entry() != "something else"


def test_it_changes_so_it_has_no_hash() -> None:
    with pytest.raises(TypeError):
        hash(entry())


def test_the_constructor_is_that_of_the_original() -> None:
    names = list(inspect.signature(CacheEntry).parameters)
    assert names[:5] == ["response", "created_at", "ttl", "access_count", "last_accessed"]
    made = CacheEntry(answer(), NOW, 5, 2, NOW + 1)
    assert (made.ttl, made.access_count, made.last_accessed) == (5, 2, NOW + 1)


def test_repr_is_one_short_line_without_the_answer() -> None:
    text = repr(entry("a secret " * 1000))
    assert "secret" not in text
    assert len(text) < 200
