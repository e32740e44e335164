"""How do the bytes of one reply reach the client, whole or broken?"""

import asyncio
from collections.abc import Iterator
from email.utils import formatdate
from http import HTTPStatus

from .faults import Fault
from .reply import Reply
from .shaping import frame
from .world import Logged, World

# A flood of small writes never blocks on a fast client; other requests get a turn this often.
_TURN = 16


class Hangup(Exception):
    """The connection ends here: after the bytes written so far, or with a reset."""

    def __init__(self, *, reset: bool = False) -> None:
        super().__init__("reset" if reset else "close")
        self.reset = reset


class Delivery:
    """Sends one reply over one connection."""

    def __init__(
        self, world: World, logged: Logged, writer: asyncio.StreamWriter, fault: Fault | None
    ) -> None:
        self._world = world
        self._logged = logged
        self._writer = writer
        self._fault = fault or Fault("none")

    async def send(self, reply: Reply) -> None:
        """Send *reply*; raises Hangup when the connection must not be used again."""
        self._logged.status = reply.status
        await self._before_headers()
        if reply.lines is None:
            await self._send_whole(reply)
        elif self._fault.kind == "wrong_length":
            await self._send_wrong_length(reply, b"".join(reply.lines))
        else:
            await self._send_stream(reply, reply.lines)

    async def _before_headers(self) -> None:
        match self._fault.kind:
            case "raw_bytes":
                await self._write(self._fault.data)
                raise Hangup
            case "stall_headers":
                await _for_ever()
            case "delay":
                await asyncio.sleep(self._fault.seconds)
            case "header_drip":
                await self._drip()

    async def _drip(self) -> None:
        for byte in _endless_header():
            await self._write(byte)
            await asyncio.sleep(self._fault.seconds)

    async def _send_whole(self, reply: Reply) -> None:
        await asyncio.sleep(reply.pause)
        for barrier in self._world.later_barriers(self._logged.path):
            await barrier.pass_through()
        self._flip(sent=None)
        packets = self._whole_packets(reply.body)
        body = b"".join(packets)
        if self._fault.kind == "wrong_length":
            await self._send_wrong_length(reply, body)
        await self._write_head(reply, [("Content-Length", str(len(body)))])
        if self._logged.method == "HEAD":
            return
        if self._fault.kind in ("cut", "reset", "stall"):
            await self._write(body[: len(body) // 2])
            await self._strike()
        for packet in packets:
            await self._write(packet)
            if len(packets) > 1:
                await asyncio.sleep(0)
        if self._fault.kind == "keep_open":
            await _for_ever()

    def _whole_packets(self, body: bytes) -> list[bytes]:
        match self._fault.kind:
            case "malformed":
                return [self._fault.data]
            case "half_line":
                return [body[: len(body) // 2]]
            case "crlf" | "blank_lines":
                return [b"\r\n" if self._fault.kind == "crlf" else b"\n\n", body, b"\r\n"]
            case "after_done":
                return [body, *list(frame(self._fault, ()))]
        return list(frame(self._fault, [body])) if body else []

    async def _send_stream(self, reply: Reply, lines: Iterator[bytes]) -> None:
        await self._write_head(reply, [("Transfer-Encoding", "chunked")])
        if self._logged.method == "HEAD":
            return
        sent = 0
        source = self._halved(lines) if self._fault.kind == "half_line" else lines
        for packet in frame(self._fault, source):
            # Before the first packet there was nothing to wait after.
            if sent and self._world.token_delay:
                await asyncio.sleep(self._world.token_delay)
            await self._between(sent)
            await self._write(b"%x\r\n%b\r\n" % (len(packet), packet))
            sent += 1
            self._logged.lines_sent = sent
            self._world.notify()
            if sent % _TURN == 0 or self._fault.kind == "split_utf8":
                await asyncio.sleep(0)
        await self._between(sent, ended=True)
        if self._fault.kind == "keep_open":
            await _for_ever()
        if self._fault.kind == "half_line" and not self._fault.flag:
            raise Hangup
        await self._write(b"0\r\n\r\n")

    async def _between(self, sent: int, *, ended: bool = False) -> None:
        """Do what is due once *sent* packets are out; what never came due happens at the end."""
        for barrier in self._world.barriers(self._logged.path, sent):
            await barrier.pass_through()
        self._flip(sent)
        due = sent == self._fault.after or (ended and sent < self._fault.after)
        if due and self._fault.kind in ("cut", "reset", "stall"):
            await self._strike()

    async def _strike(self) -> None:
        if self._fault.kind == "stall":
            await _for_ever()
        raise Hangup(reset=self._fault.kind == "reset")

    def _flip(self, sent: int | None) -> None:
        fault = self._fault
        if fault.kind == "flip_digest" and (sent is None or sent == fault.after):
            self._world.repull(fault.text, fault.value)

    def _halved(self, lines: Iterator[bytes]) -> Iterator[bytes]:
        for index, line in enumerate(lines):
            if index == self._fault.after:
                yield line[: len(line) // 2]
                return
            yield line

    async def _send_wrong_length(self, reply: Reply, body: bytes) -> None:
        claimed = max(0, len(body) + self._fault.number)
        await self._write_head(reply, [("Content-Length", str(claimed))])
        await self._write(body)
        raise Hangup

    async def _write_head(self, reply: Reply, framing: list[tuple[str, str]]) -> None:
        headers = [("Date", formatdate(usegmt=True)), *reply.headers, *framing]
        if reply.content_type and self._fault.kind != "no_content_type":
            headers.insert(0, ("Content-Type", reply.content_type))
        if self._fault.kind == "gzip":
            headers.append(("Content-Encoding", "gzip"))
        if self._logged.headers.get("connection", "").lower() == "close":
            headers.append(("Connection", "close"))
        lines = [f"HTTP/1.1 {reply.status} {_phrase(reply.status)}"]
        lines += [f"{name}: {value}" for name, value in headers]
        await self._write("\r\n".join([*lines, "", ""]).encode("latin-1"))

    async def _write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def _endless_header() -> Iterator[bytes]:
    for byte in b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nX-Drip: ":
        yield bytes([byte])
    while True:
        yield b"a"


async def _for_ever() -> None:
    """Wait until the client leaves or the server stops: both cancel the task."""
    await asyncio.get_running_loop().create_future()
