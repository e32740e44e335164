"""Are the promised names there, with the promised signatures, and as cheap as promised?"""

from __future__ import annotations

import ast
import asyncio
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tinyllm_cli

SOURCE = Path(tinyllm_cli.__file__).read_text(encoding="utf-8")

PROMISED = {
    "CacheBackend",
    "CacheEntry",
    "CacheMetrics",
    "CachedOllamaClient",
    "GenerateRequest",
    "GenerateResponse",
    "InMemoryBackend",
    "OllamaClient",
    "RedisBackend",
    "ResponseCache",
    "create_cached_client",
    "create_memory_cache",
    "create_redis_cache",
    "generate_cache_key",
    "TinyLLMError",
    "ConfigError",
    "CacheError",
    "BackendUnavailableError",
    "CorruptEntryError",
    "SnapshotError",
    "CacheMissError",
    "OllamaError",
    "OllamaUnavailableError",
    "OllamaTimeoutError",
    "OllamaStatusError",
    "ModelNotFoundError",
    "OllamaProtocolError",
    "IncompleteAnswerError",
    "OutputError",
}


def names_for_type_checkers() -> dict[str, str]:
    """Return the names in the TYPE_CHECKING block and the module each comes from."""
    found: dict[str, str] = {}
    for node in ast.parse(SOURCE).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for line in node.body:
                assert isinstance(line, ast.ImportFrom)
                found |= {alias.asname or alias.name: line.module or "" for alias in line.names}
    return found


def test_every_promised_name_is_public() -> None:
    assert set(tinyllm_cli.__all__) >= PROMISED


def test_what_type_checkers_see_is_what_is_there() -> None:
    seen = names_for_type_checkers()
    assert seen.keys() | {"__version__"} == set(tinyllm_cli.__all__)
    for name, module in seen.items():
        home = tinyllm_cli._HOMES.get(name, "errors")
        assert home == module, name
    assert set(tinyllm_cli._HOMES) <= set(tinyllm_cli.__all__)


@pytest.mark.parametrize("name", tinyllm_cli.__all__)
def test_every_name_loads_and_says_what_it_is(name: str) -> None:
    value = getattr(tinyllm_cli, name)
    if name != "__version__":
        assert value.__name__ == name
        assert value.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    for name in ("nope", "NoSuchError", "_parsed"):
        with pytest.raises(AttributeError, match=name):
            getattr(tinyllm_cli, name)
    assert dir(tinyllm_cli) == sorted(tinyllm_cli.__all__)


def loaded_by(statement: str) -> set[str]:
    """Return the top-level modules a statement loads in a fresh interpreter."""
    script = (
        f"import sys; before = set(sys.modules); {statement}; print(*set(sys.modules) - before)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, check=True, text=True
    )
    return {name.split(".")[0] for name in done.stdout.split()}


def test_importing_the_package_loads_nothing_else() -> None:
    ours = loaded_by("import tinyllm_cli")
    third_party = ours - sys.stdlib_module_names - {"tinyllm_cli"}
    assert third_party == set()
    assert ours.isdisjoint({"asyncio", "json", "sqlite3", "logging", "hashlib", "tomllib"})


@pytest.mark.parametrize(
    "names",
    [
        "ResponseCache, InMemoryBackend, GenerateRequest, GenerateResponse, generate_cache_key",
        "CachedOllamaClient, OllamaClient, create_cached_client, create_memory_cache",
    ],
)
def test_what_a_hit_needs_loads_no_third_party_module(names: str) -> None:
    loaded = loaded_by(f"from tinyllm_cli import {names}")
    assert loaded - sys.stdlib_module_names == {"tinyllm_cli"}


# --- signatures

