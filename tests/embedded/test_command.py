"""The embedded model on the command line: failures, Ctrl-C, `tinyllm pull`, and what it costs the others."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.outcome import assert_failed, finish, stored
from tests.cli.terminal import Terminal
from tests.conftest import Finished, Tinyllm
from tests.embedded.asking import MODEL, NOBODY, nobody_at_home
from tests.embedded.conftest import STUB
from tests.fake_ollama import FakeOllama

# --- what goes wrong


@pytest.mark.parametrize("prompt", ["crash", "half way, then crash"])
def test_a_crash_is_exit_4_in_two_lines_and_stores_nothing(prompt: str, newcomer: Tinyllm) -> None:
    done = newcomer("run", prompt, "--engine", "embedded")
    assert_failed(done, 4, "crashed (SIGABRT)")
    assert stored(newcomer.snapshot) == 0
    assert newcomer("run", "Hi", "--engine", "embedded").code == 0


def test_a_processor_without_avx2_is_exit_4(newcomer: Tinyllm, weights: Path) -> None:
    weights.write_bytes(b"no AVX2")
    done = newcomer("run", "Hi", "--engine", "embedded")
    assert_failed(done, 4, "SIGILL", "AVX2")
    assert (stored(newcomer.snapshot), done.out) == (0, b"")


def test_a_truncated_file_is_exit_4_and_a_whole_one_heals(newcomer: Tinyllm, weights: Path) -> None:
    weights.write_bytes(b"GG")
    assert_failed(newcomer("run", "Hi", "--engine", "embedded"), 4, "cannot load", str(weights))
    weights.write_bytes(b"GGUF whole")
    assert newcomer("run", "Hi", "--engine", "embedded").code == 0


def test_a_missing_file_is_exit_4(newcomer: Tinyllm, weights: Path) -> None:
    weights.unlink()
    assert_failed(newcomer("run", "Hi", "--engine", "embedded"), 4, str(weights))


def test_nothing_but_ours_is_on_standard_error(newcomer: Tinyllm) -> None:
    done = newcomer("run", "chatter", "--engine", "embedded")
    assert (done.code, done.err) == (0, b"")
    assert b"llama_model_loader" not in done.out


def test_ctrl_c_ends_it_at_once_and_takes_the_helper_along(newcomer: Tinyllm) -> None:
    took = []
    for _ in range(3):  # a busy machine may be late, but not each time
        process = newcomer.start("run", "for ever", "--engine", "embedded")
        assert process.stdout is not None
        assert process.stdout.read(3) == b"on "
        [helper] = _children(process.pid)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        done = finish(process)
        took.append(time.monotonic() - started)
        assert (done.code, done.err) == (130, b"")
        assert not Path(f"/proc/{helper}").exists()
    assert min(took) < 0.2
    assert stored(newcomer.snapshot) == 0


def test_ctrl_c_on_a_terminal_says_nothing_of_the_helpers(newcomer: Tinyllm) -> None:
    with Terminal(newcomer, "run", "for ever", "--engine", "embedded") as terminal:
        terminal.wait_for(b"on on")
        terminal.press(b"\x03")
        assert terminal.finish() == 130
        assert b"Traceback" not in terminal.output and b"crashed" not in terminal.output


# --- pull


def test_a_pull_says_when_the_model_is_ready(newcomer: Tinyllm) -> None:
    done = newcomer("pull", "tiny-1m", "--engine", "embedded")
    assert (done.code, done.out, done.complaint) == (0, b"", "tinyllm: tiny-1m is ready\n")
    assert newcomer("pull", "-q", "tiny-1m", "--engine", "embedded").err == b""
    assert_failed(newcomer("pull", "llama3.2", "--engine", "embedded"), 4, "llama3.2", MODEL)


@pytest.mark.slow
@nobody_at_home
def test_a_pull_without_an_ollama_is_for_the_model_that_is_embedded(newcomer: Tinyllm) -> None:
    assert newcomer("pull", "tiny-1m").code == 0
    assert_failed(newcomer("pull", "llama3.2"), 3, "ollama serve")
    assert_failed(newcomer("pull", "tiny-1m", "--host", NOBODY), 3, "--engine embedded")


def test_a_pull_goes_to_ollama_where_there_is_one(newcomer: Tinyllm, ollama: FakeOllama) -> None:
    environ = {"OLLAMA_HOST": ollama.url}
    assert newcomer("pull", "llama3.2", environ=environ).code == 0
    assert any(request.path == "/api/pull" for request in ollama.log)


def test_weights_that_cannot_be_fetched_are_exit_3_and_leave_nothing(newcomer: Tinyllm) -> None:
    del newcomer.environ["TINYLLM_EMBEDDED_MODEL"]
    newcomer.environ |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        newcomer.environ.pop(name, None)
    for command in (["run", "Hi"], ["pull", "smollm2:135m"]):
        done = newcomer(*command, "--engine", "embedded", "-q")
        assert_failed(done, 3, "smollm2:135m", "TINYLLM_EMBEDDED_MODEL")
    models = newcomer.home / "data" / "models"
    assert [path.name for path in models.iterdir()] == [".lock"]
    assert stored(newcomer.snapshot) == 0


# --- what it costs those who do not use it


def test_nothing_of_it_is_imported_where_ollama_answers(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    tinyllm.environ["PYTHONPATH"] = str(STUB)
    for _ in range(2):
        assert not [name for name in _imported(tinyllm, "run", "Hi") if "embedded" in name]


@nobody_at_home
def test_a_hit_of_the_embedded_model_imports_no_engine(newcomer: Tinyllm) -> None:
    newcomer("run", "Hi")
    names = _imported(newcomer, "run", "Hi")
    heavy = {"asyncio", "httpx", "pydantic", "hashlib", "xllamacpp", "tempfile"}
    assert heavy & names == set()
    assert "tinyllm_cli.embedded.helper" not in names


def _imported(tinyllm: Tinyllm, *arguments: str) -> set[str]:
    done: Finished = tinyllm(*arguments, environ={"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.code == 0
    lines = [line for line in done.complaint.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


def _children(process: int) -> list[int]:
    listed = subprocess.run(["ps", "--ppid", str(process), "-o", "pid="], capture_output=True)
    return [int(number) for number in listed.stdout.split()]
