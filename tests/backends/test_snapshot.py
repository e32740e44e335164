"""Do processes that share a snapshot keep each other's entries and counters, within its bounds?"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest

from tests.backends.processes import finish, run, start
from tests.samples import NOW, answer, entry, key_of
from tinyllm_cli.backends.inventory import Filter
from tinyllm_cli.backends.memory import InMemoryBackend
from tinyllm_cli.backends.snapshot import Snapshot
from tinyllm_cli.errors import SnapshotError
from tinyllm_cli.metrics import CacheMetrics

CANARY = "canary-5e1f0c"


def opened(path: Path, max_size: int = 1000, **options: object) -> InMemoryBackend:
    return InMemoryBackend(max_size, snapshot=path, **options)  # type: ignore[arg-type]


def store(backend: InMemoryBackend, names: str, text: str = "Because.") -> None:
    for name in names:
        backend.set_nowait(key_of(name), entry(text))


def held(path: Path, names: str) -> str:
    """Return which of these one-letter names the file holds, without using them."""
    with sqlite3.connect(path) as db:
        keys = {row[0] for row in db.execute("SELECT key FROM entries")}
    db.close()
    return "".join(name for name in names if key_of(name) in keys)


def noise(seed: int, length: int = 1000) -> str:
    """Return text that packing makes little smaller."""
    return Random(seed).randbytes(length).hex()


# --- many processes


def test_sixteen_processes_lose_nothing(path: Path) -> None:
    """They also meet at the first opening, of this file and of twenty others."""
    script = """
path, number = sys.argv[1], sys.argv[2]
for fresh in range(20):
    backend = InMemoryBackend(snapshot=f"{path}-{fresh}")
    store(backend, number)
    backend.close_nowait()
backend = InMemoryBackend(snapshot=path)
for put in range(25):
    store(backend, f"{number} {put}", f"answer {number} {put}")
    backend.count("llama3.2:latest", CacheMetrics(sets=1, time_saved_s=0.5))
    backend.count("", CacheMetrics(errors=1))
backend.close_nowait()
"""
    for process in [start(script, path, number) for number in range(16)]:
        finish(process)
    backend = opened(path)
    stats = backend.stats_nowait()
    assert stats.entries == 16 * 25
    assert stats.metrics == CacheMetrics(sets=400, errors=400, time_saved_s=200.0)
    for number in range(16):
        for put in range(25):
            found = backend.lookup(key_of(f"{number} {put}"))
            assert found is not None
            assert found.response.response == f"answer {number} {put}"
    backend.close_nowait()
    for fresh in range(20):
        one = opened(Path(f"{path}-{fresh}"))
        assert one.stats_nowait().entries == 16
        one.close_nowait()
    assert not list(path.parent.glob("*.corrupt-*"))


def test_what_another_process_removed_or_replaced_is_not_served_from_memory(path: Path) -> None:
    backend = opened(path)
    store(backend, "abc", "before")
    assert backend.lookup(key_of("a")) is not None
    run(
        """
backend = InMemoryBackend(snapshot=sys.argv[1])
store(backend, "a", "after")
backend.clear_nowait(Filter(key_prefix=key_of("b")))
backend.close_nowait()
""",
        path,
    )
    found = backend.lookup(key_of("a"))
    assert found is not None and found.response.response == "after"
    assert backend.lookup(key_of("b")) is None
    assert backend.lookup(key_of("c")) is not None
    backend.close_nowait()


def test_nor_if_the_file_was_closed_in_between(path: Path) -> None:
    backend, other = opened(path), opened(path)
    store(backend, "a")
    assert backend.lookup(key_of("a")) is not None
    backend.close_nowait()
    assert backend.lookup(key_of("a")) is not None
    backend.close_nowait()
    other.clear_nowait(Filter())
    other.close_nowait()
    assert backend.lookup(key_of("a")) is None
    backend.close_nowait()


def test_a_directory_removed_during_use_is_made_again(path: Path) -> None:
    backend = opened(path)
    store(backend, "a")
    for file in path.parent.iterdir():
        file.unlink()
    path.parent.rmdir()
    assert backend.lookup(key_of("a")) is None
    store(backend, "b")
    backend.close_nowait()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert held(path, "ab") == "b"


def test_a_file_replaced_by_another_process_is_the_one_written_to(path: Path) -> None:
    first, second = opened(path), opened(path)
    store(first, "a")
    path.rename(path.with_name("moved"))
    store(second, "b")
    store(first, "c")
    assert first.lookup(key_of("b")) is not None
    assert second.lookup(key_of("c")) is not None
    assert first.lookup(key_of("a")) is None
    first.close_nowait()
    second.close_nowait()
    assert held(path, "abc") == "bc"


def test_a_forked_child_opens_the_file_afresh_and_counts_only_its_own(path: Path) -> None:
    out = run(
        """
