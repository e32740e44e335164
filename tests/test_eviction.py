"""What goes first when the cache is full, in memory and in the snapshot?"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.conftest import Clock
from tinyllm_cli import CacheEntry, ConfigError, GenerateResponse, InMemoryBackend
from tinyllm_cli.eviction import CostOrder, worth


def made_in(seconds: float, length: int = 100) -> CacheEntry:
    """Return an entry of `length` characters that took `seconds` to produce."""
    text = random.Random(length).randbytes(length).hex()[:length]  # packing does not make it small
    response = GenerateResponse("m:latest", "", text, True, eval_count=1)
    return CacheEntry(response, created_at=Clock().now, seconds=seconds)


def backend(eviction: str, room: int, snapshot: Path | None) -> InMemoryBackend:
    return InMemoryBackend(room, eviction=eviction, snapshot=snapshot, clock=Clock())


@pytest.fixture(params=["memory", "snapshot"])
def snapshot(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    folder = tmp_path / "cache"
    return None if request.param == "memory" else folder / "snapshot.sqlite3"


def held(store: InMemoryBackend) -> set[str]:
    """Return the keys stored, without using any of them."""
    return {key for key, _ in store.entries()}


def test_lru_drops_what_was_used_longest_ago(snapshot: Path | None) -> None:
    store = backend("lru", 3, snapshot)
    for key, seconds in (("dear", 100.0), ("cheap", 0.1), ("middle", 1.0)):
        store.set_nowait(key, made_in(seconds))
    store.lookup("dear")
    store.close_nowait()  # a use reaches the file with the next writing
    store.set_nowait("new", made_in(1.0))
    assert held(store) == {"dear", "middle", "new"}
    store.close_nowait()


def test_cost_drops_what_is_cheapest_to_ask_again(snapshot: Path | None) -> None:
    store = backend("cost", 3, snapshot)
    for key, seconds in (("dear", 100.0), ("cheap", 0.1), ("middle", 1.0)):
        store.set_nowait(key, made_in(seconds))
    store.set_nowait("new", made_in(5.0))
    assert held(store) == {"dear", "middle", "new"}
    store.set_nowait("newer", made_in(5.0))
    assert held(store) == {"dear", "new", "newer"}
    assert store.eviction_count == 2
    store.close_nowait()


def test_cost_weighs_the_room_an_answer_takes(snapshot: Path | None) -> None:
    store = backend("cost", 2, snapshot)
    store.set_nowait("long", made_in(2.0, length=50_000))
    store.set_nowait("short", made_in(1.0, length=10))
    store.set_nowait("new", made_in(10.0))
    assert held(store) == {"short", "new"}
    store.close_nowait()


def test_cost_counts_uses(snapshot: Path | None) -> None:
    store = backend("cost", 2, snapshot)
    store.set_nowait("often", made_in(1.0))
    store.set_nowait("once", made_in(2.0))
    for _ in range(3):
        store.lookup("often")
        store.close_nowait()
    store.set_nowait("new", made_in(5.0))
    assert held(store) == {"often", "new"}
    store.close_nowait()


def test_cost_lets_what_was_dear_long_ago_age(snapshot: Path | None) -> None:
    store = backend("cost", 2, snapshot)
    store.set_nowait("once dear", made_in(10.0))
    for number in range(40):  # each new one raises the floor by the rank of the one it displaces
        store.set_nowait(f"new {number}", made_in(2.0))
        store.lookup(f"new {number}")
    assert "once dear" not in held(store)
    store.close_nowait()


def test_the_newest_entry_is_never_the_one_to_go(snapshot: Path | None) -> None:
    store = backend("cost", 1, snapshot)
    store.set_nowait("dear", made_in(100.0))
    store.set_nowait("cheap", made_in(0.1))
    assert held(store) == {"cheap"}
    store.close_nowait()


def test_an_evicted_key_is_remembered_for_the_explanation(tmp_path: Path) -> None:
    store = backend("lru", 1, tmp_path / "cache" / "snapshot.sqlite3")
    store.set_nowait("first", made_in(1.0))
    store.set_nowait("second", made_in(1.0))
    assert store.snapshot is not None
    assert store.snapshot.was_evicted("first")
    assert not store.snapshot.was_evicted("second")
    store.close_nowait()


def test_another_name_of_a_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="eviction"):
        InMemoryBackend(eviction="fifo")


def test_the_order_stays_small_however_often_entries_are_used() -> None:
    order = CostOrder()
    entry = made_in(1.0)
    for number in range(50_000):
        order.use(f"key {number % 10}", entry)
    assert len(order._heap) <= 64 + 4 * 10 + 1


def test_an_answer_nobody_timed_is_still_worth_something() -> None:
    assert 0 < worth(0.0, 10_000) < worth(0.0, 100) < worth(1.0, 100)
