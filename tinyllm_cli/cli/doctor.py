"""`tinyllm doctor`: does this installation work, and if not, what to do about it?

Every check says ok, warning or problem in one line. Nothing is changed without --fix, nothing is
created by asking, and every wait is short.
"""

from __future__ import annotations

import os
import platform
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from .. import config
from .._version import __version__
from ..backends.redis_blocking import BlockingRedisBackend
from ..backends.snapshot import Snapshot
from ..backends.snapshot_check import Inspection, inspect
from ..errors import CacheError, ConfigError, SnapshotError
from ..model_name import is_cloud_model
from ..ollama.client import OllamaClient
from ..quantities import format_size
from . import session
from .exit_codes import ExitCode, exit_code, hint
from .terminal import AnswerWriter, is_terminal, json_line

__all__ = ["execute"]

_SECRETS = ("redis_password", "redis_secret")
_PACKAGES = ("typer", "rich", "httpx", "redis", "pydantic", "platformdirs")
_SLOW_REDIS_S = 0.1


class Finding(NamedTuple):
    """One check's result: "ok", "warning" or "problem"; `code` is the exit code of a problem."""

    check: str
    state: str
    text: str
    hint: str | None = None
    code: ExitCode = ExitCode.OK


def execute(flags: Mapping[str, Any], *, fix: bool, json_output: bool) -> int:
    """Print what was found; return 0 if there is no problem, else the exit code of the first one."""
    findings: list[Finding] = []
    show = _printer() if not json_output else (lambda finding: None)
    settings: config.Settings | None = None
    for finding in _versions():
        findings.append(finding)
        show(finding)
    unknown: list[str] = []
    try:
        settings = config.load(flags, warn=unknown.append)
    except ConfigError as exc:
        found: Iterator[Finding] = iter([_problem("settings", exc)])
    else:
        found = _checks(settings, unknown, fix=fix)
    for finding in found:
        findings.append(finding)
        show(finding)
    code = next((one.code for one in findings if one.state == "problem"), ExitCode.OK)
    if json_output:
        writer = AnswerWriter()
        writer.write(json_line(_record(findings, settings)))
        writer.finish()
    return code


def _checks(settings: config.Settings, unknown: list[str], *, fix: bool) -> Iterator[Finding]:
    yield from _settings(settings, unknown)
    if settings.cache_backend != "redis":
        yield from _snapshot(settings.snapshot_path().absolute(), fix=fix)
    if settings.cache_backend != "memory":
        yield from _redis(settings)
    if not settings.cache:
        yield Finding("cache", "warning", f"off, by {settings.origins['cache']}")
    from asyncio import run

    yield from run(_engine(settings))


# --- what is installed, and what is set


def _versions() -> Iterator[Finding]:
    python = f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    yield Finding("versions", "ok", f"tinyllm {__version__}, {python}, {_packages()}")


