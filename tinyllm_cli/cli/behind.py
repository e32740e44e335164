"""Work that an answer from the cache leaves behind, done without keeping the user waiting."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence

from ..client import CachedOllamaClient
from ..errors import TinyLLMError
from ..request import GenerateRequest

__all__ = ["look_after"]

_MOST_FILES = 4096


def look_after(
    client: CachedOllamaClient, request: GenerateRequest, samples: Sequence[int] = ()
) -> None:
    """Renew these samples, or check the model's digest, in a process of its own where there is fork.

    It holds none of the caller's streams, so a pipe or a `$(...)` does not wait for it.
    """
    if not hasattr(os, "fork"):
        _work(client, request, samples)
        return
    # standard output is flushed and the store is closed: the child inherits nothing half done
    try:
        child = os.fork()
    except OSError:
        return  # too many processes: the next hit tries again
    if child:
        return
    try:
        _let_go()
        _work(client, request, samples)
    finally:
        os._exit(0)


def _work(client: CachedOllamaClient, request: GenerateRequest, samples: Sequence[int]) -> None:
    async def work() -> None:
        try:
            await client.look_after(request, samples)
        finally:
            await client.close()

    with contextlib.suppress(TinyLLMError):
        asyncio.run(work())


def _let_go() -> None:
    """Leave the terminal and every inherited file."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.closerange(3, _MOST_FILES)
