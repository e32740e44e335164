"""The way of a miss: ask the model, show the answer as it comes, store it when it is whole."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import time
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Any

from ..client import CachedOllamaClient
from ..config import Settings
from ..errors import ModelNotFoundError, OllamaUnavailableError, OutputError, TinyLLMError
from ..model_name import short_model
from ..ollama.chunks import assemble
from ..reply import Reply
from ..request import GenerateRequest
from ..response import GenerateResponse
from .engine import bring_weights, stand_in_after
from .exit_codes import ExitCode
from .run import RunArguments, answer_record, can_look_at_once, miss_error, print_hit, say_age
from .terminal import AnswerWriter, is_terminal

__all__ = ["ask", "run_until_signal"]

_CODES = {"SIGINT": ExitCode.INTERRUPTED, "SIGTERM": ExitCode.TERMINATED, "SIGHUP": ExitCode.HANGUP}


def ask(
    arguments: RunArguments,
    settings: Settings,
    client: CachedOllamaClient,
    request: GenerateRequest,
    samples: Sequence[int],
    due: list[int],
) -> int:
    """Answer what was not found without an event loop; return the exit code.

    `due` holds the samples that were found and are to be renewed once all is answered.
    """
    gc.enable()  # the entry point turned it off for the short life of a hit
    code = run_until_signal(_ask_and_close(arguments, settings, client, request, samples, due))
    if due and code == ExitCode.OK:
        from .behind import look_after

        look_after(client, request, due)
    return code


def run_until_signal(work: Coroutine[Any, Any, int]) -> int:
    """Run a coroutine; INT, TERM and HUP cancel it and give their exit code, a second one ends at once."""
    received: list[ExitCode] = []

    async def guarded() -> int:
        task = asyncio.ensure_future(work)

        def on_signal(code: ExitCode) -> None:
            if received:
                os._exit(code)
            received.append(code)
            task.cancel()

        loop = asyncio.get_running_loop()
        for name, code in _CODES.items():
            # Windows has no SIGHUP and its loops take no handlers: there Ctrl-C cancels as usual
            with contextlib.suppress(AttributeError, NotImplementedError, ValueError):
                loop.add_signal_handler(getattr(signal, name), on_signal, code)
        return await task

    try:
        with _runner(work) as runner:
            return runner.run(guarded())
    except asyncio.CancelledError:
        return received[0] if received else ExitCode.INTERRUPTED


def _runner(work: Coroutine[Any, Any, int]) -> asyncio.Runner:
    runner = asyncio.Runner()
    try:
        runner.get_loop()
    except OSError:  # too many open files; work that never began would complain when it is dropped
        work.close()
        raise
    return runner


async def _ask_and_close(
    arguments: RunArguments,
    settings: Settings,
    client: CachedOllamaClient,
    request: GenerateRequest,
    samples: Sequence[int],
    due: list[int],
) -> int:
    # the first that was missing; those after it were not looked for yet
    looked = can_look_at_once(arguments, client, request)
    async with contextlib.AsyncExitStack() as opened:
        opened.push_async_callback(client.close)
        for sample in samples:
            try:
                reply = await _ask(arguments, client, request, sample, looked)
            except OllamaUnavailableError as exc:
                client, request = await stand_in_after(
                    exc,
                    settings,
                    client,
                    request,
                    refresh=arguments.refresh,
                    quiet=arguments.quiet,
                )
                opened.push_async_callback(client.close)
                due.clear()  # they are of the model that is out of reach
                reply = await _ask(arguments, client, request, sample, looked=False)
            except ModelNotFoundError as exc:
                if not (is_terminal(sys.stderr) and is_terminal(sys.stdin)) or arguments.quiet:
                    raise
                await _pull(client, exc.model)
                reply = await _ask(arguments, client, request, sample, looked)
            looked = False
            if reply.renew:
                due.append(sample)
    return ExitCode.OK


async def _ask(
    arguments: RunArguments,
    client: CachedOllamaClient,
    request: GenerateRequest,
    sample: int,
    looked: bool,
) -> Reply:
    """Answer one request; `looked` says that it was looked up in vain already."""
    if arguments.cache_only:
        question = client.question(request, sample)
        found = await client.cache.look_up(question.key, question.model)
        if found is None:
            raise miss_error(question)
        outcome = "stale" if found.stale else "hit"
        reply = Reply(request, question, outcome, entry=found.entry)
        print_hit(arguments, reply)
        return reply
    await bring_weights(client, request.model, quiet=arguments.quiet)
    reply = await client.ask(
        request, refresh=arguments.refresh, sample=sample, looked=looked, renew_behind=False
    )
    if reply.entry is not None:
        print_hit(arguments, reply)
    else:
        await _show(arguments, reply)
    return reply


async def _show(arguments: RunArguments, reply: Reply) -> None:
    """Print an answer from its chunks; a full disk under standard output does not stop the asking."""
    writer = AnswerWriter(raw=arguments.raw)
    thoughts = _Thoughts(arguments)
    pieces: list[GenerateResponse] = []
    unwritten: OutputError | None = None
    started = time.monotonic()
    at_once = arguments.stream and not arguments.json_output
    async with contextlib.aclosing(reply.chunks()) as chunks:
        with _Spinner(arguments, short_model(reply.request.model)) as spinner:
            try:
                async for chunk in chunks:
                    pieces.append(chunk)
                    if at_once and unwritten is None and (chunk.response or chunk.thinking):
                        spinner.stop()
                        thoughts.show(chunk.thinking, ended=bool(chunk.response))
                        try:
                            writer.write(chunk.response)
                        except OutputError as exc:
                            unwritten = exc
            except TinyLLMError:
                spinner.stop()
                if pieces and not arguments.json_output and unwritten is None:
                    if not at_once:
                        writer.write("".join(chunk.response for chunk in pieces))
                    writer.finish()
                raise
    if unwritten is not None:
        raise unwritten
    if not at_once:
        whole = assemble(pieces)
        writer.write(
            answer_record(reply, whole, time.monotonic() - started)
            if arguments.json_output
            else whole.response
        )
    writer.finish()
    say_age(arguments, reply)


async def _pull(client: CachedOllamaClient, model: str) -> None:
    """Have the server fetch a model while a progress bar runs on the terminal."""
    from .render import pull_progress

    with pull_progress(model) as show:
        await client.pull_model(model, show)


class _Thoughts:
    """Shows a model's thinking on a terminal's standard error; it is not part of the answer."""

    def __init__(self, arguments: RunArguments) -> None:
        self._shown = not arguments.quiet and is_terminal(sys.stderr)
        self._open = False

    def show(self, text: str | None, *, ended: bool) -> None:
        """Show a piece of thinking, and close it off once the answer begins."""
        if not self._shown:
            return
        from .render import write_thinking

        if text:
            self._open = True
            write_thinking(text)
        if ended and self._open:
            self._open = False
            write_thinking("\n")


class _Spinner:
    """Turns on a terminal's standard error until the first token comes."""

    def __init__(self, arguments: RunArguments, model: str) -> None:
        self._status: contextlib.ExitStack | None = None
        if not arguments.quiet and not arguments.verbose and is_terminal(sys.stderr):
            from .render import spinner

            self._status = contextlib.ExitStack()
            self._status.enter_context(spinner(f"asking {model}"))

    def stop(self) -> None:
        """Clear the line; calling it again does nothing."""
        if self._status is not None:
            self._status.close()
            self._status = None

    def __enter__(self) -> _Spinner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
