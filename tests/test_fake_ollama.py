"""Is the fake Ollama a fair stand-in? Its answers, its errors, its breakages."""

import base64
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.fake_ollama import SEPARATORS, FakeOllama, Fault

MODEL = "qwen2.5:0.5b"
GREEDY = {"temperature": 0}
PIXEL = base64.b64encode(b"one image").decode()
OTHER_PIXEL = base64.b64encode(b"another image").decode()
USER = {"role": "user", "content": "What is AI?"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.fixture
def server() -> Iterator[FakeOllama]:
    with FakeOllama() as running:
        running.add_model("able", capabilities=("completion", "tools", "insert", "thinking"))
        running.add_model("vectors", capabilities=("embedding",))
        yield running


@pytest.fixture
def client(server: FakeOllama) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=10) as opened:
        yield opened


def generate(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    body = {"model": MODEL, "prompt": "What is AI?", "stream": False, "options": GREEDY, **fields}
    reply = client.post("/api/generate", json=body)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def chat(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    body = {"model": MODEL, "messages": [USER], "stream": False, "options": GREEDY, **fields}
    reply = client.post("/api/chat", json=body)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def stream(client: httpx.Client, path: str = "/api/generate", **fields: Any) -> bytes:
    body = {"model": MODEL, "prompt": "What is AI?", "messages": [USER], "options": GREEDY}
    return client.post(path, json=body | fields).content


def chunks_of(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in body.split(b"\n") if line]


def text_of(body: bytes) -> str:
    return "".join(chunk.get("response", "") for chunk in chunks_of(body))


# What the answer depends on.


@pytest.mark.parametrize(
    "change",
    [
        {"model": "llama3.2"},
        {"prompt": "What is ML?"},
        {"suffix": "the end"},
        {"system": "Be brief."},
        {"template": "{{ .Prompt }}!"},
        {"raw": True},
        {"context": []},
        {"context": [1, 2]},
        {"images": [PIXEL]},
        {"images": [PIXEL, OTHER_PIXEL]},
        {"format": None},
        {"format": "json"},
        {"format": {"type": "object", "properties": {"a": {"type": "string"}}}},
        {"think": False},
        {"think": True},
        {"think": "high"},
        {"truncate": False},
        {"shift": False},
        {"logprobs": True},
        {"top_logprobs": 3},
        *(
            {"options": {**GREEDY, name: 7}}
            for name in (
                "seed",
                "top_k",
                "top_p",
                "min_p",
                "typical_p",
                "repeat_penalty",
                "repeat_last_n",
                "presence_penalty",
                "frequency_penalty",
                "num_keep",
                "num_ctx",
                "num_predict",
                "num_batch",
                "num_gpu",
                "main_gpu",
                "num_thread",
                "draft_num_predict",
            )
        ),
        {"options": {"temperature": 0.5, "seed": 1}},
        {"options": {**GREEDY, "stop": ["\n"]}},
        {"options": {**GREEDY, "use_mmap": True}},
    ],
    ids=json.dumps,
)
def test_generate_field_changes_the_text(client: httpx.Client, change: dict[str, Any]) -> None:
    plain = {"model": "able"}
    assert generate(client, **plain | change)["response"] != generate(client, **plain)["response"]


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [{**USER, "content": "What is ML?"}]},
        {"messages": [{**USER, "role": "system"}]},
        {"messages": [USER, {"role": "assistant", "content": "It is"}]},
        {"messages": [{**USER, "images": [PIXEL]}]},
        {"messages": [{**USER, "thinking": "hm"}]},
        {"messages": [{**USER, "tool_name": "f"}]},
        {"messages": [{**USER, "tool_call_id": "call_1"}]},
        {"messages": [{**USER, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}]},
        {"tools": [TOOL]},
        {"format": "json"},
        {"think": False},
        {"options": {**GREEDY, "seed": 2}},
    ],
    ids=json.dumps,
)
def test_chat_field_changes_the_text(client: httpx.Client, change: dict[str, Any]) -> None:
    plain = {"model": "able"}
    changed = chat(client, **plain | change)["message"]["content"]
    assert changed != chat(client, **plain)["message"]["content"]


