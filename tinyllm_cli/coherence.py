"""Which model content an answer belongs to: the digest that is in the key, and when it is checked.

A hit never waits for the server: the last known digest of a name is remembered in the store, is
learnt anew on every miss and pull, and is checked behind an answer when it has grown old.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from .cache import ResponseCache
from .model_name import canonical_model, is_cloud_model

__all__ = ["DEFAULT_DIGEST_MAX_AGE_S", "ModelDigests"]

DEFAULT_DIGEST_MAX_AGE_S = 60.0


class ModelDigests:
    """The digests of one client's models.

    `max_age` is in seconds: an older digest is due to be checked. A client without `model_digest`
    has none, and its answers are kept under its `host`.
    """

    def __init__(
        self,
        client: Any,
        cache: ResponseCache,
        *,
        max_age: float = DEFAULT_DIGEST_MAX_AGE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask: Any = getattr(type(client), "model_digest", None)
        self._client = client
        self._cache = cache
        self._max_age = max_age
        self._clock = clock
        self._asked_at: dict[str, float] = {}
        host = getattr(client, "host", "")
        self.host: str = host if isinstance(host, str) else ""

    def known(self, model: str) -> str | None:
        """Return the last known digest of a model, None if there is none."""
        return self._cache.known_digest(self.host, canonical_model(model))

    async def ask(self, model: str) -> str | None:
        """Return the digest the server gives a model now, None if it does not say; remember it."""
        if self._ask is None:
            return None
        name = canonical_model(model)
        self._asked_at[name] = self._clock()
        digest = await self._ask(self._client, model)
        if not isinstance(digest, str):
            return None
        self._cache.remember_digest(self.host, name, digest)
        return digest

    def check_is_due(self, model: str) -> bool:
        """Say whether a model's digest is unknown or older than `max_age`, and nobody here asked since."""
        if self._ask is None or is_cloud_model(model):  # a cloud model has none
            return False
        name = canonical_model(model)
        asked_at = self._asked_at.get(name)
        if asked_at is not None and self._clock() - asked_at < self._max_age:
            return False
        age = self._cache.digest_age(self.host, name)
        if age is not None and age < self._max_age:
            self._asked_at[name] = self._clock() - age  # not looked up again until it is due
            return False
        return True

    def claim_check(self, model: str) -> bool:
        """As `check_is_due`, to the one who is going to ask: of many hits at once it is true for one."""
        due = self.check_is_due(model)
        if due:
            self._asked_at[canonical_model(model)] = self._clock()
        return due
