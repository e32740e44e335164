"""Does code written for the original library run, and is any client with its methods remembered?"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any
from unittest.mock import AsyncMock

import pytest

from tests.conftest import Clock
from tests.fake_ollama import FakeOllama
from tests.running import MODEL, client_of, in_loop, off_loop, text_of
from tests.samples import answer
from tinyllm_cli import (
    CachedOllamaClient,
    CacheEntry,
    CacheMetrics,
    ConfigError,
    GenerateResponse,
    InMemoryBackend,
    ModelNotFoundError,
    OllamaClient,
    ResponseCache,
    create_cached_client,
    create_memory_cache,
    create_redis_cache,
)
from tinyllm_cli.backends.redis import RedisBackend


class Foreign:
    """Somebody's own client: the methods the original asked for, and none of ours."""

    def __init__(self, reply: GenerateResponse | Exception | None = None) -> None:
        self.reply = reply or answer()
        self.asked: list[dict[str, Any]] = []
        self.pulled: list[str] = []
        self.closed = 0

    async def generate(self, **given: Any) -> GenerateResponse:
        self.asked.append(given)
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply

    async def generate_stream(self, **given: Any) -> AsyncIterator[str]:
        self.asked.append(given)
        for piece in ("Because ", "of Rayleigh ", "scattering."):
            yield piece

    async def list_models(self) -> list[str]:
        return ["llama3.2:latest"]

    async def pull_model(self, model: str) -> None:
        self.pulled.append(model)

    async def check_health(self) -> bool:
        return True

    def get_stats(self) -> dict[str, Any]:
        return {"request_count": len(self.asked)}

    async def close(self) -> None:
        self.closed += 1


def remembering(client: Any, **options: Any) -> CachedOllamaClient:
    return CachedOllamaClient(client, ResponseCache(InMemoryBackend()), **options)


# --- a client of any kind


@in_loop
async def test_the_second_request_asks_nobody() -> None:
    foreign = Foreign()
    async with remembering(foreign) as client:
        first = await client.generate(model=MODEL, prompt="Why?")
        second = await client.generate(model=MODEL, prompt="Why?")
    assert first == second == foreign.reply
    assert foreign.asked == [{"model": MODEL, "prompt": "Why?"}]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"system": "Be brief."},
        {"temperature": 0.5, "max_tokens": 10, "json_mode": True},
        {"temperature": None, "options": {"seed": 1}},
    ],
)
@in_loop
async def test_a_client_gets_what_the_caller_gave_and_nothing_else(given: dict[str, Any]) -> None:
    foreign = Foreign()
    async with remembering(foreign) as client:
        await client.generate("Why?", MODEL, force_refresh=True, cache_ttl=60, sample=2, **given)
        await text_of(client.generate_stream("How?", MODEL, cache_ttl=60, **given))
    assert foreign.asked == [
        {"prompt": "Why?", "model": MODEL, **given},
        {"prompt": "How?", "model": MODEL, **given},
    ]


@in_loop
async def test_a_mock_of_the_client_serves_as_one() -> None:
    mock = AsyncMock(spec=OllamaClient)
    mock.generate.return_value = answer("A mocked answer.")
    mock.get_stats.return_value = {"request_count": 1}
    mock.list_models.return_value = ["llama3.2:latest"]
    mock.check_health.return_value = True
    client = remembering(mock)
    for _ in range(3):
        assert (await client.generate(model=MODEL, prompt="Why?")).response == "A mocked answer."
    mock.generate.assert_awaited_once_with(model=MODEL, prompt="Why?")
    assert await text_of(client.generate_stream(model=MODEL, prompt="Why?")) == "A mocked answer."
    mock.generate_stream.assert_not_called()
    assert client.get_stats()["client"] == {"request_count": 1}
    assert client.get_stats()["cache"]["hit_rate"] == 0.75
    assert await client.list_models() == ["llama3.2:latest"]
    assert await client.check_health() is True
    await client.pull_model(MODEL)
    mock.pull_model.assert_awaited_once_with(MODEL)
    await client.close()
    mock.close.assert_awaited_once_with()


@in_loop
async def test_a_mocked_stream_is_passed_on() -> None:
    mock = AsyncMock(spec=OllamaClient)
    mock.generate_stream.return_value.__aiter__.return_value = ["a ", "mocked ", "stream"]
    async with remembering(mock) as client:
        stream = client.generate_stream(model=MODEL, prompt="Why?")
        assert [piece async for piece in stream] == ["a ", "mocked ", "stream"]
    mock.generate_stream.assert_called_once_with(model=MODEL, prompt="Why?")


