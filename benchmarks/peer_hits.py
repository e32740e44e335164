"""What a hit costs in one other cache, beside the same floor: run by library.py and redis_hits.py.

    <Python of its environment> peer_hits.py NAME memory|redis [--rounds N] [--bytes N] [--url URL]

Imports nothing of tinyllm, since it runs where that is not installed. Prints one JSON object:
operation -> what it took, and the ratios to the floor, round by round.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import importlib
import inspect
import json
import os
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

SMALL = 1000
PROMPT = "a" * 100
TASKS = 64
Work = Callable[[], Awaitable[Any]]


class Floor:
    """An LRU behind `async def` and nothing else; `most` bounds it."""

    def __init__(self, most: int = 10**9) -> None:
        self.entries: OrderedDict[str, Any] = OrderedDict()
        self.most = most

    async def get(self, key: str) -> Any:
        entry = self.entries.get(key)
        if entry is not None:
            self.entries.move_to_end(key)
        return entry

    async def set(self, key: str, value: Any) -> None:
        self.entries[key] = value
        self.entries.move_to_end(key)
        if len(self.entries) > self.most:
            self.entries.popitem(last=False)

    async def generate(self, prompt: str) -> Any:
        return await self.get(hashlib.sha256(prompt.encode()).hexdigest())


def load(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


async def maybe(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


def numbered() -> Callable[[], str]:
    """Return keys not used before."""
    count = iter(range(10**9))
    return lambda: f"{next(count):064x}"


# Each gives operation -> (floor operation, work); the value is text of the wanted size.


async def cachetools_(text: str) -> dict[str, tuple[str, Work]]:
    cache = load("cachetools", "TTLCache")(10_000, 3600)
    small = load("cachetools", "TTLCache")(SMALL, 3600)
    fresh = numbered()

    async def get() -> Any:
        return cache["k" * 64]

    async def put() -> None:
        cache["k" * 64] = text

    async def evict() -> None:
        small[fresh()] = text

    await put()
    return {"get": ("get", get), "set": ("set", put), "evicting set": ("evicting set", evict)}


async def cashews(text: str) -> dict[str, tuple[str, Work]]:
    cache, small = load("cashews", "Cache")(), load("cashews", "Cache")()
    cache.setup("mem://?size=100000&check_interval=3600")
    small.setup(f"mem://?size={SMALL}&check_interval=3600")
    fresh = numbered()
    await cache.set("k" * 64, text, expire=3600)
    return {
        "get": ("get", lambda: cache.get("k" * 64)),
        "set": ("set", lambda: cache.set("k" * 64, text, expire=3600)),
        "evicting set": ("evicting set", lambda: small.set(fresh(), text, expire=3600)),
    }


async def aiocache(text: str) -> dict[str, tuple[str, Work]]:
    cache = load("aiocache", "SimpleMemoryCache")()
    await cache.set("k" * 64, text)
    return {
        "get": ("get", lambda: cache.get("k" * 64)),
        "set": ("set", lambda: cache.set("k" * 64, text)),
    }


async def litellm(text: str) -> dict[str, tuple[str, Work]]:
    plain = load("litellm.caching.in_memory_cache", "InMemoryCache")(max_size_in_memory=SMALL)
    cache = load("litellm.caching.caching", "Cache")()
    question = {"model": "m", "messages": [{"role": "user", "content": PROMPT}]}
    value = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    fresh = numbered()
    plain.set_cache("k" * 64, value, ttl=3600)
    await cache.async_add_cache(value, **question)

    async def get() -> Any:
        return plain.get_cache("k" * 64)

    async def put() -> None:
        plain.set_cache("k" * 64, value, ttl=3600)

    async def evict() -> None:
        plain.set_cache(fresh(), value, ttl=3600)

    return {
        "get": ("get", get),
        "set": ("set", put),
        "generate": ("generate", lambda: cache.async_get_cache(**question)),
        "evicting set": ("evicting set", evict),
    }


async def langchain(text: str) -> dict[str, tuple[str, Work]]:
    made, generation = (
        load("langchain_core.caches", "InMemoryCache"),
        load("langchain_core.outputs", "Generation"),
    )
    cache, small = made(maxsize=10_000), made(maxsize=SMALL)
    value, fresh = [generation(text=text)], numbered()
    await cache.aupdate(PROMPT, "m", value)
    return {
        "get": ("get", lambda: cache.alookup(PROMPT, "m")),
        "set": ("set", lambda: cache.aupdate(PROMPT, "m", value)),
        "evicting set": ("evicting set", lambda: small.aupdate(fresh(), "m", value)),
    }


async def dspy(text: str) -> dict[str, tuple[str, Work]]:
    cache = load("dspy.clients.cache", "Cache")(False, True, None)
    question = {"model": "m", "messages": [{"role": "user", "content": PROMPT}]}
    value = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    cache.put(question, value)

    async def get() -> Any:
        return cache.get(question)

    async def put() -> None:
        cache.put(question, value)

    return {"generate": ("generate", get), "set": ("set", put)}


async def gptcache(text: str) -> dict[str, tuple[str, Work]]:
    made = load("gptcache", "Cache")()
    store = load("gptcache.manager.factory", "get_data_manager")(max_size=10_000)
    made.init(data_manager=store, pre_embedding_func=load("gptcache.processor.pre", "get_prompt"))
    get_, put_ = load("gptcache.adapter.api", "get"), load("gptcache.adapter.api", "put")
    put_(PROMPT, text, cache_obj=made)

    async def get() -> Any:
        return get_(PROMPT, cache_obj=made)

    async def put() -> None:
        put_(PROMPT, text, cache_obj=made)

    return {"generate": ("generate", get), "set": ("set", put)}


MEMORY = {
    "cachetools": cachetools_,
    "cashews": cashews,
    "aiocache": aiocache,
    "litellm": litellm,
    "langchain": langchain,
    "dspy": dspy,
    "gptcache": gptcache,
}


async def cpu_per_call(work: Work, calls: int) -> float:
    """Return nanoseconds of CPU per call."""
    started = time.process_time_ns()
    for _ in range(calls):
        await work()
    return (time.process_time_ns() - started) / calls


async def memory(name: str, rounds: int, text: str) -> dict[str, Any]:
    floor, small, fresh = Floor(), Floor(SMALL), numbered()
    await floor.set("k" * 64, text)
    await floor.set(hashlib.sha256(PROMPT.encode()).hexdigest(), text)
    floors: dict[str, Work] = {
        "get": lambda: floor.get("k" * 64),
        "set": lambda: floor.set("k" * 64, text),
        "evicting set": lambda: small.set(fresh(), text),
        "generate": lambda: floor.generate(PROMPT),
    }
    found: dict[str, Any] = {}
    for operation, (against, work) in (await MEMORY[name](text)).items():
        if operation in ("get", "generate") and not await work():
            raise SystemExit(f"{name}: a stored value was not found")
        calls = 200 if await cpu_per_call(work, 50) > 50_000 else 2_000
        took, ratios = [], []
        for _ in range(rounds + 1):
            took.append(await cpu_per_call(work, calls))
            ratios.append(took[-1] / await cpu_per_call(floors[against], calls))
        found[operation] = {"took": took[1:], "ratios": ratios[1:]}
    return found


# The same through Redis: get one of many keys; the floor is a bare GET of redis-py.


async def cashews_redis(url: str, keys: list[str], text: str) -> Callable[[str], Awaitable[Any]]:
    cache = load("cashews", "Cache")()
    cache.setup(url, client_side=False)
    for key in keys:
        await cache.set(key, text, expire=3600)
    return lambda key: maybe(cache.get(key))


async def aiocache_redis(url: str, keys: list[str], text: str) -> Callable[[str], Awaitable[Any]]:
    host, port = url.rpartition("/")[2].split(":")
    made = load("aiocache", "RedisCache")
    cache = made(
        endpoint=host, port=int(port), serializer=load("aiocache.serializers", "JsonSerializer")()
    )
    for key in keys:
        await cache.set(key, {"text": text}, ttl=3600)
    return lambda key: maybe(cache.get(key))


async def langchain_redis(url: str, keys: list[str], text: str) -> Callable[[str], Awaitable[Any]]:
    client = load("redis.asyncio", "Redis").from_url(url)
    cache = load("langchain_community.cache", "AsyncRedisCache")(redis_=client, ttl=3600)
    value = [load("langchain_core.outputs", "Generation")(text=text)]
    for key in keys:
        await cache.aupdate(key, "m", value)
    return lambda key: maybe(cache.alookup(key, "m"))


REDIS = {"cashews": cashews_redis, "aiocache": aiocache_redis, "langchain": langchain_redis}


async def per_second(
    get: Callable[[str], Awaitable[Any]], keys: list[str], tasks: int, gets: int
) -> float:
    async def work(task: int) -> None:
        for n in range(gets // tasks):
            if not await get(keys[(task + n) % len(keys)]):
                raise SystemExit("a stored value was not found")

    started = time.perf_counter()
    await asyncio.gather(*map(work, range(tasks)))
    return gets // tasks * tasks / (time.perf_counter() - started)


async def through_redis(name: str, rounds: int, text: str, url: str) -> dict[str, Any]:
    keys = [f"peer:{n:059x}" for n in range(256)]
    get = await REDIS[name](url, keys, text)
    bare = load("redis.asyncio", "Redis").from_url(url)
    names = [f"bare:{key}" for key in keys]
    for key in names:
        await bare.set(key, text, ex=3600)
    found: dict[str, Any] = {}
    for tasks, gets in ((1, 1000), (TASKS, 6400)):
        took, ratios = [], []
        for _ in range(rounds + 1):
            took.append(await per_second(get, keys, tasks, gets))
            ratios.append(took[-1] / await per_second(bare.get, names, tasks, gets))
        found[f"{tasks} task{'s' * (tasks > 1)}"] = {"took": took[1:], "ratios": ratios[1:]}
    await bare.aclose()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(MEMORY))
    parser.add_argument("where", choices=["memory", "redis"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--bytes", type=int, default=2000)
    parser.add_argument("--url", default="redis://127.0.0.1:6379")
    given = parser.parse_args()
    text = "word " * (given.bytes // 5)
    # some write files where they stand, ask a server for prices, or talk on standard output
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        os.chdir(folder)
        if given.where == "memory":
            found = asyncio.run(memory(given.name, given.rounds, text))
        else:
            found = asyncio.run(through_redis(given.name, given.rounds, text, given.url))
        os.chdir("/")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
