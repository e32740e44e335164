"""What must Ollama's JSON look like to be believed? Its replies as models, made values of ours.

Strict: a count that is a string is not a count. Unknown fields are kept or passed over, never an
error, because every release of the server brings new ones.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import OllamaProtocolError
from ..response import GenerateResponse

__all__ = [
    "InstalledModel",
    "PullLine",
    "installed_models",
    "pull_line",
    "response",
    "server_version",
    "shown",
    "vectors",
]

_DIGEST = re.compile(r"[0-9a-f]{64}")


class _Reply(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="allow", frozen=True, protected_namespaces=(), hide_input_in_errors=True
    )


class GenerateChunk(_Reply):
    """One line of a streamed answer, or a whole answer that was not streamed."""

    model: str = ""
    created_at: str = ""
    response: str = ""
    done: bool = False
    done_reason: str | None = None
    thinking: str | None = None
    context: list[int] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    logprobs: list[dict[str, Any]] | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None
    remote_model: str | None = None
    remote_host: str | None = None


class _Tag(_Reply):
    name: str = ""
    model: str = ""
    digest: str = ""
    remote_model: str | None = None
    remote_host: str | None = None


class _Tags(_Reply):
    models: list[_Tag] | None = None


class _Show(_Reply):
    details: dict[str, Any] | None = None
    model_info: dict[str, Any] | None = None
    capabilities: list[str] | None = None
    parameters: str | None = None
    template: str | None = None


class _Embed(_Reply):
    embeddings: list[list[float]]


class PullLine(_Reply):
    """One line of a pull: what is being done, and how many bytes of it are there."""

    status: str = ""
    digest: str | None = None
    total: int | None = None
    completed: int | None = None


class _Version(_Reply):
    version: str


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """One model of the server; `digest` is None where it does not say which weights will answer."""

    name: str
    digest: str | None


_R = TypeVar("_R", bound=_Reply)


def response(fields: Mapping[str, Any]) -> GenerateResponse:
    """Return one chunk as a response; raises OllamaProtocolError where a field has a wrong type.

    `done_reason` is "" where a chunk says it is the last and not why, and None before the last.
    """
    chunk = _read(GenerateChunk, fields)
    reason = (chunk.done_reason or "") if chunk.done else None
    values: dict[str, Any] = {**chunk.__dict__, "done_reason": reason}
    try:
        return GenerateResponse(**values, extra=chunk.model_extra or None)
    except RecursionError as exc:
        raise OllamaProtocolError("Ollama sent an answer that is nested too deeply") from exc


def installed_models(fields: Mapping[str, Any]) -> list[InstalledModel]:
    """Return the models of GET /api/tags, in the server's order."""
    return [
        InstalledModel(tag.name or tag.model, _weights(tag))
        for tag in _read(_Tags, fields).models or ()
    ]


def shown(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the reply of POST /api/show as it came, once it looks like one."""
    _read(_Show, fields)
    return fields


def vectors(fields: Mapping[str, Any], count: int) -> list[list[float]]:
    """Return the vectors of POST /api/embed, all finite; raises OllamaProtocolError for others."""
    found = _read(_Embed, fields).embeddings
    if len(found) != count:
        raise OllamaProtocolError(f"Ollama sent {len(found)} embeddings for {count} inputs")
    if len({len(vector) for vector in found}) > 1 or not all(found):
        raise OllamaProtocolError("Ollama sent embeddings of unequal or no length")
    if not all(math.isfinite(number) for vector in found for number in vector):
        raise OllamaProtocolError("Ollama sent an embedding with a number that is not finite")
    return found


def pull_line(fields: Mapping[str, Any]) -> PullLine:
    """Return one line of POST /api/pull."""
    return _read(PullLine, fields)


def server_version(fields: Mapping[str, Any]) -> str:
    """Return what GET /api/version says."""
    return _read(_Version, fields).version


def _weights(tag: _Tag) -> str | None:
    # The digest of a remote model is that of a stub; the weights behind it may change unseen.
    if tag.remote_host or tag.remote_model or not _DIGEST.fullmatch(tag.digest):
        return None
    return tag.digest


def _read(model: type[_R], fields: Mapping[str, Any]) -> _R:
    try:
        return model.model_validate(fields)
    except ValidationError as exc:
        # Field names are ours or a mapping's keys; the values may be parts of an answer.
        where = exc.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in where["loc"])
        raise OllamaProtocolError(
            f"Ollama sent something that is no answer: {place[:80]!r} has a wrong type"
        ) from exc