backend = InMemoryBackend(snapshot=sys.argv[1])
store(backend, "parent")
backend.count("m", CacheMetrics(hits=1))  # not yet in the file when the process forks
backend.lookup(key_of("parent"))
children = []
for number in range(4):
    child = os.fork()
    if child == 0:
        assert text_of(backend, "parent") == "Because."
        store(backend, f"child {number}")
        backend.count("m", CacheMetrics(misses=1))
        sys.exit(0)  # no close(): the counters are written at exit all the same
    children.append(child)
store(backend, "parent again")
print([os.waitpid(child, 0)[1] for child in children])
backend.close_nowait()
stats = backend.stats_nowait()
print(stats.entries, stats.metrics.hits, stats.metrics.misses)
backend.close_nowait()
""",
        path,
    )
    assert out.splitlines() == ["[0, 0, 0, 0]", "6 1 4"]


def test_counters_of_a_script_that_forgets_to_close_are_kept(path: Path) -> None:
    run(
        """
backend = InMemoryBackend(snapshot=sys.argv[1])
backend.count("m", CacheMetrics(hits=3))
""",
        path,
    )
    snapshot = Snapshot(path, max_entries=10, max_bytes=10**6)
    assert snapshot.stats().metrics.hits == 3
    snapshot.close()


def test_many_threads_share_one_backend(path: Path) -> None:
    backend = opened(path, 30)

    def work(seed: int) -> None:
        random = Random(seed)
        for _ in range(40):
            name = str(random.randrange(50))
            backend.set_nowait(key_of(name), entry(name))
            found = backend.lookup(key_of(name))
            assert found is None or found.response.response == name
            backend.count("m", CacheMetrics(sets=1))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    stats = backend.stats_nowait()
    assert (stats.entries, stats.metrics.sets) == (30, 240)
    assert stats.metrics.evictions == backend.eviction_count > 0
    backend.close_nowait()


def test_the_event_loop_is_not_held_up(path: Path) -> None:
    """While another process holds the file, other tasks go on."""

    async def main() -> int:
        backend = opened(path)
        await backend.set(key_of("a"), entry())
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        writing = asyncio.create_task(backend.set(key_of("b"), entry()))
        turns = 0
        while turns < 100:
            turns += 1
            await asyncio.sleep(0)
        assert not writing.done()
        holder.execute("ROLLBACK")
        holder.close()
        await writing
        await backend.close()
        return turns

    assert asyncio.run(main()) == 100


# --- bounds


def test_the_least_recently_used_of_all_processes_goes_first(path: Path) -> None:
    one = """
backend = InMemoryBackend(3, snapshot=sys.argv[1])
for name in sys.argv[2]:
    store(backend, name)
for name in sys.argv[3]:
    assert text_of(backend, name)
