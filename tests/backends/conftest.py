"""What the tests of the backends share: a place for a snapshot, and a Redis server without Redis."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakeredis import TcpFakeServer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Give a path for a snapshot in a directory that does not exist yet."""
    return tmp_path / "cache" / "snapshot.sqlite3"


class _Server(TcpFakeServer):
    request_queue_size = 128  # a burst of new connections must not be refused


@pytest.fixture
def redis_port() -> Iterator[int]:
    """Give the port of an in-process server that speaks Redis's protocol on a real socket."""
    server = _Server(("127.0.0.1", 0), server_type="redis")
    server.daemon_threads = True
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    serving.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
