"""What the cache holds under a key: an answer, when it was made, how long it may serve, what it cost."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from .response import GenerateResponse

__all__ = ["CLOCK_TOLERANCE_S", "CacheEntry", "Chunk"]

# A clock an hour or a time zone off must not make an answer immortal: what claims to come from
# further ahead than this is treated as expired.
CLOCK_TOLERANCE_S = 86_400.0

#: One piece of a streamed answer: characters of text, characters of thinking, number of logprobs,
#: milliseconds since the question was sent. Cutting the whole answer along these gives it back as
#: it came.
Chunk = tuple[int, int, int, int]


class CacheEntry:
    """One stored answer with its bookkeeping.

    `created_at` and `last_accessed` are wall-clock seconds (`time.time()`), because entries outlive
    the process. `ttl` is in seconds, None = never expires. `seconds` is what the answer took to
    produce, 0.0 where nobody measured. `chunks` are the pieces it came in, None if it came whole.
    `request` is the body that was sent, None where it is not kept. `grace` is for how many seconds
    past its TTL a store should keep it; it is not stored itself. `tokens` is what the answer read
    and wrote.
    """

    __slots__ = (
        "response",
        "created_at",
        "ttl",
        "access_count",
        "last_accessed",
        "seconds",
        "chunks",
        "request",
        "grace",
        "tokens",
    )

    def __init__(
        self,
        response: GenerateResponse,
        created_at: float,
        ttl: float | None = None,
        access_count: int = 0,
        last_accessed: float | None = None,
        seconds: float = 0.0,
        chunks: Sequence[Chunk] | None = None,
        request: Mapping[str, Any] | None = None,
        grace: float = 0.0,
    ) -> None:
        self.response = response
        self.created_at = created_at
        self.ttl = ttl
        self.access_count = access_count
        self.last_accessed = time.time() if last_accessed is None else last_accessed
        self.seconds = seconds
        self.chunks = chunks
        self.request = request
        self.grace = grace
        self.tokens = response.tokens

    def age(self, now: float | None = None) -> float:
        """Seconds since the answer was made, never below 0; `now` defaults to the wall clock."""
        return max(0.0, (time.time() if now is None else now) - self.created_at)

    def is_expired(self, now: float | None = None) -> bool:
        """Say whether age has reached the TTL, or the entry claims to come from the future."""
        age = (time.time() if now is None else now) - self.created_at
        return age < -CLOCK_TOLERANCE_S or (self.ttl is not None and age >= self.ttl)

    def comes_from_the_future(self, now: float) -> bool:
        """Say whether the entry claims to be made later than any clock's error would explain."""
        return self.created_at - now > CLOCK_TOLERANCE_S

    def touch(self, now: float | None = None) -> None:
        """Note one use."""
        self.access_count += 1
        self.last_accessed = time.time() if now is None else now

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CacheEntry):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None  # type: ignore[assignment] # it notes its uses

    def __repr__(self) -> str:
        return (
            f"CacheEntry({self.response.model!r}, created_at={self.created_at!r}, "
            f"ttl={self.ttl!r}, access_count={self.access_count!r})"
        )

    @property
    def size(self) -> int:
        """About how many bytes the entry takes in memory: its text and a flat sum for the rest."""
        response = self.response
        text = len(response.response) + len(response.thinking or "")
        request = len(self.request.get("prompt", "")) if self.request else 0
        return _FLAT_BYTES + text + request


_FLAT_BYTES = 512
