"""Why a question was not answered from the cache: the nearest stored answer, and what differs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .entry import CacheEntry
from .key import canonical_body

__all__ = ["Difference", "Explanation", "differences", "explain"]

_ABSENT = object()


class Difference(NamedTuple):
    """One field that differs: its path (`options.seed`), what was stored and what is asked.

    None means absent; a JSON null shows as "null".
    """

    path: str
    stored: Any
    asked: Any


class Explanation(NamedTuple):
    """What a look-up comes to.

    `verdict` is hit, stale, expired, evicted, other model, other place, differs or nothing stored.
    `entry` and `key` are the entry itself or the nearest one, None if there is none.
    """

    verdict: str
    key: str | None = None
    entry: CacheEntry | None = None
    differences: tuple[Difference, ...] = ()


def explain(body: Mapping[str, Any], candidates: Iterable[tuple[str, CacheEntry]]) -> Explanation:
    """Return how the nearest of the stored entries differs from a request that has no entry.

    Nearest is the one with the fewest differing fields, the most recent of equals; the order of
    `candidates` is from the most recent. Entries stored without their request are passed over.
    """
    asked = canonical_body(body)
    best: Explanation | None = None
    for key, entry in candidates:
        if entry.request is None:
            continue
        found = differences(entry.request, asked)
        if best is None or _distance(found) < _distance(best.differences):
            # an equal question under another key: the key holds more than the body
            verdict = "differs" if found else "other model"
            best = Explanation(verdict, key, entry, tuple(found))
            if not found:
                break
    return best or Explanation("nothing stored")


def differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> list[Difference]:
    """Return the fields in which two canonical bodies differ, by path."""
    found: list[Difference] = []
    _compare("", stored, asked, found)
    return found


def _compare(path: str, stored: Any, asked: Any, found: list[Difference]) -> None:
    if isinstance(stored, Mapping) and isinstance(asked, Mapping):
        for name in [*stored, *(name for name in asked if name not in stored)]:
            below = f"{path}.{name}" if path else name
            _compare(below, stored.get(name, _ABSENT), asked.get(name, _ABSENT), found)
        # inside a schema the order steers the answer, and so it is in the key
        if stored == asked and list(stored) != list(asked):
            found.append(Difference(path, list(stored), list(asked)))
    elif isinstance(stored, (list, tuple)) and isinstance(asked, (list, tuple)):
        for number in range(max(len(stored), len(asked))):
            _compare(f"{path}[{number}]", _at(stored, number), _at(asked, number), found)
    elif stored != asked or isinstance(stored, bool) != isinstance(asked, bool):
        found.append(Difference(path, _shown(stored), _shown(asked)))


def _at(values: Any, number: int) -> Any:
    return values[number] if number < len(values) else _ABSENT


def _shown(value: Any) -> Any:
    if value is _ABSENT:
        return None
    return "null" if value is None else value


def _distance(found: Iterable[Difference]) -> tuple[int, int]:
    """Weigh another prompt or model above any number of other fields: that is another question."""
    paths = [difference.path for difference in found]
    return sum(path in ("prompt", "model") for path in paths), len(paths)
