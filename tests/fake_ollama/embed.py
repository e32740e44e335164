"""How do /api/embed and /api/embeddings answer?"""

from typing import Any

from . import answers, wire
from .models import Model, parse_name
from .native import Call, mark_loaded
from .reply import ApiError, Obj, Reply


def embed(call: Call) -> Reply:
    request = call.decode(wire.EMBED, "EmbedRequest")
    if not request.get("model"):
        raise ApiError(404, "model '' not found")
    model = _find(call, request["model"])
    inputs = inputs_of(request.get("input"))
    vectors = vectors_for(call, "embed", model, request, inputs)
    reply = {
        "model": request["model"],
        "embeddings": vectors,
        "total_duration": 3_000_000,
        "load_duration": 2_000_000,
        "prompt_eval_count": count_tokens(inputs),
    }
    return call.whole({key: value for key, value in reply.items() if value or value == []})


def embeddings(call: Call) -> Reply:
    request = call.decode(wire.EMBEDDINGS, "EmbeddingRequest")
    if not request.get("model"):
        raise ApiError(400, "model is required")
    model = _find(call, request["model"])
    asked = parse_name(request["model"])
    # This old endpoint is the one place where the letter case of the name counts.
    if asked is not None and asked.full != model.name.full:
        raise _missing(request["model"])
    inputs = inputs_of(request.get("prompt"))
    vectors = vectors_for(call, "embeddings", model, request, inputs)
    # The legacy vectors are not of length one.
    return call.whole({"embedding": [2 * number for number in vectors[0]] if vectors else []})


def inputs_of(value: Any) -> list[str]:
    """Return the inputs of a request; an empty string is none at all."""
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    raise ApiError(400, "invalid input type")


def vectors_for(
    call: Call, kind: str, model: Model, request: Obj, inputs: list[str]
) -> list[list[float]]:
    """Return one vector per input, each independent of the other inputs."""
    options = answers.effective_options(model, request.get("options"))
    mark_loaded(call, model, request)
    if not inputs:
        return []
    number = call.world.count_generation()
    nonce = number if call.world.drift else 0
    dimensions = request.get("dimensions", 0)
    vectors = []
    for text in inputs:
        fields = {"input": text, "truncate": request.get("truncate", True)}
        question = answers.Question(kind, model, call.world.version, fields, options)
        vectors.append(answers.vector(question.seed(nonce), dimensions))
    return vectors


def count_tokens(inputs: list[str]) -> int:
    return sum(1 + len(text.split()) for text in inputs)


def _find(call: Call, name: str) -> Model:
    model = call.world.models.resolve(name)
    if model is None:
        raise _missing(name)
    return model


def _missing(name: str) -> ApiError:
    return ApiError(404, f'model "{name}" not found, try pulling it first')
