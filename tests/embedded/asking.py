"""How the tests of the embedded client ask, and how they look after its helper process."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tinyllm_cli.embedded.client import EmbeddedClient
from tinyllm_cli.response import GenerateResponse

__all__ = [
    "MODEL",
    "NOBODY",
    "alive",
    "ask",
    "asked",
    "gone",
    "nobody_at_home",
    "ollama_is_here",
    "run",
]

T = TypeVar("T")

NOBODY = "http://127.0.0.1:9"
MODEL = "tiny-1M"


def ollama_is_here() -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", 11434)) == 0


nobody_at_home = pytest.mark.skipif(
    ollama_is_here(), reason="an Ollama listens where these tests need none"
)


def run(client: EmbeddedClient, work: Callable[[EmbeddedClient], Coroutine[Any, Any, T]]) -> T:
    async def main() -> T:
        async with client:
            return await work(client)

    return asyncio.run(main())


def ask(client: EmbeddedClient, prompt: str, **fields: Any) -> GenerateResponse:
    return run(client, lambda client: client.generate(prompt, **fields))


def asked(response: GenerateResponse) -> dict[str, Any]:
    """Return what reached the library; the stub answers with it."""
    body: dict[str, Any] = json.loads(response.response)
    return body


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    try:
        threads = Path(f"/proc/{process}/task").glob("*/stat")
        return any(stat.read_text().rpartition(")")[2].split()[0] != "Z" for stat in threads)
    except (FileNotFoundError, ProcessLookupError):
        return alive(process)  # one of its threads has just ended


def gone(process: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while alive(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
