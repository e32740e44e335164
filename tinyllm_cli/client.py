"""The product: ask a model, remembering. The only file that knows both Ollama and the cache."""

from __future__ import annotations

import contextlib
import marshal
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal

from . import logs
from .backends import open_backend
from .cache import Found, ResponseCache
from .coherence import DEFAULT_DIGEST_MAX_AGE_S, ModelDigests
from .errors import ConfigError, TinyLLMError
from .key import KeyTemplate, cache_key
from .metrics import CacheMetrics
from .model_name import is_cloud_model, short_model
from .ollama.client import OllamaClient
from .policy import DEFAULT_TTL_S, checked_speed, checked_ttl, is_deterministic
from .reply import Errand, Question, Reply, Upstream, spelled, text_chunks, whole_chunk
from .request import GenerateRequest
from .response import GenerateResponse

if TYPE_CHECKING:
    import asyncio

    from .asking import Leader
    from .flight import Flights

__all__ = [
    "CachedOllamaClient",
    "create_cached_client",
    "create_memory_cache",
    "create_redis_cache",
    "create_tiered_cache",
]


# Different sets of arguments whose keys are kept half made; a program has a handful.
_MOST_KINDS = 256


class CachedOllamaClient:
    """An Ollama client that asks once and answers from the cache ever after.

    `client` is an OllamaClient or anything with its methods; it is called only on a miss and given
    only what the caller gave. With `enable_cache` False nothing is read or stored. `namespace`
    keeps this client's answers apart from others in the same store. Cloud models are answered but
    not stored unless `cache_cloud` is set: their digest does not identify the weights.
    `cache_when` "deterministic" leaves alone what the model may answer differently each time.
    `coherence` "strict" asks the server for the model's digest before it answers from the cache;
    otherwise that happens behind the answer, for a digest older than `digest_max_age` seconds.
    """

    def __init__(
        self,
        client: Any,
        cache: ResponseCache,
        enable_cache: bool = True,
        *,
        namespace: str = "",
        cache_cloud: bool = False,
        cache_when: Literal["all", "deterministic"] = "all",
        coherence: Literal["lazy", "strict"] = "lazy",
        digest_max_age: float = DEFAULT_DIGEST_MAX_AGE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.client = client
        self.cache = cache
        self.enable_cache = enable_cache
        self.namespace = namespace
        self.cache_cloud = cache_cloud
        self.cache_when = cache_when
        self.coherence = coherence
        self.digests = ModelDigests(client, cache, max_age=digest_max_age, clock=clock)
        self._clock = clock
        self._kinds: dict[bytes, tuple[str, str | None, KeyTemplate]] = {}
        self._flights: Flights | None = None
        self._leader: Leader | None = None
        self._behind_answers: set[asyncio.Task[None]] = set()

    # --- asking

    async def generate(
        self,
        prompt: str,
        model: str | None = None,
        *,
        force_refresh: bool = False,
        cache_ttl: float | None = None,
        sample: int = 1,
        **fields: Any,
    ) -> GenerateResponse:
        """Return the answer to a prompt, from the cache if it was given before and may serve.

        `fields` are those of GenerateRequest (system, temperature, max_tokens, json_mode, options,
        format, ...). `force_refresh` skips the look-up and overwrites; `cache_ttl` is in seconds,
        None = the cache's default. `sample` N is the N-th answer to the same question. Raises
        OllamaError if the model cannot answer, ConfigError (a ValueError) for a request or TTL
        that makes no sense; never an error of the store.

        The order: key; look-up, where a hit ends; one flight for all who ask this now; then as
        asking.py says.
        """
        model = self._model(model)
        if cache_ttl is not None:
            checked_ttl(cache_ttl)  # on a hit too
        if not force_refresh:
            known = self._known(prompt, model, sample, fields)
            if known is not None:
                return known
        request = self._request(prompt, model, fields)
        given = {"prompt": prompt, "model": request.model, **fields}
        produce = self._whole_upstream(request, given)
        errand = Errand(refresh=force_refresh, ttl=cache_ttl)
        reply = await self._ask(request, produce, errand, sample)
        return await reply.response()

    async def generate_stream(
        self,
        prompt: str,
        model: str | None = None,
        *,
        force_refresh: bool = False,
        cache_ttl: float | None = None,
        sample: int = 1,
        replay_speed: float | None = None,
        **fields: Any,
    ) -> AsyncIterator[str]:
        """Yield the text of an answer piece by piece; a stored one in the pieces it once came in.

        Takes the arguments of `generate` and shares its entries. An answer is stored when it is
        complete; one that breaks off is not. A stored one comes at once, or with `replay_speed`
        1.0 at the pace it was made, 2.0 twice as fast; ConfigError unless that is above 0.
        """
        if replay_speed is not None:
            checked_speed(replay_speed)
        request = self._request(prompt, model, fields)
        given = {"prompt": prompt, "model": request.model, **fields}
        produce, text_only = self._stream_upstream(request, given)
        errand = Errand(refresh=force_refresh, ttl=cache_ttl)
        reply = await self._ask(request, produce, errand, sample, text_only=text_only)
        async with aclosing(reply.chunks(replay_speed)) as chunks:
            async for chunk in chunks:
                if chunk.response:
                    yield chunk.response

    async def samples(
        self, number: int, prompt: str, model: str | None = None, **fields: Any
    ) -> list[GenerateResponse]:
        """Return `number` answers to one question, always the same in the same order.

        Only those not given before are generated. Takes the arguments of `generate`.
        """
        return [
            await self.generate(prompt, model, sample=index, **fields)
            for index in range(1, number + 1)
        ]

    async def ask(
        self,
        request: GenerateRequest,
        *,
        refresh: bool = False,
        ttl: float | None = None,
        sample: int = 1,
        looked: bool = False,
        renew_behind: bool = True,
    ) -> Reply:
        """Look a request up and, on a miss, start asking; the reply tells how it came about.

        `looked` is for a request that was looked up in vain already, without an event loop.
        `renew_behind` False leaves it to the caller to `look_after` a reply that says `renew`.
        """
        produce: Upstream = lambda: self.client.stream_chunks(request)  # noqa: E731
        errand = Errand(refresh=refresh, ttl=ttl)
        if looked:
            return self._fly(self.question(request, sample), produce, errand)
        return await self._ask(request, produce, errand, sample, renew_behind=renew_behind)

    async def _ask(
        self,
        request: GenerateRequest,
        produce: Upstream,
        errand: Errand,
        sample: int,
        *,
        text_only: bool = False,
        renew_behind: bool = True,
    ) -> Reply:
        checked_ttl(errand.ttl)  # refused before the model works for it
        if not self.cacheable(request):
            logs.debug("cache_bypassed", "")
            if self.enable_cache:
                self.cache.count(short_model(request.model), CacheMetrics(bypassed=1))
            return Reply(request, None, "bypassed", direct=produce)
        question = self.question(request, sample)
        if not errand.refresh:
            if self.coherence == "strict":
                question = await self._checked(question)
            found = await self.cache.look_up(question.key, question.model)
            if found is not None:
                if renew_behind:
                    self._look_after(found, question, produce, errand.ttl)
                outcome = "stale" if found.stale else "hit"
                return Reply(request, question, outcome, entry=found.entry, renew=found.renew)
        return self._fly(question, produce, errand, text_only=text_only)

    def _known(
        self, prompt: str, model: str, sample: int, fields: dict[str, Any]
    ) -> GenerateResponse | None:
        """Return the answer to a question whose kind was asked before, if it is fresh and simple.

        The short way to what `_ask` finds: all of the key but the prompt is remembered. None says
        nothing; `_ask` decides and counts.
        """
        try:
            # byte for byte the same arguments: 1, 1.0 and true differ, and later changes to a
            # caller's dictionary do not reach what is remembered
            kind = marshal.dumps((model, sample, fields), 2)
        except ValueError:  # a value of some class
            return None
        known = self._kinds.get(kind)
        if known is None:
            self._remember_kind(kind, prompt, model, sample, fields)
            return None
        short, digest, template = known
        if not self.enable_cache or self.digests.known(model) != digest:
            self._kinds.pop(kind, None)
            return None
        if self.digests.check_is_due(model):
            return None
        entry = self.cache.serve(template.key(prompt), short)
        return None if entry is None else spelled(entry.response, model)

    def _remember_kind(
        self, kind: bytes, prompt: str, model: str, sample: int, fields: dict[str, Any]
    ) -> None:
        _check_sample(sample)
        request = self._request(prompt, model, fields)
        if self.coherence == "strict" or not self.cacheable(request):
            return
        if len(self._kinds) >= _MOST_KINDS:
            self._kinds.clear()
        digest = self.digests.known(request.model)
        body = {name: value for name, value in request.body().items() if name != "prompt"}
        template = KeyTemplate(
            body, digest=digest, host=self.digests.host, namespace=self.namespace, sample=sample
        )
        self._kinds[kind] = (short_model(model), digest, template)

    def _fly(
        self, question: Question, produce: Upstream, errand: Errand, *, text_only: bool = False
    ) -> Reply:
        """Join the flight that asks this question now, or start it."""
        flights, leader = self._crew()
        # the digest may be learnt on the way: who asks after that asks the same question
        place = self.question(question.request, question.sample, digest="").key
        if text_only:
            place += " text"  # it lacks what an asker of the whole answer wants
        flight, leading = flights.join(
            place, question.digest, lambda flight: leader.lead(flight, question, errand, produce)
        )
        outcome = "miss" if errand.is_for_asker else "refreshed"
        if not leading:
            outcome = "coalesced"
        # nobody waits for a renewal, so that joining one is nothing to count
        if outcome != "miss" and (leading or errand.renews is None):
            self.cache.count(question.model, CacheMetrics(**{outcome: 1}))
            logs.debug(f"cache_{outcome}", question.key)
        return Reply(question.request, question, outcome, flight=flight)

    def _crew(self) -> tuple[Flights, Leader]:
        """Return what a miss needs; a program that only hits never loads it."""
        if self._flights is None or self._leader is None:
            from .asking import Leader
            from .flight import Flights

            self._flights = Flights()
            self._leader = Leader(
                self.cache,
                self.digests,
                lambda question, digest: self.question(
                    question.request, question.sample, digest=digest
                ),
                cloud=self.cache_cloud,
                clock=self._clock,
            )
        return self._flights, self._leader

    # --- behind an answer that was served

    def _look_after(
        self, found: Found, question: Question, produce: Upstream, ttl: float | None
    ) -> None:
        """Renew an answer that is due, and check a digest that has grown old, behind the answer."""
        if found.renew:
            errand = Errand(renews=found.entry.created_at, ttl=ttl)
            self._behind(self._renewal(question, produce, errand))
        elif self.digests.claim_check(question.request.model):
            self._behind(self._check(question))

    async def _renewal(self, question: Question, produce: Upstream, errand: Errand) -> None:
        # what fails here fails nobody: the stored answer was served, and the next asker tries again
        with contextlib.suppress(TinyLLMError):
            await self._fly(question, produce, errand).response()

    async def _check(self, question: Question) -> None:
        await self.digests.ask(question.request.model)

    async def _checked(self, question: Question) -> Question:
        """Return a question under the digest the server gives now; without one nothing is found."""
        digest = await self.digests.ask(question.request.model)
        return self.question(question.request, question.sample, digest=digest or "unknown")

    def _behind(self, work: Coroutine[Any, Any, None]) -> None:
        from asyncio import create_task

        task = create_task(work)
        self._behind_answers.add(task)  # a task nobody holds may be collected while it runs
        task.add_done_callback(self._behind_answers.discard)

    async def look_after(self, request: GenerateRequest, samples: Sequence[int] = ()) -> None:
        """Do what served answers left to do: renew these samples, or check the model's digest."""
        if not samples:
            await self.digests.ask(request.model)
        for sample in samples:
            question = self.question(request, sample)
            served = await self.cache.peek(question.key)
            if served is not None and self.cache.is_renewed(served):
                continue  # by another process, since the old one was served
            errand = Errand(renews=0.0 if served is None else served.created_at)
            produce: Upstream = lambda: self.client.stream_chunks(request)  # noqa: E731
            await self._renewal(question, produce, errand)

    # --- what makes the key, and what has none

    def question(
        self, request: GenerateRequest, sample: int = 1, *, digest: str | None = None
    ) -> Question:
        """Return a request with its key; `digest` defaults to the last one known for the model.

        Raises ConfigError for a sample number below 1, or a request no key can be made of.
        """
        _check_sample(sample)
        body = request.body()
        if digest is None:
            digest = self.digests.known(request.model)
        key = cache_key(
            body,
            digest=digest,
            host=self.digests.host,
            namespace=self.namespace,
            sample=sample,
        )
        return Question(request, body, short_model(request.model), key, digest, sample)

    def cacheable(self, request: GenerateRequest) -> bool:
        """Say whether the cache has a part in answering a request."""
        return (
            self.enable_cache
            and (self.cache_cloud or not is_cloud_model(request.model))
            and (self.cache_when == "all" or is_deterministic(request))
        )

    # --- inside

    def _model(self, model: str | None) -> str:
        if model is None:
            model = getattr(self.client, "default_model", None)
            if not isinstance(model, str):
                raise ConfigError("no model is named", hint="pass model=...")
        return model

    def _request(self, prompt: str, model: str | None, fields: dict[str, Any]) -> GenerateRequest:
        try:
            return GenerateRequest(self._model(model), prompt, **fields)
        except TypeError as exc:
            raise ConfigError(str(exc).replace("GenerateRequest.__init__()", "generate()")) from exc

    def _whole_upstream(self, request: GenerateRequest, given: dict[str, Any]) -> Upstream:
        """Return what asks for a whole answer: `generate`, which OllamaClient does in chunks."""
        client = self.client
        if _is_ollamas(client, "generate"):
            return lambda: client.stream_chunks(request)
        return lambda: whole_chunk(client.generate(**given))

    def _stream_upstream(
        self, request: GenerateRequest, given: dict[str, Any]
    ) -> tuple[Upstream, bool]:
        """Return what asks for a stream, and whether the client has its text alone and no chunks."""
        client = self.client
        if hasattr(type(client), "stream_chunks") and (
            not isinstance(client, OllamaClient) or _is_ollamas(client, "generate_stream")
        ):
            return lambda: client.stream_chunks(request), False
        return lambda: text_chunks(client.generate_stream(**given), request.model), True

    # --- what is not cached

    async def list_models(self) -> list[str]:
        """Return the names of the models the server has."""
        names: list[str] = await self.client.list_models()
        return names

    async def pull_model(self, model: str, *args: Any, **kwargs: Any) -> None:
        """Have the server fetch a model; see OllamaClient.pull_model."""
        await self.client.pull_model(model, *args, **kwargs)
        await self.digests.ask(model)

    async def check_health(self) -> bool:
        """Say whether the server answers."""
        healthy: bool = await self.client.check_health()
        return healthy

    def get_stats(self) -> dict[str, Any]:
        """Return the client's figures under "client", the cache's under "cache", and "cache_enabled"."""
        return {
            "client": self.client.get_stats(),
            "cache": self.cache.get_metrics().to_dict(),
            "cache_enabled": self.enable_cache,
        }

    async def close(self) -> None:
        """Finish what was begun behind answers, write what is pending, close cache and client."""
        from asyncio import gather, get_running_loop

        loop = get_running_loop()
        tasks = [task for task in list(self._behind_answers) if task.get_loop() is loop]
        try:
            await gather(*tasks, return_exceptions=True)
            if self._flights is not None:
                await self._flights.close()
            await self.cache.close()
        finally:
            await self.client.close()

    async def __aenter__(self) -> CachedOllamaClient:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


def _check_sample(sample: int) -> None:
    if isinstance(sample, bool) or not isinstance(sample, int) or sample < 1:
        raise ConfigError(f"sample is {sample!r}", hint="samples are numbered from 1")


def _is_ollamas(client: Any, method: str) -> bool:
    """Say whether a client's method is OllamaClient's own, not one that a caller put in its place."""
    own = getattr(getattr(client, method, None), "__func__", None)
    return own is getattr(OllamaClient, method)


def create_memory_cache(
    max_size: int = 1000, default_ttl: float | None = DEFAULT_TTL_S, **options: Any
) -> ResponseCache:
    """Return a cache in memory; `options` are those of InMemoryBackend, `snapshot=PATH` among them."""
    return ResponseCache(open_backend("memory", max_size=max_size, **options), default_ttl)


def create_redis_cache(
    host: str = "localhost",
    port: int = 6379,
    db: int = 0,
    password: str | None = None,
    default_ttl: float | None = DEFAULT_TTL_S,
    **options: Any,
) -> ResponseCache:
    """Return a cache in Redis, which several machines can share; `options` are RedisBackend's."""
    backend = open_backend("redis", host=host, port=port, db=db, password=password, **options)
    return ResponseCache(backend, default_ttl)


def create_tiered_cache(
    host: str = "localhost",
    port: int = 6379,
    db: int = 0,
    password: str | None = None,
    default_ttl: float | None = DEFAULT_TTL_S,
    *,
    max_size: int = 1000,
    snapshot: str | os.PathLike[str] | None = None,
    front_ttl: float | None = None,
    **options: Any,
) -> ResponseCache:
    """Return a cache in memory, with a snapshot if a path is given, in front of one in Redis.

    `front_ttl` is for how many seconds a copy in memory serves where the server cannot tell what
    others change, None = 30. `options` are RedisBackend's.
    """
    tiers: dict[str, Any] = {
        "front": open_backend("memory", max_size=max_size, snapshot=snapshot),
        "back": open_backend("redis", host=host, port=port, db=db, password=password, **options),
    }
    if front_ttl is not None:
        tiers["front_ttl"] = front_ttl
    return ResponseCache(open_backend("tiered", **tiers), default_ttl)


async def create_cached_client(
    client: Any = None,
    backend: Literal["memory", "redis", "tiered"] | str = "memory",
    max_size: int = 1000,
    default_ttl: float | None = DEFAULT_TTL_S,
    enable_cache: bool = True,
    redis_host: str = "localhost",
    redis_port: int = 6379,
    redis_db: int = 0,
    redis_password: str | None = None,
    **options: Any,
) -> CachedOllamaClient:
    """Return a client that caches in `backend`, "memory", "redis" or "tiered".

    `client` None is an OllamaClient for OLLAMA_HOST. `options` go to the backend. Raises ConfigError
    (a ValueError) "Invalid cache backend" for any other backend.
    """
    if backend == "memory":
        cache = create_memory_cache(max_size, default_ttl, **options)
    elif backend == "redis":
        cache = create_redis_cache(
            redis_host, redis_port, redis_db, redis_password, default_ttl, **options
        )
    elif backend == "tiered":
        options = {"max_size": max_size, **options}
        cache = create_tiered_cache(
            redis_host, redis_port, redis_db, redis_password, default_ttl, **options
        )
    else:
        hint = 'use "memory", "redis" or "tiered"'
        raise ConfigError(f"Invalid cache backend: {backend!r}", hint=hint)
    if client is None:
        client = OllamaClient()
    return CachedOllamaClient(client, cache, enable_cache)
