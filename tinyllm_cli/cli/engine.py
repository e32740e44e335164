"""Who answers: Ollama, the embedded model, or the embedded model because no Ollama is there.

Nothing of the embedded engine is loaded for a user who has never had an answer from it.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from .. import config
from ..cache import Found, ResponseCache
from ..client import CachedOllamaClient
from ..errors import ConfigError, OllamaUnavailableError
from ..metrics import CacheMetrics
from ..model_name import canonical_model
from ..reply import Question
from ..request import GenerateRequest
from . import session
from .terminal import is_terminal, say

if TYPE_CHECKING:
    from ..embedded.client import EmbeddedClient

__all__ = [
    "StandIn",
    "bring_weights",
    "found_by_stand_in",
    "stand_in_after",
    "stand_in_for_pull",
]

_HOST = "embedded:"
_TINY_BYTES = 1 << 30
_INSTALL = "pip install 'tinyllm-cli[embedded]'"


class StandIn(NamedTuple):
    """The embedded model in Ollama's place: whom to ask, and what."""

    client: CachedOllamaClient
    request: GenerateRequest


def found_by_stand_in(
    settings: config.Settings, cache: ResponseCache, question: Question, *, quiet: bool
) -> tuple[StandIn, Question, Found] | None:
    """Look up, after a miss, what the embedded model answered to the same question; asks nobody.

    Only for a user of whom no answer of Ollama is known: else a better model's turn would be taken
    by a small one's old answer.
    """
    if question.digest is not None or not _may_stand_in(settings):
        return None
    if settings.embedded_model is None and not cache.known_digest(
        _HOST, canonical_model(config.EMBEDDED_MODEL)
    ):
        return None
    other = _stand_in(settings, cache, question.request)
    if other is None:
        return None
    renamed = other.client.question(other.request, question.sample)
    found = cache.look_up_nowait(renamed.key, renamed.model, again=True)
    if found is None:
        return None
    # one request, one look-up: the miss of the one model becomes a look-up of the other
    cache.count(question.model, CacheMetrics(misses=-1))
    cache.count(renamed.model, CacheMetrics(misses=1))
    if not quiet:
        say(f"tinyllm: a stored answer of {_introduced(other)}; --refresh asks Ollama first")
    return other, renamed, found


async def stand_in_after(
    exc: OllamaUnavailableError,
    settings: config.Settings,
    client: CachedOllamaClient,
    request: GenerateRequest,
    *,
    refresh: bool,
    quiet: bool,
) -> StandIn:
    """Return who answers because Ollama does not; raises the error, with what helps, if nobody may."""
    if settings.engine != "auto":
        raise exc
    installed = _is_installed()
    if not installed or not _may_stand_in(settings):
        _raise_with_hint(exc, installed)
    if await client.check_health():
        raise exc  # it is there: it failed this request, and would not be missed by others
    other = _stand_in(settings, client.cache, request)
    if other is None:
        raise exc
    if client.cacheable(request):
        counter = "refreshed" if refresh else "misses"
        client.cache.count(request.model, CacheMetrics(**{counter: -1}))
    if not quiet:
        say(f"tinyllm: no Ollama at {client.client.host}; answering with {_introduced(other)}")
    return other


def stand_in_for_pull(
    exc: OllamaUnavailableError, settings: config.Settings, client: CachedOllamaClient, model: str
) -> CachedOllamaClient:
    """Return who can fetch a model because Ollama is not there; raises the error if nobody can."""
    if settings.engine != "auto":
        raise exc
    installed = _is_installed()
    if not installed or "host" in settings.origins:
        _raise_with_hint(exc, installed)
    upstream = session.embedded_upstream(settings)
    if upstream.shelf.find(model) is None:
        raise exc
    return session.cached(settings, client.cache, upstream)


async def bring_weights(client: CachedOllamaClient, model: str, *, quiet: bool) -> None:
    """Fetch the weights of an embedded model if they are missing, in sight of the user."""
    missing = getattr(client.client, "missing", None)
    why = None if missing is None else await missing(model)
    if why is None:
        return
    if not quiet and is_terminal(sys.stderr):
        from .render import pull_progress

        with pull_progress(model) as show:
            await client.client.pull_model(model, show)
        return
    if not quiet and await client.client.check_health():
        again = " again, they are damaged" if why == "damaged" else ", once"
        say(f"tinyllm: fetching the weights of {model}{again}")
    await client.client.pull_model(model)


def _introduced(other: StandIn) -> str:
    """Return the model's name and, unless the user chose a large one, how little it can."""
    model = other.request.model
    own = other.client.client.shelf.find(model)
    large = own is not None and own.path.is_file() and own.path.stat().st_size > _TINY_BYTES
    return model if large else f"{model}, a tiny model that is often wrong"


def _is_installed() -> bool:
    # asked here and not of the client, whose module only those need who have the extra
    return find_spec("xllamacpp") is not None


def _may_stand_in(settings: config.Settings) -> bool:
    """Say whether the user left it to us who answers."""
    return settings.engine == "auto" and not {"model", "host"} & settings.origins.keys()


def _stand_in(
    settings: config.Settings, cache: ResponseCache, request: GenerateRequest
) -> StandIn | None:
    upstream: EmbeddedClient = session.embedded_upstream(settings)
    renamed = request.replace(model=upstream.default_model)
    try:
        upstream.check(renamed)
    except ConfigError:  # nobody asked for this engine: what it lacks is not the user's mistake
        return None
    return StandIn(session.cached(settings, cache, upstream), renamed)


def _raise_with_hint(exc: OllamaUnavailableError, installed: bool) -> NoReturn:
    tiny = "--engine embedded" if installed else _INSTALL
    raise OllamaUnavailableError(
        str(exc), hint=f"{exc.hint or 'start it with `ollama serve`'}; or {tiny} for a tiny model"
    ) from exc