ANY = object()
SIGNATURES: dict[str, list[tuple[str, Any]]] = {
    "CacheMetrics": [("hits", 0), ("misses", 0), ("sets", 0), ("evictions", 0), ("errors", 0)],
    "CacheEntry": [
        ("response", ANY),
        ("created_at", ANY),
        ("ttl", None),
        ("access_count", 0),
        ("last_accessed", ANY),
    ],
    "InMemoryBackend": [("max_size", 1000)],
    "RedisBackend": [
        ("host", "localhost"),
        ("port", 6379),
        ("db", 0),
        ("password", None),
        ("key_prefix", "tinyllm:cache:"),
    ],
    "ResponseCache": [("backend", ANY), ("default_ttl", 3600), ("enable_metrics", True)],
    "CachedOllamaClient": [("client", ANY), ("cache", ANY), ("enable_cache", True)],
    "GenerateRequest": [
        ("model", ANY),
        ("prompt", ANY),
        ("system", None),
        ("temperature", 0.3),
        ("max_tokens", 2000),
        ("json_mode", False),
    ],
    "GenerateResponse": [
        ("model", ANY),
        ("created_at", ANY),
        ("response", ANY),
        ("done", ANY),
        ("total_duration", None),
        ("load_duration", None),
        ("prompt_eval_count", None),
        ("prompt_eval_duration", None),
        ("eval_count", None),
        ("eval_duration", None),
    ],
    "OllamaClient": [("host", ANY), ("timeout_ms", 30_000), ("max_retries", 3)],
    "generate_cache_key": [
        ("model", ANY),
        ("prompt", ANY),
        ("temperature", 0.3),
        ("max_tokens", 2000),
        ("system", None),
        ("json_mode", False),
    ],
    "create_memory_cache": [("max_size", 1000), ("default_ttl", 3600)],
    "create_redis_cache": [
        ("host", "localhost"),
        ("port", 6379),
        ("db", 0),
        ("password", None),
        ("default_ttl", 3600),
    ],
    "create_cached_client": [
        ("client", None),
        ("backend", "memory"),
        ("max_size", 1000),
        ("default_ttl", 3600),
        ("enable_cache", True),
    ],
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_first_parameters_and_their_defaults_are_those_of_the_original(name: str) -> None:
    parameters = list(inspect.signature(getattr(tinyllm_cli, name)).parameters.values())
    for (expected, default), parameter in zip(SIGNATURES[name], parameters, strict=False):
        assert parameter.name == expected
        assert parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        if default is not ANY:
            assert parameter.default == default
            assert type(parameter.default) is type(default)
    assert len(parameters) >= len(SIGNATURES[name])


METHODS: dict[str, tuple[set[str], set[str]]] = {  # coroutines, then plain ones
    "CacheBackend": ({"get", "set", "delete", "clear", "size", "close"}, set()),
    "InMemoryBackend": ({"get", "set", "delete", "clear", "size", "close"}, set()),
    "RedisBackend": ({"get", "set", "delete", "clear", "size", "close"}, set()),
    "ResponseCache": (
        {"get", "set", "delete", "clear", "size", "close"},
        {"generate_cache_key", "get_metrics", "reset_metrics"},
    ),
    "CachedOllamaClient": (
        {"generate", "list_models", "pull_model", "check_health", "close"},
        {"generate_stream", "get_stats"},
    ),
    "OllamaClient": (
        {"generate", "list_models", "pull_model", "check_health", "close"},
        {"generate_stream", "get_stats"},
    ),
    "CacheEntry": (set(), {"is_expired", "touch"}),
    "CacheMetrics": (set(), {"to_dict"}),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_methods_of_the_original_are_there(name: str) -> None:
    kind = getattr(tinyllm_cli, name)
    coroutines, plain = METHODS[name]
    for method in coroutines:
        assert inspect.iscoroutinefunction(getattr(kind, method)), method
    for method in plain:
        assert callable(getattr(kind, method)), method
        assert not inspect.iscoroutinefunction(getattr(kind, method)), method
    assert inspect.isasyncgenfunction(tinyllm_cli.CachedOllamaClient.generate_stream)


def test_generate_takes_what_the_original_took() -> None:
    own = inspect.signature(tinyllm_cli.OllamaClient.generate).parameters
    assert {"prompt", "model", "system", "temperature", "max_tokens", "json_mode"} <= own.keys()
    cached = inspect.signature(tinyllm_cli.CachedOllamaClient.generate).parameters
    assert {"prompt", "model", "force_refresh", "cache_ttl"} <= cached.keys()


def test_another_backend_is_refused_in_the_words_of_the_original() -> None:
    with pytest.raises(ValueError, match="Invalid cache backend"):
        asyncio.run(tinyllm_cli.create_cached_client(backend="nope"))


def test_the_figures_have_the_keys_of_the_original() -> None:
    async def main() -> dict[str, Any]:
        async with await tinyllm_cli.create_cached_client() as client:
            return client.get_stats()

    stats = asyncio.run(main())
    assert {"client", "cache", "cache_enabled"} <= stats.keys()
    assert stats["cache"]["hit_rate"] == 0.0
    assert stats["cache_enabled"] is True
