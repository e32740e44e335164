"""From process to exit code: the one place where errors become a line, a hint and a number."""

from __future__ import annotations

import errno
import os
import sys

from ..errors import OllamaUnavailableError, OutputError, TinyLLMError
from .exit_codes import ExitCode, exit_code, hint
from .terminal import BrokenOutput, abandon_stdout, output_error, say

__all__ = ["report", "run_app"]

_NO_MORE_FILES = (errno.EMFILE, errno.ENFILE)


def run_app(arguments: list[str] | None = None) -> int:
    """Run the command line with `arguments` (default: those of the process); return the exit code."""
    try:
        if sys.stdout is None:
            raise OutputError("standard output is closed", hint="redirect it to /dev/null instead")
        code = _invoke(arguments)
        sys.stdout.flush()
        return code
    except TinyLLMError as exc:
        return report(exc)
    except (BrokenOutput, BrokenPipeError):
        abandon_stdout()
        return ExitCode.BROKEN_PIPE
    except OSError as exc:  # of a stream: files and sockets have their own errors by now
        abandon_stdout()
        return report(_too_many_files() if exc.errno in _NO_MORE_FILES else output_error(exc))
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as exc:  # noqa: BLE001 - the last border: a bug of ours is still one line
        return _bug(exc)


def _too_many_files() -> TinyLLMError:
    return OllamaUnavailableError(
        "too many open files", hint="raise the limit of open files: ulimit -n"
    )


def report(exc: TinyLLMError) -> int:
    """Say why, and what to do about it; return the exit code."""
    say(f"tinyllm: {exc}")
    say(f"hint: {hint(exc)}")
    return exit_code(exc)


def _invoke(arguments: list[str] | None) -> int:
    import typer

    from .app import app, app_for

    if arguments is None:
        arguments = sys.argv[1:]
    completing = "_TINYLLM_COMPLETE" in os.environ
    chosen = app if completing else app_for(arguments[0] if arguments else None)
    try:
        result = chosen(arguments, standalone_mode=False, prog_name="tinyllm")
    except SystemExit as exc:
        # Typer ends the process itself when a pipe breaks under its own output
        if isinstance(exc.__context__, BrokenPipeError):
            raise BrokenOutput from exc
        return exc.code if isinstance(exc.code, int) else ExitCode.BUG
    except typer.Abort:
        return ExitCode.INTERRUPTED
    except typer.TyperException as exc:
        return _usage(exc)
    return result if isinstance(result, int) else ExitCode.OK


def _usage(exc: Exception) -> int:
    message = exc.format_message() if hasattr(exc, "format_message") else str(exc)
    context = getattr(exc, "ctx", None)
    command = context.command_path if context else "tinyllm"
    say(f"tinyllm: {message}")
    if command == "tinyllm run" and hasattr(exc, "option_name"):
        say("hint: see `tinyllm run --help`; a prompt that begins with - goes after --")
    else:
        say(f"hint: see `{command} --help`")
    return ExitCode.USAGE


def _bug(exc: Exception) -> int:
    if os.environ.get("TINYLLM_LOG_LEVEL", "").lower() == "debug":
        import traceback

        for line in traceback.format_exception(exc):
            say(line.rstrip())
    say(f"tinyllm: a bug in tinyllm: {type(exc).__name__}: {exc}")
    say("hint: set TINYLLM_LOG_LEVEL=debug to see where, and please report it")
    return ExitCode.BUG