@in_loop
async def test_a_real_client_with_a_patched_method_is_asked_by_it(ollama: FakeOllama) -> None:
    real = OllamaClient(ollama.url)
    real.generate = AsyncMock(return_value=answer("Patched."))  # type: ignore[method-assign]
    async with remembering(real) as client:
        assert (await client.generate("Why?", MODEL)).response == "Patched."
    assert ollama.generations == 0


@in_loop
async def test_a_subclass_is_asked_by_its_own_method(ollama: FakeOllama) -> None:
    class Shouting(OllamaClient):
        async def generate(self, *args: Any, **fields: Any) -> GenerateResponse:
            whole = await super().generate(*args, **fields)
            return whole.replace(response=whole.response.upper())

    async with remembering(Shouting(ollama.url)) as client:
        first = await client.generate("Why?", MODEL)
        assert first.response.isupper()
        assert await client.generate("Why?", MODEL) == first
    assert ollama.generations == 1


@in_loop
async def test_text_alone_cannot_say_that_it_is_complete() -> None:
    """So it is passed on and not stored; a whole answer is, and then streams too."""
    foreign = Foreign()
    async with remembering(foreign) as client:
        for _ in range(2):
            text = await text_of(client.generate_stream("Why?", MODEL))
            assert text == "Because of Rayleigh scattering."
        assert (len(foreign.asked), await client.cache.size()) == (2, 0)
        whole = await client.generate("Why?", MODEL)
        assert [piece async for piece in client.generate_stream("Why?", MODEL)] == [whole.response]
        assert len(foreign.asked) == 3


@in_loop
async def test_who_wants_a_whole_answer_is_not_given_text_alone() -> None:
    foreign = Foreign()
    async with remembering(foreign) as client:
        text, whole = await asyncio.gather(
            text_of(client.generate_stream("Why?", MODEL)), client.generate("Why?", MODEL)
        )
        assert text == whole.response
        assert whole == foreign.reply


@pytest.mark.parametrize(
    "reply", [answer(done=False), answer(""), answer(done_reason="load"), answer(remote_model="x")]
)
@in_loop
async def test_what_is_no_complete_answer_is_given_and_not_stored(reply: GenerateResponse) -> None:
    foreign = Foreign(reply)
    async with remembering(foreign) as client:
        for _ in range(2):
            assert await client.generate("Why?", MODEL) is reply
        assert (len(foreign.asked), await client.cache.size()) == (2, 0)


@in_loop
async def test_a_clients_own_error_comes_through_as_it_is() -> None:
    error = LookupError("not one of ours")
    foreign = Foreign(error)
    async with remembering(foreign) as client:
        for _ in range(2):
            with pytest.raises(LookupError) as raised:
                await client.generate("Why?", MODEL)
            assert raised.value is error
        foreign.reply = answer()
        assert await client.generate("Why?", MODEL) == answer()
    assert len(foreign.asked) == 3


# --- asking


@in_loop
async def test_a_forced_refresh_asks_again_and_overwrites(ollama: FakeOllama) -> None:
    ollama.drift = True
    async with client_of(ollama) as client:
        first = await client.generate("Why?")
        second = await client.generate("Why?", force_refresh=True)
        assert (await client.generate("Why?")).response == second.response != first.response
        assert (ollama.generations, await client.cache.size()) == (2, 1)


@in_loop
async def test_an_answer_keeps_for_as_long_as_its_asker_said(
    ollama: FakeOllama, clock: Clock
) -> None:
    async with client_of(ollama, clock=clock, ttl=100) as client:
        await client.generate("Why?", cache_ttl=10)
        await client.generate("How?")
        clock.advance(9.5)
        await client.generate("Why?")
        assert ollama.generations == 2
        clock.advance(0.5)
        await client.generate("How?")
        await client.generate("Why?")
        assert ollama.generations == 3
        clock.advance(89.5)
        await client.generate("How?")
        assert ollama.generations == 3
        clock.advance(0.5)
        await client.generate("How?")
        assert ollama.generations == 4


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), "60"])
@in_loop
async def test_a_ttl_that_makes_no_sense_is_refused_before_the_model_works(
    ollama: FakeOllama, ttl: Any, stored: bool
) -> None:
    async with client_of(ollama) as client:
        if stored:
            for _ in range(3):
                await client.generate("Why?")
        asked = len(ollama.log)
        with pytest.raises(ValueError, match="TTL"):
            await client.generate("Why?", cache_ttl=ttl)
        with pytest.raises(ValueError, match="TTL"):
            await text_of(client.generate_stream("Why?", cache_ttl=ttl))
        assert len(ollama.log) == asked


