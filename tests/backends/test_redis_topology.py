"""Does each backend find its server: by socket, through TLS, in a cluster, behind Sentinel?"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.redis_server import (
    Pretender,
    RedisServer,
    SentinelPair,
    eventually,
    free_port,
    make_certificates,
    start_cluster,
    tls_server,
)
from tests.samples import answer, key_of
from tinyllm_cli.backends.inventory import Filter
from tinyllm_cli.backends.redis import RedisBackend
from tinyllm_cli.backends.redis_blocking import BlockingRedisBackend
from tinyllm_cli.backends.redis_url import parse_redis_url
from tinyllm_cli.backends.redis_vault import Vault
from tinyllm_cli.entry import CacheEntry
from tinyllm_cli.errors import BackendUnavailableError, ConfigError
from tinyllm_cli.metrics import CacheMetrics

KEY = key_of("a question")
KEYS = [key_of(n) for n in range(60)]


def fresh(text: str = "Because.") -> CacheEntry:
    return CacheEntry(answer(text), created_at=time.time(), ttl=60)


class Store:
    """Either backend behind the same blocking calls."""

    def __init__(self, kind: str, url: str, **options: Any) -> None:
        options = {"timeout": 20.0, **options}  # time is tested elsewhere
        self._runner = asyncio.Runner()
        if kind == "async":
            self.backend: Any = RedisBackend(url=url, **options)
        else:
            self.backend = BlockingRedisBackend(
                parse_redis_url(url), Vault(), max_entry_bytes=2**20, **options
            )

    def do(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call a coroutine of the backend and return what it does."""
        return self._runner.run(getattr(self.backend, name)(*arguments, **options))

    def close(self) -> None:
        with contextlib.suppress(BackendUnavailableError):
            self.do("close")
        self._runner.close()


OpenStore = Callable[..., Store]


@pytest.fixture(params=["async", "blocking"])
def open_store(request: pytest.FixtureRequest) -> Iterator[OpenStore]:
    stores: list[Store] = []

    def open_one(url: str, **options: Any) -> Store:
        stores.append(Store(request.param, url, **options))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


def works(store: Store) -> None:
    store.do("set", KEY, fresh())
    assert store.do("get", KEY).response.response == "Because."
    store.backend.count("llama3.2", CacheMetrics(hits=1))
    stats = store.do("stats")
    assert (stats.entries, stats.metrics.hits) == (1, 1)
    assert store.do("delete", KEY) is True
    store.do("reset_counters")


