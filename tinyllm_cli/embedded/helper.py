"""How the engine's helper process is started, talked to and ended. Needs an event loop, unlike the rest.

A thread per conversation reads the process, because the pipes of asyncio belong to one event loop
and a client may be used from several, one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ..errors import OllamaStatusError, OllamaTimeoutError
from ..ollama.refusal import clean

__all__ = ["Helper", "HelperProcess", "module_command"]

_TAIL = 2000  # bytes of standard error that are looked at for a reason
_GRACE_S = 2.0
_START = "import sys; sys.path.append(sys.argv[1]); from {} import main; main()"


def module_command(module: str) -> list[str]:
    """Return the command that runs `main` of a module of this package in a process of its own.

    -P, and the package's folder last: the current folder is the user's and holds what it will.
    """
    home = Path(__file__).resolve().parents[2]
    return [sys.executable, "-P", "-c", _START.format(module), str(home)]


class HelperProcess:
    """One process that is told things by a line of JSON and answers in lines of JSON."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str] | None = None) -> None:
        self._said: IO[bytes] | None = None
        with contextlib.suppress(OSError):  # a full disk must not keep the engine from starting
            self._said = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL if self._said is None else self._said,
                env=None if environ is None else dict(environ),
                # the terminal's Ctrl-C goes to its whole group; this one is ended by us
                start_new_session=True,
            )
        except BaseException:
            self._close_said()
            raise

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    async def converse(
        self, message: Mapping[str, Any], first: float, idle: float
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Send one message and yield what comes back until a line is `done` or `error`, or it ends.

        Raises TimeoutError after `first` seconds without a line, or `idle` between two.
        """
        loop = asyncio.get_running_loop()
        lines: asyncio.Queue[bytes] = asyncio.Queue()
        data = json.dumps(message).encode() + b"\n"

        def deliver(line: bytes) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                loop.call_soon_threadsafe(lines.put_nowait, line)

        threading.Thread(target=self._talk, args=(data, deliver), daemon=True).start()
        patience = first
        while True:
            # not wait_for: before Python 3.12 it loses a cancellation that meets a line
            async with asyncio.timeout(patience):
                line = await lines.get()
            if not line:
                return
            answer = json.loads(line)
            yield answer
            if "done" in answer or "error" in answer:
                return
            patience = idle

    def _talk(self, data: bytes, deliver: Any) -> None:
        told, heard = self._process.stdin, self._process.stdout
        assert told is not None and heard is not None
        with contextlib.suppress(OSError, ValueError):  # it has ended, or was ended by us
            told.write(data)
            told.flush()
        with contextlib.suppress(OSError, ValueError):
            for line in heard:
                deliver(line)
                if b'"done"' in line or b'"error"' in line:
                    return
        deliver(b"")

    def kill(self) -> None:
        """End the process now, and forget it."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()
        self._close_said()

    def last_words(self) -> tuple[str, str]:
        """Return how the process ended, and the last line it printed, made inert; "" for neither."""
        try:
            code = self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:  # it closed its output and lives on
            self._process.kill()
            code = self._process.wait()
        ended = f"exit code {code}"
        if code < 0:
            with contextlib.suppress(ValueError):
                ended = signal.Signals(-code).name
        printed = self.printed().strip().splitlines()
        return ended, clean(printed[-1]) if printed else ""

    def printed(self) -> str:
        """Return the end of what the process printed for people."""
        if self._said is None:
            return ""
        size = self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, size - _TAIL))
        return self._said.read().decode("utf-8", "replace")

    def _close_said(self) -> None:
        if self._said is not None:
            self._said.close()


class _Lane:
    """The process of one event loop, and whose turn it is."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.process: HelperProcess | None = None


class Helper:
    """Asks the engine in its process: one request after the other, and the process anew if it died.

    `first` and `idle` are the seconds it may be silent before the first piece and between two.
    """

    def __init__(self, command: Sequence[str], *, first: float, idle: float) -> None:
        self._command = command
        self._first = first
        self._idle = idle
        self._lanes: dict[asyncio.AbstractEventLoop, _Lane] = {}

    async def ask(self, message: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the pieces of an answer, the last one `done`.

        Raises OllamaStatusError for a refusal or a crash, OllamaTimeoutError for silence. Leaving
        early ends the process: nothing else stops the engine at once.
        """
        lane = self._lane()
        async with lane.turn:
            if lane.process is not None and not lane.process.running:
                self._end(lane)
            if lane.process is None:
                lane.process = HelperProcess(self._command)
            whole = False
            try:
                talk = lane.process.converse(message, self._first, self._idle)
                async with contextlib.aclosing(talk) as answers:
                    async for answer in answers:
                        if "error" in answer:
                            whole = True
                            raise _refusal(answer)
                        whole = "done" in answer
                        yield answer
                if not whole:
                    raise _crash(lane.process)
            except TimeoutError as exc:
                raise OllamaTimeoutError(
                    "the embedded engine did not answer in time",
                    hint="try again when the machine is less busy, or allow more time",
                ) from exc
            finally:
                if not whole:
                    self._end(lane)

    def close(self) -> None:
        """End every process."""
        for lane in self._lanes.values():
            self._end(lane)
        self._lanes.clear()

    def _lane(self) -> _Lane:
        loop = asyncio.get_running_loop()
        for other in [other for other in self._lanes if other.is_closed()]:
            self._end(self._lanes.pop(other))
        return self._lanes.setdefault(loop, _Lane())

    def _end(self, lane: _Lane) -> None:
        if lane.process is not None:
            lane.process.kill()
            lane.process = None


def _refusal(answer: Mapping[str, Any]) -> OllamaStatusError:
    text = clean(str(answer["error"]))
    status = answer["status"]
    if status < 500:
        text = f"the embedded engine refused: {text}"
    return OllamaStatusError(
        text, status_code=status, hint=answer.get("hint") or "ask something else, or use Ollama"
    )


def _crash(process: HelperProcess) -> OllamaStatusError:
    ended, printed = process.last_words()
    hint = "run it again; if it happens each time, use Ollama instead"
    if ended == "SIGILL":
        hint = "this processor seems to lack what the engine needs (AVX2); use Ollama instead"
    elif ended == "SIGKILL":
        hint = "was the memory full? run it again, or allow less with -o num_ctx=1024"
    reason = f"the embedded engine crashed ({ended})"
    return OllamaStatusError(
        f"{reason}: {printed}" if printed else reason, status_code=500, hint=hint
    )