@in_loop
async def test_a_request_that_makes_no_sense_says_why() -> None:
    async with remembering(Foreign()) as client:
        with pytest.raises(ConfigError, match=r"generate\(\).*'tempreature'"):
            await client.generate("Why?", MODEL, tempreature=1)
        with pytest.raises(ConfigError, match="no model is named"):
            await client.generate("Why?")


@in_loop
async def test_the_default_model_is_the_one_of_the_moment(ollama: FakeOllama) -> None:
    async with client_of(ollama) as client:
        for model in (MODEL, "qwen2.5:0.5b", MODEL, "qwen2.5:0.5b"):
            client.client.default_model = model
            assert (await client.generate("Why?")).model == model
    assert ollama.generations == 2


@in_loop
async def test_a_hit_is_under_the_models_name_as_it_is_asked_for_now(ollama: FakeOllama) -> None:
    async with client_of(ollama) as client:
        first = await client.generate("Why?", "llama3.2")
        for model in ("LLAMA3.2:latest", "library/llama3.2", "llama3.2", "llama3.2:latest"):
            again = await client.generate("Why?", model)
            assert again == first.replace(model=model)
            reply = await client.ask(client._request("Why?", model, {}))
            assert {chunk.model async for chunk in reply.chunks()} == {model}
    assert ollama.generations == 1


@in_loop
async def test_a_missing_model_is_an_error_each_time_and_never_an_answer(
    ollama: FakeOllama,
) -> None:
    async with client_of(ollama) as client:
        for _ in range(2):
            with pytest.raises(ModelNotFoundError):
                await client.generate("Why?", "no-such-model")
        assert (ollama.generations, await client.cache.size()) == (0, 0)
        ollama.add_model("no-such-model")
        assert (await client.generate("Why?", "no-such-model")).done


@in_loop
async def test_namespaces_share_nothing(ollama: FakeOllama) -> None:
    backend = InMemoryBackend()
    for namespace in ("", "a", "b", "a", ""):
        async with client_of(ollama, backend=backend, namespace=namespace) as client:
            await client.generate("Why?")
    assert ollama.generations == 3


# --- what has no part in the cache


@in_loop
async def test_without_the_cache_every_request_is_asked_and_nothing_counted(
    ollama: FakeOllama,
) -> None:
    async with client_of(ollama, enable_cache=False) as client:
        for _ in range(2):
            whole = await client.generate("Why?", temperature=0)
            assert await text_of(client.generate_stream("Why?", temperature=0)) == whole.response
        assert ollama.generations == 4
        assert client.get_stats()["cache"] == CacheMetrics().to_dict()
        assert client.get_stats()["cache_enabled"] is False
        assert await client.cache.size() == 0


@in_loop
async def test_the_cache_can_be_turned_off_and_on_between_requests(ollama: FakeOllama) -> None:
    async with client_of(ollama) as client:
        for enabled, generations in ((True, 1), (True, 1), (False, 2), (True, 2)):
            client.enable_cache = enabled
            await client.generate("Why?")
            assert ollama.generations == generations


@pytest.mark.parametrize("model", ["big:120b-cloud", "big:cloud", "alias:1b"])
@pytest.mark.parametrize(("cache_cloud", "generations"), [(False, 3), (True, 1)])
@in_loop
async def test_a_cloud_model_is_stored_only_if_the_user_says_so(
    ollama: FakeOllama, model: str, cache_cloud: bool, generations: int
) -> None:
    """Its digest does not identify the weights: by its name, or as the server marks its answer."""
    ollama.add_model(model, remote_host="https://ollama.com:443", remote_model="big:120b")
    async with client_of(ollama, cache_cloud=cache_cloud) as client:
        for _ in range(3):
            assert (await client.generate("Why?", model)).done
    assert ollama.generations == generations


# --- figures, health, models


