"""The client of the embedded model: what OllamaClient offers, answered on this machine by a small model.

Cheap to import and to build, because a cache hit does both: the engine, its process and asyncio
come with the first question.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, ModelNotFoundError, OllamaUnavailableError
from ..ollama.chunks import assemble
from ..ollama.client import PullProgress
from ..request import DEFAULT_MAX_TOKENS, DEFAULT_TEMPERATURE, GenerateRequest
from ..response import GenerateResponse
from .orders import chunk_of, order_for
from .weights import SMOLLM2, Published, Shelf, Weights

if TYPE_CHECKING:
    from .helper import Helper

__all__ = ["INSTALL_HINT", "EmbeddedClient", "engine_is_installed"]

INSTALL_HINT = "pip install 'tinyllm-cli[embedded]'"
_ENGINE = "xllamacpp"


def engine_is_installed() -> bool:
    """Say whether the extra `embedded` is installed; imports nothing of it."""
    return find_spec(_ENGINE) is not None


class EmbeddedClient:
    """Asynchronous requests to a model in a helper process of this one.

    `model_file` is a .gguf file to answer with, None the one TINYLLM_EMBEDDED_MODEL names when the
    client is built; without either it is the small model `smollm2:135m`, whose weights (89 MiB) are
    fetched once into `data_dir`, None being TINYLLM_DATA_DIR, else the user's data directory.
    Limits are milliseconds, as in OllamaClient. `published` names other weights to fetch. Requests
    are answered one after the other. Usable again after `close`, and from another event loop.
    """

    def __init__(
        self,
        model_file: str | os.PathLike[str] | None = None,
        timeout_ms: int = 60_000,
        *,
        data_dir: str | os.PathLike[str] | None = None,
        first_byte_timeout_ms: int = 300_000,
        published: Published = SMOLLM2,
    ) -> None:
        own = model_file or os.environ.get("TINYLLM_EMBEDDED_MODEL")
        folder = data_dir or os.environ.get("TINYLLM_DATA_DIR")
        self.shelf = Shelf(
            Path(own) if own else None,
            Path(folder).expanduser().absolute() if folder else None,
            published,
        )
        self.default_model = self.shelf.first.model
        self._idle = timeout_ms / 1000
        self._first = first_byte_timeout_ms / 1000
        self._helper: Helper | None = None
        self._request_count = 0
        self._total_tokens = 0

    @property
    def host(self) -> str:
        """Where the answers come from; it changes with the user's own file, as digests do."""
        return f"embedded:{self.shelf.origin()}"

    # --- asking

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

        Raises ConfigError for what the engine cannot honour, and the OllamaErrors of
        `stream_chunks`.
        """
        request = self._request(prompt, model, system, temperature, max_tokens, json_mode, **fields)
        return assemble([chunk async for chunk in self.stream_chunks(request)])

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
        """Yield the pieces of an answer's text as they come; otherwise as `generate`."""
        request = self._request(prompt, model, system, temperature, max_tokens, json_mode, **fields)
        async with aclosing(self.stream_chunks(request)) as chunks:
            async for chunk in chunks:
                if chunk.response:
                    yield chunk.response

    async def stream_chunks(
        self, request: GenerateRequest
    ) -> AsyncGenerator[GenerateResponse, None]:
        """Yield every chunk of an answer; the last one, and no other, is `done`.

        Weights that are missing or damaged are fetched first. Raises ConfigError for what the
        engine cannot honour, ModelNotFoundError for a model it does not have,
        OllamaUnavailableError if it is not installed or its weights cannot be fetched,
        OllamaStatusError if it refuses or crashes. Leaving the loop early ends the generation.
        """
        num_ctx, order = self.check(request)
        weights = self._weights(request.model)
        if weights.published is not None:
            order["sampling"] = {**weights.published.parameters, **order["sampling"]}
        await self.pull_model(request.model)
        self._request_count += 1
        message = {
            "path": str(weights.path),
            # or a process that runs on would answer with the weights that were there before
            "digest": await self.model_digest(request.model),
            "num_ctx": num_ctx,
            "order": order,
        }
        async with aclosing(self._open().ask(message)) as answers:
            async for answer in answers:
                chunk = chunk_of(answer, request.model)
                if chunk.done:
                    self._total_tokens += chunk.tokens
                yield chunk

    def check(self, request: GenerateRequest) -> tuple[int, dict[str, Any]]:
        """Return what the engine would be asked; raises ConfigError for what it cannot honour."""
        return order_for(request.body())

    # --- models

    async def list_models(self) -> list[str]:
        """Return the names of the models whose weights are on this machine."""
        return [weights.model for weights in self.shelf.present()]

    async def model_digest(self, model: str) -> str | None:
        """Return the SHA-256 of a model's weights; None for a model it does not have.

        Of weights that can be fetched it is known before they are. Never raises a TinyLLMError.
        """
        weights = self.shelf.find(model)
        if weights is None:
            return None
        if weights.published is not None:
            return weights.published.sha256
        from .fetch import digest_of

        return await digest_of(self.shelf, weights.path)

    async def show(self, model: str) -> dict[str, Any]:
        """Return what is known about a model; raises ModelNotFoundError if there is none."""
        weights = self._weights(model)
        found = weights.path.stat() if weights.path.is_file() else None
        details = {"format": "gguf"} if weights.published is None else weights.published.details
        return {
            "model": weights.model,
            "digest": await self.model_digest(model),
            "size": None if found is None else found.st_size,
            "path": str(weights.path),
            "details": dict(details),
            "capabilities": ["completion"],
        }

    async def missing(self, model: str) -> str | None:
        """Return why a model's weights are to be fetched ("absent", "damaged"), None if they are there.

        Raises ModelNotFoundError for a model it does not have.
        """
        weights = self._weights(model)
        if not weights.path.is_file():
            if weights.published is None:
                raise ModelNotFoundError(
                    f"there is no file {weights.path}",
                    model=model,
                    hint="TINYLLM_EMBEDDED_MODEL names a .gguf file",
                )
            return "absent"
        if weights.published is None:
            return None
        if weights.path.stat().st_size == weights.published.size:
            from .fetch import digest_of

            if await digest_of(self.shelf, weights.path) == weights.published.sha256:
                return None
        return "damaged"

    async def pull_model(
        self, model: str, progress: Callable[[PullProgress], None] | None = None
    ) -> None:
        """Fetch a model's weights unless they are here and whole; *progress* gets each report.

        Raises ModelNotFoundError for a model it does not have, OllamaUnavailableError or
        OllamaStatusError if that fails.
        """
        why = await self.missing(model)
        if not engine_is_installed():
            raise OllamaUnavailableError("the embedded engine is not installed", hint=INSTALL_HINT)
        if why is not None:
            from .fetch import fetch

            await fetch(self.shelf, self._weights(model), progress)
        elif progress is not None:
            progress(PullProgress("success"))

    async def check_health(self) -> bool:
        """Say whether the engine is installed; it is not started for that."""
        return engine_is_installed()

    def get_stats(self) -> dict[str, Any]:
        """Return `request_count`, `total_tokens` (read and written by the models) and `host`."""
        return {
            "request_count": self._request_count,
            "total_tokens": self._total_tokens,
            "host": self.host,
        }

    async def close(self) -> None:
        """End the helper process; the next request starts it anew."""
        if self._helper is not None:
            self._helper.close()

    async def __aenter__(self) -> EmbeddedClient:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    # --- inside

    def _open(self) -> Helper:
        if self._helper is None:
            from .helper import Helper, module_command

            command = module_command("tinyllm_cli.embedded.worker")
            self._helper = Helper(command, first=self._first, idle=self._idle)
        return self._helper

    def _weights(self, model: str) -> Weights:
        weights = self.shelf.find(model)
        if weights is None:
            raise ModelNotFoundError(
                f"the embedded engine does not have the model {model[:80]!a}",
                model=model,
                hint=f"it has {self.default_model}; TINYLLM_EMBEDDED_MODEL names another .gguf file",
            )
        return weights

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
        try:
            return GenerateRequest(
                model=self.default_model if model is None else model,
                prompt=prompt,
                system=system,
                temperature=temperature,
                max_tokens=max_tokens,
                json_mode=json_mode,
                **fields,
            )
        except TypeError as exc:
            raise ConfigError(str(exc).replace("GenerateRequest.__init__()", "generate()")) from exc