def test_key_order_of_a_schema_counts(client: httpx.Client) -> None:
    properties = {"a": {"type": "string"}, "b": {"type": "string"}}
    turned = dict(reversed(properties.items()))
    first = generate(client, format={"type": "object", "properties": properties})["response"]
    second = generate(client, format={"type": "object", "properties": turned})["response"]
    assert list(json.loads(first)) == ["a", "b"]
    assert list(json.loads(second)) == ["b", "a"]


@pytest.mark.parametrize(
    "change",
    [
        {"keep_alive": "10m"},
        {"keep_alive": 0},
        {"seed": 3, "temperature": 0.1, "unknown": {"x": 1}},
        {"options": {"temperature": 0.0, "no_such_option": 1, "seed": None}},
        {"model": "registry.ollama.ai/library/QWEN2.5:0.5b"},
        {"images": [], "system": "", "template": "", "raw": False, "logprobs": False},
        {"truncate": True, "shift": None},
    ],
    ids=json.dumps,
)
def test_field_without_effect_leaves_the_text(client: httpx.Client, change: dict[str, Any]) -> None:
    assert generate(client, **change)["response"] == generate(client)["response"]


def test_stream_headers_and_white_space_leave_the_text(client: httpx.Client) -> None:
    expected = generate(client)["response"]
    body = {"model": MODEL, "prompt": "What is AI?", "options": GREEDY}
    spaced = json.dumps(body, indent=3)
    reply = client.post("/api/generate", content=spaced, headers={"User-Agent": "other"})
    assert text_of(reply.content) == expected


def test_model_state_and_version_change_the_text(server: FakeOllama, client: httpx.Client) -> None:
    texts = [generate(client)["response"]]
    server.repull(MODEL, "w2")
    texts.append(generate(client)["response"])
    server.create(MODEL, MODEL, system="Be brief.")
    texts.append(generate(client)["response"])
    server.version = "0.34.0"
    texts.append(generate(client)["response"])
    server.copy(MODEL, "copied")
    assert server.digest("copied") == server.digest(MODEL)
    texts.append(generate(client, model="copied")["response"])
    texts.append(chat(client)["message"]["content"])
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(
    ("options", "fresh"),
    [
        ({}, True),
        ({"temperature": 0.7}, True),
        ({"seed": -1}, True),
        ({"temperature": 0}, False),
        ({"seed": 0}, False),
        ({"top_k": 1}, False),
    ],
)
def test_a_sample_is_fresh_unless_the_request_fixes_it(
    server: FakeOllama, client: httpx.Client, options: dict[str, Any], fresh: bool
) -> None:
    first = generate(client, options=options)["response"]
    assert (generate(client, options=options)["response"] != first) is fresh
    server.drift = True
    assert generate(client, options=options)["response"] != first


def test_model_parameters_set_the_temperature(server: FakeOllama, client: httpx.Client) -> None:
    server.add_model("cold", parameters={"temperature": 0})
    fixed = {generate(client, model="cold", options={})["response"] for _ in range(3)}
    assert len(fixed) == 1


# The shape of the answer.


