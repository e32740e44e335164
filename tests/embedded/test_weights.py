"""Which weights there are, under which names, and what is remembered of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tinyllm_cli import config
from tinyllm_cli.embedded.weights import SMOLLM2, Shelf


def test_the_published_model_is_the_one_the_settings_name() -> None:
    assert SMOLLM2.model == config.EMBEDDED_MODEL


def test_without_a_file_of_ones_own_the_published_model_comes_first(tmp_path: Path) -> None:
    shelf = Shelf(data_dir=tmp_path)
    assert shelf.first.model == "smollm2:135m"
    assert shelf.first.path == tmp_path / "models" / SMOLLM2.file
    assert shelf.present() == []
    assert shelf.origin() == ""


@pytest.mark.parametrize("name", ["smollm2:135m", "SmolLM2:135M", "library/smollm2:135m"])
def test_a_model_is_found_by_any_spelling(name: str, tmp_path: Path) -> None:
    found = Shelf(data_dir=tmp_path).find(name)
    assert found is not None and found.published is SMOLLM2


@pytest.mark.parametrize("name", ["smollm2", "smollm2:1.7b", "llama3.2", ""])
def test_another_model_is_not_found(name: str, tmp_path: Path) -> None:
    assert Shelf(data_dir=tmp_path).find(name) is None


@pytest.mark.parametrize(
    ("file", "model"),
    [
        ("Qwen3-0.6B.Q8_0.gguf", "Qwen3-0.6B.Q8_0"),
        ("my model (1).gguf", "my-model-1"),
        ("..gguf", "model"),
        ("modèle.gguf", "mod-le"),
    ],
)
def test_a_file_of_ones_own_is_asked_for_by_its_name(file: str, model: str, tmp_path: Path) -> None:
    own = tmp_path / file
    own.write_bytes(b"GGUF")
    shelf = Shelf(own, tmp_path)
    assert shelf.first.model == model
    assert shelf.find(model) == shelf.first
    assert shelf.find("smollm2:135m") is not None
    assert [weights.model for weights in shelf.present()] == [model]


def test_a_digest_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(b"GGUF one")
    shelf = Shelf(own, tmp_path / "data")
    before = shelf.origin()
    assert shelf.known_digest(own) is None
    shelf.note_digest(own, "a" * 64)
    assert Shelf(own, tmp_path / "data").known_digest(own) == "a" * 64
    own.write_bytes(b"GGUF another")
    assert shelf.known_digest(own) is None
    assert shelf.origin() != before
    own.unlink()
    assert shelf.known_digest(own) is None
    shelf.note_digest(own, "b" * 64)
    assert shelf.known_digest(own) is None


@pytest.mark.parametrize("ledger", [b"", b"[]", b"{", b'{"%s": 5}', b"[" * 100_000])
def test_a_damaged_ledger_only_costs_a_second_look(ledger: bytes, tmp_path: Path) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(b"GGUF")
    shelf = Shelf(own, tmp_path)
    shelf.folder.mkdir()
    (shelf.folder / "digests.json").write_bytes(ledger.replace(b"%s", str(own).encode()))
    assert shelf.known_digest(own) is None
    shelf.note_digest(own, "a" * 64)
    assert shelf.known_digest(own) == "a" * 64


@pytest.mark.skipif(
    os.name != "posix", reason="folders without write permission are a POSIX matter"
)
def test_where_nothing_can_be_written_nothing_is_remembered(tmp_path: Path) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(b"GGUF")
    (tmp_path / "data").write_bytes(b"a file where a folder should be")
    shelf = Shelf(own, tmp_path / "data")
    shelf.note_digest(own, "a" * 64)
    assert shelf.known_digest(own) is None


def test_the_data_directory_follows_the_xdg_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert Shelf().folder == tmp_path / "tinyllm" / "models"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Shelf().folder == tmp_path / ".local/share/tinyllm/models"
