"""The client of one Ollama server: cheap to build, its connection opened by the first request.

A cache hit builds it and asks it nothing, so this file imports neither httpx nor pydantic nor
asyncio; `_open` does, once somebody needs them.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ConfigError, TinyLLMError
from ..model_name import canonical_model
from ..request import DEFAULT_MAX_TOKENS, DEFAULT_TEMPERATURE, GenerateRequest
from ..response import GenerateResponse
from .chunks import assemble
from .host import resolve_host

if TYPE_CHECKING:
    from .api import OllamaApi

__all__ = ["OllamaClient", "PullProgress"]

_FOLD = (
    1000  # chunks joined at a time, so that memory follows the text and not the number of chunks
)


class PullProgress(NamedTuple):
    """What a pull is doing; `total` and `completed` are bytes of `digest`, None where not said."""

    status: str
    digest: str | None = None
    total: int | None = None
    completed: int | None = None


class OllamaClient:
    """Asynchronous requests to one Ollama server.

    `host` None is OLLAMA_HOST as it is when the client is built, `api_key` None is OLLAMA_API_KEY.
    Limits are milliseconds: `timeout_ms` for the silence between two pieces of an answer,
    `first_byte_timeout_ms` for the wait before the first, in which the server may load the model.
    `max_retries` counts attempts to connect beyond the first; a generation that may have begun is
    never repeated. Usable again after `close`, and from another event loop. Raises ConfigError for
    settings that make no sense.
    """

    def __init__(
        self,
        host: str | None = None,
        timeout_ms: int = 30_000,
        max_retries: int = 3,
        *,
        default_model: str | None = None,
        first_byte_timeout_ms: int = 300_000,
        connect_timeout_ms: int = 5_000,
        max_answer_bytes: int = 64 * 2**20,
        api_key: str | None = None,
    ) -> None:
        self.host = resolve_host(os.environ.get("OLLAMA_HOST") if host is None else host)
        self.default_model = default_model
        self._idle = _positive("timeout_ms", timeout_ms) / 1000
        self._first_byte = _positive("first_byte_timeout_ms", first_byte_timeout_ms) / 1000
        self._connect = _positive("connect_timeout_ms", connect_timeout_ms) / 1000
        self._answer_bytes = _positive("max_answer_bytes", max_answer_bytes)
        self._retries = _positive("max_retries", max_retries, least=0)
        self._api_key = _checked_key(
            os.environ.get("OLLAMA_API_KEY") if api_key is None else api_key
        )
        self._sleep: Callable[[float], Awaitable[None]] | None = None  # None: asyncio.sleep
        self._api: OllamaApi | None = None
        self._request_count = 0
        self._total_tokens = 0

    async def generate(
        self,
        prompt: str,
        model: str | None = None,
        system: str | None = None,
        temperature: float | None = DEFAULT_TEMPERATURE,
        max_tokens: int | None = DEFAULT_MAX_TOKENS,
        json_mode: bool = False,
        **fields: Any,
    ) -> GenerateResponse:
        """Return one whole answer; *fields* are the other fields of GenerateRequest.

        Raises ConfigError without a model, IncompleteAnswerError if the answer breaks off, and the
        other OllamaErrors. The answer is streamed underneath: only so is a cut one recognised.
        """
        request = self._request(prompt, model, system, temperature, max_tokens, json_mode, **fields)
        parts: list[GenerateResponse] = []
        chunks: list[GenerateResponse] = []
        async for chunk in self.stream_chunks(request):
            chunks.append(chunk)
            if len(chunks) == _FOLD:
                parts.append(assemble(chunks))
                chunks.clear()
        return assemble([*parts, *chunks])

    async def generate_stream(
        self,
        prompt: str,
        model: str | None = None,
        system: str | None = None,
        temperature: float | None = DEFAULT_TEMPERATURE,
        max_tokens: int | None = DEFAULT_MAX_TOKENS,
        json_mode: bool = False,
        **fields: Any,
    ) -> AsyncGenerator[str, None]:
        """Yield the pieces of an answer's text as they arrive; otherwise as `generate`."""
        request = self._request(prompt, model, system, temperature, max_tokens, json_mode, **fields)
        async with aclosing(self.stream_chunks(request)) as chunks:
            async for chunk in chunks:
                if chunk.response:
                    yield chunk.response

    async def stream_chunks(
        self, request: GenerateRequest
    ) -> AsyncGenerator[GenerateResponse, None]:
        """Yield every chunk of an answer; the last one, and no other, is `done`.

        Raises IncompleteAnswerError if the answer ends, breaks, stalls or fails before that.
        Leaving the loop early closes the connection, and the server stops generating.
        """
        _named(request.model)
        body = request.body()
        self._request_count += 1
        async with aclosing(self._open().generate(body)) as chunks:
            async for chunk in chunks:
                if chunk.done:
                    self._total_tokens += chunk.tokens
                yield chunk

    async def list_models(self) -> list[str]:
        """Return the names of the installed models, in the server's order."""
        return [model.name for model in await self._open().tags()]

    async def model_digest(self, model: str) -> str | None:
        """Return the digest of an installed model, 64 hex digits; None where it cannot be told.

        It cannot where the server does not answer within five seconds, does not have the model or
        runs it elsewhere. Never raises a TinyLLMError.
        """
        wanted = canonical_model(model)
        try:
            installed = await self._open().tags(quick=True)
        except TinyLLMError:
            return None
        found = {item.digest for item in installed if canonical_model(item.name) == wanted}
        return found.pop() if len(found) == 1 else None

    async def show(self, model: str) -> dict[str, Any]:
        """Return all the server says about a model; raises ModelNotFoundError if it has none."""
        return await self._open().show(_named(model))

    async def embed(
        self, input: str | Sequence[str], model: str | None = None, **fields: Any
    ) -> list[list[float]]:
        """Return one vector per input; *fields* are further fields of POST /api/embed.

        Raises OllamaProtocolError where their number is another or a number in them is not finite.
        """
        texts = [input] if isinstance(input, str) else list(input)
        name = self._model(model)
        if not texts:
            return []
        self._request_count += 1
        body = {"model": name, "input": texts, **fields}
        return await self._open().embed(body, len(texts))

    async def pull_model(
        self, model: str, progress: Callable[[PullProgress], None] | None = None
    ) -> None:
        """Make the server fetch a model, for as long as it reports; *progress* gets each report.

        Raises ModelNotFoundError where the registry has none of this name, OllamaStatusError for
        another failure, IncompleteAnswerError if the reports end before "success".
        """
        async with aclosing(self._open().pull(_named(model))) as lines:
            async for line in lines:
                if progress is not None:
                    progress(PullProgress(line.status, line.digest, line.total, line.completed))

    async def check_health(self) -> bool:
        """Say whether an Ollama server answers, within two seconds; never raises a TinyLLMError."""
        try:
            await self._open().ping()
        except TinyLLMError:
            return False
        return True

    async def version(self) -> str | None:
        """Return the server's version, None where it does not tell within two seconds."""
        try:
            return await self._open().version()
        except TinyLLMError:
            return None

    def get_stats(self) -> dict[str, Any]:
        """Return `request_count`, `total_tokens` (read and written by the models) and `host`."""
        return {
            "request_count": self._request_count,
            "total_tokens": self._total_tokens,
            "host": self.host,
        }

    async def close(self) -> None:
        """Close what is open; the next request opens it anew."""
        if self._api is not None:
            await self._api.close()

    async def __aenter__(self) -> OllamaClient:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _open(self) -> OllamaApi:
        if self._api is None:
            from .api import OllamaApi
            from .http import Limits, OllamaHttp

            limits = Limits(
                connect=self._connect,
                first_byte=self._first_byte,
                idle=self._idle,
                answer_bytes=self._answer_bytes,
                retries=self._retries,
            )
            http = OllamaHttp(self.host, limits, api_key=self._api_key, sleep=self._sleep)
            self._api = OllamaApi(http)
        return self._api

    def _request(
        self,
        prompt: str,
        model: str | None,
        system: str | None,
        temperature: float | None,
        max_tokens: int | None,
        json_mode: bool,
        **fields: Any,
    ) -> GenerateRequest:
        return GenerateRequest(
            model=self._model(model),
            prompt=prompt,
            system=system,
            temperature=temperature,
            max_tokens=max_tokens,
            json_mode=json_mode,
            **fields,
        )

    def _model(self, model: str | None) -> str:
        return _named(self.default_model if model is None else model)


def _named(model: str | None) -> str:
    if model is None or not model.strip():
        raise ConfigError("no model", hint="name one, for example llama3.2")
    return model


def _positive(name: str, value: int, *, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be a whole number, at least {least}")
    return value


def _checked_key(key: str | None) -> str | None:
    """Return the API key without blanks round it, None for none; no message shows it."""
    plain = (key or "").strip()
    if not plain.isascii() or not plain.isprintable():
        raise ConfigError("OLLAMA_API_KEY holds characters that no key has")
    return plain or None
