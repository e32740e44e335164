"""What does one client send, and is it still there? HTTP/1.1 over an asyncio stream."""

import asyncio
import contextlib
import socket
import struct

from . import routes
from .delivery import Delivery, Hangup
from .native import Call
from .reply import Reply, error_reply
from .shaping import replacement
from .world import Logged, World

_READ = 262_144
_LONGEST_HEAD = 1_000_000


class Connection:
    """One client's connection, with all its requests."""

    def __init__(
        self, world: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._world = world
        self._reader = reader
        self._writer = writer
        # Holds what arrived while a reply was on the way: watching for the end reads ahead.
        self._inbox = bytearray()
        # drain() then waits until the kernel has everything, so a reset cannot overtake a line.
        writer.transport.set_write_buffer_limits(0)
        # Each line has to leave at once. asyncio does this by itself only for sockets it made.
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def serve(self) -> None:
        """Answer requests until either side ends the connection."""
        try:
            while await self._serve_one():
                pass
        except Hangup as hangup:
            if hangup.reset:
                self._arm_reset()
        except (EOFError, ConnectionError, asyncio.CancelledError):
            # Nobody reads any more, or the server stops: what is still buffered must not hold us.
            self._writer.transport.abort()
        finally:
            await self._close()

    async def _serve_one(self) -> bool:
        try:
            logged = await self._read_request()
        except ValueError:
            reply = error_reply(400, "bad request")
            bad = Logged("", "", {"connection": "close"}, b"")
            await Delivery(self._world, bad, self._writer, None).send(reply)
            return False
        self._world.record(logged)
        await self._answer_while_watching(logged)
        return logged.headers.get("connection", "").lower() != "close"

    async def _answer_while_watching(self, logged: Logged) -> None:
        work = asyncio.create_task(self._answer(logged))
        watch = asyncio.create_task(self._watch())
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ConnectionError("the client has left")
            work.result()
            logged.finished = True
        except ConnectionError:
            logged.client_closed = True
            raise
        finally:
            for task in (work, watch):
                task.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)
            self._world.notify()

    async def _answer(self, logged: Logged) -> None:
        for barrier in self._world.barriers(logged.path, None):
            await barrier.pass_through()
        fault = self._world.take_fault(logged.path)
        reply = replacement(fault) if fault else None
        if reply is None:
            reply = self._routed(Call(self._world, logged, fault))
        await Delivery(self._world, logged, self._writer, fault).send(reply)

    def _routed(self, call: Call) -> Reply:
        try:
            return routes.answer(call)
        except Exception as error:  # noqa: BLE001 - a test's own script may raise anything
            return error_reply(500, f"the fake server failed: {error!r}")

    async def _watch(self) -> None:
        """Return when the client has closed its side."""
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                await self._fill()

    async def _fill(self) -> None:
        data = await self._reader.read(_READ)
        if not data:
            raise EOFError
        self._inbox += data

    async def _read_request(self) -> Logged:
        head = (await self._until(b"\r\n\r\n")).decode("latin-1")
        first, *rest = head.split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers: dict[str, str] = {}
        for line in rest:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        if headers.get("expect", "").lower() == "100-continue":
            self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = await self._chunked()
        else:
            body = await self._exactly(int(headers.get("content-length", 0)))
        port = self._writer.get_extra_info("peername")[1]
        path = target.partition("?")[0]
        return Logged(method, path, headers, body, target, client_port=port)

    async def _chunked(self) -> bytes:
        body = bytearray()
        while size := int((await self._until(b"\r\n")).partition(b";")[0], 16):
            body += await self._exactly(size)
            await self._exactly(2)
        while await self._until(b"\r\n"):
            pass
        return bytes(body)

    async def _until(self, mark: bytes) -> bytes:
        start = 0
        while (end := self._inbox.find(mark, start)) < 0:
            if len(self._inbox) > _LONGEST_HEAD:
                raise ValueError("the head is too long")
            start = max(0, len(self._inbox) - len(mark))
            await self._fill()
        found = bytes(self._inbox[:end])
        del self._inbox[: end + len(mark)]
        return found

    async def _exactly(self, size: int) -> bytes:
        while len(self._inbox) < size:
            await self._fill()
        found = bytes(self._inbox[:size])
        del self._inbox[:size]
        return found

    def _arm_reset(self) -> None:
        # A linger time of zero makes close() send RST instead of FIN.
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def _close(self) -> None:
        try:
            self._writer.close()
            await self._writer.wait_closed()
        except ConnectionError:
            pass
        except asyncio.CancelledError:
            self._writer.transport.abort()
