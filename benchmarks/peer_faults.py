"""What tinyllm and others do when the place their answers are kept in is broken: run by reliability.py.

Each program is asked one question, its store is broken, and it is asked the same and a new question,
twice. The others are asked in the way their own documentation shows, each in an environment of its own.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from processes import TINYLLM, environment, fresh_home, instant_model

ANSWER = "An answer."
_DISKCACHE = """
import json, sys, urllib.request, diskcache
folder, host, prompt = sys.argv[1:]
cache = diskcache.Cache(folder)
@cache.memoize(expire=3600)
def ask(prompt):
    body = json.dumps({"model": "m", "prompt": prompt, "stream": False}).encode()
    request = urllib.request.Request(host + "/api/generate", body)
    return json.load(urllib.request.urlopen(request))["response"]
print(ask(prompt))
"""
_HISHEL = """
import sys, hishel, hishel.httpx
folder, host, prompt = sys.argv[1:]
storage = hishel.SqliteStorage(database_path=folder + "/hishel.db")
with hishel.httpx.CacheClient(storage=storage) as client:
    print(client.get(host + "/answer", params={"prompt": prompt}).text)
"""
_FULL = """
set -e
cp -a "$1" "$2"
mount -t tmpfs -o size=4m tmpfs "$1"
cp -a "$2/." "$1"
cat /dev/zero > "$1/filling" 2>/dev/null || true
shift 2
exec "$@"
"""


class Program(NamedTuple):
    """A way to ask a question, which comes last; `store` is the directory its answers are in."""

    command: list[str]
    environ: dict[str, str]
    store: Path


class Asked(NamedTuple):
    """How asking went: the right answer, another one, or none; and lines on standard error."""

    right: bool
    wrong: bool
    lines: int


def programs(home: Path, host: str, folder: Path) -> dict[str, Program]:
    """Return tinyllm and what of the others installs here, each with a fresh store."""
    environ = fresh_home(str(home), host)
    found = {
        "tinyllm": Program(
            [*TINYLLM, "run"],
            {**environ, "TINYLLM_CACHE_DIR": str(home / "tinyllm")},
            home / "tinyllm",
        )
    }
    for name, requirement, script in (
        ("diskcache", "diskcache", _DISKCACHE),
        ("hishel", "hishel[httpx]", _HISHEL),
    ):
        place = environment(folder, name, [requirement])
        if place is not None:
            store = home / name
            store.mkdir()
            begin = [str(place / "python"), "-c", script, str(store), host]
            found[name] = Program(begin, environ, store)
    llm = environment(folder, "llm", ["llm"])
    if llm is not None:
        store = home / "llm"
        store.mkdir()
        (store / "extra-openai-models.yaml").write_text(
            f"- model_id: m\n  model_name: m\n  api_base: {host}/v1\n"
        )
        begin = [str(llm / "llm"), "-m", "m", "--key", "none"]
        found["llm"] = Program(begin, {**environ, "LLM_USER_PATH": str(store)}, store)
    sgpt = environment(folder, "sgpt", ["shell-gpt", "click"])
    if sgpt is not None:
        store, config = home / "sgpt", home / ".config" / "shell_gpt"
        config.mkdir(parents=True)
        config.joinpath(".sgptrc").write_text(
            f"OPENAI_API_KEY=none\nAPI_BASE_URL={host}/v1\nDEFAULT_MODEL=gpt-4o\n"
            f"CACHE_PATH={store}\nCHAT_CACHE_PATH={home / 'sgpt-chat'}\n"
            "USE_LITELLM=false\nPRETTIFY_MARKDOWN=false\nOPENAI_USE_FUNCTIONS=false\n"
        )
        found["shell_gpt"] = Program([str(sgpt / "sgpt"), "--no-md"], environ, store)
    return found


def _stored(store: Path) -> list[Path]:
    return [file for file in store.rglob("*") if file.is_file() and file.suffix != ".yaml"]


def overwritten(store: Path) -> None:
    dice = random.Random(1)
    for file in _stored(store):
        file.write_bytes(dice.randbytes(max(file.stat().st_size, 100)))


def cut(store: Path) -> None:
    for file in _stored(store):
        os.truncate(file, file.stat().st_size // 2)


def emptied(store: Path) -> None:
    for file in _stored(store):
        file.write_bytes(bytes(file.stat().st_size))


FAULTS: dict[str, Callable[[Path], None] | None] = {
    "random bytes": overwritten,
    "cut in half": cut,
    "zeros": emptied,
    "full disk": None,
}


def ask(program: Program, prompt: str, begin: list[str] | None = None) -> Asked:
    done = subprocess.run(
        [*(begin or []), *program.command, prompt],
        env=program.environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    answered = done.returncode == 0
    right = done.stdout.strip() == ANSWER
    return Asked(answered and right, answered and not right, len(done.stderr.splitlines()))


def broken(program: Program, fault: str) -> list[Asked]:
    """Return how the stored, a new, again the stored and again the new question went."""
    if not ask(program, "Stored?").right:
        raise SystemExit(f"{program.command[0]} does not answer")
    damage = FAULTS[fault]
    begin: list[str] | None = None
    if damage is None:
        aside = str(program.store) + "-aside"
        begin = ["unshare", "-m", "sh", "-c", _FULL, "sh", str(program.store), aside]
    else:
        damage(program.store)
    found = []
    for prompt in ("Stored?", "New?", "Stored?", "New?"):
        found.append(ask(program, prompt, begin))
        shutil.rmtree(str(program.store) + "-aside", ignore_errors=True)
    return found


def _modes(store: Path) -> str:
    files = _stored(store)
    directory, file = stat.S_IMODE(store.stat().st_mode), stat.S_IMODE(files[0].stat().st_mode)
    return f"{directory:04o}, {file:04o}"


def rows(folder: Path) -> Iterator[str]:
    """Yield the rows of the table of programs; a full disk needs root, for a file system of its own."""
    wanted = {name: how for name, how in FAULTS.items() if how is not None or os.geteuid() == 0}
    yield f"| program | {' | '.join(wanted)} | modes of directory and file |"
    yield "|---" * (len(wanted) + 2) + "|"
    lines: dict[str, list[str]] = {}
    modes: dict[str, str] = {}
    for fault in wanted:
        with tempfile.TemporaryDirectory() as home, instant_model() as host:
            os.umask(0o022)
            for name, program in programs(Path(home), host, folder).items():
                asked = broken(program, fault)
                modes.setdefault(name, _modes(program.store))
                right, wrong = (sum(one[n] for one in asked) for n in range(2))
                said = " + ".join(str(one.lines) for one in asked)
                cell = f"{right} right, {wrong} wrong, {4 - right - wrong} failed; lines {said}"
                lines.setdefault(name, []).append(cell)
    for name, cells in lines.items():
        yield f"| {name} | {' | '.join(cells)} | {modes[name]} |"


if __name__ == "__main__":
    for row in rows(Path(sys.argv[1])):
        print(row)
