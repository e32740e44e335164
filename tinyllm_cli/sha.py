"""SHA-256, from wherever it costs this process least.

`hashlib` loads OpenSSL, which takes longer than all else a hit on the command line does; once loaded
it is the fastest. A process without an event loop that hashes little uses the interpreter's own
implementation instead. The digests are the same (FIPS 180-4).
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

__all__ = ["new_sha256", "sha256_hex"]

_LARGE = 1 << 20


def _implementation() -> Any:
    if "asyncio" in sys.modules or "hashlib" in sys.modules:
        return importlib.import_module("hashlib").sha256
    for name in ("_sha2", "_sha256"):  # its name since Python 3.12, and before
        try:
            return importlib.import_module(name).sha256
        except ImportError:
            continue
    return importlib.import_module("hashlib").sha256


_sha256 = _implementation()


def sha256_hex(data: bytes) -> str:
    """Return the SHA-256 of some bytes as 64 lower-case hex digits."""
    if len(data) > _LARGE:
        return str(importlib.import_module("hashlib").sha256(data).hexdigest())
    digest: str = _sha256(data).hexdigest()
    return digest


def new_sha256(data: bytes) -> Any:
    """Return a hash that has read some bytes, with `copy`, `update` and `hexdigest` as hashlib's."""
    return _sha256(data)
