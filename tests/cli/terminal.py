"""The command on a real terminal: a pseudo-terminal of its own, and the screen a person would see."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import selectors
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping
from types import TracebackType

import pyte

from tests.conftest import Tinyllm

__all__ = ["Terminal"]

_PATIENCE_S = 30.0


class Terminal:
    """Runs one command with its standard streams on a terminal of `size` (lines, columns).

    Streams named in `piped` are pipes instead; what comes out of them is in `pipes`. `output` is
    every byte the terminal was sent: nothing is added to it, newlines stay newlines. Leaving the
    `with` block ends the command.
    """

    def __init__(
        self,
        tinyllm: Tinyllm,
        *arguments: str,
        size: tuple[int, int] = (24, 80),
        term: str = "xterm-256color",
        environ: Mapping[str, str] | None = None,
        piped: tuple[str, ...] = (),
    ) -> None:
        self.output = b""
        self.pipes: dict[str, bytes] = {}
        self._size = size
        self._master, slave = pty.openpty()
        self._watched = selectors.DefaultSelector()
        self._watched.register(self._master, selectors.EVENT_READ, "")
        try:
            lines, columns = size
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
            modes = termios.tcgetattr(slave)
            modes[1] &= ~termios.OPOST
            termios.tcsetattr(slave, termios.TCSANOW, modes)
            tinyllm.environ.pop("COLUMNS", None)
            tinyllm.environ.pop("LINES", None)
            self.process = tinyllm.start(
                *arguments,
                environ={"TERM": term, **(environ or {})},
                stdin=subprocess.DEVNULL if "stdin" in piped else slave,
                stdout=subprocess.PIPE if "stdout" in piped else slave,
                stderr=subprocess.PIPE if "stderr" in piped else slave,
                preexec_fn=_take_terminal(slave),
            )
        finally:
            os.close(slave)
        for name, stream in (("stdout", self.process.stdout), ("stderr", self.process.stderr)):
            if stream is not None:
                self.pipes[name] = b""
                self._watched.register(stream, selectors.EVENT_READ, name)

    def press(self, text: bytes) -> None:
        """Press keys; b"\\x03" is Ctrl-C, b"\\x04" is Ctrl-D."""
        os.write(self._master, text)

    def wait_for(self, text: bytes) -> None:
        """Return once the terminal was sent `text`; AssertionError if it never is."""
        deadline = time.monotonic() + _PATIENCE_S
        while text not in self.output:
            going_on = self._read() and time.monotonic() < deadline
            assert going_on, f"{text!r} is not in {self.screen()}"

    def finish(self) -> int:
        """Read to the end and return the exit code."""
        while self._read():
            pass
        return self.process.wait(_PATIENCE_S)

    @property
    def text(self) -> str:
        return self.output.decode()

    def screen(self) -> list[str]:
        """Return the lines a person sees now, without those that are empty at the end."""
        screen = pyte.Screen(self._size[1], self._size[0])
        screen.set_mode(pyte.modes.LNM)
        pyte.ByteStream(screen).feed(self.output)
        return "\n".join(line.rstrip() for line in screen.display).rstrip().splitlines()

    def cursor_hidden(self) -> bool:
        """Say whether the command left the cursor invisible."""
        screen = pyte.Screen(self._size[1], self._size[0])
        pyte.ByteStream(screen).feed(self.output)
        return bool(screen.cursor.hidden)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(_PATIENCE_S)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        self._watched.close()
        os.close(self._master)

    def _read(self) -> bool:
        """Take in what has come, waiting for something; return False at the end of all streams."""
        if not self._watched.get_map():
            return False
        ready = self._watched.select(_PATIENCE_S)
        assert ready, f"nothing came for {_PATIENCE_S} s after {self.screen()}"
        for key, _ in ready:
            data = b""
            with contextlib.suppress(OSError):  # EIO: the last process has left the terminal
                data = os.read(key.fd, 65536)
            if not data:
                self._watched.unregister(key.fileobj)
            elif key.data:
                self.pipes[key.data] += data
            else:
                self.output += data
        return True


def _take_terminal(slave: int) -> Callable[[], None]:
    def take() -> None:
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)  # so that Ctrl-C reaches the command
        signal.signal(signal.SIGINT, signal.default_int_handler)

    return take
