"""What the client asks a well-behaved Ollama, and what it makes of the answers."""

import asyncio
import gc
import json
from types import MappingProxyType
from typing import Any

import pytest

from tests.fake_ollama import FakeOllama, Fault
from tinyllm_cli._version import __version__
from tinyllm_cli.errors import (
    ConfigError,
    IncompleteAnswerError,
    ModelNotFoundError,
    OllamaProtocolError,
    OllamaStatusError,
)
from tinyllm_cli.ollama.chunks import assemble
from tinyllm_cli.ollama.client import OllamaClient, PullProgress
from tinyllm_cli.request import GenerateRequest
from tinyllm_cli.response import GenerateResponse

from .conftest import Asker

REQUEST = GenerateRequest(model="llama3.2", prompt="hi", options={"seed": 1})


async def all_chunks(client: OllamaClient, request: GenerateRequest) -> list[GenerateResponse]:
    return [chunk async for chunk in client.stream_chunks(request)]


async def all_text(client: OllamaClient, prompt: str, **fields: Any) -> list[str]:
    return [piece async for piece in client.generate_stream(prompt, **fields)]


def test_asks_exactly_what_was_meant(server: FakeOllama, ask: Asker) -> None:
    ask(
        lambda client: client.generate(
            "why é?", "qwen2.5:0.5b", "be brief", 0.5, 7, True, options={"seed": 1}, think=False
        )
    )
    (sent,) = server.requests("/api/generate")
    assert sent.method == "POST"
    assert sent.json() == {
        "model": "qwen2.5:0.5b",
        "prompt": "why é?",
        "system": "be brief",
        "format": "json",
        "think": False,
        "options": {"temperature": 0.5, "num_predict": 7, "seed": 1},
        "stream": True,
    }
    assert sent.headers["content-type"] == "application/json"
    assert sent.headers["accept-encoding"] == "identity"
    assert sent.headers["user-agent"] == f"tinyllm/{__version__}"
    assert "authorization" not in sent.headers
    assert "cookie" not in sent.headers


def test_a_schema_may_be_any_mapping(server: FakeOllama, ask: Asker) -> None:
    schema = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "null"}}}
    ask(lambda client: client.generate("hi", format=MappingProxyType(schema)))
    sent = server.log[-1].body.decode()
    assert f'"format": {json.dumps(schema)}' in sent  # in the caller's order: it steers the answer


def test_the_same_answer_whole_in_chunks_and_as_text(ask: Asker) -> None:
    def timeless(response: GenerateResponse) -> dict[str, Any]:
        return {name: value for name, value in response.to_dict().items() if name != "created_at"}

    whole = ask(lambda client: client.generate("hi", options={"seed": 1}))
    chunks = ask(lambda client: all_chunks(client, REQUEST))
    pieces = ask(lambda client: all_text(client, "hi", options={"seed": 1}))
    assert timeless(assemble(chunks)) == timeless(whole)
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert "".join(pieces) == whole.response
    assert all(pieces)
    assert whole.done_reason == "stop"
    assert whole.eval_count


def test_text_arrives_before_the_answer_ends(server: FakeOllama, ask: Asker) -> None:
    barrier = server.hold_after(chunks=2)

    async def work(client: OllamaClient) -> str:
        stream = client.generate_stream("hi", options={"seed": 1})
        first = await anext(stream)
        assert barrier.held <= 1  # the server has not sent the rest
        second = await anext(stream)
        barrier.release()
        return first + second + "".join([piece async for piece in stream])

    streamed = ask(work)
    assert streamed == ask(lambda client: client.generate("hi", options={"seed": 1})).response


def test_every_part_of_every_chunk_is_kept(server: FakeOllama, ask: Asker) -> None:
    server.chunks = [
        {"response": "", "thinking": "h", "done": False},
        {"response": "", "thinking": "m", "done": False},
        {"response": "a", "done": False, "logprobs": [{"token": "a", "logprob": -0.5}]},
        {"response": "b", "done": False, "tool_calls": [{"id": "1"}]},
        {"response": "c", "done": True, "done_reason": "length", "tool_calls": [{"id": "2"}]},
    ]
    answer = ask(lambda client: client.generate("hi"))
    assert (answer.response, answer.thinking, answer.done_reason) == ("abc", "hm", "length")
    assert answer.tool_calls == ({"id": "1"}, {"id": "2"})
    assert answer.logprobs == ({"token": "a", "logprob": -0.5},)


def test_a_long_answer_is_the_same_as_its_chunks(server: FakeOllama, ask: Asker) -> None:
    server.inject(Fault.many_chunks(2_500), times=None)
    whole = ask(lambda client: client.generate("hi"))
    chunks = ask(lambda client: all_chunks(client, REQUEST))
    assert whole.response == assemble(chunks).response
    assert len(chunks) > 2_500


