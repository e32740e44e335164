"""What is particular to the Redis backend: one connection for all tasks, and what it does to the server."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import socket
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator

import pytest

from tests.redis_server import Pretender, RedisServer, eventually
from tests.samples import answer, entry, key_of
from tinyllm_cli.backends.inventory import Filter
from tinyllm_cli.backends.redis import RedisBackend
from tinyllm_cli.backends.resp import pack
from tinyllm_cli.entry import CacheEntry
from tinyllm_cli.errors import BackendUnavailableError, CacheError, ConfigError
from tinyllm_cli.metrics import CacheMetrics

KEY = key_of("a question")
Test = Callable[[RedisBackend], Awaitable[None]]


@pytest.fixture(scope="module")
def running() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    running.client().flushall()
    return running


def fresh(text: str = "Because.", ttl: float | None = 60) -> CacheEntry:
    return CacheEntry(answer(text), created_at=time.time(), ttl=ttl, seconds=1.5)


def run(server: RedisServer, test: Test, **options: object) -> None:
    async def whole() -> None:
        patient = {"timeout": 20.0, **options}
        backend = RedisBackend(url=server.url, **patient)  # type: ignore[arg-type] # of any kind
        try:
            await test(backend)
        finally:
            await backend.close()

    asyncio.run(whole())


# --- what the server is asked


def test_a_hit_is_one_command_and_moves_no_expiry(server: RedisServer) -> None:
    client = server.client()

    async def test(backend: RedisBackend) -> None:
        await backend.set(KEY, fresh())
        client.pexpire(backend.name(KEY), 30_000)
        with server.monitored() as monitor:
            for _ in range(3):
                assert await backend.get(KEY) is not None
            sent = [command[0] for command in monitor.commands()]
        assert sent == ["GETRANGE"] * 3
        assert client.pttl(backend.name(KEY)) <= 30_000

    run(server, test)


def test_a_miss_that_is_stored_costs_one_command_more(server: RedisServer) -> None:
    async def test(backend: RedisBackend) -> None:
        with server.monitored() as monitor:
            assert await backend.get(KEY) is None
            await backend.set(KEY, fresh())
            sent = monitor.commands()
        assert [command[0] for command in sent] == ["GETRANGE", "SET"]
        assert "PX" in sent[1]

    run(server, test)


def test_what_is_asked_in_one_turn_of_the_loop_leaves_in_one_write(server: RedisServer) -> None:
    client = server.client()

    async def test(backend: RedisBackend) -> None:
        keys = [key_of(n) for n in range(64)]
        for key in keys:
            await backend.set(key, fresh(key))
        before = client.info("stats")["total_reads_processed"]
        found = await asyncio.gather(*(backend.get(key) for key in keys))
        reads = client.info("stats")["total_reads_processed"] - before
        assert [one.response.response for one in found if one is not None] == keys
        assert reads <= 4  # the first one alone, the others together, and our own INFO

    run(server, test)
    assert client.info("stats")["rejected_connections"] == 0


def test_counters_go_in_batches_and_are_the_sum_of_all_processes(server: RedisServer) -> None:
    async def test(backend: RedisBackend) -> None:
        for _ in range(10):
            backend.count("llama3.2", CacheMetrics(hits=1, time_saved_s=0.25, tokens_saved=7))
        backend.count("", CacheMetrics(errors=1))

    with server.monitored() as monitor:
        run(server, test)
        assert len(monitor.commands()) == 4
    run(server, test)

    async def read(backend: RedisBackend) -> None:
        stats = await backend.stats()
        by_model = {row.model: row.metrics for row in stats.models}
        assert by_model["llama3.2"] == CacheMetrics(hits=20, time_saved_s=5.0, tokens_saved=140)
        assert by_model[""].errors == 2
        assert stats.server_policy == "noeviction"
        assert stats.server_evictions == 0
        await backend.reset_counters()
        assert not (await backend.stats()).metrics

    run(server, read)


def test_counters_are_sent_while_a_long_lived_process_runs(server: RedisServer) -> None:
    client = server.client()

    async def test(backend: RedisBackend) -> None:
        assert await backend.get(KEY) is None
        for _ in range(300):
            backend.count("llama3.2", CacheMetrics(hits=1))
        name = b"tinyllm:cache:stats:v1:default"
        async with asyncio.timeout(10):
            while client.hget(name, "llama3.2 hits") != b"300":  # noqa: ASYNC110 - the server tells nobody
                await asyncio.sleep(0.001)

    run(server, test)


def test_a_poisoned_hash_of_counters_shows_what_can_be_read(server: RedisServer) -> None:
    name = "tinyllm:cache:stats:v1:default"
    server.client().hset(
        name,
        mapping={"m hits": "3", "m sets": "x", "m misses": "9" * 400, "": "1", b"\xff hits": "-2"},
    )

    async def test(backend: RedisBackend) -> None:
        metrics = (await backend.stats()).metrics
        assert (metrics.hits, metrics.sets, metrics.misses) == (1, 0, 0)

    run(server, test)


def test_the_expiry_is_the_servers_own(server: RedisServer) -> None:
    async def test(backend: RedisBackend) -> None:
        await backend.set(KEY, fresh(ttl=0.05))
        client = server.client()
        assert 0 < client.pttl(backend.name(KEY)) <= 50
        eventually(lambda: not client.exists(backend.name(KEY)), "the expiry")
        assert await backend.get(KEY) is None
        await backend.set(KEY, fresh(ttl=None))
        assert client.pttl(backend.name(KEY)) == -1

    run(server, test)


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_an_hour_off_changes_nothing(server: RedisServer, hours: int) -> None:
    async def store(backend: RedisBackend) -> None:
        await backend.set(KEY, fresh(ttl=60))

    async def read(backend: RedisBackend) -> None:
        found = await backend.get(KEY)
        assert found is not None
        assert not found.is_expired(time.time() + 3600 * hours)
        server.client().delete(backend.name(KEY))
        assert await backend.get(KEY) is None

    run(server, store)
    run(server, read, clock=lambda: time.time() + 3600 * hours)


def test_what_is_kept_past_its_ttl_is_not_fresh(server: RedisServer) -> None:
    async def test(backend: RedisBackend) -> None:
        stored = CacheEntry(answer(), created_at=time.time() - 50, ttl=10, grace=3600)
        await backend.set(KEY, stored)
        assert await backend.get(KEY) is None
        spare = await backend.look(KEY)
        assert spare is not None
        assert 49 < spare.age() < 60

    run(server, test, grace=3600.0)


def test_an_entry_somebody_made_immortal_is_removed(server: RedisServer) -> None:
    async def test(backend: RedisBackend) -> None:
        past = CacheEntry(answer(), created_at=time.time() - 50, ttl=10)
        server.client().set(backend.name(KEY), backend._work.vault.seal(KEY, past))
        assert await backend.get(KEY) is None
        assert not server.client().exists(backend.name(KEY))

    run(server, test)


# --- one connection for all tasks


def test_a_cancelled_task_never_shifts_the_replies(server: RedisServer) -> None:
    seed = random.Random(4)
    before = server.client().info("clients")["connected_clients"]

    async def test(backend: RedisBackend) -> None:
        keys = [key_of(n) for n in range(50)]
        for key in keys:
            await backend.set(key, fresh(key))

        async def one(key: str) -> None:
            found = await backend.get(key)
            assert found is not None
            assert found.response.response == key

        for _ in range(60):
            tasks = [asyncio.create_task(one(seed.choice(keys))) for _ in range(50)]
            for _ in range(seed.randrange(4)):
                await asyncio.sleep(0)
            doomed = seed.sample(tasks, 25)
            for task in doomed:
                task.cancel()
            for task, end in zip(
                tasks, await asyncio.gather(*tasks, return_exceptions=True), strict=True
            ):
                assert end is None or (task in doomed and isinstance(end, asyncio.CancelledError))
        assert server.client().info("clients")["connected_clients"] == before + 1

    run(server, test)


@pytest.mark.slow
def test_a_storm_of_cancellations_through_a_slow_way_gives_nobody_anothers_answer(
    server: RedisServer,
) -> None:
    """100,000 look-ups, half of them cancelled at random, over a way that takes a tenth of a second."""
    seed = random.Random(7)

    def serve(connection: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", server.port)) as behind:
            back = threading.Thread(target=forward, args=(behind, connection))
            back.start()
            while request := connection.recv(1 << 20):
                time.sleep(0.1)
                behind.sendall(request)
            behind.shutdown(socket.SHUT_RDWR)
            back.join()

    def forward(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while reply := source.recv(1 << 20):
                target.sendall(reply)

    async def storm(url: str) -> None:
        backend = RedisBackend(url=url, timeout=30)
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

    async def fill(backend: RedisBackend) -> None:
        for n in range(200):
            await backend.set(key_of(n), fresh(key_of(n)))

    run(server, fill)
    with Pretender(serve) as pretender:
        asyncio.run(storm(pretender.url))


def test_late_replies_take_their_connection_with_them(server: RedisServer) -> None:
    """What a server that slept sends afterwards is nobody's answer."""
    now = [0.0]

    async def test(backend: RedisBackend) -> None:
        for n in range(10):
            await backend.set(key_of(n), fresh(str(n)))
        server.freeze()
        try:
            started = time.monotonic()
            ends = await asyncio.gather(
                *(backend.get(key_of(n)) for n in range(5)), return_exceptions=True
            )
            assert all(isinstance(end, BackendUnavailableError) for end in ends)
            assert len({id(end) for end in ends}) == 5
            assert time.monotonic() - started < 0.3
            with pytest.raises(BackendUnavailableError, match="left alone"):
                await backend.get(key_of(5))
        finally:
            server.thaw()
        now[0] += 3
        for n in range(9, -1, -1):
            found = await backend.get(key_of(n))
            assert found is not None
            assert found.response.response == str(n)

    run(server, test, timeout=0.2, monotonic=lambda: now[0])


