"""What a model name means: which spellings are one model, and which models are not on this machine."""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ["canonical_model", "is_cloud_model", "short_model"]

# Ollama's own grammar: [scheme://][host/][namespace/]model[:tag]; `:` is allowed in a host only.
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
_NAME = re.compile(
    rf"""(?:[A-Za-z]+://)?
    (?:(?:(?P<host>[A-Za-z0-9_][A-Za-z0-9_.:-]{{0,349}})/)?
       (?P<namespace>[A-Za-z0-9_][A-Za-z0-9_-]{{0,79}})/)?
    (?P<model>{_PART})
    (?::(?P<tag>{_PART}))?""",
    re.VERBOSE,
)
_DEFAULT_HOST = "registry.ollama.ai"
_DEFAULT_NAMESPACE = "library"
_DEFAULT_TAG = "latest"
_PREFIX = f"{_DEFAULT_HOST}/{_DEFAULT_NAMESPACE}/"


@lru_cache(maxsize=256)  # a program asks the same few models again and again
def canonical_model(name: str) -> str:
    """Return the one full, lower-case spelling of a model name, as the cache key holds it.

    `llama3.2`, `LLAMA3.2:latest` and `registry.ollama.ai/library/llama3.2:latest` give the same;
    `:local` is dropped and a cloud source stays visible. A name Ollama would refuse comes back as
    it is, blanks trimmed.
    """
    plain, source = _split_source(name.strip())
    found = _NAME.fullmatch(plain)
    if found is None:
        return name.strip()
    host = found["host"] or _DEFAULT_HOST
    namespace = found["namespace"] or _DEFAULT_NAMESPACE
    tag = found["tag"] or _DEFAULT_TAG
    return f"{host}/{namespace}/{found['model']}:{tag}{source}".lower()


@lru_cache(maxsize=256)
def short_model(name: str) -> str:
    """Return the canonical name as people write it: without the default registry, with its tag."""
    return canonical_model(name).removeprefix(_PREFIX)


def is_cloud_model(name: str) -> bool:
    """Say whether a name asks for a model that Ollama runs elsewhere (`x:cloud`, `x:20b-cloud`)."""
    return _split_source(name.strip())[1] != ""


def _split_source(name: str) -> tuple[str, str]:
    """Split off where the model runs: ("x:20b", ":cloud") of `x:20b-cloud`, ("x", "") of `x:local`."""
    stem, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        return name, ""
    tag_low = tag.lower()
    if tag_low == "local":
        return stem, ""
    if tag_low == "cloud":
        return stem, ":cloud"
    if tag_low.endswith("-cloud"):
        return f"{stem}:{tag[: -len('-cloud')]}", ":cloud"
    return name, ""
