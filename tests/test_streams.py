"""Are a streamed and a whole answer one answer, given back as it came and kept only when complete?"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from contextlib import aclosing, suppress
from typing import Any

import pytest

from tests.fake_ollama import FakeOllama, Fault
from tests.running import MODEL, client_of, in_loop, off_loop, text_of
from tinyllm_cli.backends.memory import InMemoryBackend
from tinyllm_cli.client import CachedOllamaClient
from tinyllm_cli.errors import OllamaError, OllamaProtocolError
from tinyllm_cli.ollama.chunks import assemble
from tinyllm_cli.request import GenerateRequest
from tinyllm_cli.response import GenerateResponse

ABLE = "able:1b"
PICTURE = base64.b64encode(b"\x89PNG\r\n").decode()
SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}}


@pytest.fixture
def able(ollama: FakeOllama) -> FakeOllama:
    """Give a server with a model that can do everything."""
    ollama.add_model(ABLE, capabilities=("completion", "vision", "thinking", "insert", "tools"))
    return ollama


async def chunks_of(client: CachedOllamaClient, request: GenerateRequest) -> list[GenerateResponse]:
    reply = await client.ask(request)
    return [chunk async for chunk in reply.chunks()]


def timeless(response: GenerateResponse) -> dict[str, Any]:
    """Return what a replay gives back as it came: all but the times of its pieces."""
    return {name: value for name, value in response.to_dict().items() if name != "created_at"}


# --- either form fills the cache for both

#: Every field of a generate request, and every kind of value it may have.
FIELDS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "system": {"system": "Be brief."},
    "temperature": {"temperature": 1.5},
    "temperature of the model": {"temperature": None},
    "max_tokens": {"max_tokens": 3},
    "max_tokens of the model": {"max_tokens": None},
    "json_mode": {"json_mode": True},
    "format json": {"format": "json"},
    "format schema": {"format": SCHEMA},
    "images": {"images": [PICTURE]},
    "raw images": {"images": [b"\x89PNG\r\n", PICTURE]},
    "think": {"think": True},
    "no think": {"think": False},
    "think level": {"think": "low"},
    "suffix": {"suffix": "return x"},
    "template": {"template": "{{ .Prompt }}"},
    "context": {"context": [1, 2, 3]},
    "empty context": {"context": []},
    "raw": {"raw": True},
    "truncate": {"truncate": False},
    "shift": {"shift": False},
    "logprobs": {"logprobs": True},
    "top_logprobs": {"logprobs": True, "top_logprobs": 2},
    "keep_alive": {"keep_alive": "10m"},
    "extra": {"extra": {"width": 3}},
    "everything": {
        "system": "Be brief.",
        "think": True,
        "logprobs": True,
        "top_logprobs": 1,
        "format": SCHEMA,
        "options": {"seed": 7, "stop": ["END"], "num_ctx": 4096},
    },
    **{
        f"option {name}": {"options": {name: value}}
        for name, value in {
            "seed": 42,
            "stop": ["a", "b"],
            "num_ctx": 4096,
            "top_k": 5,
            "top_p": 0.5,
            "min_p": 0.1,
            "typical_p": 0.9,
            "repeat_penalty": 1.2,
            "repeat_last_n": 32,
            "presence_penalty": 0.1,
            "frequency_penalty": 0.1,
            "num_keep": 2,
            "num_batch": 256,
            "num_gpu": 1,
            "main_gpu": 0,
            "num_thread": 2,
            "use_mmap": False,
            "draft_num_predict": 2,
            "an_unknown_one": "x",
        }.items()
    },
}


def test_no_field_of_a_request_is_left_out() -> None:
    named = {name for fields in FIELDS.values() for name in fields}
    assert named == set(GenerateRequest.__slots__) - {"model", "prompt"}


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
@pytest.mark.parametrize("first", ["stream", "whole"])
@in_loop
async def test_a_stream_and_a_whole_are_one_answer_from_one_generation(
    able: FakeOllama, first: str, fields: dict[str, Any]
) -> None:
    able.drift = True
    async with client_of(able) as client:
        if first == "stream":
            text = await text_of(client.generate_stream("Why?", ABLE, **fields))
            whole = await client.generate("Why?", ABLE, **fields)
        else:
            whole = await client.generate("Why?", ABLE, **fields)
            text = await text_of(client.generate_stream("Why?", ABLE, **fields))
        assert (text, able.generations) == (whole.response, 1)

        request = GenerateRequest(ABLE, "Why?", **fields)
        assert assemble(await chunks_of(client, request)) == whole
        assert able.generations == 1
        # and it is the answer that was given: the server, asked once more, gives another
        other = await client.generate("Why?", ABLE, force_refresh=True, **fields)
        assert other != whole


#: Chunks as the server may send them; what is left out is filled in by the fake.
SCRIPTS: dict[str, list[dict[str, Any]]] = {
    "one token a line": [{"response": "Be"}, {"response": "cause"}, {"response": ""}],
    "text in the final chunk": [{"response": "Be"}, {"response": "cause", "eval_count": 2}],
    "only the final chunk": [{"response": "Because"}],
    "empty text between": [{"response": "Be"}, {"response": ""}, {"response": "cause"}, {}],
    "thinking first": [
        {"response": "", "thinking": "Let me "},
        {"response": "", "thinking": "see."},
        {"response": "Because"},
        {"response": ""},
    ],
    "only thinking": [{"response": "", "thinking": "hm"}, {"response": ""}],
    "thinking in the final chunk": [{"response": "Be"}, {"response": "", "thinking": "hm"}],
    "logprobs alone": [
        {"response": "Be", "logprobs": [{"token": "Be", "logprob": -0.1, "bytes": [66, 101]}]},
        {"response": "", "logprobs": [{"token": "", "logprob": -0.25}]},
        {"response": "", "logprobs": [{"token": "\n", "logprob": -1}]},
    ],
    "tool calls": [
        {"response": "Calling"},
        {
            "response": "",
            "tool_calls": [
                {"id": "call_ab12cd34", "function": {"name": "f", "arguments": {"b": 1, "a": [2]}}}
            ],
        },
    ],
    "cut by the limit": [{"response": "Be"}, {"response": "", "done_reason": "length"}],
    "fields of next year": [{"response": "Be"}, {"response": "", "x_new": {"nested": [1, None]}}],
    "characters of every width": [{"response": "ä"}, {"response": "日本\U0001f30d"}, {}],
    "line ends that are none": [{"response": "a\x85b\u2028c\u2029d\x0be\r\n"}, {"response": "\n"}],
    "blanks": [{"response": " "}, {"response": "\t"}, {"response": ""}],
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
@pytest.mark.parametrize("snapshot", [False, True], ids=["memory", "snapshot"])
@in_loop
async def test_a_replay_is_what_was_recorded(
    ollama: FakeOllama, script: list[dict[str, Any]], snapshot: bool, tmp_path: Any
) -> None:
    ollama.chunks = script
    path = tmp_path / "cache" / "snapshot.sqlite3" if snapshot else None
    request = GenerateRequest(MODEL, "Why?")
    async with client_of(ollama, backend=InMemoryBackend(snapshot=path)) as client:
        came = await chunks_of(client, request)
    # a second program reads it from the file
    backend = InMemoryBackend(snapshot=path) if snapshot else client.cache.backend
    async with client_of(ollama, backend=backend) as client:
        again = await chunks_of(client, request)
        whole = await client.generate("Why?", MODEL)
    assert ollama.generations == 1
    if len(came) == 1:  # an answer in one piece is text and a final chunk: a stream has both
        assert assemble(again) == assemble(came)
    else:
        assert [timeless(chunk) for chunk in again] == [timeless(chunk) for chunk in came]
    assert [chunk.done for chunk in again] == [False] * (len(again) - 1) + [True]
    assert assemble(came) == assemble(again) == whole


@in_loop
async def test_the_pieces_of_text_come_as_they_came(ollama: FakeOllama) -> None:
    ollama.answer = lambda body: "one two three four"
    async with client_of(ollama) as client:
        for _ in range(3):
            stream = client.generate_stream("Count.")
            assert [piece async for piece in stream] == ["one", " two", " three", " four"]
    assert ollama.generations == 1


@in_loop
async def test_an_answer_that_came_whole_streams_in_one_piece_and_an_end(
    ollama: FakeOllama,
) -> None:
    ollama.chunks = [{"response": "Because."}]
    async with client_of(ollama) as client:
        whole = await client.generate("Why?")
        text, final = await chunks_of(client, GenerateRequest(MODEL, "Why?"))
    assert (text.response, text.done, text.eval_count) == ("Because.", False, None)
    assert (final.response, final.done, final.eval_count) == ("", True, whole.eval_count)


@in_loop
async def test_an_answer_of_very_many_chunks_is_one(ollama: FakeOllama) -> None:
    ollama.inject(Fault.many_chunks(5_000))
    async with client_of(ollama) as client:
        stream = client.generate_stream("Why?")
        assert [piece async for piece in stream] == ["la "] * 5_000
        stream = client.generate_stream("Why?")
        assert [piece async for piece in stream] == ["la "] * 5_000
        assert (await client.generate("Why?")).response == "la " * 5_000
    assert ollama.generations == 1


# --- nothing but a complete answer is kept

ANSWER = "one two three four"
WORDS = ["one", " two", " three", " four"]


@pytest.mark.parametrize("wait", ["stream", "whole"])
@pytest.mark.parametrize(
    "fault",
    [Fault.clean_end, Fault.cut, Fault.reset, Fault.half_line, Fault.malformed, Fault.error_line],
    ids=lambda fault: str(fault.__name__),
)
@in_loop
async def test_an_answer_cut_at_any_point_is_an_error_and_leaves_nothing(
    ollama: FakeOllama, fault: Callable[..., Fault], wait: str
) -> None:
    ollama.answer = lambda body: ANSWER
    async with client_of(ollama) as client:
        for after in range(len(WORDS) + 1):
            ollama.inject(fault(after=after))
            given: list[str] = []
            with pytest.raises(OllamaProtocolError):
                if wait == "whole":
                    await client.generate("Count.")
                async for piece in client.generate_stream("Count."):
                    given.append(piece)
            if wait == "stream":
                assert given == WORDS[:after]
            assert await client.cache.size() == 0, after
        assert await text_of(client.generate_stream("Count.")) == ANSWER
        assert await client.cache.size() == 1
    assert ollama.generations == len(WORDS) + 2


@pytest.mark.parametrize(
    "fault", [Fault.done_false(), Fault.no_done_reason(), Fault.done_reason("load")]
)
@in_loop
async def test_an_answer_that_did_not_end_well_is_not_kept(
    ollama: FakeOllama, fault: Fault
) -> None:
    async with client_of(ollama) as client:
        ollama.inject(fault)
        with suppress(OllamaError):
            await text_of(client.generate_stream("Why?"))
        assert await client.cache.size() == 0
        await client.generate("Why?")
        assert (await client.cache.size(), ollama.generations) == (1, 2)


@pytest.mark.parametrize("pieces", range(1, len(WORDS) + 1))
@in_loop
async def test_a_stream_left_before_its_end_stops_the_model_and_leaves_nothing(
    ollama: FakeOllama, pieces: int
) -> None:
    ollama.answer = lambda body: ANSWER
    barrier = ollama.hold_after(pieces, times=1)
    async with client_of(ollama) as client:
        async with aclosing(client.generate_stream("Count.")) as stream:  # type: ignore[type-var]
            for _ in range(pieces):
                await anext(stream)
            await off_loop(barrier.wait_for, 1)
        await off_loop(
            ollama.wait_until, lambda server: server.requests("/api/generate")[0].client_closed
        )
        assert await client.cache.size() == 0
        barrier.release()
        assert await text_of(client.generate_stream("Count.")) == ANSWER
    assert ollama.generations == 2


@in_loop
async def test_a_loop_that_breaks_off_is_a_stream_that_was_left(ollama: FakeOllama) -> None:
    """Without aclosing: the generator is collected, and that is enough."""
    ollama.answer = lambda body: ANSWER
    barrier = ollama.hold_after(2, times=1)
    async with client_of(ollama) as client:
        async for _ in client.generate_stream("Count."):
            break
        await off_loop(
            ollama.wait_until, lambda server: server.requests("/api/generate")[0].client_closed
        )
        assert await client.cache.size() == 0
        barrier.release()


@in_loop
async def test_an_answer_left_after_its_last_chunk_is_kept(ollama: FakeOllama) -> None:
    """Somebody's machine has worked for it."""
    async with client_of(ollama) as client:
        reply = await client.ask(GenerateRequest(MODEL, "Why?"))
        async with aclosing(reply.chunks()) as chunks:
            async for chunk in chunks:
                if chunk.done:
                    break
    assert await client.cache.size() == 1  # close waited for it


@in_loop
async def test_a_stored_stream_left_early_is_still_stored(ollama: FakeOllama) -> None:
    async with client_of(ollama) as client:
        whole = await client.generate("Why?")
        async for _ in client.generate_stream("Why?"):
            break
        assert await text_of(client.generate_stream("Why?")) == whole.response
    assert ollama.generations == 1


@in_loop
async def test_a_fast_and_a_slow_reader_get_the_same_pieces(ollama: FakeOllama) -> None:
    """The slow one reads its next piece only when the fast one has finished."""
    ollama.answer = lambda body: ANSWER
    async with client_of(ollama) as client:
        finished = asyncio.Event()

        async def fast() -> list[str]:
            pieces = [piece async for piece in client.generate_stream("Count.")]
            finished.set()
            return pieces

        async def slow() -> list[str]:
            pieces = []
            async for piece in client.generate_stream("Count."):
                pieces.append(piece)
                await finished.wait()
            return pieces

        assert list(await asyncio.gather(fast(), slow())) == [WORDS, WORDS]
    assert ollama.generations == 1
