"""Does `tinyllm doctor` find what is wrong, say what to do, and change nothing unless it is asked to?"""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.outcome import stored
from tests.cli.terminal import Terminal
from tests.conftest import Finished, Tinyllm
from tests.fake_ollama import FakeOllama, Fault
from tests.redis_server import RedisServer, free_port
from tests.samples import entry, key_of
from tinyllm_cli.backends.memory import InMemoryBackend

MODEL = "qwen2.5:0.5b"


def record(tinyllm: Tinyllm, *arguments: str, code: int = 0, **options: Any) -> dict[str, Any]:
    done = tinyllm("doctor", "--json", *arguments, **options)
    assert (done.code, done.err) == (code, b""), done
    made: dict[str, Any] = json.loads(done.out)
    assert made["well"] is (code == 0)
    return made


def lines(made: dict[str, Any], check: str) -> list[tuple[str, str]]:
    return [(one["state"], one["text"]) for one in made["checks"] if one["check"] == check]


def problem(made: dict[str, Any]) -> tuple[str, str, str]:
    """Return the check, text and hint of the one problem there is."""
    (one,) = [one for one in made["checks"] if one["state"] == "problem"]
    assert one["hint"]
    return one["check"], one["text"], one["hint"]


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.lstat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }


# --- a sound installation


def test_all_is_well_before_anything_was_asked_and_nothing_is_created(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    before = tree(tinyllm.home)
    done = tinyllm("doctor")
    assert (done.code, done.err) == (0, b"")
    assert "none yet" in done.text and MODEL in done.text and ollama.url in done.text
    assert tree(tinyllm.home) == before


def test_all_is_well_after_a_run(tinyllm: Tinyllm) -> None:
    tinyllm("run", "What?")
    before = tree(tinyllm.home)
    made = record(tinyllm)
    ((state, text),) = lines(made, "snapshot")
    assert state == "ok" and "1 sound entry" in text and str(tinyllm.snapshot) in text
    assert {one["state"] for one in made["checks"]} == {"ok"}
    assert tree(tinyllm.home) == before


def test_versions_are_told(tinyllm: Tinyllm) -> None:
    ((state, text),) = lines(record(tinyllm), "versions")
    assert state == "ok"
    for name in ("tinyllm ", "Python 3.", "SQLite 3.", "typer ", "httpx ", "redis ", "pydantic "):
        assert name in text


def test_each_setting_says_where_it_comes_from_and_no_secret(tinyllm: Tinyllm) -> None:
    tinyllm.config_dir.mkdir()
    config = tinyllm.config_dir / "config.toml"
    config.write_text('cache_ttl = "7d"\nredis_secret = "hunter2hunter2hunter2"\ncolour = 1\n')
    config.chmod(0o600)
    url = "redis://user:hunter2@127.0.0.1:1/0"
    made = record(tinyllm, "-m", MODEL, environ={"TINYLLM_REDIS_URL": url})
    assert made["settings"]["cache_ttl"] == {
        "value": "604800",
        "origin": f"cache_ttl in {config}",
    }
    assert made["settings"]["model"] == {"value": MODEL, "origin": "--model"}
    assert made["settings"]["host"]["origin"] == "OLLAMA_HOST"
    assert made["settings"]["redis_secret"]["value"] == "***"
    assert "hunter2" not in json.dumps(made)
    assert any(state == "warning" and "colour" in text for state, text in lines(made, "settings"))


# --- what is wrong


def test_a_config_that_makes_no_sense_is_the_problem(tinyllm: Tinyllm) -> None:
    made = record(tinyllm, environ={"TINYLLM_CACHE_TTL": "5 apples"}, code=2)
    check, text, _ = problem(made)
    assert check == "settings" and "TINYLLM_CACHE_TTL" in text


def test_no_ollama(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    ollama.stop()
    check, text, advice = problem(record(tinyllm, code=3))
    assert check == "ollama" and ollama.url in text and "ollama serve" in advice
    ollama.start()
    record(tinyllm)


@pytest.mark.slow
def test_a_frozen_ollama_is_not_waited_for(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    ollama.inject(Fault.stall_headers(), path="/")
    assert problem(record(tinyllm, code=3))[0] == "ollama"


def test_a_model_that_is_not_there(tinyllm: Tinyllm) -> None:
    check, text, advice = problem(record(tinyllm, "-m", "nosuch:1b", code=4))
    assert check == "model" and "nosuch:1b" in text and "pull nosuch:1b" in advice


def _is_a_file(tinyllm: Tinyllm) -> None:
    tinyllm.cache_dir.write_text("not a directory")


def _is_a_directory(tinyllm: Tinyllm) -> None:
    tinyllm.snapshot.mkdir(parents=True, mode=0o700)


def _is_a_link(tinyllm: Tinyllm) -> None:
    tinyllm.cache_dir.mkdir(mode=0o700)
    tinyllm.snapshot.symlink_to(tinyllm.home / "elsewhere")


def _is_newer(tinyllm: Tinyllm) -> None:
    tinyllm("run", "What?")
    database = sqlite3.connect(tinyllm.snapshot)
    database.executescript("PRAGMA user_version = 99; CREATE TABLE future (x)")
    database.close()


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_is_a_file, "snapshot"),
        (_is_a_directory, "not a regular file"),
        (_is_a_link, "not a regular file"),
        (_is_newer, "newer tinyllm"),
    ],
)
def test_what_cannot_be_the_snapshot(
    tinyllm: Tinyllm, spoil: Callable[[Tinyllm], None], words: str
) -> None:
    spoil(tinyllm)
    before = tree(tinyllm.home)
    check, text, _ = problem(record(tinyllm, code=6))
    assert check == "snapshot" and words in text
    assert tree(tinyllm.home) == before


