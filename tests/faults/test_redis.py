"""Everything that can be wrong with Redis, one row of the fault matrix per test.

The rule for all of them: the answer comes as it would without a cache, exit 0, at most one line on
standard error, nothing wrong is ever served, and once the fault is gone the next run is an ordinary
hit or miss with nothing done by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import pickle
import random
import shutil
import socket
import ssl
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.backends.test_redis_faults import POISON
from tests.cli.outcome import with_peak_memory
from tests.conftest import Finished, Tinyllm
from tests.fake_ollama import FakeOllama
from tests.redis_server import (
    Pretender,
    RedisServer,
    SentinelPair,
    blackhole,
    eventually,
    free_port,
    loading,
    make_certificates,
    start_cluster,
    tls_server,
)
from tests.samples import answer, key_of
from tinyllm_cli.backends.redis import RedisBackend
from tinyllm_cli.entry import CacheEntry
from tinyllm_cli.metrics import CacheMetrics

KNOWN = "Known before?"
#: All that Redis may cost an answer, and what a busy machine may add to starting a process.
BUDGET_S = 0.5
SLACK_S = 2.0
#: For what is no matter of time.
PATIENT = "30s"
MAX_ENTRY_BYTES = 8 * 2**20

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def running() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    running.client().flushall()
    return running


@pytest.fixture(scope="module")
def uncached_s(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Give how long an answer takes with the cache off."""
    with FakeOllama() as ollama:
        tinyllm = Tinyllm(tmp_path_factory.mktemp("uncached"), ollama.url)
        started = time.monotonic()
        for _ in range(3):
            assert tinyllm("run", "New?", "--no-cache").code == 0
        return (time.monotonic() - started) / 3


class Team:
    """Two machines that share a Redis with which something is wrong: one stored what the other asks."""

    def __init__(
        self,
        author: Tinyllm,
        reader: Tinyllm,
        ollama: FakeOllama,
        url: str,
        backend: str,
        uncached_s: float,
    ) -> None:
        self.url = url
        self.ollama = ollama
        self.reader = reader
        self.backend = backend
        self.author = author
        self._uncached_s = uncached_s
        self._questions = 0
        self._known = b""

    def environ(self, url: str | None = None, timeout: str = PATIENT) -> dict[str, str]:
        return {
            "TINYLLM_CACHE_BACKEND": self.backend,
            "TINYLLM_REDIS_URL": self.url if url is None else url,
            "TINYLLM_REDIS_TIMEOUT": timeout,
        }

    def knows(self) -> None:
        """Store an answer while all is well."""
        done = self.author("run", KNOWN, environ=self.environ())
        assert (done.code, done.err) == (0, b"")
        self._known = done.out

    def ask(self, prompt: str, *options: str, url: str | None = None) -> Finished:
        return self.reader("run", prompt, *options, environ=self.environ(url))

    def hit(self, url: str | None = None) -> Finished:
        """What was stored comes, and nobody asks the model."""
        asked = self.ollama.generations
        done = self.ask(KNOWN, url=url)
        assert (done.code, done.out) == (0, self._known), done
        assert self.ollama.generations == asked
        return done

    def struck(
        self, says: str, url: str | None = None, *, hangs: bool = False, prompt: str | None = None
    ) -> Finished:
        """The answer comes from the model, in time, with one line that names the cause.

        What does not hang gets a limit so long that waiting for it would be noticed.
        """
        asked = self.ollama.generations
        timeout = f"{BUDGET_S}s" if hangs else PATIENT
        started = time.monotonic()
        done = self.reader("run", prompt or self._question(), environ=self.environ(url, timeout))
        seconds = time.monotonic() - started
        assert (done.code, self.ollama.generations) == (0, asked + 1), done
        assert done.out.startswith(b"Answer ")
        self.is_one_line(done, says)
        assert seconds < self._uncached_s + (BUDGET_S if hangs else 0) + SLACK_S
        return done

    def is_one_line(self, done: Finished, says: str) -> None:
        assert done.complaint.startswith("tinyllm: cache: "), done
        assert done.complaint.endswith("; continuing without it\n"), done
        assert done.complaint.count("\n") == 1, done
        assert says in done.complaint, done
        assert "hunter2" not in done.complaint

    def miss(self, prompt: str | None = None, url: str | None = None) -> Finished:
        """The model answers and nothing is said."""
        asked = self.ollama.generations
        done = self.ask(prompt or self._question(), url=url)
        assert (done.code, done.err) == (0, b""), done
        assert self.ollama.generations == asked + 1
        return done

    def healed(self, url: str | None = None, *, empty: bool = False) -> None:
        """All is as ever: what was stored is a hit, unless nothing was, and new answers are stored."""
        if not empty:
            assert self.hit(url).err == b""
        question = self._question()
        first = self.miss(question, url)
        again = self.ask(question, url=url)
        assert (again.code, again.out, again.err) == (0, first.out, b"")

    def _question(self) -> str:
        self._questions += 1
        return f"Question {self._questions}?"


