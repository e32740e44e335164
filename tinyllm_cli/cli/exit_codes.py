"""Every exit code of the command line, and which error gives which."""

from __future__ import annotations

from enum import IntEnum

from ..errors import (
    CacheError,
    CacheMissError,
    ConfigError,
    OllamaError,
    OllamaProtocolError,
    OllamaStatusError,
    OutputError,
    TinyLLMError,
)

__all__ = ["ExitCode", "exit_code", "hint"]


class ExitCode(IntEnum):
    """What a script can rely on."""

    OK = 0
    BUG = 1  # ours
    USAGE = 2  # arguments or configuration
    UNREACHABLE = 3  # no Ollama, or it sent nothing in time
    REFUSED = 4  # Ollama said no: model missing, 4xx, 5xx, or it is not Ollama
    INCOMPLETE = 5  # the answer broke off; what arrived is on standard output
    CACHE = 6  # a cache command failed, or --require-cache and the store did
    CACHE_MISS = 7  # --cache-only and no answer stored
    OUTPUT = 8  # standard output cannot be written
    HANGUP = 129
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    TERMINATED = 143


# the most particular class first
_CODES: tuple[tuple[type[TinyLLMError], ExitCode], ...] = (
    (ConfigError, ExitCode.USAGE),
    (CacheMissError, ExitCode.CACHE_MISS),
    (CacheError, ExitCode.CACHE),
    (OllamaStatusError, ExitCode.REFUSED),
    (OllamaProtocolError, ExitCode.INCOMPLETE),
    (OllamaError, ExitCode.UNREACHABLE),
    (OutputError, ExitCode.OUTPUT),
)


def exit_code(exc: TinyLLMError) -> ExitCode:
    """Return the exit code of an error."""
    for kind, code in _CODES:
        if isinstance(exc, kind):
            return code
    return ExitCode.BUG


def hint(exc: TinyLLMError) -> str:
    """Return what to do about an error: its own hint, else what helps with all of its kind."""
    return exc.hint or _HINTS[exit_code(exc)]


_HINTS = {
    ExitCode.BUG: "please report it",
    ExitCode.USAGE: "see `tinyllm --help`",
    ExitCode.UNREACHABLE: "start it with `ollama serve`, or set OLLAMA_HOST",
    ExitCode.REFUSED: "the log of `ollama serve` may say more",
    ExitCode.INCOMPLETE: "nothing was stored; run it again",
    ExitCode.CACHE: "try again, or set TINYLLM_CACHE_DIR to another directory",
    ExitCode.CACHE_MISS: "run it once without --cache-only",
    ExitCode.OUTPUT: "check where standard output goes",
}
