"""How is one request made, waited for and given up? The only place that knows httpx.

Whatever httpx, the network or the server does wrong leaves here as an OllamaError. A request has a
connection of its own, closed when its answer ends or is abandoned: no answer can be the rest of
another, and the server learns at once that nobody listens any more.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import httpx

from .._version import __version__
from ..errors import (
    ConfigError,
    IncompleteAnswerError,
    OllamaError,
    OllamaProtocolError,
    OllamaUnavailableError,
)
from .host import is_loopback
from .refusal import (
    clean,
    html_refusal,
    lost,
    no_answer,
    no_connection,
    redirect_refusal,
    refusal,
    unreachable,
    untrusted,
)

__all__ = ["Body", "Limits", "OllamaHttp"]

_BACKOFF = (0.1, 0.5)  # seconds; jittered, so that many clients do not come back together
_PIECE = 1 << 18
_DRAIN = 0.05  # seconds to wait for the end of a body whose answer is already whole
_ERROR_BYTES = 64 * 1024
_ERROR_WAIT = 5.0
_NO_REUSE = httpx.Limits(max_connections=None, max_keepalive_connections=0)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long to wait, in seconds, how much to read, in bytes, and how often to try again."""

    connect: float
    first_byte: float
    idle: float
    answer_bytes: int
    retries: int


class _Pieces:
    """A long body, sent piece by piece, as often as it is asked for: as one, it would be copied whole
    on its way to the socket."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._content), _PIECE):
            yield self._content[start : start + _PIECE]


class Body:
    """The bytes of one reply, none of them awaited longer than its limit allows."""

    def __init__(self, reply: httpx.Response, patience: float, idle: float, url: str) -> None:
        self._raw = reply.aiter_raw()
        self._patience = patience  # seconds left until something must have come
        self._idle = idle
        self._url = url
        self._begun = False

    def progressed(self) -> None:
        """Start the idle limit anew: a piece of the answer is whole."""
        self._patience = self._idle

    async def next(self) -> bytes | None:
        """Return the next bytes, None at the end of the body.

        Raises OllamaTimeoutError while nothing has come, IncompleteAnswerError once something has.
        """
        started = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._patience):
                data = await anext(self._raw, None)
        except TimeoutError as exc:
            raise self._stalled() from exc
        except (httpx.HTTPError, httpx.StreamError, OSError) as exc:
            raise IncompleteAnswerError(
                "the connection to Ollama broke before the answer was whole"
            ) from exc
        self._patience -= asyncio.get_running_loop().time() - started
        if data and not self._begun:
            self._look_at_start(data)
        return data

    async def drain(self) -> None:
        """Read the little that may follow a whole answer, so that the server ends in peace."""
        try:
            async with asyncio.timeout(_DRAIN):
                while await anext(self._raw, None) is not None:
                    pass
        except (TimeoutError, httpx.HTTPError, httpx.StreamError, OSError):
            return

    def _look_at_start(self, data: bytes) -> None:
        text = data.lstrip(b"\xef\xbb\xbf \t\r\n")
        if text.startswith(b"<"):
            raise html_refusal(self._url)
        if text:
            self._begun = True
            self.progressed()

    def _stalled(self) -> OllamaError:
        if self._begun:
            return IncompleteAnswerError(
                f"the answer stopped: nothing more came for {self._idle:g} s"
            )
        return no_answer(self._url)


class OllamaHttp:
    """Requests to one Ollama server; usable from any number of event loops, one after another."""

    def __init__(
        self,
        base_url: str,
        limits: Limits,
        *,
        api_key: str | None = None,
        sleep: Callable[[float], Awaitable[None]] | None = None,
    ) -> None:
        self.limits = limits
        self._base_url = base_url
        self._sleep = sleep or asyncio.sleep
        self._headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": f"tinyllm/{__version__}",
        }
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._clients: dict[asyncio.AbstractEventLoop, httpx.AsyncClient] = {}

    @asynccontextmanager
    async def reply(
        self,
        method: str,
        path: str,
        content: bytes | None = None,
        *,
        model: str = "",
        slow: bool = False,
        idle: float | None = None,
        budget: float | None = None,
    ) -> AsyncIterator[Body]:
        """Send a request and give the body of its reply, once the server has said 200 to it.

        `slow` grants the first byte the time a model takes to load. `idle` None is the usual limit
        between two pieces. `budget` seconds, where given, are for everything, and nothing is tried
        twice. `model` is named in the error where the server does not have it.
        """
        idle = idle or self.limits.idle
        patience = self.limits.first_byte if slow else idle
        request = self._request(method, path, content)
        try:
            async with asyncio.timeout(budget):
                response, left = await self._send(request, patience, retry=budget is None)
                try:
                    await self._check(response, model)
                    yield Body(response, left, idle, self._base_url)
                finally:
                    await response.aclose()
        except TimeoutError as exc:
            raise no_answer(self._base_url) from exc

    async def close(self) -> None:
        """Close what this event loop holds, and forget what loops held that are no more."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()
        self._forget_dead_loops()

    def _request(self, method: str, path: str, content: bytes | None) -> httpx.Request:
        headers = dict(self._headers)
        sent: bytes | _Pieces | None = content
        if content is not None:
            headers["Content-Type"] = "application/json"
            if len(content) > _PIECE:
                headers["Content-Length"] = str(len(content))
                sent = _Pieces(content)
        limits = {"timeout": {"connect": self.limits.connect}}
        url = f"{self._base_url}{path}"
        try:
            return httpx.Request(method, url, headers=headers, content=sent, extensions=limits)
        except httpx.InvalidURL as exc:
            raise ConfigError(f"OLLAMA_HOST is not an address: {self._base_url}") from exc

    async def _send(
        self, request: httpx.Request, patience: float, *, retry: bool
    ) -> tuple[httpx.Response, float]:
        """Return the reply's head and how many seconds its first byte may still take.

        Tried again is only what cannot have begun an answer: no connection, or "busy" (503, once).
        """
        loop = asyncio.get_running_loop()
        connects = self.limits.retries if retry else 0
        busy = min(connects, 1)
        if is_loopback(self._base_url):
            connects = min(connects, 1)  # nothing listens there: it will not in a second either
        while True:
            deadline = loop.time() + patience
            try:
                with _mapped(self._base_url):
                    async with asyncio.timeout_at(deadline):
                        response = await self._client().send(request, stream=True)
            except OllamaUnavailableError as exc:
                if connects <= 0 or not _never_connected(exc):
                    raise
                connects -= 1
            else:
                if response.status_code != 503 or busy <= 0:
                    return response, deadline - loop.time()
                busy -= 1
                await response.aclose()
            await self._sleep(random.uniform(*_BACKOFF))

    async def _check(self, response: httpx.Response, model: str) -> None:
        """Raise what stands between this reply and an answer."""
        status = response.status_code
        encoding = response.headers.get("content-encoding", "").strip().lower()
        encoded = encoding not in ("", "identity")
        if 300 <= status < 400:
            raise redirect_refusal(status, response.headers.get("location", ""))
        if status != 200:
            body = b"" if encoded else await _error_body(response)
            raise refusal(status, body, model=model, url=self._base_url)
        if encoded:  # unpacking may make gigabytes of it
            raise OllamaProtocolError(
                f"Ollama sent a compressed answer ({clean(encoding)}) though none was asked for"
            )
        if response.headers.get("content-type", "").strip().lower().startswith("text/html"):
            raise html_refusal(self._base_url)

    def _client(self) -> httpx.AsyncClient:
        """Return the httpx client of the running loop, which no other loop may use."""
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            self._forget_dead_loops()
            client = self._clients[loop] = _new_client(self._base_url)
        return client

    def _forget_dead_loops(self) -> None:
        # They hold no connection: each is closed with its answer.
        for loop in list(self._clients):
            if loop.is_closed():
                self._clients.pop(loop, None)