def test_one_call_probes_a_server_that_failed(server: RedisServer) -> None:
    now = [0.0]

    async def test(backend: RedisBackend) -> None:
        await backend.set(KEY, fresh())
        server.freeze()
        try:
            with pytest.raises(BackendUnavailableError, match="in time"):
                await backend.get(KEY)
            now[0] += 3
            ends = await asyncio.gather(
                *(backend.get(KEY) for _ in range(10)), return_exceptions=True
            )
            assert sorted("in time" in str(end) for end in ends) == [False] * 9 + [True]
        finally:
            server.thaw()
        now[0] += 1
        with pytest.raises(BackendUnavailableError, match="left alone"):
            await backend.get(KEY)
        async with asyncio.timeout(20):  # the server may need a moment to be itself again
            found: object = None
            while not isinstance(found, CacheEntry):
                now[0] += 2
                ends = await asyncio.gather(
                    *(backend.get(KEY) for _ in range(10)), return_exceptions=True
                )
                found = ends[0]
        assert all(isinstance(end, (CacheEntry, BackendUnavailableError)) for end in ends)
        assert await backend.get(KEY) is not None

    run(server, test, timeout=0.2, monotonic=lambda: now[0])


def test_a_loop_that_was_held_up_itself_does_not_blame_the_server(server: RedisServer) -> None:
    async def test(backend: RedisBackend) -> None:
        large = random.Random(1).randbytes(1_500_000).hex()  # takes the loop several turns to read
        await backend.set(KEY, fresh(large))
        asking = asyncio.create_task(backend.get(KEY))
        await asyncio.sleep(0)
        time.sleep(0.6)  # noqa: ASYNC251 - somebody else's code in the same loop
        assert await asking is not None

    run(server, test, timeout=0.4)