backend.close_nowait()
print(backend.eviction_count)
"""
    assert run(one, path, "abc", "") == "0\n"
    assert run(one, path, "", "a") == "0\n"
    assert run(one, path, "d", "") == "1\n"
    assert held(path, "abcd") == "acd"
    assert run(one, path, "e", "a") == "1\n"
    assert run(one, path, "f", "") == "1\n"
    assert held(path, "abcdef") == "aef"


def test_a_clock_that_jumps_does_not_change_the_order(path: Path) -> None:
    backend = opened(path, 3)
    for name, created_at in (("a", NOW), ("b", NOW - 1e8), ("c", NOW + 1e8)):
        backend.set_nowait(key_of(name), entry(created_at=created_at))
    backend.lookup(key_of("b"))
    backend.close_nowait()
    backend.set_nowait(key_of("d"), entry(created_at=0.0))
    assert held(path, "abcd") == "bcd"
    backend.set_nowait(key_of("e"), entry(created_at=-1.0))
    assert held(path, "abcde") == "bde"
    backend.close_nowait()


def test_bytes_are_bounded(path: Path) -> None:
    backend = opened(path, max_bytes=300_000)
    for number in range(300):
        backend.set_nowait(key_of(number), entry(noise(number)))
        assert backend.stats_nowait().bytes <= 300_000
    stats = backend.stats_nowait()
    assert stats.bytes > 100_000
    assert stats.entries + backend.eviction_count == 300
    backend.close_nowait()


@pytest.mark.parametrize("length", [10, 1000, 20_000])
def test_the_file_exceeds_its_bound_by_one_entry_at_most(path: Path, length: int) -> None:
    bound = 400_000
    backend = opened(path, 100_000, max_bytes=bound)
    largest = 0
    for number in range(1500 if length == 10 else 150):
        backend.set_nowait(key_of(number), entry(noise(number, length)))
        largest = max(largest, path.stat().st_size)
    # an entry takes whole pages, and a page in each index
    assert largest <= bound + 2 * length + 8 * 4096
    assert largest > bound / 2
    assert backend.stats_nowait().entries > 3
    backend.close_nowait()


def test_lowering_the_bounds_makes_the_file_small(path: Path) -> None:
    backend = opened(path)
    for number in range(200):
        backend.set_nowait(key_of(number), entry(noise(number)))
    backend.close_nowait()
    assert path.stat().st_size > 400_000
    backend = opened(path, 10)
    store(backend, "a")
    assert backend.stats_nowait().entries == 10
    backend.close_nowait()
    assert path.stat().st_size < 150_000


def test_what_failed_and_was_killed_leaves_few_leases(path: Path) -> None:
    snapshot = Snapshot(path, max_entries=10, max_bytes=10**6)
    for number in range(1200):
        assert snapshot.lease(key_of(number), "token", None) is None
    assert snapshot.lease(key_of(1199), "other", None) is not None
    assert snapshot.lease(key_of(0), "other", None) is None
    snapshot.close()
    db = sqlite3.connect(path)
    assert db.execute("SELECT count(*) FROM leases").fetchone()[0] <= 1000
    db.close()


def test_a_lease_belongs_to_its_token_until_its_mark_stands_still(path: Path) -> None:
    one, other = (Snapshot(path, max_entries=10, max_bytes=10**6) for _ in range(2))
    key = key_of("a")
    assert one.lease(key, "one", None) is None
    mark = other.lease(key, "other", None)
    assert mark is not None
    one.beat(key, "one")
    assert other.lease(key, "other", mark) not in (None, mark)  # it beats: not stale
    other.beat(key, "other")  # not its own
    other.release(key, "other", "")
    mark = other.lease(key, "other", None)
    assert mark is not None
    assert other.lease(key, "other", mark) is None  # nothing has changed: taken over
    one.release(key, "one", "")
    assert one.lease(key, "one", None) is not None
    other.release(key, "other", "gave up")
    assert str(one.lease(key, "one", None)).endswith("gave up")
    other.release(key, "other", "")
    assert one.lease(key, "one", None) is None
    one.close()
    other.close()


def test_no_daily_statement_walks_through_the_entries(path: Path) -> None:
    """So that the cost of a hit, a miss and of the figures does not depend on how much is stored."""
    backend = opened(path, 50)
    for number in range(50):
        backend.set_nowait(key_of(number), entry())
    snapshot = backend.snapshot
    assert snapshot is not None
    statements: list[str] = []
    connection = snapshot._db
    assert connection is not None
    connection.set_trace_callback(statements.append)
    backend.set_nowait(key_of("new"), entry())
    backend.count("llama3.2:latest", CacheMetrics(hits=1))
    backend.lookup(key_of(49))
    backend.get_nowait(key_of("missing"))
    backend.stats_nowait()
    backend.clear_nowait(Filter(key_prefix="f"), dry_run=True)  # this one may
    connection.set_trace_callback(None)
    backend.close_nowait()

    db = sqlite3.connect(path)
    walks: list[str] = []
    looked_at = 0
    for statement in statements:
        if statement.startswith(("SELECT", "INSERT", "UPDATE", "DELETE")):
            looked_at += 1
            for row in db.execute(f"EXPLAIN QUERY PLAN {statement}"):
                plan = row[3]
                scans = "SCAN entries" in plan and "USING INDEX entries_rank" not in plan
                if scans or plan == "SEARCH entries":  # of min and max without an index
                    walks.append(statement)
    db.close()
    assert looked_at > 8
    assert len(walks) == 1 and "substr" in walks[0]


# --- what is removed is gone


def everything_in(directory: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(directory.iterdir()))


@pytest.mark.parametrize("length", [0, 1500, 100_000])
@pytest.mark.parametrize("way", ["clear", "filter", "delete", "replace", "evict"])
def test_a_removed_text_is_in_no_file(path: Path, way: str, length: int) -> None:
    backend = opened(path, 3)
    text = f"{CANARY} {noise(1, length // 2)}"
    # uncompressed, or the canary could hide
    snapshot = backend.snapshot
    assert snapshot is not None
    store(backend, "ab")
    snapshot.put(key_of("c"), text.encode(), model="m:latest", created_at=NOW, expires_at=None)
    assert CANARY.encode() in everything_in(path.parent)
    match way:
        case "clear":
            backend.clear_nowait(Filter())
        case "filter":
            backend.clear_nowait(Filter(model="m:latest"))
        case "delete":
            assert snapshot.delete(key_of("c"))
        case "replace":
            store(backend, "c")
        case _:
            store(backend, "abdef")
    backend.close_nowait()
    assert CANARY.encode() not in everything_in(path.parent)


def test_clear_also_wipes_what_was_moved_aside(path: Path) -> None:
    backend = opened(path)
    backend.set_nowait(key_of("a"), entry(CANARY, request={"prompt": CANARY}))
    backend.close_nowait()
    content = bytearray(path.read_bytes())
    content[:16] = b"no longer SQLite"
    path.write_bytes(content)
    assert backend.lookup(key_of("a")) is None
    assert CANARY.encode() in everything_in(path.parent)
    backend.clear_nowait(Filter(model="m"))
    assert CANARY.encode() in everything_in(path.parent)
    backend.clear_nowait(Filter())
    backend.close_nowait()
    assert CANARY.encode() not in everything_in(path.parent)
    assert [file.name for file in path.parent.glob("*corrupt*")] == []


def test_questions_are_left_out_if_not_wanted(path: Path) -> None:
    backend = opened(path, keep_requests=False)
    backend.set_nowait(key_of("a"), entry(request={"prompt": CANARY}))
    backend.close_nowait()
    assert CANARY.encode() not in everything_in(path.parent)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_nobody_else_may_read_it(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        backend = opened(path)
        store(backend, "a")
        modes = {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        backend.close_nowait()
    finally:
        os.umask(before)
    assert modes == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_live_file_is_opened_by_nobody_but_sqlite(path: Path) -> None:
    """Closing a second handle would drop SQLite's locks in this process."""
    out = run(
        """
path = sys.argv[1]
opened = []
def watch(event, arguments):
    if event == "open" and str(arguments[0]).startswith(path):
        name, flags = str(arguments[0]), arguments[2]
        # it is created by us, before anybody can have it open; moved aside, it is no longer live
        if "corrupt" not in name and not flags & os.O_EXCL:
            opened.append(name)
    if event in ("shutil.copyfile", "os.truncate") and path in str(arguments):
        opened.append(event)
sys.addaudithook(watch)
notices = []
backend = InMemoryBackend(3, snapshot=path, notice=notices.append)
for name in "abcde":
    store(backend, name)
    text_of(backend, name)
backend.count("m", CacheMetrics(hits=1))
backend.remember_digest("h", "m", "d", 1.0)
backend.stats_nowait()
backend.clear_nowait(Filter(model="m"))
backend.clear_nowait(Filter())
backend.close_nowait()
store(backend, "a")
backend.close_nowait()
seen, damage = list(opened), os.open(path, os.O_WRONLY)
os.write(damage, b"no longer SQLite")
os.close(damage)
opened = seen
assert text_of(backend, "a") is None and notices
backend.clear_nowait(Filter())
backend.close_nowait()
print(json.dumps(opened))
""",
        path,
    )
    assert json.loads(out) == []


