"""What every command opens: settings, the store, and one voice for its failures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .. import config
from ..backends.base import CacheBackend
from ..backends.digests import DigestStore
from ..backends.memory import InMemoryBackend
from ..cache import ResponseCache
from ..client import CachedOllamaClient
from ..errors import CacheError, ConfigError
from ..ollama.client import OllamaClient
from ..policy import Freshness
from .terminal import say

if TYPE_CHECKING:
    from ..backends.redis_blocking import BlockingRedisBackend
    from ..backends.redis_url import RedisAddress
    from ..embedded.client import EmbeddedClient

__all__ = [
    "StoreVoice",
    "cached",
    "embedded_upstream",
    "load_settings",
    "open_cache",
    "open_client",
    "redis_address",
    "shared_backend",
    "start_logging",
]


class StoreVoice:
    """Tells the user of the store's trouble once per process, in one line, unless quiet."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._silent = quiet

    def fault(self, exc: CacheError) -> None:
        """Say that the store failed and the command goes on."""
        self.notice(f"{exc}; continuing without it")

    def notice(self, line: str) -> None:
        """Say one line about the store."""
        if not self._silent:
            say(f"tinyllm: cache: {line}")
        self._silent = True


def load_settings(flags: Mapping[str, Any], *, quiet: bool = False) -> config.Settings:
    """Return the settings for the given flags; unknown config keys are told in a line each."""
    silent: Callable[[str], None] = lambda line: None  # noqa: E731
    return config.load(flags, warn=silent if quiet else (lambda line: say(f"tinyllm: {line}")))


def open_cache(
    settings: config.Settings, voice: StoreVoice, *, strict: bool = False
) -> ResponseCache:
    """Return the cache the settings name; nothing is opened before its first use."""
    local = InMemoryBackend(
        settings.cache_max_entries,
        max_bytes=settings.cache_max_bytes,
        max_entry_bytes=settings.cache_max_entry_bytes,
        snapshot=settings.snapshot_path(),
        keep_requests=settings.keep_requests,
        eviction=settings.cache_eviction,
        notice=voice.notice,
    )
    backend: CacheBackend = local
    digests: DigestStore | None = None
    if settings.cache_backend != "memory":
        # which digest a model has is remembered here, so that a hit costs Redis one command
        backend, digests = _open_shared(settings, local, voice), local
    return ResponseCache(
        backend,
        settings.cache_ttl,
        strict=strict,
        on_fault=voice.fault,
        digests=digests,
        freshness=Freshness(
            settings.stale_while_revalidate, settings.stale_if_error, settings.early_renewal_beta
        ),
    )


def open_client(settings: config.Settings, cache: ResponseCache) -> CachedOllamaClient:
    """Return the cached client the settings name; it connects on its first request."""
    if settings.engine == "embedded":
        return cached(settings, cache, embedded_upstream(settings))
    upstream = OllamaClient(
        settings.host,
        timeout_ms=_milliseconds(settings, "idle_timeout"),
        first_byte_timeout_ms=_milliseconds(settings, "first_byte_timeout"),
    )
    return cached(settings, cache, upstream)


def embedded_upstream(settings: config.Settings) -> EmbeddedClient:
    """Return the client of the embedded model; it starts its engine on its first request."""
    from ..embedded.client import EmbeddedClient

    return EmbeddedClient(
        settings.embedded_model,
        timeout_ms=_milliseconds(settings, "idle_timeout"),
        data_dir=settings.data_dir,
        first_byte_timeout_ms=_milliseconds(settings, "first_byte_timeout"),
    )


def cached(settings: config.Settings, cache: ResponseCache, upstream: Any) -> CachedOllamaClient:
    """Return a client that asks `upstream` and caches as the settings say."""
    return CachedOllamaClient(
        upstream,
        cache,
        settings.cache,
        namespace=settings.namespace,
        cache_cloud=settings.cache_cloud,
        cache_when="deterministic" if settings.cache_when == "deterministic" else "all",
        coherence="strict" if settings.coherence == "strict" else "lazy",
        digest_max_age=settings.digest_max_age,
    )


def start_logging(level: str) -> None:
    """Send log lines of `level` and above to standard error."""
    import logging

    class Voice(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(f"tinyllm: {record.levelname} {record.getMessage()}")

    logger = logging.getLogger("tinyllm_cli")
    logger.addHandler(Voice())
    logger.setLevel(level.upper())


def redis_address(settings: config.Settings) -> RedisAddress:
    """Return where Redis is by all settings together; raises ConfigError if they contradict each other."""
    from ..backends.redis_url import Endpoint, parse_redis_url

    address = parse_redis_url(settings.redis_url)
    if settings.redis_host is not None or settings.redis_port is not None:
        host, port = address.endpoints[0]
        if address.kind != "single" or not port:
            name = "redis_port" if settings.redis_host is None else "redis_host"
            raise ConfigError(
                f"{settings.origins[name]} names one server, the Redis URL something else",
                hint="give the whole address with --redis-url",
            )
        host, port = settings.redis_host or host, settings.redis_port or port
        address = address._replace(endpoints=(Endpoint(host, port),))
    if settings.redis_password is not None and address.password is None:
        address = address._replace(password=settings.redis_password)
    files = (settings.redis_ca_file, settings.redis_cert_file, settings.redis_key_file)
    return address.with_tls_files(*(None if path is None else str(path) for path in files))


def shared_backend(settings: config.Settings) -> BlockingRedisBackend:
    """Return the Redis the settings name; it connects on its first use."""
    from ..backends.redis_blocking import BlockingRedisBackend
    from ..backends.redis_vault import Vault

    return BlockingRedisBackend(
        redis_address(settings),
        # the question goes to the team only if the user says so; kept in one's own file by default
        Vault(
            namespace=settings.namespace,
            secret=settings.redis_secret,
            keep_requests="keep_requests" in settings.origins and settings.keep_requests,
        ),
        max_entry_bytes=settings.cache_max_entry_bytes,
        timeout=_seconds(settings, "redis_timeout"),
        grace=max(settings.stale_while_revalidate, settings.stale_if_error),
    )


def _open_shared(
    settings: config.Settings, local: InMemoryBackend, voice: StoreVoice
) -> CacheBackend:
    shared = shared_backend(settings)
    if settings.cache_backend == "redis":
        return shared
    from ..backends.tiered_blocking import BlockingTieredBackend

    return BlockingTieredBackend(local, shared, on_fault=voice.fault)


def _seconds(settings: config.Settings, name: str) -> float:
    return _milliseconds(settings, name) / 1000


def _milliseconds(settings: config.Settings, name: str) -> int:
    milliseconds = round(float(getattr(settings, name)) * 1000)
    if milliseconds < 1:
        raise ConfigError(
            f"{settings.origins[name]}: a timeout of 0 makes no sense", hint="write 30s, 10m, 12h"
        )
    return milliseconds
