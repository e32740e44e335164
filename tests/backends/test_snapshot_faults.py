"""Does a broken, locked, full, forged or forbidden snapshot ever cost more than the cache?"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.backends.processes import finish, run, start
from tests.samples import NOW, entry, key_of
from tinyllm_cli.backends.inventory import Filter
from tinyllm_cli.backends.memory import InMemoryBackend
from tinyllm_cli.backends.snapshot import Snapshot
from tinyllm_cli.backends.snapshot_file import move_aside
from tinyllm_cli.errors import CacheError, SnapshotError
from tinyllm_cli.metrics import CacheMetrics

NAMES = [str(number) for number in range(40)]
AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
needs_root = pytest.mark.skipif(not AS_ROOT, reason="only root may act as another user")


def text_of(name: str) -> str:
    """Return the one right answer to a name: long enough for a page of its own now and then."""
    return f"answer to {name} " * (1 + int(name) * 4)


@pytest.fixture
def filled(path: Path) -> Path:
    """Give the path of a snapshot with an answer to each name."""
    backend = InMemoryBackend(snapshot=path)
    for name in NAMES:
        backend.set_nowait(key_of(name), entry(text_of(name)))
    backend.count("llama3.2:latest", CacheMetrics(hits=3))
    backend.remember_digest("host", "model", "digest", NOW)
    backend.close_nowait()
    return path


class Watched:
    """A backend on a file, and the notices it gave."""

    def __init__(self, path: Path, max_entries: int = 1000) -> None:
        self.path = path
        self.notices: list[str] = []
        self.backend = InMemoryBackend(max_entries, snapshot=path, notice=self.notices.append)

    def answers(self) -> dict[str, str]:
        """Return what it answers to each name; an answer that is not the right one fails."""
        found: dict[str, str] = {}
        for name in NAMES:
            got = self.backend.lookup(key_of(name))
            if got is not None:
                assert got.response.response == text_of(name)
                found[name] = got.response.response
        return found

    def works(self) -> bool:
        """Store something and find it again."""
        self.backend.set_nowait(key_of("new"), entry("new"))
        found = self.backend.lookup(key_of("new"))
        return found is not None and found.response.response == "new"

    def aside(self) -> list[Path]:
        """Return the files that were moved aside, without their journals."""
        found = self.path.parent.glob(f"{self.path.name}.corrupt-*")
        return sorted(file for file in found if not file.name.endswith("-journal"))

    def close(self) -> None:
        self.backend.close_nowait()


@pytest.fixture
def watched(filled: Path) -> Iterator[Watched]:
    one = Watched(filled)
    yield one
    one.close()


def sql(path: Path, script: str) -> None:
    db = sqlite3.connect(path)
    db.executescript(script)
    db.close()


# --- damage

OUR_TABLES = ("entries", "totals", "digests", "leases", "evicted")
DAMAGES: dict[str, Callable[[Path], object]] = {
    "random bytes": lambda path: path.write_bytes(Random(1).randbytes(5000)),
    "zeros": lambda path: path.write_bytes(bytes(8192)),
    "text": lambda path: path.write_text("This is not a database. " * 100),
    "the header alone": lambda path: os.truncate(path, 100),
    "one page": lambda path: os.truncate(path, 4096),
    "cut in a page": lambda path: os.truncate(path, 5000),
    "pages overwritten": lambda path: path.write_bytes(
        path.read_bytes()[:4096] + Random(2).randbytes(path.stat().st_size - 4096)
    ),
    "another program's database": lambda path: sql(
        path,
        "".join(f"DROP TABLE {name};" for name in OUR_TABLES)
        + "PRAGMA user_version = 0; CREATE TABLE notes (text)",
    ),
    "a table too many": lambda path: sql(path, "CREATE TABLE more (x)"),
    "a table too few": lambda path: sql(path, "DROP TABLE digests"),
    "an index too few": lambda path: sql(path, "DROP INDEX entries_created_at"),
    "another column": lambda path: sql(path, "ALTER TABLE totals ADD COLUMN more"),
    "a trigger": lambda path: sql(
        path,
        "CREATE TRIGGER t AFTER INSERT ON entries BEGIN DELETE FROM entries; END",
    ),
    "a view in place of a table": lambda path: sql(
        path, "DROP TABLE digests; CREATE VIEW digests AS SELECT 1 AS host"
    ),
    "a version that never was": lambda path: sql(path, "PRAGMA user_version = -5"),
    "an older version": lambda path: sql(path, "PRAGMA user_version = 0"),
    "a newer version of the same tables": lambda path: sql(path, "PRAGMA user_version = 65537"),
    "text that is not UTF-8": lambda path: sql(
        path, "UPDATE totals SET model = CAST(x'ff' AS TEXT)"
    ),
    "counters that are text": lambda path: sql(path, "UPDATE totals SET hits = 'many'"),
}


# damage met only after the file had been written to
MET_LATE = {"text that is not UTF-8", "counters that are text"}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_moved_aside_and_the_same_run_goes_on(filled: Path, name: str) -> None:
    DAMAGES[name](filled)
    damaged = filled.read_bytes()
    watched = Watched(filled)
    watched.answers()
    watched.backend.stats_nowait()
    assert watched.works()
    assert len(watched.notices) == 1
    assert watched.notices[0].isprintable()
    (aside,) = watched.aside()
    assert aside.name in watched.notices[0]
    assert (aside.read_bytes() == damaged) is (name not in MET_LATE)
    assert stat.S_IMODE(filled.stat().st_mode) == 0o600
    watched.close()

    again = Watched(filled)
    assert again.works()
    assert again.notices == []
    assert again.aside() == [aside]
    again.close()


def overwrite_column(path: Path, table: str, column: str, value: str) -> None:
    """Put a value everywhere in a column, one the constraints would not let in as well."""
    db = sqlite3.connect(path)
    ((schema,),) = db.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table,)).fetchall()
    for sql_text in (schema.replace(" NOT NULL", ""), schema):
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (sql_text, table))
        db.commit()
        db.close()
        db = sqlite3.connect(path)
        if sql_text != schema:
            db.execute(f"UPDATE OR REPLACE {table} SET {column} = {value}")
            db.commit()
    db.close()


def ask_everything(watched: Watched) -> None:
    """Ask a backend all that it can be asked; no kind of error but the cache's own gets out."""
    backend, snapshot = watched.backend, watched.backend.snapshot
    assert snapshot is not None

    def stats() -> None:
        made = backend.stats_nowait()
        amounts = [made.oldest or 0.0, made.newest or 0.0]
        for row in made.models:
            amounts += [row.entries, row.bytes, *row.metrics.to_dict().values()]
        assert all(0 <= amount < math.inf for amount in amounts)

    for ask in (
        watched.answers,
        stats,
        lambda: list(backend.entries()),
        lambda: backend.known_digest("host", "model"),
        lambda: backend.digest_seen_at("host", "model"),
        lambda: snapshot.was_evicted(key_of("gone")),
        lambda: snapshot.lease(key_of("1"), "token", "somebody 1 "),
        lambda: snapshot.beat(key_of("1"), "token"),
        lambda: snapshot.release(key_of("1"), "token", "note"),
        lambda: backend.count("llama3.2:latest", CacheMetrics(hits=1)),
        lambda: backend.remember_digest("host", "model", "other", NOW),
        lambda: backend.clear_nowait(Filter(), dry_run=True),
        lambda: backend.clear_nowait(Filter(model="llama3.2:latest")),
        watched.works,
        backend.reset_counters_nowait,
        backend.close_nowait,
    ):
        with contextlib.suppress(CacheError):
            ask()


