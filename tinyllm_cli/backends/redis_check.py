"""Whether a Redis will do: how far it is, what it is, and what its user may not do. Changes nothing."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import CacheError
from .redis_topology import Way
from .redis_work import RedisWork
from .resp import Command, ReplyError

__all__ = ["Examination", "examine"]

_NOBODY = "0" * 64


class Examination(NamedTuple):
    """`version` None where the server does not say; `denied` are the commands its user lacks."""

    version: str | None
    denied: tuple[str, ...]
    lacking: tuple[str, ...]


def examine(work: RedisWork) -> Way[Examination]:
    """Try each command on a name that holds nothing, or so that it is refused for its arguments.

    Rights are judged before a command's arguments are, so a refusal of these says that it is allowed.
    """
    name, lease = work.vault.name(_NOBODY), work.vault.lease_name(_NOBODY)
    needed: dict[str, list[Command]] = {
        "asking and storing": [
            ("GETRANGE", name, 0, 0),
            ("SET", name, b"", "XX", "PX", 1),
            ("SET", lease, b"", "XX", "PX", 1),
            ("HINCRBY", work.vault.stats_name, "doctor", "no number"),
        ],
        "removing and expiring": [("UNLINK", name), ("PTTL", name)],
        "cache-stats and cache-clear": [
            ("HGETALL", work.vault.stats_name),
            ("STRLEN", name),
        ],
    }
    denied: list[str] = []
    lacking: list[str] = []
    for purpose, commands in needed.items():
        replies = yield from work.topology.ask(commands)
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(reply, ReplyError) and reply.code == "NOPERM":
                denied.append(str(command[0]))
                lacking.append(purpose)
    version = None
    for node in (yield from work.topology.nodes()):
        for command in (("SCAN", 0, "COUNT", 1), ("DBSIZE",), ("INFO",)):
            try:
                ((reply,),) = yield [(node, [command])]
            except CacheError:
                continue  # a service may end the connection over it
            if isinstance(reply, ReplyError) and reply.code == "NOPERM":
                denied.append(command[0])
                lacking.append("cache-stats and cache-clear")
            elif command[0] == "INFO" and isinstance(reply, bytes):
                version = _version(reply) or version
    return Examination(version, tuple(dict.fromkeys(denied)), tuple(dict.fromkeys(lacking)))


def _version(info: bytes) -> str | None:
    fields = dict(line.partition(b":")[::2] for line in info.splitlines())
    for product, field in (("Valkey", b"valkey_version"), ("Redis", b"redis_version")):
        if field in fields:
            return f"{product} {fields[field].decode('ascii', 'replace')[:20]}"
    return None
