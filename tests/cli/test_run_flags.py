"""Every flag and every variable changes something that can be seen; one without a row here fails."""

from __future__ import annotations

import json
import shlex
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import typer.main

from tests.cli.outcome import stored
from tests.cli.terminal import Terminal
from tests.conftest import COMMAND, Finished, Tinyllm
from tests.fake_ollama import FakeOllama
from tinyllm_cli.cli.app import app
from tinyllm_cli.config import SETTINGS, variable

NOWHERE = "redis://127.0.0.1:1/0"
ANSWER = "one two three"


@dataclass(frozen=True)
class Bench:
    """What a row works with."""

    tinyllm: Tinyllm
    ollama: FakeOllama
    redis_url: Callable[[], str]
    another: Callable[[str], Tinyllm]

    def run(self, *arguments: str, code: int = 0, **options: Any) -> Finished:
        done = self.tinyllm("run", *arguments, **options)
        assert done.code == code, done
        return done

    def sent(self, *arguments: str, **options: Any) -> dict[str, Any]:
        """Run a prompt and return the body the model got."""
        self.run("What?", *arguments, **options)
        body: dict[str, Any] = self.ollama.requests("/api/generate")[-1].json()
        return body

    def stats(self, *arguments: str, **options: Any) -> dict[str, Any]:
        done = self.tinyllm("cache-stats", "--json", *arguments, **options)
        assert done.code == 0, done
        record: dict[str, Any] = json.loads(done.out)
        return record

    def write(self, name: str, text: str) -> str:
        (self.tinyllm.home / name).write_text(text)
        return name

    def column(self, name: str) -> list[Any]:
        """Return a column of the stored entries."""
        database = sqlite3.connect(f"{self.tinyllm.snapshot.as_uri()}?mode=ro", uri=True)
        try:
            return [row[0] for row in database.execute(f"SELECT {name} FROM entries")]
        finally:
            database.close()


Row = Callable[[Bench, str], None]
ROWS: dict[tuple[str, str], Row] = {}
ALIASES: set[tuple[str, str]] = set()


def row(command: str, *spellings: str, also: tuple[str, ...] = ()) -> Callable[[Row], Row]:
    """Register what an option of a command does; `also` are other spellings of the same option."""

    def register(check: Row) -> Row:
        ROWS.update({(command, spelling): check for spelling in (*spellings, *also)})
        ALIASES.update((command, spelling) for spelling in also)
        return check

    return register


def _spellings(command: Any) -> Iterator[str]:
    for parameter in command.params:
        if parameter.param_type_name == "option":
            yield from (*parameter.opts, *parameter.secondary_opts)


def _everything() -> set[tuple[str, str]]:
    group: Any = typer.main.get_command(app)
    found = {("", spelling) for spelling in _spellings(group)}
    for name, command in group.commands.items():
        found |= {(name, spelling) for spelling in _spellings(command)}
    return found


@pytest.fixture
def bench(
    tinyllm: Tinyllm,
    ollama: FakeOllama,
    another_tinyllm: Callable[[str], Tinyllm],
    request: pytest.FixtureRequest,
) -> Bench:
    ollama.add_model("all:1b", capabilities=("completion", "vision", "thinking"))
    return Bench(
        tinyllm, ollama, lambda: str(request.getfixturevalue("redis_url")), another_tinyllm
    )


# What the model is asked. `cache-explain` takes the same and says whether the answer is stored.


@row("run", "--model", also=("-m",))
def _(bench: Bench, flag: str) -> None:
    assert bench.sent(flag, "llama3.2")["model"] == "llama3.2"


@row("run", "--system", also=("-s",))
def _(bench: Bench, flag: str) -> None:
    assert bench.sent(flag, "Be brief.")["system"] == "Be brief."


@row("run", "--temperature", also=("-t",))
def _(bench: Bench, flag: str) -> None:
    assert bench.sent(flag, "0.75")["options"]["temperature"] == 0.75


@row("run", "--max-tokens")
def _(bench: Bench, flag: str) -> None:
    assert bench.sent(flag, "7")["options"]["num_predict"] == 7


@row("run", "--option", also=("-o",))
def _(bench: Bench, flag: str) -> None:
    options = bench.sent(flag, "top_k=3", flag, "stop=END")["options"]
    assert (options["top_k"], options["stop"]) == (3, ["END"])


@row("run", "--json-mode")
def _(bench: Bench, flag: str) -> None:
    assert bench.sent(flag)["format"] == "json"