@pytest.fixture(params=["redis", pytest.param("tiered", marks=slow)])
def team(
    request: pytest.FixtureRequest,
    another_tinyllm: Callable[[str], Tinyllm],
    ollama: FakeOllama,
    server: RedisServer,
    uncached_s: float,
) -> Team:
    author, reader = another_tinyllm("author"), another_tinyllm("reader")
    return Team(author, reader, ollama, server.url, request.param, uncached_s)


def entry_name(server: RedisServer) -> bytes:
    """Return what the one entry of a server is called."""
    (name,) = server.client().keys("tinyllm:cache:v1:*")
    assert isinstance(name, bytes)
    return name


def forward(connection: socket.socket, server: RedisServer, *, before: Callable[[bytes], Any],
            cut: Callable[[bytes], bytes] = bytes) -> None:  # fmt: skip
    """Pass requests on after `before` has seen them, and what `cut` leaves of the replies back."""
    with socket.create_connection(("127.0.0.1", server.port)) as behind:
        while request := connection.recv(65536):
            before(request)
            behind.sendall(request)
            whole = behind.recv(1 << 20)
            connection.sendall(cut(whole))
            if cut(whole) != whole:
                return


# --- nobody there, or nobody who answers


@pytest.mark.slow
def test_r01_port_closed(team: Team) -> None:
    with RedisServer() as own:
        team.url = own.url
        team.knows()
        own.kill()
        team.struck("refused")
        quiet = team.ask("Quiet?", "-q")
        assert (quiet.code, quiet.err) == (0, b"")
        strict = team.ask("Strict?", "--require-cache")
        assert (strict.code, strict.err.count(b"\n")) == (6, 2)
        own.start()
        team.healed(empty=True)


@pytest.mark.slow
def test_r02_connect_blackhole(team: Team) -> None:
    team.knows()
    with blackhole() as port:
        team.struck("in time", f"redis://127.0.0.1:{port}", hangs=True)
    team.healed()


@pytest.mark.slow
def test_r03_frozen(team: Team, server: RedisServer) -> None:
    team.knows()
    server.freeze()
    try:
        team.struck("in time", hangs=True)
    finally:
        server.thaw()
    team.healed()


@slow
@pytest.mark.parametrize("command", ["CLIENT PAUSE 5000 ALL", "DEBUG SLEEP 5"])
def test_r03_frozen_by_a_command(team: Team, server: RedisServer, command: str) -> None:
    team.knows()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(command.encode() + b"\r\n")
        team.struck("in time", hangs=True)
    eventually(server.client().ping)
    team.healed()


def test_r03_frozen_is_asked_once(team: Team) -> None:
    """The run that was kept waiting for a look-up does not wait to store the answer as well."""

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        DONE.wait()

    DONE.clear()
    with Pretender(serve) as pretender:
        team.struck("in time", pretender.url, hangs=True)
        DONE.set()
        assert pretender.connections == 1


DONE = threading.Event()


