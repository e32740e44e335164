"""`tinyllm pull`: have a model ready before it is asked."""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping
from typing import Any

from .. import config
from ..client import CachedOllamaClient
from ..errors import OllamaUnavailableError
from . import session
from .ask import run_until_signal
from .engine import stand_in_for_pull
from .exit_codes import ExitCode
from .terminal import is_terminal, say

__all__ = ["execute"]


def execute(flags: Mapping[str, Any], model: str, *, quiet: bool = False) -> int:
    """Fetch one model; return the exit code. Raises TinyLLMError for everything that goes wrong."""
    gc.enable()
    settings = session.load_settings(flags, quiet=quiet)
    cache = session.open_cache(settings, session.StoreVoice(quiet=quiet))
    return run_until_signal(_pull(settings, session.open_client(settings, cache), model, quiet))


async def _pull(
    settings: config.Settings, client: CachedOllamaClient, model: str, quiet: bool
) -> int:
    try:
        try:
            await _show_pull(client, model, quiet)
        except OllamaUnavailableError as exc:
            other = stand_in_for_pull(exc, settings, client, model)
            await _show_pull(other, model, quiet)
    finally:
        await client.close()
    if not quiet:
        say(f"tinyllm: {model} is ready")
    return ExitCode.OK


async def _show_pull(client: CachedOllamaClient, model: str, quiet: bool) -> None:
    if quiet or not is_terminal(sys.stderr):
        await client.pull_model(model)
        return
    from .render import pull_progress

    with pull_progress(model) as show:
        await client.pull_model(model, show)
