"""Everything that can be wrong with the model's server, one row of the fault matrix per test.

The rule for all of them: an answer that is not whole is never stored, a failure is an exit code, one
line of reason and one of hint, and once the fault is gone the next run is an ordinary miss and then a
hit.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cli.outcome import assert_failed, finish, stored, with_peak_memory
from tests.cli.terminal import Terminal
from tests.conftest import Finished, Tinyllm
from tests.fake_ollama import FakeOllama, Fault
from tinyllm_cli.key import cache_key
from tinyllm_cli.request import GenerateRequest

QUESTION = "Count."
ANSWER = "one two three four"
WORDS = [b"one", b" two", b" three", b" four"]
WHOLE = ANSWER.encode() + b"\n"
PATIENCE = {"TINYLLM_IDLE_TIMEOUT": "0.3", "TINYLLM_FIRST_BYTE_TIMEOUT": "0.3"}
slow = partial(pytest.param, marks=pytest.mark.slow)


def kind(value: object) -> str | None:
    return value.kind if isinstance(value, Fault) else None


@pytest.fixture(autouse=True)
def counting(ollama: FakeOllama) -> None:
    ollama.answer = lambda body: ANSWER


def answered(done: Finished) -> None:
    assert (done.code, done.out, done.err) == (0, WHOLE, b""), done


def failed(tinyllm: Tinyllm, done: Finished, code: int, out: bytes, *words: str) -> None:
    """What had arrived is shown, the reason and a hint are said inertly, and nothing is stored."""
    assert done.out == out, done
    assert_failed(done, code, *words)
    assert not any(byte < 0x20 and byte != 0x0A for byte in done.err)
    assert stored(tinyllm.snapshot) == 0


def healed(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    """The next run is a miss, and the one after a hit."""
    ollama.clear_faults()
    asked = ollama.generations
    answered(tinyllm("run", QUESTION))
    answered(tinyllm("run", QUESTION))
    assert ollama.generations == asked + 1


# --- not there, or not answering


@pytest.mark.parametrize(
    "host", ["http://127.0.0.1:9", slow(""), slow("http://nosuchhost.invalid:11434")]
)
def test_o01_down(tinyllm: Tinyllm, ollama: FakeOllama, host: str) -> None:
    """What was asked before is answered; what was not ends with who does not answer."""
    port = ollama.port
    answered(tinyllm("run", QUESTION))
    if host:  # the same cache, as if the server had moved
        tinyllm.environ["OLLAMA_HOST"] = host
        assert_failed(tinyllm("run", QUESTION), 3)
    else:
        ollama.stop()
        answered(tinyllm("run", QUESTION))
        answered(tinyllm("run", "--digest-max-age", "0", QUESTION))
        assert_failed(tinyllm("run", "New?"), 3, "ollama serve")
        assert ollama.start().port == port
    tinyllm.environ["OLLAMA_HOST"] = f"http://127.0.0.1:{port}"
    answered(tinyllm("run", QUESTION))
    answered(tinyllm("run", "New?"))


def test_o02_first_token_late(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    """While a model loads a person sees a spinner, a pipe nothing, and Ctrl-C ends it."""
    barrier = ollama.hold()
    with Terminal(tinyllm, "run", QUESTION) as terminal:
        barrier.wait_for(1)
        terminal.wait_for("⠋".encode())
        terminal.press(b"\x03")
        assert terminal.finish() == 130
    process = tinyllm.start("run", QUESTION)
    barrier.wait_for(1)
    barrier.release()
    answered(finish(process))


@pytest.mark.parametrize("after", [2, slow(1), slow(4)])
def test_o03_silent_in_the_middle(tinyllm: Tinyllm, ollama: FakeOllama, after: int) -> None:
    ollama.inject(Fault.stall(after=after))
    done = tinyllm("run", QUESTION, environ=PATIENCE)
    failed(tinyllm, done, 5, b"".join(WORDS[:after]) + b"\n", "nothing more came for 0.3 s")
    healed(tinyllm, ollama)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "stream"),
    [
        ("cut", "--stream"),
        slow("cut", "--no-stream"),
        slow("reset", "--stream"),
        slow("half_line", "--stream"),
    ],
)
def test_o04_cut_off(tinyllm: Tinyllm, ollama: FakeOllama, fault: str, stream: str) -> None:
    points = range(len(WORDS) + 1) if stream == "--stream" else (2,)
    for after in points:
        ollama.inject(getattr(Fault, fault)(after=after))
        done = tinyllm("run", stream, QUESTION)
        arrived = b"".join(WORDS[:after])
        failed(tinyllm, done, 5, arrived + b"\n" if arrived else b"")
    ollama.inject(Fault.cut(after=2))
    failed(tinyllm, tinyllm("run", "--json", QUESTION), 5, b"")  # half a record is none
    healed(tinyllm, ollama)


def test_o05_ended_without_being_done(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    for after in range(len(WORDS) + 1):
        ollama.inject(Fault.clean_end(after=after))
        done = tinyllm("run", QUESTION)
        arrived = b"".join(WORDS[:after])
        failed(tinyllm, done, 5, arrived + b"\n" if arrived else b"", "before its last chunk")
    ollama.inject(Fault.done_false())
    failed(tinyllm, tinyllm("run", QUESTION), 5, WHOLE, "before its last chunk")
    ollama.inject(Fault.body(b""))
    failed(tinyllm, tinyllm("run", QUESTION), 5, b"")
    healed(tinyllm, ollama)


@pytest.mark.parametrize(
    ("fault", "out", "words"),
    [
        slow(Fault.error_line("out of memory", after=2), b"one two\n", "out of memory"),
        (Fault.error_line("\x1b]0;owned\x07\x9b31m", after=0), b"", "]0;owned"),
        slow(Fault.error_object("boom", after=1), b"one\n", "boom"),
        slow(Fault.body(b'{"response":"x","error":"with text","done":true}\n'), b"", "with text"),
    ],
    ids=kind,
)
def test_o06_an_error_in_the_middle(
    tinyllm: Tinyllm, ollama: FakeOllama, fault: Fault, out: bytes, words: str
) -> None:
    ollama.inject(fault)
    failed(tinyllm, tinyllm("run", QUESTION), 5, out, words)
    healed(tinyllm, ollama)


# --- what it says


@pytest.mark.parametrize(
    "fault",
    [
        slow(Fault.blank_lines()),
        slow(Fault.crlf()),
        Fault.bom(),
        slow(Fault.no_final_newline()),
        Fault.byte_by_byte(),
        slow(Fault.split_utf8()),
        slow(Fault.packed(0)),
        slow(Fault.extra_fields()),
    ],
    ids=kind,
)
def test_o07_odd_but_whole(tinyllm: Tinyllm, ollama: FakeOllama, fault: Fault) -> None:
    ollama.answer = lambda body: "größer 漢字 🙂"
    ollama.inject(fault)
    for _ in ("a miss", "a hit"):
        done = tinyllm("run", QUESTION)
        assert (done.code, done.text, done.err) == (0, "größer 漢字 🙂\n", b"")
    assert ollama.generations == 1


@pytest.mark.parametrize(
    ("fault", "out", "words"),
    [
        (Fault.malformed(after=1), b"one\n", "not JSON"),
        slow(Fault.invalid_utf8(after=1), b"one\n", "not JSON"),
        (Fault.body(b"[1]\n"), b"", "not a JSON object"),
        slow(Fault.body(b"1\n"), b"", "not a JSON object"),
        slow(Fault.number_as_string(), WHOLE, "wrong type"),
        slow(Fault.half_line(after=2), b"one two\n", "middle of a line"),
        slow(Fault.raw_bytes(b"SSH-2.0-OpenSSH_9.7\r\n\r\n"), b"", "does not speak HTTP"),
    ],
    ids=kind,
)
def test_o07_no_answer(
    tinyllm: Tinyllm, ollama: FakeOllama, fault: Fault, out: bytes, words: str
) -> None:
    ollama.inject(fault)
    failed(tinyllm, tinyllm("run", QUESTION), 5, out, words)
    healed(tinyllm, ollama)


def test_o08_separators_that_end_no_line(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    ollama.inject(Fault.raw_separators())
    miss = tinyllm("run", QUESTION)
    assert "a\x85\u2028\u2029\x0b\x0c\x1cb".encode() in miss.out
    assert tinyllm("run", QUESTION).out == miss.out
    assert ollama.generations == 1


def test_o09_a_web_page(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    ollama.inject(Fault.html())
    failed(tinyllm, tinyllm("run", QUESTION), 4, b"", "not an Ollama server")
    ollama.inject(Fault.no_content_type())
    answered(tinyllm("run", QUESTION))  # judged by what it says


def test_o10_compressed_unasked(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    """A few kilobytes that would unpack to 200 MB are not unpacked."""
    ollama.inject(Fault.gzip_body(size=200 * 2**20))
    done, peak = with_peak_memory(tinyllm, "run", QUESTION)
    failed(tinyllm, done, 5, b"", "compressed")
    assert peak < 100 * 2**20
    healed(tinyllm, ollama)


@pytest.mark.parametrize("status", [307, slow(301), slow(302)])
def test_o11_sent_elsewhere(tinyllm: Tinyllm, ollama: FakeOllama, status: int) -> None:
    with FakeOllama() as other:
        ollama.inject(Fault.redirect(status, other.url + "/api/generate"))
        done = tinyllm("run", QUESTION)
        failed(tinyllm, done, 4, b"", str(status), "redirects are not followed")
        assert other.log == []
    healed(tinyllm, ollama)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        slow(Fault.status(400, "bad request"), "bad request"),
        slow(Fault.unauthorized(), "sign in"),
        slow(Fault.empty_403(), "403"),
        (Fault.status(404, "model 'qwen2.5:0.5b' not found"), "ollama pull qwen2.5:0.5b"),
        slow(Fault.status(429, "slow down"), "slow down"),
        (Fault.status(500, "\x1b[2J" + "boom " * 200), "boom"),
        slow(Fault.status(500, None), "500"),
        slow(Fault.body(b"no JSON \x1b[2J", status=500), "no JSON"),
        slow(Fault.body(b"x" * 10_000_000, status=500), "500"),
        slow(Fault.error_object("boom"), "boom"),
        slow(Fault.html(502), "502"),
    ],
    ids=kind,
)
def test_o12_refused(tinyllm: Tinyllm, ollama: FakeOllama, fault: Fault, words: str) -> None:
    ollama.inject(fault)
    done = tinyllm("run", QUESTION)
    failed(tinyllm, done, 4, b"", words)
    assert len(done.err) < 600
    assert len(ollama.requests("/api/generate")) == 1  # no refusal is asked twice
    healed(tinyllm, ollama)


def test_o12_busy_is_asked_once_more(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    ollama.inject(Fault.status(503, "busy"), times=None)
    failed(tinyllm, tinyllm("run", QUESTION), 4, b"", "busy")
    assert len(ollama.requests("/api/generate")) == 2
    ollama.clear_faults()
    ollama.inject(Fault.status(503, "busy"))
    answered(tinyllm("run", QUESTION))


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("chunks", "kept"),
    [
        ([{"response": "x", "done": True, "done_reason": "length"}], True),
        slow([{"response": "x", "done": True}], True),
        slow([{"response": "", "thinking": "hm", "done": True, "done_reason": "stop"}], True),
        ([{"response": "", "done": True, "done_reason": "stop"}], False),
        ([{"response": "", "done": True, "done_reason": "load"}], False),
        slow([{"response": "", "done": True, "done_reason": "unload"}], False),
    ],
)
def test_o13_every_way_to_be_done(
    tinyllm: Tinyllm, ollama: FakeOllama, chunks: list[dict[str, Any]], kept: bool
) -> None:
    ollama.chunks = chunks
    text = b"x\n" if chunks[0]["response"] else b""
    for _ in range(2):
        done = tinyllm("run", QUESTION)
        assert (done.code, done.out) == (0, text), done
    assert ollama.generations == (1 if kept else 2)
    assert stored(tinyllm.snapshot) == kept


@pytest.mark.parametrize(
    "fault",
    [
        Fault.keep_open_after_done(),
        Fault.after_done([{"response": "more", "done": False}, b"not JSON"]),
        slow(Fault.after_done([{"response": "twice", "done": True}])),
    ],
    ids=kind,
)
def test_o14_more_after_the_end(tinyllm: Tinyllm, ollama: FakeOllama, fault: Fault) -> None:
    ollama.inject(fault)
    answered(tinyllm("run", QUESTION))
    answered(tinyllm("run", QUESTION))
    assert ollama.generations == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (Fault.huge_line(), 5, "longer than"),
        (Fault.header_drip(), 3, "did not answer in time"),
        slow(Fault.endless(), 5, "longer than"),
        slow(
            Fault.raw_bytes(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10_000_000), 5, "does not speak HTTP"
        ),
    ],
    ids=kind,
)
def test_o15_without_end(
    tinyllm: Tinyllm, ollama: FakeOllama, fault: Fault, code: int, words: str
) -> None:
    ollama.inject(fault)
    process = tinyllm.start("run", QUESTION, environ=PATIENCE, stdout=subprocess.DEVNULL)
    done = finish(process, timeout=120)
    assert_failed(done, code, words)
    assert stored(tinyllm.snapshot) == 0
    healed(tinyllm, ollama)


# --- which model it is, and what it was asked


def test_o16_another_model_under_the_name(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    ollama.answer = None
    command = ("run", "--coherence", "strict", "--temperature", "0", QUESTION)
    old = tinyllm(*command)
    ollama.repull("qwen2.5:0.5b", "w2")
    new = tinyllm(*command)
    assert (new.code, new.err) == (0, b"")
    assert new.out != old.out
    assert ollama.generations == 2


@pytest.mark.parametrize(
    "fault", [Fault.status(500, "boom"), slow(Fault.html()), slow(Fault.models_null())]
)
def test_o16_nobody_says_which_model_it_is(
    tinyllm: Tinyllm, ollama: FakeOllama, fault: Fault
) -> None:
    """The answer comes; under which name it may be found again is the server's address."""
    ollama.inject(fault, path="/api/tags", times=None)
    first = tinyllm("run", QUESTION)
    assert (first.code, first.out) == (0, WHOLE)
    assert first.err.count(b"\n") <= 1
    ollama.clear_faults()
    answered(tinyllm("run", QUESTION))
    answered(tinyllm("run", QUESTION))
    assert ollama.generations <= 2


