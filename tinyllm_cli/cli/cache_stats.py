"""`tinyllm cache-stats`: what the cache holds, how often it answered, what that saved."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from .. import config
from ..backends.inventory import StoreStats
from ..metrics import CacheMetrics
from ..quantities import format_duration, format_size
from . import session
from .exit_codes import ExitCode
from .terminal import AnswerWriter, json_line

__all__ = ["execute"]


def execute(flags: Mapping[str, Any], *, json_output: bool, reset: bool) -> int:
    """Print the store's figures; raises CacheError if it cannot be read."""
    settings = session.load_settings(flags)
    cache = session.open_cache(settings, session.StoreVoice(), strict=True)
    backend: Any = cache.backend
    try:
        stats: StoreStats = backend.stats_nowait()
        if reset:
            backend.reset_counters_nowait()
    finally:
        backend.close_nowait()
    if json_output:
        writer = AnswerWriter()
        writer.write(json_line(_record(stats, settings)))
        writer.finish()
    else:
        _print_tables(stats, settings)
    return ExitCode.OK


def _record(stats: StoreStats, settings: config.Settings) -> dict[str, Any]:
    local = settings.cache_backend != "redis"
    return {
        **stats.metrics.to_dict(),
        "entries": stats.entries,
        "bytes": stats.bytes if local else None,
        "max_entries": settings.cache_max_entries if local else None,
        "max_bytes": settings.cache_max_bytes if local else None,
        "oldest": stats.oldest,
        "newest": stats.newest,
        "backend": settings.cache_backend,
        "path": str(settings.snapshot_path()) if local else None,
        **_server_record(stats, settings),
        "models": {
            row.model: {
                "entries": row.entries if local else None,
                "bytes": row.bytes if local else None,
                **row.metrics.to_dict(),
            }
            for row in stats.models
            if row.model
        },
    }


def _server_record(stats: StoreStats, settings: config.Settings) -> dict[str, Any]:
    """Return what only a shared server has; a tiered store gives the team's figures as "shared"."""
    if stats.behind is not None:
        behind = stats.behind
        team = {**behind.metrics.to_dict(), "entries": behind.entries}
        return {"shared": {**team, **_server_record(behind, settings)}}
    if settings.cache_backend == "memory":
        return {}
    return {
        "redis": str(session.redis_address(settings)),
        "namespace": settings.namespace or "default",
        "entries_estimated": stats.estimated,
        "server_evictions": stats.server_evictions,
        "server_policy": stats.server_policy,
    }


def _print_tables(stats: StoreStats, settings: config.Settings) -> None:
    from .render import table_printer

    show = table_printer()
    total = stats.metrics
    show("Saved", ["", ""], _saved_rows(total))
    show("Requests", ["", ""], _request_rows(total))
    show("Store", ["", ""], _store_rows(stats, settings))
    if stats.behind is not None:
        team = stats.behind.metrics
        show("Shared", ["", ""], _server_rows(stats.behind, settings))
        show("Shared requests", ["", ""], _saved_rows(team) + _request_rows(team))
    rows = [
        [
            row.model,
            "not known" if settings.cache_backend == "redis" else f"{row.entries:,}",
            f"{row.metrics.hits:,}",
            f"{row.metrics.misses:,}",
            f"{row.metrics.hit_rate:.1%}",
            format_duration(row.metrics.time_saved_s),
            f"{row.metrics.tokens_saved:,}",
        ]
        for row in stats.models
        if row.model
    ]
    if rows:
        headers = ["Model", "Entries", "Hits", "Misses", "Hit rate", "Time saved", "Tokens saved"]
        show("Models", headers, rows)


def _saved_rows(total: CacheMetrics) -> list[list[str]]:
    return [
        ["Time saved", format_duration(total.time_saved_s)],
        ["Tokens saved", f"{total.tokens_saved:,}"],
    ]


def _request_rows(total: CacheMetrics) -> list[list[str]]:
    return [
        ["Requests", f"{total.total_requests:,}"],
        ["Hits", f"{total.hits:,}"],
        ["Misses", f"{total.misses:,}"],
        ["Hit rate", f"{total.hit_rate:.1%}"],
        ["Sets", f"{total.sets:,}"],
        ["Evictions", f"{total.evictions:,}"],
        ["Expirations", f"{total.expirations:,}"],
        ["Errors", f"{total.errors:,}"],
        ["Served stale", f"{total.stale:,}"],
        ["Coalesced", f"{total.coalesced:,}"],
        ["Refreshed", f"{total.refreshed:,}"],
        ["Bypassed", f"{total.bypassed:,}"],
    ]


def _store_rows(stats: StoreStats, settings: config.Settings) -> list[list[str]]:
    now = time.time()
    rows = [["Backend", settings.cache_backend]]
    if settings.cache_backend == "redis":
        rows += _server_rows(stats, settings)
    else:
        rows += [
            ["Entries", f"{stats.entries:,} of {settings.cache_max_entries:,}"],
            ["Size", f"{format_size(stats.bytes)} of {format_size(settings.cache_max_bytes)}"],
        ]
    for name, made in (("Oldest", stats.oldest), ("Newest", stats.newest)):
        if made is not None:
            rows.append([name, f"{format_duration(max(0.0, now - made))} ago"])
    if settings.cache_backend != "redis":
        rows.append(["File", str(settings.snapshot_path())])
    return rows


def _server_rows(stats: StoreStats, settings: config.Settings) -> list[list[str]]:
    rows = [
        ["Redis", str(session.redis_address(settings))],
        ["Namespace", settings.namespace or "default"],
        ["Entries", f"about {stats.entries:,}" if stats.estimated else f"{stats.entries:,}"],
    ]
    if stats.server_evictions is not None:
        policy = f", {stats.server_policy}" if stats.server_policy else ""
        rows.append(["Evicted by the server", f"{stats.server_evictions:,} (all its keys{policy})"])
    return rows