# --- what a file cannot hold


def test_a_number_or_name_sqlite_cannot_hold_costs_no_entries(path: Path) -> None:
    notices: list[str] = []
    backend = opened(path, notice=notices.append)
    store(backend, "a")
    with pytest.raises(SnapshotError):
        backend.set_nowait(key_of("b"), entry(response=answer(model="\ud800")))
    backend.count("m", CacheMetrics(tokens_saved=10**30))
    with pytest.raises(SnapshotError):
        backend.close_nowait()
    assert backend.lookup(key_of("a")) is not None
    assert notices == []
    backend.close_nowait()


def test_digests_are_remembered_per_host_and_model(path: Path) -> None:
    backend = opened(path)
    assert backend.known_digest("h", "m") is None
    backend.remember_digest("h", "m", "1", NOW)
    backend.remember_digest("h", "n", "2", NOW)
    backend.remember_digest("g", "m", "3", NOW)
    backend.remember_digest("h", "m", "4", NOW)
    backend.close_nowait()
    again = opened(path)
    found = [again.known_digest(*pair) for pair in (("h", "m"), ("h", "n"), ("g", "m"))]
    assert found == ["4", "2", "3"]
    again.close_nowait()
    alone = InMemoryBackend()
    alone.remember_digest("h", "m", "1", NOW)
    assert alone.known_digest("h", "m") == "1"
    assert alone.known_digest("h", "n") is None
