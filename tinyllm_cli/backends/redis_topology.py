"""Which server holds a name: one server, the master Sentinel names, or a node of a cluster.

Pure: the ways below are generators that say what to send where and are sent what came back, so the
blocking and the asynchronous backend share them. They retry nothing; they follow the server's own
directions, within the caller's deadline.
"""

from __future__ import annotations

import binascii
from collections.abc import Generator, Sequence
from typing import Protocol, TypeVar

from ..errors import BackendUnavailableError
from .redis_url import Endpoint, RedisAddress
from .resp import Command, Reply, ReplyError

__all__ = ["Exchange", "Replies", "Topology", "Way", "open_topology"]

T = TypeVar("T")

#: Commands per server, to be sent together; the replies come back in the same shape.
Exchange = Sequence[tuple[Endpoint, Sequence[Command]]]
Replies = list[list[Reply]]
#: A conversation: it yields exchanges, is sent their replies or thrown a CacheError, and returns T.
Way = Generator[Exchange, Replies, T]

_SLOTS = 16384
_REDIRECTIONS = ("MOVED", "ASK")
_DEMOTED = ("READONLY", "MASTERDOWN")


class Topology(Protocol):
    """Where names live."""

    def home(self, name: bytes) -> Endpoint | None:
        """Return the server of a name if it is known without asking anybody."""

    def is_redirection(self, error: ReplyError) -> bool:
        """Say whether `ask` would find a better server after this reply."""

    def ask(self, commands: Sequence[Command]) -> Way[list[Reply]]:
        """Send commands, each to the server of the name in its second word; return their replies."""

    def nodes(self) -> Way[list[Endpoint]]:
        """Return every server that holds names."""


def open_topology(address: RedisAddress) -> Topology:
    """Return the topology an address stands for; nothing is asked yet."""
    if address.kind == "sentinel":
        return _Sentinel(address)
    if address.kind == "cluster":
        return _Cluster(address)
    return _Single(address.endpoints[0])


