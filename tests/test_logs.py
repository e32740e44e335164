"""Is the library silent until told otherwise, and do its lines tell events and never content?"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Clock
from tests.samples import answer, key_of
from tinyllm_cli import logs
from tinyllm_cli.backends.memory import InMemoryBackend
from tinyllm_cli.cache import ResponseCache
from tinyllm_cli.entry import CacheEntry
from tinyllm_cli.errors import SnapshotError

KEY = key_of("one")
SECRET = "canary-7f3a"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG, "tinyllm_cli"):
        yield caplog


def test_every_event_is_one_line_with_a_short_key_and_no_content(
    lines: pytest.LogCaptureFixture, clock: Clock, tmp_path: Path
) -> None:
    backend = InMemoryBackend(1, clock=clock, snapshot=tmp_path / "s" / "snapshot.sqlite3")
    cache = ResponseCache(backend, 60, clock=clock)
    model = "llama3.2:latest"
    assert cache.find_nowait(KEY, model) is None
    for name in ("one", "two"):
        made = cache.entry(answer(SECRET, thinking=SECRET), request={"prompt": SECRET})
        backend.set_nowait(key_of(name), made)
    assert cache.find_nowait(key_of("two"), model) is not None
    clock.advance(60)
    assert cache.find_nowait(key_of("two"), model) is None
    cache.close_nowait()

    messages = [record.getMessage() for record in lines.records]
    assert [message.split()[0] for message in messages] == [
        "cache_miss",
        "cache_hit",
        "cache_expired",
        "cache_miss",
    ]
    assert f"key={KEY[:12]}" in messages[0]
    assert not any(SECRET in message or "\n" in message for message in messages)
    assert not any(key_of(name) in message for message in messages for name in ("one", "two"))
    assert {record.name for record in lines.records} == {"tinyllm_cli"}
    assert {record.levelno for record in lines.records} == {logging.DEBUG}


def test_a_failure_of_the_store_is_an_error_by_class_and_reason(
    lines: pytest.LogCaptureFixture,
) -> None:
    logs.error("cache_get_error", SnapshotError("the disk is full"))
    (record,) = lines.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "cache_get_error error=SnapshotError reason=the disk is full"


def test_a_failure_goes_by_a_name_that_can_be_looked_up(lines: pytest.LogCaptureFixture) -> None:
    class _DiskRefusedError(SnapshotError):
        pass

    logs.error("cache_set_error", _DiskRefusedError("no space"))
    assert lines.records[-1].getMessage() == "cache_set_error error=SnapshotError reason=no space"


def test_who_wants_no_debug_lines_gets_none(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tinyllm_cli"):
        assert not logs.listening()
        logs.debug("cache_hit", KEY)
    assert caplog.records == []
    with caplog.at_level(logging.DEBUG, "tinyllm_cli"):
        assert logs.listening()


SCRIPT = """
import sys
from tinyllm_cli import logs
from tinyllm_cli.errors import SnapshotError
{before}
logs.debug("cache_hit", "a" * 64)
logs.error("cache_get_error", SnapshotError("broken"))
print("logging" in sys.modules, logs.listening())
"""


@pytest.mark.parametrize(
    ("before", "printed"),
    [
        # a program without logging does not get it loaded for nothing
        ("", "False False"),
        # one with logging but without configuration gets no "last resort" line on stderr
        ("import logging", "True False"),
        ("import logging; logging.getLogger('tinyllm_cli').setLevel(10)", "True True"),
    ],
)
def test_a_program_that_did_not_ask_sees_nothing(before: str, printed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(before=before)],
        capture_output=True,
        check=True,
        text=True,
    )
    assert (done.stdout.strip(), done.stderr) == (printed, "")


def test_an_entry_is_never_part_of_a_line(lines: pytest.LogCaptureFixture) -> None:
    made = CacheEntry(answer(SECRET), 0.0, request={"prompt": SECRET})
    logs.debug("cache_set", KEY, entry=made)
    assert SECRET not in lines.text
