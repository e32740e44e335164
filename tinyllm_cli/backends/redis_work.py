"""What the Redis backends do, told once for both: which commands, and what their replies mean.

Pure: each operation is a conversation (redis_topology.Way); who runs it does the sending. A hit is
one command. GETRANGE stands for GET because it is the one read that is bounded: a value larger
than an entry may be is not fetched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..entry import CacheEntry
from ..errors import CacheError, CorruptEntryError, UnreadableEntryError
from ..metrics import CacheMetrics
from . import redis_faults as faults
from .inventory import Clearance, Filter, ModelTotals, StoreStats
from .redis_counters import Counters, read_counters
from .redis_topology import Topology, Way
from .redis_url import Endpoint
from .redis_vault import Vault
from .resp import Command, Reply, ReplyError, pack

__all__ = ["Progress", "RedisWork"]

#: Told how many keys were looked through, and of how many (None: the server does not say).
Progress = Callable[[int, int | None], None]

_SCAN_COUNT = 1000
_FETCH_BYTES = 16 * 2**20
#: Up to here entries are counted one by one, beyond it a sample of this size is scaled up.
_EXACT_KEYS = 50_000
_MAX_FOREIGN = 1000
_IMMORTAL = -1


class RedisWork:
    """The operations over one vault and topology; `where` is the address for messages.

    `grace` is for how many seconds past its TTL the team keeps an entry; `clock` is wall-clock
    seconds.
    """

    def __init__(
        self,
        vault: Vault,
        topology: Topology,
        where: object,
        *,
        max_entry_bytes: int,
        grace: float = 0.0,
        clock: Callable[[], float],
    ) -> None:
        self.vault = vault
        self.topology = topology
        self.where = where
        self.max_entry_bytes = max_entry_bytes
        self.grace = grace
        self.counters = Counters(vault.stats_name)
        self._clock = clock
        self._foreign: set[bytes] = set()
        self._after_name = b"\r\n" + pack((0, max_entry_bytes)).partition(b"\r\n")[2]
        self._before_name = b"*4\r\n$8\r\nGETRANGE\r\n$%d\r\n" % len(vault.name(""))

    # --- one entry

    def packed_look(self, name: bytes) -> bytes:
        """Return the command of a look-up as bytes: names are all of one length."""
        return self._before_name + name + self._after_name

    def get(self, key: str) -> Way[CacheEntry | None]:
        """Return the entry under a key, None if there is none that is fresh."""
        entry = yield from self.look(key)
        return None if entry is None or entry.is_expired(self._clock()) else entry

    def look(self, key: str) -> Way[CacheEntry | None]:
        """Return the entry under a key, past its TTL or not, None if there is none."""
        look: Command = ("GETRANGE", self.vault.name(key), 0, self.max_entry_bytes)
        (reply,) = yield from self.topology.ask([look])
        return (yield from self.judge(key, reply))

    def opened(self, key: str, reply: Reply) -> CacheEntry | None:
        """Return the entry in the reply to a look-up, fresh or not, None if `judge` has to look at it."""
        if not isinstance(reply, bytes) or len(reply) > self.max_entry_bytes:
            return None
        try:
            return self.vault.open(key, reply)
        except CorruptEntryError:
            return None

    def judge(self, key: str, reply: Reply) -> Way[CacheEntry | None]:
        """Return the entry in the reply to a look-up; what can serve nobody is removed."""
        if not reply:
            return None
        name = self.vault.name(key)
        if isinstance(reply, ReplyError):
            if reply.code == "WRONGTYPE" and len(self._foreign) < _MAX_FOREIGN:
                self._foreign.add(name)
            raise faults.refusal(self.where, reply)
        if len(reply) > self.max_entry_bytes:
            # a neighbour with a larger bound may have stored it and may want it
            if not self.vault.may_be_ours(reply):
                yield from self._remove_quietly(name)
            return None
        try:
            entry = self.vault.open(key, reply)
        except UnreadableEntryError:
            return None  # another release may read it
        except CorruptEntryError:
            yield from self._remove_quietly(name)
            return None
        return (yield from self.dated(key, entry))

    def dated(self, key: str, entry: CacheEntry) -> Way[CacheEntry | None]:
        """Return a stored entry with its age as the server counts it.

        Where our clock says fresh, that is believed. Where it says expired, the clocks may differ:
        the server is asked for the time that is left, of which the last `grace` seconds are not
        freshness.
        """
        now = self._clock()
        if entry.ttl is None or not entry.is_expired(now) or entry.comes_from_the_future(now):
            return entry
        name = self.vault.name(key)
        (left,) = yield from self.topology.ask([("PTTL", name)])
        if not isinstance(left, int):
            return entry
        if left == _IMMORTAL:  # somebody else's doing: an entry with a TTL is stored with an expiry
            yield from self._remove_quietly(name)
        if left < 0:
            return None
        age = max(0.0, entry.ttl + self.grace - left / 1000)
        return _redated(entry, now - age)

    def set(self, key: str, entry: CacheEntry) -> Way[None]:
        """Store an entry for what is left of its TTL, unless it is too large."""
        name = self.vault.name(key)
        if name in self._foreign:
            raise CacheError(f"Redis at {self.where}: something else is stored under this name")
        blob = self.vault.seal(key, entry)
        if len(blob) > self.max_entry_bytes:
            return
        store: Command = ("SET", name, blob)
        if entry.ttl is not None:
            left = entry.ttl + entry.grace - entry.age(self._clock())
            store = (*store, "PX", max(1, round(left * 1000))) if left > 0 else ("UNLINK", name)
        (reply,) = yield from self.topology.ask([store])
        self._check(reply)

    def delete(self, key: str) -> Way[bool]:
        """Remove an entry; return whether there was one."""
        (reply,) = yield from self.topology.ask([("UNLINK", self.vault.name(key))])
        return bool(self._check(reply))

    def _remove_quietly(self, name: bytes) -> Way[None]:
        with contextlib.suppress(CacheError):  # it was a miss already
            yield from self.topology.ask([("UNLINK", name)])

    # --- all entries of the namespace

    def size(self) -> Way[int]:
        """Return the number of entries, by walking the key space."""
        found, _ = yield from self._count(None)
        return found

    def clear(
        self, which: Filter, dry_run: bool = False, progress: Progress | None = None
    ) -> Way[Clearance]:
        """Remove the entries a filter means, page by page on every node, or only count them."""
        removed = size = 0
        nodes = yield from self.topology.nodes()
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
                    replies = yield from self.topology.ask(unlinks)
                    removed_now = [
                        length
                        for length, reply in zip(meant.values(), replies, strict=True)
                        if self._check(reply)
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
        scan: Command = ("SCAN", cursor, "MATCH", self.vault.pattern, "COUNT", _SCAN_COUNT)
        ((reply,),) = yield [(node, [scan])]
        cursor, names = self._check(reply)
        return cursor, [name for name in dict.fromkeys(names) if self.vault.is_entry(name)]

    def _meant(self, which: Filter, names: list[bytes]) -> Way[dict[bytes, int]]:
        """Return those of some names that a filter means, with their lengths in bytes."""
        prefix = which.key_prefix if self.vault.digits_tell_the_key() else None
        if prefix is not None:
            names = [name for name in names if name[-64:].startswith(prefix.encode())]
        if not names:
            return {}
        lengths = yield from self.topology.ask([("STRLEN", name) for name in names])
        sizes = {
            name: 0 if isinstance(length, ReplyError) else length
            for name, length in zip(names, lengths, strict=True)
        }
        if which == Filter(key_prefix=prefix):
            return sizes
        meant: dict[bytes, int] = {}
        for batch in _batches(sizes, min(_FETCH_BYTES, self.max_entry_bytes * 2)):
            looks: list[Command] = [("GETRANGE", name, 0, self.max_entry_bytes) for name in batch]
            blobs = yield from self.topology.ask(looks)
            for name, blob in zip(batch, blobs, strict=True):
                if isinstance(blob, bytes) and self._matches(which, name, blob):
                    meant[name] = sizes[name]
        return meant

    def _matches(self, which: Filter, name: bytes, blob: bytes) -> bool:
        try:
            return which.matches(*self.vault.open_named(name, blob))
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
        nodes = yield from self.topology.nodes()
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

    # --- counters

    def flush(self, also: Sequence[Command] = ()) -> Way[list[Reply]]:
        """Send the counters that have gathered, and other commands, in one write.

        Returns the replies to the others. Counters that cannot be sent are kept.
        """
        counts = self.counters.take()
        commands = [*also, *self.counters.commands(counts)]
        if not commands:
            return []
        try:
            replies = yield from self.topology.ask(commands)
            for reply in replies[len(also) :]:
                self._check(reply)
        except CacheError:
            self.counters.put_back(counts)
            raise
        return replies[: len(also)]

    def settle(self, found: Mapping[str, CacheEntry]) -> Way[dict[str, CacheEntry]]:
        """As `flush`, and return entries found before, by key, dated by what is left of their TTL."""
        keys = list(found)
        asked: list[Command] = [("PTTL", self.vault.name(key)) for key in keys]
        replies = yield from self.flush(asked)
        now = self._clock()
        dated: dict[str, CacheEntry] = {}
        for key, left in zip(keys, replies, strict=True):
            entry = found[key]
            if entry.ttl is None or not isinstance(left, int):
                dated[key] = entry
            elif left > 0:
                dated[key] = _redated(entry, now - max(0.0, entry.ttl + self.grace - left / 1000))
        return dated

    def stats(self) -> Way[StoreStats]:
        """Return the team's counters, the number of entries, and what the server itself evicted."""
        yield from self.flush()
        (reply,) = yield from self.topology.ask([("HGETALL", self.vault.stats_name)])
        totals = {"": CacheMetrics(), **read_counters(self._check(reply))}
        entries, scaled = yield from self._count(_EXACT_KEYS)
        evicted, policy = yield from self._server()
        rows = [ModelTotals(model, 0, 0, totals[model]) for model in sorted(totals)]
        rows[0] = ModelTotals("", entries, 0, rows[0].metrics)
        return StoreStats(
            tuple(rows), estimated=scaled, server_evictions=evicted, server_policy=policy
        )

    def reset_counters(self) -> Way[None]:
        """Zero the team's counters."""
        self.counters.take()
        (reply,) = yield from self.topology.ask([("UNLINK", self.vault.stats_name)])
        self._check(reply)

    def _server(self) -> Way[tuple[int | None, str | None]]:
        """Return how many keys the servers evicted and by which policy, None where INFO is denied."""
        evicted: int | None = None
        policy: str | None = None
        for node in (yield from self.topology.nodes()):
            ((info,),) = yield [(node, [("INFO",)])]
            count = _info(info, b"evicted_keys")
            if count is not None and count.isdigit():
                evicted = (evicted or 0) + int(count)
            named = _info(info, b"maxmemory_policy")
            policy = policy if named is None else named.decode("ascii", "replace")[:40]
        return evicted, policy

    def _check(self, reply: Reply) -> Reply:
        if isinstance(reply, ReplyError):
            raise faults.refusal(self.where, reply)
        return reply


def _redated(entry: CacheEntry, created_at: float) -> CacheEntry:
    return CacheEntry(
        entry.response,
        created_at,
        entry.ttl,
        seconds=entry.seconds,
        chunks=entry.chunks,
        request=entry.request,
    )


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