class _Single:
    """One server for everything."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def home(self, name: bytes) -> Endpoint | None:
        return self._endpoint

    def is_redirection(self, error: ReplyError) -> bool:
        return False

    def ask(self, commands: Sequence[Command]) -> Way[list[Reply]]:
        (replies,) = yield [(self._endpoint, commands)]
        return replies

    def nodes(self) -> Way[list[Endpoint]]:
        return [self._endpoint]
        yield  # a conversation without a word


class _Sentinel:
    """The master of a service, asked of the sentinels again whenever it fails or is demoted."""

    def __init__(self, address: RedisAddress) -> None:
        self._service = address.service
        self._sentinels = list(address.endpoints)
        self._master: Endpoint | None = None

    def home(self, name: bytes) -> Endpoint | None:
        return self._master

    def is_redirection(self, error: ReplyError) -> bool:
        return error.code in _DEMOTED

    def ask(self, commands: Sequence[Command]) -> Way[list[Reply]]:
        known = self._master
        master = known or (yield from self._find())
        try:
            (replies,) = yield [(master, commands)]
        except BackendUnavailableError:
            self._master = None
            if known is None:
                raise
            # the one we knew may be dead and long replaced
            master = yield from self._find()
            if master == known:
                raise
            (replies,) = yield [(master, commands)]
            return replies
        if any(isinstance(reply, ReplyError) and reply.code in _DEMOTED for reply in replies):
            self._master = None
            renewed = yield from self._find()
            if renewed != master:
                (replies,) = yield [(renewed, commands)]
        return replies

    def nodes(self) -> Way[list[Endpoint]]:
        return [self._master or (yield from self._find())]

    def _find(self) -> Way[Endpoint]:
        question: Command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
        trouble: BackendUnavailableError | None = None
        for sentinel in list(self._sentinels):
            try:
                ((found,),) = yield [(sentinel, [question])]
            except BackendUnavailableError as exc:
                trouble = exc
                # the next question begins with one that answers
                self._sentinels.remove(sentinel)
                self._sentinels.append(sentinel)
                continue
            endpoint = _endpoint(found, sentinel)
            if endpoint is not None:
                self._master = endpoint
                return endpoint
        raise BackendUnavailableError(
            f"no sentinel knows a master of {self._service!a}",
            hint="check the hosts and the service in TINYLLM_REDIS_URL",
        ) from trouble


class _Cluster:
    """The nodes of a cluster by slot, learnt from MOVED replies and, where allowed, the slot table."""

    def __init__(self, address: RedisAddress) -> None:
        self._seeds = address.endpoints
        self._slots: list[Endpoint | None] = [None] * _SLOTS
        self._table_wanted = False

    def home(self, name: bytes) -> Endpoint | None:
        return None if self._table_wanted else self._slots[_slot(name)]

    def is_redirection(self, error: ReplyError) -> bool:
        return error.code in _REDIRECTIONS

    def ask(self, commands: Sequence[Command]) -> Way[list[Reply]]:
        if self._table_wanted:
            self._table_wanted = False
            yield from self._learn()
        homes = self._homes(commands)
        try:
            replies = yield from _to_homes(homes, commands)
        except BackendUnavailableError:
            # a node is gone: who took its slots is in the table of the others
            yield from self._learn(without=frozenset(homes))
            renewed = self._homes(commands)
            if renewed == homes:
                raise
            homes = renewed
            replies = yield from _to_homes(homes, commands)
        again = [
            index
            for index, reply in enumerate(replies)
            if isinstance(reply, ReplyError) and reply.code in _REDIRECTIONS
        ]
        if again:
            yield from self._follow(commands, homes, replies, again)
        return replies

    def _homes(self, commands: Sequence[Command]) -> list[Endpoint]:
        return [self._slots[_slot(_name(command))] or self._seeds[0] for command in commands]

    def _follow(
        self,
        commands: Sequence[Command],
        homes: list[Endpoint],
        replies: list[Reply],
        again: list[int],
    ) -> Way[None]:
        """Send what was redirected once more, to where the replies point."""
        targets: list[Endpoint] = []
        words: list[Command] = []
        kept: list[int] = []
        for index in again:
            target = _direction(str(replies[index]), homes[index])
            if target is None:
                continue
            if replies[index].code == "MOVED":
                self._slots[_slot(_name(commands[index]))] = target
                self._table_wanted = True
            else:  # only this once, and only if we say so
                targets.append(target)
                words.append(("ASKING",))
                kept.append(-1)
            targets.append(target)
            words.append(commands[index])
            kept.append(index)
        for index, reply in zip(kept, (yield from _to_homes(targets, words)), strict=True):
            if index >= 0:
                replies[index] = reply

    def nodes(self) -> Way[list[Endpoint]]:
        yield from self._learn()
        found = list(dict.fromkeys(node for node in self._slots if node is not None))
        return found or list(self._seeds)

    def _learn(self, without: frozenset[Endpoint] = frozenset()) -> Way[None]:
        """Ask the nodes in turn for the slot table; without one the MOVED replies must do."""
        known = [node for node in dict.fromkeys(self._slots) if node is not None]
        trouble: BackendUnavailableError | None = None
        for node in dict.fromkeys((*known, *self._seeds)):
            if node in without and len(without) == 1:
                continue
            try:
                ((table,),) = yield [(node, [("CLUSTER", "SLOTS")])]
            except BackendUnavailableError as exc:
                trouble = exc
                continue
            if isinstance(table, list):
                for row in table:
                    first, last, master = row[0], row[1], _endpoint(row[2], node)
                    self._slots[first : last + 1] = [master] * (last + 1 - first)
            return
        if trouble is not None:
            raise trouble


def _to_homes(homes: Sequence[Endpoint], commands: Sequence[Command]) -> Way[list[Reply]]:
    """Send each command to its server, one batch per server; return the replies in order."""
    groups: dict[Endpoint, list[int]] = {}
    for index, home in enumerate(homes):
        groups.setdefault(home, []).append(index)
    answers = yield [
        (home, [commands[index] for index in indexes]) for home, indexes in groups.items()
    ]
    replies: list[Reply] = [None] * len(commands)
    for indexes, group in zip(groups.values(), answers, strict=True):
        for index, reply in zip(indexes, group, strict=True):
            replies[index] = reply
    return replies


def _name(command: Command) -> bytes:
    name = command[1]
    return name if isinstance(name, bytes) else str(name).encode()


def _slot(name: bytes) -> int:
    """Return the slot of a name (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/)."""
    start = name.find(b"{")
    if start >= 0:
        end = name.find(b"}", start + 1)
        if end > start + 1:
            name = name[start + 1 : end]
    return binascii.crc_hqx(name, 0) % _SLOTS


def _direction(text: str, asked: Endpoint) -> Endpoint | None:
    """Return where `MOVED 3999 127.0.0.1:6381` points; an empty host is the one that was asked."""
    host, colon, port = text.split(" ")[-1].rpartition(":")
    if not colon or not port.isdigit():
        return None
    return Endpoint(host or asked.host, int(port))


def _endpoint(found: Reply, asked: Endpoint) -> Endpoint | None:
    """Return the host and port a server gives for another; no host means its own."""
    if not isinstance(found, list) or len(found) < 2:
        return None
    host = found[0].decode("utf-8", "replace") if isinstance(found[0], bytes) else ""
    return Endpoint(host if host not in ("", "?") else asked.host, int(found[1]))
