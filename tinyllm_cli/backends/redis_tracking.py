"""Being told by the server which entries others change: CLIENT TRACKING of Redis 6 over RESP3.

In broadcasting mode the server remembers no keys for us; it tells every connection that names a
prefix. The messages come on the connection the look-ups use, after the replies they outdate
(https://redis.io/docs/latest/develop/reference/client-side-caching/).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .redis_url import Endpoint
from .redis_vault import Vault
from .resp import Command

__all__ = ["Tracking"]


class Tracking:
    """What one namespace's connections were told; `on_invalid` is given a name, None for all names."""

    def __init__(self, vault: Vault, on_invalid: Callable[[bytes | None], None]) -> None:
        self._vault = vault
        self._on_invalid = on_invalid
        self._tracked: dict[Endpoint, bool] = {}
        self.generation = 0

    @property
    def works(self) -> bool:
        """Say whether every server that is connected tells what changes."""
        return bool(self._tracked) and all(self._tracked.values())

    def greeting(self) -> Sequence[Command]:
        """Return what turns tracking on for a connection."""
        return [
            ("HELLO", 3),
            ("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", self._vault.prefix, "NOLOOP"),
        ]

    def on_change(self, endpoint: Endpoint, tracked: bool) -> None:
        """Note that a connection began, or ended and may have missed messages."""
        if not tracked:
            self.generation += 1
        self._tracked[endpoint] = tracked

    def on_push(self, message: list[Any]) -> None:
        """Take a message the server sent unasked."""
        if len(message) != 2 or message[0] not in (b"invalidate", "invalidate"):
            return
        if not isinstance(message[1], list):  # the whole database was emptied
            self._on_invalid(None)
            return
        for name in message[1]:
            if isinstance(name, bytes):
                self._on_invalid(name)
