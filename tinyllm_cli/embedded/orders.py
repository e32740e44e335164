"""What is asked of the embedded engine and what its answers mean.

What it cannot honour is refused by name, never ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from time import gmtime, strftime
from typing import Any

from ..errors import ConfigError
from ..response import GenerateResponse

__all__ = ["DEFAULT_NUM_CTX", "chunk_of", "order_for"]

DEFAULT_NUM_CTX = 4096
_MOST_NUM_CTX = 1 << 20
_SEEDS = 2**32 - 1  # the last one means "random" to the engine
_KNOWN = frozenset({"model", "prompt", "system", "format", "raw", "options"})
_HINT = "leave it out, or ask a model of Ollama: --engine ollama"


def order_for(body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Return the context size in tokens and the fields of an Order for a request body.

    Raises ConfigError naming the field or option that the engine cannot honour.
    """
    for name in body:
        if name not in _KNOWN:
            raise ConfigError(f"the embedded engine cannot honour {name[:40]!a}", hint=_HINT)
    options = {name: value for name, value in body.get("options", {}).items() if value is not None}
    num_ctx = DEFAULT_NUM_CTX
    limit: int | None = None
    stop: list[str] = []
    sampling: dict[str, float] = {}
    for name, value in options.items():
        if name == "num_ctx":
            num_ctx = _whole(name, value, 1, _MOST_NUM_CTX)
        elif name == "num_predict":
            limit = None if value == -1 else _whole(name, value, 1, 2**31 - 1)
        elif name == "stop":
            stop = _stops(value)
        elif name in _SAMPLING:
            sampling[name] = _SAMPLING[name](name, value)
        else:
            raise ConfigError(f"the embedded engine has no option {name[:40]!a}", hint=_HINT)
    return num_ctx, {
        "messages": _messages(body),
        "prompt": body["prompt"],
        "schema": _schema(body.get("format")),
        "limit": limit,
        "stop": stop,
        "sampling": sampling,
    }


def chunk_of(answer: Mapping[str, Any], model: str) -> GenerateResponse:
    """Return one message of the helper as a chunk, as Ollama's API would have it."""
    created_at = strftime("%Y-%m-%dT%H:%M:%SZ", gmtime())
    if "done" not in answer:
        return GenerateResponse(
            model=model,
            created_at=created_at,
            response=answer["text"],
            done=False,
            thinking=answer["thinking"] or None,
        )
    return GenerateResponse(
        model=model,
        created_at=created_at,
        response="",
        done=True,
        done_reason=answer["reason"],
        total_duration=answer["total_ns"],
        load_duration=answer["load_ns"],
        prompt_eval_count=answer["prompt_tokens"],
        prompt_eval_duration=answer["prompt_ns"],
        eval_count=answer["tokens"],
        eval_duration=answer["tokens_ns"],
    )


def _messages(body: Mapping[str, Any]) -> list[dict[str, str]] | None:
    """Return the conversation for the chat template, None for a raw prompt."""
    system = body.get("system")
    if body.get("raw"):
        if system:
            raise ConfigError(
                "a raw prompt takes no system prompt", hint="write it into the prompt"
            )
        return None
    messages = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": body["prompt"]}]


def _schema(form: Any) -> dict[str, Any] | None:
    """Return the schema of the answer: {} for any JSON object, None for free text."""
    if form is None or form == "":
        return None
    if form == "json":
        return {}
    if isinstance(form, Mapping):
        return dict(form)
    raise ConfigError(f"format {str(form)[:40]!a} is unknown", hint='use "json" or a JSON schema')


def _stops(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, (list, tuple)) or not all(
        isinstance(stop, str) and stop for stop in stops
    ):
        raise ConfigError("the option stop is not a text or a list of texts, none of them empty")
    return list(stops)


def _whole(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(f"the option {name} is not a whole number from {least} to {most}")
    return value


def _real(name: str, value: Any, least: float, most: float) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or not least <= value <= most
    ):
        raise ConfigError(f"the option {name} is not a number from {least:g} to {most:g}")
    return value


_SAMPLING: dict[str, Callable[[str, Any], float]] = {
    "temperature": lambda name, value: _real(name, value, 0, 100),
    "seed": lambda name, value: _whole(name, value, -1, _SEEDS - 1),
    "top_k": lambda name, value: _whole(name, value, 0, 2**31 - 1),
    "top_p": lambda name, value: _real(name, value, 0, 1),
    "min_p": lambda name, value: _real(name, value, 0, 1),
    "typical_p": lambda name, value: _real(name, value, 0, 1),
    "repeat_penalty": lambda name, value: _real(name, value, 0, 100),
    "repeat_last_n": lambda name, value: _whole(name, value, -1, 2**31 - 1),
    "presence_penalty": lambda name, value: _real(name, value, -100, 100),
    "frequency_penalty": lambda name, value: _real(name, value, -100, 100),
}
