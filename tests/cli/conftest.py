"""What the tests of the command line share: a Redis server without Redis."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fakeredis import TcpFakeServer
from fakeredis._clients._tcp_server import TCPFakeRequestHandler, Writer


class _Writer(Writer):
    """Notes that a command was refused."""

    refused = False

    def dump(self, value: Any) -> None:
        self.refused = isinstance(value, Exception)
        super().dump(value)


class _Handler(TCPFakeRequestHandler):
    """Keeps a connection open after it has refused a command, as Redis does."""

    def setup(self) -> None:
        super().setup()
        self.answers = _Writer(self.client_address, self.wfile, self)
        self.writer = self.answers

    def handle(self) -> None:
        super().handle()
        while self.answers.refused:
            self.answers.refused = False
            super().handle()


@pytest.fixture
def redis_url() -> Iterator[str]:
    """Give the URL of an in-process server that speaks Redis's protocol on a real socket."""
    server = TcpFakeServer(("127.0.0.1", 0), server_type="redis")
    server.RequestHandlerClass = _Handler
    server.daemon_threads = True
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    serving.start()
    try:
        yield f"redis://127.0.0.1:{server.server_address[1]}/0"
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