def test_loading_and_unloading_answer_with_one_object(ask: Asker) -> None:
    assert ask(lambda client: client.generate("")).done_reason == "load"
    assert ask(lambda client: client.generate("", keep_alive=0)).done_reason == "unload"


def test_an_answer_that_was_not_streamed_will_do(server: FakeOllama, ask: Asker) -> None:
    body = b'{"model":"m","created_at":"t","response":"all","done":true,"done_reason":"stop"}'
    server.inject(Fault.body(body, content_type="application/json"))
    assert ask(lambda client: client.generate("hi")).response == "all"


def test_no_model_is_a_mistake_of_the_caller(server: FakeOllama, ask: Asker) -> None:
    for settings in ({"default_model": None}, {"default_model": ""}, {"default_model": " "}):
        with pytest.raises(ConfigError, match="no model"):
            ask(lambda client: client.generate("hi"), **settings)
    with pytest.raises(ConfigError, match="no model"):
        ask(lambda client: all_chunks(client, GenerateRequest(model="", prompt="hi")))
    assert server.log == []


@pytest.mark.parametrize(
    "fields",
    [
        {"system": "\udcff"},
        {"options": {"top_p": float("nan")}},
        {"extra": {"x": float("inf")}},
        {"extra": {"x": object()}},
        {"images": ["not base64!"]},
    ],
)
def test_what_cannot_be_sent_is_not(server: FakeOllama, ask: Asker, fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ask(lambda client: client.generate("hi", **fields))
    assert server.log == []


def test_host_and_key_come_from_the_environment_when_built(
    server: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{server.port}")
    monkeypatch.setenv("OLLAMA_API_KEY", " k-1 ")
    client = OllamaClient()
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1")
    monkeypatch.delenv("OLLAMA_API_KEY")
    asyncio.run(client.generate("hi", "llama3.2"))
    assert client.host == server.url
    assert server.log[-1].headers["authorization"] == "Bearer k-1"
    other = OllamaClient(server.url, api_key="k-2")
    asyncio.run(other.generate("hi", "llama3.2"))
    assert server.log[-1].headers["authorization"] == "Bearer k-2"


@pytest.mark.parametrize(
    "settings",
    [
        {"timeout_ms": 0},
        {"timeout_ms": -1},
        {"timeout_ms": 1.5},
        {"timeout_ms": True},
        {"timeout_ms": float("nan")},
        {"first_byte_timeout_ms": 0},
        {"connect_timeout_ms": "5"},
        {"max_answer_bytes": 0},
        {"max_retries": -1},
        {"host": "localhost:abc"},
        {"api_key": "a\nb"},
        {"api_key": "schlüssel"},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        OllamaClient(**settings)
    assert "schlüssel" not in str(caught.value)


def test_lists_what_is_installed(server: FakeOllama, ask: Asker) -> None:
    assert sorted(ask(lambda client: client.list_models())) == ["llama3.2:latest", "qwen2.5:0.5b"]
    server.inject(Fault.models_null(), path="/api/tags")
    assert ask(lambda client: client.list_models()) == []
    server.inject(Fault.malformed(), path="/api/tags")
    with pytest.raises(OllamaProtocolError):
        ask(lambda client: client.list_models())


@pytest.mark.parametrize(
    "name", ["llama3.2", "LLAMA3.2:latest", "registry.ollama.ai/library/llama3.2", "llama3.2:local"]
)
def test_a_digest_belongs_to_every_spelling_of_a_name(
    server: FakeOllama, ask: Asker, name: str
) -> None:
    assert ask(lambda client: client.model_digest(name)) == server.digest("llama3.2")


def test_a_digest_follows_a_pull(server: FakeOllama, ask: Asker) -> None:
    old = ask(lambda client: client.model_digest("llama3.2"))
    new = server.repull("llama3.2", "w2")
    assert ask(lambda client: client.model_digest("llama3.2")) == new != old


def test_a_digest_that_cannot_be_told_is_none(server: FakeOllama, ask: Asker) -> None:
    server.add_model("far", remote_host="https://ollama.com", remote_model="far")

    async def work(client: OllamaClient) -> list[str | None]:
        names = ("absent", "far", "", "no such name!")
        return [await client.model_digest(name) for name in names]

    assert ask(work) == [None] * 4


@pytest.mark.parametrize(
    "fault",
    [
        Fault.status(500, "boom"),
        Fault.html(),
        Fault.redirect(),
        Fault.drop(),
        Fault.cut(),
        Fault.malformed(),
        Fault.gzip_body(),
        Fault.models_null(),
        Fault.raw_bytes(b"SSH-2.0-OpenSSH\r\n\r\n"),
    ],
    ids=lambda fault: fault.kind,
)
def test_questions_that_only_help_never_fail(server: FakeOllama, ask: Asker, fault: Fault) -> None:
    for path in ("/api/tags", "/api/version", "/"):
        server.inject(fault, path=path, times=None)
    assert ask(lambda client: client.model_digest("llama3.2")) is None
    if fault.kind != "models_null":
        assert ask(lambda client: client.version()) is None
    if fault.kind not in ("models_null", "malformed", "cut"):
        assert ask(lambda client: client.check_health()) is False


def test_health_and_version(server: FakeOllama, ask: Asker) -> None:
    assert ask(lambda client: client.check_health()) is True
    assert ask(lambda client: client.version()) == server.version
    server.stop()
    assert ask(lambda client: client.check_health()) is False
    assert ask(lambda client: client.version()) is None
    assert ask(lambda client: client.model_digest("llama3.2")) is None


def test_shows_a_model(server: FakeOllama, ask: Asker) -> None:
    assert ask(lambda client: client.show("llama3.2"))["model_info"]
    with pytest.raises(ModelNotFoundError) as caught:
        ask(lambda client: client.show("absent"))
    assert caught.value.model == "absent"


def test_embeds_each_input(server: FakeOllama, ask: Asker) -> None:
    one = ask(lambda client: client.embed("a"))
    two = ask(lambda client: client.embed(["a", "b"], "llama3.2", truncate=True))
    assert two[0] == one[0] != two[1]
    assert server.requests("/api/embed")[1].json()["truncate"] is True
    assert ask(lambda client: client.embed([])) == []
    assert len(server.requests("/api/embed")) == 2


@pytest.mark.parametrize(
    "embeddings", ["[]", "[[1.0]]", "[[1.0], [NaN]]", "[[1.0], [1e999]]", "[[1], [2], [3]]", "null"]
)
def test_other_embeddings_are_refused(server: FakeOllama, ask: Asker, embeddings: str) -> None:
    server.inject(Fault.body(f'{{"embeddings": {embeddings}}}'.encode()), path="/api/embed")
    with pytest.raises(OllamaProtocolError):
        ask(lambda client: client.embed(["a", "b"]))


def test_pulls_a_model_and_reports(server: FakeOllama, ask: Asker) -> None:
    seen: list[PullProgress] = []
    ask(lambda client: client.pull_model("smollm2:135m", seen.append))
    assert seen[0] == PullProgress("pulling manifest")
    assert seen[-1] == PullProgress("success")
    assert any(report.completed == report.total and report.total for report in seen)
    assert "smollm2:135m" in ask(lambda client: client.list_models())


def test_a_pull_that_fails_says_why(server: FakeOllama, ask: Asker) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        ask(lambda client: client.pull_model("absent"))
    assert caught.value.model == "absent"
    server.inject(Fault.error_line("disk \x1b[31mfull"), path="/api/pull")
    with pytest.raises(OllamaStatusError, match="disk ␛\\[31mfull"):
        ask(lambda client: client.pull_model("smollm2:135m"))
    server.inject(Fault.clean_end(), path="/api/pull")
    with pytest.raises(IncompleteAnswerError):
        ask(lambda client: client.pull_model("smollm2:135m"))


def test_a_pull_may_be_silent_as_long_as_a_model_may_load(server: FakeOllama, ask: Asker) -> None:
    server.inject(Fault.stall(after=1), path="/api/pull")
    with pytest.raises(IncompleteAnswerError, match=r"0\.2 s"):
        ask(
            lambda client: client.pull_model("smollm2:135m"),
            timeout_ms=1,
            first_byte_timeout_ms=200,
        )


def test_stats_count_requests_and_tokens(server: FakeOllama, ask: Asker) -> None:
    async def work(client: OllamaClient) -> tuple[int, dict[str, Any]]:
        first = await client.generate("hi")
        second = assemble(await all_chunks(client, REQUEST))
        return first.tokens + second.tokens, client.get_stats()

    tokens, stats = ask(work)
    assert stats == {"request_count": 2, "total_tokens": tokens, "host": server.url}


def test_a_client_outlives_its_close_and_its_loop(server: FakeOllama, ask: Asker) -> None:
    client = ask.client()

    async def twice() -> None:
        async with client:
            await client.generate("hi")
        await client.generate("hi")

    asyncio.run(twice())
    asyncio.run(twice())
    asyncio.run(client.generate("hi"))
    gc.collect()  # what was left open would warn now
    assert server.generations == 5
    asyncio.run(client.close())


def test_many_requests_at_once(server: FakeOllama, ask: Asker) -> None:
    async def work(client: OllamaClient) -> list[GenerateResponse]:
        prompts = [f"question {number}" for number in range(150)]
        return await asyncio.gather(*(client.generate(prompt) for prompt in prompts))

    for number, answer in enumerate(ask(work)):
        assert f"question {number}:" in answer.response
