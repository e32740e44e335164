"""Do README.md and docs/ say what the app does: every option, setting, exit code and public name?"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

import tinyllm_cli
from tests.fake_ollama import FakeOllama
from tinyllm_cli import codec, config, key
from tinyllm_cli._version import __version__
from tinyllm_cli.cli.app import app
from tinyllm_cli.cli.exit_codes import ExitCode

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = sorted((ROOT / "tinyllm_cli").rglob("*.py"))

#: What the command line itself reads beside the settings, and what belongs to other programs.
OTHER_VARIABLES = {"TINYLLM_CONFIG_DIR", "OLLAMA_API_KEY", "OLLAMA_HOST"}
#: Added to every command.
EVERYWHERE = {"-h", "--help"}


def page(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def prose(path: Path) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page(path), flags=re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block; `mark` is the comment on the line before it."""

    language: str
    text: str
    mark: str


def blocks(path: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    pattern = r"(?:^<!-- (?P<mark>.*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$"
    found = re.finditer(pattern, page(path), re.MULTILINE | re.DOTALL)
    return [Block(m["language"], m["text"], m["mark"] or "") for m in found]


def marked_command(mark: str) -> str:
    """Return the one command in README behind a marker."""
    found = [block.text for block in blocks(README) if block.mark.startswith(mark)]
    assert len(found) == 1, f"README holds {len(found)} blocks marked {mark}"
    return found[0].rstrip("\n")


class Row(NamedTuple):
    """A row of a table; `heading` is the last heading before it."""

    heading: str
    cells: dict[str, str]


def rows(path: Path) -> Iterator[Row]:
    """Yield the rows of all tables of a page."""
    heading, header = "", list[str]()
    fenced = False
    for line in page(path).splitlines():
        fenced ^= line.startswith("```")
        if fenced or not line.startswith("|"):
            header = []
            if line.startswith("#") and not fenced:
                heading = line.lstrip("# ")
            continue
        cells = [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not header:
            header = cells
        elif not set(line) <= set("|-: "):
            assert len(cells) == len(header), f"{path.name}: {line}"
            yield Row(heading, dict(zip(header, cells, strict=True)))


def quoted(cell: str) -> list[str]:
    """Return what stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def flags_in(cell: str) -> set[str]:
    """Return the option names in a cell, without what they take."""
    return {
        name for text in quoted(cell) for name in re.findall(r"(?:^|[ /])(--?[a-zA-Z][\w-]*)", text)
    }


def app_flags() -> dict[str, set[str]]:
    """Return the option names of each command; those of `tinyllm` itself under ""."""
    group: Any = typer.main.get_command(app)
    commands = {"": group, **group.commands}
    return {
        name: {
            flag
            for parameter in command.params
            if parameter.param_type_name == "option"
            for flag in (*parameter.opts, *parameter.secondary_opts)
        }
        - EVERYWHERE
        for name, command in commands.items()
    }


# --- the two commands


def test_readme_has_two_commands_that_a_script_can_take() -> None:
    marks = [block.mark for block in blocks(README) if block.mark]
    assert [mark.partition(":")[0] for mark in marks] == ["run-command", "test-command"]
    for command in (marked_command("run-command"), marked_command("test-command")):
        assert command.startswith("python3 -m venv .venv"), command
        assert "sudo" not in command


def test_ci_runs_the_command_of_the_readme() -> None:
    shown = subprocess.run(
        [ROOT / ".ci" / "run", "--show"], capture_output=True, text=True, cwd="/", timeout=30
    )
    assert shown.stdout == marked_command("test-command") + "\n", shown
    assert "pip install -e '.[dev]'" in shown.stdout and "-m pytest" in shown.stdout


@pytest.mark.slow
def test_a_newcomer_gets_an_answer_and_then_the_same_from_the_cache(tmp_path: Path) -> None:
    clone, home = tmp_path / "clone", tmp_path / "home"
    home.mkdir()
    leave_out = shutil.ignore_patterns(".git", ".venv*", ".*_cache", "__pycache__")
    shutil.copytree(ROOT, clone, ignore=leave_out)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    command = marked_command("run-command")
    ask = command.rpartition("&&")[2].strip()

    def in_clone(text: str) -> str:
        done = subprocess.run(
            ["bash", "-euc", text],
            env={**environ, "HOME": str(home), "OLLAMA_HOST": ollama.url, "PIP_QUIET": "1"},
            cwd=clone,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done
        return done.stdout

    with FakeOllama() as ollama:
        first = in_clone(command)
        assert len(ollama.requests("/api/generate")) == 1
    # the server is gone now
    assert "about What is AI?" in first
    assert in_clone(ask) == first
    stats = json.loads(in_clone(".venv/bin/tinyllm cache-stats --json"))
    assert (stats["hits"], stats["misses"], stats["entries"]) == (1, 1, 1)


# --- options, settings, variables, exit codes


def documented_flags() -> dict[str, set[str]]:
    """Return the options in tables with the column Option, by the command in the heading above."""
    found: dict[str, set[str]] = {}
    for path in PAGES:
        for row in rows(path):
            if "Option" in row.cells:
                named = re.search(r"`tinyllm(?: ([a-z-]+))?`", row.heading)
                assert named, f"{path.name}: whose options are under {row.heading!r}?"
                flags = flags_in(row.cells["Option"])
                assert flags, f"{path.name}: {row.cells['Option']!r} is no option"
                found.setdefault(named[1] or "", set()).update(flags)
    return found


def setting_rows() -> dict[str, dict[str, str]]:
    """Return README's configuration table by setting."""
    found = [row.cells for row in rows(README) if "Setting" in row.cells]
    named = {quoted(cells["Setting"])[0]: cells for cells in found}
    assert len(named) == len(found), "a setting stands there twice"
    return named


def test_every_option_is_documented_and_none_is_invented() -> None:
    actual, documented = app_flags(), documented_flags()
    of_settings = {flag for cells in setting_rows().values() for flag in flags_in(cells["Flag"])}
    assert of_settings <= set().union(*actual.values())
    assert documented.keys() <= actual.keys()
    for command, flags in actual.items():
        said = documented.get(command, set())
        assert said <= flags, f"`tinyllm {command}` has no {said - flags}"
        shared = of_settings | (documented["run"] if command == "cache-explain" else set())
        assert flags <= said | shared, f"not documented: {command} {flags - said - shared}"


def test_every_setting_has_its_flag_variable_and_default_in_the_readme() -> None:
    documented, flags = setting_rows(), set().union(*app_flags().values())
    assert documented.keys() == config.SETTINGS.keys()
    for name, (read, default) in config.SETTINGS.items():
        cells = documented[name]
        assert quoted(cells["Variable"]) == [config.variable(name)]
        flag = "--" + name.replace("_", "-")
        assert (flag in flags_in(cells["Flag"])) == (flag in flags), name
        shown = quoted(cells["Default"])
        if default in (None, ""):
            assert not shown, f"{name} has no default, but README shows {shown}"
        else:
            assert read(shown[0]) == default, name


def test_every_variable_is_documented_and_none_is_invented() -> None:
    settings = {config.variable(name) for name in config.SETTINGS}
    ours = r"\bTINYLLM_[A-Z][A-Z_]*[A-Z]\b"
    assert {name for path in SOURCES for name in re.findall(ours, page(path))} <= (
        settings | OTHER_VARIABLES
    )
    assert settings | OTHER_VARIABLES <= set(quoted(prose(README)))
    # variables with _TEST_ in their name belong to the tests
    said = {name for path in PAGES for name in re.findall(ours, page(path)) if "_TEST_" not in name}
    assert said <= settings | OTHER_VARIABLES


def test_every_exit_code_is_in_the_readme() -> None:
    codes = [int(row.cells["Exit code"]) for row in rows(README) if "Exit code" in row.cells]
    assert codes == [int(code) for code in ExitCode]


def test_the_changelog_names_the_versions_of_what_is_stored() -> None:
    changelog = page(ROOT / "CHANGELOG.md")
    assert "## [Unreleased]" in changelog
    stored = next(line for line in changelog.splitlines() if "Stored answers" in line)
    assert f"key version {key.KEY_VERSION}" in stored
    assert f"format version {codec.FORMAT_VERSION}" in stored
    assert __version__


# --- examples


def tinyllm_commands(path: Path) -> Iterator[list[str]]:
    """Yield the arguments of each `tinyllm` in the console examples of a page."""
    for block in blocks(path):
        if block.language not in ("sh", "console", "bash"):
            continue
        text = block.text.replace("\\\n", " ")
        for line in text.splitlines():
            if block.language == "console":
                if not line.startswith("$ "):
                    continue  # what is printed
                line = line[2:]
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
            lexer.whitespace_split = True
            command: list[str] = []
            for word in [*lexer, ";"]:
                if set(word) <= set("|&;<>()"):
                    if command:
                        yield command[1:]
                    command = []
                elif command or word == "tinyllm" or word.endswith("/bin/tinyllm"):
                    command.append(word)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_console_examples_are_accepted_by_the_app(path: Path) -> None:
    group: Any = typer.main.get_command(app)
    for arguments in tinyllm_commands(path):
        name, *rest = arguments
        if name.startswith("-"):
            assert name in app_flags()[""] | EVERYWHERE, arguments
            continue
        # a name that follows a redirection is none of ours, but an option is
        assert name in group.commands, arguments
        group.commands[name].make_context(name, rest)


def test_the_console_examples_are_found() -> None:
    assert len(list(tinyllm_commands(README))) > 10


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_python_examples_import_what_exists(path: Path) -> None:
    for block in blocks(path):
        if block.language == "python":
            tree = compile(block.text, path.name, "exec", ast.PyCF_ONLY_AST | _TOP_LEVEL_AWAIT)
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and node.module == "tinyllm_cli":
                    for alias in node.names:
                        assert hasattr(tinyllm_cli, alias.name), alias.name


_TOP_LEVEL_AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


@pytest.mark.parametrize("name", ["README.md", "docs/library.md"])
def test_python_examples_run(
    name: str, ollama: FakeOllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each page is one program, but for blocks marked as needing a server of another kind."""
    monkeypatch.setenv("OLLAMA_HOST", ollama.url)
    monkeypatch.chdir(tmp_path)
    codes = [
        compile(block.text, f"{name}, example {number}", "exec", _TOP_LEVEL_AWAIT)
        for number, block in enumerate(blocks(ROOT / name), start=1)
        if block.language == "python" and block.mark != "needs Redis"
    ]
    assert codes

    names: dict[str, Any] = {"__name__": "example"}
    for code in codes:
        # one event loop each, as in a program that calls asyncio.run more than once
        result = eval(code, names)  # noqa: S307 - our own pages
        if inspect.iscoroutine(result):
            asyncio.run(result)
    assert ollama.requests("/api/generate")


# --- the rest of what is said


def test_every_public_name_is_documented() -> None:
    said = [text for path in PAGES for text in quoted(prose(path))]
    words = {word for text in said for word in re.findall(r"\w+", text)}
    assert set(tinyllm_cli.__all__) - words == set()


def test_every_row_of_the_fault_matrix_has_a_test_and_every_test_a_row() -> None:
    said = [
        row.cells["Row"] for row in rows(ROOT / "docs" / "reliability.md") if "Row" in row.cells
    ]
    sources = "".join(page(path) for path in (ROOT / "tests" / "faults").glob("test_*.py"))
    names = re.findall(r"^(?:async )?def (test_\w+)", sources, re.MULTILINE)
    tested = {
        f"{letter.upper()}{int(number)}"
        for name in names
        for letter, number in re.findall(r"_([csrok])(\d\d)(?=_)", name)
    }
    assert len(said) == len(set(said))
    assert set(said) == tested


def test_messages_in_the_troubleshooting_table_are_those_of_the_source() -> None:
    # joined as Python joins them, so that a message may be broken over lines
    source = "\n".join(re.sub(r'"\s*\n\s*f?"', "", page(path)) for path in SOURCES)
    messages = [
        quoted(row.cells["Message"])[0]
        for path in PAGES
        for row in rows(path)
        if "Message" in row.cells
    ]
    assert messages
    for message in messages:
        for piece in message.split("…"):
            assert piece.strip() in source, f"nobody says {piece!r}"


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda path: path.name)
def test_relative_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)\s]+)\)", page(path)):
        name, _, anchor = target.partition("#")
        linked = path.parent / name if name else path
        assert linked.exists(), f"{path.name}: {target}"
        if anchor:
            assert anchor in anchors(linked), f"{path.name}: {target}"


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-").strip("-")
        for heading in headings
    }
