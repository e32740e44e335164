"""What do the chunks of a streamed answer say together?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import IncompleteAnswerError
from ..response import GenerateResponse

__all__ = ["assemble"]


def assemble(chunks: Sequence[GenerateResponse]) -> GenerateResponse:
    """Return the one answer that the chunks are the pieces of, as Ollama's own unstreamed form.

    Text, thinking, tool calls and log probabilities are those of all chunks, the last one's among
    them; every other field is the last one's. Raises IncompleteAnswerError if there is no chunk.
    """
    if not chunks:
        raise IncompleteAnswerError("the answer has no beginning and no end")
    thoughts = [chunk.thinking for chunk in chunks if chunk.thinking is not None]
    return chunks[-1].replace(
        response="".join(chunk.response for chunk in chunks),
        thinking="".join(thoughts) if thoughts else None,
        tool_calls=_joined([chunk.tool_calls for chunk in chunks]),
        logprobs=_joined([chunk.logprobs for chunk in chunks]),
    )


def _joined(
    parts: Sequence[Sequence[Mapping[str, Any]] | None],
) -> list[Mapping[str, Any]] | None:
    given = [part for part in parts if part is not None]
    return [item for part in given for item in part] if given else None
