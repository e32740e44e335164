"""How do the OpenAI-compatible endpoints under /v1 answer?"""

import base64
import json
import struct
import time
from collections.abc import Iterator
from typing import Any

from . import embed, native, wire
from .models import Model
from .native import Call
from .reply import SSE, ApiError, Obj, Reply, encode

_SAMPLING = ("seed", "temperature", "top_p", "frequency_penalty", "presence_penalty")
_EFFORT: dict[str, bool | str] = {"none": False, "minimal": "low", "xhigh": "max", "ultra": "max"}
_TYPES = {400: "invalid_request_error", 404: "not_found_error"}


def error_reply(error: ApiError) -> Reply:
    kind = _TYPES.get(error.status, "api_error")
    body = {"message": error.message, "type": kind, "param": None, "code": None}
    return Reply(error.status, body=encode({"error": body}))


def chat_completions(call: Call) -> Reply:
    request = _decode(call)
    if not request.get("messages"):
        raise ApiError(400, "[] is too short - 'messages'")
    options = _options(request, {"temperature": 1.0, "top_p": 1.0})
    translated: Obj = {
        "model": request["model"],
        "messages": [part for message in request["messages"] for part in _messages(message)],
        "options": options,
        "tools": request.get("tools") or [],
        "logprobs": bool(request.get("logprobs")),
        "top_logprobs": request.get("top_logprobs") or 0,
    }
    translated |= _format(request) | _think(request)
    model = native.find_model(call, request["model"])
    native.check_chat(model, translated)
    question = native.ask_chat(call, "v1.chat", model, translated)
    chunks = native.answer_chunks(call, question, translated, chat=True)
    if request.get("stream"):
        return _stream(call, request, chunks, _ChatChunk("chatcmpl", question.seed(0)))
    merged, number = _merge(call, chunks, chat=True)
    reply = _ChatChunk("chatcmpl", question.seed(0)).whole(merged)
    return Reply(body=call.encode(reply), pause=call.pause(number))


def completions(call: Call) -> Reply:
    request = _decode(call)
    forced = {"temperature": 1.0, "top_p": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}
    translated: Obj = {
        "model": request["model"],
        "prompt": request.get("prompt") or "",
        "options": _options(request, forced),
        "logprobs": bool(request.get("logprobs")),
        "top_logprobs": 0,
    }
    model = native.find_model(call, request["model"])
    if "completion" not in model.capabilities:
        raise ApiError(400, f'"{request["model"]}" does not support generate')
    fields = {name: request[name] for name in ("prompt", "suffix") if request.get(name)}
    question = native.ask(
        call, "v1.completions", model, translated, fields, echo=translated["prompt"]
    )
    chunks = native.answer_chunks(call, question, translated, chat=False)
    form = _TextChunk("cmpl", question.seed(0))
    if request.get("stream"):
        return _stream(call, request, chunks, form)
    merged, number = _merge(call, chunks, chat=False)
    return Reply(body=call.encode(form.whole(merged)), pause=call.pause(number))


def embeddings(call: Call) -> Reply:
    request = _decode(call)
    inputs = embed.inputs_of(request.get("input"))
    if not inputs:
        raise ApiError(400, "invalid input")
    model = native.find_model(call, request["model"])
    vectors = embed.vectors_for(call, "v1.embeddings", model, request, inputs)
    shown: list[Any] = vectors
    if request.get("encoding_format") == "base64":
        packed = [struct.pack(f"<{len(vector)}f", *vector) for vector in vectors]
        shown = [base64.b64encode(data).decode() for data in packed]
    tokens = embed.count_tokens(inputs)
    return call.whole(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "embedding": item, "index": index}
                for index, item in enumerate(shown)
            ],
            "model": request["model"],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def models(call: Call) -> Reply:
    data = [_entry(model) for model in call.world.models.newest_first()]
    return call.whole({"object": "list", "data": data or None})


def one_model(call: Call, name: str) -> Reply:
    return call.whole(_entry(native.find_model(call, name)))


class _Chunk:
    """The shapes one answer takes on the way out; id and time are the same in all its chunks."""

    def __init__(self, prefix: str, seed: str) -> None:
        self.frame: Obj = {
            "id": f"{prefix}-{int(seed[:8], 16) % 999}",
            "object": "",
            "created": int(time.time()),
            "model": "",
            "system_fingerprint": "fp_ollama",
        }

    def piece(self, chunk: Obj) -> Obj:
        raise NotImplementedError

    def framed(self, kind: str, model: str, choices: list[Obj]) -> Obj:
        return {**self.frame, "object": kind, "model": model, "choices": choices}

    def usage_only(self, model: str, chunk: Obj) -> Obj:
        return self.piece({"model": model}) | {"choices": [], "usage": _usage(chunk)}


class _ChatChunk(_Chunk):
    def piece(self, chunk: Obj) -> Obj:
        delta = _message(chunk)
        choice: Obj = {"index": 0, "delta": delta, "finish_reason": _finish(chunk)}
        if chunk.get("logprobs"):
            choice["logprobs"] = {"content": chunk["logprobs"]}
        return self.framed("chat.completion.chunk", chunk.get("model", ""), [choice])

    def whole(self, merged: Obj) -> Obj:
        choice: Obj = {"index": 0, "message": _message(merged), "finish_reason": _finish(merged)}
        if merged.get("logprobs"):
            choice["logprobs"] = {"content": merged["logprobs"]}
        reply = self.framed("chat.completion", merged.get("model", ""), [choice])
        return reply | {"usage": _usage(merged)}


