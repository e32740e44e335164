"""Where entries can live; the only place that knows which backends there are."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError
from .base import CacheBackend

__all__ = ["open_backend"]


def open_backend(kind: str, **options: Any) -> CacheBackend:
    """Return a backend by name, "memory", "redis" or "tiered", importing only that one.

    `options` are its constructor's. Raises ConfigError (a ValueError) for another name.
    """
    if kind == "memory":
        from .memory import InMemoryBackend

        return InMemoryBackend(**options)
    if kind == "redis":
        from .redis import RedisBackend

        return RedisBackend(**options)
    if kind == "tiered":
        from .tiered import TieredBackend

        return TieredBackend(**options)
    raise ConfigError(f"Invalid cache backend: {kind!r}", hint='use "memory", "redis" or "tiered"')