def _new_client(base_url: str) -> httpx.AsyncClient:
    try:
        if not is_loopback(base_url):
            return httpx.AsyncClient(limits=_NO_REUSE)
        # A transport of our own is never asked through a proxy. Without TLS no certificates are
        # read, which takes longer than a short answer.
        verify = True if base_url.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        transport = httpx.AsyncHTTPTransport(verify=verify, limits=_NO_REUSE)
        return httpx.AsyncClient(transport=transport, trust_env=False)
    except (ValueError, httpx.InvalidURL, ImportError, OSError) as exc:
        # Not with the text of *exc*: a proxy's URL may hold a password.
        raise ConfigError(
            "the proxy or certificate settings of the environment do not work",
            hint="look at HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE and SSL_CERT_DIR",
        ) from exc


@contextmanager
def _mapped(url: str) -> Iterator[None]:
    """Turn what can go wrong before a reply has a head into an OllamaError."""
    try:
        yield
    except (httpx.ConnectTimeout, httpx.PoolTimeout) as exc:
        raise no_connection(url) from exc
    except (httpx.TimeoutException, TimeoutError) as exc:
        raise no_answer(url) from exc
    except (httpx.ConnectError, httpx.ProxyError) as exc:
        if _is_tls(exc):
            raise untrusted(url) from exc
        raise unreachable(url) from exc
    except (httpx.ProtocolError, httpx.UnsupportedProtocol) as exc:
        if "disconnected" in str(exc):
            raise lost(url) from exc
        raise OllamaProtocolError(f"what answers at {url} does not speak HTTP") from exc
    except (httpx.HTTPError, OSError) as exc:
        raise lost(url) from exc


async def _error_body(response: httpx.Response) -> bytes:
    """Return what a refusal says, as much of it as comes soon; a broken one says less."""
    body = bytearray()
    try:
        async with asyncio.timeout(_ERROR_WAIT):
            async for data in response.aiter_raw():
                body += data
                if len(body) >= _ERROR_BYTES:
                    break
    except (TimeoutError, httpx.HTTPError, httpx.StreamError, OSError):
        pass
    return bytes(body[:_ERROR_BYTES])


def _never_connected(exc: OllamaUnavailableError) -> bool:
    return isinstance(exc.__cause__, httpx.ConnectError) and not _is_tls(exc)


def _is_tls(exc: BaseException | None) -> bool:
    while exc is not None:
        if isinstance(exc, ssl.SSLError):
            return True
        exc = exc.__cause__ or exc.__context__
    return False
