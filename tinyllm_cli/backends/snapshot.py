"""The memory backend's file: entries and counters that outlive the process, for many processes at once.

One plain SQLite database. Every operation is one short transaction, so no process can lose
another's entry or count. It runs without WAL and without fsync: killing a process at any moment is
safe, and what a power cut can damage is caught by the digest each entry carries. See docs/cache.md.
"""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from ..entry import CLOCK_TOLERANCE_S
from ..errors import SnapshotError
from ..eviction import worth
from ..metrics import CacheMetrics
from . import snapshot_file as files
from .inventory import Clearance, Filter, ModelTotals, StoreStats

__all__ = ["SCHEMA_VERSION", "Snapshot", "check_schema", "sqlite_errors"]

SCHEMA_VERSION = 1

_READ_WAIT_MS = 250  # a hit waits this long for another process's write, then is a miss
_WRITE_WAIT_MS = 1000
_RETRY_WRITES_AFTER_S = 60.0
_MIN_FILE_BYTES = 128 * 1024  # an empty file and its indexes take their share of pages
_EVICT_BATCH = 64
_MAX_LEASES = 1000
_MAX_EVICTED = 10_000
_SCAN_BATCH = 200

_SCHEMA = {
    "entries": """CREATE TABLE entries (
        key TEXT NOT NULL PRIMARY KEY, model TEXT NOT NULL, created_at REAL NOT NULL,
        expires_at REAL, rank REAL NOT NULL, uses INTEGER NOT NULL, worth REAL NOT NULL,
        size INTEGER NOT NULL, body BLOB NOT NULL)""",
    "entries_rank": "CREATE INDEX entries_rank ON entries (rank)",
    "entries_created_at": "CREATE INDEX entries_created_at ON entries (created_at)",
    "totals": """CREATE TABLE totals (
        model TEXT NOT NULL PRIMARY KEY, entries INTEGER NOT NULL DEFAULT 0,
        bytes INTEGER NOT NULL DEFAULT 0, hits INTEGER NOT NULL DEFAULT 0,
        misses INTEGER NOT NULL DEFAULT 0, sets INTEGER NOT NULL DEFAULT 0,
        evictions INTEGER NOT NULL DEFAULT 0, errors INTEGER NOT NULL DEFAULT 0,
        expirations INTEGER NOT NULL DEFAULT 0, time_saved_s REAL NOT NULL DEFAULT 0,
        tokens_saved INTEGER NOT NULL DEFAULT 0, stale INTEGER NOT NULL DEFAULT 0,
        coalesced INTEGER NOT NULL DEFAULT 0, refreshed INTEGER NOT NULL DEFAULT 0,
        bypassed INTEGER NOT NULL DEFAULT 0)""",
    "digests": """CREATE TABLE digests (
        host TEXT NOT NULL, model TEXT NOT NULL, digest TEXT NOT NULL, checked_at REAL NOT NULL,
        PRIMARY KEY (host, model))""",
    "leases": """CREATE TABLE leases (
        key TEXT NOT NULL PRIMARY KEY, token TEXT NOT NULL, beats INTEGER NOT NULL,
        note TEXT NOT NULL)""",
    # the last keys that went for room, so that a miss can be explained
    "evicted": "CREATE TABLE evicted (key TEXT NOT NULL, rank REAL NOT NULL)",
}
_COUNTERS = CacheMetrics.__slots__
_ADD_TOTALS = (
    f"INSERT INTO totals (model, entries, bytes, {', '.join(_COUNTERS)}) "
    f"VALUES ({', '.join('?' * (len(_COUNTERS) + 3))}) ON CONFLICT (model) DO UPDATE SET "
    + ", ".join(f"{name} = {name} + excluded.{name}" for name in ("entries", "bytes", *_COUNTERS))
)
_NOTE_EVICTED = (
    "INSERT INTO evicted SELECT ?, max(?, ifnull((SELECT rank FROM evicted "
    "ORDER BY rowid DESC LIMIT 1), 0))"
)
# What a use of an entry does to its rank; the lowest goes first. By recency a sequence instead of a
# clock: the order survives a clock that jumps. By cost see eviction.py: it starts from the rank of
# the last entry dropped, which `evicted` notes, never lower than the one before.
_RANKS = {
    "lru": (
        "UPDATE entries SET uses = uses + 1, "
        "rank = (SELECT max(rank) FROM entries) + 1 WHERE key = ?"
    ),
    "cost": (
        "UPDATE entries SET uses = uses + 1, rank = (uses + 1) * worth + "
        "ifnull((SELECT rank FROM evicted ORDER BY rowid DESC LIMIT 1), 0) WHERE key = ?"
    ),
}
# SQLite's result codes for a file that is not what SQLite wrote (https://www.sqlite.org/rescode.html).
# SQLITE_ERROR is among them because the statements are fixed: if one does not compile, the schema
# has changed under it.
_DAMAGE_CODES = frozenset({1, 11, 26})
_BUSY_CODES = frozenset({5, 6})

