"""Is it SHA-256, whichever implementation computes it?"""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest

from tinyllm_cli.sha import sha256_hex

SIZES = [0, 1, 55, 56, 64, 1000, 2**20, 2**20 + 1]


@pytest.mark.parametrize("size", SIZES)
def test_is_sha256_here(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    assert sha256_hex(data[:size]) == hashlib.sha256(data[:size]).hexdigest()


def test_is_sha256_in_a_process_that_has_loaded_nothing() -> None:
    script = (
        "import sys; from tinyllm_cli.sha import sha256_hex; "
        f"print(*[sha256_hex(b'x' * n) for n in {SIZES[:-1]}], 'hashlib' in sys.modules); "
        f"print(sha256_hex(b'x' * {SIZES[-1]}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, text=True
    )
    first, last = done.stdout.splitlines()
    *small, loaded = first.split()
    assert loaded == "False"
    assert [*small, last] == [hashlib.sha256(b"x" * size).hexdigest() for size in SIZES]
