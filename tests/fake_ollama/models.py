"""Which models are installed, what are they called, and which digest has each?"""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .reply import ApiError, Obj, now_text

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_HOME = ("registry.ollama.ai", "library")
_sequence = itertools.count()


@dataclass(frozen=True, slots=True)
class Name:
    """A full model name; the letter case is kept as written."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def full(self) -> str:
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def canonical(self) -> str:
        return self.full.lower()

    @property
    def short(self) -> str:
        name = f"{self.model}:{self.tag}"
        if self.host.lower() != _HOME[0]:
            return self.full
        return name if self.namespace.lower() == _HOME[1] else f"{self.namespace}/{name}"


def parse_name(text: str) -> Name | None:
    """Return the name *text* means, or None if no model can be called that."""
    rest, tag = text, "latest"
    if text.rfind(":") > text.rfind("/"):
        rest, _, tag = text.rpartition(":")
    parts = rest.rpartition("://")[2].split("/")
    if len(parts) > 3:
        return None
    host, namespace, model = (*_HOME[: 3 - len(parts)], *parts)
    name = Name(host, namespace, model, tag)
    good = (
        _HOST.fullmatch(name.host)
        and _NAMESPACE.fullmatch(name.namespace)
        and _PART.fullmatch(name.model)
        and _PART.fullmatch(name.tag)
    )
    return name if good else None


def split_source(text: str) -> tuple[str, str]:
    """Return *text* without its source suffix, and the source: "cloud", "local" or ""."""
    base, found = _cut_source(text)
    if found and _cut_source(base)[1] not in ("", found):
        raise ApiError(400, f"use either :local or :cloud, not both: {json.dumps(text)}")
    return base, found


def _cut_source(text: str) -> tuple[str, str]:
    lower = text.lower()
    for source in ("cloud", "local"):
        if lower.endswith(f":{source}"):
            return text[: -len(source) - 1], source
    if lower.endswith("-cloud") and lower.rfind(":") > lower.rfind("/"):
        return text[: -len("-cloud")], "cloud"
    return text, ""


@dataclass(frozen=True, slots=True)
class Model:
    """One installed model: all that its manifest would cover, and its name beside it."""

    name: Name
    weights: str = "w1"
    system: str = ""
    template: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[Obj] = ()
    capabilities: Sequence[str] = ("completion",)
    renderer: str = ""
    remote_host: str = ""
    remote_model: str = ""
    modified_at: str = field(default_factory=now_text)
    order: int = field(default_factory=lambda: next(_sequence))

    @property
    def digest(self) -> str:
        """The sha256 of the manifest. The name is no part of it, so a copy keeps the digest."""
        manifest = {
            "weights": self.weights,
            "system": self.system,
            "template": self.template,
            "parameters": dict(self.parameters),
            "messages": list(self.messages),
            "capabilities": list(self.capabilities),
            "renderer": self.renderer,
            "remote": [self.remote_host, self.remote_model],
        }
        text = json.dumps(manifest, sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()

    @property
    def size(self) -> int:
        return 100_000_000 + int(self.digest[:6], 16)

    @property
    def family(self) -> str:
        return re.split(r"[^a-z0-9]", self.name.model.lower())[0] or "llama"

    def details(self) -> Obj:
        return {
            "parent_model": "",
            "format": "gguf",
            "family": self.family,
            "families": [self.family],
            "parameter_size": "494.03M",
            "quantization_level": "Q4_K_M",
        }


class ModelStore:
    """The installed models by canonical name, and those loaded into memory."""

    def __init__(self) -> None:
        self._models: dict[str, Model] = {}
        self.loaded: dict[str, float] = {}

    def put(self, model: Model) -> Model:
        self._models[model.name.canonical] = model
        return model

    def find(self, text: str) -> Model | None:
        name = parse_name(text)
        return self._models.get(name.canonical) if name else None

    def require(self, text: str) -> Model:
        model = self.find(text)
        if model is None:
            raise KeyError(f"the fake server has no model {text!r}")
        return model

    def newest_first(self) -> list[Model]:
        return sorted(self._models.values(), key=lambda model: model.order, reverse=True)

    def change(self, model: Model, **changes: Any) -> Model:
        """Install *model* again with *changes*, as a pull or create over its name does."""
        return self.put(replace(model, **changes, modified_at=now_text(), order=next(_sequence)))

    def remove(self, text: str) -> None:
        model = self.require(text)
        del self._models[model.name.canonical]
        self.loaded.pop(model.name.canonical, None)

    def resolve(self, text: str) -> Model | None:
        """Return the model a request means. A cloud name needs no local entry."""
        found = self.find(text)
        if found:
            return found
        base, source = split_source(text)
        name = parse_name(base)
        if name is None:
            raise ApiError(400, "invalid model name")
        if source == "cloud":
            return Model(
                name,
                weights="cloud",
                remote_host="https://ollama.com:443",
                remote_model=base,
                capabilities=("completion", "tools", "thinking"),
            )
        return self._models.get(name.canonical)
