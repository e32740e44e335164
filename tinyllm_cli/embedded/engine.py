"""What an engine is to the rest of the package: the seam at which another could be put in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Emit", "Ending", "Engine", "EngineError", "Order"]

#: Takes a piece of text and a piece of thinking; one of the two may be "".
Emit = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Order:
    """One generation: what to continue, and how.

    `messages` go through the model's own chat template; without them `prompt` is continued as it
    is. `schema` None leaves the form of the answer free. `limit` None writes until the model or
    the context ends. `sampling` holds Ollama's option names.
    """

    messages: list[dict[str, str]] | None
    prompt: str
    schema: dict[str, Any] | None
    limit: int | None
    stop: list[str]
    sampling: dict[str, float]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a generation ended: "stop", "length" or "" for any other reason; durations in ns."""

    reason: str
    prompt_tokens: int
    prompt_ns: int
    tokens: int
    tokens_ns: int


class EngineError(Exception):
    """The engine cannot do what was asked; `status` is what HTTP would say, `hint` what helps."""

    def __init__(self, reason: str, *, status: int = 500, hint: str | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.hint = hint


class Engine(Protocol):
    """Answers with one file of weights at a time; used by one thread."""

    def load(self, path: str, num_ctx: int) -> None:
        """Make a file of weights ready, with room for `num_ctx` tokens; raises EngineError."""

    def generate(self, order: Order, emit: Emit) -> Ending:
        """Answer, giving the pieces to `emit` as they come; raises EngineError."""
