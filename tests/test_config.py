"""Does each setting come from the flag, else the environment, else the file, else its default?"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from tinyllm_cli.config import (
    DEFAULT_MODEL,
    SETTINGS,
    SNAPSHOT_NAME,
    Settings,
    config_file,
    load,
    variable,
)
from tinyllm_cli.errors import ConfigError

# name: default, then what is written and what it means: as a flag, as a variable, in the file
TABLE: dict[str, tuple[Any, tuple[str, Any], tuple[str, Any], tuple[Any, Any]]] = {
    "model": (DEFAULT_MODEL, ("a:1b", "a:1b"), (" b ", "b"), ("c", "c")),
    "host": (None, ("a:1", "a:1"), ("b:2", "b:2"), ("c:3", "c:3")),
    "cache": (True, ("false", False), ("OFF", False), (False, False)),
    "cache_backend": ("memory", ("redis", "redis"), ("Redis", "redis"), ("redis", "redis")),
    "cache_ttl": (3600, ("30s", 30), ("never", None), (90, 90)),
    "cache_dir": (None, ("/a", Path("/a")), ("/b", Path("/b")), ("/c", Path("/c"))),
    "cache_max_entries": (10_000, ("1", 1), ("2", 2), (3, 3)),
    "cache_max_bytes": (256 * 2**20, ("1k", 1024), ("2k", 2048), ("3KiB", 3072)),
    "cache_max_entry_bytes": (8 * 2**20, ("1k", 1024), ("2k", 2048), (3072, 3072)),
    "cache_eviction": ("lru", ("cost", "cost"), ("COST", "cost"), ("lru", "lru")),
    "cache_cloud": (False, ("true", True), ("1", True), (True, True)),
    "keep_requests": (True, ("no", False), ("0", False), (False, False)),
    "require_cache": (False, ("yes", True), ("on", True), (True, True)),
    "namespace": ("", ("a", "a"), ("b", "b"), ("c", "c")),
    "redis_url": (
        "redis://localhost:6379/0",
        ("redis://a", "redis://a"),
        ("redis://b", "redis://b"),
        ("redis://c", "redis://c"),
    ),
    "redis_host": (None, ("a", "a"), ("b", "b"), ("c", "c")),
    "redis_port": (None, ("1", 1), ("6380", 6380), (3, 3)),
    "redis_password": (None, ("a", "a"), ("b", "b"), ("c", "c")),
    "redis_secret": (None, ("a" * 16, "a" * 16), ("b" * 16, "b" * 16), ("c" * 16, "c" * 16)),
    "redis_timeout": (0.5, ("1", 1), ("2", 2), (0.25, 0.25)),
    "redis_ca_file": (None, ("/a", Path("/a")), ("/b", Path("/b")), ("/c", Path("/c"))),
    "redis_cert_file": (None, ("/a", Path("/a")), ("/b", Path("/b")), ("/c", Path("/c"))),
    "redis_key_file": (None, ("/a", Path("/a")), ("/b", Path("/b")), ("/c", Path("/c"))),
    "engine": ("auto", ("ollama",) * 2, ("Embedded", "embedded"), ("auto",) * 2),
    "embedded_model": (None, ("/a", Path("/a")), ("/b", Path("/b")), ("/c", Path("/c"))),
    "data_dir": (None, ("/a", Path("/a")), ("/b", Path("/b")), ("/c", Path("/c"))),
    "first_byte_timeout": (300, ("1", 1), ("2m", 120), (3.5, 3.5)),
    "idle_timeout": (60, ("1", 1), ("2m", 120), (3, 3)),
    "log_level": (None, ("debug", "debug"), ("INFO", "info"), ("error", "error")),
    "stale_while_revalidate": (0, ("1", 1), ("2m", 120), ("3s", 3)),
    "stale_if_error": (0, ("1", 1), ("2m", 120), ("3s", 3)),
    "early_renewal_beta": (0.0, ("1", 1.0), ("0.5", 0.5), (0.25, 0.25)),
    "cache_when": ("all", ("deterministic",) * 2, ("Deterministic", "deterministic"), ("all",) * 2),
    "coherence": ("lazy", ("strict",) * 2, ("STRICT", "strict"), ("lazy",) * 2),
    "digest_max_age": (60, ("1", 1), ("2m", 120), (0, 0)),
}
ORIGINS = ("flag", "variable", "file")
SECRETS = ("redis_password", "redis_secret")  # what stands on a command line is seen by everybody


class Place:
    """A config directory, an environment that names it, and what the user is warned of."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "config.toml"
        self.environ = {"TINYLLM_CONFIG_DIR": str(folder)}
        self.warnings: list[str] = []

    def load(self, **flags: Any) -> Settings:
        return load(flags, self.warnings.append, self.environ)

    def write(self, **settings: Any) -> None:
        lines = (f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
        self.file.write_text("".join(lines))
        self.file.chmod(0o600)  # a file with a secret must be nobody else's to read


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_the_table_knows_every_setting_and_its_default(place: Place) -> None:
    assert TABLE.keys() == SETTINGS.keys()
    settings = place.load()
    for name, (default, *_) in TABLE.items():
        assert getattr(settings, name) == default, name
    assert settings.origins == {}


@pytest.mark.parametrize("name", TABLE)
def test_flag_before_environment_before_file_before_default(place: Place, name: str) -> None:
    default, flag, in_environment, in_file = TABLE[name]
    for given in product((True, False), repeat=3):
        by = dict(zip(ORIGINS, given, strict=True))
        if by["flag"] and name in SECRETS:
            with pytest.raises(ConfigError, match="every user"):
                place.load(**{name: flag[0]})
            continue
        place.environ.pop(variable(name), None)
        if by["variable"]:
            place.environ[variable(name)] = in_environment[0]
        place.write(**({name: in_file[0]} if by["file"] else {}))
        settings = place.load(**({name: flag[0]} if by["flag"] else {}))
        if by["flag"]:
            expected, origin = flag[1], "--" + name.replace("_", "-")
        elif by["variable"]:
            expected, origin = in_environment[1], variable(name)
        elif by["file"]:
            expected, origin = in_file[1], f"{name} in {place.file}"
        else:
            expected, origin = default, None
        assert getattr(settings, name) == expected, by
        assert type(getattr(settings, name)) is type(expected), by
        assert settings.origins.get(name) == origin, by


@pytest.mark.parametrize("name", TABLE)
def test_an_empty_variable_is_one_that_is_not_set(place: Place, name: str) -> None:
    place.environ[variable(name)] = ""
    assert getattr(place.load(), name) == TABLE[name][0]


def test_a_flag_may_be_a_value_ready_to_use(place: Place) -> None:
    settings = place.load(cache=False, cache_max_entries=5, model=None)
    assert (settings.cache, settings.cache_max_entries) == (False, 5)
    assert settings.model == DEFAULT_MODEL


def test_variables_are_named_after_their_setting() -> None:
    assert variable("cache_ttl") == "TINYLLM_CACHE_TTL"
    assert variable("host") == "OLLAMA_HOST"
    assert len({variable(name) for name in SETTINGS}) == len(SETTINGS)


# --- what makes no sense

BAD: dict[str, list[str]] = {
    "model": [" ", "a\x00b", "a\nb", "a\x1b[31mb"],
    "host": [" ", "a\tb"],
    "cache": ["maybe", "2", "truefalse"],
    "cache_backend": ["nope", "memory,redis"],
    "cache_ttl": ["-1", "soon", "1e5", "inf", "5 years"],
    "cache_dir": [" ", "a\x00b", "~nobody-of-this-name/x"],
    "cache_max_entries": ["0", "-5", "1.5", "many", "9" * 400, "\u0665"],
    "cache_max_bytes": ["0", "-1", "big", "1e9"],
    "cache_max_entry_bytes": ["0", "1TB"],
    "cache_eviction": ["fifo"],
    "cache_cloud": ["maybe"],
    "redis_host": [" ", "a\x00b"],
    "redis_port": ["0", "65536", "x", "-1"],
    "redis_password": [],
    "redis_secret": ["short"],
    "redis_timeout": ["-1", "soon"],
    "redis_ca_file": [" ", "a\x00b"],
    "redis_cert_file": [" "],
    "redis_key_file": [" "],
    "engine": ["steam"],
    "embedded_model": [" ", "a\x00b"],
    "data_dir": [" ", "a\x00b"],
    "keep_requests": ["sometimes"],
    "require_cache": ["?"],
    "namespace": [" ", "a\nb"],
    "redis_url": [" ", "redis://:pass\x07word@h"],
    "first_byte_timeout": ["0", "-1", "soon", "inf", "9" * 400],
    "idle_timeout": ["0", "-1", "nan"],
    "log_level": ["loud", "10"],
    "stale_while_revalidate": ["-1", "never"],
    "stale_if_error": ["-1", "x"],
    "early_renewal_beta": ["-1", "nan", "inf", "x"],
    "cache_when": ["sometimes"],
    "coherence": ["loose"],
    "digest_max_age": ["-1", "x"],
}


def test_the_table_of_bad_values_knows_every_setting() -> None:
    assert BAD.keys() == SETTINGS.keys()


@pytest.mark.parametrize(("name", "bad"), [(name, bad) for name in BAD for bad in BAD[name]])
def test_a_bad_value_is_an_error_that_names_where_it_stands(
    place: Place, name: str, bad: str
) -> None:
    with pytest.raises(ConfigError) as by_flag:
        place.load(**{name: bad})
    place.environ[variable(name)] = bad
    with pytest.raises(ConfigError) as by_variable:
        place.load()
    del place.environ[variable(name)]
    place.write(**{name: bad})
    with pytest.raises(ConfigError) as by_file:
        place.load()
    for raised, origin in (
        (by_flag, "--" + name.replace("_", "-")),
        (by_variable, variable(name)),
        (by_file, f"{name} in {place.file}"),
    ):
        reason = str(raised.value)
        assert reason.startswith(f"{origin}: ")
        assert reason.isprintable()
        assert len(reason) < 200 + len(origin)


def test_a_bad_value_in_the_file_does_no_harm_where_a_flag_is_given(place: Place) -> None:
    place.write(cache_ttl="soon")
    assert place.load(cache_ttl="5").cache_ttl == 5


def test_no_message_shows_a_password(place: Place) -> None:
    with pytest.raises(ConfigError) as raised:
        place.load(redis_url="redis://:hunter2\x07@h")
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "line",
    ["cache_ttl = [1]", "cache_ttl = 2026-01-01", "cache_ttl = {a = 1}", "[cache]\nttl = 1"],
)
def test_a_value_of_another_kind_in_the_file_is_refused(place: Place, line: str) -> None:
    place.file.write_text(line)
    with pytest.raises(ConfigError, match=r"config\.toml"):
        place.load()


