"""A cached client of the fake server, and a test as a coroutine that leaves nothing running."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from tests.fake_ollama import FakeOllama
from tinyllm_cli.backends.base import CacheBackend
from tinyllm_cli.backends.memory import InMemoryBackend
from tinyllm_cli.cache import ResponseCache
from tinyllm_cli.client import CachedOllamaClient
from tinyllm_cli.ollama.client import OllamaClient
from tinyllm_cli.policy import Freshness

__all__ = ["MODEL", "client_of", "in_loop", "off_loop", "text_of"]

MODEL = "llama3.2"

P = ParamSpec("P")
T = TypeVar("T")


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test in an event loop of its own; neither a task nor a complaint may be left over."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        complaints: list[dict[str, Any]] = []

        async def whole() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: complaints.append(context))
            await test(*args, **kwargs)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, left

        asyncio.run(whole())
        assert not complaints, complaints

    return run


def client_of(
    ollama: FakeOllama,
    *,
    backend: CacheBackend | None = None,
    ttl: float | None = 3600,
    freshness: Freshness | None = None,
    random: Callable[[], float] | None = None,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
    **options: Any,
) -> CachedOllamaClient:
    """Return a client that remembers in memory; `clock` is the wall's, `options` are the client's."""
    backend = InMemoryBackend(clock=clock) if backend is None else backend
    cache = ResponseCache(backend, ttl, freshness=freshness, random=random, clock=clock)
    upstream = OllamaClient(ollama.url, default_model=MODEL)
    return CachedOllamaClient(upstream, cache, clock=monotonic, **options)


async def off_loop(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Wait for something the server's thread does, without holding up the loop."""
    return await asyncio.to_thread(call, *args, **kwargs)


async def text_of(stream: AsyncIterator[str]) -> str:
    """Return all a stream gives, as one text."""
    return "".join([piece async for piece in stream])
