"""What does each endpoint of Ollama take and give? Values of ours on both sides."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from ..errors import ConfigError, IncompleteAnswerError, OllamaProtocolError
from ..response import GenerateResponse
from . import wire
from .http import Body, OllamaHttp
from .ndjson import LineReader, decode_line
from .refusal import error_text, pull_refusal

__all__ = ["OllamaApi"]

_QUICK = 2.0  # seconds for questions whose answer is a help, not a need
# what the tags tell goes into the key: a busy server is given more time to tell it
_TAGS = 5.0


class OllamaApi:
    """Ollama's endpoints over one `OllamaHttp`; each raises the OllamaErrors of its request."""

    def __init__(self, http: OllamaHttp) -> None:
        self._http = http

    async def generate(self, body: Mapping[str, Any]) -> AsyncGenerator[GenerateResponse, None]:
        """Yield the chunks of an answer; the last one is `done`, or IncompleteAnswerError comes."""
        content = _encode({**body, "stream": True})
        model = str(body["model"])
        async with self._http.reply(
            "POST", "/api/generate", content, model=model, slow=True
        ) as reply:
            objects = _Objects(reply, self._http.limits.answer_bytes)
            while (fields := await objects.next()) is not None:
                if fields.get("error"):
                    text = error_text(fields["error"])
                    raise IncompleteAnswerError(f"Ollama broke the answer off: {text}")
                chunk = wire.response(fields)
                yield chunk
                if chunk.done:
                    await reply.drain()
                    return
        raise IncompleteAnswerError("the answer ended before its last chunk")

    async def pull(self, model: str) -> AsyncGenerator[wire.PullLine, None]:
        """Yield what a pull reports, until it says "success"."""
        limits = self._http.limits
        async with self._http.reply(
            "POST",
            "/api/pull",
            _encode({"model": model, "stream": True}),
            model=model,
            slow=True,
            # Checking the bytes of a large model is silent for as long as loading it.
            idle=max(limits.idle, limits.first_byte),
        ) as reply:
            objects = _Objects(reply, None)
            while (fields := await objects.next()) is not None:
                if fields.get("error"):
                    raise pull_refusal(error_text(fields["error"]), model)
                line = wire.pull_line(fields)
                yield line
                if line.status == "success":
                    await reply.drain()
                    return
        raise IncompleteAnswerError("the pull ended before it succeeded")

    async def embed(self, body: Mapping[str, Any], count: int) -> list[list[float]]:
        """Return the `count` vectors for the inputs in *body*."""
        model = str(body["model"])
        return wire.vectors(await self._object("/api/embed", body, model=model, slow=True), count)

    async def show(self, model: str) -> dict[str, Any]:
        """Return all the server says about a model."""
        return wire.shown(await self._object("/api/show", {"model": model}, model=model))

    async def tags(self, *, quick: bool = False) -> list[wire.InstalledModel]:
        """Return the installed models; `quick` gives up after five seconds in all."""
        return wire.installed_models(
            await self._object("/api/tags", budget=_TAGS if quick else None)
        )

    async def version(self) -> str:
        """Return the server's version, within two seconds."""
        return wire.server_version(await self._object("/api/version", budget=_QUICK))

    async def ping(self) -> None:
        """Return if, within two seconds, GET / is answered with 200 and no web page."""
        async with self._http.reply("GET", "/", budget=_QUICK) as reply:
            await reply.next()

    async def close(self) -> None:
        """Close the connections of this event loop."""
        await self._http.close()

    async def _object(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        model: str = "",
        slow: bool = False,
        budget: float | None = None,
    ) -> dict[str, Any]:
        """Return the one JSON object of a reply; GET without a body, POST with one."""
        content = None if body is None else _encode(body)
        method = "GET" if body is None else "POST"
        cap = self._http.limits.answer_bytes
        found = bytearray()
        async with self._http.reply(
            method, path, content, model=model, slow=slow, budget=budget
        ) as reply:
            while (data := await reply.next()) is not None:
                reply.progressed()
                found += data
                if len(found) > cap:
                    raise IncompleteAnswerError(f"the answer is longer than {cap} bytes")
        return decode_line(bytes(found))


class _Objects:
    """The JSON objects of a streamed reply, one at a time."""

    def __init__(self, reply: Body, max_total: int | None) -> None:
        self._reply = reply
        self._reader = LineReader(max_total=max_total)
        self._ready: deque[bytes] = deque()

    async def next(self) -> dict[str, Any] | None:
        """Return the next object, None after the last."""
        while not self._ready:
            data = await self._reply.next()
            if data is None:
                return self._last()
            self._ready.extend(self._reader.feed(data))
            if self._ready:
                self._reply.progressed()
        return decode_line(self._ready.popleft())

    def _last(self) -> dict[str, Any] | None:
        for line in self._reader.end():
            try:
                return decode_line(line)
            except OllamaProtocolError as exc:
                if exc.__cause__ is None:  # it is JSON, and so not a part of a line
                    raise
                raise IncompleteAnswerError("the answer ends in the middle of a line") from exc
        return None


def _encode(body: Mapping[str, Any]) -> bytes:
    """Return the JSON of a request; text goes as it is, so half characters cannot slip through."""
    try:
        text = json.dumps(body, ensure_ascii=False, allow_nan=False, default=_plain)
        return text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise ConfigError("the request holds text that is not valid Unicode") from exc
    except (TypeError, ValueError, RecursionError) as exc:
        raise ConfigError("the request holds a value that JSON cannot express") from exc


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(type(value).__name__)
