"""Answers, entries and keys for tests that need some and care little which."""

from __future__ import annotations

import hashlib
from typing import Any

from tinyllm_cli.entry import CacheEntry
from tinyllm_cli.response import GenerateResponse

NOW = 1_800_000_000.0


def key_of(name: object) -> str:
    """Return a key as the cache makes them: 64 hex digits, its own for each name."""
    return hashlib.sha256(str(name).encode()).hexdigest()


def answer(text: str = "Because of Rayleigh scattering.", **fields: Any) -> GenerateResponse:
    """Return a complete answer."""
    return GenerateResponse(
        **{
            "model": "llama3.2",
            "created_at": "2026-01-01T00:00:00Z",
            "response": text,
            "done": True,
            "done_reason": "stop",
            **fields,
        }
    )


def entry(text: str = "Because of Rayleigh scattering.", **fields: Any) -> CacheEntry:
    """Return an entry made at NOW that never expires; `fields` are CacheEntry's."""
    return CacheEntry(
        **{"response": answer(text), "created_at": NOW, "last_accessed": NOW, **fields}
    )