def test_o17_every_field_is_in_the_key() -> None:
    """Each field of a request alone, the documented ones and one of the future."""
    base: dict[str, Any] = {"model": "m", "prompt": "Why?"}
    changes: dict[str, list[Any]] = {
        "model": ["other"],
        "prompt": ["Why", "Why? ", "why?"],
        "suffix": ["x"],
        "system": ["x"],
        "template": ["x"],
        "context": [[1], [2]],
        "raw": [True],
        "format": ["json", {"type": "object"}],
        "images": [["aGk="], ["aGkK"]],
        "think": [True, "high"],
        "logprobs": [True],
        "top_logprobs": [3],
        "dimensions": [8],
        "truncate": [False],
        "field_of_the_future": [None, False, 0, "", [], {}],
        "options": [
            {name: value}
            for name, value in {
                "num_keep": 1, "seed": 1, "num_predict": 1, "top_k": 1, "top_p": 0.5, "min_p": 0.5,
                "typical_p": 0.5, "repeat_last_n": 1, "temperature": 0.5, "repeat_penalty": 0.5,
                "presence_penalty": 0.5, "frequency_penalty": 0.5, "stop": ["x"], "num_ctx": 1,
                "num_batch": 1, "num_gpu": 1, "main_gpu": 1, "use_mmap": True, "num_thread": 1,
                "option_of_the_future": 1,
            }.items()
        ],
    }  # fmt: skip
    keys = [cache_key(base)]
    for name, values in changes.items():
        keys += [cache_key({**base, name: value}) for value in values]
    assert len(set(keys)) == len(keys)
    for name, value in (("stream", True), ("stream", False), ("keep_alive", "5m")):
        assert cache_key({**base, name: value}) == keys[0]  # how it is sent, not what is asked
    assert set(GenerateRequest("m", "Why?").body()) - {"stream"} <= set(changes)


