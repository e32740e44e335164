"""What does the cache itself count, forgive and refuse, whatever its store does?"""

from __future__ import annotations

import pytest

from tests.conftest import Clock
from tests.running import in_loop
from tests.samples import answer, entry, key_of
from tinyllm_cli import CacheEntry, CacheError, InMemoryBackend, ResponseCache
from tinyllm_cli.errors import ConfigError

KEY = key_of("a question")


class Plain:
    """Somebody's own backend: the six methods of the protocol and no more."""

    def __init__(self) -> None:
        self.held: dict[str, CacheEntry] = {}

    async def get(self, key: str) -> CacheEntry | None:
        return self.held.get(key)

    async def set(self, key: str, entry: CacheEntry) -> None:
        self.held[key] = entry

    async def delete(self, key: str) -> bool:
        return self.held.pop(key, None) is not None

    async def clear(self) -> None:
        self.held.clear()

    async def size(self) -> int:
        return len(self.held)

    async def close(self) -> None:
        self.held.clear()


class Broken:
    """A backend that fails at everything, each time with an error of its own kind."""

    async def get(self, key: str) -> CacheEntry | None:
        raise RuntimeError("Event loop is closed")

    async def set(self, key: str, entry: CacheEntry) -> None:
        raise OSError(28, "No space left on device")

    async def delete(self, key: str) -> bool:
        raise RecursionError("maximum recursion depth exceeded")

    async def clear(self) -> None:
        raise ValueError("not a value")

    async def size(self) -> int:
        raise CacheError("the store is away")

    async def close(self) -> None:
        raise UnicodeError("half a character")


@in_loop
async def test_a_plain_backend_is_enough() -> None:
    cache = ResponseCache(Plain())
    assert cache.needs_event_loop
    assert await cache.get(KEY) is None
    await cache.set(KEY, answer())
    assert await cache.get(KEY) == answer()
    assert await cache.size() == 1
    assert (await cache.delete(KEY), await cache.delete(KEY)) == (True, False)
    metrics = cache.get_metrics()
    assert (metrics.hits, metrics.misses, metrics.sets, metrics.errors) == (1, 1, 1, 0)
    with pytest.raises(TypeError, match="without an event loop"):
        cache.look_up_nowait(KEY)
    with pytest.raises(TypeError, match="without an event loop"):
        cache.close_nowait()
    await cache.close()


@in_loop
async def test_whatever_a_store_raises_costs_no_more_than_the_cache() -> None:
    faults: list[CacheError] = []
    cache = ResponseCache(Broken(), on_fault=faults.append)
    assert await cache.get(KEY) is None
    assert await cache.find_spare(KEY) is None
    assert await cache.peek(KEY) is None
    assert await cache.store(KEY, entry()) is False
    assert await cache.delete(KEY) is False
    assert await cache.size() == 0
    await cache.clear()
    await cache.close()
    metrics = cache.get_metrics()
    assert (metrics.errors, metrics.hits, metrics.misses, metrics.sets) == (8, 0, 0, 0)
    assert [str(fault) for fault in faults] == [
        *["RuntimeError: Event loop is closed"] * 3,
        "OSError: [Errno 28] No space left on device",
        "RecursionError: maximum recursion depth exceeded",
        "the store is away",
        "ValueError: not a value",
        "UnicodeError: half a character",
    ]


@in_loop
async def test_a_strict_cache_lets_its_store_speak() -> None:
    cache = ResponseCache(Broken(), strict=True)
    with pytest.raises(RuntimeError, match="loop is closed"):
        await cache.get(KEY)
    with pytest.raises(CacheError, match="away"):
        await cache.size()
    assert cache.get_metrics().errors == 0


@in_loop
async def test_a_ttl_that_makes_no_sense_is_no_failure_of_the_store() -> None:
    cache = ResponseCache(InMemoryBackend())
    with pytest.raises(ConfigError, match="TTL"):
        await cache.set(KEY, answer(), ttl=0)
    assert (cache.get_metrics().errors, await cache.size()) == (0, 0)


@in_loop
async def test_each_use_is_noted_once(clock: Clock) -> None:
    backend = InMemoryBackend(clock=clock)
    cache = ResponseCache(backend, clock=clock)
    await cache.set(KEY, answer())
    for use in (1, 2, 3):
        clock.advance(1)
        served = cache.serve(KEY)
        assert served is not None
        assert (served.access_count, served.last_accessed) == (use, clock.now)
    assert cache.get_metrics().hits == 3


def test_without_counters_nothing_is_counted() -> None:
    cache = ResponseCache(InMemoryBackend(), enable_metrics=False)
    assert cache.look_up_nowait(KEY) is None
    assert not any(cache.get_metrics().to_dict().values())
