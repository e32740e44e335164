"""When a stored answer may serve, and which answers are worth storing. Pure: no clock, no I/O."""

from __future__ import annotations

import math
from typing import NamedTuple

from .entry import CacheEntry
from .errors import ConfigError
from .request import GenerateRequest
from .response import GenerateResponse

__all__ = [
    "DEFAULT_TTL_S",
    "EXPIRED",
    "FRESH",
    "MAX_TTL_S",
    "RENEW_EARLY",
    "SPARE",
    "STALE",
    "Freshness",
    "checked_freshness",
    "checked_speed",
    "checked_ttl",
    "is_deterministic",
    "look",
    "why_not_stored",
]

DEFAULT_TTL_S = 3600
MAX_TTL_S = (
    10_000_000_000  # over three centuries; what Redis takes in milliseconds without overflow
)

# None: a client that does not report reasons. The other reasons (load, unload, "", anything new)
# belong to replies that are not answers, or to answers cut by something nobody named.
_FINISHED = frozenset({None, "stop", "length"})


# What a look at a stored answer can come to.
FRESH = "fresh"
RENEW_EARLY = "renew early"  # fresh, but chosen to be renewed before everybody needs it
STALE = "stale"  # past its TTL, may serve while it is renewed
SPARE = "spare"  # past its TTL, may serve if the model cannot be reached
EXPIRED = "expired"


class Freshness(NamedTuple):
    """How long past its TTL an answer may still serve, in seconds; all 0 = not at all.

    `stale_while_revalidate`: at once, renewed behind. `stale_if_error`: when the model cannot be
    reached. (RFC 5861 defines both.) `beta` above 0 renews answers early now and then, so that a
    popular one is not missed by everybody at once; 1.0 is the optimum of Vattani, Chierichetti and
    Lowenstein, "Optimal Probabilistic Cache Stampede Prevention" (VLDB 2015).
    """

    stale_while_revalidate: float = 0.0
    stale_if_error: float = 0.0
    beta: float = 0.0

    @property
    def grace(self) -> float:
        """How long past its TTL an answer has to be kept."""
        return max(self.stale_while_revalidate, self.stale_if_error)


def look(entry: CacheEntry, now: float, freshness: Freshness, chance: float) -> str:
    """Return what an entry is good for; `chance` is a random number, above 0 and at most 1.

    Expired means age >= TTL. The early renewal weighs what the answer took to produce: it is due
    when `seconds * beta * -ln(chance)` reaches the time that is left.
    """
    if entry.comes_from_the_future(now):
        return EXPIRED
    if entry.ttl is None:
        return FRESH
    past = now - entry.created_at - entry.ttl
    if past < 0:
        early = entry.seconds * freshness.beta * -math.log(chance)
        return RENEW_EARLY if freshness.beta and early >= -past else FRESH
    if past < freshness.stale_while_revalidate:
        return STALE
    if past < freshness.stale_if_error:
        return SPARE
    return EXPIRED


def is_deterministic(request: GenerateRequest) -> bool:
    """Say whether the request asks for the one answer the model gives each time.

    That is a temperature of 0, a top_k of 1 or a seed of 0 or more. Where the request leaves the
    temperature to the model, nobody here knows it, so it does not count.
    """
    options = request.body().get("options", {})
    seed = options.get("seed")
    return (
        _is_number(options.get("temperature"), 0)
        or _is_number(options.get("top_k"), 1)
        or (isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0)
    )


def _is_number(value: object, wanted: int) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == wanted


def checked_freshness(
    stale_while_revalidate: float = 0.0, stale_if_error: float = 0.0, beta: float = 0.0
) -> Freshness:
    """Return the three as given; raises ConfigError unless each is a finite number, 0 or more."""
    for name, value in (
        ("stale_while_revalidate", stale_while_revalidate),
        ("stale_if_error", stale_if_error),
        ("beta", beta),
    ):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"{name} is a number, not {type(value).__name__}")
        if not 0 <= value <= MAX_TTL_S:
            raise ConfigError(f"{name} of {_shown(value)} makes no sense", hint="give 0 or more")
    return Freshness(stale_while_revalidate, stale_if_error, beta)


def checked_speed(speed: float) -> float:
    """Return a replay speed as given; raises ConfigError unless it is a finite number above 0."""
    if isinstance(speed, bool) or not isinstance(speed, (int, float)):
        raise ConfigError(f"a replay speed is a number, not {type(speed).__name__}")
    if not (math.isfinite(speed) and speed > 0):
        raise ConfigError(
            f"a replay speed of {speed} makes no sense", hint="give 1 for the pace it was made at"
        )
    return speed


def checked_ttl(ttl: float | None) -> float | None:
    """Return a time to live as given: seconds above 0, or None = never expires.

    Raises ConfigError (a ValueError) for 0, negative, infinite, NaN or not a number.
    """
    if ttl is None:
        return None
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)):
        raise ConfigError(f"a TTL is a number of seconds or None, not {type(ttl).__name__}")
    if not 0 < ttl <= MAX_TTL_S:
        raise ConfigError(
            f"a TTL of {_shown(ttl)} seconds makes no sense",
            hint="give seconds above 0, or None for ever",
        )
    return ttl


def _shown(number: float) -> str:
    try:
        return f"{number:.6g}"
    except OverflowError:
        return "more than a number holds"


def why_not_stored(response: GenerateResponse, *, cloud: bool = False) -> str | None:
    """Return why an answer must not be stored, or None if it may be.

    Stored are complete answers only: the final chunk seen, ended by the model or by the token
    limit, and not empty. An answer of a model that runs elsewhere has no digest to vouch for it;
    `cloud` stores it all the same.
    """
    if not response.done:
        return "the answer is not complete"
    if response.done_reason not in _FINISHED:
        return f"the answer ended for another reason ({response.done_reason or 'none given'})"
    if not (response.response or response.thinking or response.tool_calls):
        return "the answer is empty"
    if not cloud and (response.remote_model or response.remote_host):
        return "the model runs in the cloud"
    return None
