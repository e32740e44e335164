"""What does a test see and script? The state shared by the test's thread and the server's."""

import asyncio
import json
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .faults import Fault
from .models import Model, ModelStore, parse_name
from .reply import Obj

DEFAULT_MODELS = ("llama3.2:latest", "qwen2.5:0.5b")
REGISTRY = {"smollm2:135m": "w1", "qwen2.5:0.5b": "w1", "llama3.2:latest": "w1"}


@dataclass(eq=False, slots=True)
class Logged:
    """One request as it arrived, and what became of it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    target: str = ""
    at: float = field(default_factory=time.monotonic)
    status: int = 0
    lines_sent: int = 0
    """Packets of a streamed body so far: one per line, unless a fault cuts or packs them."""
    finished: bool = False
    client_closed: bool = False
    client_port: int = 0

    def json(self) -> Any:
        return json.loads(self.body)


class Barrier:
    """Keeps requests waiting until the test lets them go."""

    def __init__(self, changed: threading.Condition, times: int | None) -> None:
        self._changed = changed
        self._left = times
        self._open = False
        self._waiting: set[asyncio.Future[None]] = set()

    @property
    def held(self) -> int:
        return len(self._waiting)

    def wait_for(self, n: int, timeout: float = 10) -> None:
        """Return once *n* requests are held; AssertionError when they are not in time."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.held >= n, timeout):
                raise AssertionError(f"{self.held} of {n} requests held after {timeout} s")

    def release(self) -> None:
        """Let everything go, now and later."""
        with self._changed:
            self._open = True
            waiting = list(self._waiting)
        for future in waiting:
            try:
                future.get_loop().call_soon_threadsafe(_let_go, future)
            except RuntimeError:  # the server has stopped since
                continue

    async def pass_through(self) -> None:
        with self._changed:
            if self._open or self._left == 0:
                return
            if self._left is not None:
                self._left -= 1
            future = asyncio.get_running_loop().create_future()
            self._waiting.add(future)
            self._changed.notify_all()
        try:
            await future
        finally:
            with self._changed:
                self._waiting.discard(future)
                self._changed.notify_all()


def _let_go(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class World:
    """Models, scripts and records of one fake server."""

    def __init__(self, models: Iterable[str]) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.models = ModelStore()
        self.registry = dict(REGISTRY)
        self.log: list[Logged] = []
        self.generations = 0
        self.version = "0.33.0"
        self.token_delay = 0.0
        self.drift = False
        self.check_hosts = False
        self.answer: Callable[[Obj], str] | None = None
        self.chunks: list[Obj] | None = None
        self.tool_calls: list[Obj] | None = None
        self._faults: dict[str, deque[tuple[Fault, int | None]]] = defaultdict(deque)
        self._barriers: dict[str, list[tuple[int | None, Barrier]]] = defaultdict(list)
        for name in models or DEFAULT_MODELS:
            self.add_model(name)

    # The models.

    def add_model(
        self,
        name: str,
        weights: str = "w1",
        *,
        system: str = "",
        template: str = "",
        parameters: Mapping[str, Any] | None = None,
        messages: Sequence[Obj] = (),
        capabilities: Sequence[str] = ("completion",),
        renderer: str = "",
        remote_host: str = "",
        remote_model: str = "",
    ) -> str:
        """Install a model, or another in its place, and return the digest."""
        parsed = parse_name(name)
        if parsed is None:
            raise ValueError(f"{name!r} is no model name")
        with self.changed:
            model = self.models.put(
                Model(
                    parsed,
                    weights,
                    system=system,
                    template=template,
                    parameters=dict(parameters or {}),
                    messages=tuple(messages),
                    capabilities=tuple(capabilities),
                    renderer=renderer,
                    remote_host=remote_host,
                    remote_model=remote_model,
                )
            )
            self.changed.notify_all()
        return model.digest

    def repull(self, name: str, weights: str) -> str:
        """Pull a model again, with other weights or the same, and return the digest."""
        with self.changed:
            model = self.models.change(self.models.require(name), weights=weights)
            self.changed.notify_all()
        return model.digest

    def create(
        self,
        name: str,
        from_: str,
        *,
        system: str | None = None,
        template: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        messages: Sequence[Obj] | None = None,
    ) -> str:
        """Derive a model as ``ollama create`` does, and return the digest."""
        parsed = parse_name(name)
        if parsed is None:
            raise ValueError(f"{name!r} is no model name")
        with self.changed:
            base = self.models.require(from_)
            model = self.models.change(
                base,
                name=parsed,
                system=base.system if system is None else system,
                template=base.template if template is None else template,
                parameters={**base.parameters, **(parameters or {})},
                messages=base.messages if messages is None else tuple(messages),
            )
            self.changed.notify_all()
        return model.digest

    def copy(self, source: str, destination: str) -> str:
        return self.create(destination, source)

    def delete(self, name: str) -> None:
        with self.changed:
            self.models.remove(name)
            self.changed.notify_all()

    def digest(self, name: str) -> str:
        """Return the digest of a model in hex, without a prefix."""
        return self.models.require(name).digest

    # The scripts.

    def inject(self, *faults: Fault, path: str = "/api/generate", times: int | None = 1) -> None:
        """Break the next requests of *path*: each fault *times* times (None: from now on)."""
        with self.changed:
            self._faults[path].extend((fault, times) for fault in faults)

    def clear_faults(self) -> None:
        with self.changed:
            self._faults.clear()

    def hold(self, path: str = "/api/generate", *, times: int | None = None) -> Barrier:
        """Keep requests of *path* waiting before their first byte (None: all of them)."""
        return self._add_barrier(path, None, times)

    def hold_after(
        self, chunks: int, path: str = "/api/generate", *, times: int | None = None
    ) -> Barrier:
        """Keep answers of *path* waiting once they have sent *chunks* chunks."""
        return self._add_barrier(path, chunks, times)

    def _add_barrier(self, path: str, after: int | None, times: int | None) -> Barrier:
        barrier = Barrier(self.changed, times)
        with self.changed:
            self._barriers[path].append((after, barrier))
        return barrier

    def take_fault(self, path: str) -> Fault | None:
        with self.changed:
            queue = self._faults.get(path)
            if not queue:
                return None
            fault, left = queue[0]
            if left is None:
                return fault
            if left <= 1:
                queue.popleft()
            else:
                queue[0] = (fault, left - 1)
            return fault

    def barriers(self, path: str, after: int | None) -> list[Barrier]:
        return [barrier for at, barrier in self._barriers.get(path, ()) if at == after]

    def later_barriers(self, path: str) -> list[Barrier]:
        """Return the barriers inside an answer: one that comes in one piece waits at each."""
        return [barrier for at, barrier in self._barriers.get(path, ()) if at is not None]

    def release_all(self) -> None:
        """Forget every barrier, so that a stopped server holds nobody."""
        for barriers in self._barriers.values():
            for _, barrier in barriers:
                barrier.release()
        self._barriers.clear()

    # The records.

    def requests(self, path: str) -> list[Logged]:
        """Return the requests of *path* so far, oldest first."""
        return [logged for logged in list(self.log) if logged.path == path]

    def record(self, logged: Logged) -> None:
        with self.changed:
            self.log.append(logged)
            self.changed.notify_all()

    def count_generation(self) -> int:
        with self.changed:
            self.generations += 1
            self.changed.notify_all()
            return self.generations

    def notify(self) -> None:
        with self.changed:
            self.changed.notify_all()
