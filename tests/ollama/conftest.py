"""What the tests of the client share: a real server, a clean environment, clients that do not wait."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest

from tests.fake_ollama import FakeOllama
from tinyllm_cli.ollama.client import OllamaClient

T = TypeVar("T")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("OLLAMA_HOST", "OLLAMA_API_KEY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[FakeOllama]:
    with FakeOllama() as running:
        yield running


class Pauses:
    """Stands in for asyncio.sleep: notes how long it should have been, does `then`, goes on."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.then: Callable[[], object] = lambda: None

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self.then()
        await asyncio.sleep(0)


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


class Asker:
    """Builds clients for one server and runs one piece of async work with each."""

    def __init__(self, server: FakeOllama, pauses: Pauses) -> None:
        self.server = server
        self.pauses = pauses

    def client(self, **settings: Any) -> OllamaClient:
        settings = {"host": self.server.url, "default_model": "llama3.2", **settings}
        client = OllamaClient(**settings)
        client._sleep = self.pauses
        return client

    def __call__(
        self, work: Callable[[OllamaClient], Coroutine[Any, Any, T]], **settings: Any
    ) -> T:
        async def main() -> T:
            async with self.client(**settings) as client:
                return await work(client)

        return asyncio.run(main())


@pytest.fixture
def ask(server: FakeOllama, pauses: Pauses) -> Asker:
    return Asker(server, pauses)
