"""Does a user's program type-check against the public names? Read by mypy, never executed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, assert_type

from tinyllm_cli import (
    CacheBackend,
    CachedOllamaClient,
    CacheEntry,
    CacheMetrics,
    ConfigError,
    GenerateRequest,
    GenerateResponse,
    InMemoryBackend,
    ModelNotFoundError,
    OllamaClient,
    OllamaStatusError,
    RedisBackend,
    ResponseCache,
    TinyLLMError,
    __version__,
    create_cached_client,
    create_memory_cache,
    create_redis_cache,
    generate_cache_key,
)


async def as_in_the_readme() -> None:
    client = await create_cached_client(
        client=OllamaClient(), backend="memory", max_size=1000, default_ttl=3600
    )
    assert_type(client, CachedOllamaClient)
    response = await client.generate(model="qwen2.5:0.5b", prompt="What is AI?")
    assert_type(response, GenerateResponse)
    assert_type(response.response, str)
    assert_type(response.eval_count, int | None)
    assert_type(response.tokens, int)
    assert_type(client.get_stats(), dict[str, Any])
    await client.generate("What is AI?", force_refresh=True, cache_ttl=60.0, options={"seed": 1})
    stream: AsyncIterator[str] = client.generate_stream("What is AI?", "qwen2.5:0.5b")
    async for piece in stream:
        assert_type(piece, str)
    assert_type(await client.list_models(), list[str])
    assert_type(await client.check_health(), bool)
    await client.close()


async def with_context_managers() -> None:
    async with await create_cached_client(backend="redis", redis_host="cache.example") as client:
        await client.generate("What is AI?")


async def a_cache_of_ones_own(backend: CacheBackend) -> None:
    cache = ResponseCache(backend, default_ttl=None, enable_metrics=False)
    key = cache.generate_cache_key("m", "p", 0.3, 2000, None, False)
    assert_type(key, str)
    assert_type(await cache.get(key), GenerateResponse | None)
    answer = GenerateResponse(model="m", created_at="", response="r", done=True)
    await cache.set(key, answer, ttl=1.5)
    assert_type(await cache.delete(key), bool)
    assert_type(await cache.size(), int)
    metrics = cache.get_metrics()
    assert_type(metrics, CacheMetrics)
    assert_type(metrics.hit_rate, float)
    cache.reset_metrics()
    await cache.clear()
    await cache.close()


async def every_backend_is_a_backend() -> None:
    backends: list[CacheBackend] = [
        InMemoryBackend(10),
        InMemoryBackend(max_size=10, snapshot=Path("snapshot.sqlite3")),
        RedisBackend("localhost", 6379, 0, None, "prefix:"),
    ]
    for backend in backends:
        await a_cache_of_ones_own(backend)
    assert_type(create_memory_cache(10, 60), ResponseCache)
    assert_type(create_redis_cache("localhost", 6379), ResponseCache)


class Mine:
    """A backend of a user: six methods, no base class."""

    async def get(self, key: str) -> CacheEntry | None:
        return None

    async def set(self, key: str, entry: CacheEntry) -> None: ...

    async def delete(self, key: str) -> bool:
        return False

    async def clear(self) -> None: ...

    async def size(self) -> int:
        return 0

    async def close(self) -> None: ...


def mine() -> ResponseCache:
    return ResponseCache(Mine())


def values() -> None:
    request = GenerateRequest("m", "p", options={"stop": ["x"]}, images=[b"", "AA=="])
    assert_type(request.body(), dict[str, Any])
    assert_type(request.replace(prompt="q"), GenerateRequest)
    entry = CacheEntry(GenerateResponse("m", "", "r", True), created_at=0.0, ttl=None)
    assert_type(entry.is_expired(), bool)
    assert_type(generate_cache_key("m", "p", namespace="team"), str)
    assert_type(__version__, str)


async def errors(client: OllamaClient) -> str | None:
    try:
        await client.generate("p", "m")
    except ModelNotFoundError as exc:
        return exc.model
    except OllamaStatusError as exc:
        assert_type(exc.status_code, int)
    except (ConfigError, TinyLLMError) as exc:
        assert_type(exc.hint, str | None)
    except ValueError:
        pass
    return None
