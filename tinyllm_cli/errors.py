"""Every error tinyllm raises on purpose, and what the user can do about it.

TinyLLMError
├── ConfigError                   a flag, argument, variable or file value makes no sense (a ValueError)
├── CacheError                    the store failed
│   ├── BackendUnavailableError   it cannot be reached in time
│   ├── CorruptEntryError         what it holds does not decode or does not match its key
│   │   └── UnreadableEntryError  it may be sound, but this release cannot read it
│   ├── SnapshotError             the snapshot file cannot be read, written or locked
│   └── CacheMissError            an answer was wanted from the cache alone, and it has none
├── OllamaError                   the model server failed
│   ├── OllamaUnavailableError    refused, no such host, connection lost before an answer began
│   ├── OllamaTimeoutError        nothing came within the time allowed
│   ├── OllamaStatusError         it answered with a refusal (.status_code)
│   │   └── ModelNotFoundError    it does not have the model (.model)
│   └── OllamaProtocolError       what it sent is not an answer
│       └── IncompleteAnswerError the answer broke off before its end
└── OutputError                   standard output cannot be written
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "BackendUnavailableError",
    "CacheError",
    "CacheMissError",
    "ConfigError",
    "CorruptEntryError",
    "IncompleteAnswerError",
    "ModelNotFoundError",
    "OllamaError",
    "OllamaProtocolError",
    "OllamaStatusError",
    "OllamaTimeoutError",
    "OllamaUnavailableError",
    "OutputError",
    "SnapshotError",
    "TinyLLMError",
    "UnreadableEntryError",
]


class TinyLLMError(Exception):
    """Base of all errors here; `str()` is one line of reason, `hint` one line of what to do or None."""

    def __init__(self, reason: str, *, hint: str | None = None) -> None:
        super().__init__(reason)
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        # an exception is rebuilt from its positional arguments; ours are not all there is
        return (_rebuilt, (type(self), str(self)), self.__dict__)


def _rebuilt(kind: type[TinyLLMError], reason: str) -> TinyLLMError:
    return kind.__new__(kind, reason)


class ConfigError(TinyLLMError, ValueError):
    """A flag, argument, environment variable or config value makes no sense."""


class CacheError(TinyLLMError):
    """The store behind the cache failed; an answer never depends on it."""


class BackendUnavailableError(CacheError):
    """The store cannot be reached, or did not answer in time."""


class CorruptEntryError(CacheError):
    """Stored bytes do not decode, or do not belong to the key they were found under."""


class UnreadableEntryError(CorruptEntryError):
    """Stored bytes that another release may read; they are a miss, and are left alone."""


class SnapshotError(CacheError):
    """The snapshot file cannot be read, written or locked."""


class CacheMissError(CacheError):
    """Only a cached answer was wanted, and the cache holds none."""


class OllamaError(TinyLLMError):
    """The model server failed."""


class OllamaUnavailableError(OllamaError):
    """The server cannot be reached: refused, no such host, or gone before it began to answer."""


class OllamaTimeoutError(OllamaError):
    """The server was reached but sent nothing within the time allowed."""


class OllamaStatusError(OllamaError):
    """The server refused the request; `status_code` is the HTTP status it used."""

    def __init__(self, reason: str, *, status_code: int, hint: str | None = None) -> None:
        super().__init__(reason, hint=hint)
        self.status_code = status_code


class ModelNotFoundError(OllamaStatusError):
    """The server does not have the model; `model` is the name that was asked for."""

    def __init__(self, reason: str, *, model: str, hint: str | None = None) -> None:
        super().__init__(reason, status_code=404, hint=hint)
        self.model = model


class OllamaProtocolError(OllamaError):
    """The server sent something that is not an answer in its own protocol."""


class IncompleteAnswerError(OllamaProtocolError):
    """The answer broke off before its end; what had arrived is not an answer."""


class OutputError(TinyLLMError):
    """Standard output is closed, full or otherwise cannot be written."""