T = TypeVar("T")


class Snapshot:
    """A file of encoded entries, bounded by their number and by bytes, safe for many processes.

    Opens on first use. Methods raise SnapshotError; a damaged file is moved aside and the operation
    done on a fresh one, which `notice` is told in one line. May be used from any thread.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_entries: int,
        max_bytes: int,
        eviction: str = "lru",
        notice: Callable[[str], None] | None = None,
    ) -> None:
        self.path = Path(os.path.abspath(path))
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self._rank = _RANKS[eviction]
        self._notice = notice or (lambda line: None)
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None
        self._openings = 0
        self._waited_in_vain: set[int] = set()
        self._readable_only: tuple[SnapshotError, float] | None = None
        _live.add(self)

    # --- entries

    def get(self, key: str) -> bytes | None:
        """Return the stored bytes, None if there are none."""

        def read(db: sqlite3.Connection) -> bytes | None:
            row = db.execute("SELECT body FROM entries WHERE key = ?", (key,)).fetchone()
            # a flipped bit may have made it a number or text; empty, it fails its digest
            return None if row is None else row[0] if isinstance(row[0], bytes) else b""

        return self._read(read)

    def put(
        self,
        key: str,
        body: bytes,
        *,
        model: str,
        created_at: float,
        expires_at: float | None,
        seconds: float = 0.0,
    ) -> int:
        """Store bytes under a key as just used; return how many others went for room.

        `seconds` is what they took to produce, for eviction by cost.
        """
        size = len(key) + len(body)

        def write(db: sqlite3.Connection) -> int:
            self._remove(db, "key = ?", [key])
            db.execute(
                "INSERT INTO entries (key, model, created_at, expires_at, rank, uses, worth, size, "
                "body) VALUES (?, ?, ?, ?, 0, 0, ?, ?, ?)",
                (key, model, created_at, expires_at, worth(seconds, size), size, body),
            )
            db.execute(self._rank, (key,))
            self._add_totals(db, model, entries=1, size=size)
            return self._evict(db, key)

        return self._write(write)

    def delete(self, key: str) -> bool:
        """Remove one entry; return whether there was one."""
        return self._write(lambda db: self._remove(db, "key = ?", [key])).entries > 0

    def clear(self, which: Filter, *, dry_run: bool = False) -> Clearance:
        """Remove the entries a filter matches, overwriting them; `dry_run` only counts them."""
        condition, values = _condition(which)
        if dry_run:
            rows = self._read(lambda db: _sizes(db, condition, values))
            return Clearance(sum(row[1] for row in rows), sum(row[2] for row in rows))
        cleared = self._write(lambda db: self._remove(db, condition, values))
        self._write(_give_back_pages)
        if which.matches_all():
            for old in files.set_aside_files(self.path):
                with contextlib.suppress(FileNotFoundError), _file_errors(old):
                    files.wipe(old)
        return cleared

    def scan(self) -> Iterator[tuple[str, bytes]]:
        """Yield every key and its bytes, the last written first, without holding up writers."""
        before = sys.maxsize
        while True:

            def read(db: sqlite3.Connection, last: int = before) -> list[tuple[int, str, bytes]]:
                return db.execute(
                    "SELECT rowid, key, body FROM entries WHERE rowid < ? "
                    "ORDER BY rowid DESC LIMIT ?",
                    (last, _SCAN_BATCH),
                ).fetchall()

            rows = self._read(read)
            if not rows:
                return
            before = rows[-1][0]
            for _, key, body in rows:
                if isinstance(key, str) and isinstance(body, bytes):  # else it is met by its key
                    yield key, body

    def was_evicted(self, key: str) -> bool:
        """Say whether an entry went for room lately."""
        return (
            self._read(
                lambda db: db.execute("SELECT 1 FROM evicted WHERE key = ?", (key,)).fetchone()
            )
            is not None
        )

    # --- counters

    def record(self, counts: Mapping[str, CacheMetrics], used: Iterable[str] = ()) -> None:
        """Add counters per model and note the keys that were used, in the order of their use."""

        def write(db: sqlite3.Connection) -> None:
            for model, metrics in counts.items():
                self._add_totals(db, model, metrics=metrics)
            for key in used:
                db.execute(self._rank, (key,))

        self._write(write)

    def stats(self) -> StoreStats:
        """Return the totals of every model, in a time that does not depend on the entries."""

        def read(db: sqlite3.Connection) -> StoreStats:
            rows = db.execute(
                f"SELECT model, entries, bytes, {', '.join(_COUNTERS)} FROM totals ORDER BY model"
            ).fetchall()
            oldest, newest = db.execute(
                "SELECT (SELECT min(created_at) FROM entries), (SELECT max(created_at) FROM entries)"
            ).fetchone()
            numbers = [number for row in rows for number in row[1:]]
            times = [time for time in (oldest, newest) if time is not None]
            if not all(_is_amount(number) for number in numbers + times):
                raise _DamagedError("its totals are not numbers")
            models = tuple(
                ModelTotals(row[0], row[1], row[2], CacheMetrics(*row[3:])) for row in rows
            )
            return StoreStats(models, oldest, newest)

        return self._read(read)

    def reset_counters(self) -> None:
        """Zero every counter; entries stay."""

        def write(db: sqlite3.Connection) -> None:
            db.execute("UPDATE totals SET " + ", ".join(f"{name} = 0" for name in _COUNTERS))
            db.execute("DELETE FROM totals WHERE entries = 0")

        self._write(write)

    # --- which digest a model name stood for when it was last asked

    def digest(self, host: str, model: str) -> tuple[str, float] | None:
        """Return the last known digest of a canonical model name at a host and when it was checked."""

        def read(db: sqlite3.Connection) -> tuple[str, float] | None:
            row: tuple[str, float] | None = db.execute(
                "SELECT digest, checked_at FROM digests WHERE host = ? AND model = ?", (host, model)
            ).fetchone()
            if row is not None and not (isinstance(row[0], str) and _is_amount(row[1])):
                raise _DamagedError("its digests are not text")
            return row

        return self._read(read)

    def remember_digest(self, host: str, model: str, digest: str, checked_at: float) -> None:
        """Keep a model's digest for look-ups that must not ask the server."""
        self._write(
            lambda db: db.execute(
                "INSERT INTO digests VALUES (?, ?, ?, ?) ON CONFLICT (host, model) "
                "DO UPDATE SET digest = excluded.digest, checked_at = excluded.checked_at",
                (host, model, digest, checked_at),
            ),
            before_answer=True,
        )

    # --- whose turn it is to ask

    def lease(self, key: str, token: str, stale: str | None) -> str | None:
        """Take the lease of a key if it is free or its mark is `stale`; else return its mark."""

        def mark(db: sqlite3.Connection) -> str | None:
            row = db.execute(
                "SELECT token, beats, note FROM leases WHERE key = ?", (key,)
            ).fetchone()
            return None if row is None else f"{row[0]} {row[1]} {row[2]}"

        def take(db: sqlite3.Connection) -> str | None:
            found = mark(db)
            if found not in (None, stale):
                return found
            db.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, 0, '')", (key, token))
            # what the killed and the failed left behind; a live one lost here costs a second answer
            db.execute(
                "DELETE FROM leases WHERE rowid <= (SELECT max(rowid) FROM leases) - ?",
                (_MAX_LEASES,),
            )
            return None

        found = self._read(mark)  # most calls are somebody's waiting, which must not take locks
        return self._write(take, before_answer=True) if found in (None, stale) else found

    def beat(self, key: str, token: str) -> None:
        """Change the mark of a lease that is still `token`'s."""
        self._write(
            lambda db: db.execute(
                "UPDATE leases SET beats = beats + 1 WHERE key = ? AND token = ?", (key, token)
            )
        )

    def release(self, key: str, token: str, note: str) -> None:
        """End a lease that is still `token`'s; with a note, leave a mark that ends with it."""
        change = "UPDATE leases SET note = ?" if note else "DELETE FROM leases"
        values = (note, key, token) if note else (key, token)
        self._write(lambda db: db.execute(f"{change} WHERE key = ? AND token = ?", values))

    # --- life

    def heal(self) -> None:
        """Look the whole file over; if it is damaged, move it aside and start afresh."""

        def check(db: sqlite3.Connection) -> None:
            (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise _DamagedError(str(verdict).splitlines()[0][:120])

        self._run(check, _WRITE_WAIT_MS)

    @staticmethod
    def is_damage(exc: SnapshotError) -> bool:
        """Say whether an error means that the file is not what was written, so that it is replaced."""
        return isinstance(exc, _DamagedError)

    def changes(self) -> tuple[int, int]:
        """Return a value that differs from the last one if another connection wrote since."""

        def read(db: sqlite3.Connection) -> tuple[int, int]:
            # SQLite counts anew with each connection
            return self._openings, db.execute("PRAGMA data_version").fetchone()[0]

        return self._read(read)

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            db, self._db = self._db, None
            if db is not None:
                db.close()

    def forget_parent(self) -> None:
        """In a forked child: leave the parent's connection and lock alone and open afresh."""
        if self._db is not None:
            _parents.append(self._db)  # closing it here could roll back what the parent is writing
        self._db = None
        self._lock = threading.RLock()

    def _read(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        return self._run(operation, _READ_WAIT_MS)

    def _write(
        self, operation: Callable[[sqlite3.Connection], T], *, before_answer: bool = False
    ) -> T:
        with self._lock:
            if self._readable_only is not None:
                failed, at = self._readable_only
                if time.monotonic() - at < _RETRY_WRITES_AFTER_S:
                    raise failed  # a full or read-only disk is not asked again for every answer
                self._readable_only = None
            try:
                # what only helps the next asker does not make this one wait a second time
                hurried = before_answer and bool(self._waited_in_vain)
                wait_ms = _READ_WAIT_MS if hurried else _WRITE_WAIT_MS
                return self._run(_in_transaction(operation), wait_ms)
            except _DiskRefusedError as exc:
                self._readable_only = (exc, time.monotonic())
                raise

    def _run(self, operation: Callable[[sqlite3.Connection], T], wait_ms: int) -> T:
        """Run an operation on the open file; if the file proves damaged, once more on a fresh one."""
        with self._lock:
            try:
                return self._attempt(operation, wait_ms)
            except _DamagedError as exc:
                self._quarantine(str(exc))
                return self._attempt(operation, wait_ms)

    def _attempt(self, operation: Callable[[sqlite3.Connection], T], wait_ms: int) -> T:
        # who has waited in vain once does not wait for the same lock at every step of a command
        wait = 0 if wait_ms in self._waited_in_vain else wait_ms
        try:
            with sqlite_errors(self.path):
                db = self._connection(wait)
                db.execute(f"PRAGMA busy_timeout = {wait}")
                result = operation(db)
        except _LockedError:
            self._waited_in_vain.add(wait_ms)
            raise
        self._waited_in_vain.clear()
        return result

    def _connection(self, wait_ms: int) -> sqlite3.Connection:
        if self._db is not None:
            if self._is_still_there():
                return self._db
            self.close()  # what is written to a file without a name is lost
        db, self._opened = self._open(wait_ms)
        try:
            _configure(db)
            check_schema(db, self.path)
        except BaseException:
            db.close()
            raise
        self._db = db
        self._openings += 1
        return db

    def _open(self, wait_ms: int) -> tuple[sqlite3.Connection, tuple[int, int]]:
        """Return a connection, and the device and inode of the very file it has open."""
        while True:
            files.create_file(self.path)
            before = _identity(self.path)
            try:
                db = sqlite3.connect(
                    f"{self.path.as_uri()}?mode=rw",
                    uri=True,
                    timeout=wait_ms / 1000,
                    isolation_level=None,
                    check_same_thread=False,
                )
            except sqlite3.Error:
                if before is not None and before == _identity(self.path):
                    raise
                continue  # another process moved it aside meanwhile, since it was damaged
            if before is not None and before == _identity(self.path):
                return db, before
            db.close()

    def _is_still_there(self) -> bool:
        """Say whether the path still names the open file: others may remove or replace it."""
        return _identity(self.path) == self._opened

    def _quarantine(self, why: str) -> None:
        self.close()
        with _file_errors(self.path):
            aside = files.move_aside(self.path, self._opened)
        if aside is not None:
            self._notice(f"the snapshot was damaged ({why}); moved to {aside.name}, started afresh")

    # --- inside a transaction

    def _remove(
        self, db: sqlite3.Connection, condition: str, values: list[str | float]
    ) -> Clearance:
        removed = bytes_removed = 0
        for model, entries, size in _sizes(db, condition, values):
            self._add_totals(db, model, entries=-entries, size=-size)
            removed += entries
            bytes_removed += size
        if removed:
            db.execute(f"DELETE FROM entries WHERE {condition}", values)
        return Clearance(removed, bytes_removed)

    def _evict(self, db: sqlite3.Connection, keep: str) -> int:
        """Drop the entries of the lowest rank until both bounds hold, in the file as well."""
        evicted = 0
        while (over := self._overhang(db)) > 0:
            rows = db.execute(
                "SELECT rowid, key, model, size, rank FROM entries WHERE key != ? "
                "ORDER BY rank LIMIT ?",
                (keep, min(over, _EVICT_BATCH)),
            ).fetchall()
            if not rows:
                break
            if not all(isinstance(row[3], int) for row in rows):
                raise _DamagedError("its sizes are not whole numbers")
            for rowid, key, model, size, rank in rows:
                db.execute("DELETE FROM entries WHERE rowid = ?", (rowid,))
                noted = db.execute(_NOTE_EVICTED, (key, rank)).lastrowid or 0
                db.execute("DELETE FROM evicted WHERE rowid <= ?", (noted - _MAX_EVICTED,))
                gone = CacheMetrics(evictions=1)
                self._add_totals(db, model, metrics=gone, entries=-1, size=-size)
            evicted += len(rows)
        if evicted >= _EVICT_BATCH:
            _give_back_pages(db)  # the bounds were lowered; else the next entries fill the pages
        return evicted

    def _overhang(self, db: sqlite3.Connection) -> int:
        """How many entries to drop next: 0 when all bounds hold."""
        entries, size = db.execute("SELECT sum(entries), sum(bytes) FROM totals").fetchone()
        if not isinstance(entries, int) or not isinstance(size, int):
            raise _DamagedError("its totals are not whole numbers")
        if entries > self.max_entries:
            return int(entries - self.max_entries)
        if size > self.max_bytes:
            return 1
        pages, free, page_size = (
            db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * page_size > max(self.max_bytes, _MIN_FILE_BYTES))

    @staticmethod
    def _add_totals(
        db: sqlite3.Connection,
        model: str,
        *,
        metrics: CacheMetrics | None = None,
        entries: int = 0,
        size: int = 0,
    ) -> None:
        metrics = metrics or CacheMetrics()
        counters = [getattr(metrics, name) for name in _COUNTERS]
        db.execute(_ADD_TOTALS, (model, entries, size, *counters))


class _DamagedError(SnapshotError):
    """The file is not what SQLite, or this module, wrote."""


class _LockedError(SnapshotError):
    """Another process holds the file for longer than anybody should wait."""


class _DiskRefusedError(SnapshotError):
    """The disk is full, read-only or failing: writing again soon would fail again."""


def _condition(which: Filter) -> tuple[str, list[str | float]]:
    """Return a filter as an SQL condition and its values."""
    conditions: list[str] = []
    values: list[str | float] = []
    if which.model is not None:
        conditions.append("model = ?")
        values.append(which.model)
    if which.created_before is not None:
        conditions.append("created_at <= ?")
        values.append(which.created_before)
    if which.expired_at is not None:  # as CacheEntry.is_expired has it
        conditions.append("(expires_at <= ? OR created_at > ?)")
        values += [which.expired_at, which.expired_at + CLOCK_TOLERANCE_S]
    if which.key_prefix is not None:
        conditions.append("substr(key, 1, ?) = ?")
        values += [len(which.key_prefix), which.key_prefix]
    return " AND ".join(conditions) or "1", values


def _identity(path: Path) -> tuple[int, int] | None:
    """Return the device and inode of what stands there, None if nothing that can be seen does."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _configure(db: sqlite3.Connection) -> None:
    for pragma in (
        "trusted_schema = OFF",  # the file may come from somebody else
        "cell_size_check = ON",
        "mmap_size = 0",  # an I/O error under mmap is a signal, not an exception
        "synchronous = OFF",
        "secure_delete = ON",
        "journal_mode = TRUNCATE",
    ):
        db.execute(f"PRAGMA {pragma}")


def check_schema(db: sqlite3.Connection, path: Path) -> None:
    """Create the tables in a fresh file; refuse a newer file; raise _DamagedError for any other."""
    version, found = _schema(db)
    if not found and version == 0:
        # before the first table and never again: on a file in use it would be a write of its own
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute(f"PRAGMA busy_timeout = {_WRITE_WAIT_MS}")  # many may start at once
        _in_transaction(_create_schema)(db)
        version, found = _schema(db)
    # a release that changes the version changes the tables: a version alone is a bit that flipped
    if version > SCHEMA_VERSION and found != _SCHEMA:
        raise SnapshotError(
            f"{path.name} was written by a newer tinyllm",
            hint="upgrade tinyllm, or set TINYLLM_CACHE_DIR to another directory",
        )
    if version != SCHEMA_VERSION or found != _SCHEMA:
        raise _DamagedError("its tables are not ours")


def _schema(db: sqlite3.Connection) -> tuple[int, dict[str, str | None]]:
    # one statement: between two, another process may create the tables
    rows = db.execute(
        "SELECT user_version, name, sql FROM pragma_user_version LEFT JOIN sqlite_master"
    ).fetchall()
    found = {
        name: sql for _, name, sql in rows if name and not name.startswith("sqlite_autoindex_")
    }
    return rows[0][0], found


def _create_schema(db: sqlite3.Connection) -> None:
    if _schema(db) != (0, {}):
        return  # another process was first
    for statement in _SCHEMA.values():
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _in_transaction(
    operation: Callable[[sqlite3.Connection], T],
) -> Callable[[sqlite3.Connection], T]:
    def run(db: sqlite3.Connection) -> T:
        # IMMEDIATE: a deferred transaction that reads first cannot wait for its turn to write
        db.execute("BEGIN IMMEDIATE")
        try:
            result = operation(db)
            db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise
        return result

    return run


def _sizes(
    db: sqlite3.Connection, condition: str, values: list[str | float]
) -> list[tuple[str, int, int]]:
    rows = db.execute(
        f"SELECT model, count(*), sum(size) FROM entries WHERE {condition} GROUP BY model", values
    ).fetchall()
    if not all(isinstance(size, int) for _, _, size in rows):
        raise _DamagedError("its sizes are not whole numbers")
    return rows


def _is_amount(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 <= value < math.inf


def _give_back_pages(db: sqlite3.Connection) -> None:
    # SQLite gives back one page per step, and Python's sqlite3 takes a single one
    for _ in range(db.execute("PRAGMA freelist_count").fetchone()[0]):
        db.execute("PRAGMA incremental_vacuum")


@contextlib.contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Translate what SQLite and the file system raise, most telling first."""
    try:
        yield
    except sqlite3.Error as exc:
        code = getattr(exc, "sqlite_errorcode", None)
        primary = None if code is None else code & 0xFF
        if primary in _BUSY_CODES:
            raise _LockedError(f"{path.name} is locked by another process") from exc
        if isinstance(exc, (sqlite3.IntegrityError, sqlite3.DataError)) or (
            primary in _DAMAGE_CODES
        ):
            raise _DamagedError(str(exc)) from exc
        if primary is None and isinstance(exc, sqlite3.OperationalError):
            raise _DamagedError(str(exc)) from exc  # text in the file that is not UTF-8
        raise _DiskRefusedError(f"{path}: {exc}", hint=_DISK_HINT) from exc
    except OSError as exc:
        raise _DiskRefusedError(f"{path}: {exc.strerror}", hint=_DISK_HINT) from exc
    except UnicodeDecodeError as exc:  # a name in a damaged schema, in SQLite's own message
        raise _DamagedError("it holds text that is not UTF-8") from exc
    except (OverflowError, UnicodeEncodeError) as exc:  # a count above 64 bits, half a character
        raise SnapshotError(f"{path.name} cannot hold this: {exc}") from exc


@contextlib.contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise SnapshotError(f"cannot move or remove {path}: {exc.strerror}") from exc


_DISK_HINT = "free some space, or set TINYLLM_CACHE_DIR to a directory you can write"

_live: weakref.WeakSet[Snapshot] = weakref.WeakSet()
_parents: list[sqlite3.Connection] = []


def _after_fork() -> None:
    for snapshot in _live:
        snapshot.forget_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
