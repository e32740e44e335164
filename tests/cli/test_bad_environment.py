"""A strange machine: nonsense in the settings, a cache that is no cache, no home. Still an answer."""

from __future__ import annotations

import ctypes
import json
import os
import sqlite3
import sys
from pathlib import Path

import pytest

from tests.cli.outcome import assert_failed, finish, stored
from tests.conftest import Finished, Tinyllm
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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(name, value, marks=[] if value == values[0] else pytest.mark.slow)
        for name, values in NONSENSE.items()
        for value in values
    ],
)
def test_nonsense_in_a_variable_is_a_usage_error_that_names_it(
    tinyllm: Tinyllm, ollama: FakeOllama, name: str, value: str
) -> None:
    environ = {variable(name): value}
    if name.startswith("redis_"):
        environ["TINYLLM_CACHE_BACKEND"] = "redis"
    done = tinyllm("run", "What?", environ=environ)
    assert_failed(done, 2, variable(name))
    assert done.out == b"" and b"\x1b" not in done.err
    assert ollama.log == []


def test_an_empty_variable_is_one_that_is_not_set(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    names = {name for name in SETTINGS if name != "host"}
    done = tinyllm("run", "What?", environ={variable(name): "" for name in names})
    assert (done.code, done.err) == (0, b"")
    assert ollama.requests("/api/generate")[-1].json()["model"] == "qwen2.5:0.5b"


def test_a_very_long_variable_is_cut_in_the_complaint(tinyllm: Tinyllm) -> None:
    for name in ("cache_ttl", "cache_backend", "host", "cache_max_bytes"):
        done = tinyllm("run", "What?", environ={variable(name): "x" * 100_000})
        assert_failed(done, 2, variable(name))
        assert len(done.err) < 1000


# The config file.


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
def test_a_config_file_that_makes_no_sense_is_named(
    tinyllm: Tinyllm, text: bytes, words: str
) -> None:
    tinyllm.config_dir.mkdir()
    config = tinyllm.config_dir / "config.toml"
    config.write_bytes(text)
    assert_failed(tinyllm("run", "What?"), 2, words, str(config))
    assert tinyllm("--help").code == 0


def test_a_directory_where_the_config_file_should_be(tinyllm: Tinyllm) -> None:
    (tinyllm.config_dir / "config.toml").mkdir(parents=True)
    assert_failed(tinyllm("run", "What?"), 2, "config.toml")


# The cache.


def _assert_answered(done: Finished, *words: str) -> None:
    """The answer came, and one line says what the matter is."""
    assert done.code == 0 and done.out.startswith(b"Answer "), done
    assert done.err.startswith(b"tinyllm: cache: ") and done.err.count(b"\n") == 1, done
    for word in words:
        assert word in done.complaint, done


def test_a_directory_where_the_snapshot_should_be(tinyllm: Tinyllm) -> None:
    tinyllm.snapshot.mkdir(parents=True, mode=0o700)
    tinyllm.cache_dir.chmod(0o700)
    _assert_answered(tinyllm("run", "What?"), "is not a regular file")
    quiet = tinyllm("run", "What?", "-q")
    assert (quiet.code, quiet.err) == (0, b"")
    assert_failed(tinyllm("run", "What?", "--require-cache"), 6, "is not a regular file")
    assert_failed(tinyllm("cache-stats"), 6, "is not a regular file")
    assert_failed(tinyllm("cache-clear", "--yes"), 6, "is not a regular file")
    assert tinyllm("run", "What?", "--cache-only").code == 7
    assert tinyllm("run", "What?", "--no-cache").err == b""
    assert list(tinyllm.snapshot.iterdir()) == []


def test_a_file_where_the_directory_should_be(tinyllm: Tinyllm) -> None:
    tinyllm.cache_dir.write_text("mine")
    _assert_answered(tinyllm("run", "What?"))
    assert tinyllm.cache_dir.read_text() == "mine"


@pytest.mark.parametrize("damage", ["text", "zeros", "cut", "empty schema"])
def test_a_damaged_snapshot_heals_in_the_same_run(
    tinyllm: Tinyllm, ollama: FakeOllama, damage: str
) -> None:
    tinyllm("run", "What?")
    if damage == "empty schema":
        database = sqlite3.connect(tinyllm.snapshot)
        database.execute("DROP TABLE entries")
        database.close()
    else:
        whole = tinyllm.snapshot.read_bytes()
        text = {"text": b"not a database\n" * 500, "zeros": bytes(9000), "cut": whole[:5000]}
        tinyllm.snapshot.write_bytes(text[damage])
    _assert_answered(tinyllm("run", "What?"), "moved to", "started afresh")
    hit = tinyllm("run", "What?")
    assert (hit.code, hit.err, ollama.generations) == (0, b"", 2)
    assert len(list(tinyllm.cache_dir.glob("*.corrupt-*"))) >= 1


def test_an_entry_that_was_tampered_with_is_a_miss(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    first = tinyllm("run", "What?")
    database = sqlite3.connect(tinyllm.snapshot)
    with database:
        database.execute("UPDATE entries SET body = replace(body, 'Answer', 'Forged')")
    database.close()
    ollama.drift = True
    second = tinyllm("run", "What?")
    assert (second.code, second.err) == (0, b"")
    assert b"Forged" not in second.out and second.out != first.out
    assert ollama.generations == 2


def test_a_snapshot_of_a_newer_release_is_left_alone(tinyllm: Tinyllm) -> None:
    tinyllm.cache_dir.mkdir(mode=0o700)
    database = sqlite3.connect(tinyllm.snapshot)
    with database:
        database.execute("CREATE TABLE future (a)")
        database.execute("PRAGMA user_version = 99")
    database.close()
    tinyllm.snapshot.chmod(0o600)
    before = tinyllm.snapshot.read_bytes()
    _assert_answered(tinyllm("run", "What?"), "newer tinyllm")
    assert tinyllm.snapshot.read_bytes() == before


def test_a_cache_others_could_write_is_not_used(tinyllm: Tinyllm) -> None:
    tinyllm.cache_dir.mkdir()
    tinyllm.cache_dir.chmod(0o777)
    _assert_answered(tinyllm("run", "What?"), "other users")
    assert list(tinyllm.cache_dir.iterdir()) == []


def test_a_symbolic_link_is_not_followed(tinyllm: Tinyllm) -> None:
    victim = tinyllm.home / "victim.txt"
    victim.write_text("mine")
    tinyllm.cache_dir.mkdir(mode=0o700)
    tinyllm.snapshot.symlink_to(victim)
    _assert_answered(tinyllm("run", "What?"))
    assert victim.read_text() == "mine"


def test_a_locked_snapshot_is_waited_for_only_briefly(tinyllm: Tinyllm) -> None:
    tinyllm("run", "What?")
    lock = sqlite3.connect(tinyllm.snapshot, isolation_level=None)
    try:
        lock.execute("BEGIN EXCLUSIVE")
        _assert_answered(tinyllm("run", "What?"), "locked")
    finally:
        lock.close()


def _without_privileges() -> None:
    """Let the modes of files count for root as well, whose programs otherwise ignore them."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in (1, 2, 3):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
            if libc.prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP
                os._exit(99)


def _modestly(tinyllm: Tinyllm, *arguments: str) -> Finished:
    done = finish(tinyllm.start(*arguments, preexec_fn=_without_privileges))
    if done.code == 99:
        pytest.skip("root may not give up its privileges here")
    return done


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
root_only = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away"
)


@linux_only
def test_a_cache_that_can_only_be_read_still_answers(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    first = _modestly(tinyllm, "run", "What?")
    assert (first.code, first.err) == (0, b"")
    tinyllm.snapshot.chmod(0o400)
    tinyllm.cache_dir.chmod(0o500)
    try:
        hit = _modestly(tinyllm, "run", "What?")
        assert (hit.code, hit.out) == (0, first.out)
        assert hit.err.count(b"\n") <= 1
        assert ollama.generations == 1
        _assert_answered(_modestly(tinyllm, "run", "Something else?"))
    finally:
        tinyllm.cache_dir.chmod(0o700)


@linux_only
def test_a_directory_that_cannot_be_written(tinyllm: Tinyllm) -> None:
    tinyllm.cache_dir.mkdir(mode=0o500)
    try:
        _assert_answered(_modestly(tinyllm, "run", "What?"), "cannot create")
        assert_failed(_modestly(tinyllm, "run", "What?", "--require-cache"), 6, "cannot create")
    finally:
        tinyllm.cache_dir.chmod(0o700)


@linux_only
def test_a_directory_that_cannot_be_made(tinyllm: Tinyllm) -> None:
    tinyllm.home.chmod(0o500)
    try:
        _assert_answered(_modestly(tinyllm, "run", "What?"), "cannot create")
    finally:
        tinyllm.home.chmod(0o700)


@root_only
@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_cache_of_somebody_else_is_not_used(tinyllm: Tinyllm, what: str) -> None:
    tinyllm("run", "What?")
    os.chown(tinyllm.snapshot if what == "file" else tinyllm.cache_dir, 65534, 65534)
    before = tinyllm.snapshot.read_bytes()
    _assert_answered(tinyllm("run", "What?"), "belongs to another user")
    assert_failed(tinyllm("cache-stats"), 6, "belongs to another user")
    assert tinyllm.snapshot.read_bytes() == before


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


@pytest.mark.parametrize("home", ["/nonexistent", "", "relative"])
def test_a_home_that_is_none_costs_at_most_the_cache(tinyllm: Tinyllm, home: str) -> None:
    del tinyllm.environ["TINYLLM_CACHE_DIR"], tinyllm.environ["TINYLLM_CONFIG_DIR"]
    xdg = str(tinyllm.home / "xdg")  # this machine's real home is not for tests
    done = tinyllm("run", "What?", environ={"HOME": home, "XDG_CACHE_HOME": xdg})
    assert (done.code, done.err) == (0, b"")


def test_a_proxy_in_the_environment_is_not_asked_about_this_machine(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    proxy = "http://127.0.0.1:1"
    names = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy")
    assert tinyllm("run", "What?", environ=dict.fromkeys(names, proxy)).code == 0
    assert ollama.generations == 1


def test_the_cache_directory_may_go_at_any_time(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    tinyllm("run", "What?")
    barrier = ollama.hold(times=1)
    process = tinyllm.start("run", "Why?")
    barrier.wait_for(1)
    tinyllm.cache_dir.rename(tinyllm.home / "moved")
    barrier.release()
    done = finish(process)
    assert done.code == 0 and done.err.count(b"\n") <= 1
    for _ in ("miss", "hit"):
        again = tinyllm("run", "What?")
        assert (again.code, again.err) == (0, b"")
    assert ollama.generations == 3
