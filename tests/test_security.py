"""Does each promise of SECURITY.md name a test that exists, and what no other test shows hold?"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import COMMAND, Tinyllm
from tests.fake_ollama import FakeOllama
from tests.redis_server import RedisServer

ROOT = Path(__file__).parents[1]
STRACE = ("strace", "-f", "-qq", "-e", "trace=connect,sendto", "-A", "-o")
CANARY = "canary-Xq7-4f1b"
SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", SECURITY)


def test_every_promise_names_a_test() -> None:
    promises = SECURITY.partition("## Promises")[2].partition("## What is not")[0]
    rows = [line for line in promises.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 12
    assert all("::test_" in row for row in rows)


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[name for _, name in NAMED])
def test_the_named_test_exists(path: str, name: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert re.search(rf"^(async )?def {name}\(", text, re.M)


def files_with_the_canary(home: Path) -> list[str]:
    return sorted(
        str(path.relative_to(home))
        for path in home.rglob("*")
        if path.is_file() and CANARY.encode() in path.read_bytes()
    )


def test_a_question_is_found_in_the_snapshot_and_nowhere_else(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    """From standard input, since arguments are everybody's to see; in no log, no message, no file."""
    ollama.answer = lambda body: "An answer of no interest."
    question = f"{CANARY}?".encode()
    environ = {"TINYLLM_STALE_WHILE_REVALIDATE": "1h"}
    for arguments in (("-v",), ("-v",), ("-v", "--refresh"), ("-v", "--cache-ttl", "0.001")):
        done = tinyllm("run", *arguments, stdin=question, environ=environ)
        assert (done.code, b"An answer" in done.out) == (0, True)
        assert CANARY not in done.complaint
    ollama.stop()
    refused = tinyllm("run", "-v", "--refresh", stdin=question)
    assert refused.code == 3 and CANARY not in refused.complaint
    assert files_with_the_canary(tinyllm.home) == ["cache/snapshot-v1.sqlite3"]
    without = {"TINYLLM_CACHE_DIR": str(tinyllm.home / "other"), "TINYLLM_KEEP_REQUESTS": "false"}
    ollama.start()
    assert tinyllm("run", stdin=question, environ=without).code == 0
    assert files_with_the_canary(tinyllm.home) == ["cache/snapshot-v1.sqlite3"]


def test_redis_gets_the_answer_and_not_the_question(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    ollama.answer = lambda body: "An answer of no interest."
    with RedisServer() as server:
        environ = {"TINYLLM_CACHE_BACKEND": "redis", "TINYLLM_REDIS_URL": server.url}
        with server.monitored() as monitor:
            for _ in range(2):
                assert tinyllm("run", "-q", stdin=CANARY.encode(), environ=environ).code == 0
            sent = monitor.commands()
        assert any(command[0] == "SET" for command in sent)
        assert not [command for command in sent if CANARY in " ".join(command)]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_only_the_named_servers_are_contacted(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    with RedisServer() as server:
        environ = {"TINYLLM_CACHE_BACKEND": "tiered", "TINYLLM_REDIS_URL": server.url}
        trace = tinyllm.home / "trace"
        for prompt in ("What?", "What?", "And?"):
            done = subprocess.run(
                [*STRACE, trace, *COMMAND, "run", prompt],
                env={**tinyllm.environ, **environ},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=60,
            )
            assert done.returncode == 0, done
        contacted = set(re.findall(r"sin_port=htons\((\d+)\)", trace.read_text()))
        # port 0 is how the C library asks which of its own addresses would be used
        assert contacted - {"0"} == {str(ollama.port), str(server.port)}
