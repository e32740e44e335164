"""Where the prompt comes from: files, piped standard input and the argument, joined in that order."""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Sequence
from io import BufferedReader
from typing import cast

from ..errors import ConfigError
from .terminal import is_terminal, say

__all__ = ["MAX_PROMPT_BYTES", "read_bytes", "read_prompt"]

MAX_PROMPT_BYTES = 64 * 2**20
_BLOCK = 1 << 20
_SILENCE_S = 3.0  # then the user is told what the wait is for


def read_prompt(argument: str | None, files: Sequence[str], *, stdin: bool, quiet: bool) -> str:
    """Return the prompt: the files in order, then piped input, then the argument, blank lines between.

    `-` among the files is standard input. One newline at the end of each file is dropped, so that
    `echo hello |` asks the same as `hello`. Raises ConfigError for an empty prompt, bytes that are
    not UTF-8 and more than MAX_PROMPT_BYTES.
    """
    parts = [_read_stdin(quiet) if name == "-" else _read_file(name) for name in files]
    if stdin and "-" not in files and _is_piped():
        parts.append(_read_stdin(quiet))
    if argument is not None:
        parts.append(_checked_argument(argument))
    prompt = "\n\n".join(part for part in parts if part)
    if not prompt.strip():
        raise ConfigError("the prompt is empty", hint='ask something: tinyllm run "What is AI?"')
    if len(prompt) > MAX_PROMPT_BYTES:
        raise ConfigError(f"the prompt is larger than {MAX_PROMPT_BYTES >> 20} MiB")
    return prompt


def read_bytes(name: str | os.PathLike[str], what: str) -> bytes:
    """Return a file's bytes; ConfigError names what it was for if that cannot be."""
    try:
        with open(name, "rb") as file:
            return _read_all(file, what)
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc)
        raise ConfigError(f"cannot read {what} {os.fspath(name)}: {reason}") from exc


def _read_file(name: str) -> str:
    return _decoded(read_bytes(name, "the file"), f"the file {name}")


def _read_stdin(quiet: bool) -> str:
    if sys.stdin is None:
        return ""
    if not quiet:
        _explain_silence()
    try:
        data = _read_all(cast(BufferedReader, sys.stdin.buffer), "standard input")
    except OSError as exc:
        raise ConfigError(f"cannot read standard input: {exc.strerror or exc}") from exc
    return _decoded(data, "standard input")


def _read_all(stream: BufferedReader, what: str) -> bytes:
    blocks: list[bytes] = []
    total = 0
    # read1: a terminal says only once that its input has ended, and read would ask again
    while block := stream.read1(_BLOCK):
        total += len(block)
        if total > MAX_PROMPT_BYTES:
            raise ConfigError(f"{what} is larger than {MAX_PROMPT_BYTES >> 20} MiB")
        blocks.append(block)
    return b"".join(blocks)


def _is_piped() -> bool:
    """Say whether standard input carries something for us: a pipe or a file, not a terminal.

    A socket or device that a parent process left open is nobody's prompt; reading it could wait
    for ever. `-f -` reads it all the same.
    """
    if sys.stdin is None or is_terminal(sys.stdin):
        return False
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _explain_silence() -> None:
    """Say what is being waited for if nothing arrives; a pipe that never closes looks like a hang."""
    try:
        ready, _, _ = select.select([sys.stdin], [], [], _SILENCE_S)
    except (OSError, ValueError):  # Windows selects on sockets only
        return
    if not ready:
        say("tinyllm: reading standard input; press Ctrl-D to end it, or use --no-stdin")


def _decoded(data: bytes, what: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise ConfigError(
            f"{what} is not UTF-8 (byte {exc.start + 1})", hint="convert it with `iconv -t UTF-8`"
        ) from exc
    return text.removesuffix("\n").removesuffix("\r")


def _checked_argument(argument: str) -> str:
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError as exc:
        # bytes of argv that are not UTF-8 arrive as lone surrogates
        raise ConfigError(
            f"the prompt is not UTF-8 (character {exc.start + 1})",
            hint="check the terminal's encoding, or use a file: tinyllm run -f FILE",
        ) from exc
    return argument
