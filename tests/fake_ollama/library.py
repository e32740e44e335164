"""How do the endpoints about models answer: tags, show, ps, pull, create, copy, delete?"""

import hashlib
import time
from collections.abc import Iterator

from . import wire
from .models import Model, parse_name, split_source
from .native import Call
from .reply import ApiError, Obj, Reply

_CONTEXT_LENGTH = 4096


def tags(call: Call) -> Reply:
    return call.whole({"models": [_entry(model) for model in call.world.models.newest_first()]})


def ps(call: Call) -> Reply:
    entries = []
    for model in call.world.models.newest_first():
        expires = call.world.models.loaded.get(model.name.canonical, 0.0)
        if expires <= time.time():
            continue
        # Go's far future, for a model that is never unloaded.
        stamp = time.gmtime(min(expires, 9_999_999_999))
        entries.append(
            {
                "name": model.name.short,
                "model": model.name.short,
                "size": model.size,
                "digest": model.digest,
                "details": model.details(),
                "expires_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", stamp),
                "size_vram": 0,
                "context_length": _CONTEXT_LENGTH,
            }
        )
    return call.whole({"models": entries})


def show(call: Call) -> Reply:
    request = call.decode(wire.SHOW, "ShowRequest")
    asked = request.get("model") or request.get("name")
    if not asked:
        raise ApiError(400, "model is required")
    model = call.world.models.resolve(asked)
    if model is None:
        name = parse_name(split_source(asked)[0])
        raise ApiError(404, f"model '{name.short if name else asked}' not found")
    reply = {
        "modelfile": f"# Modelfile\nFROM /blobs/sha256-{_blob(model.weights)}\n",
        "parameters": _parameter_lines(model),
        "template": model.template,
        "system": request.get("system") or model.system,
        "renderer": model.renderer,
        "details": model.details(),
        "messages": list(model.messages),
        "remote_model": model.remote_model,
        "remote_host": model.remote_host,
        "model_info": {"general.architecture": model.family, "general.basename": "Fake"},
        "capabilities": list(model.capabilities),
        "modified_at": model.modified_at,
    }
    always = ("details", "model_info", "capabilities", "modified_at", "modelfile")
    return call.whole({key: item for key, item in reply.items() if item or key in always})


def pull(call: Call) -> Reply:
    request = call.decode(wire.PULL, "PullRequest")
    asked = request.get("model") or request.get("name") or ""
    name = parse_name(split_source(asked)[0]) if asked else None
    if name is None:
        raise ApiError(400, "invalid model name")
    lines = call.shape(_pull_lines(call, name.short))
    if request.get("stream", True):
        return call.stream(lines)
    last: Obj = {}
    number = 0
    for last in lines:
        number += 1
        if "error" in last:
            raise ApiError(500, last["error"])
    return call.whole(last, content_type="application/json", pause=call.pause(number))


def _pull_lines(call: Call, name: str) -> Iterator[Obj]:
    yield {"status": "pulling manifest"}
    offered = {key.lower(): weights for key, weights in call.world.registry.items()}
    canonical = {parsed.canonical: offered[key] for key in offered if (parsed := parse_name(key))}
    parsed = parse_name(name)
    weights = canonical.get(parsed.canonical) if parsed else None
    if weights is None:
        yield {"error": "pull model manifest: file does not exist"}
        return
    digest = _blob(weights)
    line = {"status": f"pulling {digest[:12]}", "digest": f"sha256:{digest}", "total": 1_000_000}
    yield line
    for completed in (250_000, 500_000, 1_000_000):
        yield line | {"completed": completed}
    yield {"status": "verifying sha256 digest"}
    yield {"status": "writing manifest"}
    if call.world.models.find(name):
        call.world.repull(name, weights)
    else:
        call.world.add_model(name, weights)
    yield {"status": "success"}


def create(call: Call) -> Reply:
    request = call.decode(wire.CREATE, "CreateRequest")
    asked = request.get("model") or request.get("name") or ""
    if parse_name(asked) is None:
        raise ApiError(400, "invalid model name")
    source = request.get("from", "")
    if not source:
        raise ApiError(400, "neither 'from' or 'files' was specified")
    if call.world.models.find(source) is None:
        raise ApiError(404, f"model '{source}' not found")
    lines = call.shape(_create_lines(call, asked, source, request))
    if request.get("stream", True):
        return call.stream(lines)
    return call.whole(list(lines)[-1], content_type="application/json")


def _create_lines(call: Call, name: str, source: str, request: Obj) -> Iterator[Obj]:
    yield {"status": "writing manifest"}
    call.world.create(
        name,
        source,
        system=request.get("system"),
        template=request.get("template"),
        parameters=request.get("parameters"),
        messages=request.get("messages"),
    )
    yield {"status": "success"}


def copy(call: Call) -> Reply:
    request = call.decode(wire.COPY, "CopyRequest")
    source, destination = request.get("source", ""), request.get("destination", "")
    if parse_name(source) is None:
        raise ApiError(400, f'source "{source}" is invalid')
    if parse_name(destination) is None:
        raise ApiError(400, f'destination "{destination}" is invalid')
    if call.world.models.find(source) is None:
        raise ApiError(404, f'model "{source}" not found')
    call.world.copy(source, destination)
    return Reply(content_type="")


def delete(call: Call) -> Reply:
    request = call.decode(wire.SHOW, "DeleteRequest")
    asked = request.get("model") or request.get("name") or ""
    if parse_name(asked) is None:
        raise ApiError(400, f'name "{asked}" is invalid')
    if call.world.models.find(asked) is None:
        raise ApiError(404, f"model '{asked}' not found")
    call.world.delete(asked)
    return Reply(content_type="")


def _entry(model: Model) -> Obj:
    remote = {"remote_model": model.remote_model, "remote_host": model.remote_host}
    return {
        "name": model.name.short,
        "model": model.name.short,
        **{key: value for key, value in remote.items() if value},
        "modified_at": model.modified_at,
        "size": model.size,
        "digest": model.digest,
        "details": model.details(),
        "capabilities": list(model.capabilities),
    }


def _parameter_lines(model: Model) -> str:
    lines = []
    for name, value in model.parameters.items():
        for item in value if isinstance(value, list) else [value]:
            shown = f'"{item}"' if isinstance(item, str) else item
            lines.append(f"{name:<30} {shown}")
    return "\n".join(lines)


def _blob(weights: str) -> str:
    return hashlib.sha256(weights.encode()).hexdigest()
