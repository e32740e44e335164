"""Leases through Redis: who asks the model, agreed among machines; see lease.py for the rules.

No script and no transaction. Each step that gives the right to ask is one SET NX, so of all who see
a holder die at the same moment one takes over.
"""

from __future__ import annotations

import itertools

from . import redis_faults as faults
from .redis_topology import Way
from .redis_work import RedisWork
from .resp import Command, Reply, ReplyError

__all__ = ["beat", "release", "take"]

#: A holder that beats once a second keeps its lease; a dead one's is gone after this long.
_LEASE_MS = 3000
_NOTE_MS = 2000
_MAX_MARK = 200

_marks = itertools.count(1)


def take(work: RedisWork, key: str, token: str, stale: str | None) -> Way[str | None]:
    """Take the lease if it is free or its mark is `stale`; else return its mark, None if taken."""
    name = work.vault.lease_name(key)
    claim: Command = ("SET", name, f"{token} 0", "NX", "PX", _LEASE_MS)
    taken, mark = yield from _ask(work, claim, ("GETRANGE", name, 0, _MAX_MARK))
    if taken is not None:
        return None
    found: str = mark.decode("utf-8", "replace")
    if stale is None or found != stale:
        return found
    (first,) = yield from _ask(
        work, ("SET", work.vault.takeover_name(key, found), token, "NX", "PX", _LEASE_MS)
    )
    if first is None:
        return found  # another one takes over from this holder
    yield from _ask(work, ("SET", name, f"{token} 0", "PX", _LEASE_MS))
    return None


def beat(work: RedisWork, key: str, token: str) -> Way[None]:
    """Change the mark of a lease that is still `token`'s and give it its full time again."""
    name = work.vault.lease_name(key)
    mark = f"{token} {next(_marks)}"
    yield from _if_ours(work, name, token, ("SET", name, mark, "XX", "PX", _LEASE_MS))


def release(work: RedisWork, key: str, token: str, note: str) -> Way[None]:
    """End a lease that is still `token`'s; with a note, leave a mark that ends with it."""
    name = work.vault.lease_name(key)
    ending: Command = ("SET", name, f"{token} {note}", "PX", _NOTE_MS) if note else ("UNLINK", name)
    yield from _if_ours(work, name, token, ending)


def _if_ours(work: RedisWork, name: bytes, token: str, command: Command) -> Way[None]:
    (mark,) = yield from _ask(work, ("GETRANGE", name, 0, _MAX_MARK))
    if mark.startswith(token.encode()):
        yield from _ask(work, command)


def _ask(work: RedisWork, *commands: Command) -> Way[list[Reply]]:
    replies = yield from work.topology.ask(commands)
    for reply in replies:
        if isinstance(reply, ReplyError):
            raise faults.refusal(work.where, reply)
    return replies