def test_a_reply_nobody_asked_for_ends_the_connection() -> None:
    replies = [pack((entry_bytes(),)).partition(b"\r\n")[2]]

    def serve(connection: socket.socket) -> None:
        while connection.recv(65536):
            connection.sendall(replies[0] * 2)

    async def test() -> None:
        backend = RedisBackend(url=pretender.url)
        first = await backend.get(KEY)
        assert first is not None
        with pytest.raises(CacheError):
            for _ in range(3):
                await backend.get(key_of("another"))
                await asyncio.sleep(0)
        await backend.close()

    with Pretender(serve) as pretender:
        asyncio.run(test())


def entry_bytes() -> bytes:
    from tinyllm_cli.backends.redis_vault import Vault

    return Vault().seal(KEY, fresh())


def test_a_server_that_closes_idle_connections_costs_nothing(server: RedisServer) -> None:
    async def test(backend: RedisBackend) -> None:
        await backend.set(KEY, fresh())
        for _ in range(3):
            server.client().execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await asyncio.sleep(0.02)
            assert await backend.get(KEY) is not None

    run(server, test)


def test_the_end_of_a_loop_sends_the_counters_and_leaves_no_socket(server: RedisServer) -> None:
    backend = RedisBackend(url=server.url)

    async def forgetful(hits: int) -> None:
        await backend.set(KEY, fresh())
        assert await backend.get(KEY) is not None
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


