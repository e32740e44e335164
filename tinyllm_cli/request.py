"""What was asked: one generate request, as the user means it and as Ollama's wire wants it."""

from __future__ import annotations

import binascii
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from .errors import ConfigError
from .values import Value, freeze, thaw

__all__ = ["DEFAULT_MAX_TOKENS", "DEFAULT_TEMPERATURE", "GenerateRequest", "image_bytes"]

DEFAULT_TEMPERATURE = 0.3
DEFAULT_MAX_TOKENS = 2000


_NONE: Mapping[str, Any] = MappingProxyType({})


class GenerateRequest(Value):
    """One question to one model; everything that may change the answer is a field.

    `temperature` and `max_tokens` None leave the choice to the model. `options` are Ollama's own
    (num_ctx, top_p, seed, stop, ...) and win over the two. `format` is "json" or a JSON schema;
    `json_mode` is short for "json". `images` are raw bytes or base64 text. `extra` holds request
    fields this release does not name; they are sent as they are and are part of the cache key.
    The remaining fields are those of Ollama's POST /api/generate. Nested values are copied and
    frozen; ConfigError (a ValueError) if they nest too deep.
    """

    __slots__ = (
        "model",
        "prompt",
        "system",
        "temperature",
        "max_tokens",
        "json_mode",
        "format",
        "options",
        "images",
        "think",
        "suffix",
        "template",
        "context",
        "raw",
        "truncate",
        "shift",
        "logprobs",
        "top_logprobs",
        "keep_alive",
        "extra",
    )

    model: str
    prompt: str
    system: str | None
    temperature: float | None
    max_tokens: int | None
    json_mode: bool
    format: str | Mapping[str, Any] | None
    options: Mapping[str, Any]
    images: Sequence[bytes | str]
    think: bool | str | None
    suffix: str | None
    template: str | None
    context: Sequence[int] | None
    raw: bool
    truncate: bool | None
    shift: bool | None
    logprobs: bool
    top_logprobs: int | None
    keep_alive: str | float | None
    extra: Mapping[str, Any]

    def __init__(
        self,
        model: str,
        prompt: str,
        system: str | None = None,
        temperature: float | None = DEFAULT_TEMPERATURE,
        max_tokens: int | None = DEFAULT_MAX_TOKENS,
        json_mode: bool = False,
        format: str | Mapping[str, Any] | None = None,
        options: Mapping[str, Any] = _NONE,
        images: Sequence[bytes | str] = (),
        think: bool | str | None = None,
        suffix: str | None = None,
        template: str | None = None,
        context: Sequence[int] | None = None,
        raw: bool = False,
        truncate: bool | None = None,
        shift: bool | None = None,
        logprobs: bool = False,
        top_logprobs: int | None = None,
        keep_alive: str | float | None = None,
        extra: Mapping[str, Any] = _NONE,
    ) -> None:
        put = self._set
        put("model", model)
        put("prompt", prompt)
        put("system", system)
        put("temperature", temperature)
        put("max_tokens", max_tokens)
        put("json_mode", json_mode)
        put("format", _frozen(format))
        put("options", _frozen(options))
        put("images", _frozen(images))
        put("think", think)
        put("suffix", suffix)
        put("template", template)
        put("context", _frozen(context))
        put("raw", raw)
        put("truncate", truncate)
        put("shift", shift)
        put("logprobs", logprobs)
        put("top_logprobs", top_logprobs)
        put("keep_alive", keep_alive)
        put("extra", _frozen(extra))

    def body(self) -> dict[str, Any]:
        """Return the JSON body for POST /api/generate, without `stream`; unset fields are absent.

        Raises ConfigError for an image that is not base64.
        """
        options: dict[str, Any] = {}
        if self.temperature is not None:
            options["temperature"] = self.temperature
        if self.max_tokens is not None:
            options["num_predict"] = self.max_tokens
        options.update(thaw(self.options))
        body: dict[str, Any] = {"model": self.model, "prompt": self.prompt}
        for name in ("system", "suffix", "template"):
            value = getattr(self, name)
            if value:  # the server treats "" as absent
                body[name] = value
        if self.format is not None:
            body["format"] = thaw(self.format)
        elif self.json_mode:
            body["format"] = "json"
        if self.images:
            body["images"] = [_as_base64(image) for image in self.images]
        # [] is not the same as absent: it drops the model's own history
        if self.context is not None:
            body["context"] = list(self.context)
        for name in ("think", "truncate", "shift", "top_logprobs", "keep_alive"):
            value = getattr(self, name)
            if value is not None:
                body[name] = value
        for name in ("raw", "logprobs"):
            if getattr(self, name):
                body[name] = True
        if options:
            body["options"] = options
        body.update(thaw(self.extra))
        return body


def image_bytes(image: str) -> bytes:
    """Return the image behind its base64 text, read as Ollama reads it; raises ConfigError."""
    try:
        # line breaks are skipped and nothing else: what the server refuses must not pass as an image
        return binascii.a2b_base64(image.replace("\r", "").replace("\n", ""), strict_mode=True)
    except (AttributeError, ValueError) as exc:
        raise ConfigError(
            "an image is not base64", hint="pass the raw bytes of the image instead"
        ) from exc


def _as_base64(image: bytes | str) -> str:
    if isinstance(image, bytes):
        return binascii.b2a_base64(image, newline=False).decode("ascii")
    image_bytes(image)
    return image


def _frozen(value: Any) -> Any:
    try:
        return freeze(value)
    except RecursionError as exc:
        raise ConfigError("the request nests too deep, or holds itself") from exc
