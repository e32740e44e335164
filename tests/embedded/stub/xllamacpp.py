"""Stands in for the library of the same name: its calls, its traps, and no model.

The answer to a prompt is the request itself as JSON, in pieces, so that a test sees what reached
the library. A few words in the prompt make it misbehave as the real one can.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

_Callback = Callable[[dict[str, Any]], bool]


class CommonParams(SimpleNamespace):
    def __init__(self) -> None:
        super().__init__(
            model=SimpleNamespace(path=""),
            cpuparams=SimpleNamespace(n_threads=-1),
            cpuparams_batch=SimpleNamespace(n_threads=-1),
            n_ctx=0,
        )


class Server:
    def __init__(self, params: CommonParams) -> None:
        with open(params.model.path, "rb") as file:
            content = file.read(64)
        if content.startswith(b"no AVX2"):
            os.kill(os.getpid(), signal.SIGILL)
        if not content.startswith(b"GGUF"):
            raise RuntimeError("failed to load the model")
        [place] = params.hostnames
        assert os.stat(os.path.dirname(place)).st_mode & 0o777 == 0o700
        self._num_ctx = params.n_ctx
        self._weights = content[4:].decode().strip()

    def handle_chat_completions(self, body: dict[str, Any], callback: _Callback) -> None:
        prompt = body["messages"][-1]["content"]
        self._misbehave(prompt, callback)
        if prompt == "think":
            callback(_chunk({"reasoning_content": "hm"}))
        self._answer(body, lambda text: callback(_chunk({"content": text})))
        callback(_chunk({}, "stop" if prompt != "odd ending" else "content_filter"))

    def handle_completions(self, body: dict[str, Any], callback: _Callback) -> None:
        self._misbehave(body["prompt"], callback)
        self._answer(body, lambda text: callback({"choices": [{"text": text}]}))
        callback({"choices": [{"text": "", "finish_reason": "length"}], "timings": _TIMINGS})

    def _answer(self, body: dict[str, Any], say: Callable[[str], bool]) -> None:
        facts = {"num_ctx": self._num_ctx, "weights": self._weights, "process": os.getpid()}
        text = json.dumps({**facts, **body}, ensure_ascii=False)
        if "silence" in text:
            time.sleep(60)
        while "for ever" in text:
            if say("on "):
                return
            time.sleep(0.01)
        size = max(7, len(text) // 50)
        for start in range(0, len(text), size):
            if say(text[start : start + size]):
                return

    def _misbehave(self, prompt: str, callback: _Callback) -> None:
        if "chatter" in prompt:
            print("llama_model_loader: chatter on stdout", flush=True)
            print("ggml: chatter on stderr", file=sys.stderr, flush=True)
        if "too long" in prompt:
            fields = {"type": "exceed_context_size_error", "code": 400}
            callback({"error": {**fields, "message": "request exceeds the context size"}})
            return
        if "bad schema" in prompt:
            raise ValueError("JSON schema error at #: unrecognized type")
        if "half way" in prompt:
            callback(_chunk({"content": "half "}))
        if "crash" in prompt:
            print("GGML_ASSERT(n > 0) failed \x1b[31m", file=sys.stderr, flush=True)
            os.abort()


_TIMINGS = {
    "cache_n": 0,
    "prompt_n": 34,
    "prompt_ms": 120.5,
    "predicted_n": 9,
    "predicted_ms": 99.0,
}


def _chunk(delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
    chunk: dict[str, Any] = {"choices": [{"delta": delta, "finish_reason": reason}]}
    return {**chunk, "timings": _TIMINGS} if reason else chunk