def test_streamed_and_whole_answers_agree(server: FakeOllama, client: httpx.Client) -> None:
    reply = client.post("/api/generate", json={"model": MODEL, "prompt": "Hi", "options": GREEDY})
    assert reply.headers["content-type"] == "application/x-ndjson"
    chunks = chunks_of(reply.content)
    whole = generate(client, prompt="Hi")
    assert len(chunks) >= 9
    assert [chunk["done"] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert text_of(reply.content) == whole["response"]
    assert not whole["response"].isascii()
    same = ("done_reason", "context", "eval_count", "total_duration", "model")
    assert [chunks[-1][name] for name in same] == [whole[name] for name in same]
    assert server.generations == 2
    assert "context" not in generate(client, raw=True)


def test_thinking_comes_first(client: httpx.Client) -> None:
    chunks = chunks_of(stream(client, "/api/chat", model="able"))
    kinds = ["thinking" in chunk["message"] for chunk in chunks]
    assert kinds == sorted(kinds, reverse=True)
    assert kinds[0]
    assert chat(client, model="able")["message"]["thinking"].startswith("Thinking")
    assert "thinking" not in chat(client, model="able", think=False)["message"]


@pytest.mark.parametrize(("renderer", "place"), [("", -1), ("qwen", -2)])
def test_tool_calls_come_in_both_places(
    server: FakeOllama, client: httpx.Client, renderer: str, place: int
) -> None:
    server.add_model("caller", capabilities=("completion", "tools"), renderer=renderer)
    server.tool_calls = [{"function": {"index": 0, "name": "f", "arguments": {"x": 1}}}]
    chunks = chunks_of(stream(client, "/api/chat", model="caller", tools=[TOOL]))
    assert [i - len(chunks) for i, c in enumerate(chunks) if "tool_calls" in c["message"]] == [
        place
    ]
    (call,) = chat(client, model="caller", tools=[TOOL])["message"]["tool_calls"]
    assert call["id"].startswith("call_")


def test_logprobs_num_predict_stop_and_json(client: httpx.Client) -> None:
    (item, *_) = generate(client, logprobs=True, top_logprobs=2)["logprobs"]
    assert bytes(item["bytes"]).decode() == item["token"]
    assert len(item["top_logprobs"]) == 2
    short = generate(client, options={**GREEDY, "num_predict": 3})
    assert (short["eval_count"], short["done_reason"]) == (3, "length")
    assert generate(client, options={**GREEDY, "stop": [" about"]})["response"].endswith("…")
    assert isinstance(json.loads(generate(client, format="json")["response"]), dict)


def test_a_schema_is_filled(client: httpx.Client) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer", "minimum": 3, "maximum": 9},
            "colour": {"enum": ["red", "blue"]},
            "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}},
            "alive": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        },
        "$defs": {"tag": {"type": "number"}},
    }
    filled = json.loads(generate(client, format=schema)["response"])
    assert isinstance(filled["name"], str)
    assert 3 <= filled["age"] <= 9
    assert filled["colour"] in ("red", "blue")
    assert isinstance(filled["tags"][0], float)
    assert isinstance(filled["alive"], bool)


def test_load_and_unload_are_one_object_even_streamed(
    server: FakeOllama, client: httpx.Client
) -> None:
    (loaded,) = chunks_of(stream(client, prompt=""))
    assert (loaded["done"], loaded["done_reason"]) == (True, "load")
    assert [entry["name"] for entry in client.get("/api/ps").json()["models"]] == [MODEL]
    (unloaded,) = chunks_of(stream(client, "/api/chat", messages=[], keep_alive=0))
    assert unloaded["done_reason"] == "unload"
    assert client.get("/api/ps").json()["models"] == []
    assert server.generations == 0


def test_scripted_answers(server: FakeOllama, client: httpx.Client) -> None:
    server.answer = lambda body: f"echo {body['prompt']}"
    assert generate(client, prompt="hey")["response"] == "echo hey"
    server.chunks = [{"response": "one"}, {"response": " two", "logprobs": []}]
    first, last = chunks_of(stream(client))
    assert (first["response"], first["done"], first["model"]) == ("one", False, MODEL)
    assert (last["response"], last["done"], last["eval_count"]) == (" two", True, 2)
    server.chunks = [{"response": "one", "done": False}]
    assert chunks_of(stream(client))[-1]["done"] is False


def test_embeddings_are_unit_vectors_one_per_input(
    server: FakeOllama, client: httpx.Client
) -> None:
    def embed(**fields: Any) -> Any:
        return client.post("/api/embed", json={"model": "vectors", **fields}).json()["embeddings"]

    both = embed(input=["a", "b"])
    assert both == embed(input="a") + embed(input="b")
    assert sum(number**2 for number in both[0]) == pytest.approx(1)
    assert len(embed(input="a", dimensions=4)[0]) == 4
    assert embed(input="a", truncate=False) != embed(input="a")
    assert embed(input="a", options={"num_ctx": 9}) != embed(input="a")
    assert embed(input="") == []
    legacy = client.post("/api/embeddings", json={"model": "vectors", "prompt": "a"}).json()
    assert len(legacy["embedding"]) == 32