@pytest.mark.parametrize(
    "variants",
    [
        [["-s", "Be brief."], ["--temperature", "0.31"], ["-o", "seed=1"], ["--json-mode"]],
        slow([["--max-tokens", "1999"], ["-o", "stop=END"], ["-m", "llama3.2"], ["--sample", "2"]]),
    ],
)
def test_o17_another_question_is_asked(
    tinyllm: Tinyllm, ollama: FakeOllama, variants: list[list[str]]
) -> None:
    for number, variant in enumerate([[], *variants], 1):
        assert tinyllm("run", *variant, QUESTION).code == 0
        assert ollama.generations == number
    assert stored(tinyllm.snapshot) == len(variants) + 1


# --- how it is reached


class Eavesdropper:
    """A proxy nobody should ask: it notes that somebody did."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    @property
    def was_asked(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            self.listener.accept()[0].close()
            return True
        return False


@pytest.mark.parametrize("name", ["HTTP_PROXY", slow("http_proxy"), slow("ALL_PROXY")])
def test_o18_a_proxy_in_the_environment(tinyllm: Tinyllm, ollama: FakeOllama, name: str) -> None:
    proxy = Eavesdropper()
    answered(tinyllm("run", QUESTION, environ={name: proxy.url, "HTTPS_PROXY": proxy.url}))
    assert not proxy.was_asked
    proxy.listener.close()
    assert ollama.generations == 1


@pytest.mark.parametrize(
    "host",
    ["http://[::1", "ftp://models", "http://h:99999", "two words", "\x1b"],
)
def test_o18_an_address_that_is_none(tinyllm: Tinyllm, ollama: FakeOllama, host: str) -> None:
    done = tinyllm("run", QUESTION, environ={"OLLAMA_HOST": host})
    assert_failed(done, 2, "OLLAMA_HOST")
    assert ollama.log == []


@pytest.mark.parametrize("form", ["0.0.0.0:{port}", "127.0.0.1:{port}/", "http://localhost:{port}"])
def test_o18_the_forms_ollama_itself_takes(tinyllm: Tinyllm, ollama: FakeOllama, form: str) -> None:
    environ = {"OLLAMA_HOST": form.format(port=ollama.port)}
    answered(tinyllm("run", QUESTION, environ=environ))
    assert ollama.generations == 1


SPARE = ("run", "--cache-ttl", "1", "--stale-if-error", "1d", QUESTION)


def test_o19_an_expired_answer_because_there_is_no_other(
    tinyllm: Tinyllm, ollama: FakeOllama, tmp_path: Path
) -> None:
    later = tmp_path / "later"
    later.mkdir()
    (later / "sitecustomize.py").write_text(
        "import time\n_right = time.time\ntime.time = lambda: _right() + 7200\n"
    )
    environ = {"PYTHONPATH": str(later)}
    answered(tinyllm(*SPARE))
    ollama.stop()
    spare = tinyllm(*SPARE, environ=environ)
    assert (spare.code, spare.out) == (0, WHOLE)
    assert "past its TTL" in spare.complaint and spare.complaint.count("\n") == 1
    # off unless asked for
    assert_failed(tinyllm("run", "--cache-ttl", "1", QUESTION, environ=environ), 3)
    ollama.start()
    answered(tinyllm(*SPARE, environ=environ))
    assert ollama.generations == 2