def test_a_unix_socket(open_store: OpenStore, tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    with RedisServer("--unixsocket", str(path)):
        works(open_store(f"unix://{path}"))
        works(open_store(f"unix://{path}?db=3"))
    with pytest.raises(BackendUnavailableError, match=r"redis\.sock"):
        open_store(f"unix://{path}").do("get", KEY)


def test_a_database_and_a_password(open_store: OpenStore) -> None:
    with RedisServer() as server:
        works(open_store(server.url))
        open_store(f"redis://127.0.0.1:{server.port}/5").do("set", KEY, fresh())
        assert server.new_client().select(5)
        assert server.client().dbsize() == 0
        server.client().config_set("requirepass", "a pass/word")
        works(open_store(f"redis://:a%20pass%2Fword@127.0.0.1:{server.port}/2"))


# --- cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[RedisServer]]:
    with contextlib.ExitStack() as stack:
        yield start_cluster(stack)


def cluster_url(servers: list[RedisServer]) -> str:
    return "redis+cluster://" + ",".join(server.endpoint for server in servers)


def test_a_cluster_keeps_each_entry_on_its_node(
    open_store: OpenStore, cluster: list[RedisServer]
) -> None:
    store = open_store(cluster_url(cluster[:1]))
    for key in KEYS:
        store.do("set", key, fresh(key))
    for key in KEYS:
        assert store.do("get", key).response.response == key
    assert all(server.client().dbsize() > 5 for server in cluster)
    assert store.do("size") == len(KEYS)
    store.backend.count("llama3.2", CacheMetrics(hits=2))
    stats = store.do("stats")
    assert (stats.entries, stats.metrics.hits, stats.server_evictions) == (len(KEYS), 2, 0)
    assert store.do("clear_matching", Filter(model="phi3:latest")).entries == 0
    assert store.do("clear_matching", Filter()).entries == len(KEYS)
    assert store.do("size") == 0
    store.do("reset_counters")


def _lives(server: RedisServer, name: bytes) -> bool:
    try:
        server.client().get(name)
    except redis.RedisError:
        return False
    return True


def test_a_hit_in_a_cluster_is_one_command_on_one_node(
    open_store: OpenStore, cluster: list[RedisServer]
) -> None:
    store = open_store(cluster_url(cluster))
    store.do("set", KEY, fresh())
    store.do("get", KEY)
    store.do("get", KEY)
    with contextlib.ExitStack() as stack:
        monitors = [stack.enter_context(server.monitored()) for server in cluster]
        assert store.do("get", KEY) is not None
        sent = [command[0] for monitor in monitors for command in monitor.commands()]
    assert sent == ["GETRANGE"]
    store.do("delete", KEY)


def test_a_slot_that_moves_is_followed(open_store: OpenStore, cluster: list[RedisServer]) -> None:
    store = open_store(cluster_url(cluster))
    store.do("set", KEY, fresh())
    name = Vault().name(KEY)
    slot = cluster[0].client().execute_command("CLUSTER", "KEYSLOT", name)
    source = next(server for server in cluster if _lives(server, name))
    target = next(server for server in cluster if server is not source)
    ids = {s: s.client().execute_command("CLUSTER", "MYID").decode() for s in cluster}
    target.client().execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
    source.client().execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
    source.client().migrate("127.0.0.1", target.port, name, 0, 1000)
    assert store.do("get", KEY) is not None  # ASK
    for server in (target, source, *cluster):
        server.client().execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
    assert store.do("get", KEY) is not None  # MOVED
    assert store.do("get", KEY) is not None
    store.do("delete", KEY)


def test_a_seed_that_is_down_does_not_matter(
    open_store: OpenStore, cluster: list[RedisServer]
) -> None:
    store = open_store(f"redis+cluster://127.0.0.1:{free_port()},{cluster[1].endpoint}")
    store.do("set", KEY, fresh())
    assert store.do("get", KEY) is not None
    store.do("delete", KEY)


# --- Sentinel


@pytest.mark.slow
def test_sentinel_leads_to_the_master_through_a_failover(
    open_store: OpenStore, tmp_path: Path
) -> None:
    now = [0.0]
    with contextlib.ExitStack() as stack:
        pair = SentinelPair(stack, tmp_path)
        store = open_store(pair.url, monotonic=lambda: now[0])
        works(store)
        store.do("set", KEY, fresh())
        eventually(lambda: pair.replica.client().exists(Vault().name(KEY)), "replication")
        pair.master.kill()
        eventually(lambda: pair.leads_to(pair.replica), "the failover")
        with contextlib.suppress(BackendUnavailableError):
            # the event loop stood still meanwhile, so this call finds the connection broken
            store.do("get", KEY)
        now[0] += 3
        assert store.do("get", KEY) is not None
        store.do("set", KEY, fresh("of the new master"))


def test_a_master_that_was_demoted_is_left(open_store: OpenStore) -> None:
    with RedisServer() as old, RedisServer() as new:
        master = [old]

        def sentinel(connection: Any) -> None:
            while connection.recv(65536):
                port = str(master[0].port).encode()
                connection.sendall(b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%b\r\n" % (len(port), port))

        with Pretender(sentinel) as pretender:
            store = open_store(f"redis+sentinel://127.0.0.1:{pretender.port}/main")
            store.do("set", KEY, fresh("before"))
            old.client().replicaof("127.0.0.1", new.port)
            master[0] = new
            store.do("set", KEY, fresh("after"))
            assert new.client().exists(Vault().name(KEY))
            assert store.do("get", KEY).response.response == "after"


def test_no_sentinel_and_an_unknown_service_are_said_so(open_store: OpenStore) -> None:
    store = open_store(f"redis+sentinel://127.0.0.1:{free_port()}/main")
    with pytest.raises(BackendUnavailableError, match="'main'"):
        store.do("get", KEY)


# --- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"))


def test_tls_is_verified_against_the_authority_given(
    open_store: OpenStore, certificates: Path
) -> None:
    with tls_server(certificates, "server") as port:
        works(open_store(f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificates}/ca.pem"))
        with pytest.raises(BackendUnavailableError, match="no TLS"):
            open_store(f"rediss://127.0.0.1:{port}").do("get", KEY)
        with pytest.raises(BackendUnavailableError):
            open_store(f"redis://127.0.0.1:{port}").do("get", KEY)
        with pytest.raises(ConfigError, match="TLS files"):
            open_store(f"rediss://127.0.0.1:{port}?ssl_ca_certs=/nowhere.pem").do("get", KEY)


def test_tls_is_verified_against_the_host_name(open_store: OpenStore, certificates: Path) -> None:
    with tls_server(certificates, "elsewhere") as port:
        url = f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificates}/ca.pem"
        with pytest.raises(BackendUnavailableError, match="no TLS"):
            open_store(url).do("get", KEY)


def test_a_client_certificate_is_shown(open_store: OpenStore, certificates: Path) -> None:
    with tls_server(certificates, "server", client_certificates="yes") as port:
        url = f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificates}/ca.pem"
        mine = f"&ssl_certfile={certificates}/client.pem&ssl_keyfile={certificates}/client.key"
        works(open_store(url + mine))
        with pytest.raises(BackendUnavailableError):
            open_store(url).do("get", KEY)


def test_an_old_protocol_is_refused(open_store: OpenStore, certificates: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning):
        context.maximum_version = ssl.TLSVersion.TLSv1

    def serve(connection: Any) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            secured.recv(100)

    with Pretender(serve) as pretender:
        url = f"rediss://127.0.0.1:{pretender.port}?ssl_ca_certs={certificates}/ca.pem"
        with pytest.raises(BackendUnavailableError):
            open_store(url).do("get", KEY)