# How requests are read, and which are refused.


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"MODEL":"m","Prompt":"p","sTream":false}', {}),
        (b'{"model":"x","model":"m","prompt":"p","stream":false} trailing', {}),
        (b' {"model":"m","prompt":null,"prompt":"p","stream":false,"nope":1}', {}),
        (
            b'{"model":"m","prompt":"p","stream":false,"options":{"seed":1},"options":{"top_k":2}}',
            {"options": {"seed": 1, "top_k": 2}},
        ),
        (
            b'{"model":"m","prompt":"p","stream":false,"options":{"top_k":2.9}}',
            {"options": {"top_k": 2}},
        ),
        (b'{"model":"m","prompt":"\xff","stream":false}', {"prompt": "\ufffd"}),
        (b'{"model":"m","prompt":"\\ud800","stream":false}', {"prompt": "\ufffd"}),
    ],
)
def test_bodies_are_read_as_go_reads_them(
    server: FakeOllama, client: httpx.Client, body: bytes, expected: dict[str, Any]
) -> None:
    server.add_model("m", parameters={"temperature": 0})
    reply = client.post("/api/generate", content=body)
    wanted = generate(client, **{"model": "m", "prompt": "p", "options": {}} | expected)
    assert reply.json()["response"] == wanted["response"]


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("/api/generate", b"", 400, "missing request body"),
        ("/api/generate", b'{"model"', 400, "unexpected EOF"),
        ("/api/generate", b"[1]", 400, "cannot unmarshal array"),
        ("/api/generate", b"\xef\xbb\xbf{}", 400, "invalid character"),
        ("/api/generate", {"model": ""}, 404, "model '' not found"),
        ("/api/generate", {"model": "x y"}, 400, "invalid model name"),
        ("/api/generate", {"model": "m@sha256:00"}, 400, "invalid model name"),
        ("/api/generate", {"model": "x:cloud:local"}, 400, "use either :local or :cloud"),
        ("/api/generate", {"model": "none"}, 404, "model 'none' not found"),
        ("/api/generate", {"model": MODEL, "prompt": 1}, 400, "unmarshal number into Go struct"),
        ("/api/generate", {"model": MODEL, "images": ["data:x"]}, 400, "illegal base64"),
        ("/api/generate", {"model": MODEL, "think": "huge"}, 400, "invalid think value"),
        ("/api/generate", {"model": MODEL, "keep_alive": "-1"}, 400, "missing unit"),
        ("/api/generate", {"model": MODEL, "context": [1.5]}, 400, "cannot unmarshal number"),
        ("/api/generate", {"model": MODEL, "top_logprobs": 21}, 400, "between 0 and 20"),
        ("/api/generate", {"model": MODEL, "raw": True, "system": "s"}, 400, "raw mode"),
        ("/api/generate", {"model": MODEL, "think": True}, 400, "does not support thinking"),
        (
            "/api/generate",
            {"model": MODEL, "suffix": "s"},
            400,
            "registry.ollama.ai/library/qwen2.5:0.5b does not support insert",
        ),
        ("/api/generate", {"model": "vectors"}, 400, '"vectors" does not support generate'),
        (
            "/api/generate",
            {"model": MODEL, "options": {"seed": "1"}},
            500,
            'option "seed" must be of type integer',
        ),
        ("/api/generate", {"model": MODEL, "options": {"stop": "x"}}, 500, "of type array"),
        ("/api/generate", {"model": MODEL, "prompt": "p", "format": "xml"}, 500, "invalid format"),
        ("/api/chat", {}, 400, "model is required"),
        (
            "/api/chat",
            {"model": MODEL, "messages": [USER], "tools": [TOOL]},
            400,
            "does not support tools",
        ),
        ("/api/show", {}, 400, "model is required"),
        ("/api/show", {"model": "none"}, 404, "model 'none:latest' not found"),
        ("/api/embed", {}, 404, "model '' not found"),
        ("/api/embed", {"model": "none"}, 404, "try pulling it first"),
        ("/api/embed", {"model": "vectors", "input": 3}, 400, "invalid input type"),
        ("/api/embeddings", {"model": "VECTORS", "prompt": "a"}, 404, "try pulling it first"),
        ("/api/pull", {}, 400, "invalid model name"),
        ("/api/pull", {"model": "none", "stream": False}, 500, "file does not exist"),
    ],
)
def test_refusals(
    server: FakeOllama, client: httpx.Client, path: str, body: Any, status: int, error: str
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = client.post(path, content=content)
    assert reply.status_code == status
    assert error in reply.json()["error"]
    assert server.generations == 0


def test_plain_routes(server: FakeOllama, client: httpx.Client) -> None:
    assert client.get("/").text == "Ollama is running"
    assert client.head("/").headers["content-length"] == "17"
    assert client.get("/api/version").json() == {"version": "0.33.0"}
    assert (client.get("/nope").status_code, client.get("/nope").text) == (
        404,
        "404 page not found",
    )
    assert client.get("/api/generate").status_code == 405
    unclean = client.get(httpx.URL(server.url, raw_path=b"/api/../api//tags"))
    assert (unclean.status_code, unclean.headers["location"]) == (307, "/api/tags")
    server.check_hosts = True
    refused = client.get("/api/tags", headers={"Origin": "http://evil.example"})
    assert (refused.status_code, refused.content) == (403, b"")
    assert client.get("/api/tags", headers={"Host": "evil.example"}).status_code == 403
    assert client.get("/api/tags", headers={"Origin": "http://localhost:3000"}).status_code == 200


def test_tags_pull_copy_create_delete(server: FakeOllama, client: httpx.Client) -> None:
    lines = chunks_of(client.post("/api/pull", json={"model": "smollm2:135m"}).content)
    assert lines[0] == {"status": "pulling manifest"}
    assert sum("completed" in line for line in lines) >= 2
    assert lines[-1] == {"status": "success"}
    newest = client.get("/api/tags").json()["models"][0]
    assert (newest["name"], newest["digest"]) == ("smollm2:135m", server.digest("smollm2:135m"))
    before = server.digest(MODEL)
    assert server.repull(MODEL, "w1") == before
    assert server.repull(MODEL, "w2") != before
    bad = chunks_of(client.post("/api/pull", json={"model": "nothing"}).content)
    assert bad[-1] == {"error": "pull model manifest: file does not exist"}
    create = {"model": "mine", "from": MODEL, "system": "s", "parameters": {"top_k": 1}}
    assert client.post("/api/create", json=create).status_code == 200
    shown = client.post("/api/show", json={"model": "mine"}).json()
    assert (shown["system"], shown["parameters"].split()) == ("s", ["top_k", "1"])
    client.post("/api/copy", json={"source": "mine", "destination": "yours"})
    client.request("DELETE", "/api/delete", json={"model": "mine"})
    names = {entry["name"] for entry in client.get("/api/tags").json()["models"]}
    assert "yours:latest" in names
    assert "mine:latest" not in names


def test_remote_models_say_so(server: FakeOllama, client: httpx.Client) -> None:
    server.add_model("stub", remote_host="https://ollama.com:443", remote_model="big")
    assert generate(client, model="stub")["remote_model"] == "big"
    assert generate(client, model="gpt-oss:120b-cloud")["remote_host"] == "https://ollama.com:443"


# The OpenAI-compatible side.


def test_v1(server: FakeOllama, client: httpx.Client) -> None:
    body = {"model": MODEL, "messages": [USER], "seed": 1}
    whole = client.post("/v1/chat/completions", json=body).json()
    text = whole["choices"][0]["message"]["content"]
    assert whole["usage"]["total_tokens"] > 0
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    *events, end, rest = client.post("/v1/chat/completions", json=body).text.split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    deltas = [choice["delta"]["content"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(deltas) == text
    assert chunks[-1]["usage"] == whole["usage"]
    random = {"model": MODEL, "prompt": "x"}
    one, two = (client.post("/v1/completions", json=random).json() for _ in range(2))
    assert one["choices"][0]["text"] != two["choices"][0]["text"]
    embed = {"model": "vectors", "input": ["a"], "encoding_format": "base64"}
    packed = client.post("/v1/embeddings", json=embed).json()["data"][0]["embedding"]
    assert len(base64.b64decode(packed)) == 32 * 4
    assert MODEL in {item["id"] for item in client.get("/v1/models").json()["data"]}
    assert client.get(f"/v1/models/{MODEL}").json()["id"] == MODEL
    missing = client.post("/v1/chat/completions", json=body | {"model": "none"})
    assert missing.json()["error"]["type"] == "not_found_error"
    server.inject(Fault.error_line(after=2), path="/v1/chat/completions")
    swallowed = client.post("/v1/chat/completions", json=body).text
    assert "boom" not in swallowed
    assert "[DONE]" not in swallowed


# Faults.


def broken(server: FakeOllama, client: httpx.Client, fault: Fault, **fields: Any) -> httpx.Response:
    server.inject(fault)
    body = {"model": MODEL, "prompt": "What is AI?", "options": GREEDY, **fields}
    return client.post("/api/generate", json=body)


@pytest.mark.parametrize(
    ("fault", "status", "body"),
    [
        (Fault.status(503, "server busy"), 503, b'{"error":"server busy"}'),
        (Fault.empty_403(), 403, b""),
        (Fault.unauthorized("http://s"), 401, b'{"error":"unauthorized","signin_url":"http://s"}'),
        (Fault.html(), 200, b"<!DOCTYPE html>"),
        (Fault.redirect(307, "http://127.0.0.1:1/"), 307, b""),
        (Fault.error_object("no"), 400, b'{"error":{"message":"no"'),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
def test_replaced_replies(
    server: FakeOllama, client: httpx.Client, fault: Fault, status: int, body: bytes
) -> None:
    reply = broken(server, client, fault)
    assert (reply.status_code, reply.content[: len(body)]) == (status, body)
    assert server.generations == 0
    assert broken(server, client, Fault.delay(0)).status_code == 200


def test_faults_queue_up_per_path(server: FakeOllama, client: httpx.Client) -> None:
    server.inject(Fault.status(503, "busy"), times=2)
    server.inject(Fault.status(500, "odd"))
    server.inject(Fault.models_null(), path="/api/tags")
    body = {"model": MODEL, "prompt": "x"}
    replies = [client.post("/api/generate", json=body).status_code for _ in range(4)]
    assert replies == [503, 503, 500, 200]
    assert client.get("/api/tags").json() == {"models": None}


def test_faults_in_the_chunks(server: FakeOllama, client: httpx.Client) -> None:
    def chunks(fault: Fault) -> list[dict[str, Any]]:
        return chunks_of(broken(server, client, fault).content)

    plain = chunks(Fault.delay(0))
    assert chunks(Fault.error_line("boom", after=2))[2:] == [{"error": "boom"}]
    assert [chunk["done"] for chunk in chunks(Fault.clean_end(after=2))] == [False, False]
    assert chunks(Fault.done_false())[-1]["done"] is False
    assert "done_reason" not in chunks(Fault.no_done_reason())[-1]
    assert chunks(Fault.done_reason("load"))[-1]["done_reason"] == "load"
    (only,) = chunks(Fault.zero_tokens())
    assert (only["response"], only["done"], "eval_count" in only) == ("", True, False)
    assert all("x_new" in chunk for chunk in chunks(Fault.extra_fields()))
    assert chunks(Fault.number_as_string())[-1]["eval_count"] == str(plain[-1]["eval_count"])
    assert len(chunks(Fault.huge_line(9_000))[0]["response"]) == 9_000
    assert len(chunks(Fault.many_chunks(1_000))) == 1_001
    assert len(text_of(broken(server, client, Fault.big_body(200_000)).content)) == 200_000
    assert chunks(Fault.after_done([{"response": "more"}]))[-1] == {"response": "more"}
    assert chunks(Fault.error_object(after=1))[-1]["error"]["message"] == "boom"


def test_faults_in_whole_replies(server: FakeOllama, client: httpx.Client) -> None:
    assert broken(server, client, Fault.error_line(), stream=False).status_code == 500
    cut = broken(server, client, Fault.clean_end(after=2), stream=False).json()
    assert cut["done"] is False
    nothing = broken(server, client, Fault.clean_end(after=0), stream=False).json()
    assert (nothing["model"], nothing["created_at"]) == ("", "0001-01-01T00:00:00Z")
    assert broken(server, client, Fault.malformed(text=b"oops"), stream=False).content == b"oops"
    assert broken(server, client, Fault.done_false(), stream=False).json()["done"] is False
    for fault in (Fault.cut(), Fault.reset(), Fault.wrong_length(10)):
        with pytest.raises(httpx.TransportError):
            broken(server, client, fault, stream=False)


def test_faults_in_the_lines(server: FakeOllama, client: httpx.Client) -> None:
    def body(fault: Fault) -> bytes:
        return broken(server, client, fault).content

    expected = text_of(body(Fault.delay(0)))
    assert body(Fault.half_line(after=2)).count(b"\n") == 2
    assert body(Fault.malformed(after=1, text=b"oops")).split(b"\n")[1] == b"oops"
    assert b"\xff" in body(Fault.invalid_utf8())
    assert b"\n\n" in body(Fault.blank_lines())
    crlf = body(Fault.crlf())
    assert crlf.count(b"\r\n") == crlf.count(b"\n") > 1
    assert body(Fault.no_final_newline()).endswith(b"}")
    assert body(Fault.bom()).startswith(b"\xef\xbb\xbf{")
    for fault in (Fault.packed(), Fault.packed(0), Fault.split_utf8(), Fault.byte_by_byte()):
        assert text_of(body(fault)) == expected
    separators = body(Fault.raw_separators())
    assert "\x85\u2028\u2029".encode() in separators
    assert SEPARATORS in text_of(separators)
    assert b"\x0b\x0c\x1c" in body(Fault.raw_separators(controls=True))
    zipped = broken(server, client, Fault.gzip_body())
    assert zipped.headers["content-encoding"] == "gzip"
    assert text_of(zipped.content) == expected
    assert len(body(Fault.gzip_body(size=1_000_000))) > 1_000_000
    assert "content-type" not in broken(server, client, Fault.no_content_type()).headers


@pytest.mark.parametrize(
    ("fault", "lines", "error"),
    [
        (Fault.cut(after=3), 3, httpx.RemoteProtocolError),
        (Fault.reset(after=2), 2, httpx.ReadError),
        (Fault.half_line(after=1, clean=False), 1, httpx.RemoteProtocolError),
        (Fault.drop(), 0, httpx.RemoteProtocolError),
        (Fault.raw_bytes(b"SSH-2.0-x\r\n"), 0, httpx.RemoteProtocolError),
        (Fault.wrong_length(10), 14, httpx.RemoteProtocolError),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
def test_broken_connections(
    server: FakeOllama, client: httpx.Client, fault: Fault, lines: int, error: type[Exception]
) -> None:
    server.inject(fault)
    body = {"model": MODEL, "prompt": "What is AI?", "options": GREEDY}
    received = b""
    with pytest.raises(error), client.stream("POST", "/api/generate", json=body) as reply:
        for data in reply.iter_raw():
            received += data
    assert received.count(b"\n") >= lines
    assert not server.log[-1].finished


def open_request(server: FakeOllama, path: str = "/api/generate") -> socket.socket:
    """Send a request and return the socket, its reply still unread."""
    body = json.dumps({"model": MODEL, "prompt": "x", "messages": [USER]}).encode()
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    sock.sendall(head.encode() + body)
    return sock


@pytest.mark.parametrize(
    "fault",
    [
        Fault.stall_headers(),
        Fault.stall(after=2),
        Fault.header_drip(0.001),
        Fault.endless(),
        Fault.keep_open_after_done(),
        Fault.stall(after=0),
    ],
    ids=lambda fault: fault.kind,
)
def test_a_leaving_client_is_noticed(server: FakeOllama, fault: Fault) -> None:
    server.inject(fault)
    with open_request(server) as sock:
        server.wait_until(lambda _: len(server.log) == 1)
        if fault.kind != "stall_headers":
            assert sock.recv(1)
        assert not server.log[0].client_closed
    server.wait_until(lambda s: s.log[0].client_closed, timeout=5)


def test_endless_whole_answer(server: FakeOllama, client: httpx.Client) -> None:
    server.inject(Fault.endless())
    body = {"model": MODEL, "prompt": "x", "stream": False}
    with client.stream("POST", "/api/generate", json=body) as reply:
        assert next(reply.iter_bytes(100_000)).startswith(b'{"model"')


def test_the_digest_flips_during_the_answer(server: FakeOllama, client: httpx.Client) -> None:
    before, expected = server.digest(MODEL), generate(client)["response"]
    reply = broken(server, client, Fault.flip_digest(MODEL, "w9", after=1))
    assert text_of(reply.content) == expected
    assert server.digest(MODEL) != before


# Waiting, stopping, starting.


def test_hold_gathers_requests_before_their_first_byte(server: FakeOllama) -> None:
    barrier = server.hold("/api/generate")
    socks = [open_request(server) for _ in range(20)]
    barrier.wait_for(20)
    assert server.generations == 0
    socks.pop().close()
    server.wait_until(lambda _: barrier.held == 19)
    barrier.release()
    server.wait_until(lambda s: sum(logged.finished for logged in s.log) == 19)
    assert server.generations == 19
    for sock in socks:
        sock.close()


def test_hold_after_some_chunks(server: FakeOllama) -> None:
    barrier = server.hold_after(3)
    with open_request(server) as sock:
        barrier.wait_for(1)
        assert server.log[0].lines_sent == 3
        barrier.release()
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received += sock.recv(65_536)
    with pytest.raises(AssertionError, match="0 of 1"):
        barrier.wait_for(1, timeout=0)
    with pytest.raises(AssertionError):
        server.wait_until(lambda s: s.generations == 9, timeout=0)


def test_token_delay_spreads_the_chunks(server: FakeOllama, client: httpx.Client) -> None:
    server.token_delay = 0.005
    started = time.monotonic()
    chunks = chunks_of(stream(client))
    assert time.monotonic() - started >= 0.005 * (len(chunks) - 1)


def test_requests_are_logged_and_connections_reused(
    server: FakeOllama, client: httpx.Client
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    for number in range(2):
        body = json.dumps({"model": MODEL, "prompt": str(number), "stream": False})
        connection.request("POST", "/api/generate?x=1", body, {"X-Mark": "é"})
        assert connection.getresponse().read()
    connection.close()
    first, second = server.requests("/api/generate")
    assert (first.method, first.json()["prompt"], second.json()["prompt"]) == ("POST", "0", "1")
    assert first.headers["x-mark"] == "é"
    assert first.at < second.at
    client.post("/api/show", content=iter([b'{"model":', b'"able"}']))
    assert server.requests("/api/show")[0].json() == {"model": "able"}


def test_stop_and_start_keep_the_port_and_leave_nothing_behind() -> None:
    threads = threading.active_count()
    server = FakeOllama(models=["only"])
    with server:
        port = server.port
        server.inject(Fault.stall(after=1), Fault.endless())
        stalled, flooded = open_request(server), open_request(server)
        server.hold("/api/generate")
        held = open_request(server)
        server.wait_until(lambda s: len(s.log) == 3)
    server.stop()
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url, trust_env=False)
    for sock in (stalled, flooded, held):
        sock.close()
    with server:
        assert server.port == port
        names = httpx.get(f"{server.url}/api/tags", trust_env=False).json()["models"]
        assert [entry["name"] for entry in names] == ["only:latest"]
    server.start().stop()
    assert threading.active_count() == threads


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_command_line(ending: signal.Signals) -> None:
    command = [sys.executable, "-m", "tests.fake_ollama", "--port", "0", "--model", "tiny"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        assert line.startswith("fake Ollama on http://127.0.0.1:")
        url = line.rpartition(" ")[2]
        tags = httpx.get(f"{url}/api/tags", trust_env=False).json()
        assert [entry["name"] for entry in tags["models"]] == ["tiny:latest"]
        process.send_signal(ending)
        assert process.wait(timeout=10) == 0


# The official client.


def test_official_client_understands_everything(server: FakeOllama) -> None:
    ollama = pytest.importorskip("ollama")
    client = ollama.Client(host=server.url, trust_env=False)
    try:
        whole = client.generate("able", "Hi", options=GREEDY)
        parts = list(client.generate("able", "Hi", options=GREEDY, stream=True))
        assert whole.response == "".join(part.response for part in parts)
        assert whole.thinking == "".join(part.thinking or "" for part in parts)
        assert parts[-1].done
        assert client.chat("able", [USER], tools=[TOOL]).message.role == "assistant"
        assert len(client.embed("vectors", ["a", "b"]).embeddings) == 2
        assert {model.model for model in client.list().models} >= {MODEL, "able:latest"}
        assert client.show(MODEL).capabilities == ["completion"]
        assert client.ps().models
        assert list(client.pull("smollm2:135m", stream=True))[-1].status == "success"
        client.create("mine", from_=MODEL, system="s")
        client.copy("mine", "yours")
        client.delete("mine")
        with pytest.raises(ollama.ResponseError) as missing:
            client.generate("none", "Hi")
        assert missing.value.status_code == 404
        server.inject(Fault.error_line("boom"))
        with pytest.raises(ollama.ResponseError, match="boom"):
            list(client.generate(MODEL, "Hi", stream=True))
        server.inject(Fault.clean_end(after=2))
        assert len(list(client.generate(MODEL, "Hi", stream=True))) == 2
    finally:
        client._client.close()
