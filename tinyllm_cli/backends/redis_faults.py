"""What went wrong with Redis, in one line that holds no login, and whether to leave it alone a while."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from ..errors import BackendUnavailableError, CacheError
from .redis_url import Endpoint
from .resp import ProtocolError, Reply, ReplyError

__all__ = ["is_resting", "not_in_time", "refusal", "refused_login", "resting", "unreachable"]

# The server answers, but not with data, until something about it changes: asking again at once
# would only cost time.
_RESTING = frozenset({"LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN"})
_MAX_TEXT = 120


def refusal(where: object, error: ReplyError) -> CacheError:
    """Return the error for an error reply: BackendUnavailableError if another call would fare no better."""
    # "unknown command ..., with args beginning with": those are names and answers
    code, text = error.code, _one_line(str(error).partition(", with args")[0])
    if (
        code in ("NOAUTH", "WRONGPASS")
        or "invalid password" in text
        or "without any password" in text
    ):
        return BackendUnavailableError(
            f"Redis at {where}: authentication failed",
            hint="check user and password in TINYLLM_REDIS_URL",
        )
    if code == "NOPERM":
        return CacheError(
            f"Redis at {where}: the user lacks the right to {_lacking(text)}",
            hint="docs/redis.md has the ACL line",
        )
    if code in ("MOVED", "ASK", "CROSSSLOT"):
        return BackendUnavailableError(
            f"Redis at {where} is part of a cluster; write redis+cluster:// in its URL"
        )
    if code == "READONLY":
        return CacheError(f"Redis at {where} is a read-only replica")
    if code in _RESTING or "max number of clients" in text:
        return BackendUnavailableError(f"Redis at {where}: {text}")
    if code == "OOM":
        return CacheError(f"Redis at {where} is out of memory and evicts nothing")
    return CacheError(f"Redis at {where}: {text}")


def refused_login(where: object, error: ReplyError) -> CacheError:
    """Return the error for a login or a database that was refused: no command will fare better."""
    exc = refusal(where, error)
    if isinstance(exc, BackendUnavailableError):
        return exc
    return BackendUnavailableError(str(exc), hint=exc.hint)


def is_resting(replies: Iterable[Reply]) -> bool:
    """Say whether the server answered but will not give data for a while."""
    return any(isinstance(reply, ReplyError) and reply.code in _RESTING for reply in replies)


def unreachable(where: Endpoint, exc: BaseException) -> CacheError:
    """Return the error for a connection that cannot be made or broke."""
    if isinstance(exc, TimeoutError):
        return not_in_time(where)
    if isinstance(exc, ProtocolError):
        return BackendUnavailableError(
            f"what listens at {where} is not Redis: {_one_line(str(exc))}"
        )
    name = type(exc).__name__
    if "SSL" in name:
        reason = getattr(exc, "verify_message", "") or getattr(exc, "reason", "") or name
        return BackendUnavailableError(
            f"no TLS with Redis at {where}: {_one_line(str(reason))}",
            hint="check the scheme, the host name and ssl_ca_certs in TINYLLM_REDIS_URL",
        )
    number = getattr(exc, "errno", None)
    reason = _one_line(str(getattr(exc, "strerror", None) or exc)) or name
    if isinstance(number, int) and number > 0:
        reason = os.strerror(number)  # an event loop says "Connect call failed" whatever it was
    return BackendUnavailableError(
        f"cannot reach Redis at {where} ({reason})", hint="start it, or set TINYLLM_REDIS_URL"
    )


def not_in_time(where: object) -> CacheError:
    """Return the error for a server that took too long."""
    return BackendUnavailableError(f"Redis at {where} did not answer in time")


def resting(where: Endpoint) -> CacheError:
    """Return the error for a server that is left alone because it has just failed."""
    return BackendUnavailableError(f"Redis at {where} failed a moment ago and is left alone")


def _one_line(text: str) -> str:
    line = text.splitlines()[0] if text else ""
    return line[:_MAX_TEXT]


def _lacking(text: str) -> str:
    """Return what an ACL refusal names: a command, else it is about the keys."""
    found = re.search(r"'([a-z|]{1,30})' command", text)
    return "these keys" if found is None else found[1].upper()
