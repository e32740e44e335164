"""What was answered: one frozen value per answer, safe to hand to any number of callers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .values import Value, freeze, thaw

__all__ = ["GenerateResponse"]


class GenerateResponse(Value):
    """One answer, or one chunk of a streamed one, with every field Ollama sent.

    Frozen through and through: lists become tuples and objects read-only mappings, so a caller
    cannot change what the cache hands to the next. Durations are integer nanoseconds. `created_at`
    is the server's own RFC 3339 text. `done_reason` None means the client did not say; "" means the
    server said nothing, which an answer that ended well never does. `extra` holds fields this
    release does not name.
    """

    __slots__ = (
        "model",
        "created_at",
        "response",
        "done",
        "total_duration",
        "load_duration",
        "prompt_eval_count",
        "prompt_eval_duration",
        "eval_count",
        "eval_duration",
        "done_reason",
        "thinking",
        "context",
        "tool_calls",
        "logprobs",
        "remote_model",
        "remote_host",
        "extra",
    )

    model: str
    created_at: str
    response: str
    done: bool
    total_duration: int | None
    load_duration: int | None
    prompt_eval_count: int | None
    prompt_eval_duration: int | None
    eval_count: int | None
    eval_duration: int | None
    done_reason: str | None
    thinking: str | None
    context: Sequence[int] | None
    tool_calls: Sequence[Mapping[str, Any]] | None
    logprobs: Sequence[Mapping[str, Any]] | None
    remote_model: str | None
    remote_host: str | None
    extra: Mapping[str, Any] | None

    def __init__(
        self,
        model: str,
        created_at: str,
        response: str,
        done: bool,
        total_duration: int | None = None,
        load_duration: int | None = None,
        prompt_eval_count: int | None = None,
        prompt_eval_duration: int | None = None,
        eval_count: int | None = None,
        eval_duration: int | None = None,
        done_reason: str | None = None,
        thinking: str | None = None,
        context: Sequence[int] | None = None,
        tool_calls: Sequence[Mapping[str, Any]] | None = None,
        logprobs: Sequence[Mapping[str, Any]] | None = None,
        remote_model: str | None = None,
        remote_host: str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        put = self._set
        put("model", model)
        put("created_at", created_at)
        put("response", response)
        put("done", done)
        put("total_duration", total_duration)
        put("load_duration", load_duration)
        put("prompt_eval_count", prompt_eval_count)
        put("prompt_eval_duration", prompt_eval_duration)
        put("eval_count", eval_count)
        put("eval_duration", eval_duration)
        put("done_reason", done_reason)
        put("thinking", thinking)
        put("context", None if context is None else freeze(context))
        put("tool_calls", None if tool_calls is None else freeze(tool_calls))
        put("logprobs", None if logprobs is None else freeze(logprobs))
        put("remote_model", remote_model)
        put("remote_host", remote_host)
        put("extra", None if extra is None else freeze(extra))

    @property
    def tokens(self) -> int:
        """How many tokens were read and written to produce this; 0 where the server did not say."""
        return (self.prompt_eval_count or 0) + (self.eval_count or 0)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are set as plain JSON-ready values, those of `extra` among them."""
        data: dict[str, Any] = {}
        for name in _FIELDS:
            value = getattr(self, name)
            if value is not None:
                data[name] = thaw(value) if name in _NESTED else value
        data.update(data.pop("extra", {}))
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GenerateResponse:
        """Build a response from what `to_dict` gave; raises TypeError or ValueError if it does not fit."""
        if not isinstance(data, Mapping):
            raise TypeError(f"a response is an object, not {type(data).__name__}")
        known: dict[str, Any] = {}
        rest: dict[str, Any] = {}
        for name, value in data.items():
            wanted = _TYPES.get(name)
            if wanted is None:
                rest[name] = value
                continue
            # bool is an int to Python, but `true` is not a duration
            if not isinstance(value, wanted) or (value is True or value is False) != (
                wanted is bool
            ):
                raise TypeError(f"{name} is {type(value).__name__}")
            item_type = _ITEM_TYPES.get(name)
            if item_type and any(type(item) is not item_type for item in data[name]):
                raise TypeError(f"{name} holds something else than {item_type.__name__}")
            known[name] = value
        return cls(**known, extra=rest or None)


_NESTED = ("context", "tool_calls", "logprobs", "extra")
_FIELDS = GenerateResponse.__slots__
_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(_FIELDS, int),
    **dict.fromkeys(
        (
            "model",
            "created_at",
            "response",
            "done_reason",
            "thinking",
            "remote_model",
            "remote_host",
        ),
        str,
    ),
    **dict.fromkeys(("context", "tool_calls", "logprobs"), (list, tuple)),
    "done": bool,
}
del _TYPES["extra"]
_ITEM_TYPES: dict[str, type] = {"context": int, "tool_calls": dict, "logprobs": dict}
