"""The most memory this process has held at once, as Linux tells it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

__all__ = ["peak_memory"]


def peak_memory(*, anew: bool = False) -> int:
    """Return the peak in bytes, 0 where the system does not tell; `anew` begins a new peak here.

    Not `getrusage`: its peak goes on through `exec`, and so begins at what the parent held.
    """
    if sys.platform != "linux":
        return 0
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024
