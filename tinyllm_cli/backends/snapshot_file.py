"""Whether a path may hold the snapshot, and how its file comes to be, is moved aside and is wiped.

Nothing here opens a file that SQLite has open: closing such a second handle would drop SQLite's
locks in this process (https://www.sqlite.org/howtocorrupt.html, section 2.2).
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

from ..errors import SnapshotError

__all__ = ["SIDECARS", "create_file", "move_aside", "refuse_unsafe", "set_aside_files", "wipe"]

_KEEP_ASIDE = 2
_MOVE_WAIT_S = 1.0
_MOVE_POLL_S = 0.01
SIDECARS = ("-journal", "-wal", "-shm")
_WIPE_BLOCK = 1 << 20


def create_file(path: Path) -> bool:
    """Create the directory (0700) and an empty file (0600); return False if the file was there.

    Raises SnapshotError where the directory or file cannot be made or must not be used.
    """
    _refuse_home_of_others(path.parent)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError as exc:
        raise SnapshotError(f"{path.parent} is not a directory", hint=_ELSEWHERE) from exc
    except OSError as exc:
        raise SnapshotError(
            f"cannot create {path.parent}: {exc.strerror}", hint=_ELSEWHERE
        ) from exc
    if refuse_unsafe(path):
        return False
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
    try:
        # O_EXCL: whoever creates it is the first to open it, so closing it drops nobody's lock
        os.close(os.open(path, flags, 0o600))
    except FileExistsError:
        return False
    except OSError as exc:
        raise SnapshotError(f"cannot create {path}: {exc.strerror}", hint=_ELSEWHERE) from exc
    return True


def _refuse_home_of_others(folder: Path) -> None:
    """Make no directory in one of another user's: under sudo it would be root's in their home."""
    if not hasattr(os, "geteuid") or os.path.lexists(folder):
        return
    for above in folder.absolute().parents:
        try:
            owner = above.stat().st_uid
        except OSError:
            continue  # it has to be made as well
        if owner not in (os.geteuid(), 0):
            raise SnapshotError(f"{above} belongs to another user", hint=_ELSEWHERE)
        return


def refuse_unsafe(path: Path) -> bool:
    """Return whether the file exists; raise SnapshotError if it or its directory is not ours alone."""
    try:
        folder = path.parent.stat()
        _refuse_owner(path.parent, folder)
        if hasattr(os, "geteuid") and folder.st_mode & 0o022:
            raise SnapshotError(
                f"{path.parent} can be written by other users",
                hint=f"run `chmod go-w {path.parent}`, or set TINYLLM_CACHE_DIR",
            )
        found = path.lstat()
    except FileNotFoundError:
        return False
    except OSError as exc:
        raise SnapshotError(f"cannot look at {path}: {exc.strerror}", hint=_ELSEWHERE) from exc
    if not stat.S_ISREG(found.st_mode):
        raise SnapshotError(f"{path} is not a regular file", hint=_ELSEWHERE)
    if found.st_nlink > 1:
        raise SnapshotError(f"{path} has a second name (hard link)", hint=_ELSEWHERE)
    _refuse_owner(path, found)
    return True


def move_aside(path: Path, opened: tuple[int, int] | None) -> Path | None:
    """Rename a damaged file to `<name>.corrupt-<time>`; return the new path, None if it is gone.

    `opened` is the (device, inode) that was found damaged: if another process has already put a
    fresh file there, that one is left alone. At most two such files are kept. Raises OSError where
    the file cannot be moved; a process that is moving it just now is waited for.
    """
    with _alone_in(path.parent):
        try:
            found = path.lstat()
        except FileNotFoundError:
            return None
        if opened is not None and (found.st_dev, found.st_ino) != opened:
            return None
        aside = path.with_name(f"{path.name}.corrupt-{time.time_ns()}")
        # the journal first: a fresh file beside a stale journal would be "rolled back" into damage
        for suffix in SIDECARS:
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{path}{suffix}", f"{aside}{suffix}")
        os.replace(path, aside)
    kept = [found for found in set_aside_files(path) if not found.name.endswith(SIDECARS)]
    for old in kept[:-_KEEP_ASIDE]:
        for suffix in ("", *SIDECARS):
            with contextlib.suppress(FileNotFoundError):
                wipe(Path(f"{old}{suffix}"))
    return aside


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep others from moving a file here between our look at it and its renaming.

    A lock on the directory itself: it ends with the process and leaves no file. Where there are no
    such locks (Windows, some network file systems), a file in use cannot be renamed, or two
    processes may each move one aside.
    """
    try:
        fcntl = import_module("fcntl")
        held = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        _lock(fcntl, held)
        yield
    finally:
        os.close(held)


def _lock(fcntl: ModuleType, held: int) -> None:
    give_up_at = time.monotonic() + _MOVE_WAIT_S
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up_at:  # its holder was stopped in the middle
                raise
            time.sleep(_MOVE_POLL_S)
        except OSError:
            return  # a file system without locks
        else:
            return


def set_aside_files(path: Path) -> list[Path]:
    """Return the damaged files kept beside the snapshot, oldest first."""
    return sorted(path.parent.glob(f"{path.name}.corrupt-*"))


def wipe(path: Path) -> None:
    """Overwrite a file that nobody has open with zeros, then remove it."""
    with open(path, "r+b", buffering=0) as file:
        left = os.fstat(file.fileno()).st_size
        while left > 0:
            left -= file.write(bytes(min(left, _WIPE_BLOCK)))
        os.fsync(file.fileno())
    path.unlink()


def _refuse_owner(path: Path, found: os.stat_result) -> None:
    if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
        raise SnapshotError(
            f"{path} belongs to another user", hint="set TINYLLM_CACHE_DIR to a directory of yours"
        )


_ELSEWHERE = "set TINYLLM_CACHE_DIR to a directory you can write"
