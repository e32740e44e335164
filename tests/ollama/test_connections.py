"""When is a server asked again, and by which way is it reached?"""

import asyncio
import socket
import time

import pytest

from tests.fake_ollama import FakeOllama, Fault
from tinyllm_cli.errors import (
    ConfigError,
    OllamaStatusError,
    OllamaTimeoutError,
    OllamaUnavailableError,
)
from tinyllm_cli.ollama.client import OllamaClient

from .conftest import Asker

# Resolves to 127.0.0.1, but is not spelled as loopback: as good as a host elsewhere.
ELSEWHERE = "127.1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_dead_server_is_told_within_a_second() -> None:
    client = OllamaClient(f"127.0.0.1:{free_port()}")
    started = time.monotonic()
    with pytest.raises(OllamaUnavailableError) as caught:
        asyncio.run(client.generate("hi", "m"))
    assert time.monotonic() - started < 1.2
    assert client.host in str(caught.value)
    assert "ollama serve" in (caught.value.hint or "")
    assert type(caught.value) is OllamaUnavailableError


def test_a_refused_connection_is_tried_again(ask: Asker) -> None:
    for host, retries, pauses in (("127.0.0.1", 3, 1), ("127.0.0.1", 0, 0), (ELSEWHERE, 3, 3)):
        ask.pauses.seconds.clear()
        with pytest.raises(OllamaUnavailableError):
            ask(
                lambda client: client.generate("hi"),
                host=f"{host}:{free_port()}",
                max_retries=retries,
            )
        assert len(ask.pauses.seconds) == pauses
        assert all(0.1 <= seconds <= 0.5 for seconds in ask.pauses.seconds)


def test_a_server_that_comes_back_is_found(server: FakeOllama, ask: Asker) -> None:
    server.stop()
    ask.pauses.then = server.start
    assert ask(lambda client: client.generate("hi")).done
    assert server.generations == 1


def test_a_busy_server_is_asked_once_more(server: FakeOllama, ask: Asker) -> None:
    server.inject(Fault.status(503, "server busy"))
    assert ask(lambda client: client.generate("hi")).done
    assert len(server.requests("/api/generate")) == 2
    server.inject(Fault.status(503, "server busy"), times=None)
    with pytest.raises(OllamaStatusError, match="server busy") as caught:
        ask(lambda client: client.generate("hi"))
    assert caught.value.status_code == 503
    assert len(server.requests("/api/generate")) == 4
    with pytest.raises(OllamaStatusError):
        ask(lambda client: client.generate("hi"), max_retries=0)
    assert len(server.requests("/api/generate")) == 5
    assert len(ask.pauses.seconds) == 2


def test_a_long_question_arrives_whole_each_time(server: FakeOllama, ask: Asker) -> None:
    """It goes in pieces, of a length that is said beforehand."""
    server.inject(Fault.status(503, "server busy"))
    prompt = "why é " * 200_000
    ask(lambda client: client.generate(prompt))
    first, second = server.requests("/api/generate")
    assert first.json()["prompt"] == second.json()["prompt"] == prompt
    assert int(first.headers["content-length"]) == len(first.body)
    assert "transfer-encoding" not in first.headers


def test_helpful_questions_are_asked_once(server: FakeOllama, ask: Asker) -> None:
    server.stop()

    async def work(client: OllamaClient) -> None:
        assert await client.model_digest("m") is None
        assert await client.version() is None
        assert not await client.check_health()

    ask(work)
    assert ask.pauses.seconds == []


@pytest.mark.slow
def test_a_frozen_server_delays_a_helpful_question_by_five_seconds(
    server: FakeOllama, ask: Asker
) -> None:
    server.inject(Fault.stall_headers(), path="/api/tags")
    started = time.monotonic()
    assert ask(lambda client: client.model_digest("llama3.2")) is None
    assert 4.9 < time.monotonic() - started < 20


def test_a_host_that_takes_no_connection_times_out(ask: Asker) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        # A full backlog: the kernel answers no further attempt.
        fillers = [socket.socket() for _ in range(8)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", port))
            with pytest.raises(OllamaTimeoutError):
                ask(
                    lambda client: client.generate("hi"),
                    host=f"127.0.0.1:{port}",
                    connect_timeout_ms=200,
                    first_byte_timeout_ms=400,
                )
        finally:
            for filler in fillers:
                filler.close()


def test_a_name_that_does_not_resolve_is_out_of_reach(ask: Asker) -> None:
    with pytest.raises((OllamaUnavailableError, OllamaTimeoutError)):
        ask(lambda client: client.generate("hi"), host="no-such-host.invalid", max_retries=0)


def test_tls_to_a_server_that_speaks_none(ask: Asker) -> None:
    async def answer_plainly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def main() -> None:
        async with await asyncio.start_server(answer_plainly, "127.0.0.1", 0) as plain:
            port = plain.sockets[0].getsockname()[1]
            await ask.client(host=f"https://127.0.0.1:{port}").generate("hi")

    with pytest.raises(OllamaUnavailableError, match="TLS") as caught:
        asyncio.run(main())
    assert "certificate" in (caught.value.hint or "")
    assert ask.pauses.seconds == []


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_this_machine_is_never_reached_through_a_proxy(
    server: FakeOllama, ask: Asker, monkeypatch: pytest.MonkeyPatch, name: str, host: str
) -> None:
    with FakeOllama() as proxy:
        monkeypatch.setenv(name, proxy.url)
        assert ask(lambda client: client.generate("hi"), host=f"{host}:{server.port}").done
        assert proxy.log == []


def test_another_machine_is_reached_through_the_proxy_of_the_environment(
    server: FakeOllama, ask: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeOllama() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        ask(lambda client: client.check_health(), host=f"{ELSEWHERE}:{server.port}")
        assert len(proxy.log) == 1
    assert server.log == []


@pytest.mark.parametrize("proxy", ["gopher://user:geheim@proxy:1", "http://proxy:x"])
def test_a_proxy_that_is_none_is_a_setting_to_mend(
    ask: Asker, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(ConfigError) as caught:
        ask(lambda client: client.generate("hi"), host=f"{ELSEWHERE}:{free_port()}")
    assert "HTTP_PROXY" in (caught.value.hint or "")
    assert "geheim" not in str(caught.value)
    assert ask(lambda client: client.check_health(), host=ELSEWHERE) is False


def test_a_path_in_the_host_goes_before_every_endpoint(server: FakeOllama, ask: Asker) -> None:
    with pytest.raises(OllamaStatusError) as caught:
        ask(lambda client: client.generate("hi"), host=f"{server.url}/behind/")
    assert server.log[-1].path == "/behind/api/generate"
    assert caught.value.status_code == 404
