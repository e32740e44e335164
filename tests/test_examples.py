"""Does every example run as it is shipped, and say what it is there to show?"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fake_ollama import FakeOllama

FOLDER = Path(__file__).parents[1] / "examples"

Example = Callable[..., list[str]]


@pytest.fixture
def example(ollama: FakeOllama, tmp_path: Path) -> Example:
    """Run an example as a user would and return the lines it printed; it complains of nothing."""

    def run(name: str, *arguments: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, FOLDER / name, *arguments],
            env={**os.environ, "OLLAMA_HOST": ollama.url, "PYTHONWARNINGS": "error"},
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0 and not done.stderr, done
        return done.stdout.splitlines()

    return run


def generations(ollama: FakeOllama) -> int:
    """Return how many answers the server was asked for."""
    return sum(len(ollama.requests(path)) for path in ("/api/generate", "/v1/chat/completions"))


def test_basic(example: Example, ollama: FakeOllama) -> None:
    answer, *rest = example("basic.py")
    assert "about What is AI?" in answer
    assert rest == ["Same answer: True", "Requests to Ollama: 1", "Hit rate: 50.00%"]
    assert generations(ollama) == 1


def test_streaming(example: Example, ollama: FakeOllama) -> None:
    live, replayed, pieces, hits = example("streaming.py")
    assert live == replayed and "about Count" in live
    numbers = re.fullmatch(r"(\d+) pieces from the model, (\d+) from the cache", pieces)
    assert numbers and numbers[1] == numbers[2] and int(numbers[1]) > 1
    assert hits == "Hits: 2"
    assert generations(ollama) == 1


def test_many_at_once(example: Example, ollama: FakeOllama) -> None:
    assert example("many_at_once.py") == [
        "Answers: 50, all the same: True",
        "Requests to Ollama: 1",
        "Waited for another's answer: 49",
    ]
    assert generations(ollama) == 1


def test_own_client(example: Example, ollama: FakeOllama) -> None:
    answer, requests = example("own_client.py")
    assert "about What is AI?" in answer
    assert requests == "Requests to the server: 1"
    assert generations(ollama) == 1


def test_snapshot_between_runs(example: Example, ollama: FakeOllama, tmp_path: Path) -> None:
    file = str(tmp_path / "answers" / "answers.sqlite3")
    first, by_model = example("snapshot_between_runs.py", file)
    second, from_file = example("snapshot_between_runs.py", file)
    assert first == second
    assert (by_model, from_file) == ("Answered by the model.", "Answered from the file.")
    assert generations(ollama) == 1


def test_evaluation_samples(example: Example, ollama: FakeOllama, tmp_path: Path) -> None:
    file = str(tmp_path / "answers" / "evaluation.sqlite3")
    *first, generated = example("evaluation_samples.py", file)
    *second, reused = example("evaluation_samples.py", file)
    assert first == second and len(first) == 2
    assert generated == "Generated 6, reused 0"
    assert reused == "Generated 0, reused 6"
    assert generations(ollama) == 6


def test_every_example_is_run_here() -> None:
    shipped = {path.stem for path in FOLDER.glob("*.py")}
    assert {f"test_{name}" for name in shipped} <= globals().keys()
