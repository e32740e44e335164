"""What does a refusal or a silence of the server mean to the user? Facts in, an error out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ..errors import (
    ModelNotFoundError,
    OllamaStatusError,
    OllamaTimeoutError,
    OllamaUnavailableError,
)

__all__ = [
    "clean",
    "error_text",
    "html_refusal",
    "lost",
    "no_answer",
    "no_connection",
    "pull_refusal",
    "redirect_refusal",
    "refusal",
    "unreachable",
    "untrusted",
]

_START = "start it with `ollama serve`, or set OLLAMA_HOST"
_SHOWN = 200
_NOT_FOUND = re.compile(r"\bmodel\b.*\bnot found\b", re.IGNORECASE | re.DOTALL)
_PULL_NOT_FOUND = re.compile(r"file does not exist|not found", re.IGNORECASE)
# Control characters show as their pictures, so that no server text can drive a terminal; what
# turns the reading direction, what ends a line and half characters become U+FFFD.
_INERT: dict[int, str] = {
    **{code: chr(0x2400 + code) for code in range(0x20)},
    **dict.fromkeys(map(ord, "\n\r\t"), " "),
    0x7F: "\u2421",
    **dict.fromkeys(
        [*range(0x80, 0xA0), 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)],
        "\ufffd",
    ),
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),
}
_HINTS = {
    401: "sign in with `ollama signin`, or set OLLAMA_API_KEY",
    403: "the server may refuse this host name or origin; see OLLAMA_HOST and its OLLAMA_ORIGINS",
    429: "too many requests; try again later",
    503: "the server is busy; try again later",
}


def clean(text: str) -> str:
    """Return the first 200 characters of a foreign text on one line, control characters inert."""
    return text[:_SHOWN].translate(_INERT).strip()


def error_text(error: Any) -> str:
    """Return what the value of an `error` field says: a text, or an object with a `message`."""
    if isinstance(error, Mapping):
        error = error.get("message") or error.get("error") or dict(error)
    try:
        return clean(error if isinstance(error, str) else json.dumps(error))
    except RecursionError:
        return "an error nested too deeply to be shown"


def refusal(status: int, body: bytes, *, model: str = "", url: str = "") -> OllamaStatusError:
    """Return the error for a reply with a status other than 200; *model* is what was asked for."""
    fields = _fields(body)
    text = error_text(fields["error"]) if fields.get("error") else _plain_text(body)
    if status == 404 and _NOT_FOUND.search(text):
        return _model_not_found(model, hint=f"ollama pull {clean(model)}")
    hint = _HINTS.get(status)
    if isinstance(fields.get("signin_url"), str):
        hint = f"sign in at {clean(fields['signin_url'])}"
    if status == 404 and not fields:
        hint = f"is {url} an Ollama server? see OLLAMA_HOST"
    reason = f"Ollama refused ({status}): {text}" if text else f"Ollama refused ({status})"
    return OllamaStatusError(reason, status_code=status, hint=hint)


def redirect_refusal(status: int, location: str) -> OllamaStatusError:
    """Return the error for a redirect: the prompt goes to the host the user named, or nowhere."""
    target = clean(location)
    hint = f"it points to {target}; set OLLAMA_HOST if you trust that" if target else None
    return OllamaStatusError(
        f"Ollama refused ({status}): redirects are not followed", status_code=status, hint=hint
    )


def html_refusal(url: str) -> OllamaStatusError:
    """Return the error for a web page where an answer should be."""
    return OllamaStatusError(
        f"{url} is not an Ollama server: it sent a web page",
        status_code=200,
        hint="set OLLAMA_HOST to where Ollama listens; a proxy or sign-in page may be in the way",
    )


def pull_refusal(text: str, model: str) -> OllamaStatusError:
    """Return the error for an error line of a pull."""
    if _PULL_NOT_FOUND.search(text):
        return _model_not_found(model, hint="look for its name at https://ollama.com/library")
    return OllamaStatusError(f"Ollama cannot pull {clean(model)!r}: {text}", status_code=200)


def unreachable(url: str) -> OllamaUnavailableError:
    """Return the error for a connection that did not come about."""
    return OllamaUnavailableError(f"cannot reach Ollama at {url}", hint=_START)


def no_connection(url: str) -> OllamaTimeoutError:
    """Return the error for a connection that was neither made nor refused in time."""
    return OllamaTimeoutError(f"cannot reach Ollama at {url} in time", hint=_START)


def no_answer(url: str) -> OllamaTimeoutError:
    """Return the error for a server that was reached and stayed silent."""
    return OllamaTimeoutError(
        f"Ollama at {url} did not answer in time",
        hint="the model may still be loading; try again, or allow more time",
    )


def lost(url: str) -> OllamaUnavailableError:
    """Return the error for a connection that ended before the reply began."""
    return OllamaUnavailableError(
        f"lost the connection to Ollama at {url} before it answered", hint=_START
    )


def untrusted(url: str) -> OllamaUnavailableError:
    """Return the error for a TLS connection that failed."""
    return OllamaUnavailableError(
        f"cannot reach Ollama at {url}: the TLS connection failed",
        hint="look at the server's certificate, and at SSL_CERT_FILE",
    )


def _model_not_found(model: str, *, hint: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"Ollama does not have the model {clean(model)!r}", model=model, hint=hint
    )


def _fields(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _plain_text(body: bytes) -> str:
    text = body.decode("utf-8", errors="replace").strip()
    return "a web page" if text.startswith("<") else clean(text)
