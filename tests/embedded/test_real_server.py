"""A real model answers behind somebody else's implementation of Ollama's API.

TINYLLM_TEST_OLLAMA is the URL of a running server, TINYLLM_TEST_OLLAMA_MODEL the model to ask there
(default smollm2:135m). Without one, TINYLLM_TEST_RIG is a script that serves one on 127.0.0.1 at the
port that PORT names, and keeps what it needs in the folder that RIG names; by default
shared/rig/serve.sh beside the project.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Tinyllm
from tests.redis_server import free_port

# read at import: every test gets an environment of its own
SERVER = os.environ.get("TINYLLM_TEST_OLLAMA", "")
SERVED = os.environ.get("TINYLLM_TEST_OLLAMA_MODEL", "smollm2:135m")
BESIDE = Path(__file__).parents[3] / "shared" / "rig" / "serve.sh"
RIG = Path(os.environ.get("TINYLLM_TEST_RIG") or BESIDE)
SET_UP_S = 600  # it may have to fetch its weights

pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the URL of a server that was named, or of one started for these tests."""
    if SERVER:
        yield SERVER
        return
    if not RIG.is_file():
        pytest.skip(f"TINYLLM_TEST_OLLAMA names no server, and there is no {RIG.name} to start one")
    folder = tmp_path_factory.mktemp("rig")
    port = free_port()
    environ = {**os.environ, "RIG": str(folder), "PORT": str(port)}
    with (folder / "log").open("wb") as log:
        serving = subprocess.Popen(
            ["bash", str(RIG)], env=environ, stdout=log, stderr=log, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(url, serving, folder / "log")
        yield url
    finally:
        os.killpg(serving.pid, signal.SIGTERM)
        try:
            serving.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(serving.pid, signal.SIGKILL)
            serving.wait()


def wait_for(url: str, serving: subprocess.Popen[bytes], log: Path) -> None:
    """Return once a server lists its models."""
    give_up_at = time.monotonic() + SET_UP_S
    while True:
        try:
            with urllib.request.urlopen(f"{url}/api/tags", timeout=5) as reply:
                if SERVED.encode() in reply.read():
                    return
        except (urllib.error.URLError, OSError):
            pass
        assert serving.poll() is None and time.monotonic() < give_up_at, log.read_text()[-2000:]
        time.sleep(0.5)


@pytest.fixture
def customer(tinyllm: Tinyllm, server: str) -> Tinyllm:
    tinyllm.environ["OLLAMA_HOST"] = server
    tinyllm.environ["TINYLLM_MODEL"] = SERVED
    return tinyllm


def test_another_servers_answer_is_stored_and_replayed(customer: Tinyllm) -> None:
    question = ["run", "What is AI?", "--max-tokens", "48"]
    first = customer(*question, timeout=120)
    assert (first.code, first.err) == (0, b"")
    assert "intelligence" in first.text.lower()
    second = customer(*question)
    assert (second.code, second.out, second.err) == (0, first.out, b"")
    whole = customer(*question, "--no-stream", "--refresh", timeout=120)
    assert whole.code == 0 and whole.text.strip()


def test_another_server_answers_in_json(customer: Tinyllm) -> None:
    done = customer("run", "Describe a person as JSON.", "--json-mode", "--max-tokens", "20")
    assert done.code == 0 and done.text.lstrip().startswith("{")


def test_another_server_refuses_a_model_it_lacks(customer: Tinyllm) -> None:
    done = customer("run", "Hi", "--model", "no-such-model")
    assert (done.code, done.out) == (4, b""), done
    assert len(done.complaint.splitlines()) == 2