@pytest.mark.few(20)
@pytest.mark.parametrize("value", ["NULL", "'text'", "x'00ff'", "-1", "9e999", "1 << 62"])
@pytest.mark.parametrize("table", OUR_TABLES)
@pytest.mark.parametrize("room", [len(NAMES) // 2, 1000], ids=["full", "with room"])
def test_a_value_of_another_kind_in_any_column_is_survived(
    filled: Path, table: str, value: str, room: int
) -> None:
    sql(filled, f"INSERT INTO leases VALUES ('{key_of('1')}', 'somebody', 1, '')")
    sql(filled, f"INSERT INTO evicted VALUES ('{key_of('gone')}', 5)")
    sound = filled.read_bytes()
    db = sqlite3.connect(filled)
    columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
    db.close()
    assert len(columns) > 1
    for column in columns:
        filled.write_bytes(sound)
        overwrite_column(filled, table, column, value)
        watched = Watched(filled, max_entries=room)
        ask_everything(watched)
        again = Watched(filled)
        assert again.works()
        again.close()
        for left in filled.parent.iterdir():
            left.unlink()


@pytest.mark.parametrize("length", [0, 1])
def test_an_empty_file_is_a_fresh_one(filled: Path, length: int) -> None:
    """To SQLite a single byte is none."""
    os.truncate(filled, length)
    watched = Watched(filled)
    assert watched.answers() == {}
    assert watched.works()
    assert (watched.notices, watched.aside()) == ([], [])
    watched.close()


def test_at_most_two_damaged_files_are_kept_the_newest(filled: Path) -> None:
    for number in range(5):
        filled.write_text(f"damage {number} " * 1000)
        watched = Watched(filled)
        assert watched.works()
        watched.close()
    kept = [aside.read_text()[:8] for aside in watched.aside()]
    assert kept == ["damage 3", "damage 4"]


def test_a_fresh_file_that_another_process_put_there_is_not_moved(filled: Path) -> None:
    found = filled.stat()
    assert move_aside(filled, (found.st_dev, found.st_ino + 1)) is None
    assert filled.stat().st_ino == found.st_ino
    aside = move_aside(filled, (found.st_dev, found.st_ino))
    assert aside is not None and aside.stat().st_ino == found.st_ino
    assert move_aside(filled, (found.st_dev, found.st_ino)) is None


def test_damage_met_in_the_middle_of_a_run_is_survived(watched: Watched) -> None:
    assert len(watched.answers()) == len(NAMES)
    content = watched.path.read_bytes()
    with open(watched.path, "r+b") as file:
        file.seek(4096)
        file.write(Random(3).randbytes(len(content) - 4096))
    watched.answers()
    for name in NAMES:
        watched.backend.set_nowait(key_of(name), entry(text_of(name)))
    assert len(watched.answers()) == len(NAMES)


def test_damage_that_another_process_is_moving_aside(filled: Path) -> None:
    """Two that move it one after the other would move the fresh file of the first."""
    fcntl = pytest.importorskip("fcntl")
    filled.write_text("This is not a database. " * 100)
    held = os.open(filled.parent, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        watched = Watched(filled)
        with pytest.raises(SnapshotError, match="cannot move"):
            watched.backend.set_nowait(key_of("new"), entry("new"))
        assert watched.aside() == []
    finally:
        os.close(held)
    assert watched.works()
    assert len(watched.aside()) == 1
    watched.close()


STORE_AT_ONCE = """
print("ready", flush=True)
sys.stdin.readline()
backend = InMemoryBackend(snapshot=sys.argv[1])
store(backend, sys.argv[2])
backend.close_nowait()
"""


@pytest.mark.parametrize("rounds", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_processes_that_find_the_same_damage_make_one_fresh_file(filled: Path, rounds: int) -> None:
    """What one of them has stored in it, none of the others moves aside."""
    for _ in range(rounds):
        for file in filled.parent.iterdir():
            file.unlink()
        filled.write_text("This is not a database. " * 100)
        filled.chmod(0o600)
        processes = [start(STORE_AT_ONCE, filled, number) for number in range(8)]
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        for process in processes:
            finish(process)
        watched = Watched(filled)
        assert watched.backend.stats_nowait().entries == len(processes)
        assert len(watched.aside()) == 1
        watched.close()


def damaged_at_random(
    filled: Path, damage: Callable[[bytearray, Random], None], times: int
) -> None:
    """Damage the file again and again; every look must be right, a miss or a CacheError."""
    sound = filled.read_bytes()
    random = Random(times)
    answered = 0
    for _ in range(times):
        content = bytearray(sound)
        damage(content, random)
        filled.write_bytes(content)
        watched = Watched(filled)
        try:
            answered += len(watched.answers())
            watched.backend.stats_nowait()
            watched.backend.known_digest("host", "model")
            assert watched.works()
        except CacheError:
            # the cache forgives it; what may not happen is another kind of error
            watched.backend.close_nowait()
            assert Watched(filled).works()
        watched.close()
        assert len(watched.aside()) <= 2
        for left in filled.parent.iterdir():
            left.unlink()
    assert answered > times * len(NAMES) / 4


def flip_a_bit(content: bytearray, random: Random) -> None:
    place = random.randrange(len(content) * 8)
    content[place // 8] ^= 1 << place % 8


@pytest.mark.parametrize("times", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_flipped_bit_never_gives_a_wrong_answer(filled: Path, times: int) -> None:
    damaged_at_random(filled, flip_a_bit, times)


@pytest.mark.parametrize("times", [50, pytest.param(500, marks=pytest.mark.slow)])
def test_nor_do_many_flipped_bits_in_its_books(filled: Path, times: int) -> None:
    """The first pages hold the schema, the counters and the roots of the indexes."""

    def flip(content: bytearray, random: Random) -> None:
        for _ in range(3):
            place = random.randrange(12 * 4096)
            content[place] ^= 1 << random.randrange(8)

    sound = filled.read_bytes()
    assert len(sound) > 12 * 4096
    random = Random(times)
    for _ in range(times):
        content = bytearray(sound)
        flip(content, random)
        filled.write_bytes(content)
        watched = Watched(filled)
        try:
            watched.answers()
            watched.backend.stats_nowait()
            watched.works()
            watched.backend.clear_nowait(Filter(model="llama3.2:latest"))
        except CacheError:
            pass
        watched.close()
        for left in filled.parent.iterdir():
            left.unlink()


@pytest.mark.parametrize("times", [50, pytest.param(500, marks=pytest.mark.slow)])
def test_nor_does_a_file_cut_anywhere(filled: Path, times: int) -> None:
    def cut(content: bytearray, random: Random) -> None:
        del content[random.randrange(len(content) // 2, len(content)) :]

    sound = filled.read_bytes()
    random = Random(times)
    for _ in range(times):
        content = bytearray(sound)
        cut(content, random)
        filled.write_bytes(content)
        watched = Watched(filled)
        watched.answers()
        assert watched.works()
        watched.close()
        for left in filled.parent.iterdir():
            left.unlink()


def test_a_row_under_another_key_is_removed_and_not_served(watched: Watched) -> None:
    """Two rows swapped: each has a digest, and neither has the one of its key."""
    one, other = key_of("1"), key_of("2")
    sql(
        watched.path,
        f"UPDATE entries SET body = (SELECT body FROM entries WHERE key = '{other}') "
        f"WHERE key = '{one}'",
    )
    answers = watched.answers()
    assert answers.keys() == set(NAMES) - {"1"}
    assert watched.backend.stats_nowait().entries == len(NAMES) - 1
    assert watched.notices == []


@pytest.mark.parametrize("kind", ["5", "'text'", "x''", "zeroblob(100)", "9e999"])
def test_a_body_of_another_kind_is_removed_and_not_served(watched: Watched, kind: str) -> None:
    sql(watched.path, f"UPDATE entries SET body = {kind} WHERE key = '{key_of('1')}'")
    assert "1" not in watched.answers()
    assert watched.works()


def test_a_stale_journal_of_another_file_is_harmless(filled: Path, tmp_path: Path) -> None:
    """Whatever is read passes its digest, else the file is moved aside."""
    other = tmp_path / "other.sqlite3"
    db = sqlite3.connect(other, isolation_level=None)
    db.executescript("PRAGMA journal_mode=TRUNCATE; CREATE TABLE t (x); BEGIN")
    db.execute("INSERT INTO t VALUES (zeroblob(20000))")
    db.execute("PRAGMA cache_spill = 1")
    shutil.copy(f"{other}-journal", f"{filled}-journal")
    db.execute("ROLLBACK")
    db.close()
    (filled.parent / f"{filled.name}-wal").write_bytes(b"left over" * 100)
    watched = Watched(filled)
    watched.answers()
    assert watched.works()
    watched.close()


# --- what must be left alone


def test_a_file_of_a_newer_release_is_left_untouched(filled: Path) -> None:
    sql(filled, "PRAGMA user_version = 99; CREATE TABLE of_the_future (x)")
    before = filled.read_bytes()
    watched = Watched(filled)
    for attempt in (lambda: watched.backend.lookup(key_of("1")), watched.works):
        with pytest.raises(SnapshotError, match="newer") as raised:
            attempt()
        assert raised.value.hint
    with pytest.raises(SnapshotError):
        watched.backend.clear_nowait(Filter())
    watched.close()
    assert filled.read_bytes() == before
    assert [file.name for file in filled.parent.iterdir()] in (
        [filled.name],
        sorted([filled.name, f"{filled.name}-journal"]),
    )
    assert watched.notices == []


def a_link_to(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def a_second_name_of(path: Path, victim: Path) -> None:
    path.hardlink_to(victim)


def a_dangling_link(path: Path, victim: Path) -> None:
    path.symlink_to(victim.with_name("not there"))


def a_directory(path: Path, victim: Path) -> None:
    path.mkdir()


def a_pipe(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def of_another_user(path: Path, victim: Path) -> None:
    shutil.copy(victim, path)
    os.chown(path, 65534, 65534)


def in_a_directory_of_another_user(path: Path, victim: Path) -> None:
    os.chown(path.parent, 65534, 65534)


def in_a_directory_anybody_may_write(path: Path, victim: Path) -> None:
    path.parent.chmod(0o777)


def in_a_directory_a_group_may_write(path: Path, victim: Path) -> None:
    path.parent.chmod(0o770)


def in_what_is_no_directory(path: Path, victim: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("a file")


def in_a_directory_that_cannot_be_made(path: Path, victim: Path) -> None:
    path.parent.rmdir()
    path.parent.symlink_to("/proc/nowhere")


@pytest.mark.parametrize(
    "place",
    [
        a_link_to,
        a_second_name_of,
        a_dangling_link,
        a_directory,
        a_pipe,
        pytest.param(of_another_user, marks=needs_root),
        pytest.param(in_a_directory_of_another_user, marks=needs_root),
        in_a_directory_anybody_may_write,
        in_a_directory_a_group_may_write,
        in_what_is_no_directory,
        in_a_directory_that_cannot_be_made,
    ],
    ids=lambda place: place.__name__,
)
def test_what_is_not_ours_alone_is_not_used(
    path: Path, tmp_path: Path, place: Callable[[Path, Path], None]
) -> None:
    victim = tmp_path / "victim"
    sql(victim, "CREATE TABLE precious (x); INSERT INTO precious VALUES ('data')")
    before = victim.read_bytes()
    path.parent.mkdir(mode=0o700)
    place(path, victim)
    watched = Watched(path)
    started = time.monotonic()
    for attempt in (watched.works, lambda: watched.backend.lookup(key_of("1"))):
        with pytest.raises(SnapshotError) as raised:
            attempt()
        assert str(raised.value).isprintable()
        assert raised.value.hint
    assert time.monotonic() - started < 5
    watched.close()
    assert victim.read_bytes() == before
    assert not victim.with_name("not there").exists()
    assert watched.notices == []


# --- what cannot be written


@pytest.fixture
def shared() -> Iterator[Path]:
    """Give a directory every user may reach; pytest's own only its owner may."""
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    trial = [*AS_NOBODY, sys.executable, "-c", "import tinyllm_cli.backends.memory"]
    if subprocess.run(trial, capture_output=True).returncode:
        pytest.skip("this Python, or tinyllm where it lies, is out of another user's reach")
    with tempfile.TemporaryDirectory(prefix="tinyllm-test-", dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
STORE_ONE = """
backend = InMemoryBackend(snapshot=sys.argv[1])
store(backend, "a")
backend.close_nowait()
"""
READ_ONLY = """
backend = InMemoryBackend(snapshot=sys.argv[1])
def outcome(call):
    started = time.monotonic()
    try:
        return call(), round(time.monotonic() - started)
    except SnapshotError as exc:
        assert exc.hint, exc
        return "SnapshotError", round(time.monotonic() - started)
print(json.dumps([
    outcome(lambda: text_of(backend, "a")),
    outcome(lambda: store(backend, "b")),
    outcome(lambda: store(backend, "c")),
    outcome(lambda: text_of(backend, "a")),
    outcome(lambda: text_of(backend, "b")),
    outcome(lambda: backend.snapshot.stats().entries),
]))
"""


@needs_root
@pytest.mark.parametrize("journal", [True, False], ids=["with journal", "without journal"])
def test_what_may_only_be_read_still_answers(shared: Path, journal: bool) -> None:
    path = shared / "cache" / "snapshot.sqlite3"
    os.chown(shared, 65534, 65534)
    run(STORE_ONE, path, before=AS_NOBODY)
    if not journal:
        Path(f"{path}-journal").unlink(missing_ok=True)
    before = path.read_bytes()
    path.chmod(0o444)
    path.parent.chmod(0o555)
    outcomes = json.loads(run(READ_ONLY, path, before=AS_NOBODY))
    assert [outcome for outcome, _ in outcomes] == [
        "Because.",
        "SnapshotError",
        "SnapshotError",
        "Because.",
        None,
        1,
    ]
    assert sum(seconds for _, seconds in outcomes) <= 1
    assert path.read_bytes() == before


@needs_root
def test_what_may_not_even_be_read_is_an_error_of_the_store(shared: Path) -> None:
    path = shared / "cache" / "snapshot.sqlite3"
    os.chown(shared, 65534, 65534)
    run(STORE_ONE, path, before=AS_NOBODY)
    path.chmod(0)
    outcomes = json.loads(run(READ_ONLY, path, before=AS_NOBODY))
    assert {outcome for outcome, _ in outcomes} == {"SnapshotError"}
    assert len(list(path.parent.glob("*.corrupt-*"))) == 0


FULL_DISK = """
import resource
path = sys.argv[1]
backend = InMemoryBackend(snapshot=path)
store(backend, "a")
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
stored = ["a"]
failures = 0
text = os.urandom(2000).hex()
for number in range(400):
    try:
        store(backend, number, text)
        stored.append(number)
    except SnapshotError as exc:
        assert exc.hint
        failures += 1
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
try:
    store(backend, "late")
    patient = False
except SnapshotError:
    patient = True  # a disk that was full is not asked again for every answer
fresh = InMemoryBackend(snapshot=path)
store(fresh, "new")
found = [name for name in stored if text_of(fresh, name) is not None]
fresh.close_nowait()
try:
    backend.close_nowait()
except SnapshotError:
    pass
print(json.dumps([len(stored), failures, len(found), patient]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit to set")
def test_a_full_disk_costs_the_new_answers_and_not_the_old(path: Path) -> None:
    stored, failures, found, patient = json.loads(run(FULL_DISK, path))
    assert stored > 20
    assert failures > 100
    assert found == stored
    assert patient
    watched = Watched(path)
    assert watched.works()
    assert watched.notices == []
    watched.close()


# --- other processes

HOLD = """
import sqlite3
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.readline()
db.execute("ROLLBACK")
db.close()
"""


def seconds_of(call: Callable[[], object]) -> float:
    """Return how long a call took that has to fail."""
    started = time.monotonic()
    with pytest.raises(SnapshotError, match="locked"):
        call()
    return time.monotonic() - started


@pytest.mark.slow
def test_a_file_locked_by_another_process_is_waited_for_briefly(filled: Path) -> None:
    """Also by a process that has yet to open it: the command line always has."""
    known, fresh = Watched(filled), Watched(filled)
    known.backend.lookup(key_of("1"))
    holder = start(HOLD, filled)
    assert holder.stdout is not None and holder.stdin is not None
    assert holder.stdout.readline() == "held\n"
    for watched in (known, fresh):
        look = partial(watched.backend.lookup, key_of("1"))
        assert 0.2 <= seconds_of(look) < 0.75
    new = entry("new")
    assert 0.9 <= seconds_of(lambda: known.backend.set_nowait(key_of("new"), new)) < 2.5
    holder.stdin.write("\n")
    finish(holder)
    for watched in (known, fresh):
        assert watched.works()
        assert len(watched.answers()) == len(NAMES)
        assert watched.notices == []
        watched.close()


@pytest.mark.slow
def test_a_lock_met_by_a_lookup_does_not_hold_the_question_up_again(filled: Path) -> None:
    """Before the answer it costs one short wait; the long one is spent behind it, on storing."""
    watched = Watched(filled)
    backend, snapshot = watched.backend, watched.backend.snapshot
    assert snapshot is not None
    holder = start(HOLD, filled)
    assert holder.stdout is not None and holder.stdin is not None
    assert holder.stdout.readline() == "held\n"
    assert 0.2 <= seconds_of(lambda: backend.lookup(key_of("new"))) < 0.75
    assert seconds_of(lambda: backend.remember_digest("host", "model", "other", NOW)) < 0.2
    assert seconds_of(lambda: snapshot.lease(key_of("new"), "token", None)) < 0.2
    assert 0.9 <= seconds_of(lambda: backend.set_nowait(key_of("new"), entry("new"))) < 2.5
    holder.stdin.write("\n")
    finish(holder)
    assert watched.works()
    assert backend.known_digest("host", "model") == "digest"
    watched.close()


KILLED = """
import random, signal
path, kills = sys.argv[1], int(sys.argv[2])
random.seed(kills)
acknowledged = []
for kill in range(kills):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        backend = InMemoryBackend(100_000, snapshot=path)
        for number in range(10_000):
            name = f"{kill} {number}"
            store(backend, name, f"answer to {name} " * random.randrange(1, 400))
            backend.count("llama3.2:latest", CacheMetrics(sets=1))
            os.write(writing, f"{name}\\n".encode())
    os.close(writing)
    with os.fdopen(reading) as lines:
        for _ in range(random.randrange(1, 12)):
            acknowledged.append(lines.readline().strip())
        os.kill(child, signal.SIGKILL)
        acknowledged += [line.strip() for line in lines if line.endswith("\\n")]
    os.waitpid(child, 0)
print(json.dumps(acknowledged))
"""


@pytest.mark.parametrize("kills", [50, pytest.param(500, marks=pytest.mark.slow)])
def test_a_killed_writer_loses_nothing_it_had_acknowledged(path: Path, kills: int) -> None:
    acknowledged = json.loads(run(KILLED, path, kills))
    assert len(acknowledged) > kills
    watched = Watched(path)
    for name in acknowledged:
        found = watched.backend.lookup(key_of(name))
        assert found is not None, name
        assert set(found.response.response.split(f"answer to {name} ")) == {""}
    assert watched.works()
    assert watched.notices == []
    watched.close()
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    counted = db.execute("SELECT sum(entries), sum(bytes) FROM totals").fetchone()
    assert counted == db.execute("SELECT count(*), sum(size) FROM entries").fetchone()
    db.close()


STRACE = shutil.which("strace")
SYSCALLS = "pwrite64,ftruncate,unlink,fdatasync,fsync"


@pytest.mark.slow
@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
@pytest.mark.parametrize("fault", ["signal=KILL", "error=EIO", "error=ENOSPC"])
def test_a_write_that_breaks_at_any_system_call_harms_nothing(
    filled: Path, tmp_path: Path, fault: str
) -> None:
    """As SQLite tests itself: fail the n-th call, n = 1, 2, 3, ... until the write goes through."""
    script = """
backend = InMemoryBackend(10, snapshot=sys.argv[1])  # makes room as well
try:
    store(backend, "new", "new")
    backend.close_nowait()
except SnapshotError:
    print("refused")
"""
    sound = {file.name: file.read_bytes() for file in filled.parent.iterdir()}
    for number in range(1, 200):
        for name, content in sound.items():
            (filled.parent / name).write_bytes(content)
        inject = f"inject={SYSCALLS}:{fault}:when={number}"
        command = (str(STRACE), "-f", "-qq", "-o", str(tmp_path / "trace"), "-P", str(filled))
        process = start(
            script,
            filled,
            before=(*command, "-P", f"{filled}-journal", "-e", f"trace={SYSCALLS}", "-e", inject),
        )
        assert process.communicate(timeout=60)[1] == ""
        watched = Watched(filled)
        answers = watched.answers()
        found = watched.backend.lookup(key_of("new"))
        assert found is None or found.response.response == "new"
        assert len(answers) in (len(NAMES), 9)
        assert watched.works()
        assert watched.notices == []
        watched.close()
        if process.returncode == 0 and "INJECTED" not in (tmp_path / "trace").read_text():
            break  # the write went through untouched
    assert number > 5


def test_a_stopped_process_does_not_stop_the_others(filled: Path) -> None:
    holder = start(HOLD, filled)
    assert holder.stdout is not None and holder.stdin is not None
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGSTOP)
    try:
        watched = Watched(filled)
        assert seconds_of(lambda: watched.backend.lookup(key_of("1"))) < 0.75
    finally:
        holder.send_signal(signal.SIGCONT)
        holder.stdin.write("\n")
        finish(holder)
    assert len(watched.answers()) == len(NAMES)
    watched.close()


def test_a_snapshot_needs_no_backend_above_it(path: Path) -> None:
    notices: list[str] = []
    snapshot = Snapshot(path, max_entries=2, max_bytes=10**6, notice=notices.append)
    options: dict[str, Any] = {"model": "m:latest", "created_at": NOW, "expires_at": None}
    assert [snapshot.put(key_of(name), b"body", **options) for name in "abc"] == [0, 0, 1]
    assert snapshot.get(key_of("a")) is None
    assert snapshot.get(key_of("c")) == b"body"
    assert snapshot.delete(key_of("c"))
    assert not snapshot.delete(key_of("c"))
    assert snapshot.stats().entries == 1
    snapshot.close()
    snapshot.close()
    assert snapshot.get(key_of("b")) == b"body"
    snapshot.close()
    assert notices == []
