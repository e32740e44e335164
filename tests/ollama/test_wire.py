"""Ollama's JSON becomes our values, field for field, or is refused."""

from typing import Any

import pytest

from tinyllm_cli.errors import IncompleteAnswerError, OllamaProtocolError
from tinyllm_cli.ollama import wire
from tinyllm_cli.ollama.chunks import assemble
from tinyllm_cli.response import GenerateResponse

DIGEST = "0123456789abcdef" * 4
FINAL: dict[str, Any] = {
    "model": "m",
    "created_at": "2026-01-02T03:04:05.123456789Z",
    "response": "",
    "done": True,
    "done_reason": "stop",
    "context": [1, 2],
    "total_duration": 9,
    "load_duration": 2,
    "prompt_eval_count": 3,
    "prompt_eval_duration": 4,
    "eval_count": 5,
    "eval_duration": 3,
}


def test_every_field_of_a_chunk_arrives() -> None:
    logprobs = [{"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": []}]
    sent = {
        **FINAL,
        "response": "Hi",
        "thinking": "hm",
        "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}],
        "logprobs": logprobs,
        "remote_model": "big",
        "remote_host": "https://ollama.com",
        "new_in_a_later_release": {"deep": [1]},
    }
    response = wire.response(sent)
    assert response.to_dict() == sent
    assert response.tokens == 8
    assert response.extra == {"new_in_a_later_release": {"deep": (1,)}}


def test_why_a_chunk_is_the_last_is_never_made_up() -> None:
    nameless = {name: value for name, value in FINAL.items() if name != "done_reason"}
    assert wire.response(nameless).done_reason == ""
    assert wire.response({**FINAL, "done_reason": None}).done_reason == ""
    assert wire.response({**FINAL, "done": False}).done_reason is None


def test_absent_fields_stay_absent() -> None:
    chunk = wire.response({"model": "m", "created_at": "t", "response": "a", "done": False})
    assert chunk == GenerateResponse(model="m", created_at="t", response="a", done=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eval_count", "5"),
        ("eval_count", 5.0),
        ("eval_count", True),
        ("total_duration", 1.5),
        ("done", "true"),
        ("done", 1),
        ("done", None),
        ("response", None),
        ("response", 1),
        ("model", ["m"]),
        ("created_at", 12345),
        ("context", [1, "2"]),
        ("context", "1"),
        ("tool_calls", [1]),
        ("tool_calls", {}),
        ("logprobs", "x"),
        ("thinking", 1),
        ("done_reason", 3),
    ],
)
def test_a_field_of_another_type_is_refused(name: str, value: object) -> None:
    with pytest.raises(OllamaProtocolError, match=name) as caught:
        wire.response({**FINAL, name: value})
    assert len(str(caught.value)) < 200


def test_a_refusal_does_not_quote_the_answer() -> None:
    with pytest.raises(OllamaProtocolError) as caught:
        wire.response({**FINAL, "response": ["the secret"]})
    assert "secret" not in str(caught.value)


def chunk(**fields: Any) -> GenerateResponse:
    return wire.response({"model": "m", "created_at": "t", "response": "", "done": False, **fields})


def test_an_answer_is_all_of_its_chunks_and_the_end_of_the_last() -> None:
    calls = [{"id": "1"}, {"id": "2"}]
    answer = assemble(
        [
            chunk(thinking="h"),
            chunk(thinking="m", logprobs=[{"token": "a"}]),
            chunk(response="a", tool_calls=calls[:1]),
            chunk(response="b", created_at="later", logprobs=[{"token": "b"}], note="lost"),
            wire.response({**FINAL, "response": "c", "tool_calls": calls[1:], "note": "kept"}),
        ]
    )
    assert answer.to_dict() == {
        **FINAL,
        "response": "abc",
        "thinking": "hm",
        "tool_calls": calls,
        "logprobs": [{"token": "a"}, {"token": "b"}],
        "note": "kept",
    }


def test_an_answer_of_one_chunk_is_that_chunk() -> None:
    only = wire.response(FINAL)
    assert assemble([only]) == only
    assert assemble([only]).thinking is None


def test_no_chunk_is_no_answer() -> None:
    with pytest.raises(IncompleteAnswerError):
        assemble([])


def test_installed_models_have_a_digest_only_where_it_names_the_weights() -> None:
    listed = {
        "models": [
            {"name": "a:latest", "model": "a:latest", "digest": DIGEST, "size": 1},
            {"model": "b:latest", "digest": DIGEST.upper()},
            {"name": "c:cloud", "digest": DIGEST, "remote_host": "https://ollama.com"},
            {"name": "d:cloud", "digest": DIGEST, "remote_model": "d"},
            {"name": "e", "digest": "sha256:" + DIGEST},
            {"name": "f"},
        ]
    }
    found = wire.installed_models(listed)
    assert [model.name for model in found] == [
        "a:latest",
        "b:latest",
        "c:cloud",
        "d:cloud",
        "e",
        "f",
    ]
    assert [model.digest for model in found] == [DIGEST, None, None, None, None, None]
    assert wire.installed_models({"models": None}) == wire.installed_models({}) == []
    with pytest.raises(OllamaProtocolError):
        wire.installed_models({"models": [{"name": 1}]})


def test_vectors_are_as_many_as_the_inputs_and_finite() -> None:
    assert wire.vectors({"embeddings": [[0.6, 1], [0, 1.0]]}, 2) == [[0.6, 1.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    "embeddings",
    [
        [],
        [[1.0]],
        [[1.0], [1.0], [1.0]],
        [[1.0], []],
        [[], []],
        [[1.0], [1.0, 2.0]],
        [[1.0], [float("inf")]],
        [[1.0], [float("nan")]],
        [[1.0], ["1.0"]],
        [[1.0], None],
        None,
    ],
)
def test_other_vectors_are_refused(embeddings: object) -> None:
    with pytest.raises(OllamaProtocolError):
        wire.vectors({"embeddings": embeddings}, 2)


def test_a_pull_line_and_a_version_are_read() -> None:
    line = wire.pull_line({"status": "pulling", "digest": "sha256:3f", "total": 9, "completed": 4})
    assert (line.status, line.digest, line.total, line.completed) == ("pulling", "sha256:3f", 9, 4)
    assert wire.server_version({"version": "0.33.0"}) == "0.33.0"
    with pytest.raises(OllamaProtocolError):
        wire.pull_line({"status": "x", "total": "9"})
    with pytest.raises(OllamaProtocolError):
        wire.server_version({})
