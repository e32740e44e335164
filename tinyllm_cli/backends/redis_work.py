"""What the Redis backends do, told once for both: which commands, and what their replies mean.

Pure: each operation is a conversation (redis_topology.Way); who runs it does the sending. A hit is
one command. GETRANGE stands for GET because it is the one read that is bounded: a value larger
than an entry may be is not fetched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

from ..entry import CacheEntry
from ..errors import CacheError, CorruptEntryError, UnreadableEntryError
from . import redis_faults as faults
from .redis_counters import Counters
from .redis_topology import Topology, Way
from .redis_vault import Vault
from .resp import Command, Reply, ReplyError, pack

__all__ = ["RedisWork"]

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
        self.checked(reply)

    def delete(self, key: str) -> Way[bool]:
        """Remove an entry; return whether there was one."""
        (reply,) = yield from self.topology.ask([("UNLINK", self.vault.name(key))])
        return bool(self.checked(reply))

    def _remove_quietly(self, name: bytes) -> Way[None]:
        with contextlib.suppress(CacheError):  # it was a miss already
            yield from self.topology.ask([("UNLINK", name)])

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
                self.checked(reply)
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

    def reset_counters(self) -> Way[None]:
        """Zero the team's counters."""
        self.counters.take()
        (reply,) = yield from self.topology.ask([("UNLINK", self.vault.stats_name)])
        self.checked(reply)

    def checked(self, reply: Reply) -> Reply:
        """Return a reply; raise the CacheError that an error reply stands for."""
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
