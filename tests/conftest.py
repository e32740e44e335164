"""What every test gets: an environment of its own, a fake Ollama, and the command as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fake_ollama import FakeOllama

COMMAND = [sys.executable, "-m", "tinyllm_cli"]


class Clock:
    """Wall-clock time that moves when a test says so."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass(frozen=True)
class Finished:
    """A command that has ended; `out` and `err` are bytes, as a script would see them."""

    code: int
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def complaint(self) -> str:
        return self.err.decode()


class Tinyllm:
    """Runs `tinyllm` in a process of its own, with a home, cache and config of its own."""

    def __init__(self, home: Path, host: str) -> None:
        self.home = home
        self.cache_dir = home / "cache"
        self.config_dir = home / "config"
        self.environ = {
            **{name: value for name, value in os.environ.items() if not _is_ours(name)},
            "HOME": str(home),
            "TINYLLM_CACHE_DIR": str(self.cache_dir),
            "TINYLLM_CONFIG_DIR": str(self.config_dir),
            "OLLAMA_HOST": host,
            "PYTHONWARNINGS": "error",
            # half a second, the default, is more than a machine full of tests always keeps to
            "TINYLLM_REDIS_TIMEOUT": "20s",
        }

    @property
    def snapshot(self) -> Path:
        return self.cache_dir / "snapshot-v1.sqlite3"

    def __call__(
        self,
        *arguments: str | bytes,
        stdin: bytes | None = None,
        environ: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> Finished:
        """Run the command to its end; `stdin` None is an empty one (/dev/null)."""
        done = subprocess.run(
            [*COMMAND, *arguments],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            env={**self.environ, **(environ or {})},
            cwd=self.home,
            timeout=timeout,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    def start(
        self, *arguments: str, environ: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[bytes]:
        """Start the command; the caller sees to its end."""
        return subprocess.Popen(
            [*COMMAND, *arguments],
            env={**self.environ, **(environ or {})},
            cwd=self.home,
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                # a shell's background job ignores SIGINT; a user's foreground one does not
                "preexec_fn": _restore_sigint,
                **options,
            },
        )


def _restore_sigint() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_ours(name: str) -> bool:
    return (
        name.startswith(("TINYLLM_", "OLLAMA_", "XDG_", "NO_COLOR", "FORCE_COLOR"))
        or name.lower().endswith("_proxy")
        # it would have every one of many hundred processes compile every module anew
        or name == "PYTHONDONTWRITEBYTECODE"
    )


@pytest.fixture(autouse=True)
def clean_environ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the developer's own settings, servers and cache out of every test."""
    for name in [name for name in os.environ if _is_ours(name)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama() as server:
        yield server


@pytest.fixture
def tinyllm(ollama: FakeOllama, tmp_path: Path) -> Tinyllm:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    return Tinyllm(home, ollama.url)


@pytest.fixture
def another_tinyllm(ollama: FakeOllama, tmp_path: Path) -> Callable[[str], Tinyllm]:
    """Give a second user, or a second machine: another home, the same Ollama."""

    def make(name: str) -> Tinyllm:
        home = tmp_path / name
        home.mkdir(mode=0o700)
        return Tinyllm(home, ollama.url)

    return make


@pytest.hookimpl(tryfirst=True)  # before those that are not asked for are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    variations = Counter[str]()
    for item in items:
        few = item.get_closest_marker("few")
        if few is not None:
            test = item.nodeid.partition("[")[0]
            variations[test] += 1
            if variations[test] > few.args[0]:
                item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("slow") or item.get_closest_marker("real_model"):
            item.add_marker(pytest.mark.timeout(1200))
