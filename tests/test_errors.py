"""Is every error one of ours, of the right branch, and able to say what to do?"""

from __future__ import annotations

import pickle

import pytest

from tinyllm_cli import errors

TREE = {
    "ConfigError": "TinyLLMError",
    "CacheError": "TinyLLMError",
    "BackendUnavailableError": "CacheError",
    "CorruptEntryError": "CacheError",
    "UnreadableEntryError": "CorruptEntryError",
    "SnapshotError": "CacheError",
    "CacheMissError": "CacheError",
    "OllamaError": "TinyLLMError",
    "OllamaUnavailableError": "OllamaError",
    "OllamaTimeoutError": "OllamaError",
    "OllamaStatusError": "OllamaError",
    "ModelNotFoundError": "OllamaStatusError",
    "OllamaProtocolError": "OllamaError",
    "IncompleteAnswerError": "OllamaProtocolError",
    "OutputError": "TinyLLMError",
}


def test_the_tree_is_the_one_that_is_promised() -> None:
    assert TREE.keys() | {"TinyLLMError"} == set(errors.__all__)
    for name, parent in TREE.items():
        assert getattr(errors, name).__bases__[0] is getattr(errors, parent), name


def test_the_drawing_names_every_class() -> None:
    assert all(name in (errors.__doc__ or "") for name in errors.__all__)


def test_a_mistake_of_the_caller_is_a_value_error() -> None:
    assert issubclass(errors.ConfigError, ValueError)


@pytest.mark.parametrize("name", sorted({*TREE} - {"OllamaStatusError", "ModelNotFoundError"}))
def test_reason_and_hint(name: str) -> None:
    error = getattr(errors, name)("it broke", hint="mend it")
    assert (str(error), error.hint) == ("it broke", "mend it")
    assert getattr(errors, name)("it broke").hint is None


def test_what_the_server_said_is_kept() -> None:
    refused = errors.OllamaStatusError("no", status_code=503)
    assert (refused.status_code, refused.hint) == (503, None)
    missing = errors.ModelNotFoundError("no such model", model="m", hint="ollama pull m")
    assert (missing.status_code, missing.model, missing.hint) == (404, "m", "ollama pull m")


@pytest.mark.parametrize(
    "error",
    [
        errors.SnapshotError("it broke", hint="mend it"),
        errors.OllamaStatusError("no", status_code=503, hint="h"),
        errors.ModelNotFoundError("no such model", model="m", hint="h"),
    ],
)
def test_an_error_crosses_a_process_border_whole(error: errors.TinyLLMError) -> None:
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.__dict__ == error.__dict__
