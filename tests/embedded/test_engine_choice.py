"""`tinyllm run` with and without an Ollama: who answers, and who must not."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.cli.outcome import assert_failed, stored, stored_models
from tests.conftest import Tinyllm
from tests.embedded.asking import MODEL, NOBODY, nobody_at_home, ollama_is_here
from tests.fake_ollama import FakeOllama

# --- auto


@nobody_at_home
def test_where_no_ollama_is_the_embedded_model_answers_and_says_so(newcomer: Tinyllm) -> None:
    first = newcomer("run", "What is AI?")
    assert first.code == 0
    assert first.out.startswith(b"{") and first.out.endswith(b"}\n")
    [line] = first.complaint.splitlines()
    assert "http://127.0.0.1:11434" in line and MODEL in line and "tiny" in line

    second = newcomer("run", "What is AI?")
    assert (second.code, second.out) == (0, first.out)
    [line] = second.complaint.splitlines()
    assert MODEL in line and "tiny" in line
    assert newcomer("run", "-q", "What is AI?").err == b""


@nobody_at_home
def test_one_question_is_one_miss_and_then_one_hit(newcomer: Tinyllm) -> None:
    for _ in range(3):
        newcomer("run", "What is AI?")
    stats = _counters(newcomer)
    assert (stats["hits"], stats["misses"], stats["sets"]) == (2, 1, 1)
    assert stored_models(newcomer.snapshot) == ["tiny-1m:latest"]


@pytest.mark.slow
@pytest.mark.few(2)
@nobody_at_home
@pytest.mark.parametrize("flags", [["--no-cache"], ["--refresh"], ["--no-stream"], ["--json"]])
def test_it_answers_however_it_is_asked(flags: list[str], newcomer: Tinyllm) -> None:
    done = newcomer("run", "What is AI?", *flags)
    assert done.code == 0 and done.out.startswith(b"{")


@nobody_at_home
def test_cache_only_finds_its_answers_too(newcomer: Tinyllm) -> None:
    assert_failed(newcomer("run", "--cache-only", "What is AI?"), 7)
    first = newcomer("run", "What is AI?")
    assert newcomer("run", "--cache-only", "What is AI?").out == first.out


@nobody_at_home
def test_samples_are_all_of_the_embedded_model(newcomer: Tinyllm) -> None:
    done = newcomer("run", "What is AI?", "--samples", "2")
    assert done.code == 0
    assert len(done.complaint.splitlines()) == 1
    assert stored(newcomer.snapshot) == 2


def test_an_ollama_that_answers_is_asked(newcomer: Tinyllm, ollama: FakeOllama) -> None:
    done = newcomer("run", "What is AI?", environ={"OLLAMA_HOST": ollama.url})
    assert (done.code, done.err) == (0, b"")
    assert ollama.generations == 1


@pytest.mark.few(3)
@nobody_at_home
@pytest.mark.parametrize(
    ("arguments", "environ"),
    [
        (["--model", "llama3.2"], {}),
        ([], {"TINYLLM_MODEL": "llama3.2"}),
        (["--host", NOBODY], {}),
        ([], {"OLLAMA_HOST": NOBODY}),
        (["--engine", "ollama"], {}),
        (["--image", "picture.png"], {}),
        (["-o", "num_gpu=1"], {}),
    ],
)
def test_what_was_asked_for_is_never_replaced(
    arguments: list[str], environ: dict[str, str], newcomer: Tinyllm
) -> None:
    (newcomer.home / "picture.png").write_bytes(b"png")
    done = newcomer("run", "What is AI?", *arguments, environ=environ)
    assert_failed(done, 3, "cannot reach Ollama", "ollama serve")
    assert done.out == b""
    named = bool(environ) or bool({"--model", "--host"} & set(arguments))
    assert ("--engine embedded" in done.complaint) == named
    assert stored(newcomer.snapshot) == 0


@nobody_at_home
@pytest.mark.parametrize("arguments", [[], ["--model", "llama3.2"]])
def test_without_the_extra_the_hint_says_how_to_install_it(
    arguments: list[str], without_extra: Tinyllm
) -> None:
    done = without_extra("run", "What is AI?", *arguments)
    assert_failed(done, 3, "ollama serve", "pip install 'tinyllm-cli[embedded]'")


@pytest.mark.slow
def test_a_better_answer_is_not_shadowed_by_a_tiny_one(
    newcomer: Tinyllm, ollama: FakeOllama
) -> None:
    """Once Ollama has answered, a stored answer of the embedded model no longer comes first."""
    if ollama_is_here():
        pytest.skip("an Ollama listens where this test needs none")
    tiny = newcomer("run", "What is AI?")
    newcomer("run", "Something else", environ={"OLLAMA_HOST": ollama.url})
    _move_digests(newcomer, ollama.url, "http://127.0.0.1:11434")
    again = newcomer("run", "What is AI?")
    assert again.out == tiny.out and "no Ollama" in again.complaint


# --- embedded, because the user said so


@pytest.mark.parametrize("how", [["--engine", "embedded"], []])
def test_the_engine_can_be_named(how: list[str], newcomer: Tinyllm, ollama: FakeOllama) -> None:
    environ = {"OLLAMA_HOST": ollama.url, **({} if how else {"TINYLLM_ENGINE": "embedded"})}
    first = newcomer("run", "What is AI?", *how, environ=environ)
    assert (first.code, first.err) == (0, b"")
    second = newcomer("run", "What is AI?", *how, environ=environ)
    assert (second.code, second.out, second.err) == (0, first.out, b"")
    assert ollama.log == []


def test_with_the_engine_named_a_model_it_lacks_is_refused(newcomer: Tinyllm) -> None:
    done = newcomer("run", "Hi", "--engine", "embedded", "--model", "llama3.2")
    assert_failed(done, 4, "llama3.2", MODEL)
    assert newcomer("run", "Hi", "--engine", "embedded", "--model", "TINY-1m").code == 0


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["-o", "num_gpu=1"], "num_gpu"),
        (["-o", "temperature=hot"], "temperature"),
        (["--think"], "think"),
        (["--image", "picture.png"], "images"),
    ],
)
def test_with_the_engine_named_what_it_lacks_is_refused_by_name(
    arguments: list[str], name: str, newcomer: Tinyllm
) -> None:
    (newcomer.home / "picture.png").write_bytes(b"png")
    assert_failed(newcomer("run", "Hi", "--engine", "embedded", *arguments), 2, name)


def test_the_engine_that_is_not_installed_is_named(without_extra: Tinyllm) -> None:
    done = without_extra("run", "Hi", "--engine", "embedded")
    assert_failed(done, 3, "not installed", "pip install 'tinyllm-cli[embedded]'")


def test_an_engine_nobody_knows_is_a_usage_error(newcomer: Tinyllm) -> None:
    assert_failed(newcomer("run", "Hi", "--engine", "gpt"), 2, "auto, ollama, embedded")


def test_another_file_is_another_model_with_answers_of_its_own(
    newcomer: Tinyllm, weights: Path
) -> None:
    first = newcomer("run", "Hi", "--engine", "embedded")
    weights.write_bytes(b"GGUF two")
    second = newcomer("run", "Hi", "--engine", "embedded")
    assert second.code == 0 and second.out != first.out and b"two" in second.out


def _counters(tinyllm: Tinyllm) -> dict[str, Any]:
    counters: dict[str, Any] = json.loads(tinyllm("cache-stats", "--json").out)
    return counters


def _move_digests(tinyllm: Tinyllm, old: str, new: str) -> None:
    """Make what the snapshot knows of one host be known of another."""
    with sqlite3.connect(tinyllm.snapshot) as database:
        database.execute("UPDATE digests SET host = ? WHERE host = ?", (new, old))
    database.close()
