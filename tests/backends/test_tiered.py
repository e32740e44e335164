"""Do two tiers act as one: quick in front, honest about what others change, whole when Redis is away?"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.redis_server import RedisServer, free_port
from tests.samples import answer, key_of
from tinyllm_cli import create_cached_client, create_tiered_cache
from tinyllm_cli.backends.inventory import Filter
from tinyllm_cli.backends.memory import InMemoryBackend
from tinyllm_cli.backends.redis import RedisBackend
from tinyllm_cli.backends.redis_blocking import BlockingRedisBackend
from tinyllm_cli.backends.redis_url import parse_redis_url
from tinyllm_cli.backends.redis_vault import Vault
from tinyllm_cli.backends.tiered import TieredBackend
from tinyllm_cli.backends.tiered_blocking import BlockingTieredBackend
from tinyllm_cli.entry import CacheEntry
from tinyllm_cli.errors import BackendUnavailableError, CacheError
from tinyllm_cli.metrics import CacheMetrics

KEY, OTHER = key_of("a question"), key_of("another")


@pytest.fixture(scope="module")
def running() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    running.client().flushall()
    return running


def fresh(text: str = "Because.", ttl: float = 60) -> CacheEntry:
    return CacheEntry(answer(text), created_at=time.time(), ttl=ttl)


class Member:
    """One long-lived process of the team."""

    def __init__(self, url: str, *, front_ttl: float = 30.0, secret: str | None = None) -> None:
        self.now = 0.0
        self.faults: list[CacheError] = []
        self.front = InMemoryBackend(10)
        self.tiers = TieredBackend(
            self.front,
            RedisBackend(url=url, secret=secret, timeout=20.0, monotonic=lambda: self.now),
            front_ttl=front_ttl,
            on_fault=self.faults.append,
            monotonic=lambda: self.now,
        )

    async def text(self, key: str = KEY) -> str | None:
        found = await self.tiers.get(key)
        return None if found is None else found.response.response


def run(*members: Member, test: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        try:
            await test()
        finally:
            for member in members:
                with contextlib.suppress(CacheError):
                    await member.tiers.close()

    asyncio.run(whole())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for is in another process
            await asyncio.sleep(0.001)


def test_a_hit_in_front_needs_no_network_and_one_behind_fills_the_front(
    server: RedisServer,
) -> None:
    one, two = Member(server.url), Member(server.url)

    async def test() -> None:
        await one.tiers.set(KEY, fresh())
        assert await two.text() == "Because."
        with server.monitored() as monitor:
            for _ in range(5):
                assert await one.text() == "Because."
                assert await two.text() == "Because."
            assert monitor.commands() == []

    run(one, two, test=test)


@pytest.mark.parametrize("secret", [None, "a secret of the team"])
def test_what_another_changes_is_told_by_the_server(
    server: RedisServer, secret: str | None
) -> None:
    one, two = Member(server.url, secret=secret), Member(server.url, secret=secret)

    async def test() -> None:
        await one.tiers.set(KEY, fresh("old"))
        assert await two.text() == "old"
        await one.tiers.set(KEY, fresh("new"))
        await until(lambda: two.front.peek(KEY) is None)
        assert await two.text() == "new"
        assert await one.text() == "new"
        await two.tiers.delete(KEY)
        await until(lambda: one.front.peek(KEY) is None)
        assert await one.text() is None

    run(one, two, test=test)


def test_what_expires_in_the_server_leaves_the_front(server: RedisServer) -> None:
    one = Member(server.url)

    async def test() -> None:
        await one.tiers.set(KEY, fresh())
        name = one.tiers.back.name(KEY)
        server.client().pexpire(name, 20)
        await until(lambda: not server.client().exists(name))
        await until(lambda: one.front.peek(KEY) is None)
        assert await one.text() is None

    run(one, test=test)


def test_an_answer_outdated_while_it_was_on_its_way_does_not_stay_in_front(
    server: RedisServer,
) -> None:
    """The message may be read before the task that asked for the old answer runs again."""
    one, two = Member(server.url), Member(server.url)

    async def test() -> None:
        await two.tiers.set(OTHER, fresh())
        assert await one.text(OTHER) == "Because."
        for attempt in range(50):
            await two.tiers.set(KEY, fresh(f"old {attempt}"))
            await one.tiers.front.delete(KEY)
            one.tiers._copies.pop(KEY, None)
            reading = asyncio.create_task(one.text())
            await asyncio.sleep(0)
            await two.tiers.set(KEY, fresh(f"new {attempt}"))
            assert await reading in (f"old {attempt}", f"new {attempt}")
            # by now every message about that change has been sent; one more round trip reads it
            await one.tiers.back.get(OTHER)
            assert await one.text() == f"new {attempt}"

    run(one, two, test=test)


def test_a_lost_connection_ends_the_trust_after_the_front_ttl(server: RedisServer) -> None:
    one = Member(server.url, front_ttl=5)

    async def test() -> None:
        await one.tiers.set(KEY, fresh("old"))
        one.now += 100
        with server.monitored() as monitor:
            assert await one.text() == "old"  # the server vouches for it, however long ago it was
            assert monitor.commands() == []
        server.client().execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await until(lambda: not one.tiers._tracking.works)
        newer = Vault().seal(KEY, fresh("changed meanwhile"))
        server.client().set(one.tiers.back.name(KEY), newer)
        assert await one.text(OTHER) is None
        assert one.tiers._tracking.works  # a new connection, which heard nothing of it
        assert await one.text() == "changed meanwhile"

    run(one, test=test)


def test_without_tracking_a_copy_serves_for_the_front_ttl(server: RedisServer) -> None:
    client = server.client()
    client.execute_command(
        "ACL", "SETUSER", "old", "on", ">a password", "~*", "+@all", "-client|tracking"
    )
    one = Member(f"redis://old:a%20password@127.0.0.1:{server.port}", front_ttl=5)

    async def test() -> None:
        await one.tiers.set(KEY, fresh("old"))
        client.set(one.tiers.back.name(KEY), Vault().seal(KEY, fresh("new")))
        one.now = 4.9
        assert await one.text() == "old"
        one.now = 5.0
        assert await one.text() == "new"

    run(one, test=test)
    client.acl_deluser("old")


def test_with_redis_away_the_front_serves_alone_and_says_so(server: RedisServer) -> None:
    async def test() -> None:
        await one.tiers.set(KEY, fresh())
        doomed.kill()
        await until(lambda: not one.tiers._tracking.works)
        one.now += 100
        assert await one.text() == "Because."
        assert [type(fault) for fault in one.faults] == [BackendUnavailableError]
        with pytest.raises(BackendUnavailableError):
            await one.text(OTHER)
        with pytest.raises(BackendUnavailableError):
            await one.tiers.set(OTHER, fresh())
        assert await one.text(OTHER) == "Because."

    with RedisServer() as doomed:
        one = Member(doomed.url)
        run(one, test=test)


def test_what_another_removed_does_not_serve_when_redis_is_away_later() -> None:
    async def test() -> None:
        await one.tiers.set(KEY, fresh())
        doomed.client().delete(one.tiers.back.name(KEY))
        await until(lambda: one.front.peek(KEY) is None)
        doomed.kill()
        await until(lambda: not one.tiers._tracking.works)
        with pytest.raises(BackendUnavailableError):
            await one.text()
        # nor in the moment between the message and the removal
        with pytest.raises(BackendUnavailableError):
            await one.tiers.set(OTHER, fresh())
        one.tiers._invalid(one.tiers.back.name(OTHER))
        with pytest.raises(BackendUnavailableError):
            await one.text(OTHER)

    with RedisServer() as doomed:
        one = Member(doomed.url)
        run(one, test=test)


def test_clear_and_delete_take_both_tiers(server: RedisServer) -> None:
    one = Member(server.url)

    async def test() -> None:
        for key in (KEY, OTHER):
            await one.tiers.set(key, fresh())
        assert await one.tiers.delete(KEY) is True
        assert await one.tiers.size() == 1
        both = await one.tiers.clear_matching(Filter(), dry_run=True)
        front = await one.front.clear_matching(Filter(), dry_run=True)
        assert both.entries == 2
        assert both.bytes > front.bytes > 0
        assert (await one.tiers.clear_matching(Filter(model="phi3:latest"))).entries == 0
        await one.tiers.clear()
        assert (await one.tiers.size(), await one.front.size()) == (0, 0)

    run(one, test=test)


def test_the_trust_is_bounded_as_the_front_is(server: RedisServer) -> None:
    one = Member(server.url)

    async def test() -> None:
        for n in range(50):
            await one.tiers.set(key_of(n), fresh())
        assert len(one.tiers._copies) == len(one.tiers._keys) == 10
        assert await one.text(key_of(0)) == "Because."

    run(one, test=test)


def test_a_database_that_is_emptied_ends_all_trust(server: RedisServer) -> None:
    one = Member(server.url)

    async def test() -> None:
        await one.tiers.set(KEY, fresh())
        server.client().flushall()
        await until(lambda: not one.tiers._copies)
        assert await one.text() is None

    run(one, test=test)


def test_leases_are_the_teams_or_this_machines(server: RedisServer, tmp_path: Path) -> None:
    snapshot = tmp_path / "cache" / "snapshot.sqlite3"

    async def test() -> None:
        for url in (server.url, f"redis://127.0.0.1:{free_port()}"):
            for tiers in (
                TieredBackend(InMemoryBackend(snapshot=snapshot), RedisBackend(url=url)),
                both(url, tmp_path)[0],
            ):
                assert tiers.keeps_leases
                assert await tiers.lease(KEY, "one", None) is None
                mark = await tiers.lease(KEY, "two", None)
                assert mark is not None
                await tiers.beat(KEY, "one")
                assert await tiers.lease(KEY, "two", None) != mark
                await tiers.release(KEY, "one", "")
                assert await tiers.lease(KEY, "two", None) is None
                await tiers.release(KEY, "two", "")
                await tiers.close()

    asyncio.run(test())


def test_a_front_that_cannot_be_used_leaves_redis(server: RedisServer, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("not a directory")
    faults: list[CacheError] = []

    async def test() -> None:
        front = InMemoryBackend(snapshot=tmp_path / "cache" / "snapshot.sqlite3")
        tiers = TieredBackend(front, RedisBackend(url=server.url), on_fault=faults.append)
        await tiers.set(KEY, fresh())
        assert await tiers.get(KEY) is not None
        await tiers.back.close()

    asyncio.run(test())
    assert faults


def test_what_the_front_remembers_of_models(tmp_path: Path) -> None:
    tiers = TieredBackend(InMemoryBackend(1), RedisBackend())
    assert tiers.known_digest("host", "model") is None
    tiers.remember_digest("host", "model", "digest", 5.0)
    assert tiers.known_digest("host", "model") == "digest"
    assert tiers.digest_seen_at("host", "model") == 5.0
    assert tiers.eviction_count == 0


def test_create_tiered_cache_counts_for_the_team(server: RedisServer, tmp_path: Path) -> None:
    async def test() -> None:
        cache = create_tiered_cache("127.0.0.1", server.port, snapshot=tmp_path / "c" / "s.sqlite3")
        await cache.set(KEY, answer())
        assert await cache.get(KEY) == answer()
        assert await cache.get(OTHER) is None
        await cache.close()
        again = create_tiered_cache("127.0.0.1", server.port, max_size=5)
        assert await again.get(KEY) == answer()
        backend = again.backend
        assert isinstance(backend, TieredBackend)
        stats = await backend.stats()
        assert stats.behind is not None
        assert stats.behind.metrics.hits == 2
        assert stats.behind.metrics.misses == 1
        assert stats.behind.entries == 1
        await again.close()

    asyncio.run(test())


def test_create_cached_client_takes_tiers(server: RedisServer) -> None:
    async def test() -> None:
        client = await create_cached_client(
            object(), "tiered", redis_host="127.0.0.1", redis_port=server.port, max_size=7
        )
        backend = client.cache.backend
        assert isinstance(backend, TieredBackend)
        assert backend.front.max_size == 7
        await client.cache.close()

    asyncio.run(test())


# --- for the command line


def both(server_url: str, folder: Path) -> tuple[BlockingTieredBackend, list[CacheError]]:
    faults: list[CacheError] = []
    front = InMemoryBackend(100, snapshot=folder / "cache" / "snapshot.sqlite3")
    back = BlockingRedisBackend(parse_redis_url(server_url), Vault(), max_entry_bytes=2**20)
    return BlockingTieredBackend(front, back, on_fault=faults.append), faults


def test_one_machine_fills_its_front_from_what_another_stored(
    server: RedisServer, tmp_path: Path
) -> None:
    one, _ = both(server.url, tmp_path / "one")
    one.set_nowait(KEY, fresh(ttl=3600))
    one.close_nowait()
    server.client().pexpire(Vault().name(KEY), 30_000)
    two, faults = both(server.url, tmp_path / "two")
    with server.monitored() as monitor:
        assert two.lookup(KEY) is not None
        assert [command[0] for command in monitor.commands()] == ["GETRANGE"]
        two.count("llama3.2", CacheMetrics(hits=1))
        two.close_nowait()
        sent = [command[0] for command in monitor.commands()]
    assert sent == ["GETRANGE", "PTTL", "HINCRBY"]
    alone, _ = both(f"redis://127.0.0.1:{free_port()}", tmp_path / "two")
    filled = alone.lookup(KEY)
    assert filled is not None
    assert filled.ttl is not None
    assert 25 < filled.ttl - filled.age() <= 30  # what the server had left, not what was asked for
    alone.close_nowait()
    assert faults == []


def test_every_operation_for_coroutines_is_the_one_at_once(
    server: RedisServer, tmp_path: Path
) -> None:
    tiers, _ = both(server.url, tmp_path)

    async def test() -> None:
        await tiers.set(KEY, fresh())
        await tiers.set(OTHER, fresh())
        assert await tiers.get(KEY) is not None
        assert tiers.get_nowait(OTHER) is not None
        tiers.count("llama3.2", CacheMetrics(hits=3))
        stats = await tiers.stats()
        assert stats.behind is not None
        assert (stats.entries, stats.behind.entries, await tiers.size()) == (2, 2, 2)
        assert (stats.metrics.hits, stats.behind.metrics.hits) == (3, 3)
        await tiers.reset_counters()
        assert (await tiers.stats()).metrics.hits == 0
        assert await tiers.delete(KEY) is True
        assert await tiers.delete(KEY) is False
        assert (await tiers.clear_matching(Filter(), dry_run=True)).entries == 2
        await tiers.clear()
        assert await tiers.size() == 0
        assert tiers.eviction_count == 0
        await tiers.close()

    asyncio.run(test())


def test_past_its_ttl_the_front_serves_only_what_redis_cannot_better(
    server: RedisServer, tmp_path: Path
) -> None:
    tiers, faults = both(server.url, tmp_path)
    old = CacheEntry(answer("old"), created_at=time.time() - 100, ttl=50, grace=500)
    tiers.front.set_nowait(KEY, old)
    spare = tiers.lookup(KEY)
    assert spare is not None
    assert spare.response.response == "old"
    assert tiers.get_nowait(KEY) is None
    tiers.back.set_nowait(KEY, fresh("new"))
    better = tiers.lookup(KEY)
    assert better is not None
    assert better.response.response == "new"
    tiers.close_nowait()
    assert faults == []
    alone, faults = both(f"redis://127.0.0.1:{free_port()}", tmp_path)
    alone.front.set_nowait(KEY, old)
    assert alone.lookup(KEY) is not None
    assert len(faults) == 1
    alone.close_nowait()


def test_redis_away_leaves_the_front(tmp_path: Path) -> None:
    tiers, _ = both(f"redis://127.0.0.1:{free_port()}", tmp_path)
    with pytest.raises(BackendUnavailableError):
        tiers.set_nowait(KEY, fresh())
    assert tiers.lookup(KEY) is not None
    with pytest.raises(BackendUnavailableError):
        tiers.lookup(OTHER)
    tiers.close_nowait()


def test_a_broken_front_leaves_redis(server: RedisServer, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("not a directory")
    tiers, faults = both(server.url, tmp_path)
    with pytest.raises(CacheError):
        tiers.set_nowait(KEY, fresh())
    assert tiers.lookup(KEY) is not None
    assert len(faults) == 1
    tiers.back.close_nowait()
