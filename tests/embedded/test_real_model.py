"""A real model answers: the embedded one.

The weights are those `tinyllm pull smollm2:135m` brings; TINYLLM_TEST_WEIGHTS names the file where it
lies elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.cli.outcome import assert_failed, finish, stored
from tests.conftest import Finished, Tinyllm
from tinyllm_cli import EmbeddedClient, create_cached_client
from tinyllm_cli.embedded.weights import SMOLLM2, Shelf

# read at import: every test gets an environment and a home of its own
WEIGHTS = Path(os.environ.get("TINYLLM_TEST_WEIGHTS") or Shelf().first.path)

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(
        find_spec("xllamacpp") is None, reason="the extra `embedded` is not installed"
    ),
    pytest.mark.skipif(
        not WEIGHTS.is_file(), reason=f"no weights: run `tinyllm pull {SMOLLM2.model}`"
    ),
]


@pytest.fixture
def user(tinyllm: Tinyllm) -> Tinyllm:
    """A user whose weights have been fetched, without an Ollama."""
    models = tinyllm.home / "data" / "models"
    models.mkdir(parents=True)
    (models / SMOLLM2.file).symlink_to(WEIGHTS)
    tinyllm.environ["TINYLLM_DATA_DIR"] = str(models.parent)
    tinyllm.environ["TINYLLM_ENGINE"] = "embedded"
    return tinyllm


def test_the_first_question_is_answered_and_the_second_time_it_is_a_hit(user: Tinyllm) -> None:
    first = user("run", "What is AI?")
    assert (first.code, first.err) == (0, b"")
    assert "artificial intelligence" in first.text.lower()
    started = time.monotonic()
    second = user("run", "What is AI?")
    assert time.monotonic() - started < 2
    assert (second.code, second.out, second.err) == (0, first.out, b"")
    stats = json.loads(user("cache-stats", "--json").out)
    assert (stats["hits"], stats["misses"], stats["entries"]) == (1, 1, 1)


def test_at_temperature_0_the_answer_is_the_same_every_time(user: Tinyllm) -> None:
    question = ["run", "What is AI?", "-t", "0", "--max-tokens", "48", "--no-cache"]
    answers = {user(*question).out for _ in range(5)}
    assert len(answers) == 1 and answers != {b""}


def test_what_was_asked_before_does_not_change_an_answer(user: Tinyllm) -> None:
    async def main() -> None:
        async with EmbeddedClient(WEIGHTS) as client:
            prompts = ["What is AI?", "What is AI for?", "What is AI?"]
            answers = [
                (await client.generate(prompt, temperature=0, max_tokens=32)).response
                for prompt in prompts
            ]
        assert answers[0] == answers[2]

    asyncio.run(main())


def test_the_same_seed_gives_the_same_answer_and_another_another(user: Tinyllm) -> None:
    async def main() -> None:
        async with EmbeddedClient(WEIGHTS) as client:

            async def ask(seed: int) -> str:
                options = {"seed": seed, "temperature": 1.5}
                return (await client.generate("Hi", options=options, max_tokens=16)).response

            assert await ask(1) == await ask(1) != await ask(2)

    asyncio.run(main())


def test_json_mode_and_schema_shape_the_answer(user: Tinyllm) -> None:
    schema = user.home / "schema.json"
    fields = {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}}
    schema.write_text(
        json.dumps({"type": "object", "properties": fields, "required": ["name", "age"]})
    )
    person = json.loads(user("run", "Describe a person.", "--format", str(schema), "-t", "0").out)
    assert isinstance(person["name"], str) and isinstance(person["age"], int)
    free = user("run", "Describe a person as JSON.", "--json-mode", "--max-tokens", "20").text
    assert free.lstrip().startswith("{")


def test_a_stop_word_and_a_limit_end_the_answer(user: Tinyllm) -> None:
    cut = user("run", "What is AI?", "-t", "0", "-o", "stop=intelligence")
    assert cut.code == 0 and "intelligence" not in cut.text
    record = json.loads(user("run", "What is AI?", "--max-tokens", "5", "--json").out)
    assert (record["done_reason"], record["eval_count"]) == ("length", 5)


def test_more_text_than_fits_is_refused_with_what_helps(user: Tinyllm) -> None:
    done = user("run", "word " * 3000, "-o", "num_ctx=512")
    assert_failed(done, 4, "context size", "num_ctx")
    assert stored(user.snapshot) == 0


def test_a_raw_prompt_is_continued(user: Tinyllm) -> None:
    async def main() -> str:
        async with EmbeddedClient(WEIGHTS) as client:
            answer = await client.generate(
                "One, two, three,", raw=True, temperature=0, max_tokens=4
            )
            return answer.response

    assert "four" in asyncio.run(main())


def test_ctrl_c_ends_a_real_generation_at_once(user: Tinyllm) -> None:
    took = []
    for _ in range(3):  # a busy machine may be late, but not each time
        process = user.start("run", "Write a long story.")
        assert process.stdout is not None and process.stdout.read(1)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        done = finish(process)
        took.append(time.monotonic() - started)
        assert (done.code, done.err) == (130, b"")
    assert min(took) < 0.2
    assert stored(user.snapshot) == 0


def test_a_killed_engine_is_exit_4_and_the_next_run_heals(user: Tinyllm) -> None:
    process = user.start("run", "Write a long story.")
    assert process.stdout is not None and process.stdout.read(1)
    listed = subprocess.run(["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True)
    os.kill(int(listed.stdout), signal.SIGKILL)
    done = finish(process)
    assert_failed(Finished(done.code, b"", done.err), 4, "crashed (SIGKILL)")
    assert stored(user.snapshot) == 0
    assert user("run", "Hi", "--max-tokens", "4").code == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_the_engine_listens_nowhere(user: Tinyllm) -> None:
    process = user.start("run", "Write a long story.")
    assert process.stdout is not None and process.stdout.read(1)
    listed = subprocess.run(["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True)
    helper = int(listed.stdout)
    inodes = {os.readlink(f"/proc/{helper}/fd/{name}") for name in os.listdir(f"/proc/{helper}/fd")}
    for table in ("tcp", "tcp6"):
        rows = Path("/proc/net", table).read_text().splitlines()[1:]
        assert not [row for row in rows if f"socket:[{row.split()[9]}]" in inodes]
    places = [row.split()[-1] for row in Path("/proc/net/unix").read_text().splitlines()[1:]]
    ours = [place for place in places if place.endswith("engine.sock")]
    assert not [place for place in ours if Path(place).exists()]
    process.send_signal(signal.SIGINT)
    finish(process)


def test_a_truncated_file_of_ones_own_is_exit_4(user: Tinyllm, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    with open(WEIGHTS, "rb") as whole:
        cut.write_bytes(whole.read(1 << 20))
    done = user("run", "Hi", environ={"TINYLLM_EMBEDDED_MODEL": str(cut)})
    assert_failed(done, 4, "cannot load the weights", str(cut))
    assert stored(user.snapshot) == 0


def test_the_library_caches_it(user: Tinyllm) -> None:
    async def main() -> None:
        async with await create_cached_client(client=EmbeddedClient(WEIGHTS)) as client:
            first = await client.generate("What is AI?", max_tokens=16)
            assert await client.generate("What is AI?", max_tokens=16) == first
            stats = client.get_stats()
            assert (stats["cache"]["hits"], stats["client"]["request_count"]) == (1, 1)

    asyncio.run(main())