@pytest.mark.parametrize(
    ("line", "name"),
    [("cache_ttl = true", "cache_ttl"), ("cache_ttl = inf", "cache_ttl"), ("cache = 2", "cache")],
)
def test_a_number_or_boolean_in_the_file_is_read_as_its_text(
    place: Place, line: str, name: str
) -> None:
    place.file.write_text(line)
    with pytest.raises(ConfigError, match=name):
        place.load()


# --- the file itself


def test_an_unknown_setting_is_named_once_and_ignored(place: Place) -> None:
    place.write(cache_tll=5, model="m", zebra=1)
    assert place.load().model == "m"
    assert place.warnings == [
        f"{place.file}: unknown setting 'cache_tll'; it is ignored",
        f"{place.file}: unknown setting 'zebra'; it is ignored",
    ]


def test_a_setting_with_an_odd_name_cannot_colour_the_terminal(place: Place) -> None:
    place.file.write_text('"\\u001b[31m' + "x" * 500 + '" = 1\n')
    place.load()
    (warning,) = place.warnings
    assert warning.isprintable()
    assert len(warning) < 150 + len(str(place.file))


def test_no_file_no_directory_and_an_empty_file_are_all_the_same(place: Place) -> None:
    assert place.load().origins == {}
    place.file.write_bytes(b"")
    assert place.load().origins == {}
    place.environ["TINYLLM_CONFIG_DIR"] += "/nowhere/at/all"
    assert place.load().origins == {}
    place.environ["TINYLLM_CONFIG_DIR"] = str(place.file)
    assert place.load().origins == {}
    assert place.warnings == []