class _TextChunk(_Chunk):
    def piece(self, chunk: Obj) -> Obj:
        choice = {
            "text": chunk.get("response", ""),
            "index": 0,
            "finish_reason": _finish(chunk),
        }
        return self.framed("text_completion", chunk.get("model", ""), [choice])

    def whole(self, merged: Obj) -> Obj:
        return self.piece(merged) | {"usage": _usage(merged)}


def _merge(call: Call, chunks: Iterator[Obj], *, chat: bool) -> tuple[Obj, int]:
    if call.fault and call.fault.kind == "endless":
        raise ApiError(500, "an endless answer has to be streamed")
    return native.merge(chunks, chat=chat)


def _stream(call: Call, request: Obj, chunks: Iterator[Obj], form: _Chunk) -> Reply:
    usage = bool((request.get("stream_options") or {}).get("include_usage"))
    return Reply(content_type=SSE, lines=_events(call, chunks, form, usage=usage))


def _events(call: Call, chunks: Iterator[Obj], form: _Chunk, *, usage: bool) -> Iterator[bytes]:
    for chunk in chunks:
        if "error" in chunk:
            # The real server decodes the error line into an empty chunk: the text is lost, and
            # neither a finish_reason nor [DONE] follows.
            yield _event(call.encode(form.piece({})))
            return
        yield _event(call.encode(form.piece(chunk)))
        if chunk.get("done"):
            if usage:
                yield _event(call.encode(form.usage_only(chunk.get("model", ""), chunk)))
            yield _event(b"[DONE]")


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def _message(chunk: Obj) -> Obj:
    inner = chunk.get("message", {})
    found: Obj = {"role": "assistant", "content": inner.get("content", "")}
    if inner.get("thinking"):
        found["reasoning"] = inner["thinking"]
    if inner.get("tool_calls"):
        found["tool_calls"] = [_tool_call(item) for item in inner["tool_calls"]]
    return found


def _tool_call(item: Obj) -> Obj:
    function = item.get("function", {})
    arguments = json.dumps(function.get("arguments", {}), separators=(",", ":"))
    return {
        "id": item.get("id", ""),
        "index": function.get("index", 0),
        "type": "function",
        "function": {"name": function.get("name", ""), "arguments": arguments},
    }


def _finish(chunk: Obj) -> str | None:
    if chunk.get("message", {}).get("tool_calls"):
        return "tool_calls"
    return chunk.get("done_reason") or None


def _usage(chunk: Obj) -> Obj:
    prompt, answer = chunk.get("prompt_eval_count", 0), chunk.get("eval_count", 0)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def _decode(call: Call) -> Obj:
    request = wire.plain(wire.parse(call.logged.body))
    if not isinstance(request, dict):
        raise ApiError(400, "json: cannot unmarshal value into Go value")
    if not isinstance(request.get("model"), str) or not request["model"]:
        raise ApiError(400, "model is required")
    return request


def _options(request: Obj, forced: Obj) -> Obj:
    """Return native options; *forced* ones override the model's own when the request is silent."""
    options = dict(forced)
    options |= {name: request[name] for name in _SAMPLING if request.get(name) is not None}
    if request.get("max_tokens") is not None:
        options["num_predict"] = request["max_tokens"]
    stop = request.get("stop")
    if stop:
        options["stop"] = [stop] if isinstance(stop, str) else stop
    return options


def _format(request: Obj) -> Obj:
    asked = request.get("response_format") or {}
    if asked.get("type") == "json_object":
        return {"format": "json"}
    if asked.get("type") == "json_schema":
        return {"format": (asked.get("json_schema") or {}).get("schema") or {}}
    return {}


def _think(request: Obj) -> Obj:
    effort = (request.get("reasoning") or {}).get("effort") or request.get("reasoning_effort")
    return {"think": _EFFORT.get(effort, effort)} if effort else {}


def _messages(message: Obj) -> list[Obj]:
    """Return the native messages of one message: each of its parts becomes its own."""
    role = str(message.get("role", "")).lower()
    rest = {key: message[key] for key in ("tool_calls", "tool_call_id") if message.get(key)}
    content = message.get("content")
    if not isinstance(content, list):
        return [{"role": role, "content": content or "", **rest}]
    found = []
    for part in content:
        if part.get("type") == "text":
            found.append({"role": role, "content": part.get("text", ""), **rest})
        elif part.get("type") == "image_url":
            url = part.get("image_url", "")
            data = (url.get("url", "") if isinstance(url, dict) else url).partition(",")[2]
            found.append({"role": role, "content": "", "images": [wire.image(data)], **rest})
        else:
            raise ApiError(400, "invalid message format")
    return found


def _entry(model: Model) -> Obj:
    created = int(time.time())
    owner = model.name.namespace
    return {"id": model.name.short, "object": "model", "created": created, "owned_by": owner}
