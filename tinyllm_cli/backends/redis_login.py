"""How a connection begins: the host's addresses, TLS, and the login, for both kinds of connection."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .redis_url import Endpoint, RedisAddress, Tls
from .resp import Command

if TYPE_CHECKING:
    import ssl

__all__ = ["SocketAddress", "find_addresses", "keep_alive", "login", "tls_context"]

#: A family and what `connect` takes for it.
SocketAddress = tuple[int, Any]

_KEEP_ALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


def login(address: RedisAddress, endpoint: Endpoint) -> list[Command]:
    """Return the commands that log in at an endpoint and choose the database; none if not needed."""
    username, password, db = address.username, address.password, address.db
    if address.kind == "sentinel" and endpoint in address.endpoints:
        username, password, db = address.sentinel_username, address.sentinel_password, 0
    commands: list[Command] = []
    if password is not None:
        commands.append(("AUTH", password) if username is None else ("AUTH", username, password))
    if db:
        commands.append(("SELECT", db))
    return commands


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Return a context that verifies the server; ConfigError if a file cannot be used."""
    import ssl

    try:
        context = ssl.create_default_context(cafile=tls.ca)
        if tls.certificate is not None:
            context.load_cert_chain(tls.certificate, tls.key)
    except OSError as exc:  # SSLError among them
        files = ", ".join(path for path in tls if path is not None)
        raise ConfigError(
            f"cannot use the TLS files of Redis ({files}): {exc.strerror or exc}",
            hint="check ssl_ca_certs, ssl_certfile and ssl_keyfile",
        ) from exc
    return context


def find_addresses(
    endpoint: Endpoint, done: Callable[[list[SocketAddress] | OSError], None]
) -> None:
    """Give an endpoint's addresses, or why there are none, to `done`, perhaps from another thread.

    A resolver that gets no answer blocks for many seconds and cannot be interrupted. Its thread is a
    daemon, so neither an event loop nor the interpreter waits for it.
    """
    if not endpoint.port:
        family = getattr(socket, "AF_UNIX", None)
        absent = OSError("this system has no Unix sockets")
        done(absent if family is None else [(family, endpoint.host)])
        return
    try:
        done(_look_up(endpoint, 0 if endpoint.host == "localhost" else socket.AI_NUMERICHOST))
        return
    except OSError as exc:
        if endpoint.host == "localhost":
            done(exc)
            return

    def resolve() -> None:
        try:
            found: list[SocketAddress] | OSError = _look_up(endpoint, 0)
        except OSError as exc:
            found = exc
        except UnicodeError:
            found = OSError("the host name makes no sense")
        done(found)

    threading.Thread(target=resolve, name="tinyllm-resolve", daemon=True).start()


def keep_alive(connection: Any) -> None:
    """Have a TCP socket send at once and notice within a minute that the other side is gone."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _look_up(endpoint: Endpoint, flags: int) -> list[SocketAddress]:
    found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=flags)
    return [(row[0], row[4]) for row in found]
