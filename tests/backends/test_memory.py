"""Is the memory backend an LRU within both its bounds, from any number of threads?"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Clock
from tests.samples import NOW, answer, entry, key_of
from tinyllm_cli.backends.inventory import Filter
from tinyllm_cli.backends.memory import (
    DEFAULT_MAX_BYTES,
    DEFAULT_MAX_SIZE,
    InMemoryBackend,
)
from tinyllm_cli.errors import ConfigError

FLAT = entry("").size


def held(backend: InMemoryBackend, names: str) -> str:
    """Return which of these one-letter names are held, without using them."""
    return "".join(name for name in names if backend.peek(key_of(name)) is not None)


def store(backend: InMemoryBackend, names: str, text: str = "") -> None:
    for name in names:
        backend.set_nowait(key_of(name), entry(text))


# --- bounds


def test_the_least_recently_used_goes_first() -> None:
    backend = InMemoryBackend(3)
    store(backend, "abc")
    assert backend.lookup(key_of("a")) is not None
    store(backend, "d")
    assert held(backend, "abcd") == "acd"
    store(backend, "e")
    assert held(backend, "abcde") == "ade"
    store(backend, "a")  # storing again is a use
    store(backend, "fg")
    assert held(backend, "abcdefg") == "afg"
    assert backend.eviction_count == 4


def test_a_look_at_an_expired_entry_removes_it_and_is_no_eviction(clock: Clock) -> None:
    backend = InMemoryBackend(3, clock=clock)
    backend.set_nowait(key_of("a"), entry(ttl=10))
    clock.advance(10)
    assert backend.lookup(key_of("a")) is not None
    assert backend.get_nowait(key_of("a")) is None
    assert backend.lookup(key_of("a")) is None
    assert backend.eviction_count == 0
    assert backend.stats_nowait().entries == 0


def test_bytes_are_bounded_as_well() -> None:
    backend = InMemoryBackend(100, max_bytes=3 * (FLAT + 100))
    store(backend, "abc", "x" * 100)
    assert held(backend, "abc") == "abc"
    store(backend, "d", "x" * 100)
    assert held(backend, "abcd") == "bcd"
    store(backend, "e", "x" * (FLAT + 200))  # twice the room
    assert held(backend, "abcde") == "de"
    assert backend.eviction_count == 3
    assert backend.stats_nowait().bytes == 3 * (FLAT + 100)


def test_replacing_an_entry_gives_back_its_room() -> None:
    backend = InMemoryBackend(100, max_bytes=2 * (FLAT + 100))
    for _ in range(10):
        store(backend, "ab", "x" * 100)
    assert held(backend, "ab") == "ab"
    assert backend.eviction_count == 0


def test_deleting_gives_back_room() -> None:
    backend = InMemoryBackend(100, max_bytes=2 * (FLAT + 100))
    store(backend, "ab", "x" * 100)
    assert backend.clear_nowait(Filter(key_prefix=key_of("a"))).entries == 1
    store(backend, "c", "x" * 100)
    assert held(backend, "abc") == "bc"
    assert backend.eviction_count == 0


@pytest.mark.parametrize("with_snapshot", [False, True])
def test_an_entry_too_large_is_not_stored_and_drives_nothing_out(
    with_snapshot: bool, path: Path
) -> None:
    options: dict[str, Any] = {"snapshot": path} if with_snapshot else {}
    backend = InMemoryBackend(10, max_entry_bytes=2000, **options)
    store(backend, "ab", "x" * 100)
    random = Random(1)  # packing makes no small entry of this
    large = "".join(chr(random.randrange(0x4E00, 0x9FFF)) for _ in range(2500))
    store(backend, "c", large)
    assert held(backend, "abc") == "ab"
    store(backend, "a", large)  # what it was to replace is no longer the answer
    assert held(backend, "abc") == "b"
    assert backend.eviction_count == 0
    backend.close_nowait()


def test_no_entry_may_be_larger_than_the_whole_store() -> None:
    backend = InMemoryBackend(10, max_bytes=2000, max_entry_bytes=10**6)
    assert backend.max_entry_bytes == 2000
    store(backend, "a")
    store(backend, "b", "x" * 2000)
    assert held(backend, "ab") == "a"


def test_the_defaults() -> None:
    backend = InMemoryBackend()
    assert (backend.max_size, backend.max_bytes) == (DEFAULT_MAX_SIZE, DEFAULT_MAX_BYTES)
    assert DEFAULT_MAX_SIZE == 1000
    assert backend.snapshot is None
    assert not backend.keeps_metrics


@pytest.mark.parametrize("bound", ["max_size", "max_bytes", "max_entry_bytes"])
@pytest.mark.parametrize("value", [0, -1, 1.5, 10.0, True, "10", None])
def test_bounds_that_make_no_sense(bound: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=bound):
        InMemoryBackend(**{bound: value})


def test_nothing_is_counted_for_later_and_closing_keeps_the_entries() -> None:
    backend = InMemoryBackend()
    store(backend, "a")
    backend.close_nowait()
    assert held(backend, "a") == "a"


# --- whatever happens, the books are right


@st.composite
def _steps(draw: st.DrawFn) -> list[tuple[str, str, int]]:
    step = st.tuples(
        st.sampled_from(["set", "set", "get", "delete"]),
        st.sampled_from("abcdefg"),
        st.integers(0, 900),
    )
    return draw(st.lists(step, max_size=40))


@given(steps=_steps(), max_size=st.integers(1, 5), max_bytes=st.integers(FLAT, 6 * FLAT))
def test_it_behaves_like_a_list_in_order_of_use(
    steps: list[tuple[str, str, int]], max_size: int, max_bytes: int
) -> None:
    backend = InMemoryBackend(max_size, max_bytes=max_bytes, clock=Clock())
    model: dict[str, int] = {}  # name to size, the least recently used first
    evicted = 0
    for kind, name, length in steps:
        key = key_of(name)
        if kind == "set":
            model.pop(name, None)
        if kind == "set" and FLAT + length <= max_bytes:
            model[name] = FLAT + length
            while len(model) > max_size or sum(model.values()) > max_bytes:
                del model[next(iter(model))]
                evicted += 1
        elif kind == "get" and name in model:
            model[name] = model.pop(name)
        elif kind == "delete":
            model.pop(name, None)
        if kind == "set":
            backend.set_nowait(key, entry("x" * length))
        elif kind == "get":
            assert (backend.get_nowait(key) is not None) is (name in model)
        else:
            backend.clear_nowait(Filter(key_prefix=key))
        assert held(backend, "abcdefg") == "".join(sorted(model))
        stats = backend.stats_nowait()
        assert (stats.entries, stats.bytes) == (len(model), sum(model.values()))
        assert backend.eviction_count == evicted


def test_stats_name_each_model() -> None:
    backend = InMemoryBackend()
    backend.set_nowait(key_of("a"), entry("xx", created_at=NOW - 5))
    backend.set_nowait(key_of("b"), entry(response=answer("", model="QWEN:1b"), created_at=NOW + 5))
    stats = backend.stats_nowait()
    assert {row.model: (row.entries, row.bytes) for row in stats.models} == {
        "llama3.2:latest": (1, FLAT + 2),
        "qwen:1b": (1, FLAT),
    }
    assert (stats.oldest, stats.newest) == (NOW - 5, NOW + 5)
    empty = InMemoryBackend().stats_nowait()
    assert (empty.entries, empty.bytes, empty.oldest, empty.newest) == (0, 0, None, None)


# --- threads


@pytest.fixture
def impatient() -> Iterator[None]:
    """Have the interpreter switch threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("eviction", ["lru", "cost"])
