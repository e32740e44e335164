"""What does the model answer? A function of everything that may change a model's output."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .models import Model
from .reply import ApiError, Obj
from .schema import fill

_INTEGERS = (
    "num_ctx",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "num_thread",
    "num_keep",
    "seed",
    "num_predict",
    "top_k",
    "repeat_last_n",
    "draft_num_predict",
)
_FLOATS = (
    "top_p",
    "min_p",
    "typical_p",
    "temperature",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
)
_DEFAULTS: Obj = {
    "temperature": 0.8,
    "seed": -1,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repeat_penalty": 1.0,
    "repeat_last_n": 64,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "num_predict": -1,
    "num_keep": 4,
}
_WORDS = (
    "river",
    "naïve",
    "bread",
    "café",
    "λόγος",
    "seven",
    "日本",
    "moon",
    "straße",
    "quiet",
    "été",
    "stone",
    "мир",
    "blue",
    "ångström",
    "lamp",
)
_ECHO = 40
_VECTOR = 32


@dataclass(frozen=True, slots=True)
class Question:
    """All the output may depend on: model, server version, endpoint kind and request fields."""

    kind: str
    model: Model
    version: str
    fields: Obj
    options: Obj
    echo: str = ""

    def seed(self, nonce: int) -> str:
        """Return the hash the output is made of; key order inside the fields counts."""
        parts = [
            self.kind,
            self.model.digest,
            self.model.name.canonical,
            self.version,
            sorted(self.fields.items()),
            sorted(self.options.items()),
            nonce,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def random(self) -> bool:
        """Whether each call draws a fresh sample."""
        options = self.options
        greedy = options["temperature"] <= 0 or options["top_k"] == 1
        return not greedy and bool(options["seed"] < 0)


def effective_options(model: Model, options: Mapping[str, Any] | None) -> Obj:
    """Return defaults, overridden by the model's parameters, overridden by the request's."""
    return {**_DEFAULTS, **_typed(model.parameters), **_typed(options or {})}


def _typed(options: Mapping[str, Any]) -> Obj:
    found: Obj = {}
    for name, value in options.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is None:
            continue
        if name in _INTEGERS:
            _check(number, name, "integer")
            found[name] = int(value)
        elif name in _FLOATS:
            _check(number, name, "float32")
            found[name] = float(value)
        elif name == "use_mmap":
            _check(isinstance(value, bool), name, "boolean")
            found[name] = value
        elif name == "stop":
            _check(isinstance(value, list), name, "array")
            found[name] = [str(item) for item in value]
    return found


def _check(good: bool, name: str, kind: str) -> None:
    if not good:
        raise ApiError(500, f'option "{name}" must be of type {kind}')


def check_format(form: Any) -> None:
    if form in (None, "", "json") or isinstance(form, dict):
        return
    raise ApiError(
        500,
        f'invalid format: {json.dumps(form)}; expected "json" or a valid JSON Schema object',
    )


def text_for(seed: str, echo: str, form: Any = None) -> str:
    """Return the text the hash *seed* stands for, as JSON if *form* asks for it."""
    shown = " ".join("".join(c if c.isprintable() else " " for c in echo).split())[:_ECHO]
    words = [_WORDS[int(digit, 16)] for digit in seed[8:16]]
    if form == "json":
        answer = {"answer": seed[:12], "about": shown, "words": words, "mark": "…"}
        return json.dumps(answer, ensure_ascii=False)
    if isinstance(form, dict):
        return json.dumps(fill(form, seed), ensure_ascii=False)
    return f"Answer {seed[:8]}… about {shown or 'nothing'}: {' '.join(words)}."


def thought_for(seed: str) -> str:
    words = [_WORDS[int(digit, 16)] for digit in seed[16:20]]
    return f"Thinking {seed[20:28]}… of {' '.join(words)}"


def pieces(text: str) -> list[str]:
    """Cut *text* into tokens, which joined give the text again."""
    return re.findall(r"\s*\S{1,6}|\s+", text)


def limit(tokens: list[str], options: Obj) -> tuple[list[str], str]:
    """Return the tokens up to a stop sequence or num_predict, and the done_reason."""
    text = "".join(tokens)
    ends = [text.find(stop) for stop in options.get("stop", ()) if stop and stop in text]
    if ends:
        tokens = pieces(text[: min(ends)])
    most = options["num_predict"]
    if 0 < most < len(tokens):
        return tokens[:most], "length"
    return tokens, "stop"


def logprob(token: str, seed: str, top: int) -> Obj:
    """Return the logprobs item of *token*."""
    value = -(int(hashlib.sha256(f"{seed}{token}".encode()).hexdigest()[:4], 16) / 65536)
    item = {"token": token, "logprob": round(value, 6), "bytes": list(token.encode())}
    if not top:
        return item
    others = [{**item, "logprob": round(value - rank, 6)} for rank in range(top)]
    return {**item, "top_logprobs": others}


def context_ids(seed: str, tokens: int) -> list[int]:
    return [int(seed[i : i + 4], 16) for i in range(0, 32, 4)] + list(range(tokens))


def vector(seed: str, dimensions: int = 0) -> list[float]:
    """Return a vector of length one, cut to *dimensions* before it is normalized."""
    raw = b"".join(hashlib.sha256(f"{seed}{part}".encode()).digest() for part in range(4))
    numbers = [int.from_bytes(raw[i : i + 4]) / 2**31 - 1 for i in range(0, 4 * _VECTOR, 4)]
    if 0 < dimensions < _VECTOR:
        numbers = numbers[:dimensions]
    return normalized(numbers)


def normalized(numbers: Sequence[float]) -> list[float]:
    length = math.sqrt(sum(number * number for number in numbers))
    return [round(number / length, 8) for number in numbers]