def _packages() -> str:
    found = []
    for name in (*_PACKAGES, "xllamacpp", "hiredis"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def _settings(settings: config.Settings, unknown: list[str]) -> Iterator[Finding]:
    for line in unknown:
        yield Finding("settings", "warning", line, "see README.md for the names of the settings")
    if not settings.origins:
        yield Finding("settings", "ok", "all at their defaults")
    for name, origin in settings.origins.items():
        yield Finding("settings", "ok", f"{name} = {_shown(settings, name)} ({origin})")


def _shown(settings: config.Settings, name: str) -> str:
    if name in _SECRETS:
        return "***"
    if name == "redis_url":
        from ..backends.redis_url import parse_redis_url

        return str(parse_redis_url(settings.redis_url))  # without the login
    if name == "host":
        return OllamaClient(settings.host).host
    return str(getattr(settings, name))


# --- the snapshot


def _snapshot(path: Path, *, fix: bool) -> Iterator[Finding]:
    if fix and hasattr(os, "geteuid"):
        yield from _mend_modes(path)
    try:
        found = _inspected(path)
    except SnapshotError as exc:
        yield _problem("snapshot", exc)
        return
    except OSError as exc:
        yield _problem("snapshot", SnapshotError(f"cannot look at {path}: {exc.strerror}"))
        return
    if (found.damage or found.bad) and fix:
        yield from _mend(path, found)
        found = _inspected(path)
    for one in found.open_to_others:
        yield Finding(
            "snapshot", "warning", f"{one} can be read by other users", "run `tinyllm doctor --fix`"
        )
    if found.set_aside:
        names = ", ".join(one.name for one in found.set_aside)
        yield Finding(
            "snapshot",
            "warning",
            f"kept damaged files: {names}",
            "`tinyllm cache-clear` removes them with everything else",
        )
    mend = "run `tinyllm doctor --fix`; what is lost is asked anew"
    if found.damage is not None:
        text = f"{path} is damaged ({found.damage})"
        yield Finding("snapshot", "problem", text, mend, ExitCode.CACHE)
    elif found.bad:
        text = f"{len(found.bad):,} of {found.entries:,} entries do not match their digests"
        yield Finding("snapshot", "problem", text, mend, ExitCode.CACHE)
    elif not found.exists:
        yield Finding("snapshot", "ok", f"none yet; it will be {path}")
    else:
        other = f", {found.foreign:,} of another release" if found.foreign else ""
        noun = "entry" if found.entries == 1 else "entries"
        size = f"{found.entries:,} sound {noun} ({format_size(found.bytes)}){other}"
        yield Finding("snapshot", "ok", f"{size} in {path}")


def _inspected(path: Path) -> Inspection:
    with _progress() as progress:
        return inspect(path, progress)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    if not is_terminal(sys.stderr):
        yield None
        return
    from .render import key_progress

    with key_progress("checking entries") as show:
        yield show


def _mend_modes(path: Path) -> Iterator[Finding]:
    """Take from others what they may do with the directory and the file, where they are ours."""
    for one, mode in ((path.parent, 0o700), (path, 0o600)):
        try:
            status = one.lstat()
            if status.st_uid == os.geteuid() and status.st_mode & 0o077 and not one.is_symlink():
                one.chmod(mode)  # by path: opening the file would drop another's locks
                yield Finding("snapshot", "ok", f"mended: {one} is now {mode:o}")
        except FileNotFoundError:
            continue
        except OSError as exc:
            yield _problem("snapshot", SnapshotError(f"cannot mend {one}: {exc.strerror}"))


def _mend(path: Path, found: Inspection) -> Iterator[Finding]:
    lines: list[str] = []
    snapshot = Snapshot(path, max_entries=sys.maxsize, max_bytes=sys.maxsize, notice=lines.append)
    try:
        if found.damage is not None:
            snapshot.heal()
        for key in found.bad:
            snapshot.delete(key)
    except CacheError as exc:
        yield _problem("snapshot", exc)
    finally:
        snapshot.close()
    if found.bad:
        lines.append(f"removed {len(found.bad):,} entries that did not match their digests")
    for line in lines:
        yield Finding("snapshot", "ok", f"mended: {line}")


# --- Redis


def _redis(settings: config.Settings) -> Iterator[Finding]:
    try:
        address = session.redis_address(settings)
        backend = session.shared_backend(settings)
    except ConfigError as exc:
        yield _problem("redis", exc)
        return
    try:
        yield from _examined(backend, str(address))
    except CacheError as exc:
        yield _problem("redis", exc)
    finally:
        backend.hang_up()


def _examined(backend: BlockingRedisBackend, where: str) -> Iterator[Finding]:
    backend.get_nowait("0" * 64)  # the first one connects
    started = time.monotonic()
    backend.get_nowait("0" * 64)
    seconds = time.monotonic() - started
    found = backend.examine_nowait()
    latency = f"a look-up takes {seconds * 1000:.1f} ms"
    if found.denied:
        text = f"{where}: the user lacks the rights to {', '.join(found.denied)}"
        needed = " and ".join(found.lacking)
        vital = found.lacking != ("cache-stats and cache-clear",)
        yield Finding(
            "redis",
            "problem" if vital else "warning",
            f"{text}, for {needed}",
            "docs/redis.md has the ACL line",
            ExitCode.CACHE if vital else ExitCode.OK,
        )
    state = "ok" if seconds < _SLOW_REDIS_S else "warning"
    yield Finding("redis", state, f"{found.version or 'a server'} at {where}, {latency}")


# --- who answers


async def _engine(settings: config.Settings) -> list[Finding]:
    if settings.engine == "embedded":
        return await _embedded(settings)
    client = OllamaClient(settings.host)
    try:
        started = time.monotonic()
        if not await client.check_health():
            return await _no_ollama(settings, client.host)
        seconds = time.monotonic() - started
        release = await client.version()
        text = (
            f"{release or 'of an unknown version'} at {client.host}, {seconds * 1000:.0f} ms away"
        )
        return [Finding("ollama", "ok", text), await _model(client, settings.model)]
    finally:
        await client.close()


async def _no_ollama(settings: config.Settings, host: str) -> list[Finding]:
    text = f"none answers at {host}"
    theirs = {"model", "host"} & settings.origins.keys()
    if settings.engine == "auto" and not theirs and find_spec("xllamacpp") is not None:
        note = "a tiny embedded model answers instead"
        advice = "start it with `ollama serve`"
        return [
            Finding("ollama", "warning", f"{text}; {note}", advice),
            *await _embedded(settings),
        ]
    advice = "start it with `ollama serve`, or set OLLAMA_HOST"
    return [Finding("ollama", "problem", text, advice, ExitCode.UNREACHABLE)]


async def _model(client: OllamaClient, model: str) -> Finding:
    if is_cloud_model(model):
        return Finding("model", "warning", f"{model} runs elsewhere; its answers are not cached")
    digest = await client.model_digest(model)
    if digest is None:
        advice = f"fetch it with `tinyllm pull {model}`"
        return Finding("model", "problem", f"{model} is not there", advice, ExitCode.REFUSED)
    return Finding("model", "ok", f"{model}, digest {digest[:12]}")


async def _embedded(settings: config.Settings) -> list[Finding]:
    if find_spec("xllamacpp") is None:
        advice = "pip install 'tinyllm-cli[embedded]'"
        text = "the embedded engine is not installed"
        return [Finding("embedded", "problem", text, advice, ExitCode.UNREACHABLE)]
    client = session.embedded_upstream(settings)
    model = client.default_model
    missing = await client.missing(model)
    if missing is None:
        return [Finding("embedded", "ok", f"{model}, its weights are here")]
    advice = f"they are fetched when first asked, or with `tinyllm pull {model}`"
    return [Finding("embedded", "warning", f"{model}: its weights are {missing}", advice)]


# --- what is shown


def _problem(check: str, exc: ConfigError | CacheError) -> Finding:
    return Finding(check, "problem", str(exc), hint(exc), exit_code(exc))


def _printer() -> Callable[[Finding], None]:
    if not is_terminal(sys.stdout):
        writer = AnswerWriter()

        def plain(finding: Finding) -> None:
            writer.write(f"{finding.state:<8} {finding.check:<9} {finding.text}\n")
            if finding.hint and finding.state != "ok":
                writer.write(f"{'':<18} hint: {finding.hint}\n")

        return plain
    from .render import finding_printer

    show = finding_printer()

    def coloured(finding: Finding) -> None:
        show(finding.state, finding.check, finding.text)
        if finding.hint and finding.state != "ok":
            show("", "", f"hint: {finding.hint}")

    return coloured


def _record(findings: list[Finding], settings: config.Settings | None) -> dict[str, Any]:
    return {
        "well": all(one.state != "problem" for one in findings),
        "checks": [
            {"check": one.check, "state": one.state, "text": one.text, "hint": one.hint}
            for one in findings
        ],
        "settings": {}
        if settings is None
        else {
            name: {"value": _shown(settings, name), "origin": origin}
            for name, origin in settings.origins.items()
        },
    }
