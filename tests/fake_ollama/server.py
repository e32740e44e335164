"""When does the server run? An asyncio loop in a thread of its own, started and stopped at will."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterable
from types import TracebackType

from .connection import Connection
from .world import World

_BACKLOG = 1024


class FakeOllama(World):
    """A fake Ollama on 127.0.0.1. *models* replace the installed ones; port 0 takes a free one."""

    def __init__(self, models: Iterable[str] = (), port: int = 0) -> None:
        super().__init__(models)
        self.port = port
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> "FakeOllama":
        """Listen; after a stop on the same port as before."""
        if self._thread is not None:
            raise RuntimeError("the fake server runs already")
        # Bound here, so that a port in use is the caller's error and the port is known at once.
        listener = socket.create_server(("127.0.0.1", self.port), backlog=_BACKLOG)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._loop = asyncio.SelectorEventLoop()  # for add_reader, on Windows too
        self._main = self._loop.create_task(self._serve(listener))
        self._thread = threading.Thread(
            target=self._run,
            args=(self._loop, self._main, listener),
            name="fake-ollama",
            daemon=True,
        )
        self._thread.start()
        return self

    def stop(self) -> None:
        """End every connection and give the port back; a second stop does nothing."""
        thread, loop, main = self._thread, self._loop, self._main
        if thread is None or loop is None or main is None:
            return
        loop.call_soon_threadsafe(main.cancel)
        thread.join()
        self.release_all()
        self._thread = self._loop = self._main = None

    def __enter__(self) -> "FakeOllama":
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def wait_until(self, predicate: Callable[["FakeOllama"], bool], timeout: float = 10) -> None:
        """Return once *predicate* holds; it is asked again at every change of state."""
        with self.changed:
            if not self.changed.wait_for(lambda: predicate(self), timeout):
                raise AssertionError(f"the fake server did not get there in {timeout} s")

    @staticmethod
    def _run(
        loop: asyncio.AbstractEventLoop, main: "asyncio.Task[None]", listener: socket.socket
    ) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(main)
        except asyncio.CancelledError:
            pass
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            asyncio.set_event_loop(None)
            # A stop before the first turn of the loop leaves nobody else to close it.
            listener.close()
            loop.close()

    async def _serve(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        connections: set[asyncio.Task[None]] = set()

        # not asyncio's server: a stop while that one accepts leaves a connection nobody closes
        def accept() -> None:
            try:
                client, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            client.setblocking(False)
            task = loop.create_task(self._converse(client))
            connections.add(task)
            task.add_done_callback(connections.discard)
            # a task cancelled before its first step closes nothing itself
            task.add_done_callback(lambda _: client.close())

        loop.add_reader(listener, accept)
        try:
            await loop.create_future()
        finally:
            loop.remove_reader(listener)
            listener.close()
            for task in connections:
                task.cancel()
            await asyncio.gather(*connections, return_exceptions=True)
            # Transports close their sockets in callbacks of the next turn of the loop.
            await asyncio.sleep(0)

    async def _converse(self, client: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=client)
        await Connection(self, reader, writer).serve()