@slow
def test_r03_half_open(team: Team, tmp_path: Path) -> None:
    """The cable is pulled while a run waits for the model: nothing says that the server is gone."""
    with other_network() as (prefix, cable):
        own = RedisServer("--bind", OTHER_HOST, "--protected-mode", "no",
                          client={"host": OTHER_HOST}, prefix=prefix)  # fmt: skip
        with own:
            team.url = f"redis://{OTHER_HOST}:{own.port}"
            team.knows()
            held = team.ollama.hold()
            process = team.reader.start("run", "New?", environ=team.environ(timeout=f"{BUDGET_S}s"))
            held.wait_for(1, timeout=30)
            cable("down")
            held.release()
            out, err = process.communicate(timeout=30)
            assert (process.returncode, out[:7]) == (0, b"Answer ")
            team.is_one_line(Finished(0, out, err), "in time")
            team.struck("in time", hangs=True)
            cable("up")
            eventually(own.client().ping)
            team.healed()


OTHER_HOST = "10.213.77.2"


@contextlib.contextmanager
def other_network() -> Iterator[tuple[list[str], Callable[[str], object]]]:
    """Give how a command begins that runs at the other end of a cable, and a way to pull that."""
    tools = [tool for tool in ("unshare", "nsenter", "ip") if shutil.which(tool) is None]
    if tools:
        pytest.skip(f"no {tools[0]} on this machine")
    if os.geteuid() != 0:
        pytest.skip("only root may lay a cable between two networks")
    name = f"tll{os.getpid()}"
    there = subprocess.Popen(["unshare", "-n", "sleep", "infinity"])
    inside = ["nsenter", "-t", str(there.pid), "-n"]
    ours, theirs = f"{name}a", f"{name}b"

    def ip(*words: str, begin: list[str] = []) -> None:  # noqa: B006 - read only
        subprocess.run([*begin, "ip", *words], check=True, capture_output=True)

    try:
        eventually(
            lambda: os.readlink(f"/proc/{there.pid}/ns/net") != os.readlink("/proc/self/ns/net")
        )
        try:
            ip("link", "add", ours, "type", "veth", "peer", "name", theirs)
        except subprocess.CalledProcessError as exc:
            pytest.skip(f"no cable can be laid here: {exc.stderr.decode().strip()}")
        ip("link", "set", theirs, "netns", str(there.pid))
        ip("addr", "add", f"{OTHER_HOST[:-1]}1/24", "dev", ours)
        ip("link", "set", ours, "up")
        ip("addr", "add", f"{OTHER_HOST}/24", "dev", theirs, begin=inside)
        ip("link", "set", theirs, "up", begin=inside)
        ip("link", "set", "lo", "up", begin=inside)
        yield inside, lambda state: ip("link", "set", theirs, state, begin=inside)
    finally:
        subprocess.run(["ip", "link", "delete", ours], capture_output=True)
        there.kill()
        there.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    "seconds", [pytest.param(0.01, marks=slow), 0.1, pytest.param(0.4, marks=slow)]
)
def test_r04_slow_but_in_time(team: Team, server: RedisServer, seconds: float) -> None:
    team.knows()
    DONE.clear()
    way = Pretender(
        lambda connection: forward(connection, server, before=lambda _: DONE.wait(seconds))
    )
    with way as pretender:
        assert team.hit(pretender.url).err == b""
    team.healed()


def test_r04_too_slow(team: Team, server: RedisServer) -> None:
    team.knows()
    DONE.clear()
    way = Pretender(lambda connection: forward(connection, server, before=lambda _: DONE.wait(30)))
    with way as pretender:
        team.struck("in time", pretender.url, hangs=True, prompt=KNOWN)
        DONE.set()
    # what was asked before was stored under nobody's eyes only if the way let it through
    assert team.ask(KNOWN).err == b""


def test_r05_drip(team: Team) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        while not DONE.wait(0.1):
            connection.sendall(b"$")

    team.knows()
    DONE.clear()
    with Pretender(serve) as pretender:
        team.struck("", pretender.url, hangs=True)
        DONE.set()
    team.healed()


def test_r05_endless_value(team: Team) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"$999999999999\r\n")
        while not DONE.is_set():
            connection.sendall(b"x" * 65536)

    team.knows()
    DONE.clear()
    with Pretender(serve) as pretender:
        team.struck("is not Redis", pretender.url)
        DONE.set()
    team.healed()