def test_two_tasks_may_open_the_first_connection_at_once_and_one_may_give_up(
    server: RedisServer,
) -> None:
    async def test(backend: RedisBackend) -> None:
        first = asyncio.create_task(backend.get(KEY))
        second = asyncio.create_task(backend.get(KEY))
        await asyncio.sleep(0)
        first.cancel()
        assert await second is None

    run(server, test)


# --- all entries of a namespace


def test_clear_takes_this_namespace_and_leaves_everything_else_as_it_was(
    server: RedisServer,
) -> None:
    client = server.client()
    foreign: dict[bytes, bytes] = {
        b"tinyllm:cache:v0:default:" + KEY.encode(): b"of another release",
        b"tinyllm:cache:v1:other:" + KEY.encode(): b"of another namespace",
        b"tinyllm:cache:v1:default:note": b"no key of ours",
        b"tinyllm:cache:v1:default:sub:" + KEY.encode(): b"longer",
        b"\x00\xff[*?]": b"\x00binary\xff",
        b"session:1": b"somebody's",
    }
    for name, value in foreign.items():
        client.set(name, value)
    client.rpush("a list", "1", "2")
    before = {name: client.dump(name) for name in (*foreign, b"a list")}

    async def test(backend: RedisBackend) -> None:
        for n in range(2500):
            client.set(backend.name(key_of(n)), b"x")
        assert await backend.size() == 2500
        cleared = await backend.clear_matching(Filter(), dry_run=True)
        assert cleared == (2500, 2500)
        seen: list[tuple[int, int | None]] = []
        cleared = await backend.clear_matching(Filter(), progress=lambda *at: seen.append(at))
        assert cleared == (2500, 2500)
        assert seen[-1] == (2507, 2507)
        assert await backend.size() == 0

    run(server, test)
    assert {name: client.dump(name) for name in before} == before
    assert client.dbsize() == len(before)


