"""When a server that failed is asked again: not at once by everybody, but soon by one."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Breaker"]

RETRY_AFTER_S = 2.0


class Breaker:
    """Open after one failure; `retry_after` seconds later one call may probe, the rest still may not.

    `clock` is monotonic seconds. A probe that never reports, because its caller was cancelled,
    counts as failed after the same time.
    """

    __slots__ = ("_clock", "_retry_after", "_retry_at", "closed")

    def __init__(
        self, retry_after: float = RETRY_AFTER_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.closed = True
        self._retry_after = retry_after
        self._clock = clock
        self._retry_at = 0.0

    def allows(self) -> bool:
        """Say whether the server may be asked now; a yes while open makes the caller the probe."""
        if self.closed:
            return True
        if self._clock() < self._retry_at:
            return False
        self._retry_at = self._clock() + self._retry_after
        return True

    def failed(self) -> None:
        """Note that the server could not be reached or did not answer."""
        self.closed = False
        self._retry_at = self._clock() + self._retry_after

    def worked(self) -> None:
        """Note that the server answered."""
        self.closed = True
