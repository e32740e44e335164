"""`tinyllm run`: from arguments to an answer, by the shortest way if the answer is stored."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import config
from ..client import CachedOllamaClient
from ..errors import CacheMissError, ConfigError
from ..policy import checked_speed
from ..quantities import format_duration
from ..replay import pauses, replay
from ..reply import Question, Reply
from ..request import DEFAULT_MAX_TOKENS, DEFAULT_TEMPERATURE, GenerateRequest
from ..response import GenerateResponse
from . import session
from .exit_codes import ExitCode
from .prompt import read_bytes, read_prompt
from .terminal import AnswerWriter, confirmed, is_terminal, json_line, say

__all__ = [
    "RunArguments",
    "answer_record",
    "can_look_at_once",
    "execute",
    "miss_error",
    "print_hit",
    "request_of",
    "say_age",
]

_COMMANDS = ("run", "pull", "cache-stats", "cache-clear", "cache-explain", "doctor")
_THINK_LEVELS = ("low", "medium", "high", "max")


class RunArguments(NamedTuple):
    """What stood on the command line; `flags` are those that are settings too."""

    prompt: str | None
    system: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    options: Sequence[str] = ()
    json_mode: bool = False
    format: str | None = None
    images: Sequence[Path] = ()
    think: bool | str | None = None
    files: Sequence[str] = ()
    stdin: bool = True
    stream: bool = True
    json_output: bool = False
    raw: bool = False
    refresh: bool = False
    cache_only: bool = False
    quiet: bool = False
    verbose: bool = False
    sample: int | None = None
    samples: int | None = None
    replay_speed: float | None = None
    flags: Mapping[str, Any] = {}


def execute(arguments: RunArguments) -> int:
    """Answer one prompt; return the exit code. Raises TinyLLMError for everything that goes wrong."""
    settings = session.load_settings(arguments.flags, quiet=arguments.quiet)
    level = "debug" if arguments.verbose else settings.log_level
    if level:
        session.start_logging(level)
    if arguments.cache_only and (arguments.refresh or not settings.cache):
        raise ConfigError("--cache-only contradicts --refresh and --no-cache")
    if arguments.replay_speed is not None:
        checked_speed(arguments.replay_speed)
    request = request_of(arguments, settings)
    if not _meant_as_prompt(arguments):
        return ExitCode.OK
    voice = session.StoreVoice(quiet=arguments.quiet)
    cache = session.open_cache(settings, voice, strict=settings.require_cache)
    client = session.open_client(settings, cache)
    wanted = _sample_numbers(arguments)
    due: list[int] = []
    if can_look_at_once(arguments, client, request):
        wanted = _answer_at_once(arguments, settings, client, request, wanted, due)
    if not wanted:
        return ExitCode.OK
    from .ask import ask

    return ask(arguments, settings, client, request, wanted, due)


def _sample_numbers(arguments: RunArguments) -> Sequence[int]:
    """Return which answers to the question are wanted: the first, the N-th, or the first N."""
    if arguments.samples is not None:
        if arguments.sample is not None:
            raise ConfigError("--samples and --sample contradict each other")
        return range(1, arguments.samples + 1)
    return [1 if arguments.sample is None else arguments.sample]


def can_look_at_once(
    arguments: RunArguments, client: CachedOllamaClient, request: GenerateRequest
) -> bool:
    """Say whether a look-up takes no event loop and nobody wants to ask the server first."""
    return (
        client.cacheable(request)
        and not client.cache.needs_event_loop
        and client.coherence != "strict"
        and not arguments.refresh
    )


def _answer_at_once(
    arguments: RunArguments,
    settings: config.Settings,
    client: CachedOllamaClient,
    request: GenerateRequest,
    samples: Sequence[int],
    due: list[int],
) -> Sequence[int]:
    """Print the stored answers up to the first that is missing; return the samples from there on.

    Those that are to be renewed are put into `due`, and seen to if none is missing. Raises
    CacheMissError for a missing one with --cache-only.
    """
    try:
        for place, sample in enumerate(samples):
            question = client.question(request, sample)
            found = client.cache.look_up_nowait(question.key, question.model)
            if found is None and settings.engine == "auto":
                from .engine import found_by_stand_in

                other = found_by_stand_in(settings, client.cache, question, quiet=arguments.quiet)
                if other is not None:
                    (client, request), question, found = other
            if found is None and not arguments.cache_only:
                return samples[place:]
            if found is None:
                raise miss_error(question)
            outcome = "stale" if found.stale else "hit"
            print_hit(arguments, Reply(request, question, outcome, entry=found.entry))
            if found.renew and not arguments.cache_only:
                due.append(sample)
    except BaseException:
        client.cache.close_nowait()
        raise
    client.cache.close_nowait()
    if arguments.cache_only:
        return ()
    if due or client.digests.check_is_due(request.model):
        from .behind import look_after

        look_after(client, request, due)
    return ()


def miss_error(question: Question) -> CacheMissError:
    """Return the error of --cache-only."""
    return CacheMissError(
        f"no stored answer for this prompt and {question.model}",
        hint="run it once without --cache-only",
    )


def print_hit(arguments: RunArguments, reply: Reply) -> None:
    """Write a stored answer to standard output, and how old it is to a terminal."""
    entry = reply.entry
    assert entry is not None
    writer = AnswerWriter(raw=arguments.raw)
    if arguments.json_output:
        writer.write(answer_record(reply, entry.response, 0.0))
    elif arguments.replay_speed is None:
        writer.write(entry.response.response)
    else:
        pace = pauses(entry, arguments.replay_speed)
        for chunk, pause in zip(replay(entry, reply.request.model), pace, strict=True):
            time.sleep(pause)
            writer.write(chunk.response)
    writer.finish()
    say_age(arguments, reply)


def say_age(arguments: RunArguments, reply: Reply) -> None:
    """Tell a terminal how old a stored answer is; tell everybody if it is past its TTL."""
    entry = reply.entry
    if entry is None or arguments.quiet or arguments.json_output:
        return
    age = format_duration(entry.age())
    if reply.outcome == "stale":
        say(f"tinyllm: this answer is {age} old, past its TTL; a new one could not be had at once")
    elif is_terminal(sys.stderr):
        say(f"cached {age} ago, --refresh for a new one")


def answer_record(reply: Reply, response: GenerateResponse, duration: float) -> str:
    """Return an answer and how it came about as one line of JSON.

    `cached` says that it was stored before; then `age_s` and `saved_ms` are set, else `duration_ms`.
    """
    entry = reply.entry
    record: dict[str, Any] = {
        "model": reply.request.model,
        "response": response.response,
        "cached": entry is not None,
        "outcome": reply.outcome,
        "key": reply.key,
        "age_s": 0 if entry is None else round(entry.age(), 3),
        "duration_ms": round(duration * 1000),
        "saved_ms": 0 if entry is None else round(entry.seconds * 1000),
        "prompt_eval_count": response.prompt_eval_count,
        "eval_count": response.eval_count,
        "done_reason": response.done_reason,
        "created_at": response.created_at,
    }
    if response.thinking is not None:
        record["thinking"] = response.thinking
    if response.tool_calls is not None:
        record["tool_calls"] = response.to_dict()["tool_calls"]
    if reply.question is not None and reply.question.sample > 1:
        record["sample"] = reply.question.sample
    return json_line(record)


def _meant_as_prompt(arguments: RunArguments) -> bool:
    """Ask, on a terminal, whether a prompt that is a command's name was meant as one."""
    name = arguments.prompt
    if name not in _COMMANDS or arguments.files or not is_terminal(sys.stdin):
        return True
    if not is_terminal(sys.stderr):
        return True
    say(f"`{name}` is a command: `tinyllm {name}`.")
    return bool(confirmed("Send it to the model as a prompt?"))