@pytest.mark.slow
def test_a_locked_snapshot_is_said_to_be_so(tinyllm: Tinyllm) -> None:
    tinyllm("run", "What?")
    holder = sqlite3.connect(tinyllm.snapshot, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        assert "locked" in problem(record(tinyllm, code=6))[1]
    finally:
        holder.close()
    record(tinyllm)


# --- what it can mend


def mended(tinyllm: Tinyllm, *words: str) -> Finished:
    """Have it mended; return what was said. The next check finds nothing, and changes nothing."""
    done = tinyllm("doctor", "--fix")
    assert (done.code, done.err) == (0, b""), done
    for word in words:
        assert word in done.text
    after = tree(tinyllm.home)
    record(tinyllm)
    assert tree(tinyllm.home) == after
    return done


def test_an_entry_that_rotted_is_found_and_taken_out_alone(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    first = tinyllm("run", "What?")
    tinyllm("run", "What else?")
    database = sqlite3.connect(tinyllm.snapshot)
    database.execute(
        "UPDATE entries SET body = CAST(replace(body, 'qwen', 'qwem') AS BLOB) "
        "WHERE rowid = (SELECT max(rowid) FROM entries)"
    )
    database.commit()
    database.close()
    before = tree(tinyllm.home)
    check, text, advice = problem(record(tinyllm, code=6))
    assert check == "snapshot" and "1 of 2" in text and "--fix" in advice
    assert tree(tinyllm.home) == before
    mended(tinyllm, "removed 1", "1 sound")
    assert stored(tinyllm.snapshot) == 1
    assert tinyllm("run", "What?").out == first.out
    assert ollama.generations == 2


@pytest.mark.slow
def test_a_damaged_file_is_found_and_moved_aside(tinyllm: Tinyllm) -> None:
    for n in range(40):
        store(tinyllm, n)
    data = bytearray(tinyllm.snapshot.read_bytes())
    data[4096 * 2 :] = os.urandom(len(data) - 4096 * 2)
    tinyllm.snapshot.write_bytes(data)
    before = tree(tinyllm.home)
    assert "damaged" in problem(record(tinyllm, code=6))[1]
    assert tree(tinyllm.home) == before
    mended(tinyllm, "moved to", "0 sound entries")
    kept = [one.name for one in tinyllm.cache_dir.glob("*.corrupt-*[0-9]")]
    assert len(kept) == 1
    warnings = [text for state, text in lines(record(tinyllm), "snapshot") if state == "warning"]
    assert len(warnings) == 1 and kept[0] in warnings[0]


def store(tinyllm: Tinyllm, number: int) -> None:
    tinyllm.cache_dir.mkdir(mode=0o700, exist_ok=True)
    backend = InMemoryBackend(snapshot=tinyllm.snapshot)
    backend.set_nowait(key_of(str(number)), entry("word " * 300))
    backend.close_nowait()


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_what_others_may_do_is_taken_from_them(tinyllm: Tinyllm) -> None:
    tinyllm("run", "What?")
    tinyllm.cache_dir.chmod(0o755)
    tinyllm.snapshot.chmod(0o644)
    made = record(tinyllm)
    warned = [text for state, text in lines(made, "snapshot") if state == "warning"]
    assert len(warned) == 2 and all("other users" in text for text in warned)
    tinyllm.cache_dir.chmod(0o777)
    assert "written by other users" in problem(record(tinyllm, code=6))[1]
    mended(tinyllm, "700", "600")
    assert stat.S_IMODE(tinyllm.cache_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE(tinyllm.snapshot.stat().st_mode) == 0o600


# --- Redis


def test_redis_is_looked_at_where_it_is_used(tinyllm: Tinyllm) -> None:
    with RedisServer() as server:
        environ = {"TINYLLM_REDIS_URL": server.url}
        assert lines(record(tinyllm, environ=environ), "redis") == []
        before = server.client().dbsize()
        made = record(tinyllm, "--backend", "redis", environ=environ)
        ((_, text),) = lines(made, "redis")
        assert "a look-up takes" in text and str(server.port) in text
        assert lines(made, "snapshot") == []
        assert lines(record(tinyllm, "--backend", "tiered", environ=environ), "snapshot")
        assert server.client().dbsize() == before


def test_a_redis_that_is_away_or_refuses(tinyllm: Tinyllm) -> None:
    url = f"redis://:hunter2@127.0.0.1:{free_port()}/0"
    made = record(tinyllm, "--backend", "redis", environ={"TINYLLM_REDIS_URL": url}, code=6)
    check, text, _ = problem(made)
    assert check == "redis" and "refused" in text and "hunter2" not in json.dumps(made)
    with RedisServer() as server:
        url = f"redis://:hunter2@127.0.0.1:{server.port}/0"
        made = record(tinyllm, "--backend", "redis", environ={"TINYLLM_REDIS_URL": url}, code=6)
        assert "authentication failed" in problem(made)[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rights", "code", "words"),
    [
        (["+getrange", "+hincrby"], 6, "SET"),
        (["+getrange", "+set", "+hincrby"], 6, "UNLINK"),
        (["+getrange", "+set", "+hincrby", "+unlink", "+pttl"], 0, "HGETALL"),
    ],
)
def test_rights_that_are_missing_are_named(
    tinyllm: Tinyllm, rights: list[str], code: int, words: str
) -> None:
    with RedisServer() as server:
        user = {"enabled": True, "passwords": ["+word"], "keys": ["tinyllm:cache:*"]}
        server.client().acl_setuser("team", **user, commands=rights, reset=True)
        url = f"redis://team:word@127.0.0.1:{server.port}/0"
        environ = {"TINYLLM_REDIS_URL": url}
        made = record(tinyllm, "--backend", "redis", environ=environ, code=code)
        told = [text for _, text in lines(made, "redis") if "lacks the rights" in text]
        assert len(told) == 1 and words in told[0] and "GETRANGE" not in told[0]
        assert server.client().keys("*") == []


# --- how it looks


def test_on_a_terminal_it_is_coloured_unless_that_is_unwanted(tinyllm: Tinyllm) -> None:
    with Terminal(tinyllm, "doctor", size=(24, 40)) as terminal:
        assert terminal.finish() == 0
        assert "\x1b[32mok" in terminal.text
    with Terminal(tinyllm, "doctor", environ={"NO_COLOR": "1"}) as terminal:
        assert terminal.finish() == 0
        assert "\x1b[32m" not in terminal.text and "ok       model" in terminal.text
