"""What state a snapshot file is in, found by reading alone: nothing is created, healed or moved."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .. import codec
from ..errors import CorruptEntryError, SnapshotError, UnreadableEntryError
from . import snapshot_file as files
from .snapshot import Snapshot, check_schema, sqlite_errors

__all__ = ["Inspection", "inspect"]

_LEAST_MODES = 0o077
_BATCH = 500
_WAIT_S = 1.0


class Inspection(NamedTuple):
    """What was found: `damage` is why the file as a whole is not ours, None if it is sound.

    `bad` are the keys whose entry does not match its digest, `foreign` counts entries that only
    another release or installation can read. `open_to_others` are the paths whose mode lets others
    read what is asked and answered. `set_aside` are damaged files kept from before.
    """

    exists: bool = False
    entries: int = 0
    bytes: int = 0
    bad: tuple[str, ...] = ()
    foreign: int = 0
    damage: str | None = None
    open_to_others: tuple[Path, ...] = ()
    set_aside: tuple[Path, ...] = ()


def inspect(path: Path, progress: Callable[[int, int], None] | None = None) -> Inspection:
    """Read every entry of a snapshot and check it; `progress` is told how many of how many.

    Raises SnapshotError where the file must not or cannot be read: it belongs to somebody else, may
    be written by others, is locked, or is of a newer release.
    """
    exists = files.refuse_unsafe(path)
    present = [one for one in (path.parent, path) if one.exists()]
    found = Inspection(
        exists,
        open_to_others=tuple(one for one in present if one.stat().st_mode & _LEAST_MODES),
        set_aside=tuple(
            one for one in files.set_aside_files(path) if not one.name.endswith(files.SIDECARS)
        ),
    )
    if not exists:
        return found
    try:
        with sqlite_errors(path):
            db = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=_WAIT_S)
            try:
                return _read(db, path, found, progress)
            finally:
                db.close()
    except SnapshotError as exc:
        if Snapshot.is_damage(exc):
            return found._replace(damage=str(exc))
        raise


def _read(
    db: sqlite3.Connection,
    path: Path,
    found: Inspection,
    progress: Callable[[int, int], None] | None,
) -> Inspection:
    db.execute("PRAGMA trusted_schema = OFF")
    db.execute("PRAGMA cell_size_check = ON")
    (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        return found._replace(damage=str(verdict).splitlines()[0][:120])
    if db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
        return found  # made a moment ago, or by a process that was killed right then
    check_schema(db, path)
    (total,) = db.execute("SELECT count(*) FROM entries").fetchone()
    bad: list[str] = []
    seen = size = foreign = 0
    rows = db.execute("SELECT key, body FROM entries")
    while batch := rows.fetchmany(_BATCH):
        for key, body in batch:
            blob = body if isinstance(body, bytes) else b""
            size += len(blob)
            try:
                codec.loads(str(key), blob)
            except UnreadableEntryError:
                foreign += 1
            except CorruptEntryError:
                bad.append(str(key))
        seen += len(batch)
        if progress is not None:
            progress(seen, total)
    return found._replace(entries=seen, bytes=size, bad=tuple(bad), foreign=foreign)
