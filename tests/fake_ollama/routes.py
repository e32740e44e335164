"""Which handler serves a request, and what do the others get?"""

import posixpath
from collections.abc import Callable
from urllib.parse import unquote

from . import access, embed, library, native, openai
from .native import Call
from .reply import ApiError, Reply, error_reply, text_reply

Handler = Callable[[Call], Reply]


def _root(call: Call) -> Reply:
    return text_reply(200, "Ollama is running")


def _version(call: Call) -> Reply:
    return call.whole({"version": call.world.version})


_ROUTES: dict[str, dict[str, Handler]] = {
    "/": {"GET": _root, "HEAD": _root},
    "/api/version": {"GET": _version, "HEAD": _version},
    "/api/tags": {"GET": library.tags, "HEAD": library.tags},
    "/api/ps": {"GET": library.ps},
    "/api/show": {"POST": library.show},
    "/api/generate": {"POST": native.generate},
    "/api/chat": {"POST": native.chat},
    "/api/embed": {"POST": embed.embed},
    "/api/embeddings": {"POST": embed.embeddings},
    "/api/pull": {"POST": library.pull},
    "/api/create": {"POST": library.create},
    "/api/copy": {"POST": library.copy},
    "/api/delete": {"DELETE": library.delete},
    "/v1/chat/completions": {"POST": openai.chat_completions},
    "/v1/completions": {"POST": openai.completions},
    "/v1/embeddings": {"POST": openai.embeddings},
    "/v1/models": {"GET": openai.models},
}
_ONE_MODEL = "/v1/models/"


def answer(call: Call) -> Reply:
    """Return the reply to a request; errors become replies of the right shape here."""
    logged = call.logged
    if refusal := access.refuse(call.world, logged):
        return refusal
    clean = _clean(logged.path)
    if clean != logged.path:
        return Reply(307, "", headers=[("Location", clean)])
    try:
        if logged.path.startswith(_ONE_MODEL) and logged.method == "GET":
            return openai.one_model(call, unquote(logged.path.removeprefix(_ONE_MODEL)))
        methods = _ROUTES.get(logged.path)
        if methods is None:
            return text_reply(404, "404 page not found", "text/plain")
        handler = methods.get(logged.method)
        if handler is None:
            return text_reply(405, "405 method not allowed", "text/plain")
        return handler(call)
    except ApiError as error:
        if logged.path.startswith("/v1/"):
            return openai.error_reply(error)
        return error_reply(error.status, error.message, **error.extra)


def _clean(path: str) -> str:
    cleaned = posixpath.normpath(path)
    # normpath keeps two leading slashes, as POSIX gives them a meaning. HTTP does not.
    cleaned = "/" + cleaned.lstrip("/")
    return cleaned + "/" if path.endswith("/") and cleaned != "/" else cleaned
