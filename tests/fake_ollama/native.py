"""How do /api/generate and /api/chat answer?"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from . import answers, wire
from .answers import Question
from .faults import Fault
from .models import Model
from .reply import JSON, NDJSON, ApiError, Obj, Reply, encode, now_text
from .shaping import alter, endless_body, shape
from .world import Logged, World

_KEEP_ALIVE = 300.0
_GENERATE_FIELDS = ("prompt", "suffix", "system", "template", "raw", "images")
_SHARED_FIELDS = ("logprobs", "top_logprobs")


@dataclass(frozen=True, slots=True)
class Call:
    """One request on its way through the handlers."""

    world: World
    logged: Logged
    fault: Fault | None = None

    def decode(self, fields: dict[str, str], struct: str) -> Obj:
        return wire.decode(self.logged.body, fields, struct)

    def encode(self, obj: Any) -> bytes:
        raw = self.fault is not None and self.fault.kind == "raw_separators"
        return encode(obj, raw_separators=raw)

    def shape(self, chunks: Iterator[Obj]) -> Iterator[Obj]:
        return shape(self.fault, chunks) if self.fault else chunks

    def whole(self, obj: Obj, *, content_type: str = JSON, pause: float = 0.0) -> Reply:
        """Return a reply of one object that no chunk faults have touched yet."""
        if self.fault:
            obj = alter(self.fault, obj)
        return Reply(content_type=content_type, body=self.encode(obj), pause=pause)

    def stream(self, chunks: Iterable[Obj]) -> Reply:
        lines = (self.encode(chunk) + b"\n" for chunk in chunks)
        return Reply(content_type=NDJSON, lines=lines)

    def pause(self, chunks: int) -> float:
        return self.world.token_delay * chunks


def generate(call: Call) -> Reply:
    request = call.decode(wire.GENERATE, "GenerateRequest")
    if not request.get("model"):
        raise ApiError(404, "model '' not found")
    model = find_model(call, request["model"])
    _check_logprobs(request)
    if not request.get("prompt"):
        if request.get("keep_alive") == 0:
            return _loaded(call, model, request, {"response": ""}, "unload")
        _check_generate(model, request)
        answers.effective_options(model, request.get("options"))
        return _loaded(call, model, request, {"response": ""}, "load")
    _check_generate(model, request)
    fields = {name: request[name] for name in _GENERATE_FIELDS if request.get(name)}
    if "context" in request:
        fields["context"] = request["context"]
    question = ask(call, "generate", model, request, fields, echo=request["prompt"])
    if request.get("_debug_render_only"):
        return call.whole(_debug(request, request["prompt"], len(request.get("images", ()))))
    chunks = answer_chunks(call, question, request, chat=False)
    return _finish(call, request, chunks, chat=False)


def chat(call: Call) -> Reply:
    request = call.decode(wire.CHAT, "ChatRequest")
    if not request.get("model"):
        raise ApiError(400, "model is required")
    model = find_model(call, request["model"])
    _check_logprobs(request)
    if not request.get("messages"):
        message = {"message": {"role": "assistant", "content": ""}}
        reason = "unload" if request.get("keep_alive") == 0 else "load"
        if reason == "load":
            check_chat(model, request)
        return _loaded(call, model, request, message, reason)
    check_chat(model, request)
    question = ask_chat(call, "chat", model, request)
    if request.get("_debug_render_only"):
        return call.whole(_debug(request, question.echo, 0))
    return _finish(call, request, answer_chunks(call, question, request, chat=True), chat=True)


def find_model(call: Call, name: str) -> Model:
    model = call.world.models.resolve(name)
    if model is None:
        raise ApiError(404, f"model '{name}' not found")
    return model


def ask_chat(call: Call, kind: str, model: Model, request: Obj) -> Question:
    """Return the question a chat request puts; ``[]`` counts as absent in its lists."""
    messages = [
        {key: item for key, item in message.items() if item not in ("", [])}
        for message in request["messages"]
    ]
    fields: Obj = {"messages": messages}
    if request.get("tools"):
        fields["tools"] = request["tools"]
    echo = next((m["content"] for m in reversed(messages) if m.get("content")), "")
    return ask(call, kind, model, request, fields, echo=echo)


def ask(call: Call, kind: str, model: Model, request: Obj, fields: Obj, *, echo: str) -> Question:
    """Return the question *request* puts, and mark the model as loaded."""
    options = answers.effective_options(model, request.get("options"))
    answers.check_format(request.get("format"))
    for name in _SHARED_FIELDS:
        if request.get(name):
            fields[name] = request[name]
    # For these absent, null and false differ from each other, at least for some models.
    fields |= {name: request[name] for name in ("think", "format") if name in request}
    fields["truncate"] = request.get("truncate", True)
    fields["shift"] = request.get("shift", True)
    mark_loaded(call, model, request)
    return Question(kind, model, call.world.version, fields, options, echo)


def answer_chunks(call: Call, question: Question, request: Obj, *, chat: bool) -> Iterator[Obj]:
    """Generate: count it, fix the answer now, and return its chunks to be read one by one."""
    world = call.world
    number = world.count_generation()
    if world.chunks is not None:
        return call.shape(_scripted(list(world.chunks), request))
    seed = question.seed(number if question.random or world.drift else 0)
    form = request.get("format")
    if world.answer is not None:
        text = world.answer(wire.plain(wire.parse(call.logged.body)))
    else:
        text = answers.text_for(seed, question.echo, form)
    thinks = "thinking" in question.model.capabilities and request.get("think", True)
    thought = answers.pieces(answers.thought_for(seed)) if thinks else []
    tokens, reason = answers.limit(answers.pieces(text), question.options)
    calls = world.tool_calls if chat and request.get("tools") else None
    script = _Script(question, request, seed, thought, tokens, reason, calls or [], chat)
    return call.shape(script.chunks())


@dataclass(frozen=True, slots=True)
class _Script:
    question: Question
    request: Obj
    seed: str
    thought: list[str]
    tokens: list[str]
    reason: str
    calls: list[Obj]
    chat: bool

    def chunks(self) -> Iterator[Obj]:
        for token in self.thought:
            yield self._chunk("", token, thinking=token)
        # A model with a renderer sends its tool calls before the final chunk, others inside it.
        early = bool(self.question.model.renderer)
        for token in self.tokens:
            yield self._chunk(token, token)
        if self.calls and early:
            yield self._chunk("", "", tool_calls=self._numbered())
        extra: Obj = {"tool_calls": self._numbered()} if self.calls and not early else {}
        last = self._chunk("", "", **extra) | {"done": True, "done_reason": self.reason}
        if self.question.kind == "generate" and not self.request.get("raw"):
            last["context"] = answers.context_ids(self.seed, len(self.tokens))
        yield last | metrics(self.question.echo, len(self.thought) + len(self.tokens))

    def _chunk(self, text: str, token: str, **extra: Any) -> Obj:
        chunk = head(self.question.model, self.request)
        if self.chat:
            chunk["message"] = {"role": "assistant", "content": text, **extra}
        else:
            chunk |= {"response": text, **extra}
        chunk["done"] = False
        if token and self.request.get("logprobs"):
            top = self.request.get("top_logprobs", 0)
            chunk["logprobs"] = [answers.logprob(token, self.seed, top)]
        return chunk

    def _numbered(self) -> list[Obj]:
        return [{"id": f"call_{self.seed[i : i + 8]}", **item} for i, item in enumerate(self.calls)]


def head(model: Model, request: Obj) -> Obj:
    """Return the fields every chunk starts with; the model is spelled as the request had it."""
    remote = {"remote_model": model.remote_model, "remote_host": model.remote_host}
    present = {key: value for key, value in remote.items() if value}
    return {"model": request["model"], **present, "created_at": now_text()}


def metrics(prompt: str, tokens: int) -> Obj:
    """Return the final numbers, durations in nanoseconds; zeros are left out as Go does."""
    words = 10 + len(prompt.split())
    found = {
        "total_duration": 3_000_000 + 1_000_000 * tokens,
        "load_duration": 2_000_000,
        "prompt_eval_count": words,
        "prompt_eval_duration": 1_000_000,
        "eval_count": tokens,
        "eval_duration": 1_000_000 * tokens,
    }
    return {key: value for key, value in found.items() if value}


def merge(chunks: Iterable[Obj], *, chat: bool) -> tuple[Obj, int]:
    """Return the reply that stands for *chunks* when nothing is streamed, and their number."""
    merged: Obj = {"model": "", "created_at": "0001-01-01T00:00:00Z"}
    merged |= {"message": {"role": "", "content": ""}} if chat else {"response": ""}
    merged["done"] = False
    parts: dict[str, list[Any]] = {"text": [], "thinking": [], "logprobs": [], "tool_calls": []}
    text, number = "content" if chat else "response", 0
    for chunk in chunks:
        number += 1
        if "error" in chunk:
            raise ApiError(500, chunk["error"])
        inner = chunk.get("message", {}) if chat else chunk
        parts["text"].append(inner.get(text, ""))
        parts["thinking"].append(inner.get("thinking", ""))
        parts["tool_calls"] += inner.get("tool_calls") or []
        parts["logprobs"] += chunk.get("logprobs") or []
        merged = chunk
    merged = {**merged}
    target = merged
    if chat:
        target = merged["message"] = {"role": "assistant", **merged.get("message", {})}
    target[text] = "".join(parts["text"])
    if thinking := "".join(parts["thinking"]):
        target["thinking"] = thinking
    if parts["tool_calls"]:
        target["tool_calls"] = parts["tool_calls"]
    if parts["logprobs"]:
        merged["logprobs"] = parts["logprobs"]
    return merged, number


def check_chat(model: Model, request: Obj) -> None:
    if "completion" not in model.capabilities:
        raise ApiError(400, f'"{request["model"]}" does not support chat')
    if request.get("tools"):
        _require(model, "tools")
    _check_think(model, request)


def mark_loaded(call: Call, model: Model, request: Obj) -> None:
    keep = request.get("keep_alive", _KEEP_ALIVE)
    key = model.name.canonical
    if keep == 0:
        call.world.models.loaded.pop(key, None)
    else:
        call.world.models.loaded[key] = time.time() + keep if keep > 0 else float("inf")


def _check_generate(model: Model, request: Obj) -> None:
    extras = request.get("template") or request.get("system") or request.get("context")
    if request.get("raw") and extras:
        raise ApiError(400, "raw mode does not support template, system, or context")
    if "completion" not in model.capabilities:
        raise ApiError(400, f'"{request["model"]}" does not support generate')
    if request.get("suffix"):
        _require(model, "insert")
    _check_think(model, request)


def _require(model: Model, capability: str) -> None:
    if capability not in model.capabilities:
        raise ApiError(400, f"{model.name.full} does not support {capability}")


def _check_think(model: Model, request: Obj) -> None:
    if request.get("think") and "thinking" not in model.capabilities:
        raise ApiError(400, f'"{request["model"]}" does not support thinking')


def _check_logprobs(request: Obj) -> None:
    if not 0 <= request.get("top_logprobs", 0) <= 20:
        raise ApiError(400, "top_logprobs must be between 0 and 20")


def _loaded(call: Call, model: Model, request: Obj, empty: Obj, reason: str) -> Reply:
    """Return the single object of a load or unload, which is never streamed."""
    mark_loaded(call, model, request)
    return call.whole(head(model, request) | empty | {"done": True, "done_reason": reason})


def _debug(request: Obj, prompt: str, images: int) -> Obj:
    info = {"rendered_template": prompt, "image_count": images}
    return {
        "model": request["model"],
        "created_at": now_text(),
        "response": "",
        "done": False,
        "_debug_info": info,
    }


def _scripted(chunks: list[Obj], request: Obj) -> Iterator[Obj]:
    """Yield the test's own chunks, with the fields it left out."""
    for index, chunk in enumerate(chunks, 1):
        if "error" in chunk:
            yield chunk
            continue
        filled = {"model": request["model"], "created_at": now_text(), **chunk}
        if index < len(chunks):
            yield {"done": False} | filled
        elif filled.get("done") is False:
            yield filled
        else:
            yield filled | {"done": True, "done_reason": "stop"} | metrics("", index) | chunk


def _finish(call: Call, request: Obj, chunks: Iterator[Obj], *, chat: bool) -> Reply:
    if request.get("stream", True):
        return call.stream(chunks)
    if call.fault and call.fault.kind == "endless":
        return endless_body(next(chunks))
    merged, number = merge(chunks, chat=chat)
    return Reply(body=call.encode(merged), pause=call.pause(number))