@in_loop
async def test_the_stats_are_those_of_client_and_cache(ollama: FakeOllama) -> None:
    async with client_of(ollama) as client:
        whole = await client.generate("Why?")
        await client.generate("Why?")
        await client.generate("How?")
        stats = client.get_stats()
    assert set(stats) == {"client", "cache", "cache_enabled"}
    assert stats["cache_enabled"] is True
    assert stats["client"]["request_count"] == 2
    cache = stats["cache"]
    assert (cache["hits"], cache["misses"], cache["sets"], cache["total_requests"]) == (1, 2, 2, 3)
    assert cache["hit_rate"] == pytest.approx(1 / 3)
    assert cache["tokens_saved"] == whole.tokens > 0
    assert cache["time_saved_s"] >= 0


@in_loop
async def test_metrics_can_be_left_out(ollama: FakeOllama) -> None:
    cache = ResponseCache(InMemoryBackend(), enable_metrics=False)
    async with CachedOllamaClient(OllamaClient(ollama.url), cache) as client:
        for _ in range(2):
            await client.generate("Why?", MODEL)
        assert client.get_stats()["cache"] == CacheMetrics().to_dict()
    assert ollama.generations == 1


@in_loop
async def test_everything_else_is_the_clients_own() -> None:
    foreign = Foreign()
    async with remembering(foreign) as client:
        assert await client.list_models() == ["llama3.2:latest"]
        assert await client.check_health() is True
        await client.pull_model(MODEL)
    assert (foreign.pulled, foreign.closed) == ([MODEL], 1)


# --- the functions that make one


def test_a_memory_cache_has_the_originals_defaults() -> None:
    cache = create_memory_cache()
    assert (cache.default_ttl, cache.enable_metrics) == (3600, True)
    assert isinstance(cache.backend, InMemoryBackend)
    assert cache.backend.max_size == 1000
    small = create_memory_cache(max_size=2, default_ttl=None)
    assert isinstance(small.backend, InMemoryBackend)
    assert (small.backend.max_size, small.default_ttl) == (2, None)


def test_a_redis_cache_connects_to_nothing_yet() -> None:
    cache = create_redis_cache("redis.invalid", 6380, 2, "secret", 60)
    assert isinstance(cache.backend, RedisBackend)
    assert cache.default_ttl == 60


@in_loop
async def test_a_cached_client_is_made_for_each_backend(ollama: FakeOllama) -> None:
    async with await create_cached_client(
        client=OllamaClient(ollama.url), backend="memory", max_size=5, default_ttl=60
    ) as client:
        assert isinstance(client.cache.backend, InMemoryBackend)
        assert (client.cache.backend.max_size, client.cache.default_ttl) == (5, 60)
        assert (await client.generate("Why?", MODEL)).done
    off = await create_cached_client(client=Foreign(), enable_cache=False)
    assert off.enable_cache is False
    redis = await create_cached_client(client=Foreign(), backend="redis", redis_host="x.invalid")
    assert isinstance(redis.cache.backend, RedisBackend)


@in_loop
async def test_any_other_backend_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="Invalid cache backend"):
        await create_cached_client(client=Foreign(), backend="nope")


