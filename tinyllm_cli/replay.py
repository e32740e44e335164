"""How a streamed answer is remembered and given back as it came. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .entry import CacheEntry, Chunk
from .response import GenerateResponse

__all__ = ["measure", "pauses", "replay"]


def measure(pieces: Sequence[tuple[GenerateResponse, float]]) -> list[Chunk]:
    """Return the size of each piece and when it came; `pieces` are chunks and seconds since asking."""
    return [
        (
            len(piece.response),
            len(piece.thinking or ""),
            len(piece.logprobs or ()),
            round(at * 1000),
        )
        for piece, at in pieces
    ]


def pauses(entry: CacheEntry, speed: float) -> Iterator[float]:
    """Yield the seconds to wait before each chunk of `replay`; `speed` 1.0 is as it once came.

    An answer that came whole has no pace and is not held up.
    """
    last = 0
    for *_, at in entry.chunks or ((0, 0), (0, 0)):
        yield max(0, at - last) / 1000 / speed
        last = max(last, at)


def replay(entry: CacheEntry, model: str) -> Iterator[GenerateResponse]:
    """Yield the chunks of a stored answer, under the model's name as it is spelled now.

    An answer that came whole is given as one chunk of text and the final chunk. The final chunk is
    the one with `done` and carries the counts, as the server's does.
    """
    whole = entry.response
    text = thinking = logprobs = 0
    chunks = entry.chunks or [
        (len(whole.response), len(whole.thinking or ""), len(whole.logprobs or ()), 0),
        (0, 0, 0, 0),
    ]
    final = len(chunks) - 1
    rest = max(len(whole.response), len(whole.thinking or ""), len(whole.logprobs or ()))
    for number, (text_len, thinking_len, logprobs_len, _) in enumerate(chunks):
        if number == final:  # whatever is left, so that no record of pieces can shorten an answer
            text_len = thinking_len = logprobs_len = rest
        part = GenerateResponse(
            model=model,
            created_at=whole.created_at,
            response=whole.response[text : text + text_len],
            done=False,
            thinking=(whole.thinking or "")[thinking : thinking + thinking_len] or None,
            logprobs=(whole.logprobs or ())[logprobs : logprobs + logprobs_len] or None,
        )
        text, thinking, logprobs = text + text_len, thinking + thinking_len, logprobs + logprobs_len
        if number == final:
            part = whole.replace(
                model=model, response=part.response, thinking=part.thinking, logprobs=part.logprobs
            )
        yield part
