"""Is the N-th answer to a question always the same one, and is only what is missing generated?"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.fake_ollama import FakeOllama
from tests.running import MODEL, client_of, in_loop, text_of
from tinyllm_cli.backends.memory import InMemoryBackend
from tinyllm_cli.errors import ConfigError
from tinyllm_cli.request import GenerateRequest
from tinyllm_cli.response import GenerateResponse


def texts(answers: list[GenerateResponse]) -> list[str]:
    return [one.response for one in answers]


@in_loop
async def test_from_thirty_to_fifty_twenty_are_generated_and_the_order_stays(
    ollama: FakeOllama, tmp_path: Path
) -> None:
    path = tmp_path / "cache" / "snapshot.sqlite3"
    async with client_of(ollama, backend=InMemoryBackend(snapshot=path)) as client:
        thirty = texts(await client.samples(30, "Why?", temperature=0.8))
    assert (len(set(thirty)), ollama.generations) == (30, 30)
    for _ in range(2):
        async with client_of(ollama, backend=InMemoryBackend(snapshot=path)) as client:
            fifty = texts(await client.samples(50, "Why?", temperature=0.8))
            assert fifty[:30] == thirty
            assert (len(set(fifty)), ollama.generations) == (50, 50)
            assert texts(await client.samples(7, "Why?", temperature=0.8)) == fifty[:7]


@in_loop
async def test_the_first_sample_is_the_answer_without_a_number(ollama: FakeOllama) -> None:
    async with client_of(ollama) as client:
        plain = await client.generate("Why?")
        assert await client.generate("Why?", sample=1) == plain
        assert await text_of(client.generate_stream("Why?", sample=1)) == plain.response
        second = await client.generate("Why?", sample=2)
        assert second != plain
        assert await text_of(client.generate_stream("Why?", sample=2)) == second.response
        assert texts(await client.samples(2, "Why?")) == [plain.response, second.response]
    assert ollama.generations == 2


@in_loop
async def test_twins_in_flight_never_share_an_index(ollama: FakeOllama) -> None:
    """Two sets asked for at once are one set; the numbers in it are as many generations."""
    async with client_of(ollama) as client:
        several = await asyncio.gather(*(client.samples(5, "Why?") for _ in range(4)))
        assert all(texts(one) == texts(several[0]) for one in several)
        assert len(set(texts(several[0]))) == 5
        at_once = await asyncio.gather(
            *(client.generate("How?", sample=number) for number in (1, 2, 3, 1, 2, 3))
        )
        assert texts(at_once[:3]) == texts(at_once[3:])
        assert len(set(texts(at_once))) == 3
    assert ollama.generations == 8


@in_loop
async def test_a_gap_is_filled_and_the_others_stay(ollama: FakeOllama) -> None:
    async with client_of(ollama) as client:
        five = texts(await client.samples(5, "Why?"))
        key = client.question(GenerateRequest(MODEL, "Why?"), 2).key
        assert await client.cache.delete(key)
        again = texts(await client.samples(5, "Why?"))
        assert again[:1] + again[2:] == five[:1] + five[2:]
        assert again[1] not in five
    assert ollama.generations == 6


@in_loop
async def test_one_sample_is_refreshed_alone(ollama: FakeOllama) -> None:
    async with client_of(ollama) as client:
        three = texts(await client.samples(3, "Why?"))
        new = await client.generate("Why?", sample=2, force_refresh=True)
        assert texts(await client.samples(3, "Why?")) == [three[0], new.response, three[2]]
    assert ollama.generations == 4


@pytest.mark.parametrize("sample", [0, -1, 1.0, "1", True, None])
@in_loop
async def test_samples_are_numbered_from_one(ollama: FakeOllama, sample: Any) -> None:
    async with client_of(ollama) as client:
        for _ in range(2):
            with pytest.raises(ConfigError, match="sample"):
                await client.generate("Why?", sample=sample)
        assert await client.samples(0, "Why?") == []
    assert ollama.log == []


# --- when the cache should not answer


@pytest.mark.parametrize(
    ("fields", "cached"),
    [
        ({"temperature": 0}, True),
        ({"temperature": 0.7, "options": {"seed": 1}}, True),
        ({"temperature": 0.7, "options": {"top_k": 1}}, True),
        ({}, False),
        ({"temperature": None}, False),
        ({"temperature": 0.7, "options": {"seed": -1}}, False),
        ({"temperature": 0, "options": {"temperature": 0.7}}, False),
    ],
)
@in_loop
async def test_deterministic_leaves_alone_what_may_differ_each_time(
    ollama: FakeOllama, fields: dict[str, Any], cached: bool
) -> None:
    async with client_of(ollama, cache_when="deterministic") as client:
        for _ in range(2):
            whole = await client.generate("Why?", **fields)
            stream = await text_of(client.generate_stream("Why?", **fields))
            assert (stream == whole.response) is cached
        assert await client.cache.size() == (1 if cached else 0)
        assert client.get_stats()["cache"]["bypassed"] == (0 if cached else 4)
    assert ollama.generations == (1 if cached else 4)
