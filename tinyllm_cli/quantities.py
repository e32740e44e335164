"""How people write durations and sizes: `90`, `30s`, `10m`, `12h`, `7d`, `never`; `4096`, `64MiB`."""

from __future__ import annotations

import re

from .errors import ConfigError
from .policy import MAX_TTL_S, checked_ttl

__all__ = ["format_duration", "format_size", "parse_duration", "parse_size", "parse_ttl"]

_NUMBER_AND_UNIT = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", re.ASCII)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_BYTES = {
    "": 1, "b": 1,
    "k": 2**10, "kb": 10**3, "kib": 2**10,
    "m": 2**20, "mb": 10**6, "mib": 2**20,
    "g": 2**30, "gb": 10**9, "gib": 2**30,
}  # fmt: skip
_MAX_BYTES = 2**62


def parse_ttl(text: str) -> float | None:
    """Return a TTL in seconds; `0` and `never` mean None, never expires. Raises ConfigError."""
    if text.strip().lower() in ("never", "0"):
        return None
    return checked_ttl(parse_duration(text))


def parse_duration(text: str) -> float:
    """Return seconds from `90`, `1.5h`, `7d`; raises ConfigError for anything else."""
    found = _NUMBER_AND_UNIT.fullmatch(text.strip())
    if found is None or found[2].lower() not in _SECONDS:
        raise ConfigError(
            f"{_shown(text)} is not a duration",
            hint="write seconds, or 30s, 10m, 12h, 7d; `never` (or 0) for a TTL without end",
        )
    seconds = float(found[1]) * _SECONDS[found[2].lower()]
    if seconds > MAX_TTL_S:
        raise ConfigError(f"a duration of {_shown(text)} makes no sense")
    return int(seconds) if seconds.is_integer() else seconds


def parse_size(text: str) -> int:
    """Return bytes from `4096`, `64MiB`, `1.5GB`; raises ConfigError for anything else or below 1."""
    found = _NUMBER_AND_UNIT.fullmatch(text.strip())
    if found is None or found[2].lower() not in _BYTES:
        raise ConfigError(f"{_shown(text)} is not a size", hint="write bytes, or 64MiB, 1GiB")
    size = float(found[1]) * _BYTES[found[2].lower()]
    if not 1 <= size <= _MAX_BYTES:
        raise ConfigError(f"a size of {_shown(text)} makes no sense", hint="give at least 1 byte")
    return int(size)


def format_duration(seconds: float) -> str:
    """Return a duration in one readable unit: `0.4 s`, `3 min`, `2 h`, `5 days`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    seconds = max(seconds, 10)
    for unit, length, limit in (("s", 1, 60), ("min", 60, 3600), ("h", 3600, 86_400)):
        if seconds < limit:
            return f"{int(seconds // length)} {unit}"
    days = int(seconds // 86_400)
    return f"{days} day" if days == 1 else f"{days} days"


def format_size(size: float) -> str:
    """Return a size in one readable binary unit: `512 B`, `1.4 KiB`, `256.0 MiB`."""
    if size < 1024:
        return f"{int(size)} B"
    for unit in ("KiB", "MiB"):
        size /= 1024
        if size < 1023.95:  # above, it would read 1024.0
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} GiB"


def _shown(text: str) -> str:
    """Quote what the user wrote, cut to a line's share and free of control characters."""
    return ascii(text if len(text) <= 40 else text[:40] + "...")
