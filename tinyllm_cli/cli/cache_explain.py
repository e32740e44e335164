"""`tinyllm cache-explain`: would this be a hit, and if not, what is in the way?"""

from __future__ import annotations

import json
from typing import Any

from ..backends.memory import InMemoryBackend
from ..client import CachedOllamaClient
from ..errors import ConfigError
from ..explain import Difference, Explanation, explain
from ..policy import SPARE, STALE
from ..quantities import format_duration
from ..reply import Question
from . import session
from .exit_codes import ExitCode
from .run import RunArguments, request_of
from .terminal import AnswerWriter, json_line

__all__ = ["execute"]

_LONGEST_VALUE = 60


def execute(arguments: RunArguments) -> int:
    """Say what a look-up of this request comes to; nothing is counted, nobody is asked."""
    settings = session.load_settings(arguments.flags)
    request = request_of(arguments, settings)
    cache = session.open_cache(settings, session.StoreVoice(), strict=True)
    backend = cache.backend
    if not isinstance(backend, InMemoryBackend) or backend.snapshot is None:
        raise ConfigError(
            "cache-explain reads this user's snapshot only", hint="use --cache-backend memory"
        )
    client = session.open_client(settings, cache)
    question = client.question(request, arguments.sample or 1)
    try:
        explanation = _explanation(client, backend, question)
    finally:
        backend.close_nowait()
    writer = AnswerWriter()
    if arguments.json_output:
        writer.write(json_line(_record(question, explanation)))
    else:
        writer.write("\n".join(_lines(question, explanation)))
    writer.finish()
    return ExitCode.OK


def _explanation(
    client: CachedOllamaClient, backend: InMemoryBackend, question: Question
) -> Explanation:
    assert backend.snapshot is not None
    if not client.cacheable(question.request):
        return Explanation("bypassed")
    entry = backend.peek(question.key)
    if entry is not None:
        verdict = client.cache.verdict(entry)
        names = {STALE: "stale", SPARE: "expired", "expired": "expired"}
        return Explanation(names.get(verdict, "hit"), question.key, entry)
    if backend.snapshot.was_evicted(question.key):
        return Explanation("evicted", question.key)
    nearest = explain(question.body, backend.entries())
    if nearest.verdict == "other model" and _same_model_content(client, question, nearest):
        return nearest._replace(verdict="other place")
    return nearest


def _same_model_content(
    client: CachedOllamaClient, question: Question, nearest: Explanation
) -> bool:
    """Say whether the nearest entry's key differs by its sample number alone."""
    if question.digest is None:
        return False
    return any(
        client.question(question.request, sample, digest=question.digest).key == nearest.key
        for sample in range(1, 100)
    )


def _lines(question: Question, explanation: Explanation) -> list[str]:
    age = "" if explanation.entry is None else format_duration(explanation.entry.age())
    model = question.model
    said = {
        "hit": f"hit: answered from the cache, {age} old",
        "stale": f"stale: answered from the cache, {age} old, and renewed behind",
        "expired": f"miss: the stored answer is {age} old and past its TTL",
        "evicted": "miss: the answer was stored, and was evicted for room",
        "bypassed": "bypassed: the cache has no part in answering this",
        "other model": f"miss: the same question was answered by another version of {model}, "
        "or in another namespace",
        "other place": "miss: the same question is stored as another sample",
        "differs": f"miss: the nearest stored answer, {age} old, was to another request",
        "nothing stored": "miss: nothing like it is stored",
    }
    lines = [said[explanation.verdict], f"key: {question.key}"]
    if explanation.key not in (None, question.key):
        lines.append(f"nearest: {explanation.key}")
    lines += [_line(difference) for difference in explanation.differences]
    return lines


def _line(difference: Difference) -> str:
    return (
        f"  {difference.path}: stored {_brief(difference.stored)}, asked {_brief(difference.asked)}"
    )


def _brief(value: Any) -> str:
    if value is None:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "..."


def _record(question: Question, explanation: Explanation) -> dict[str, Any]:
    entry = explanation.entry
    return {
        "outcome": "hit" if explanation.verdict in ("hit", "stale") else "miss",
        "reason": explanation.verdict,
        "key": question.key,
        "nearest": explanation.key,
        "age_s": None if entry is None else round(entry.age(), 3),
        "differences": [difference._asdict() for difference in explanation.differences],
    }
