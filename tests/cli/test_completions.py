"""Do the shipped completions match the app, and do they complete?

`python -m tests.cli.test_completions --write` writes them anew.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "completions"
#: File name by the name the app has for the shell.
FILES = {
    "bash": "tinyllm.bash",
    "zsh": "_tinyllm",
    "fish": "tinyllm.fish",
    "powershell": "tinyllm.ps1",
}
_REGISTER = "compdef _tinyllm_completion tinyllm"
# A file of zsh's function path is the body of a function: called, it has to complete; sourced, to register.
_COMPLETE_OR_REGISTER = f"""\
if [[ $funcstack[1] == _tinyllm ]]; then
  _tinyllm_completion "$@"
else
  {_REGISTER}
fi"""


def generate(shell: str) -> str:
    """Return the completion script the app gives for a shell."""
    done = subprocess.run(
        [sys.executable, "-m", "tinyllm_cli"],
        env={**os.environ, "_TINYLLM_COMPLETE": f"source_{shell}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and done.stdout.strip(), done
    script = done.stdout.strip()
    if shell == "zsh":
        assert script.endswith("\n" + _REGISTER), "the app's script for zsh has changed its end"
        script = script.removesuffix(_REGISTER) + _COMPLETE_OR_REGISTER
    return script + "\n"


@pytest.mark.parametrize("shell", FILES)
def test_the_shipped_script_is_the_apps(shell: str) -> None:
    shipped = (FOLDER / FILES[shell]).read_text(encoding="utf-8")
    assert shipped == generate(shell), "run `python -m tests.cli.test_completions --write`"


def test_nothing_else_is_shipped() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(FILES.values())


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return a PATH on which `tinyllm` is the one under test."""
    command = tmp_path / "bin" / "tinyllm"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tinyllm_cli "$@"\n')
    command.chmod(0o755)
    return f"{command.parent}{os.pathsep}{os.environ['PATH']}"


def completed(path: str, shell: str, script: str, *words: str) -> set[str]:
    """Return the lines a shell script prints; `$1` is our completion file, the rest are words."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"there is no {shell} here")
    options = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    done = subprocess.run(
        [program, *options, "-c", script, *([] if shell == "fish" else [shell]), *words],
        env={**os.environ, "PATH": path, "COLUMNS": "80"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and not done.stderr, done
    return set(done.stdout.split("\n")) - {""}


def in_bash(path: str, *words: str) -> set[str]:
    """Return what bash offers for the last word."""
    script = (
        'source "$1"; shift; complete -p "$1" >/dev/null || exit 1\n'
        'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _tinyllm_completion "$1"\n'
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    return completed(path, "bash", script, str(FOLDER / FILES["bash"]), *words)


def in_fish(path: str, *words: str) -> set[str]:
    """Return what fish offers for the last word, without the descriptions."""
    script = 'source $argv[1]; complete --do-complete "$argv[2..]"'
    offered = completed(path, "fish", script, str(FOLDER / FILES["fish"]), *words)
    return {line.partition("\t")[0] for line in offered}


COMMANDS = {"run", "cache-stats", "cache-clear", "cache-explain"}


def test_bash_completes_commands_and_options(path: str) -> None:
    assert in_bash(path, "tinyllm", "") >= COMMANDS
    assert in_bash(path, "tinyllm", "cache-c") == {"cache-clear"}
    offered = in_bash(path, "tinyllm", "run", "--cache-m")
    assert offered == {"--cache-max-entries", "--cache-max-bytes"}
    assert "--dry-run" in in_bash(path, "tinyllm", "cache-clear", "--")


def test_bash_completes_behind_a_prompt_with_blanks(path: str) -> None:
    assert in_bash(path, "tinyllm", "run", '"What is AI?"', "--refr") == {"--refresh"}


def test_fish_completes_commands_and_options(path: str) -> None:
    assert in_fish(path, "tinyllm", "") >= COMMANDS
    assert in_fish(path, "tinyllm", "run", "--refr") == {"--refresh"}


def test_zsh_finds_the_file_on_its_function_path(path: str) -> None:
    script = (
        "fpath=($1 $fpath); autoload -Uz compinit; compinit -u -D; print -r -- $_comps[tinyllm]"
    )
    assert completed(path, "zsh", script, str(FOLDER)) == {"_tinyllm"}


def main(arguments: Iterable[str]) -> int:
    """Write the completions anew."""
    if list(arguments) != ["--write"]:
        print("usage: python -m tests.cli.test_completions --write", file=sys.stderr)
        return 2
    FOLDER.mkdir(exist_ok=True)
    for shell, name in FILES.items():
        (FOLDER / name).write_text(generate(shell), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
