"""Nonsense in the settings is named, and where things are kept is where the desktop says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.outcome import assert_failed, stored
from tests.conftest import Tinyllm
from tests.fake_ollama import FakeOllama
from tinyllm_cli.config import SETTINGS, variable

#: For each setting a value that makes no sense; "" of nonsense means that any text would do.
NONSENSE: dict[str, list[str]] = {
    "model": ["\x1b[31m", " "],
    "host": ["http://[::1", "ftp://models", "http://h:99999", "two words", "\x1b"],
    "cache": ["perhaps", "2"],
    "cache_backend": ["disk", "\x1b[31m"],
    "cache_ttl": ["5 apples", "-1", "NaN", "1e999", "99999999999d", "1h30m"],
    "cache_dir": ["\x1b[31m", " "],
    "cache_max_entries": ["0", "-1", "1.5", "many", "9" * 30],
    "cache_max_bytes": ["0", "-1", "1 apple", "NaN", "9" * 30],
    "cache_max_entry_bytes": ["0", "lots"],
    "cache_eviction": ["random"],
    "cache_cloud": ["perhaps"],
    "keep_requests": ["perhaps"],
    "require_cache": ["perhaps"],
    "namespace": ["\x1b[31m", " "],
    "redis_url": ["http://127.0.0.1", "redis://h:port", "redis:/x"],
    "redis_host": ["\x1b[31m", " "],
    "redis_port": ["0", "99999", "six"],
    "redis_password": [],
    "redis_secret": ["short"],
    "redis_timeout": ["soon", "-1", "0"],
    "redis_ca_file": ["\x1b[31m"],
    "redis_cert_file": ["\x1b[31m"],
    "redis_key_file": ["\x1b[31m"],
    "first_byte_timeout": ["soon", "0"],
    "idle_timeout": ["soon", "0", "-1"],
    "log_level": ["loud"],
    "stale_while_revalidate": ["a while", "-1"],
    "stale_if_error": ["a while", "-1"],
    "early_renewal_beta": ["x", "-1", "NaN"],
    "cache_when": ["sometimes"],
    "coherence": ["loose"],
    "digest_max_age": ["old", "-1"],
    "engine": ["steam"],
    "embedded_model": ["\x1b[31m"],
    "data_dir": ["\x1b[31m"],
}


def test_every_setting_is_in_the_table() -> None:
    assert set(NONSENSE) == set(SETTINGS)


@pytest.mark.few(18)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(name, value, marks=[] if value == values[0] else pytest.mark.slow)
        for name, values in NONSENSE.items()
        for value in values
    ],
)
def test_c14_nonsense_in_a_variable_is_named(
    tinyllm: Tinyllm, ollama: FakeOllama, name: str, value: str
) -> None:
    environ = {variable(name): value}
    if name.startswith("redis_"):
        environ["TINYLLM_CACHE_BACKEND"] = "redis"
    done = tinyllm("run", "What?", environ=environ)
    assert_failed(done, 2, variable(name))
    assert done.out == b"" and b"\x1b" not in done.err
    assert ollama.log == []


def test_c14_an_empty_variable_is_one_that_is_not_set(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    names = {name for name in SETTINGS if name != "host"}
    done = tinyllm("run", "What?", environ={variable(name): "" for name in names})
    assert (done.code, done.err) == (0, b"")
    assert ollama.requests("/api/generate")[-1].json()["model"] == "qwen2.5:0.5b"


def test_c14_a_very_long_variable_is_cut(tinyllm: Tinyllm) -> None:
    for name in ("cache_ttl", "cache_backend", "host", "cache_max_bytes"):
        done = tinyllm("run", "What?", environ={variable(name): "x" * 100_000})
        assert_failed(done, 2, variable(name))
        assert len(done.err) < 1000


# The config file.


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"model = ", "is not TOML"),
        (b"\xff\xfe", "is not TOML"),
        (b"cache_ttl = '5 apples'", "cache_ttl in "),
        (b"cache_max_entries = -1", "cache_max_entries in "),
        (b"cache = [true]", "cache in "),
        (b"model = {name = 'x'}", "model in "),
        (b"x = " + b"[" * 20_000, "is not TOML"),
        (b"#" * (1 << 20) + b"##", "larger than"),
    ],
    ids=["cut", "UTF-16", "TTL", "negative", "list", "table", "deep", "large"],
)
def test_c14_a_config_file_that_makes_no_sense(tinyllm: Tinyllm, text: bytes, words: str) -> None:
    tinyllm.config_dir.mkdir()
    config = tinyllm.config_dir / "config.toml"
    config.write_bytes(text)
    assert_failed(tinyllm("run", "What?"), 2, words, str(config))
    assert tinyllm("--help").code == 0


def test_c14_a_directory_where_the_config_file_should_be(tinyllm: Tinyllm) -> None:
    (tinyllm.config_dir / "config.toml").mkdir(parents=True)
    assert_failed(tinyllm("run", "What?"), 2, "config.toml")


# The home.


def test_the_cache_is_where_the_desktop_says(tinyllm: Tinyllm) -> None:
    del tinyllm.environ["TINYLLM_CACHE_DIR"]
    xdg = tinyllm.home / "xdg"
    assert tinyllm("run", "What?", environ={"XDG_CACHE_HOME": str(xdg)}).err == b""
    path = json.loads(tinyllm("cache-stats", "--json", environ={"XDG_CACHE_HOME": str(xdg)}).out)[
        "path"
    ]
    if Path(path).is_relative_to(xdg):  # Linux
        assert stored(xdg / "tinyllm" / "snapshot-v1.sqlite3") == 1
    else:
        assert stored(Path(path)) == 1