@row("run", "--format")
def _(bench: Bench, flag: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert bench.sent(flag, bench.write("schema.json", json.dumps(schema)))["format"] == schema
    assert bench.sent(flag, "json")["format"] == "json"


@row("run", "--image")
def _(bench: Bench, flag: str) -> None:
    name = bench.write("picture.png", "PNG")
    assert bench.sent("-m", "all:1b", flag, name, flag, name)["images"] == ["UE5H", "UE5H"]


@row("run", "--think", "--no-think")
def _(bench: Bench, flag: str) -> None:
    assert bench.sent("-m", "all:1b", flag)["think"] is (flag == "--think")


@row("run", "--think-level")
def _(bench: Bench, flag: str) -> None:
    assert bench.sent("-m", "all:1b", flag, "high")["think"] == "high"
    assert b"low, medium, high" in bench.run("What?", flag, "enormous", code=2).err


@row("run", "--file", also=("-f",))
def _(bench: Bench, flag: str) -> None:
    assert bench.sent(flag, bench.write("a", "from a file\n"))["prompt"] == "from a file\n\nWhat?"


@row("run", "--stdin", "--no-stdin")
def _(bench: Bench, flag: str) -> None:
    prompt = bench.sent(flag, stdin=b"piped")["prompt"]
    assert prompt == ("piped\n\nWhat?" if flag == "--stdin" else "What?")


EXPLAINED = {
    "--model": "llama3.2",
    "--system": "Be brief.",
    "--temperature": "0.75",
    "--max-tokens": "7",
    "--option": "top_k=3",
    "--json-mode": None,
    "--format": "json",
    "--image": "file",
    "--think": None,
    "--no-think": None,
    "--think-level": "high",
    "--file": "file",
    "--sample": "2",
    "--namespace": "team",
    "-m": "llama3.2",
    "-s": "Be brief.",
    "-t": "0.75",
    "-o": "top_k=3",
    "-f": "file",
}


@row("cache-explain", *list(EXPLAINED)[:-5], also=("-m", "-s", "-t", "-o", "-f"))
def _(bench: Bench, flag: str) -> None:
    """With the flag it is another question, and so another key."""
    bench.write("file", "PNG")
    value = EXPLAINED[flag]
    arguments = (flag,) if value is None else (flag, value)
    assert _explained(bench, *arguments)["key"] != _explained(bench)["key"]


@row("cache-explain", "--cache-dir")
def _(bench: Bench, flag: str) -> None:
    bench.run("What?")
    assert _explained(bench)["outcome"] == "hit"
    assert _explained(bench, flag, "elsewhere")["outcome"] == "miss"


@row("cache-explain", "--stdin", "--no-stdin")
def _(bench: Bench, flag: str) -> None:
    bench.run("What?")
    outcome = _explained(bench, flag, stdin=b"piped")["outcome"]
    assert outcome == ("miss" if flag == "--stdin" else "hit")


@row("cache-explain", "--host")
def _(bench: Bench, flag: str) -> None:
    bench.run("What?")
    assert _explained(bench, flag, "http://127.0.0.1:1")["outcome"] == "miss"


@row("cache-explain", "--json")
def _(bench: Bench, flag: str) -> None:
    assert bench.tinyllm("cache-explain", "What?").out.startswith(b"miss: ")
    assert _explained(bench)["outcome"] == "miss"


@row("cache-explain", "--cache-when")
def _(bench: Bench, flag: str) -> None:
    assert _explained(bench, flag, "deterministic")["reason"] == "bypassed"
    assert _explained(bench, flag, "all")["reason"] != "bypassed"


@row("cache-explain", "--stale-while-revalidate")
def _(bench: Bench, flag: str) -> None:
    bench.run("What?", "--cache-ttl", "0.001")
    assert _explained(bench)["reason"] == "expired"
    assert _explained(bench, flag, "1d")["reason"] == "stale"


@row("cache-explain", "--stale-if-error")
def _(bench: Bench, flag: str) -> None:
    """It serves only when the model fails, so a look-up stays a miss; nonsense is refused."""
    bench.run("What?", "--cache-ttl", "0.001")
    assert _explained(bench, flag, "1d")["outcome"] == "miss"
    assert bench.tinyllm("cache-explain", "What?", flag, "nonsense").code == 2


def _explained(bench: Bench, *arguments: str, **options: Any) -> dict[str, Any]:
    done = bench.tinyllm("cache-explain", "--json", "What?", *arguments, **options)
    assert done.code == 0, done
    record: dict[str, Any] = json.loads(done.out)
    return record


@row("cache-explain", "--engine")
def _(bench: Bench, flag: str) -> None:
    bench.run("What?")
    assert _explained(bench, flag, "ollama")["outcome"] == "hit"
    assert bench.tinyllm("cache-explain", "What?", flag, "nonsense").code == 2


# How the answer is shown.


@row("run", "--stream", "--no-stream")
def _(bench: Bench, flag: str) -> None:
    bench.ollama.answer = lambda body: ANSWER
    barrier = bench.ollama.hold_after(1, times=1)
    process = bench.tinyllm.start("run", flag, "What?")
    assert process.stdout is not None
    if flag == "--stream":
        assert process.stdout.read(3) == b"one"
    barrier.wait_for(1)
    process.kill()
    assert process.communicate()[0] == b""


@row("run", "--json")
def _(bench: Bench, flag: str) -> None:
    bench.ollama.answer = lambda body: ANSWER
    assert json.loads(bench.run("What?", flag).out)["response"] == ANSWER


@row("run", "--raw")
def _(bench: Bench, flag: str) -> None:
    bench.ollama.answer = lambda body: "\x1b[31mred"
    for arguments, shown in (([], "␛[31mred\n"), ([flag], "\x1b[31mred\n")):
        with Terminal(bench.tinyllm, "run", "-q", "What?", *arguments) as terminal:
            assert terminal.finish() == 0
        assert terminal.text == shown


@row("run", "--quiet", also=("-q",))
def _(bench: Bench, flag: str) -> None:
    broken = ["What?", "--cache-backend", "redis", "--redis-url", NOWHERE]
    assert b"continuing without it" in bench.run(*broken).err
    assert bench.run(*broken, flag).err == b""


@row("run", "--verbose", also=("-v",))
def _(bench: Bench, flag: str) -> None:
    assert b"DEBUG cache_miss" in bench.run("What?", flag).err
    assert b"DEBUG cache_hit" in bench.run("What?", flag).err


@row("run", "--replay-speed")
def _(bench: Bench, flag: str) -> None:
    """A stored answer takes as long again as it took, and a hundredth of that at speed 100."""
    bench.ollama.token_delay = 0.06
    bench.run("What?")
    taken = []
    for speed in ("1", "100"):
        started = time.monotonic()
        bench.run("What?", flag, speed)
        taken.append(time.monotonic() - started)
    assert taken[0] > taken[1]


# The cache.


@row("run", "--cache", "--no-cache")
def _(bench: Bench, flag: str) -> None:
    for environ in ({}, {"TINYLLM_CACHE": "false" if flag == "--cache" else "true"}):
        bench.run("What?", flag, environ=environ)
        assert stored(bench.tinyllm.snapshot) == (flag == "--cache")


@row("run", "--refresh")
def _(bench: Bench, flag: str) -> None:
    for generations in (1, 2):
        bench.run("What?", flag)
        assert bench.ollama.generations == generations


@row("run", "--cache-only")
def _(bench: Bench, flag: str) -> None:
    bench.run("What?", flag, code=7)
    assert bench.ollama.log == []


@row("run", "--require-cache")
def _(bench: Bench, flag: str) -> None:
    broken = ["What?", "--cache-backend", "redis", "--redis-url", NOWHERE]
    bench.run(*broken)
    bench.run(*broken, flag, code=6)


@row("run", "--cache-backend", also=("--redis-url",))
def _(bench: Bench, flag: str) -> None:
    url = bench.redis_url()
    shared = ["What?", "--cache-backend", "redis", "--redis-url", url]
    first = bench.run(*shared)
    second = bench.another("elsewhere")("run", *shared)
    assert (second.code, second.out, second.err) == (0, first.out, b"")
    assert bench.ollama.generations == 1
    assert stored(bench.tinyllm.snapshot) == 0


@row("run", "--cache-ttl")
def _(bench: Bench, flag: str) -> None:
    bench.run("What?", flag, "2h")
    assert bench.column("round(expires_at - created_at)") == [7200]
    bench.run("Forever?", flag, "never")
    assert None in bench.column("expires_at")


@row("run", "--cache-dir")
def _(bench: Bench, flag: str) -> None:
    bench.run("What?", flag, "elsewhere")
    assert stored(bench.tinyllm.home / "elsewhere" / "snapshot-v1.sqlite3") == 1
    assert stored(bench.tinyllm.snapshot) == 0
    bench.run("What?", flag, "", code=2)


@row("run", "--cache-max-entries")
def _(bench: Bench, flag: str) -> None:
    for prompt in ("One?", "Two?", "Three?"):
        bench.run(prompt, flag, "2")
    assert stored(bench.tinyllm.snapshot) == 2
    assert bench.stats()["evictions"] == 1


@row("run", "--cache-max-bytes")
def _(bench: Bench, flag: str) -> None:
    bench.run("What?")
    size = bench.stats()["bytes"]
    bench.run("Why?", flag, f"{size * 3 // 2}")
    assert stored(bench.tinyllm.snapshot) == 1


@row("run", "--cache-when")
def _(bench: Bench, flag: str) -> None:
    bench.run("What?", flag, "deterministic")
    assert stored(bench.tinyllm.snapshot) == 0
    bench.run("What?", flag, "deterministic", "--temperature", "0")
    assert stored(bench.tinyllm.snapshot) == 1


@row("run", "--sample")
def _(bench: Bench, flag: str) -> None:
    bench.ollama.drift = True
    first, second = bench.run("What?"), bench.run("What?", flag, "2")
    assert first.out != second.out
    assert bench.run("What?", flag, "2").out == second.out
    assert bench.ollama.generations == 2
    bench.run("What?", flag, "0", code=2)


@row("run", "--samples")
def _(bench: Bench, flag: str) -> None:
    bench.run("What?", flag, "2")
    assert bench.ollama.generations == 2
    bench.run("What?", flag, "3")
    assert bench.ollama.generations == 3


@row("run", "--stale-while-revalidate")
def _(bench: Bench, flag: str) -> None:
    bench.ollama.drift = True
    first = bench.run("What?", "--cache-ttl", "0.001")
    second = bench.run("What?", flag, "1d")
    assert second.out == first.out
    bench.ollama.wait_until(lambda server: server.generations == 2)


@row("run", "--stale-if-error")
def _(bench: Bench, flag: str) -> None:
    first = bench.run("What?", "--cache-ttl", "0.001")
    bench.ollama.stop()
    bench.run("What?", code=3)
    assert bench.run("What?", flag, "1d").out == first.out


@row("run", "--coherence")
def _(bench: Bench, flag: str) -> None:
    first = bench.run("What?")
    bench.ollama.repull("qwen2.5:0.5b", "w2")
    assert bench.run("What?", flag, "lazy").out == first.out
    assert bench.run("What?", flag, "strict").out != first.out


@row("run", "--digest-max-age")
def _(bench: Bench, flag: str) -> None:
    bench.run("What?")
    asked = len(bench.ollama.log)
    bench.run("What?", flag, "1d")
    assert len(bench.ollama.log) == asked
    bench.run("What?", flag, "0.001")
    bench.ollama.wait_until(lambda server: len(server.log) > asked)


@row("run", "--namespace")
def _(bench: Bench, flag: str) -> None:
    bench.run("What?")
    bench.run("What?", flag, "team")
    bench.run("What?", flag, "team")
    assert bench.ollama.generations == 2


@row("run", "--host")
def _(bench: Bench, flag: str) -> None:
    bench.run("What?", flag, bench.ollama.url, environ={"OLLAMA_HOST": "http://127.0.0.1:1"})
    assert bench.ollama.generations == 1


@row("run", "--engine")
def _(bench: Bench, flag: str) -> None:
    bench.tinyllm("run", "What?", flag, "embedded")
    assert bench.ollama.generations == 0
    bench.run("What?", flag, "ollama")
    assert bench.ollama.generations == 1


@row("run", "--cache-eviction")
def _(bench: Bench, flag: str) -> None:
    """The first answer is the dearest: the plain order of use drops it, its cost keeps it."""
    for policy, code in (("lru", 7), ("cost", 0)):
        bounds = ("--cache-dir", policy, "--cache-max-entries", "2", flag, policy)
        bench.ollama.token_delay = 0.03
        bench.run("First?", *bounds)
        bench.ollama.token_delay = 0
        bench.run("Second?", *bounds)
        bench.run("Third?", *bounds)
        bench.run("First?", "--cache-only", *bounds, code=code)


# The commands about the cache, and `pull`.


@row("pull", "--host")
def _(bench: Bench, flag: str) -> None:
    assert bench.tinyllm("pull", "smollm2:135m", flag, "http://127.0.0.1:1").code == 3
    assert bench.tinyllm("pull", "smollm2:135m", flag, bench.ollama.url).code == 0


@row("pull", "--quiet", also=("-q",))
def _(bench: Bench, flag: str) -> None:
    assert b"smollm2:135m" in bench.tinyllm("pull", "smollm2:135m").err
    assert bench.tinyllm("pull", "smollm2:135m", flag).err == b""


@row("pull", "--engine")
def _(bench: Bench, flag: str) -> None:
    assert bench.tinyllm("pull", "smollm2:135m", flag, "ollama").code == 0
    assert bench.tinyllm("pull", "smollm2:135m", flag, "nonsense").code == 2


@row("cache-stats", "--namespace")
def _(bench: Bench, flag: str) -> None:
    url = bench.redis_url()
    bench.run("What?", flag, "team", "--cache-backend", "redis", "--redis-url", url)
    assert bench.stats("--backend", "redis", "--redis-url", url)["entries"] == 0
    assert bench.stats("--backend", "redis", "--redis-url", url, flag, "team")["entries"] == 1


@row("cache-clear", "--namespace")
def _(bench: Bench, flag: str) -> None:
    url = bench.redis_url()
    bench.run("What?", flag, "team", "--cache-backend", "redis", "--redis-url", url)
    clear = ("cache-clear", "--yes", "--backend", "redis", "--redis-url", url)
    assert bench.tinyllm(*clear).out.startswith(b"removed 0 ")
    assert bench.tinyllm(*clear, flag, "team").out.startswith(b"removed 1 ")


@row("cache-stats", "--redis-host", "--redis-port")
@row("cache-clear", "--redis-host", "--redis-port")
def _(bench: Bench, flag: str) -> None:
    port = bench.redis_url().split(":")[-1].split("/")[0]
    for command in (("cache-stats",), ("cache-clear", "--yes")):
        address = ("--backend", "redis", "--redis-host", "127.0.0.1", "--redis-port", port)
        assert bench.tinyllm(*command, *address).code == 0
        wrong = bench.tinyllm(*command, *address, flag, "1" if "port" in flag else "127.0.0.2")
        assert wrong.code == 6


@row("cache-stats", "--backend", "--cache-backend", also=("--redis-url",))
def _(bench: Bench, flag: str) -> None:
    spelling = flag if flag != "--redis-url" else "--backend"
    arguments = (spelling, "redis", "--redis-url", bench.redis_url())
    bench.run("What?", "--cache-backend", *arguments[1:])
    assert (bench.stats()["backend"], bench.stats()["entries"]) == ("memory", 0)
    shared = bench.stats(*arguments)
    assert (shared["backend"], shared["entries"], shared["misses"]) == ("redis", 1, 1)


@row("cache-stats", "--json")
def _(bench: Bench, flag: str) -> None:
    assert b"Hit rate" in bench.tinyllm("cache-stats").out
    assert json.loads(bench.tinyllm("cache-stats", flag).out)["hits"] == 0


@row("cache-stats", "--reset")
def _(bench: Bench, flag: str) -> None:
    bench.run("What?")
    assert bench.stats(flag)["misses"] == 1
    assert bench.stats()["misses"] == 0


@row("cache-stats", "--cache-dir")
def _(bench: Bench, flag: str) -> None:
    bench.run("What?")
    assert bench.stats(flag, "elsewhere")["entries"] == 0
    assert bench.stats(flag, str(bench.tinyllm.cache_dir))["entries"] == 1


@row("cache-clear", "--backend", "--cache-backend", also=("--redis-url",))
def _(bench: Bench, flag: str) -> None:
    spelling = flag if flag != "--redis-url" else "--backend"
    arguments = ("redis", "--redis-url", bench.redis_url())
    bench.run("What?")
    bench.run("What?", "--cache-backend", *arguments)
    done = bench.tinyllm("cache-clear", "--yes", spelling, *arguments)
    assert (done.code, done.out[:15]) == (0, b"removed 1 entry")
    assert stored(bench.tinyllm.snapshot) == 1


@row("cache-clear", "--model", also=("-m",))
def _(bench: Bench, flag: str) -> None:
    bench.run("What?")
    bench.run("What?", "-m", "llama3.2")
    bench.tinyllm("cache-clear", "--yes", flag, "llama3.2")
    assert bench.column("model") == ["qwen2.5:0.5b"]


@row("cache-clear", "--older-than")
def _(bench: Bench, flag: str) -> None:
    bench.run("What?")
    bench.tinyllm("cache-clear", "--yes", flag, "1h")
    assert stored(bench.tinyllm.snapshot) == 1
    bench.tinyllm("cache-clear", "--yes", flag, "0.001s")
    assert stored(bench.tinyllm.snapshot) == 0


@row("cache-clear", "--expired")
def _(bench: Bench, flag: str) -> None:
    bench.run("What?", "--cache-ttl", "0.001")
    bench.run("Why?")
    bench.tinyllm("cache-clear", "--yes", flag)
    assert stored(bench.tinyllm.snapshot) == 1


@row("cache-clear", "--key")
def _(bench: Bench, flag: str) -> None:
    key = json.loads(bench.run("What?", "--json").out)["key"]
    bench.run("Why?")
    bench.tinyllm("cache-clear", "--yes", flag, key[:16])
    assert key not in bench.column("key")
    assert stored(bench.tinyllm.snapshot) == 1


@row("cache-clear", "--dry-run")
def _(bench: Bench, flag: str) -> None:
    bench.run("What?")
    assert bench.tinyllm("cache-clear", flag).out.startswith(b"would remove 1 entry")
    assert stored(bench.tinyllm.snapshot) == 1


@row("cache-clear", "--yes", also=("-y", "--no-confirm"))
def _(bench: Bench, flag: str) -> None:
    bench.run("What?")
    assert bench.tinyllm("cache-clear").code == 2
    assert bench.tinyllm("cache-clear", flag).code == 0
    assert stored(bench.tinyllm.snapshot) == 0


@row("cache-clear", "--cache-dir")
def _(bench: Bench, flag: str) -> None:
    bench.run("What?")
    bench.tinyllm("cache-clear", "--yes", flag, "elsewhere")
    assert stored(bench.tinyllm.snapshot) == 1


# The command itself.


@row("", "--version", also=("-V",))
def _(bench: Bench, flag: str) -> None:
    assert bench.tinyllm(flag).out.startswith(b"tinyllm ")


@row("", "--show-completion")
def _(bench: Bench, flag: str) -> None:
    assert b"_TINYLLM_COMPLETE" in _in_a_shell(bench, flag).stdout


@row("", "--install-completion")
def _(bench: Bench, flag: str) -> None:
    (bench.tinyllm.home / ".bashrc").write_text("")
    assert _in_a_shell(bench, flag).returncode == 0
    assert "tinyllm" in (bench.tinyllm.home / ".bashrc").read_text()


def _in_a_shell(bench: Bench, flag: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command from bash, since it looks for the shell it was called from."""
    return subprocess.run(
        ["bash", "-c", f"{shlex.join([*COMMAND, flag])}; exit $?"],
        env=bench.tinyllm.environ,
        capture_output=True,
        timeout=60,
    )


# The doctor; what it finds is in test_doctor.py.


@row("doctor", "--json")
def _(bench: Bench, flag: str) -> None:
    assert b"sound entries" not in bench.tinyllm("doctor").out
    assert json.loads(bench.tinyllm("doctor", flag).out)["well"] is True


@row("doctor", "--fix")
def _(bench: Bench, flag: str) -> None:
    bench.run("What?")
    bench.tinyllm.snapshot.chmod(0o644)
    assert b"other users" in bench.tinyllm("doctor").out
    assert b"mended" in bench.tinyllm("doctor", flag).out
    assert b"other users" not in bench.tinyllm("doctor").out


@row("doctor", "--model", "-m", "--host", "--cache-dir", "--namespace")
def _(bench: Bench, flag: str) -> None:
    value = {"--host": bench.ollama.url, "--cache-dir": "elsewhere"}.get(flag, "llama3.2")
    done = bench.tinyllm("doctor", flag, value)
    assert done.code in (0, 4)
    assert value.encode() in done.out and value.encode() not in bench.tinyllm("doctor").out.replace(
        b"OLLAMA_HOST", b""
    ).replace(bench.ollama.url.encode(), b"")


@row("doctor", "--engine")
def _(bench: Bench, flag: str) -> None:
    bench.ollama.stop()
    assert b"ollama " in bench.tinyllm("doctor").out
    assert b"ollama    none" not in bench.tinyllm("doctor", flag, "embedded").out


@row("doctor", "--backend", "--cache-backend", also=("--redis-url",))
def _(bench: Bench, flag: str) -> None:
    spelling = flag if flag != "--redis-url" else "--backend"
    done = bench.tinyllm("doctor", spelling, "redis", "--redis-url", bench.redis_url())
    assert (done.code, b"a look-up takes" in done.out) == (0, True)
    assert b"a look-up takes" not in bench.tinyllm("doctor").out


@row("doctor", "--redis-host", "--redis-port")
def _(bench: Bench, flag: str) -> None:
    port = bench.redis_url().split(":")[-1].split("/")[0]
    address = ("--backend", "redis", "--redis-host", "127.0.0.1", "--redis-port", port)
    assert bench.tinyllm("doctor", *address).code == 0
    wrong = bench.tinyllm("doctor", *address, flag, "1" if "port" in flag else "127.0.0.2")
    assert wrong.code == 6


# The variables: `env` gives the environment with the setting's own variable set.

Env = Callable[[str], dict[str, str]]
Variable = Callable[[Bench, Env], None]
VARIABLES: dict[str, Variable] = {}


def setting(name: str) -> Callable[[Variable], Variable]:
    """Register what a setting's variable does."""

    def register(check: Variable) -> Variable:
        VARIABLES[name] = check
        return check

    return register


@setting("model")
def _(bench: Bench, env: Env) -> None:
    assert bench.sent(environ=env("llama3.2"))["model"] == "llama3.2"
    assert bench.sent("-m", "all:1b", environ=env("llama3.2"))["model"] == "all:1b"


@setting("host")
def _(bench: Bench, env: Env) -> None:
    assert b"http://127.0.0.1:1" in bench.run("What?", environ=env("127.0.0.1:1"), code=3).err


@setting("cache")
def _(bench: Bench, env: Env) -> None:
    bench.run("What?", environ=env("off"))
    assert stored(bench.tinyllm.snapshot) == 0


@setting("cache_backend")
@setting("redis_url")
def _(bench: Bench, env: Env) -> None:
    environ = {"TINYLLM_CACHE_BACKEND": "redis", "TINYLLM_REDIS_URL": bench.redis_url()}
    bench.run("What?", environ=environ)
    assert stored(bench.tinyllm.snapshot) == 0
    second = bench.another("elsewhere")("run", "What?", environ=environ)
    assert (second.code, second.err, bench.ollama.generations) == (0, b"", 1)
    assert {*env("")} <= {*environ}


@setting("cache_ttl")
def _(bench: Bench, env: Env) -> None:
    bench.run("What?", environ=env("7d"))
    assert bench.column("round(expires_at - created_at)") == [604_800]


@setting("cache_dir")
def _(bench: Bench, env: Env) -> None:
    bench.run("What?", environ=env("elsewhere"))
    assert stored(bench.tinyllm.home / "elsewhere" / "snapshot-v1.sqlite3") == 1


@setting("cache_max_entries")
def _(bench: Bench, env: Env) -> None:
    for prompt in ("One?", "Two?"):
        bench.run(prompt, environ=env("1"))
    assert stored(bench.tinyllm.snapshot) == 1


@setting("cache_max_bytes")
def _(bench: Bench, env: Env) -> None:
    bench.run("What?", environ=env("1"))
    assert stored(bench.tinyllm.snapshot) == 0


@setting("cache_max_entry_bytes")
def _(bench: Bench, env: Env) -> None:
    bench.run("What?", environ=env("100"))
    assert stored(bench.tinyllm.snapshot) == 0


@setting("cache_cloud")
def _(bench: Bench, env: Env) -> None:
    bench.ollama.add_model("big:120b-cloud", remote_host="https://h", remote_model="big")
    bench.run("What?", "-m", "big:120b-cloud", environ=env("yes"))
    assert stored(bench.tinyllm.snapshot) == 1


@setting("keep_requests")
def _(bench: Bench, env: Env) -> None:
    for value, kept in (("true", True), ("false", False)):
        bench.ollama.answer = lambda body: ANSWER
        bench.run("canary-4711", "--refresh", environ=env(value))
        bodies = bench.column("body")
        assert [b"canary-4711" in body for body in bodies] == [kept]


@setting("require_cache")
def _(bench: Bench, env: Env) -> None:
    broken = ("What?", "--cache-backend", "redis", "--redis-url", NOWHERE)
    bench.run(*broken, environ=env("true"), code=6)


@setting("namespace")
def _(bench: Bench, env: Env) -> None:
    bench.run("What?")
    bench.run("What?", environ=env("team"))
    assert bench.ollama.generations == 2


@setting("first_byte_timeout")
def _(bench: Bench, env: Env) -> None:
    bench.ollama.hold()
    bench.run("What?", environ=env("0.2"), code=3)


@setting("idle_timeout")
def _(bench: Bench, env: Env) -> None:
    bench.ollama.hold_after(1)
    bench.run("What?", environ=env("0.2"), code=5)


@setting("log_level")
def _(bench: Bench, env: Env) -> None:
    assert b"DEBUG cache_miss" in bench.run("What?", environ=env("debug")).err


@setting("stale_while_revalidate")
def _(bench: Bench, env: Env) -> None:
    first = bench.run("What?", "--cache-ttl", "0.001")
    assert bench.run("What?", environ=env("1d")).out == first.out
    bench.ollama.wait_until(lambda server: server.generations == 2)


@setting("stale_if_error")
def _(bench: Bench, env: Env) -> None:
    first = bench.run("What?", "--cache-ttl", "0.001")
    bench.ollama.stop()
    assert bench.run("What?", environ=env("1d")).out == first.out


@setting("early_renewal_beta")
def _(bench: Bench, env: Env) -> None:
    """It is drawn by lot; with a beta this large nine hits in ten renew the answer behind them."""
    bench.ollama.token_delay = 0.03  # what cost nothing is not worth renewing early
    bench.run("What?", "--cache-ttl", "30")
    bench.ollama.token_delay = 0
    bench.run("What?", environ=env("0"))
    assert bench.ollama.generations == 1
    for _ in range(10):
        bench.run("What?", environ=env("1000"))
    bench.ollama.wait_until(lambda server: server.generations >= 2, timeout=30)


@setting("cache_when")
def _(bench: Bench, env: Env) -> None:
    bench.run("What?", environ=env("deterministic"))
    assert stored(bench.tinyllm.snapshot) == 0


@setting("coherence")
def _(bench: Bench, env: Env) -> None:
    first = bench.run("What?")
    bench.ollama.repull("qwen2.5:0.5b", "w2")
    assert bench.run("What?", environ=env("strict")).out != first.out


@setting("digest_max_age")
def _(bench: Bench, env: Env) -> None:
    bench.run("What?")
    asked = len(bench.ollama.log)
    bench.run("What?", environ=env("0.001"))
    bench.ollama.wait_until(lambda server: len(server.log) > asked)


@setting("cache_eviction")
@setting("engine")
@setting("data_dir")
def _(bench: Bench, env: Env) -> None:
    """What they do when they make sense is seen with their flags, or where an engine is installed."""
    done = bench.run("What?", environ=env("\x1bnonsense"), code=2)
    assert next(iter(env(""))).encode() in done.err


@setting("embedded_model")
def _(bench: Bench, env: Env) -> None:
    done = bench.run("What?", "--engine", "embedded", environ=env("nowhere.gguf"), code=4)
    assert b"nowhere.gguf" in done.err


@setting("redis_host")
@setting("redis_port")
def _(bench: Bench, env: Env) -> None:
    port = bench.redis_url().split(":")[-1].split("/")[0]
    right = {"TINYLLM_REDIS_HOST": "127.0.0.1", "TINYLLM_REDIS_PORT": port}
    assert bench.stats("--backend", "redis", environ=right)["entries"] == 0
    wrong = env("127.0.0.2" if "TINYLLM_REDIS_HOST" in env("") else "1")
    assert bench.tinyllm("cache-stats", "--backend", "redis", environ={**right, **wrong}).code == 6


@setting("redis_password")
def _(bench: Bench, env: Env) -> None:
    """The server here knows no password: who brings one is turned away."""
    environ = {"TINYLLM_CACHE_BACKEND": "redis", "TINYLLM_REDIS_URL": bench.redis_url()}
    assert bench.run("What?", environ=environ).err == b""
    turned_away = bench.run("What?", environ={**environ, **env("canary-0815")})
    assert b"continuing without it" in turned_away.err
    assert b"canary-0815" not in turned_away.err


@setting("redis_secret")
def _(bench: Bench, env: Env) -> None:
    environ = {"TINYLLM_CACHE_BACKEND": "redis", "TINYLLM_REDIS_URL": bench.redis_url()}
    for secret in ("a" * 32, "b" * 32, "a" * 32):
        bench.run("What?", environ={**environ, **env(secret)})
    assert bench.ollama.generations == 2


@setting("redis_timeout")
def _(bench: Bench, env: Env) -> None:
    """A server that never answers is waited for as long as that, and no longer."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        shared = ("What?", "--cache-only", "--cache-backend", "redis", "--redis-url", url)
        started = time.monotonic()
        bench.run(*shared, environ=env("1.5"), code=7)
        assert time.monotonic() - started >= 1.5
        started = time.monotonic()
        bench.run(*shared, environ=env("0.05"), code=7)
        assert time.monotonic() - started < 1.5


@setting("redis_ca_file")
@setting("redis_cert_file")
@setting("redis_key_file")
def _(bench: Bench, env: Env) -> None:
    environ = {
        "TINYLLM_CACHE_BACKEND": "redis",
        "TINYLLM_REDIS_URL": bench.redis_url().replace("redis:", "rediss:"),
        "TINYLLM_REDIS_CERT_FILE": bench.write("cert.pem", "no certificate"),
    }
    if "TINYLLM_REDIS_KEY_FILE" not in env(""):
        del environ["TINYLLM_REDIS_CERT_FILE"]
    done = bench.run("What?", environ={**environ, **env("nowhere.pem")}, code=2)
    assert b"nowhere.pem" in done.err


# The tables are whole by here. What is left for `-m slow` has tests of its own elsewhere, or differs
# little from what is not: other spellings, other commands, variables whose flag has a row.

LATER = ALIASES | {at for at in ROWS if at[0] != "run"}
LATER |= {
    ("run", flag)
    for flag in (
        "--cache-eviction",
        "--coherence",
        "--digest-max-age",
        "--engine",
        "--replay-speed",
        "--sample",
        "--samples",
        "--stale-if-error",
        "--stale-while-revalidate",
    )
}


def _has_a_flag(name: str) -> bool:
    return name != "model" and ("run", "--" + name.replace("_", "-")) in ROWS


def test_every_option_has_a_row() -> None:
    assert set(ROWS) == _everything()


@pytest.mark.few(18)
@pytest.mark.parametrize(
    ("command", "flag"),
    [pytest.param(*at, marks=pytest.mark.slow if at in LATER else ()) for at in ROWS],
    ids=lambda value: value or "tinyllm",
)
def test_every_option_does_something(bench: Bench, command: str, flag: str) -> None:
    ROWS[command, flag](bench, flag)


def test_every_setting_has_a_row() -> None:
    assert set(VARIABLES) == set(SETTINGS)


@pytest.mark.few(8)
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if _has_a_flag(n) else ()) for n in VARIABLES],
)
def test_every_variable_does_something(bench: Bench, name: str) -> None:
    VARIABLES[name](bench, lambda value: {variable(name): value})


# The config file.


def test_the_config_file_counts_for_less_than_the_environment(bench: Bench) -> None:
    bench.tinyllm.config_dir.mkdir()
    config = bench.tinyllm.config_dir / "config.toml"
    config.write_text('model = "all:1b"\ncache_ttl = "2h"\ncache_max_entries = 5\ncache = true\n')
    assert bench.sent()["model"] == "all:1b"
    assert bench.column("round(expires_at - created_at)") == [7200]
    assert bench.stats()["max_entries"] == 5
    assert bench.sent(environ={"TINYLLM_MODEL": "llama3.2"})["model"] == "llama3.2"
    assert bench.sent("-m", "qwen2.5:0.5b", environ={"TINYLLM_MODEL": "nope"})["model"] == (
        "qwen2.5:0.5b"
    )


def test_a_key_of_the_config_file_that_is_unknown_is_told_once_and_ignored(bench: Bench) -> None:
    bench.tinyllm.config_dir.mkdir()
    config = bench.tinyllm.config_dir / "config.toml"
    config.write_text('modle = "llama3.2"\n')
    done = bench.run("What?")
    assert b"unknown setting 'modle'" in done.err and done.err.count(b"\n") == 1
    assert bench.run("What?", "-q").err == b""


def test_the_api_key_is_sent_and_never_shown(bench: Bench) -> None:
    key = "canary-0815"
    done = bench.run("What?", "-v", environ={"OLLAMA_API_KEY": key})
    headers = bench.ollama.requests("/api/generate")[-1].headers
    assert f"Bearer {key}" in headers.values()
    assert key.encode() not in done.out + done.err
    assert key.encode() not in bench.tinyllm.snapshot.read_bytes()


def test_no_option_takes_a_secret() -> None:
    for _, spelling in _everything():
        assert not {"password", "token", "secret", "key-file", "api-key"} & {
            *spelling.strip("-").split("-")
        }
