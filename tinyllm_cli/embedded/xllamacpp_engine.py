"""The engine that answers: llama.cpp, as the package `xllamacpp` brings it. Runs in the helper only."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from importlib import import_module
from typing import Any

from .engine import Emit, Ending, EngineError, Order

__all__ = ["XllamacppEngine"]

_MOST_THREADS = 4  # more threads make a small model slower
_NS_PER_MS = 1_000_000
# Ollama's defaults, spelled out so that neither side's next release changes an answer unseen
_SAMPLING = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repeat_penalty": 1.0,
    "repeat_last_n": 64,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "seed": -1,
}
_REASONS = {"stop": "stop", "length": "length"}


class XllamacppEngine:
    """llama.cpp on the processor, with one request at a time and no prompt cache.

    Without both, what was asked before could change an answer at temperature 0.
    """

    def __init__(self) -> None:
        self._server: Any = None

    def load(self, path: str, num_ctx: int) -> None:
        """Load a file of weights in place of the one before; raises EngineError."""
        self._server = None
        library = _library()
        params = library.CommonParams()
        params.model.path = path
        params.n_ctx = num_ctx
        params.n_parallel = 1
        params.n_gpu_layers = 0
        params.fit_params = False
        params.cache_prompt = False
        params.cache_ram_mib = 0
        params.warmup = False
        params.use_jinja = True
        params.offline = True
        params.ui = False
        params.n_threads_http = 1
        params.verbosity = -1
        threads = min(_usable_processors(), _MOST_THREADS)
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        # it insists on listening: on a socket in a folder of our own, which is gone a moment later
        folder = tempfile.mkdtemp(prefix="tinyllm-")
        params.hostnames = [os.path.join(folder, "engine.sock")]
        try:
            self._server = library.Server(params)
        except (RuntimeError, ValueError, OSError) as exc:
            raise EngineError(
                f"cannot load the weights: {exc}", hint=f"is {path} a whole .gguf file?"
            ) from exc
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def generate(self, order: Order, emit: Emit) -> Ending:
        """Answer an order; raises EngineError, with status 400 where the order is to blame."""
        body = {
            **_SAMPLING,
            **order.sampling,
            "stop": order.stop,
            "max_tokens": -1 if order.limit is None else order.limit,
            "cache_prompt": False,
            "stream": True,
        }
        if order.messages is None:
            body["prompt"] = order.prompt
            if order.schema is not None:
                body["json_schema"] = order.schema or {"type": "object"}
            ask = self._server.handle_completions
        else:
            body["messages"] = order.messages
            if order.schema:
                form = {"type": "json_schema", "json_schema": {"schema": order.schema}}
                body["response_format"] = form
            elif order.schema is not None:
                body["response_format"] = {"type": "json_object"}
            ask = self._server.handle_chat_completions
        return _run(ask, body, emit)


def _run(ask: Callable[..., None], body: dict[str, Any], emit: Emit) -> Ending:
    failure: list[EngineError] = []
    reason = ""
    timings: dict[str, float] = {}

    def on_chunk(chunk: Any) -> bool:
        # what is raised in here is lost and the generation goes on: it is kept, and True ends it
        nonlocal reason, timings
        try:
            if "error" in chunk:
                failure.append(_refusal(chunk["error"]))
                return True
            timings = chunk.get("timings") or timings
            for choice in chunk.get("choices") or ():
                delta = choice.get("delta", {})
                text = delta.get("content") or choice.get("text") or ""
                thinking = delta.get("reasoning_content") or ""
                if text or thinking:
                    emit(text, thinking)
                reason = choice.get("finish_reason") or reason
        except Exception as exc:  # noqa: BLE001
            failure.append(EngineError(f"{type(exc).__name__}: {exc}"))
            return True
        return False

    try:
        ask(body, on_chunk)
    except (ValueError, RuntimeError) as exc:
        raise EngineError(str(exc), status=400) from exc
    if failure:
        raise failure[0]
    return Ending(
        reason=_REASONS.get(reason, ""),
        prompt_tokens=int(timings.get("prompt_n", 0) + timings.get("cache_n", 0)),
        prompt_ns=round(timings.get("prompt_ms", 0) * _NS_PER_MS),
        tokens=int(timings.get("predicted_n", 0)),
        tokens_ns=round(timings.get("predicted_ms", 0) * _NS_PER_MS),
    )


def _refusal(error: Any) -> EngineError:
    fields = error if isinstance(error, dict) else {}
    message = fields.get("message") or str(error)
    status = fields.get("code")
    hint = None
    if fields.get("type") == "exceed_context_size_error":
        hint = "allow more with -o num_ctx=N, or ask with less text"
    return EngineError(message, status=status if isinstance(status, int) else 500, hint=hint)


def _library() -> Any:
    # With work on the other cores its threads would wait for each other in circles, ten times
    # slower; a short spin is read when the library is loaded and not later.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        return import_module("xllamacpp")
    except ImportError as exc:
        hint = "pip install 'tinyllm-cli[embedded]'"
        if "libgomp" in str(exc):
            hint = "install libgomp, for example: apt install libgomp1"
        raise EngineError(f"cannot start the embedded engine: {exc}", hint=hint) from exc


def _usable_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
