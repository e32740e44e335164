"""The team's counters: added up in this process, sent as increments, kept in one hash."""

from __future__ import annotations

import threading
from typing import Any

from ..metrics import CacheMetrics
from .resp import Command, Reply

__all__ = ["Counters", "read_counters"]

# Seconds are sent as whole microseconds: sums of integers do not drift, whoever adds them up.
_FIELDS = {
    "time_saved_us" if name == "time_saved_s" else name: name for name in CacheMetrics.__slots__
}
_FLUSH_EVERY = 256
_MAX_MODELS = 1000


class Counters:
    """Counts not yet sent; safe from any thread."""

    def __init__(self, name: bytes) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._events: list[tuple[str, CacheMetrics]] = []
        self._pending: dict[str, CacheMetrics] = {}

    def add(self, model: str, metrics: CacheMetrics) -> bool:
        """Add counters of a model; return whether enough has gathered to be sent."""
        self._events.append((model, metrics))  # summed up later: this is paid for by every hit
        if len(self._events) < _FLUSH_EVERY:
            return False
        with self._lock:
            self._sum_up()
        return True

    def any(self) -> bool:
        """Say whether there is something to send."""
        return bool(self._events or self._pending)

    def take(self) -> dict[str, CacheMetrics]:
        """Return what has gathered and begin anew; what cannot be sent goes back by `put_back`."""
        with self._lock:
            self._sum_up()
            pending, self._pending = self._pending, {}
        return pending

    def put_back(self, counts: dict[str, CacheMetrics]) -> None:
        """Keep counters that could not be sent for the next time."""
        with self._lock:
            self._events.extend(counts.items())
            self._sum_up()

    def _sum_up(self) -> None:
        events, self._events = self._events, []
        for model, metrics in events:
            if model not in self._pending and len(self._pending) >= _MAX_MODELS:
                model = ""
            self._pending.setdefault(model, CacheMetrics()).add(metrics)

    def commands(self, counts: dict[str, CacheMetrics]) -> list[Command]:
        """Return the increments for some counters."""
        commands: list[Command] = []
        for model, metrics in counts.items():
            for field, name in _FIELDS.items():
                value = getattr(metrics, name)
                amount = round(value * 1e6) if name == "time_saved_s" else value
                if amount:
                    commands.append(("HINCRBY", self._name, f"{model} {field}", amount))
        return commands


def read_counters(reply: Reply) -> dict[str, CacheMetrics]:
    """Return the counters in the hash by model; what others have put there is left out."""
    totals: dict[str, CacheMetrics] = {}
    for field, value in _pairs(reply):
        if not isinstance(field, bytes) or not isinstance(value, bytes):
            continue
        model, _, counter = field.decode("utf-8", "replace").rpartition(" ")
        name = _FIELDS.get(counter)
        if name is None or len(value) > 20 or not value.removeprefix(b"-").isdigit():
            continue
        metrics = totals.setdefault(model, CacheMetrics())
        setattr(metrics, name, int(value) / 1e6 if name == "time_saved_s" else int(value))
    return totals


def _pairs(reply: Reply) -> list[tuple[Any, Any]]:
    """Return a hash as pairs: flat in RESP2, a map in RESP3."""
    if isinstance(reply, dict):
        return list(reply.items())
    if not isinstance(reply, list):
        return []
    if reply and isinstance(reply[0], tuple):
        return reply
    return list(zip(reply[::2], reply[1::2], strict=False))
