"""What goes wrong in the helper process: refusals, crashes, silence and an early end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.embedded.asking import alive, ask, asked, gone, run
from tinyllm_cli.embedded.client import EmbeddedClient
from tinyllm_cli.embedded.helper import HelperProcess
from tinyllm_cli.errors import (
    OllamaStatusError,
    OllamaTimeoutError,
)


def test_a_refusal_is_one_and_the_process_lives_on(embedded: EmbeddedClient) -> None:
    async def work(client: EmbeddedClient) -> None:
        before = asked(await client.generate("Hi"))["process"]
        with pytest.raises(OllamaStatusError, match="context size") as long:
            await client.generate("too long")
        assert (long.value.status_code, "num_ctx" in str(long.value.hint)) == (400, True)
        with pytest.raises(OllamaStatusError, match="unrecognized type") as bad:
            await client.generate("bad schema")
        assert bad.value.status_code == 400
        assert asked(await client.generate("Hi"))["process"] == before

    run(embedded, work)


@pytest.mark.parametrize("prompt", ["crash", "half way, then crash"])
def test_a_crash_is_one_line_and_the_next_request_heals(
    prompt: str, embedded: EmbeddedClient
) -> None:
    async def work(client: EmbeddedClient) -> None:
        with pytest.raises(OllamaStatusError, match=r"crashed \(SIGABRT\): GGML_ASSERT") as crash:
            await client.generate(prompt)
        assert crash.value.status_code == 500 and crash.value.hint
        assert str(crash.value).isprintable()
        assert asked(await client.generate("Hi"))["weights"] == "one"

    run(embedded, work)


def test_a_processor_that_lacks_avx2_is_named(embedded: EmbeddedClient, weights: Path) -> None:
    weights.write_bytes(b"no AVX2")
    with pytest.raises(OllamaStatusError, match="SIGILL") as crash:
        ask(embedded, "Hi")
    assert "AVX2" in str(crash.value.hint)


def test_weights_that_are_none_are_refused(embedded: EmbeddedClient, weights: Path) -> None:
    weights.write_bytes(b"<html>")
    with pytest.raises(OllamaStatusError, match="cannot load the weights") as refused:
        ask(embedded, "Hi")
    assert str(weights) in str(refused.value.hint)
    weights.write_bytes(b"GGUF two")
    assert asked(ask(embedded, "Hi"))["weights"] == "two"


def test_a_killed_helper_is_a_crash_and_a_dead_one_is_replaced(embedded: EmbeddedClient) -> None:
    async def work(client: EmbeddedClient) -> None:
        process = asked(await client.generate("Hi"))["process"]
        os.kill(process, signal.SIGKILL)
        assert await asyncio.to_thread(gone, process, 2)
        process = asked(await client.generate("Hi"))["process"]
        long = asyncio.create_task(client.generate("for ever"))
        await asyncio.sleep(0.1)
        os.kill(process, signal.SIGKILL)
        with pytest.raises(OllamaStatusError, match=r"crashed \(SIGKILL\)"):
            await long

    run(embedded, work)


def test_silence_ends_in_time(stub: Path, weights: Path, tmp_path: Path) -> None:
    client = EmbeddedClient(weights, data_dir=tmp_path, first_byte_timeout_ms=300)
    started = time.monotonic()
    with pytest.raises(OllamaTimeoutError, match="did not answer in time"):
        ask(client, "silence")
    assert time.monotonic() - started < 3


def test_cancelling_ends_the_helper_at_once(embedded: EmbeddedClient) -> None:
    async def work(client: EmbeddedClient) -> None:
        process = asked(await client.generate("Hi"))["process"]
        long = asyncio.create_task(client.generate("for ever"))
        await asyncio.sleep(0.2)
        started = time.monotonic()
        long.cancel()
        with pytest.raises(asyncio.CancelledError):
            await long
        assert time.monotonic() - started < 1
        assert not alive(process)

    run(embedded, work)


TWO_LINES = """
import sys, time
sys.stdin.readline()
print("{}", flush=True)
time.sleep(0.05)
print("{}", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("turns", range(6))
def test_a_cancellation_that_meets_a_line_is_not_lost(turns: int) -> None:
    """However many turns of the loop after the line has arrived it comes."""

    async def main() -> None:
        process = HelperProcess([sys.executable, "-c", TWO_LINES])
        first = asyncio.Event()

        async def read() -> None:
            async with contextlib.aclosing(process.converse({}, 10, 10)) as lines:
                async for _ in lines:
                    first.set()

        reading = asyncio.create_task(read())
        try:
            await first.wait()
            time.sleep(0.2)  # noqa: ASYNC251 - the loop is held up until the second line is there
            for _ in range(turns):
                await asyncio.sleep(0)
            reading.cancel()
            done, _ = await asyncio.wait({reading}, timeout=2)
            assert done and reading.cancelled()
        finally:
            process.kill()

    asyncio.run(main())


def test_leaving_a_stream_early_ends_the_generation(embedded: EmbeddedClient) -> None:
    async def work(client: EmbeddedClient) -> int:
        process: int = asked(await client.generate("Hi"))["process"]
        stream = client.generate_stream("for ever")
        assert await anext(stream)
        await stream.aclose()
        return process

    assert gone(run(embedded, work), 1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_no_helper_outlives_a_parent_that_was_killed(
    embedded: EmbeddedClient, weights: Path, tmp_path: Path
) -> None:
    script = (
        "import asyncio, json, sys\n"
        "from tinyllm_cli import EmbeddedClient\n"
        "async def main():\n"
        "    client = EmbeddedClient(sys.argv[1], data_dir=sys.argv[2])\n"
        "    answer = await client.generate('Hi')\n"
        "    print(json.loads(answer.response)['process'], flush=True)\n"
        "    await client.generate('for ever')\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", script, str(weights), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        helper = int(parent.stdout.readline())
        time.sleep(0.1)
        parent.kill()
    assert gone(helper, 1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_no_port_is_opened(embedded: EmbeddedClient) -> None:
    async def work(client: EmbeddedClient) -> None:
        process = asked(await client.generate("Hi"))["process"]
        links = [os.readlink(f"/proc/{process}/fd/{name}") for name in _descriptors(process)]
        assert not [link for link in links if link.startswith("socket:")]

    run(embedded, work)


def _descriptors(process: int) -> list[str]:
    return os.listdir(f"/proc/{process}/fd")
