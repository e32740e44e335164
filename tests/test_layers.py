"""Does every module stand in its place, importing downwards only, and heavy things only in rooms?"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tinyllm_cli"

# From the ground up. A module imports from the layers below its own, and a package from itself.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"_version", "errors", "logs", "metrics", "model_name", "sha", "values"}),
    frozenset({"packing", "request", "response"}),
    frozenset({"entry", "key", "ollama"}),
    frozenset({"codec", "embedded", "eviction", "explain", "flight", "policy", "replay"}),
    frozenset({"quantities", "reply"}),
    frozenset({"backends"}),
    frozenset({"cache", "lease"}),
    frozenset({"coherence"}),
    frozenset({"asking"}),
    frozenset({"client"}),
    frozenset({"config"}),
    frozenset({"cli"}),
    frozenset({"__init__", "__main__"}),
)
# Below one another or not, these do not know each other: only `asking` and `client` know both.
STRANGERS = {
    ("cache", "ollama"),
    ("cache", "embedded"),
    ("backends", "ollama"),
    ("lease", "ollama"),
}
STRANGERS |= {("backends", "embedded"), ("embedded", "entry"), ("ollama", "key")}

PLACE = {name: number for number, layer in enumerate(LAYERS) for name in layer}


def modules() -> dict[str, Path]:
    """Return every module by its dotted name inside the package."""
    found: dict[str, Path] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and parts[1:] else parts)] = path
    return found


MODULES = modules()


def imports(name: str) -> Iterator[str]:
    """Yield the modules of the package that a module imports, anywhere in its text."""
    path = MODULES[name]
    folder = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("tinyllm_cli") for alias in node.names), name
        if isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith("tinyllm_cli"), f"{name}: import relatively"
            if node.level:
                base = (*folder[: len(folder) - node.level + 1], *(node.module or "").split("."))
                stem = ".".join(part for part in base if part)
                for alias in node.names:
                    inner = f"{stem}.{alias.name}".strip(".")
                    yield inner if inner in MODULES else stem or "__init__"


def top(name: str) -> str:
    return name.split(".")[0]


def test_every_module_has_a_place_and_every_place_a_module() -> None:
    assert {top(name) for name in MODULES} == PLACE.keys()


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downwards(name: str) -> None:
    upwards = {
        other
        for other in imports(name)
        if top(other) != top(name) and PLACE[top(other)] >= PLACE[top(name)]
    }
    assert upwards == set()


@pytest.mark.parametrize(("one", "other"), sorted(STRANGERS))
def test_strangers_do_not_know_each_other(one: str, other: str) -> None:
    known = {imported for name in MODULES if top(name) == one for imported in imports(name)}
    assert other not in {top(imported) for imported in known}


def test_no_module_imports_itself_by_a_detour() -> None:
    # a package's __init__ opens its modules inside a function, which is no import at load time
    below = {
        name: {other for other in imports(name) if other != name}
        for name, path in MODULES.items()
        if path.name != "__init__.py" and top(name) != "cli"
    }
    while below:
        ground = {name for name, others in below.items() if not others & below.keys()}
        assert ground, f"a circle among {sorted(below)}"
        below = {name: others for name, others in below.items() if name not in ground}


# --- doors and rooms

CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LINT = CONFIG["tool"]["ruff"]["lint"]
HEAVY = {"asyncio", "httpx", "redis", "rich", "pydantic", "platformdirs", "tomllib"}


def listed_for(rule: str) -> set[Path]:
    return {
        path
        for pattern, rules in LINT["per-file-ignores"].items()
        if rule in rules and pattern.startswith("tinyllm_cli/")
        for path in ROOT.glob(pattern)
    }


def loaded_at_import(path: Path) -> set[str]:
    """Return the top-level names of what a module imports when it is loaded."""
    found: set[str] = set()
    places: list[ast.stmt] = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while places:
        node = places.pop()
        if isinstance(node, ast.Import):
            found |= {top(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(top(node.module or ""))
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            places += node.orelse
        elif isinstance(node, (ast.If, ast.Try, ast.With, ast.ClassDef)):
            places += [inner for inner in ast.iter_child_nodes(node) if isinstance(inner, ast.stmt)]
    return found


def test_the_linter_knows_what_is_heavy() -> None:
    banned = LINT["flake8-tidy-imports"]["banned-module-level-imports"]
    assert set(banned) >= HEAVY
    assert {"PLC0415", "TID253"} <= set(LINT["select"])


@pytest.mark.parametrize("name", MODULES)
def test_what_is_heavy_is_loaded_in_rooms_only(name: str) -> None:
    if MODULES[name] not in listed_for("TID253"):
        assert loaded_at_import(MODULES[name]) & HEAVY == set()


def test_every_room_is_needed() -> None:
    empty = {path.name for path in listed_for("TID253") if not loaded_at_import(path) & HEAVY}
    assert empty == set()


def test_every_door_and_room_exists() -> None:
    patterns = [name for name in LINT["per-file-ignores"] if name.startswith("tinyllm_cli/")]
    assert [pattern for pattern in patterns if not list(ROOT.glob(pattern))] == []


# --- who may talk to the outside


@pytest.mark.parametrize("name", [name for name in MODULES if top(name) not in ("cli", "__main__")])
def test_only_the_command_line_prints(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert calls.isdisjoint({"print", "input", "exit", "sys.exit"}) or "worker" in name
    assert loaded_at_import(MODULES[name]).isdisjoint({"typer", "click"})


@pytest.mark.parametrize("name", [name for name in MODULES if PLACE[top(name)] < PLACE["config"]])
def test_below_the_settings_only_clients_read_the_environment(name: str) -> None:
    if top(name) not in ("ollama", "embedded"):
        text = MODULES[name].read_text(encoding="utf-8")
        assert "os.environ" not in text and "getenv" not in text