@in_loop
async def test_without_a_client_the_one_of_the_environment_is_made(
    ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", ollama.url)
    async with await create_cached_client() as client:
        assert isinstance(client.client, OllamaClient)
        assert (await client.generate("Why?", MODEL)).done


# --- a store of any kind, and one that fails


class Dictionary:
    """Somebody's own store: six coroutines and nothing else. `broken` are those that fail."""

    def __init__(self, *broken: str) -> None:
        self.entries: dict[str, CacheEntry] = {}
        self.broken = broken

    def _may_fail(self, name: str) -> None:
        if name in self.broken:
            raise RuntimeError(f"{name} is broken")

    async def get(self, key: str) -> CacheEntry | None:
        self._may_fail("get")
        return self.entries.get(key)

    async def set(self, key: str, entry: CacheEntry) -> None:
        self._may_fail("set")
        self.entries[key] = entry

    async def delete(self, key: str) -> bool:
        return self.entries.pop(key, None) is not None

    async def clear(self) -> None:
        self.entries.clear()

    async def size(self) -> int:
        return len(self.entries)

    async def close(self) -> None:
        self._may_fail("close")


@pytest.mark.parametrize(
    ("broken", "generations", "errors"),
    [
        ((), 1, 0),
        # the first request looks twice: the model's digest is news to it
        (("get",), 2, 3),
        (("set",), 2, 2),
        (("get", "set", "close"), 2, 5),
    ],
)
@in_loop
async def test_a_store_that_fails_never_costs_the_answer(
    ollama: FakeOllama, broken: tuple[str, ...], generations: int, errors: int
) -> None:
    async with client_of(ollama, backend=Dictionary(*broken)) as client:
        first = await client.generate("Why?", temperature=0)
        second = await client.generate("Why?", temperature=0)
        assert first.response == second.response
        assert client.get_stats()["cache"]["errors"] == errors
    assert ollama.generations == generations


@in_loop
async def test_the_client_is_closed_though_the_store_cannot_be() -> None:
    foreign = Foreign()
    cache = ResponseCache(Dictionary("close"), strict=True)
    with pytest.raises(RuntimeError, match="close is broken"):
        await CachedOllamaClient(foreign, cache).close()
    assert foreign.closed == 1


# --- event loops


def test_one_client_serves_one_event_loop_after_another(ollama: FakeOllama) -> None:
    client = client_of(ollama)
    first = asyncio.run(client.generate("Why?"))
    assert asyncio.run(client.generate("Why?")) == first
    assert asyncio.run(client.generate("How?")).done
    assert asyncio.run(text_of(client.generate_stream("Where?")))
    assert ollama.generations == 3
    asyncio.run(client.close())
    assert asyncio.run(client.generate("Why?")) == first
    assert asyncio.run(client.generate("When?")).done
    asyncio.run(client.close())


def test_one_client_serves_event_loops_in_several_threads(ollama: FakeOllama) -> None:
    client = client_of(ollama)
    texts: dict[int, list[str]] = {}

    async def ask() -> list[str]:
        prompts = [f"Question {number % 5}" for number in range(20)]
        whole = await asyncio.gather(*(client.generate(p, temperature=0) for p in prompts))
        return [one.response for one in whole]

    def work(number: int) -> None:
        texts[number] = asyncio.run(ask())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 4
    assert all(one == texts[0] for one in texts.values())
    assert 5 <= ollama.generations <= 20


@pytest.mark.parametrize("wait", ["whole", "stream"])
def test_a_loop_that_ends_early_leaves_nothing_behind(
    ollama: FakeOllama, wait: str, recwarn: pytest.WarningsRecorder
) -> None:
    """Without close, and with a question under way: the next loop asks it anew."""
    barrier = ollama.hold_after(2)
    client = client_of(ollama)
    asking: set[asyncio.Task[Any]] = set()

    async def leave() -> None:
        if wait == "whole":
            asking.add(asyncio.create_task(client.generate("Why?")))
        else:
            asking.add(asyncio.create_task(text_of(client.generate_stream("Why?"))))
        await off_loop(barrier.wait_for, 1)

    asyncio.run(leave())
    assert all(task.cancelled() for task in asking)
    ollama.wait_until(lambda server: server.requests("/api/generate")[0].client_closed)
    barrier.release()
    assert asyncio.run(client.generate("Why?")).done
    assert ollama.generations == 2
    asyncio.run(client.close())
    assert not recwarn.list


@in_loop
async def test_closing_twice_and_using_it_afterwards_is_no_harm(ollama: FakeOllama) -> None:
    client = client_of(ollama)
    await client.close()
    first = await client.generate("Why?")
    await client.close()
    await client.close()
    assert await client.generate("Why?") == first
    await client.close()


def test_fields_that_look_alike_are_told_apart(ollama: FakeOllama) -> None:
    """The short way of a repeated kind of question must not be shorter than the key."""
    kinds: list[Callable[[], dict[str, Any]]] = [
        lambda: {"options": {"seed": 1}},
        lambda: {"options": {"seed": 2}},
        lambda: {"options": {"stop": ["x"]}},
        lambda: {"options": {"stop": ["x", "y"]}},
        lambda: {"think": False},
        lambda: {"context": []},
        lambda: {"context": [1]},
        lambda: {"sample": 2},
        lambda: {},
    ]

    async def ask() -> list[str]:
        async with client_of(ollama) as client:
            told = []
            for _ in range(3):
                told.append([(await client.generate("Why?", **kind())).response for kind in kinds])
            options = {"seed": 1}
            await client.generate("Why?", options=options)
            options["seed"] = 2  # the caller's own dictionary, changed between two requests
            changed = await client.generate("Why?", options=options)
            assert changed.response == told[0][1]
            assert told[0] == told[1] == told[2]
            return told[0]

    assert len(set(asyncio.run(ask()))) == len(kinds) == ollama.generations
