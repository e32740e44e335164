"""`tinyllm cache-clear`: remove stored answers, all or those that are meant, after asking."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..backends.inventory import Clearance, Filter
from ..backends.memory import InMemoryBackend
from ..errors import ConfigError
from ..model_name import short_model
from ..quantities import format_size, parse_duration
from . import session
from .exit_codes import ExitCode
from .terminal import AnswerWriter, confirmed, is_terminal

__all__ = ["ClearArguments", "execute"]

_HEX = frozenset("0123456789abcdef")


class ClearArguments(NamedTuple):
    """What stood on the command line."""

    model: str | None = None
    older_than: str | None = None
    expired: bool = False
    key: str | None = None
    dry_run: bool = False
    yes: bool = False


def execute(flags: Mapping[str, Any], arguments: ClearArguments) -> int:
    """Remove what is meant and say how much it was; raises CacheError if the store fails."""
    settings = session.load_settings(flags)
    which = _filter(arguments)
    cache = session.open_cache(settings, session.StoreVoice(), strict=True)
    clear = _clearer(cache.backend)
    if arguments.dry_run:
        _tell("would remove", clear(which, True))
        return ExitCode.OK
    if not arguments.yes:
        meant = clear(which, True)
        answer = confirmed(f"Remove {_amount(meant)}?")
        if answer is None:
            raise ConfigError(
                "nobody answered, so nothing was removed", hint="pass --yes to not be asked"
            )
        if not answer:
            _write("nothing removed")
            return ExitCode.OK
    _tell("removed", clear(which, False))
    return ExitCode.OK


def _clearer(backend: Any) -> Callable[[Filter, bool], Clearance]:
    if isinstance(backend, InMemoryBackend):

        def clear_file(which: Filter, dry_run: bool) -> Clearance:
            cleared = backend.clear_nowait(which, dry_run)
            backend.close_nowait()
            return cleared

        return clear_file

    def clear_shared(which: Filter, dry_run: bool) -> Clearance:
        """Walk the server's keys, with a bar on a terminal: that may take a while."""
        try:
            if not is_terminal(sys.stderr):
                return found(backend.clear_nowait(which, dry_run))
            from .render import key_progress

            with key_progress("counting" if dry_run else "removing") as show:
                return found(backend.clear_nowait(which, dry_run, show))
        finally:
            backend.close_nowait()

    def found(cleared: Any) -> Clearance:
        assert isinstance(cleared, Clearance)
        return cleared

    return clear_shared


def _filter(arguments: ClearArguments) -> Filter:
    now = time.time()
    before = None
    if arguments.older_than is not None:
        try:
            before = now - parse_duration(arguments.older_than)
        except ConfigError as exc:
            raise ConfigError(f"--older-than: {exc}", hint="write 30s, 12h, 7d") from exc
    key = None if arguments.key is None else arguments.key.strip().lower()
    if key is not None and not (key and len(key) <= 64 and _HEX.issuperset(key)):
        raise ConfigError(
            f"--key {ascii(arguments.key)[:60]} is not the beginning of a key",
            hint="keys are hex digits, as `tinyllm run --json` shows them",
        )
    return Filter(
        model=None if arguments.model is None else short_model(arguments.model),
        created_before=before,
        expired_at=now if arguments.expired else None,
        key_prefix=key,
    )


def _amount(cleared: Clearance) -> str:
    noun = "entry" if cleared.entries == 1 else "entries"
    return f"{cleared.entries:,} {noun} ({format_size(cleared.bytes)})"


def _tell(verb: str, cleared: Clearance) -> None:
    _write(f"{verb} {_amount(cleared)}")


def _write(line: str) -> None:
    writer = AnswerWriter()
    writer.write(line)
    writer.finish()