BROKEN: dict[str, Callable[[Path], object]] = {
    "not TOML": lambda file: file.write_text("model = "),
    "twice": lambda file: file.write_text("model = 'a'\nmodel = 'b'\n"),
    "binary": lambda file: file.write_bytes(os.urandom(100) + b"\xff\x00"),
    "UTF-16": lambda file: file.write_bytes("model = 'm'".encode("utf-16")),
    "huge": lambda file: file.write_bytes(b"#" * (2**20 + 1)),
    "deep": lambda file: file.write_text("a = " + "[" * 100_000),
    "a number of 5000 digits": lambda file: file.write_text("a = " + "9" * 5000),
    "a directory": lambda file: file.mkdir(),
    "a link to itself": lambda file: file.symlink_to(file),
}


@pytest.mark.parametrize("break_it", BROKEN.values(), ids=BROKEN.keys())
def test_a_file_that_cannot_be_read_is_named(
    place: Place, break_it: Callable[[Path], object]
) -> None:
    break_it(place.file)
    with pytest.raises(ConfigError) as raised:
        place.load()
    assert str(place.file) in str(raised.value)
    assert raised.value.hint


def test_a_file_of_just_under_the_limit_is_read(place: Place) -> None:
    place.file.write_bytes(b'model = "m"\n' + b"#" * (2**20 - 12))
    assert place.load().model == "m"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_named(place: Place) -> None:
    place.write(model="m")
    place.file.chmod(0)
    with pytest.raises(ConfigError, match="Permission"):
        place.load()


