"""Whatever Ollama or the network does wrong: no half answer passes for one, and no bare traceback."""

import asyncio
import json
import time
from functools import partial
from typing import Any

import pytest

from tests.fake_ollama import SEPARATORS, FakeOllama, Fault, Logged
from tinyllm_cli.errors import (
    IncompleteAnswerError,
    ModelNotFoundError,
    OllamaError,
    OllamaProtocolError,
    OllamaStatusError,
    OllamaTimeoutError,
    OllamaUnavailableError,
)
from tinyllm_cli.ollama.client import OllamaClient
from tinyllm_cli.response import GenerateResponse

from .conftest import Asker

FINAL = {"model": "m", "created_at": "t", "response": "", "done": True, "done_reason": "stop"}


def body(*lines: dict[str, Any], end: bytes = b"\n") -> Fault:
    return Fault.body(b"\n".join(json.dumps(line).encode() for line in lines) + end)


def answer(ask: Asker, **settings: Any) -> GenerateResponse:
    return ask(lambda client: client.generate("hi", options={"seed": 1}), **settings)


def failure(ask: Asker, fault: Fault, **settings: Any) -> OllamaError:
    """Return the error of a generation that meets *fault*; it was asked for once."""
    server = ask.server
    before = len(server.requests("/api/generate"))
    server.inject(fault)
    with pytest.raises(OllamaError) as caught:
        answer(ask, **settings)
    assert len(server.requests("/api/generate")) == before + 1
    assert str(caught.value).isprintable()
    assert ask.pauses.seconds == []
    return caught.value


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault.cut(), "broke before"),
        (Fault.cut(after=3), "broke before"),
        (Fault.reset(), "broke before"),
        (Fault.clean_end(), "before its last chunk"),
        (Fault.clean_end(after=0), "before its last chunk"),
        (Fault.done_false(), "before its last chunk"),
        (Fault.half_line(), "middle of a line"),
        (Fault.half_line(clean=False), "broke before"),
        (Fault.wrong_length(-10), "middle of a line"),
        (Fault.error_line("CUDA \x1b[2Jerror"), "CUDA ␛\\[2Jerror"),
        (Fault.error_line("at once", after=0), "at once"),
        (Fault.error_object("an object", after=1), "an object"),
        (body({"response": "text", "error": "with text", "done": True}), "with text"),
        (body({"error": {"code": 7}}), '"code": 7'),
        (body({"error": "not streamed"}, end=b""), "not streamed"),
        (Fault.body(b""), "before its last chunk"),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_half_an_answer_is_none(ask: Asker, fault: Fault, text: str) -> None:
    error = failure(ask, fault)
    assert type(error) is IncompleteAnswerError
    assert pytest.RaisesExc(IncompleteAnswerError, match=text).matches(error)