def request_of(arguments: RunArguments, settings: config.Settings) -> GenerateRequest:
    """Return what the command line asks; raises ConfigError for what makes no sense."""
    prompt = read_prompt(
        arguments.prompt, arguments.files, stdin=arguments.stdin, quiet=arguments.quiet
    )
    if isinstance(arguments.think, str) and arguments.think not in _THINK_LEVELS:
        raise ConfigError(
            f"--think-level {arguments.think[:40]!a} is not one of {', '.join(_THINK_LEVELS)}"
        )
    temperature = DEFAULT_TEMPERATURE if arguments.temperature is None else arguments.temperature
    return GenerateRequest(
        model=_model(settings),
        prompt=prompt,
        system=arguments.system,
        temperature=temperature,
        max_tokens=DEFAULT_MAX_TOKENS if arguments.max_tokens is None else arguments.max_tokens,
        json_mode=arguments.json_mode,
        format=_format(arguments.format),
        options=_options(arguments.options),
        images=[read_bytes(path, "the image") for path in arguments.images],
        think=arguments.think,
    )


def _model(settings: config.Settings) -> str:
    """Return the model to ask: the one that is named, else the default of the engine."""
    if settings.engine != "embedded" or "model" in settings.origins:
        return settings.model
    return session.embedded_upstream(settings).default_model


def _format(value: str | None) -> str | dict[str, Any] | None:
    if value is None or value == "json":
        return value
    try:
        schema = json.loads(read_bytes(value, "the JSON schema"))
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"--format: {value} is not JSON: {exc}") from exc
    if not isinstance(schema, dict):
        raise ConfigError(f"--format: {value} holds no JSON schema", hint="a schema is an object")
    return schema


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ConfigError(f"-o {pair[:40]!a} is not KEY=VALUE", hint="write -o num_ctx=8192")
        try:
            value = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            value = text
        if name == "stop" and isinstance(value, (str, int, float)):
            value = [text if not isinstance(value, str) else value]
        options[name] = value
    return options


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number JSON knows")
