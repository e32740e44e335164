"""What takes a walk through the key space: counting, clearing, the figures of the team.

Pure, as redis_work.py is. A walk goes page by page, on every node; it names no key that is not ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import CacheError, CorruptEntryError
from ..metrics import CacheMetrics
from .inventory import Clearance, Filter, ModelTotals, StoreStats
from .redis_counters import read_counters
from .redis_topology import Way
from .redis_url import Endpoint
from .redis_work import RedisWork
from .resp import Command, Reply, ReplyError

__all__ = ["Progress", "RedisWalk"]

#: Told how many keys were looked through, and of how many (None: the server does not say).
Progress = Callable[[int, int | None], None]

_SCAN_COUNT = 1000
_FETCH_BYTES = 16 * 2**20
#: Up to here entries are counted one by one, beyond it a sample of this size is scaled up.
_EXACT_KEYS = 50_000


class RedisWalk:
    """The operations on all entries of a namespace, over what `work` does with one."""

    def __init__(self, work: RedisWork) -> None:
        self._work = work
        self._vault = work.vault
        self._topology = work.topology
        self._max_entry_bytes = work.max_entry_bytes

    def size(self) -> Way[int]:
        """Return the number of entries, by walking the key space."""
        found, _ = yield from self._count(None)
        return found

    def clear(
        self, which: Filter, dry_run: bool = False, progress: Progress | None = None
    ) -> Way[Clearance]:
        """Remove the entries a filter means, page by page on every node, or only count them."""
        removed = size = 0
        nodes = yield from self._topology.nodes()
        total = (yield from self._keys(nodes)) if progress is not None else None
        seen = 0
        for node in nodes:
            cursor: Any = 0
            while True:
                cursor, names = yield from self._page(node, cursor)
                meant = yield from self._meant(which, names)
                removed_now = list(meant.values())
                if meant and not dry_run:
                    unlinks: list[Command] = [("UNLINK", name) for name in meant]
                    replies = yield from self._topology.ask(unlinks)
                    removed_now = [
                        length
                        for length, reply in zip(meant.values(), replies, strict=True)
                        if self._work.checked(reply)
                    ]
                removed += len(removed_now)
                size += sum(removed_now)
                seen += _SCAN_COUNT
                if progress is not None:
                    progress(seen if total is None else min(seen, total), total)
                if not int(cursor):
                    break
        return Clearance(removed, size)

    def _page(self, node: Endpoint, cursor: Any) -> Way[tuple[Any, list[bytes]]]:
        scan: Command = ("SCAN", cursor, "MATCH", self._vault.pattern, "COUNT", _SCAN_COUNT)
        ((reply,),) = yield [(node, [scan])]
        cursor, names = self._work.checked(reply)
        return cursor, [name for name in dict.fromkeys(names) if self._vault.is_entry(name)]

    def _meant(self, which: Filter, names: list[bytes]) -> Way[dict[bytes, int]]:
        """Return those of some names that a filter means, with their lengths in bytes."""
        prefix = which.key_prefix if self._vault.digits_tell_the_key() else None
        if prefix is not None:
            names = [name for name in names if name[-64:].startswith(prefix.encode())]
        if not names:
            return {}
        lengths = yield from self._topology.ask([("STRLEN", name) for name in names])
        sizes = {
            name: 0 if isinstance(length, ReplyError) else length
            for name, length in zip(names, lengths, strict=True)
        }
        if which == Filter(key_prefix=prefix):
            return sizes
        meant: dict[bytes, int] = {}
        for batch in _batches(sizes, min(_FETCH_BYTES, self._max_entry_bytes * 2)):
            looks: list[Command] = [("GETRANGE", name, 0, self._max_entry_bytes) for name in batch]
            blobs = yield from self._topology.ask(looks)
            for name, blob in zip(batch, blobs, strict=True):
                if isinstance(blob, bytes) and self._matches(which, name, blob):
                    meant[name] = sizes[name]
        return meant

    def _matches(self, which: Filter, name: bytes, blob: bytes) -> bool:
        try:
            return which.matches(*self._vault.open_named(name, blob))
        except CorruptEntryError:
            return False  # a look-up removes it

    def _keys(self, nodes: Sequence[Endpoint]) -> Way[int | None]:
        """Return how many keys of whatever kind some nodes hold, None if they do not say."""
        total = 0
        for node in nodes:
            ((reply,),) = yield [(node, [("DBSIZE",)])]
            if not isinstance(reply, int):
                return None
            total += reply
        return total

    def _count(self, limit: int | None) -> Way[tuple[int, bool]]:
        """Return the number of entries and whether it is scaled up from a sample of `limit` keys."""
        found, scaled = 0.0, False
        nodes = yield from self._topology.nodes()
        for node in nodes:
            total = yield from self._keys([node])
            walk = None if limit is None or total is None or total <= limit else limit // len(nodes)
            here = seen = 0
            cursor: Any = 0
            while True:
                cursor, names = yield from self._page(node, cursor)
                here += len(names)
                seen += _SCAN_COUNT
                if not int(cursor):
                    found += here
                    break
                if walk is not None and total is not None and seen >= walk:
                    found, scaled = found + here * total / seen, True
                    break
        return round(found), scaled

    def stats(self) -> Way[StoreStats]:
        """Return the team's counters, the number of entries, and what the server itself evicted."""
        yield from self._work.flush()
        (reply,) = yield from self._topology.ask([("HGETALL", self._vault.stats_name)])
        totals = {"": CacheMetrics(), **read_counters(self._work.checked(reply))}
        entries, scaled = yield from self._count(_EXACT_KEYS)
        evicted, policy = yield from self._server()
        rows = [ModelTotals(model, 0, 0, totals[model]) for model in sorted(totals)]
        rows[0] = ModelTotals("", entries, 0, rows[0].metrics)
        return StoreStats(
            tuple(rows), estimated=scaled, server_evictions=evicted, server_policy=policy
        )

    def _server(self) -> Way[tuple[int | None, str | None]]:
        """Return how many keys the servers evicted and by which policy, None where they do not say.

        A service may refuse INFO, and some end the connection over it.
        """
        evicted: int | None = None
        policy: str | None = None
        for node in (yield from self._topology.nodes()):
            try:
                ((info,),) = yield [(node, [("INFO",)])]
            except CacheError:
                continue
            count = _info(info, b"evicted_keys")
            if count is not None and count.isdigit():
                evicted = (evicted or 0) + int(count)
            named = _info(info, b"maxmemory_policy")
            policy = policy if named is None else named.decode("ascii", "replace")[:40]
        return evicted, policy


def _batches(sizes: dict[bytes, int], limit: int) -> list[list[bytes]]:
    """Split names so that the values of a batch fit in `limit` bytes; one larger than that is alone."""
    batches: list[list[bytes]] = [[]]
    room = limit
    for name, size in sizes.items():
        if batches[-1] and size > room:
            batches.append([])
            room = limit
        batches[-1].append(name)
        room -= size
    return batches


def _info(reply: Reply, field: bytes) -> bytes | None:
    if isinstance(reply, bytes):
        for line in reply.splitlines():
            name, _, value = line.partition(b":")
            if name == field:
                return value
    return None
