"""The embedded client: answers, models, and its place behind the cache."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.embedded.asking import ask, asked, gone, run
from tinyllm_cli import create_cached_client
from tinyllm_cli.embedded.client import EmbeddedClient
from tinyllm_cli.errors import (
    ModelNotFoundError,
    OllamaStatusError,
    OllamaUnavailableError,
)
from tinyllm_cli.request import GenerateRequest
from tinyllm_cli.response import GenerateResponse

# --- answers


def test_an_answer_has_all_that_ollama_would_say(embedded: EmbeddedClient) -> None:
    answer = ask(embedded, "Hi", system="Be brief.", options={"seed": 7})
    assert (answer.model, answer.done, answer.done_reason) == ("tiny-1M", True, "stop")
    assert (answer.prompt_eval_count, answer.eval_count, answer.tokens) == (34, 9, 43)
    assert (answer.prompt_eval_duration, answer.eval_duration) == (120_500_000, 99_000_000)
    assert answer.load_duration is not None and answer.total_duration is not None
    assert answer.total_duration >= answer.load_duration > 0
    assert time.strptime(answer.created_at, "%Y-%m-%dT%H:%M:%SZ")
    body = asked(answer)
    assert [message["content"] for message in body["messages"]] == ["Be brief.", "Hi"]
    assert (body["seed"], body["temperature"], body["max_tokens"]) == (7, 0.3, 2000)
    assert (body["cache_prompt"], body["num_ctx"]) == (False, 4096)
    stats = embedded.get_stats()
    assert (stats["request_count"], stats["total_tokens"]) == (1, 43)


def test_the_chunks_are_the_answer_and_only_the_last_is_done(embedded: EmbeddedClient) -> None:
    async def work(client: EmbeddedClient) -> list[GenerateResponse]:
        request = GenerateRequest(client.default_model, "Grüße, 世界 🌟")
        return [chunk async for chunk in client.stream_chunks(request)]

    chunks = run(embedded, work)
    assert len(chunks) > 5
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    text = "".join(chunk.response for chunk in chunks)
    assert json.loads(text)["messages"][0]["content"] == "Grüße, 世界 🌟"


def test_a_stream_of_text_has_no_empty_piece(embedded: EmbeddedClient) -> None:
    async def work(client: EmbeddedClient) -> list[str]:
        return [text async for text in client.generate_stream("Hi")]

    pieces = run(embedded, work)
    assert all(pieces) and json.loads("".join(pieces))


def test_json_mode_schema_and_raw_reach_the_engine(embedded: EmbeddedClient) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert asked(ask(embedded, "Hi", json_mode=True))["response_format"] == {"type": "json_object"}
    form = asked(ask(embedded, "Hi", format=schema))["response_format"]
    assert form == {"type": "json_schema", "json_schema": {"schema": schema}}
    raw = asked(ask(embedded, "Hi", raw=True, format=schema))
    assert (raw["prompt"], raw["json_schema"]) == ("Hi", schema)
    assert "messages" not in raw


def test_thinking_is_kept_apart(embedded: EmbeddedClient) -> None:
    assert ask(embedded, "think").thinking == "hm"


def test_an_ending_nobody_knows_is_no_complete_answer(embedded: EmbeddedClient) -> None:
    assert ask(embedded, "odd ending").done_reason == ""


def test_one_process_answers_all_and_a_new_context_size_loads_anew(
    embedded: EmbeddedClient,
) -> None:
    async def work(client: EmbeddedClient) -> list[GenerateResponse]:
        together = [client.generate(f"question {number}") for number in range(3)]
        small = client.generate("Hi", options={"num_ctx": 256})
        return [*await asyncio.gather(*together), await small, await client.generate("Hi")]

    answers = run(embedded, work)
    assert len({asked(answer)["process"] for answer in answers}) == 1
    assert [asked(answer)["num_ctx"] for answer in answers] == [4096, 4096, 4096, 256, 4096]
    loaded = [bool(answer.load_duration) for answer in answers]
    assert (sum(loaded[:3]), loaded[3:]) == (1, [True, True])


def test_a_client_works_again_after_close_and_in_another_loop(embedded: EmbeddedClient) -> None:
    first, second = asked(ask(embedded, "Hi")), asked(ask(embedded, "Hi"))
    assert first["process"] != second["process"]

    async def without_closing() -> GenerateResponse:
        return await embedded.generate("Hi")

    third = asked(asyncio.run(without_closing()))
    assert asked(ask(embedded, "Hi"))["process"] != third["process"]
    assert gone(third["process"], 1)


def test_what_the_engine_prints_is_no_part_of_the_answer(embedded: EmbeddedClient) -> None:
    assert asked(ask(embedded, "chatter"))["messages"][0]["content"] == "chatter"


def test_a_large_prompt_arrives_whole(embedded: EmbeddedClient) -> None:
    prompt = "0123456789" * 200_000
    assert asked(ask(embedded, prompt))["messages"][0]["content"] == prompt


# --- models


def test_the_model_is_the_file_and_its_digest(embedded: EmbeddedClient, weights: Path) -> None:
    import hashlib

    async def work(client: EmbeddedClient) -> tuple[list[str], dict[str, Any], str | None]:
        await client.pull_model("tiny-1m")
        return (
            await client.list_models(),
            await client.show("TINY-1M:latest"),
            await client.model_digest("llama3.2"),
        )

    models, shown, unknown = run(embedded, work)
    assert models == ["tiny-1M"]
    assert shown["digest"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (shown["size"], shown["path"]) == (weights.stat().st_size, str(weights))
    assert unknown is None
    assert asyncio.run(embedded.check_health())


def test_a_model_it_does_not_have_is_refused_with_the_one_it_has(embedded: EmbeddedClient) -> None:
    with pytest.raises(ModelNotFoundError, match=r"llama3\.2") as refused:
        ask(embedded, "Hi", model="llama3.2")
    assert refused.value.hint is not None and "tiny-1M" in refused.value.hint


def test_a_file_that_is_not_there_is_named(embedded: EmbeddedClient, weights: Path) -> None:
    weights.unlink()
    with pytest.raises(ModelNotFoundError, match=weights.name):
        ask(embedded, "Hi")


def test_without_the_extra_it_says_how_to_install_it(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyllm_cli.embedded.client.find_spec", lambda name: None)
    client = EmbeddedClient(weights, data_dir=tmp_path / "data")
    with pytest.raises(OllamaUnavailableError, match="not installed") as refused:
        ask(client, "Hi")
    assert refused.value.hint == "pip install 'tinyllm-cli[embedded]'"
    assert not asyncio.run(client.check_health())


# --- behind the cache


def test_the_cache_treats_it_like_any_client(embedded: EmbeddedClient, weights: Path) -> None:
    async def main() -> None:
        async with await create_cached_client(client=embedded) as client:
            first = await client.generate("Hi")
            assert await client.generate("Hi") == first
            assert embedded.get_stats()["request_count"] == 1
            pieces = [text async for text in client.generate_stream("Hi")]
            assert "".join(pieces) == first.response
            assert client.get_stats()["cache"]["hits"] == 2

            await asyncio.to_thread(weights.write_bytes, b"GGUF two")
            await client.pull_model("tiny-1m")  # tells the cache what is behind the name now
            assert asked(await client.generate("Hi"))["weights"] == "two"

    asyncio.run(main())


def test_a_crash_stores_nothing(embedded: EmbeddedClient) -> None:
    async def main() -> None:
        async with await create_cached_client(client=embedded) as client:
            with pytest.raises(OllamaStatusError):
                await client.generate("half way, then crash")
            assert await client.cache.size() == 0

    asyncio.run(main())
