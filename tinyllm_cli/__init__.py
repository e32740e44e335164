"""tinyllm: ask a local model once, answer from the cache ever after.

The names below are loaded on first use, so that `import tinyllm_cli` costs next to nothing and a
program pays only for what it uses.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .backends.base import CacheBackend
    from .backends.memory import InMemoryBackend
    from .backends.redis import RedisBackend
    from .cache import ResponseCache
    from .client import (
        CachedOllamaClient,
        create_cached_client,
        create_memory_cache,
        create_redis_cache,
        create_tiered_cache,
    )
    from .embedded.client import EmbeddedClient
    from .entry import CacheEntry
    from .errors import (
        BackendUnavailableError,
        CacheError,
        CacheMissError,
        ConfigError,
        CorruptEntryError,
        IncompleteAnswerError,
        ModelNotFoundError,
        OllamaError,
        OllamaProtocolError,
        OllamaStatusError,
        OllamaTimeoutError,
        OllamaUnavailableError,
        OutputError,
        SnapshotError,
        TinyLLMError,
        UnreadableEntryError,
    )
    from .key import generate_cache_key
    from .metrics import CacheMetrics
    from .ollama.client import OllamaClient
    from .request import GenerateRequest
    from .response import GenerateResponse

__all__ = [
    "BackendUnavailableError",
    "CacheBackend",
    "CacheEntry",
    "CacheError",
    "CacheMetrics",
    "CacheMissError",
    "CachedOllamaClient",
    "ConfigError",
    "CorruptEntryError",
    "EmbeddedClient",
    "GenerateRequest",
    "GenerateResponse",
    "InMemoryBackend",
    "IncompleteAnswerError",
    "ModelNotFoundError",
    "OllamaClient",
    "OllamaError",
    "OllamaProtocolError",
    "OllamaStatusError",
    "OllamaTimeoutError",
    "OllamaUnavailableError",
    "OutputError",
    "RedisBackend",
    "ResponseCache",
    "SnapshotError",
    "TinyLLMError",
    "UnreadableEntryError",
    "__version__",
    "create_cached_client",
    "create_memory_cache",
    "create_redis_cache",
    "create_tiered_cache",
    "generate_cache_key",
]

_HOMES = {
    "CacheBackend": "backends.base",
    "CacheEntry": "entry",
    "CacheMetrics": "metrics",
    "CachedOllamaClient": "client",
    "EmbeddedClient": "embedded.client",
    "GenerateRequest": "request",
    "GenerateResponse": "response",
    "InMemoryBackend": "backends.memory",
    "OllamaClient": "ollama.client",
    "RedisBackend": "backends.redis",
    "ResponseCache": "cache",
    "create_cached_client": "client",
    "create_memory_cache": "client",
    "create_redis_cache": "client",
    "create_tiered_cache": "client",
    "generate_cache_key": "key",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name, "errors" if name.endswith("Error") else "")
    if not home or name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
