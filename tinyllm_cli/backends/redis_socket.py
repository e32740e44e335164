"""One blocking connection to one Redis server, for a process that asks once and ends."""

from __future__ import annotations

import queue
import select
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import redis_faults as faults
from .redis_login import SocketAddress, find_addresses, keep_alive, login, tls_context
from .redis_url import Endpoint, RedisAddress
from .resp import NOT_YET, Command, Parser, ProtocolError, Push, Reply, ReplyError, pack

if TYPE_CHECKING:
    import ssl

__all__ = ["RedisSocket"]

_RECEIVE = 1 << 18
_STALE_AFTER_S = 30.0
_READS = frozenset({"GETRANGE"})


class RedisSocket:
    """A connection opened on first use and again after any failure; everything ends by a deadline.

    Deadlines are of `time.monotonic`. Raises CacheError; ConfigError for TLS files that cannot be
    used. Not for two threads at once.
    """

    def __init__(
        self, endpoint: Endpoint, address: RedisAddress, *, max_bulk: int, connect_timeout: float
    ) -> None:
        self.endpoint = endpoint
        self._address = address
        self._max_bulk = max_bulk
        self._connect_timeout = connect_timeout
        self._tls: ssl.SSLContext | None = None
        self._socket: socket.socket | None = None
        self._parser = Parser(max_bulk)
        self._used_at = 0.0

    @property
    def answered(self) -> bool:
        """Whether the server has ever answered."""
        return self._used_at > 0.0

    def exchange(self, commands: Sequence[Command], deadline: float) -> list[Reply]:
        """Send commands in one write and return their replies."""
        try:
            return self._exchange(commands, deadline)
        except (OSError, ProtocolError) as exc:
            self.close()
            raise faults.unreachable(self.endpoint, exc) from exc
        except BaseException:
            self.close()  # a reply may be on its way that the next call must not take for its own
            raise

    def close(self) -> None:
        """Close the connection; the next exchange opens another."""
        connection, self._socket = self._socket, None
        self._parser = Parser(self._max_bulk)
        if connection is not None:
            connection.close()

    def _exchange(self, commands: Sequence[Command], deadline: float) -> list[Reply]:
        greeting: list[Command] = []
        if self._is_stale():
            self.close()
        if self._socket is None:
            self._connect(min(deadline, time.monotonic() + self._connect_timeout))
            greeting = login(self._address, self.endpoint)
            # a read may travel with the login: were that refused, nothing could be written to the
            # wrong database
            if greeting and commands[0][0] not in _READS:
                self._greeted(self._converse(greeting, deadline))
                greeting = []
        replies = self._converse([*greeting, *commands], deadline)
        self._greeted(replies[: len(greeting)])
        return replies[len(greeting) :]

    def _greeted(self, replies: list[Reply]) -> None:
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise faults.refused_login(self.endpoint, reply)

    def _is_stale(self) -> bool:
        """Say whether the server has closed the connection, or a gateway may have forgotten it."""
        if self._socket is None:
            return False
        if time.monotonic() - self._used_at > _STALE_AFTER_S:
            return True
        readable, _, _ = select.select([self._socket], [], [], 0)
        return bool(readable)

    def _connect(self, deadline: float) -> None:
        trouble: OSError = OSError("the host name has no address")
        for family, where in self._addresses(deadline):
            connection = socket.socket(family, socket.SOCK_STREAM)
            try:
                connection.settimeout(_left(deadline))
                connection.connect(where)
                if self.endpoint.port:
                    keep_alive(connection)
                self._socket = self._secured(connection)
            except OSError as exc:
                connection.close()
                trouble = exc
                continue
            except BaseException:
                connection.close()
                raise
            return
        raise trouble

    def _addresses(self, deadline: float) -> list[SocketAddress]:
        answers: queue.SimpleQueue[list[SocketAddress] | OSError] = queue.SimpleQueue()
        find_addresses(self.endpoint, answers.put)
        try:
            found = answers.get(timeout=_left(deadline))
        except queue.Empty:
            raise TimeoutError from None
        if isinstance(found, OSError):
            raise found
        return found

    def _secured(self, connection: socket.socket) -> socket.socket:
        if self._address.tls is None:
            return connection
        if self._tls is None:
            self._tls = tls_context(self._address.tls)
        return self._tls.wrap_socket(connection, server_hostname=self.endpoint.host)

    def _converse(self, commands: Sequence[Command], deadline: float) -> list[Reply]:
        connection = self._socket
        assert connection is not None
        connection.settimeout(_left(deadline))
        connection.sendall(b"".join(map(pack, commands)))
        replies: list[Reply] = []
        while len(replies) < len(commands):
            reply = self._parser.gets()
            if reply is NOT_YET:
                # the timeout of a socket starts again with every byte: what is left is set each time
                connection.settimeout(_left(deadline))
                data = connection.recv(_RECEIVE)
                if not data:
                    raise ConnectionResetError("it closed the connection")
                self._parser.feed(data)
            elif not isinstance(reply, Push):
                replies.append(reply)
        self._used_at = time.monotonic()
        return replies


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
