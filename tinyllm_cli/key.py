"""What makes two requests the same question: a request body becomes one SHA-256 key.

The key covers the whole body but the few fields known not to reach the model, so a field nobody
thought of costs a second generation and never a wrong answer. Bump KEY_VERSION with any change of
the canonical form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .errors import ConfigError
from .model_name import canonical_model
from .request import DEFAULT_MAX_TOKENS, DEFAULT_TEMPERATURE, GenerateRequest, image_bytes
from .sha import new_sha256, sha256_hex

__all__ = ["KEY_VERSION", "KeyTemplate", "cache_key", "canonical_body", "generate_cache_key"]

KEY_VERSION = 1

# How the answer travels and how long the model stays loaded; neither changes a word of it.
_NOT_IN_KEY = ("stream", "keep_alive")
# Values the server reads as if the field were absent. `think`, `truncate`, `shift`, `context` and
# `format` are not here: for them absent differs from false, [] or "".
_SAME_AS_ABSENT: dict[str, tuple[Any, ...]] = {
    "system": ("", None),
    "suffix": ("", None),
    "template": ("", None),
    "images": ([], None),
    "options": ({}, None),
    "raw": (False, None),
    "logprobs": (False, None),
}
_KINDS: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "options": (Mapping, type(None)),
    "images": (list, tuple, type(None)),
}
_EXACT_INT = 2**53  # a larger float no longer stands for one integer


def generate_cache_key(
    model: str,
    prompt: str,
    temperature: float | None = DEFAULT_TEMPERATURE,
    max_tokens: int | None = DEFAULT_MAX_TOKENS,
    system: str | None = None,
    json_mode: bool = False,
    *,
    digest: str | None = None,
    host: str = "",
    namespace: str = "",
    **fields: Any,
) -> str:
    """Return the cache key of a generate request: 64 lower-case hex digits.

    `fields` are the other fields of GenerateRequest. `digest` is the model's content hash as
    Ollama lists it; without one the key holds `host` instead, since the same name may be another
    model elsewhere. `namespace` keeps separate what should not be shared.
    Raises ConfigError (a ValueError) for what JSON or UTF-8 cannot hold.
    """
    request = GenerateRequest(model, prompt, system, temperature, max_tokens, json_mode, **fields)
    return cache_key(request.body(), digest=digest, host=host, namespace=namespace)


def cache_key(
    body: Mapping[str, Any],
    *,
    endpoint: str = "generate",
    digest: str | None = None,
    host: str = "",
    namespace: str = "",
    sample: int = 1,
) -> str:
    """Return the key of a request body sent to an Ollama endpoint; see `generate_cache_key`.

    `sample` N above 1 is the N-th answer to the same question.
    """
    prompt = body.get("prompt")
    if not isinstance(prompt, str):
        head = _head(endpoint, digest, host, namespace, sample)
        return sha256_hex(_utf8(_dump([head, canonical_body(body)])))
    template = KeyTemplate(
        {name: value for name, value in body.items() if name != "prompt"},
        endpoint=endpoint,
        digest=digest,
        host=host,
        namespace=namespace,
        sample=sample,
    )
    return template.key(prompt)


class KeyTemplate:
    """The keys of requests that differ in their prompt alone: made once, it gives a key per prompt.

    The canonical JSON holds the SHA-256 of the prompt in the prompt's place, as it does for images.
    So a long prompt is read once, and the rest of the request not at all. `body` is a request's
    without its prompt.
    """

    __slots__ = ("_after", "_before")

    def __init__(
        self,
        body: Mapping[str, Any],
        *,
        endpoint: str = "generate",
        digest: str | None = None,
        host: str = "",
        namespace: str = "",
        sample: int = 1,
    ) -> None:
        canonical = canonical_body({**body, "prompt": ""})
        before = {name: canonical[name] for name in canonical if name < "prompt"}
        after = {name: canonical[name] for name in canonical if name > "prompt"}
        opening = _dump([_head(endpoint, digest, host, namespace, sample), before])[:-2]
        comma = "," if before else ""
        self._before = new_sha256(_utf8(f'{opening}{comma}"prompt":"'))
        self._after = _utf8(f'",{_dump(after)[1:]}]' if after else '"}]')

    def key(self, prompt: str) -> str:
        """Return the key for a prompt; raises ConfigError for text that UTF-8 cannot hold."""
        whole = self._before.copy()
        whole.update(sha256_hex(_utf8(prompt)).encode() + self._after)
        key: str = whole.hexdigest()
        return key


def _head(
    endpoint: str, digest: str | None, host: str, namespace: str, sample: int
) -> dict[str, Any]:
    source = {"digest": digest} if digest else {"host": host}
    head = {"v": KEY_VERSION, "namespace": namespace, "endpoint": endpoint, **source}
    return {**head, "sample": sample} if sample > 1 else head


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        raise ConfigError(
            "the request holds a lone surrogate, which is not text",
            hint="decode the input as UTF-8 before asking",
        ) from exc


def canonical_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body as the key sees it: spelled one way, with what does not matter left out.

    Fields and options are sorted by name; the order inside `format`, `tools` and message arguments
    is kept, because there it steers the answer. Raises ConfigError for fields of a kind that no
    server reads, and for two names that the server would take for one.
    """
    _check_fields(body)
    canonical: dict[str, Any] = {}
    for name in sorted(body):
        value = body[name]
        if name in _NOT_IN_KEY:
            continue
        if name in _SAME_AS_ABSENT and any(
            value == empty and type(value) is type(empty) for empty in _SAME_AS_ABSENT[name]
        ):
            continue
        if name == "model":
            value = canonical_model(value)
        elif name == "options":
            value = _canonical_options(value)
            if not value:
                continue
        elif name == "images":
            # the image itself, so that line breaks in its base64 do not matter
            value = [sha256_hex(image_bytes(image)) for image in value]
        canonical[name] = value
    return canonical


def _check_fields(body: Mapping[str, Any]) -> None:
    for name, kind in _KINDS.items():
        if name in body and not isinstance(body[name], kind):
            raise ConfigError(f"{name} is {type(body[name]).__name__}, which no server reads")
    for name in (*body, *(body.get("options") or ())):
        if not isinstance(name, str):
            raise ConfigError(f"the name of a field is {type(name).__name__}, not text")
    # Ollama takes PROMPT for prompt, and the last of two wins: sorted, they would be one question
    if len({name.casefold() for name in body}) < len(body):
        raise ConfigError("two fields of the request differ by upper and lower case only")


def _canonical_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _canonical_number(value)
        for name, value in sorted(options.items())
        if value is not None
    }


def _canonical_number(value: Any) -> Any:
    """Write equal numbers alike (0, 0.0 and -0.0), leaving true and text apart from them."""
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT_INT:
        return int(value)
    return value


def _dump(value: Any) -> str:
    """Serialise to compact JSON, refusing what JSON cannot tell apart or cannot hold."""
    try:
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        _refuse_other_keys(value)
    except ConfigError:
        raise
    except (ValueError, TypeError, RecursionError) as exc:
        raise ConfigError(
            f"the request cannot be written as JSON: {exc}",
            hint="use text keys, finite numbers and plain lists and objects",
        ) from exc
    return text


def _refuse_other_keys(value: Any) -> None:
    """Refuse object keys that are not text: JSON would write 1 and "1" the same."""
    if isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                raise ConfigError(f"an object key is {type(name).__name__}, not text")
            if isinstance(item, (dict, list, tuple)):
                _refuse_other_keys(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            if isinstance(item, (dict, list, tuple)):
                _refuse_other_keys(item)