def test_the_environment_is_read_when_asked_for_and_not_before(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYLLM_CONFIG_DIR", place.environ["TINYLLM_CONFIG_DIR"])
    monkeypatch.setenv("TINYLLM_MODEL", "first")
    assert load({}, place.warnings.append).model == "first"
    monkeypatch.setenv("TINYLLM_MODEL", "second")
    assert load({}, place.warnings.append).model == "second"


# --- directories

HOMES: dict[str, dict[str, str | None]] = {
    "nothing set": {},
    "set": {"XDG_CACHE_HOME": "/x/cache", "XDG_CONFIG_HOME": "/x/config"},
    "set with a slash": {"XDG_CACHE_HOME": "/x/cache/", "XDG_CONFIG_HOME": "/x/config/"},
    "empty": {"XDG_CACHE_HOME": "", "XDG_CONFIG_HOME": ""},
    "blank": {"XDG_CACHE_HOME": "  ", "XDG_CONFIG_HOME": " "},
    "with spaces": {"XDG_CACHE_HOME": "/x y/\u00e4", "XDG_CONFIG_HOME": "/x y/\u00e4"},
    "another home": {"HOME": "/home/of/another"},
    "no home": {"HOME": None},
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere platformdirs is asked")
@pytest.mark.parametrize("environ", HOMES.values(), ids=HOMES.keys())
def test_directories_are_those_of_platformdirs(
    environ: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    caches = platformdirs.user_cache_path("tinyllm", appauthor=False)
    configs = platformdirs.user_config_path("tinyllm", appauthor=False)
    assert Settings({}, {}).snapshot_path() == caches / SNAPSHOT_NAME
    assert config_file({}) == configs / "config.toml"


def test_a_relative_base_directory_is_ignored_as_its_standard_demands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    if sys.platform.startswith("linux"):
        assert Settings({}, {}).snapshot_path() == Path("/h/.cache/tinyllm") / SNAPSHOT_NAME


def test_ones_own_directories(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    settings = place.load(cache_dir="~/answers")
    assert settings.snapshot_path() == Path("/h/answers") / SNAPSHOT_NAME
    assert config_file({"TINYLLM_CONFIG_DIR": "~/c"}) == Path("/h/c/config.toml")


def test_a_home_of_nobody_is_an_error_that_names_the_variable() -> None:
    with pytest.raises(ConfigError, match="TINYLLM_CONFIG_DIR"):
        config_file({"TINYLLM_CONFIG_DIR": "~nobody-of-this-name/c"})