# --- it goes away, or is not itself


@pytest.mark.parametrize(
    "share", [0.5, *(pytest.param(n / 12, marks=slow) for n in (*range(6), *range(7, 12), 11.99))]
)
def test_r06_killed_mid_reply(team: Team, server: RedisServer, share: float) -> None:
    """The reply to a look-up ends after some of its bytes, the last of which is all but whole."""
    team.knows()

    def cut(reply: bytes) -> bytes:
        return reply[: min(len(reply) - 1, int(len(reply) * share))] if b'"v":1' in reply else reply

    way = Pretender(lambda connection: forward(connection, server, before=bytes, cut=cut))
    with way as pretender:
        team.struck("cannot reach", pretender.url, prompt=KNOWN)
    assert team.ask(KNOWN).err == b""


@slow
def test_r06_killed_again_and_again(team: Team) -> None:
    """Runs while a server dies every few hundredths of a second: always an answer, the right one."""
    with RedisServer() as own:
        team.url = own.url
        team.knows()
        stop = threading.Event()

        def loop() -> None:
            seed = random.Random(6)
            while not stop.is_set():
                stop.wait(seed.uniform(0.0, 0.1))
                own.kill()
                own.start(wait=False)

        killer = threading.Thread(target=loop)
        killer.start()
        answers: dict[str, set[bytes]] = {}
        try:
            for n in range(40):
                prompt = f"Storm {n % 4}?"
                asked = team.ollama.generations
                done = team.ask(prompt)
                assert done.code == 0, done
                assert done.err.count(b"\n") <= 1
                if team.ollama.generations == asked:
                    assert done.out in answers[prompt]
                answers.setdefault(prompt, set()).add(done.out)
        finally:
            stop.set()
            killer.join()
        eventually(own.client().ping)
        team.healed(empty=True)


@pytest.mark.slow
def test_r07_loading(team: Team) -> None:
    with RedisServer("--save", "3600 1") as own:
        team.url = own.url
        team.knows()
        with own.client().pipeline() as filling:
            for n in range(300):
                filling.set(f"filling:{n}", os.urandom(100))
            filling.execute()
        with loading(own):
            team.struck("LOADING")
        team.healed()


def test_r08_out_of_memory(team: Team, server: RedisServer) -> None:
    team.knows()
    server.client().config_set("maxmemory", 1)
    try:
        team.struck("out of memory")
        team.hit()
    finally:
        server.client().config_set("maxmemory", 0)
    team.healed()


@pytest.mark.slow
def test_r09_read_only(team: Team, server: RedisServer) -> None:
    client = server.client()
    team.knows()
    client.replicaof("127.0.0.1", 1)
    try:
        team.struck("read-only")
        team.hit()
        client.config_set("replica-serve-stale-data", "no")
        team.struck("MASTERDOWN")
    finally:
        client.config_set("replica-serve-stale-data", "yes")
        client.replicaof("NO", "ONE")
    team.healed()


