"""Is each guard what keeps its rows? With the guard switched off, a row of the matrix must fail.

The row runs as pytest runs it, in a process of its own; every Python that it starts switches the
guard off before anything else. A row that passes all the same shows nothing about its guard.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]


class Guard(NamedTuple):
    """A guard, a row that it keeps, and what switches it off."""

    name: str
    row: str
    off: str


GUARDS = [
    Guard(
        "an entry carries a digest",
        "test_snapshot.py::test_s09_an_entry_that_was_tampered_with",
        """
        from tinyllm_cli import codec
        class Same(bytes):
            def __ne__(self, other): return False
        digest = codec._digest
        codec._digest = lambda key, data: Same(digest(key, data))
        """,
    ),
    Guard(
        "the digest is bound to the key",
        "test_redis.py::test_r15_swapped_values[redis]",
        """
        from tinyllm_cli import codec
        digest, entry = codec._digest, codec._entry
        codec._digest = lambda key, data: digest("", data)
        codec._entry = lambda key, payload: entry(payload["key"], payload)
        """,
    ),
    Guard(
        "an answer that never said it was done is not one",
        "test_ollama.py::test_o05_ended_without_being_done",
        """
        from tinyllm_cli.ollama import api, client
        from tinyllm_cli.errors import IncompleteAnswerError
        generate = api.OllamaApi.generate
        async def ends(self, body):
            try:
                async for chunk in generate(self, body):
                    last = chunk
                    yield chunk
            except IncompleteAnswerError:
                yield last.replace(response="", done=True, done_reason="stop")
        api.OllamaApi.generate = ends
        """,
    ),
    Guard(
        "only an answer that ended as answers do is stored",
        "test_ollama.py::test_o13_every_way_to_be_done",
        """
        from tinyllm_cli import asking
        asking.why_not_stored = lambda response, cloud: None
        """,
    ),
    Guard(
        "the model is looked at again before its answer is stored",
        "test_ollama.py::test_o16_another_model_under_the_name",
        """
        from tinyllm_cli import coherence
        ask = coherence.ModelDigests.ask
        async def once(self, model):
            return self.known(model) or await ask(self, model)
        coherence.ModelDigests.ask = once
        """,
    ),
    Guard(
        "redirects are not followed",
        "test_ollama.py::test_o11_sent_elsewhere[307]",
        """
        import httpx
        init = httpx.AsyncClient.__init__
        httpx.AsyncClient.__init__ = lambda *given, **more: init(
            *given, **more, follow_redirects=True)
        """,
    ),
    Guard(
        "a line has a limit",
        "test_ollama.py::test_o15_without_end",
        """
        from tinyllm_cli.ollama import ndjson
        ndjson.LineReader._check = lambda self, line: None
        """,
    ),
    Guard(
        "this machine is never asked through a proxy",
        "test_ollama.py::test_o18_a_proxy_in_the_environment",
        """
        from tinyllm_cli.ollama import http
        http.is_loopback = lambda url: False
        """,
    ),
    Guard(
        "what fails in the store costs no answer",
        "test_snapshot.py::test_s06_no_file_may_grow",
        """
        from tinyllm_cli import cache
        cache._Forgiving.__exit__ = lambda *given: False
        """,
    ),
    Guard(
        "a path that is not ours alone is not used",
        "test_snapshot.py::test_s08_not_ours_alone[in_a_directory_anybody_may_write-]",
        """
        from tinyllm_cli.backends import snapshot_file
        snapshot_file.refuse_unsafe = lambda path: path.exists()
        """,
    ),
    Guard(
        "a damaged file is moved aside",
        "test_snapshot.py::test_s10_damaged_as_a_whole[text]",
        """
        from tinyllm_cli.backends import snapshot
        snapshot.Snapshot._quarantine = lambda self, why: self.close()
        """,
    ),
    Guard(
        "a file of a newer release is left alone",
        "test_snapshot.py::test_s12_of_a_newer_release",
        """
        from tinyllm_cli.backends import snapshot
        from tinyllm_cli.errors import SnapshotError
        check = snapshot.check_schema
        def lenient(db, path):
            try:
                check(db, path)
            except SnapshotError as exc:
                if "newer" not in str(exc):
                    raise
        snapshot.check_schema = lenient
        """,
    ),
    Guard(
        "an entry from the future is not immortal",
        "../test_entry.py",
        """
        from tinyllm_cli import entry
        entry.CLOCK_TOLERANCE_S = float("inf")
        """,
    ),
    Guard(
        "an answer above the limit is not stored",
        "test_snapshot.py::test_s22_larger_than_an_entry_may_be",
        """
        from tinyllm_cli.backends import memory
        init = memory.InMemoryBackend.__init__
        def unlimited(self, *given, **more):
            init(self, *given, **more)
            self.max_entry_bytes = 2**40
        memory.InMemoryBackend.__init__ = unlimited
        """,
    ),
    Guard(
        "what is removed is overwritten",
        "test_snapshot.py::test_s23_nothing_is_left_of_what_was_cleared",
        """
        from tinyllm_cli.backends import snapshot
        configure = snapshot._configure
        def careless(db):
            configure(db)
            db.execute("PRAGMA secure_delete = OFF")
        snapshot._configure = careless
        """,
    ),
    Guard(
        "one deadline for all of an exchange",
        "test_redis.py::test_r05_drip[redis]",
        """
        from tinyllm_cli.backends import redis_socket
        redis_socket._left = lambda deadline: 0.5
        """,
    ),
    Guard(
        "a server that failed is left alone",
        "test_redis.py::test_r03_frozen_is_asked_once[redis]",
        """
        from tinyllm_cli.backends import breaker
        breaker.Breaker.allows = lambda self: True
        """,
    ),
    Guard(
        "something else under our name stays",
        "test_redis.py::test_r11_something_else_under_our_name[redis]",
        """
        from tinyllm_cli.backends import redis_work
        redis_work._MAX_FOREIGN = 0
        """,
    ),
    Guard(
        "TLS is verified",
        "test_redis.py::test_r13_wrong_certificate[redis-of an unknown authority]",
        """
        import ssl
        from tinyllm_cli.backends import redis_socket
        redis_socket.tls_context = lambda tls: ssl._create_unverified_context()
        """,
    ),
    Guard(
        "a value above the limit is not fetched",
        "test_redis.py::test_r16_huge_value_is_not_fetched[redis]",
        """
        from tinyllm_cli.backends import redis_work
        init = redis_work.RedisWork.__init__
        def unlimited(self, *given, **more):
            init(self, *given, **{**more, "max_entry_bytes": 2**30})
        redis_work.RedisWork.__init__ = unlimited
        """,
    ),
    Guard(
        "clearing keeps to this namespace",
        "test_redis.py::test_r22_foreign_keys_stay_as_they_are[redis]",
        """
        from tinyllm_cli.backends import redis_vault
        redis_vault.Vault.pattern = property(lambda self: b"*")
        redis_vault.Vault.is_entry = lambda self, name: True
        """,
    ),
    Guard(
        "text for a terminal is made inert",
        "test_terminal.py::test_c10_what_a_model_writes",
        """
        from tinyllm_cli.cli import terminal
        terminal.inert = lambda text: text
        """,
    ),
    Guard(
        "half a character is no text",
        "test_input.py::test_c07_half_a_character_through_the_library",
        """
        from tinyllm_cli import key
        key._utf8 = lambda text: text.encode("utf-8", "surrogatepass")
        """,
    ),
    Guard(
        "a TTL is a finite number above 0",
        "test_input.py::test_c15_what_is_no_ttl_in_the_library",
        """
        from tinyllm_cli import cache, client
        cache.checked_ttl = client.checked_ttl = lambda ttl: ttl
        """,
    ),
    Guard(
        "nothing is made in the home of another user",
        "test_input.py::test_c18_as_root_in_the_home_of_another",
        """
        from tinyllm_cli.backends import snapshot_file
        snapshot_file._refuse_home_of_others = lambda folder: None
        """,
    ),
    Guard(
        "one process asks for all",
        "test_concurrency.py::test_k02_many_processes[6]",
        """
        from tinyllm_cli import cache
        cache.ResponseCache.leases = property(lambda self: None, lambda self, store: None)
        """,
    ),
    Guard(
        "who leaves a flight ends it for nobody else",
        "test_concurrency.py::test_k04_the_leader_is_cancelled_again_and_again[300]",
        """
        from tinyllm_cli import flight
        flight.Flight._leave = lambda self: self.task.cancel()
        """,
    ),
    Guard(
        "the last to leave a flight ends it",
        "test_concurrency.py::test_k05_the_last_to_wait_leaves",
        """
        from tinyllm_cli import flight
        flight.Flight.give_up = lambda self: None
        """,
    ),
]


def switch(code: str, where: Path) -> dict[str, str]:
    """Return an environment in which every Python runs some code before its program."""
    where.mkdir()
    (where / "sitecustomize.py").write_text(textwrap.dedent(code))
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join((str(where), str(ROOT)))}
    tried = subprocess.run([sys.executable, "-c", ""], env=environ, capture_output=True, text=True)
    assert (tried.returncode, tried.stderr) == (0, "")
    return environ


def rows(environ: dict[str, str], *names: str) -> str:
    """Run rows of the matrix, until one fails, and return what pytest says of them."""
    command = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", "-m", "", "-rs"]
    done = subprocess.run(
        [*command, *(f"tests/faults/{name}" for name in names)],
        env=environ,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.stdout + done.stderr


@pytest.mark.slow
def test_with_every_guard_in_place_the_rows_pass(tmp_path: Path) -> None:
    """What is loaded early, and nothing else, is as it is for the rows that are to fail."""
    lines = {line for guard in GUARDS for line in textwrap.dedent(guard.off).splitlines()}
    early = sorted(line for line in lines if line.startswith(("import ", "from ")))
    said = rows(switch("\n".join(early), tmp_path / "on"), *(guard.row for guard in GUARDS))
    assert " passed" in said and "failed" not in said and "error" not in said, said


@pytest.mark.slow
@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_without_its_guard_a_row_fails(guard: Guard, tmp_path: Path) -> None:
    said = rows(switch(guard.off, tmp_path / "off"), guard.row)
    if re.search(r"\d+ skipped", said):
        pytest.skip(f"the row is skipped: {said}")
    assert re.search(r"\d+ failed", said), said