def test_many_threads_at_once(eviction: str) -> None:
    backend = InMemoryBackend(20, max_bytes=20 * (FLAT + 50), eviction=eviction, clock=Clock())
    texts = {key_of(number): f"answer {number}" for number in range(60)}
    start = threading.Barrier(8)

    def work(seed: int) -> int:
        random = Random(seed)
        start.wait()
        hits = 0
        for _ in range(4000):
            key = random.choice(list(texts))
            chance = random.random()
            if chance < 0.4:
                backend.set_nowait(key, entry(texts[key]))
            elif chance < 0.9:
                found = backend.get_nowait(key)
                assert found is None or found.response.response == texts[key]
                hits += found is not None
            elif chance < 0.95:
                backend.clear_nowait(Filter(key_prefix=key))
            else:
                backend.stats_nowait()
        return hits

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) > 500
    stats = backend.stats_nowait()
    assert stats.entries <= 20
    assert stats.bytes <= 20 * (FLAT + 50)
    # the books agree with what is there: an empty store has all its room again
    backend.clear_nowait(Filter())
    before = backend.eviction_count
    for key in list(texts)[:20]:
        backend.set_nowait(key, entry("x" * 50))
    assert backend.eviction_count == before
    assert backend.stats_nowait().entries == 20


class Interrupting(str):
    """A key that has something else happen while the entry it was found under is decoded."""

    def __new__(cls, key: str, then: Callable[[], object]) -> Interrupting:
        made = super().__new__(cls, key)
        made.then = then
        return made

    then: Callable[[], object]

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        self.then()
        return super().encode(encoding, errors)


def test_what_is_removed_while_it_is_read_is_not_kept(path: Path) -> None:
    backend = InMemoryBackend(snapshot=path)
    key = key_of("a")
    for remove in (
        lambda: backend.clear_nowait(Filter()),
        lambda: backend.clear_nowait(Filter(key_prefix=key)),
        lambda: backend.set_nowait(key, entry("second")),
    ):
        backend.set_nowait(key, entry("first"))
        backend.clear_nowait(Filter(model="nobody"))  # what memory holds is dropped, no more
        found = backend.lookup(Interrupting(key, remove))
        assert found is not None and found.response.response == "first"
        after = backend.lookup(key)
        assert after is None or after.response.response == "second"
    backend.close_nowait()


@pytest.mark.usefixtures("impatient")
def test_a_thread_that_reads_cannot_bring_back_what_another_cleared(path: Path) -> None:
    backend = InMemoryBackend(snapshot=path)
    key = key_of("a")
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            backend.lookup(key)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for number in range(150):
            backend.set_nowait(key, entry(f"first {number}"))
            backend.set_nowait(key, entry(f"second {number}"))
            found = backend.lookup(key)
            assert found is not None and found.response.response == f"second {number}"
            backend.clear_nowait(Filter())
            assert [backend.lookup(key) for _ in range(3)] == [None] * 3
    finally:
        done.set()
        for reader in readers:
            reader.join()
        backend.close_nowait()