@slow
def test_r09_sentinel_failover(team: Team, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        pair = SentinelPair(stack, tmp_path)
        team.url = pair.url
        team.knows()
        eventually(lambda: pair.replica.client().keys("tinyllm:cache:v1:*"), "replication")
        pair.master.freeze()
        try:
            team.struck("in time", hangs=True)
            eventually(lambda: pair.leads_to(pair.replica), "the failover")
            eventually(
                lambda: pair.replica.client().info("replication")["role"] == "master", "the master"
            )
            team.healed()
        finally:
            pair.master.thaw()


@slow
def test_r10_moved(team: Team) -> None:
    with contextlib.ExitStack() as stack:
        empty, full = start_cluster(stack, (0, 16384))
        team.url = f"redis+cluster://{full.endpoint}"
        team.knows()
        team.struck("redis+cluster://", empty.url)
        team.healed()
        team.healed(f"redis+cluster://{empty.endpoint}")


@pytest.mark.slow
def test_r10_cluster_down(team: Team) -> None:
    with RedisServer("--cluster-enabled", "yes", "--cluster-port", str(free_port())) as node:
        team.knows()
        team.struck("CLUSTERDOWN", node.url)
        team.struck("CLUSTERDOWN", f"redis+cluster://{node.endpoint}")
        node.client().execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        eventually(lambda: b"state:ok" in node.client().execute_command("CLUSTER", "INFO"))
        team.healed(f"redis+cluster://{node.endpoint}", empty=True)


@pytest.mark.slow
def test_r11_cannot_save(team: Team) -> None:
    with RedisServer() as own:
        client = own.client()
        team.url = own.url
        team.knows()
        obstacle = own.folder / "dump.rdb"
        obstacle.mkdir()
        client.config_set("save", "3600 1")
        client.bgsave()
        eventually(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
        team.struck("MISCONF")
        team.hit()
        obstacle.rmdir()
        client.bgsave()
        eventually(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "ok")
        team.healed()


@pytest.mark.slow
def test_r11_busy(team: Team, server: RedisServer) -> None:
    client, other = server.client(), server.new_client()
    team.knows()
    client.config_set("busy-reply-threshold", 10)

    def hold() -> None:
        with contextlib.suppress(redis.RedisError):
            other.eval("while true do end", 0)

    script = threading.Thread(target=hold)
    script.start()
    try:
        eventually(lambda: is_busy(server))
        team.struck("BUSY")
    finally:
        client.script_kill()
        script.join()
        other.close()
    team.healed()


def is_busy(server: RedisServer) -> bool:
    try:
        server.client().ping()
    except redis.RedisError as exc:
        return "BUSY" in str(exc)
    return False


def test_r11_too_many_clients(team: Team, server: RedisServer) -> None:
    client = server.client()
    team.knows()
    before = client.config_get("maxclients")["maxclients"]
    client.config_set("maxclients", 1)
    try:
        team.struck("max number of clients")
    finally:
        client.config_set("maxclients", before)
    team.healed()


def test_r11_something_else_under_our_name(team: Team, server: RedisServer) -> None:
    team.knows()
    name = entry_name(server)
    client = server.client()
    client.delete(name)
    client.lpush(name, "somebody's")
    team.struck("WRONGTYPE", prompt=KNOWN)
    assert client.lrange(name, 0, -1) == [b"somebody's"]
    client.delete(name)
    team.healed(empty=True)


def test_r12_not_let_in(team: Team, server: RedisServer) -> None:
    client = server.client()
    wrong = f"redis://alice:hunter2@127.0.0.1:{server.port}"
    team.knows()
    team.struck("authentication failed", wrong)
    client.execute_command("ACL", "SETUSER", "alice", "on", ">hunter2", "~*", "+ping")
    try:
        team.struck("lacks the right to GETRANGE", wrong)
    finally:
        client.acl_deluser("alice")
    client.config_set("requirepass", "hunter2hunter2")
    try:
        team.struck("authentication failed")
        # what lets the team in again is the password
        team.healed(f"redis://:hunter2hunter2@127.0.0.1:{server.port}")
    finally:
        client.config_set("requirepass", "")


# --- something else is there


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.mark.slow
def test_r13_no_tls_there(team: Team, server: RedisServer) -> None:
    team.knows()
    team.struck("", server.url.replace("redis:", "rediss:"), hangs=True)
    team.healed()


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("name", "trusted"),
    [("server", False), ("elsewhere", True), ("expired", True)],
    ids=["of an unknown authority", "of another host", "expired"],
)
def test_r13_wrong_certificate(team: Team, certificates: Path, name: str, trusted: bool) -> None:
    authority = f"?ssl_ca_certs={certificates}/ca.pem"
    with tls_server(certificates, name) as port:
        team.struck("no TLS", f"rediss://127.0.0.1:{port}" + (authority if trusted else ""))
        if not trusted:
            team.healed(f"rediss://127.0.0.1:{port}{authority}", empty=True)


def test_r13_old_protocol(team: Team, certificates: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            secured.recv(100)

    with Pretender(serve) as pretender:
        url = f"rediss://127.0.0.1:{pretender.port}?ssl_ca_certs={certificates}/ca.pem"
        team.struck("no TLS", url)


@pytest.mark.parametrize(
    "greeting",
    [
        pytest.param(b"", id="web"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", id="ssh", marks=slow),
        pytest.param(bytes(range(256)) * 16, id="garbage", marks=slow),
    ],
)
def test_r14_not_redis(team: Team, greeting: bytes) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(greeting)
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno")

    team.knows()
    with Pretender(serve) as pretender:
        team.struck("is not Redis", pretender.url)
    team.healed()


# --- what it holds is not what we stored


class Payload:
    """Unpickled, it makes a directory."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._place),)


QUICK_POISON = ("200000 brackets", "of another key")


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[] if kind in QUICK_POISON else [slow]) for kind in POISON],
)
def test_r15_poisoned_value(team: Team, server: RedisServer, kind: str) -> None:
    team.knows()
    name = entry_name(server)
    server.client().set(name, POISON[kind])
    fresh = team.miss(KNOWN)
    assert server.client().get(name).startswith(b'{"v":1,')
    again = team.ask(KNOWN)
    assert (again.out, again.err) == (fresh.out, b"")


def test_r15_swapped_values(team: Team, server: RedisServer) -> None:
    """Two answers of our own, each under the name of the other."""
    client = server.client()
    team.knows()
    one = entry_name(server)
    other_machine = team.environ()
    assert team.reader("run", "Another?", environ=other_machine).code == 0
    (two,) = set(client.keys("tinyllm:cache:v1:*")) - {one}
    first, second = client.get(one), client.get(two)
    client.mset({one: second, two: first})
    fresh = team.miss(KNOWN)
    assert team.ask(KNOWN).out == fresh.out
    assert client.get(two) == first


def test_r15_runs_no_code(team: Team, server: RedisServer, tmp_path: Path) -> None:
    team.knows()
    name = entry_name(server)
    for head in (b"", b'{"v":1,"digest":"'):
        server.client().set(name, head + pickle.dumps(Payload(tmp_path / "ran")))
        assert team.ask(KNOWN).code == 0, head
    assert not (tmp_path / "ran").exists()


def test_r16_huge_value_is_not_fetched(team: Team, server: RedisServer) -> None:
    client = server.client()
    team.knows()
    name = entry_name(server)
    client.set(name, b"not ours")
    client.setrange(name, 64 * 2**20, b"x")
    before = client.info("stats")["total_net_output_bytes"]
    done, peak = with_peak_memory(team.reader, "run", KNOWN, environ=team.environ())
    assert (done.code, done.err) == (0, b"")
    assert client.info("stats")["total_net_output_bytes"] - before < MAX_ENTRY_BYTES + 2**20
    assert peak < 2**26 + 3 * MAX_ENTRY_BYTES
    assert client.strlen(name) < 2**20
    client.delete(name)
    team.healed(empty=True)


def test_r17_evicted_as_it_is_read(team: Team, server: RedisServer) -> None:
    """Between the question whether it is there and the reading nothing can happen: there is one command."""
    client = server.client()
    team.knows()
    name = entry_name(server)

    def before(request: bytes) -> None:
        if name in request and not evicted:
            evicted.append(client.delete(name))

    evicted: list[int] = []
    with server.monitored() as monitor:
        way = Pretender(lambda connection: forward(connection, server, before=before))
        with way as pretender:
            team.miss(KNOWN, pretender.url)
        sent = {words[0] for words in monitor.commands() if name.decode() in words[1:2]}
    assert evicted == [1]
    assert sent == {"GETRANGE", "DEL", "SET"}
    team.healed(empty=True)


# --- in a program


def fresh_entry(text: str = "Because.") -> CacheEntry:
    return CacheEntry(answer(text), created_at=time.time(), ttl=600)


@slow
def test_r18_cancellation_storm(server: RedisServer) -> None:
    """100,000 look-ups, half of them cancelled at random, over a way that takes a tenth of a second."""
    seed = random.Random(7)

    def serve(connection: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", server.port)) as behind:
            back = threading.Thread(target=pass_back, args=(behind, connection))
            back.start()
            while request := connection.recv(1 << 20):
                time.sleep(0.1)
                behind.sendall(request)
            behind.shutdown(socket.SHUT_RDWR)
            back.join()

    def pass_back(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while reply := source.recv(1 << 20):
                target.sendall(reply)

    async def storm(url: str) -> None:
        backend = RedisBackend(url=url, timeout=60)
        keys = [key_of(n) for n in range(200)]
        answered = 0

        async def one(key: str) -> None:
            nonlocal answered
            found = await backend.get(key)
            assert found is not None
            assert found.response.response == key
            answered += 1

        for _ in range(50):
            tasks = [asyncio.create_task(one(seed.choice(keys))) for _ in range(2000)]
            waiting = asyncio.gather(*tasks, return_exceptions=True)
            for _ in range(5):
                await asyncio.sleep(0.02)
                for task in seed.sample(tasks, 250):
                    task.cancel()
            for end in await waiting:
                assert end is None or isinstance(end, asyncio.CancelledError)
        assert answered > 40_000
        await backend.close()

    async def fill() -> None:
        backend = RedisBackend(url=server.url, timeout=60)
        for n in range(200):
            await backend.set(key_of(n), fresh_entry(key_of(n)))
        await backend.close()

    asyncio.run(fill())
    with Pretender(serve) as pretender:
        asyncio.run(storm(pretender.url))
        assert pretender.connections == 1  # none was given up, none was added


def test_r19_second_event_loop(server: RedisServer) -> None:
    backend = RedisBackend(url=server.url, timeout=30)

    async def forgetful(hits: int) -> None:
        await backend.set(key_of("a question"), fresh_entry())
        assert await backend.get(key_of("a question")) is not None
        backend.count("llama3.2", CacheMetrics(hits=hits))

    files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for hits in (1, 2):
            asyncio.run(forgetful(hits))
        gc.collect()
    assert [str(one.message) for one in caught] == []
    assert server.client().hget("tinyllm:cache:stats:v1:default", "llama3.2 hits") == b"3"
    if files:
        assert len(os.listdir("/proc/self/fd")) <= files + 1


def test_r19_loop_ends_with_a_write_pending(server: RedisServer) -> None:
    backend = RedisBackend(url=server.url, timeout=30)
    writes: set[asyncio.Task[None]] = set()

    async def hasty() -> None:
        await backend.set(key_of("first"), fresh_entry())
        for n in range(20):
            writes.add(asyncio.create_task(backend.set(key_of(n), fresh_entry(str(n)))))
        await asyncio.sleep(0)

    async def later() -> list[CacheEntry | None]:
        try:
            return [await backend.get(key_of(n)) for n in range(20)]
        finally:
            await backend.close()

    asyncio.run(hasty())
    assert all(task.done() for task in writes)
    for n, found in enumerate(asyncio.run(later())):
        assert found is None or found.response.response == str(n)


# --- settings, clocks, neighbours


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2@h:notaport",
        "redis:/x",
        "http://alice:hunter2@h",
        "redis://:hunter2@h/notadb",
        "redis://:hunter2@h%zz",
        " ",
        "redis://:hunter2@a host/0",
    ],
)
def test_r20_bad_url(tinyllm: Tinyllm, ollama: FakeOllama, url: str) -> None:
    environ = {"TINYLLM_CACHE_BACKEND": "redis", "TINYLLM_REDIS_URL": url}
    done = tinyllm("run", KNOWN, environ=environ)
    assert (done.code, done.out, done.err.count(b"\n")) == (2, b"", 2)
    assert "TINYLLM_REDIS_URL" in done.complaint
    assert "hunter2" not in done.complaint
    assert ("***" in done.complaint) == ("hunter2" in url)
    assert ollama.log == []


@pytest.mark.slow
@pytest.mark.parametrize("hours", [pytest.param(-1, marks=slow), 1])
def test_r21_clock_an_hour_off(team: Team, server: RedisServer, tmp_path: Path, hours: int) -> None:
    """The machine that stored is right, the one that asks is not; and the other way round."""
    client = server.client()
    shift = tmp_path / "shift"
    shift.mkdir()
    (shift / "sitecustomize.py").write_text(
        f"import time\n_right = time.time\ntime.time = lambda: _right() + {3600 * hours}\n"
    )
    off = {**team.environ(), "PYTHONPATH": str(shift)}
    ttl = {"TINYLLM_CACHE_TTL": "30m"}
    right = team.author("run", KNOWN, environ={**team.environ(), **ttl})
    name = entry_name(server)
    assert 0 < client.pttl(name) <= 1_800_000
    left = client.pttl(name)
    found = team.reader("run", KNOWN, environ={**off, **ttl})
    assert (found.code, found.out, found.err) == (0, right.out, b"")
    assert client.pttl(name) <= left
    assert team.reader("run", "Asked by the wrong clock?", environ={**off, **ttl}).err == b""
    (other,) = set(client.keys("tinyllm:cache:v1:*")) - {name}
    assert 1_700_000 < client.pttl(other) <= 1_800_000
    asked = team.ollama.generations
    assert (
        team.author("run", "Asked by the wrong clock?", environ={**team.environ(), **ttl}).err
        == b""
    )
    assert team.ollama.generations == asked
    if team.backend == "redis":
        client.delete(name)  # as it does itself when the time has come
        team.reader("run", KNOWN, environ={**off, **ttl})
        assert team.ollama.generations == asked + 1


def test_r22_foreign_keys_stay_as_they_are(team: Team, server: RedisServer) -> None:
    client = server.client()
    team.knows()
    digits = entry_name(server).rpartition(b":")[2]
    client.set(b"session:\x00\xff", b"\x00\x01", px=3_600_000)
    client.set(b"tinyllm:cache:v1:default:note", b"somebody's")
    client.set(b"tinyllm:cache:v1:other:" + digits, b"of another namespace")
    client.set(b"tinyllm:cache:v1:default:sub:" + digits, b"longer")
    client.set(b"\x00\xff[*?]", b"\x00binary\xff")
    client.rpush("queue", "a", "b")
    client.hset("hash", "a", "b")
    client.xadd("stream", {"a": "b"}, id="1-1")
    before = {
        key: client.dump(key)
        for key in client.scan_iter()
        if not key.endswith(b"default:" + digits)
    }
    foreign = {key: dump for key, dump in before.items() if b":stats:" not in key}
    expiry = client.pexpiretime(b"session:\x00\xff")
    with server.monitored() as monitor:
        cleared = team.reader("cache-clear", "-y", environ=team.environ())
        sent = {command[0] for command in monitor.commands()}
    assert (cleared.code, cleared.err) == (0, b"")
    assert cleared.text.startswith("removed 1 entry")
    assert sent <= {"UNLINK", "SCAN", "STRLEN", "DBSIZE"}
    assert {key: client.dump(key) for key in foreign} == foreign
    assert client.pexpiretime(b"session:\x00\xff") == expiry
    assert not client.keys(b"tinyllm:cache:v1:default:" + digits)
    team.healed(empty=True)


@pytest.mark.slow
def test_r23_another_release_on_the_same_server(team: Team, server: RedisServer) -> None:
    """What lies under the names of an older and a newer format is neither read, counted nor removed."""
    client = server.client()
    team.knows()
    name = entry_name(server)
    neighbours = {
        name.replace(b":v1:", b":v0:"): b"older",
        name.replace(b":v1:", b":v2:"): b"newer",
    }
    for theirs, value in neighbours.items():
        client.set(theirs, value)
    assert team.hit().err == b""
    stats = team.reader("cache-stats", "--json", environ=team.environ())
    figures = json.loads(stats.out)
    assert figures.get("shared", figures)["entries"] == 1
    client.delete(name)
    if team.backend == "redis":
        team.miss(KNOWN)
    assert team.reader("cache-clear", "-y", environ=team.environ()).code == 0
    assert {theirs: client.get(theirs) for theirs in neighbours} == neighbours
    team.healed(empty=True)