@pytest.mark.parametrize("secret", [None, "a secret of the team"])
def test_clear_takes_what_a_filter_means(server: RedisServer, secret: str | None) -> None:
    now = time.time()

    async def test(backend: RedisBackend) -> None:
        long = " ".join(str(n) for n in range(2000))
        rows = {"old": (now - 500, "llama3.2"), "new": (now, "llama3.2"), "other": (now, "phi3")}
        for name, (made, model) in rows.items():
            text = long if name == "new" else name
            await backend.set(key_of(name), CacheEntry(answer(text, model=model), made, 3600))
        server.client().set(backend.name(key_of("poison")), b"x")
        server.client().rpush(backend.name(key_of("list")), b"x")

        async def meant(**conditions: object) -> int:
            which = Filter(**conditions)  # type: ignore[arg-type] # of any kind
            return (await backend.clear_matching(which, dry_run=True)).entries

        assert await meant(model="llama3.2:latest") == 2
        assert await meant(created_before=now - 100) == 1
        assert await meant(created_before=now - 100, model="phi3:latest") == 0
        assert await meant(key_prefix=key_of("new")[:20]) == 1
        assert await meant(expired_at=now + 3200) == 1
        assert (await backend.clear_matching(Filter(model="llama3.2:latest"))).entries == 2
        assert await backend.get(key_of("other")) is not None
        assert await backend.size() == 3

    run(server, test, secret=secret)


def test_a_large_keyspace_is_sampled_and_says_so(server: RedisServer) -> None:
    client = server.client()
    pipeline = client.pipeline(transaction=False)
    for n in range(60_000):
        pipeline.set(f"tinyllm:cache:v1:default:{n:064x}" if n % 2 else f"foreign:{n}", b"")
    pipeline.execute()

    async def test(backend: RedisBackend) -> None:
        with server.monitored() as monitor:
            stats = await backend.stats()
            scans = [command for command in monitor.commands() if command[0] == "SCAN"]
        assert stats.estimated
        assert len(scans) <= 51
        assert 28_000 < stats.entries < 32_000
        assert await backend.size() == 30_000

    run(server, test)


# --- what it takes


@pytest.mark.parametrize("port", [0, 70_000, True, "6379"])
def test_a_port_that_is_none_is_refused(port: object) -> None:
    with pytest.raises(ConfigError, match="port"):
        RedisBackend("localhost", port)  # type: ignore[arg-type] # on purpose


def test_the_original_arguments_still_serve(server: RedisServer) -> None:
    async def test() -> None:
        backend = RedisBackend("127.0.0.1", server.port, 1, None, "mine:")
        await backend.set("any key", entry(created_at=time.time()))
        assert await backend.get("any key") is not None
        assert await backend.delete("any key") is True
        await backend.close()

    asyncio.run(test())


def test_of_all_who_take_over_at_once_one_gets_the_lease(server: RedisServer) -> None:
    """They all saw the same mark; what each sends comes between what the others send."""

    async def test(backend: RedisBackend) -> None:
        for round in range(20):
            key = key_of(f"round {round}")
            assert await backend.lease(key, "dead", None) is None
            mark = await backend.lease(key, "waiting", None)
            takers = [RedisBackend(url=server.url, timeout=20) for _ in range(8)]
            taking = [one.lease(key, f"taker {n}", mark) for n, one in enumerate(takers)]
            found = await asyncio.gather(*taking)
            assert found.count(None) == 1
            assert await backend.lease(key, "late", mark) == f"taker {found.index(None)} 0"
            for one in takers:
                await one.close()

    run(server, test)


def test_leases_pass_from_one_to_the_next(server: RedisServer) -> None:
    async def test(backend: RedisBackend) -> None:
        assert await backend.lease(KEY, "one", None) is None
        mark = await backend.lease(KEY, "two", None)
        assert mark is not None
        await backend.beat(KEY, "two")
        assert await backend.lease(KEY, "two", None) == mark
        await backend.beat(KEY, "one")
        assert await backend.lease(KEY, "two", None) != mark
        await backend.release(KEY, "two", "")
        await backend.release(KEY, "one", "gave up")
        note = await backend.lease(KEY, "two", None)
        assert note is not None
        assert note.endswith("gave up")
        assert await backend.lease(KEY, "two", note) is None
        await backend.release(KEY, "two", "")
        assert await backend.lease(KEY, "three", None) is None
        assert server.client().pttl(backend._work.vault.lease_name(KEY)) <= 3000

    run(server, test)
