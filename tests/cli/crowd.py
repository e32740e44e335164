"""Many processes that ask one question at once, for tests of what becomes of them."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

from tests.cli.outcome import finish
from tests.conftest import Finished, Tinyllm
from tests.fake_ollama import FakeOllama

__all__ = ["ANSWER", "Crowd", "assert_all_answered", "crowd_of"]

ANSWER = "one two three four"
Process = subprocess.Popen[bytes]


class Crowd:
    """Processes that ask the same question, ended with the test."""

    def __init__(self, tinyllm: Tinyllm, ollama: FakeOllama) -> None:
        self._tinyllm = tinyllm
        self._ollama = ollama
        self.processes: list[Process] = []

    def ask(self, number: int = 1, *arguments: str, **environ: str) -> list[Process]:
        """Start processes and wait until each has looked in vain and asked for the digest.

        From there each takes its turn: the first asks the model, the others wait for it. On a very
        busy machine one may do without the digest.
        """
        before = len(self._ollama.requests("/api/tags"))
        command = ["run", *arguments, "Count."]
        started = [self._tinyllm.start(*command, environ=environ) for _ in range(number)]
        self.processes += started
        with contextlib.suppress(AssertionError):
            self._ollama.wait_until(
                lambda server: len(server.requests("/api/tags")) >= before + number, timeout=30
            )
        return started

    def finish(self, timeout: float = 60) -> list[Finished]:
        return [finish(process, timeout) for process in self.processes]

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


@contextlib.contextmanager
def crowd_of(tinyllm: Tinyllm, ollama: FakeOllama) -> Iterator[Crowd]:
    """Give a crowd of one user, to whom the model's digest is known and nothing of the question."""
    ollama.answer = lambda body: ANSWER
    crowd = Crowd(tinyllm, ollama)
    assert tinyllm("run", "Something else").code == 0
    ollama.generations = 0
    ollama.log.clear()
    try:
        yield crowd
    finally:
        crowd.end()


def assert_all_answered(done: list[Finished]) -> None:
    for one in done:
        assert (one.code, one.text, one.complaint) == (0, f"{ANSWER}\n", "")