@pytest.mark.parametrize(
    "fault",
    [
        Fault.malformed(),
        Fault.malformed(text=b"[1]"),
        Fault.malformed(text=b"1"),
        Fault.malformed(text=b'{"a":' * 100_000),
        Fault.invalid_utf8(),
        Fault.raw_separators(controls=True),
        Fault.number_as_string(),
        Fault.huge_line(),
        Fault.gzip_body(),
        Fault.body(b"[1]"),
        Fault.raw_bytes(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    ],
    ids=lambda fault: fault.kind,
)
def test_what_is_no_answer_is_refused(ask: Asker, fault: Fault) -> None:
    error = failure(ask, fault)
    assert type(error) is OllamaProtocolError
    assert len(str(error)) < 200


@pytest.mark.parametrize(
    "fault",
    [
        Fault.blank_lines(),
        Fault.crlf(),
        Fault.no_final_newline(),
        Fault.packed(),
        Fault.packed(0),
        Fault.split_utf8(),
        Fault.byte_by_byte(),
        Fault.bom(),
        Fault.no_content_type(),
        Fault.extra_fields(),
        Fault.wrong_length(10),
        Fault.delay(0.05),
        Fault.after_done([{"response": "later", "done": False}, {"error": "late"}, b"junk"]),
        Fault.after_done([{**FINAL, "response": "twice"}]),
    ],
    ids=lambda fault: fault.kind,
)
def test_what_changes_no_answer_is_tolerated(server: FakeOllama, ask: Asker, fault: Fault) -> None:
    plain = answer(ask)
    server.inject(fault)
    found = answer(ask)
    assert found.response == plain.response
    assert found.done_reason == "stop"
    assert "é" in plain.response or not plain.response.isascii()


def test_line_ends_that_are_none_are_delivered(server: FakeOllama, ask: Asker) -> None:
    server.inject(Fault.raw_separators())
    assert SEPARATORS in answer(ask).response


@pytest.mark.parametrize(
    ("fault", "reason", "text"),
    [
        (Fault.no_done_reason(), "", True),
        (Fault.done_reason("length"), "length", True),
        (Fault.done_reason("load"), "load", True),
        (Fault.zero_tokens(), "stop", False),
        (body({**FINAL, "response": "x", "error": None}), "stop", True),
        (body({**FINAL, "response": "x", "error": ""}), "stop", True),
        (body({"done": True, "response": "x"}), "", True),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_every_way_to_end_is_delivered_as_it_is(
    server: FakeOllama, ask: Asker, fault: Fault, reason: str, text: bool
) -> None:
    server.inject(fault)
    found = answer(ask)
    assert (found.done, found.done_reason, found.response != "") == (True, reason, text)


@pytest.mark.parametrize(
    ("fault", "settings", "kind"),
    [
        (Fault.stall_headers(), {"first_byte_timeout_ms": 150}, OllamaTimeoutError),
        (Fault.header_drip(), {"first_byte_timeout_ms": 150}, OllamaTimeoutError),
        (Fault.stall(after=0), {"first_byte_timeout_ms": 150}, OllamaTimeoutError),
        (Fault.stall(after=1), {"timeout_ms": 150}, IncompleteAnswerError),
        (Fault.stall(after=3), {"timeout_ms": 150}, IncompleteAnswerError),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_silence_ends_in_time(
    ask: Asker, fault: Fault, settings: dict[str, int], kind: type[OllamaError]
) -> None:
    started = time.monotonic()
    error = failure(ask, fault, **settings)
    assert type(error) is kind
    assert 0.14 < time.monotonic() - started < 5


def test_a_slow_reader_is_not_a_silent_server(server: FakeOllama, ask: Asker) -> None:
    async def work(client: OllamaClient) -> int:
        count = 0
        async for _ in client.generate_stream("hi"):
            time.sleep(0.02)  # noqa: ASYNC251 - the reader blocks, for longer than the limit in all
            count += 1
        return count

    assert ask(work, timeout_ms=100) > 5


def test_a_web_page_is_not_ollama(server: FakeOllama, ask: Asker) -> None:
    pages = [
        Fault.html(),
        Fault.body(b" \n<html>", content_type="application/x-ndjson"),
        Fault.body(b"<!DOCTYPE html>" + b"x" * 100_000),
        Fault.body(b"", content_type="text/html"),
    ]
    for fault in pages:
        error = failure(ask, fault)
        assert isinstance(error, OllamaStatusError)
        assert error.status_code == 200
        assert "not an Ollama server" in str(error)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_gets_no_prompt(ask: Asker, status: int) -> None:
    with FakeOllama() as other:
        error = failure(ask, Fault.redirect(status, f"{other.url}/api/generate"))
        assert other.log == []
    assert isinstance(error, OllamaStatusError)
    assert error.status_code == status
    assert "redirects are not followed" in str(error)


@pytest.mark.parametrize(
    ("fault", "status", "text", "hint"),
    [
        (Fault.status(400, "invalid model name"), 400, "(400): invalid model name", ""),
        (Fault.error_object("too long", status=400), 400, "(400): too long", ""),
        (Fault.unauthorized(), 401, "(401): unauthorized", "https://ollama.com/connect?name"),
        (Fault.status(401, "who?"), 401, "(401): who?", "OLLAMA_API_KEY"),
        (Fault.empty_403(), 403, "refused (403)", "OLLAMA_ORIGINS"),
        (Fault.status(404, "no such page"), 404, "(404): no such page", ""),
        (Fault.body(b"404 page not found", status=404), 404, "404 page", "OLLAMA_HOST"),
        (Fault.status(429, "slow down"), 429, "(429): slow down", "later"),
        (Fault.status(500, "\x1b]0;x\x07\u202eevil\nline"), 500, "␛]0;x␇\ufffdevil line", ""),
        (Fault.body(b'{"error": "\\ud800"}', status=500), 500, "(500): \ufffd", ""),
        (Fault.html(502), 502, "(502): a web page", ""),
        (Fault.body(b"\xff\xfe", status=500), 500, "(500): \ufffd\ufffd", ""),
        (Fault.body(b"[" * 50_000, status=500), 500, "(500): [[[", ""),
        (Fault.body(b"", status=204), 204, "refused (204)", ""),
    ],
)
def test_a_refusal_tells_status_and_reason(
    ask: Asker, fault: Fault, status: int, text: str, hint: str
) -> None:
    error = failure(ask, fault)
    assert type(error) is OllamaStatusError
    assert error.status_code == status
    assert text in str(error)
    assert hint in (error.hint or "")


def test_a_long_refusal_is_cut(ask: Asker) -> None:
    for fault in (Fault.status(500, "x" * 10_000), Fault.body(b"x" * 10_000_000, status=500)):
        started = time.monotonic()
        assert str(failure(ask, fault)) == "Ollama refused (500): " + "x" * 200
        assert time.monotonic() - started < 2


def test_a_refusal_may_break_off(ask: Asker) -> None:
    refusal = b"HTTP/1.1 500 Oh\r\nContent-Length: 99\r\n\r\nhalf a rea"
    assert "half a rea" in str(failure(ask, Fault.raw_bytes(refusal)))


def test_a_missing_model_is_named_with_its_cure(ask: Asker) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        ask(lambda client: client.generate("hi", "mistral"))
    assert caught.value.model == "mistral"
    assert caught.value.status_code == 404
    assert caught.value.hint == "ollama pull mistral"


def test_a_connection_lost_before_the_answer(ask: Asker) -> None:
    error = failure(ask, Fault.drop())
    assert type(error) is OllamaUnavailableError
    assert ask.server.url in str(error)


def test_the_first_done_ends_the_answer_at_once(server: FakeOllama, ask: Asker) -> None:
    def seconds() -> float:
        server.inject(Fault.keep_open_after_done())
        started = time.monotonic()
        assert answer(ask).done
        return time.monotonic() - started

    assert min(seconds() for _ in range(5)) < 0.1


def test_an_endless_answer_is_cut(server: FakeOllama, ask: Asker) -> None:
    error = failure(ask, Fault.endless(), max_answer_bytes=200_000)
    assert type(error) is IncompleteAnswerError
    assert "200000" in str(error)
    server.wait_until(lambda seen: seen.requests("/api/generate")[-1].client_closed)


def test_an_endless_list_is_cut(server: FakeOllama, ask: Asker) -> None:
    server.inject(Fault.body(b" " * 200_000), path="/api/tags")
    with pytest.raises(IncompleteAnswerError):
        ask(lambda client: client.list_models(), max_answer_bytes=100_000)


def test_compressed_bytes_are_never_unpacked(ask: Asker) -> None:
    error = failure(ask, Fault.gzip_body(size=50_000_000))
    assert "gzip" in str(error)


def _hung_up(asked: Logged, _: FakeOllama) -> bool:
    return asked.client_closed


def test_a_cancelled_question_hangs_up(server: FakeOllama, ask: Asker) -> None:
    waiting = server.hold()
    streaming = server.hold_after(chunks=2)

    async def work(client: OllamaClient) -> None:
        for barrier in (waiting, streaming):
            task = asyncio.create_task(client.generate("hi"))
            await asyncio.to_thread(barrier.wait_for, 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            asked = server.log[-1]
            await asyncio.to_thread(server.wait_until, partial(_hung_up, asked))
            waiting.release()

    ask(work)


def test_an_abandoned_stream_hangs_up(server: FakeOllama, ask: Asker) -> None:
    barrier = server.hold_after(chunks=2)

    async def work(client: OllamaClient) -> None:
        stream = client.generate_stream("hi")
        assert await anext(stream)
        await stream.aclose()
        await asyncio.to_thread(server.wait_until, lambda seen: seen.log[0].client_closed)

    ask(work)
    assert barrier.held == 0


def test_an_answer_that_ended_well_was_not_hung_up_on(server: FakeOllama, ask: Asker) -> None:
    for _ in range(20):
        answer(ask)
    assert all(seen.finished and not seen.client_closed for seen in server.log)
