"""Does every backend keep the one contract: get, set, delete, clear, size and close?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Clock
from tests.samples import answer, entry, key_of
from tests.test_codec import FULL
from tinyllm_cli.backends import open_backend
from tinyllm_cli.backends.base import CacheBackend, MetricsStore
from tinyllm_cli.backends.inventory import Clearance, Filter
from tinyllm_cli.entry import CacheEntry
from tinyllm_cli.errors import ConfigError
from tinyllm_cli.metrics import CacheMetrics

ONE, TWO, THREE = key_of(1), key_of(2), key_of(3)
KINDS = ("memory", "snapshot", "redis")
Open = Callable[[], CacheBackend]
Test = Callable[[CacheBackend], Awaitable[None]]


@pytest.fixture(params=KINDS)
def opened(request: pytest.FixtureRequest, path: Path, clock: Clock) -> Open:
    """Give a function that opens the backend, and opens the same store again when called again."""
    if request.param == "memory":
        return lambda: open_backend("memory", clock=clock)
    if request.param == "snapshot":
        return lambda: open_backend("memory", snapshot=path, clock=clock)
    port = request.getfixturevalue("redis_port")
    # what Redis keeps expires by the wall clock
    clock.now = time.time()
    return lambda: open_backend(
        "redis", host="127.0.0.1", port=port, timeout=5.0, connect_timeout=5.0
    )


def made_now(clock: Clock, text: str = "Because.", **fields: Any) -> CacheEntry:
    return entry(text, created_at=clock.now, **fields)


def run(opened: Open, test: Test) -> None:
    """Run a coroutine with the backend and close it, in an event loop of its own."""

    async def whole() -> None:
        backend = opened()
        try:
            await test(backend)
        finally:
            await backend.close()

    asyncio.run(whole())


def test_what_was_set_is_got_with_every_field(opened: Open, clock: Clock) -> None:
    async def test(backend: CacheBackend) -> None:
        assert await backend.get(ONE) is None
        stored = made_now(clock, ttl=60, seconds=1.5, chunks=FULL.chunks, response=FULL.response)
        await backend.set(ONE, stored)
        found = await backend.get(ONE)
        assert found is not None
        assert found.response == FULL.response
        assert (found.ttl, found.seconds, found.chunks) == (60, 1.5, FULL.chunks)
        assert found.created_at == stored.created_at
        assert await backend.get(TWO) is None

    run(opened, test)


def test_set_replaces(opened: Open, clock: Clock) -> None:
    async def test(backend: CacheBackend) -> None:
        await backend.set(ONE, made_now(clock, "first", ttl=1))
        await backend.set(ONE, made_now(clock, "second"))
        found = await backend.get(ONE)
        assert found is not None
        assert (found.response.response, found.ttl) == ("second", None)
        assert await backend.size() == 1

    run(opened, test)


def test_delete_says_whether_there_was_one(opened: Open, clock: Clock) -> None:
    async def test(backend: CacheBackend) -> None:
        assert await backend.delete(ONE) is False
        await backend.set(ONE, made_now(clock))
        await backend.set(TWO, made_now(clock))
        assert await backend.delete(ONE) is True
        assert await backend.delete(ONE) is False
        assert await backend.get(ONE) is None
        assert await backend.get(TWO) is not None

    run(opened, test)


def test_clear_removes_every_entry(opened: Open, clock: Clock) -> None:
    async def test(backend: CacheBackend) -> None:
        await backend.clear()
        for key in (ONE, TWO, THREE):
            await backend.set(key, made_now(clock))
        assert await backend.size() == 3
        await backend.clear()
        assert await backend.size() == 0
        assert await backend.get(ONE) is None
        await backend.set(ONE, made_now(clock))
        assert await backend.size() == 1

    run(opened, test)


def test_an_entry_past_its_ttl_is_not_got(opened: Open, clock: Clock) -> None:
    async def test(backend: CacheBackend) -> None:
        await backend.set(ONE, made_now(clock, ttl=60))
        await backend.set(TWO, entry(created_at=clock.now - 60, ttl=60))
        await backend.set(THREE, entry(created_at=clock.now - 1e6, ttl=None))
        assert await backend.get(ONE) is not None
        assert await backend.get(TWO) is None
        assert await backend.get(THREE) is not None

    run(opened, test)


@pytest.mark.parametrize("opened", ["memory", "snapshot"], indirect=True)
def test_expired_is_age_equal_to_ttl_and_not_before(opened: Open, clock: Clock) -> None:
    """Redis expires by its own clock, which cannot be set."""

    async def test(backend: CacheBackend) -> None:
        await backend.set(ONE, made_now(clock, ttl=60))
        clock.advance(59.999)
        assert await backend.get(ONE) is not None
        clock.advance(0.001)
        assert await backend.get(ONE) is None
        assert await backend.size() == 0

    run(opened, test)


def test_an_entry_from_the_far_future_is_not_got(opened: Open, clock: Clock) -> None:
    async def test(backend: CacheBackend) -> None:
        await backend.set(ONE, entry(created_at=clock.now + 90_000, ttl=60))
        await backend.set(TWO, entry(created_at=clock.now + 80_000, ttl=90_000))
        assert await backend.get(ONE) is None
        assert await backend.get(TWO) is not None

    run(opened, test)


def test_close_may_be_called_twice_and_the_backend_used_again(opened: Open, clock: Clock) -> None:
    async def test(backend: CacheBackend) -> None:
        await backend.close()
        await backend.set(ONE, made_now(clock))
        await backend.close()
        await backend.close()
        assert await backend.get(ONE) is not None
        assert await backend.size() == 1

    run(opened, test)


def test_a_backend_serves_one_event_loop_after_another(opened: Open, clock: Clock) -> None:
    backend = opened()

    async def write(one: CacheBackend) -> None:
        await one.set(ONE, made_now(clock))

    async def read(one: CacheBackend) -> None:
        assert await one.get(ONE) is not None

    run(lambda: backend, write)
    run(lambda: backend, read)


def test_a_caller_cannot_change_what_the_next_one_gets(opened: Open, clock: Clock) -> None:
    calls = [{"function": {"name": "f", "arguments": {"city": "Paris"}}}]

    async def test(backend: CacheBackend) -> None:
        await backend.set(ONE, made_now(clock, response=answer(tool_calls=calls)))
        calls[0]["function"]["arguments"] = {"city": "Rome"}
        first: Any = await backend.get(ONE)
        with pytest.raises(AttributeError):
            first.response.response = "changed"
        with pytest.raises(TypeError):
            first.response.tool_calls[0]["function"]["arguments"]["city"] = "Rome"
        first.response.to_dict()["tool_calls"].clear()
        second = await backend.get(ONE)
        assert second is not None
        assert second.response.to_dict()["tool_calls"][0]["function"]["arguments"] == {
            "city": "Paris"
        }

    run(opened, test)


@pytest.mark.parametrize("text", ["", "\x00", "\ud800", "\u2028\r\n", "x" * 100_000, "\U0001f30d"])
def test_any_text_is_got_back_exactly(opened: Open, clock: Clock, text: str) -> None:
    async def test(backend: CacheBackend) -> None:
        await backend.set(ONE, made_now(clock, text))
        found = await backend.get(ONE)
        assert found is not None
        assert found.response.response == text

    run(opened, test)


def test_many_at_once(opened: Open, clock: Clock) -> None:
    async def test(backend: CacheBackend) -> None:
        keys = [key_of(number) for number in range(50)]
        await asyncio.gather(*(backend.set(key, made_now(clock, key)) for key in keys))
        found = await asyncio.gather(*(backend.get(key) for key in keys))
        assert [one.response.response if one else None for one in found] == keys
        assert await backend.size() == 50

    run(opened, test)


# --- what a store that keeps counters adds


@pytest.fixture(params=["snapshot", "redis"])
def opened_store(request: pytest.FixtureRequest, path: Path, clock: Clock) -> Open:
    given: Open = opened.__wrapped__(request, path, clock)  # type: ignore[attr-defined] # a fixture
    return given


def test_counters_and_entries_outlive_the_process(opened_store: Open, clock: Clock) -> None:
    async def write(backend: CacheBackend) -> None:
        assert isinstance(backend, MetricsStore)
        assert backend.keeps_metrics
        await backend.set(ONE, made_now(clock))
        backend.count("m:latest", CacheMetrics(hits=2, time_saved_s=1.5))
        backend.count("m:latest", CacheMetrics(misses=1))
        backend.count("", CacheMetrics(errors=1))

    async def read(backend: CacheBackend) -> None:
        assert isinstance(backend, MetricsStore)
        stats = await backend.stats()
        assert stats.entries == 1
        assert stats.metrics == CacheMetrics(hits=2, misses=1, errors=1, time_saved_s=1.5)
        by_model = {row.model: row.metrics for row in stats.models}
        assert by_model["m:latest"].hits == 2
        assert by_model[""].errors == 1
        assert await backend.get(ONE) is not None
        await backend.reset_counters()
        stats = await backend.stats()
        assert (stats.entries, stats.metrics) == (1, CacheMetrics())

    run(opened_store, write)
    run(opened_store, read)


@pytest.fixture(params=KINDS)
def opened_filled(request: pytest.FixtureRequest, path: Path, clock: Clock) -> Open:
    return opened.__wrapped__(request, path, clock)  # type: ignore[attr-defined, no-any-return] # a fixture


FILTERS: list[tuple[Filter, set[int]]] = [
    (Filter(), {0, 1, 2, 3}),
    (Filter(model="llama3.2:latest"), {0, 2, 3}),
    (Filter(model="qwen:latest"), {1}),
    (Filter(model="nobody:latest"), set()),
    (Filter(created_before=-50), {2, 3}),
    (Filter(created_before=-50.1), {3}),
    (Filter(expired_at=0), {3}),
    (Filter(expired_at=50), {2, 3}),
    (Filter(expired_at=49.9), {3}),
    (Filter(model="llama3.2:latest", created_before=-100), {3}),
    (Filter(model="qwen:latest", created_before=-100), set()),
    (Filter(key_prefix=key_of(0)[:8]), {0}),
    (Filter(key_prefix=key_of(0)), {0}),
    (Filter(key_prefix=""), {0, 1, 2, 3}),
    (Filter(key_prefix="%"), set()),
    (Filter(key_prefix="x" * 64), set()),
]


@pytest.mark.parametrize(("which", "meant"), FILTERS)
def test_a_filter_removes_what_it_means_and_a_dry_run_nothing(
    opened_filled: Open, clock: Clock, which: Filter, meant: set[int]
) -> None:
    """Times in the table are seconds from now."""
    shifted = {
        name: value + clock.now
        for name in ("created_before", "expired_at")
        if (value := getattr(which, name)) is not None
    }
    which = which._replace(**shifted)
    filled = [
        made_now(clock),
        made_now(clock, response=answer(model="qwen")),
        entry(created_at=clock.now - 50, ttl=100),
        entry(created_at=clock.now - 200, ttl=200.0),
    ]

    async def test(backend: CacheBackend) -> None:
        clear_matching: Any = backend.clear_matching  # type: ignore[attr-defined] # beyond the protocol
        for number, one in enumerate(filled):
            if number == 3:
                one = entry(created_at=one.created_at, ttl=one.ttl)
            await backend.set(key_of(number), one)
        held = set(range(4))
        if await backend.size() == 3:  # a store that drops at once what has already expired
            held.remove(3)
        counted = await clear_matching(which, dry_run=True)
        assert counted.entries == len(meant & held)
        assert (counted.bytes > 0) is (counted.entries > 0)
        assert await backend.size() == len(held)
        assert await clear_matching(which) == counted
        assert await backend.size() == len(held - meant)
        for number in held - {3}:
            assert (await backend.get(key_of(number)) is None) is (number in meant)
        assert await clear_matching(which) == Clearance(0, 0)

    run(opened_filled, test)


def test_no_other_backend_is_known() -> None:
    with pytest.raises(ConfigError, match="Invalid cache backend"):
        open_backend("nope")
