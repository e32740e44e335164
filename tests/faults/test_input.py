"""What comes in as a question and is none, or is more than anybody should send."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.cli.outcome import assert_failed, finish, in_shell, with_peak_memory
from tests.cli.terminal import Terminal
from tests.cli.test_prompt_sources import asked
from tests.conftest import Tinyllm
from tests.fake_ollama import FakeOllama
from tests.samples import answer
from tinyllm_cli import CacheEntry, ConfigError, create_memory_cache, generate_cache_key


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        ([], None),
        ([], b""),
        ([""], None),
        (["  \n\t "], None),
        ([], b" \n"),
        (["-f", "empty"], None),
    ],
    ids=repr,
)
def test_c07_nothing_to_ask(
    tinyllm: Tinyllm, ollama: FakeOllama, arguments: list[str], stdin: bytes | None
) -> None:
    (tinyllm.home / "empty").write_text("\n")
    assert_failed(tinyllm("run", *arguments, stdin=stdin), 2, "the prompt is empty")
    assert ollama.log == []


@pytest.mark.parametrize(
    ("stdin", "words"),
    [
        (b"caf\xe9", "byte 4"),
        (b"\xff\xfeh\x00i\x00", "byte 1"),
        (b"lone \xed\xa0\x80", "byte 6"),
        (b"overlong \xc0\xaf", "byte 10"),
    ],
)
def test_c06_input_that_is_not_utf8(
    tinyllm: Tinyllm, ollama: FakeOllama, stdin: bytes, words: str
) -> None:
    assert_failed(tinyllm("run", stdin=stdin), 2, "standard input is not UTF-8", words)
    path = tinyllm.home / "prompt.txt"
    path.write_bytes(stdin)
    assert_failed(tinyllm("run", "-f", "prompt.txt"), 2, "prompt.txt is not UTF-8", words)
    assert ollama.log == []


@pytest.mark.parametrize(
    "arguments",
    [
        (b"\xff\xfe",),
        ("What?", "-s", b"\xff"),
        ("What?", "-m", b"\xff"),
        ("What?", "-o", b"stop=\xff"),
        ("What?", "-o", r'stop="\ud800"'),
        ("What?", "--namespace", b"\xff"),
        ("What?", "-f", b"\xff"),
    ],
    ids=repr,
)
def test_c06_an_argument_that_is_not_text(
    tinyllm: Tinyllm, ollama: FakeOllama, arguments: tuple[str | bytes, ...]
) -> None:
    assert_failed(tinyllm("run", *arguments), 2)
    assert ollama.log == []


def test_c08_a_prompt_that_looks_like_an_option(tinyllm: Tinyllm) -> None:
    assert_failed(tinyllm("run", "-x marks the spot"), 2, "-x", "goes after --")


def test_c09_five_megabytes(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    text = "0123456789abcdé\n" * (5 * 2**20 // 17)
    done = tinyllm("run", "What?", stdin=text.encode())
    assert done.code == 0
    assert asked(ollama) == text.removesuffix("\n") + "\n\nWhat?"
    assert tinyllm("run", "What?", stdin=text.encode()).out == done.out
    assert ollama.generations == 1


def test_c09_without_an_end(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    done = in_shell(tinyllm, 'yes 0123456789abcdef | "$@"', "run", "What?")
    assert_failed(done, 2, "larger than 64 MiB")
    assert ollama.log == []


def test_c04_closed_input_is_empty_input(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    assert in_shell(tinyllm, '"$@" <&-', "run", "What?").code == 0
    assert asked(ollama) == "What?"
    assert in_shell(tinyllm, '"$@" <&-', "run", "-f", "-").code == 2


@pytest.mark.few(3)
@pytest.mark.parametrize("prompt", ["a\x00b", "x", "e\u0301", "\u00e9", "日", "a\rb\r\nc"])
def test_c07_odd_but_text(tinyllm: Tinyllm, ollama: FakeOllama, prompt: str) -> None:
    """What is typed is what is asked, to the byte, and what comes back is as well."""
    ollama.answer = lambda body: f"<{body['prompt']}>"
    for _ in ("a miss", "a hit"):
        done = tinyllm("run", stdin=prompt.encode())
        assert (done.code, done.out, done.err) == (0, f"<{prompt}>\n".encode(), b"")
    assert asked(ollama) == prompt
    assert ollama.generations == 1


def test_c07_composed_and_decomposed_are_two_questions(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    for prompt in ("caf\u00e9", "cafe\u0301"):
        assert tinyllm("run", prompt).code == 0
    assert ollama.generations == 2


def test_c07_half_a_character_through_the_library() -> None:
    with pytest.raises(ConfigError, match="lone surrogate"):
        generate_cache_key("m", "lone \udcff")
    with pytest.raises(ConfigError, match="lone surrogate"):
        generate_cache_key("m", "x", options={"stop": "\ud800"})


def test_c08_after_two_dashes_anything_is_a_prompt(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    for prompt in ("--help", "-x marks the spot", "--"):
        assert tinyllm("run", "--", prompt).code == 0
        assert asked(ollama) == prompt


def test_c08_an_at_sign_names_no_file(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    secret = tinyllm.home / "secret.txt"
    secret.write_text("secret")
    assert tinyllm("run", "@secret.txt").code == 0
    assert asked(ollama) == "@secret.txt"


def test_c08_as_long_as_an_argument_may_be(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    """The system takes 128 KiB as one argument on Linux; what is longer comes through a pipe."""
    longest = "x" * (128 * 1024 - 1)
    assert tinyllm("run", longest).code == 0
    assert asked(ollama) == longest
    assert tinyllm("run", stdin=b"x" * 140_000).code == 0


@pytest.mark.slow
def test_c09_fifty_megabytes(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    """Memory stays within five times the prompt."""
    text = b"0123456789abcdef\n" * (50 * 2**20 // 17)
    done, peak = with_peak_memory(tinyllm, "run", stdin=text)
    assert (done.code, done.out[:7], done.err) == (0, b"Answer ", b"")
    assert peak < 5 * len(text)


@pytest.mark.parametrize(
    "text",
    [
        "[a link](http://example.com/x) and ![an image](http://example.com/y.png)",
        pytest.param("[" * 50_000, id="brackets"),
        pytest.param(">" * 500 + " deep", id="quotes"),
        pytest.param("x" * 200_000, id="a long line"),
    ],
)
def test_c13_markdown_is_text(tinyllm: Tinyllm, ollama: FakeOllama, text: str) -> None:
    """Nothing is rendered, so there is nothing to hide an address in or to take long over."""
    ollama.chunks = [{"response": text}, {"response": ""}]
    with Terminal(tinyllm, "run", "-q", "Draw.") as terminal:
        assert terminal.finish() == 0
    assert terminal.text == text + "\n"


TTLS: dict[str, float | None] = {
    "0": None, "never": None, "1": 1, "1.5": 1.5, "90": 90, "30s": 30, "10m": 600, "10000000000": 1e10,
}  # fmt: skip
NO_TTLS = ["-1", "NaN", "inf", "1e999", "99999999999d", "5 apples", "", "1h30m"]


@pytest.mark.parametrize(
    "texts", [["0", "10m"], pytest.param([*TTLS], marks=pytest.mark.slow)], ids=["two", "all"]
)
def test_c15_ttls_mean_the_same_everywhere(
    tinyllm: Tinyllm, ollama: FakeOllama, texts: list[str]
) -> None:
    """On the command line, in a variable, in the config file and in the library."""
    tinyllm.config_dir.mkdir()
    config = tinyllm.config_dir / "config.toml"
    for text in texts:
        seconds = TTLS[text]
        found = set()
        for arguments, environ, file in (
            (("--cache-ttl", text), {}, ""),
            ((), {"TINYLLM_CACHE_TTL": text}, ""),
            ((), {}, f"cache_ttl = '{text}'"),
        ):
            config.write_text(file)
            done = tinyllm("run", "-v", "--refresh", *arguments, "Why?", environ=environ)
            assert done.code == 0
            found.add(done.complaint.rpartition("ttl=")[2].split()[0])
        assert len(found) == 1, (text, found)
        (said,) = found
        assert (None if said in ("never", "None") else float(said)) == seconds
        if seconds is not None:
            assert CacheEntry(answer(), created_at=0, ttl=seconds).ttl == seconds


@pytest.mark.parametrize("text", NO_TTLS)
def test_c15_what_is_no_ttl(tinyllm: Tinyllm, ollama: FakeOllama, text: str) -> None:
    assert_failed(tinyllm("run", f"--cache-ttl={text}", "Why?"), 2, "--cache-ttl")
    assert ollama.log == []


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), 1e30, "1 apple", True])
def test_c15_what_is_no_ttl_in_the_library(seconds: object) -> None:
    with pytest.raises(ValueError):
        create_memory_cache(default_ttl=seconds)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--cache-max-entries", "0"),
        ("--cache-max-entries", "-1"),
        ("--cache-max-bytes", "0"),
        ("--cache-max-bytes", "-1"),
        ("--cache-max-bytes", "1" + "0" * 30),
    ],
)
def test_c15_bounds_that_are_none(tinyllm: Tinyllm, option: str, text: str) -> None:
    assert_failed(tinyllm("run", f"{option}={text}", "Why?"), 2, option)


SECRET = "hunter2hunter2hunter2"


def test_c16_no_option_takes_a_secret(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    for command in ("run", "pull", "cache-stats", "cache-clear", "cache-explain", "doctor"):
        options = tinyllm(command, "--help").text.lower()
        assert "password" not in options and "secret" not in options and "api-key" not in options
    url = f"redis://:{SECRET}@127.0.0.1:1/0"
    refused = tinyllm("run", "Why?", "--redis-url", url, "--cache-backend", "redis")
    assert_failed(refused, 2, "TINYLLM_REDIS")
    assert SECRET not in refused.complaint


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc to look at")
def test_c16_a_secret_shows_in_no_list_of_processes_and_no_log(
    tinyllm: Tinyllm, ollama: FakeOllama
) -> None:
    environ = {
        "TINYLLM_REDIS_PASSWORD": SECRET,
        "TINYLLM_REDIS_SECRET": SECRET,
        "OLLAMA_API_KEY": SECRET,
        "TINYLLM_REDIS_URL": "redis://127.0.0.1:1/0",
        "TINYLLM_CACHE_BACKEND": "redis",
    }
    barrier = ollama.hold()
    process = tinyllm.start("run", "-v", "Why?", environ=environ)
    barrier.wait_for(1)
    assert SECRET.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    barrier.release()
    done = finish(process)
    assert done.code == 0
    assert SECRET.encode() not in done.out + done.err


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a home away"
)
def test_c18_as_root_in_the_home_of_another(tinyllm: Tinyllm, ollama: FakeOllama) -> None:
    """As `sudo tinyllm` with the user's HOME: nothing of root's is left there."""
    home = tinyllm.home / "alice"
    (home / ".cache").mkdir(parents=True)
    for path in (home, home / ".cache"):
        os.chown(path, 1000, 1000)
    del tinyllm.environ["TINYLLM_CACHE_DIR"], tinyllm.environ["TINYLLM_CONFIG_DIR"]
    for arguments in (("run", "Why?"), ("run", "Why?")):
        done = tinyllm(*arguments, environ={"HOME": str(home)})
        assert (done.code, done.out[:7]) == (0, b"Answer ")
        assert done.err.count(b"\n") == 1 and b"belongs to another user" in done.err
    left = [path for path in home.rglob("*") if path.lstat().st_uid == 0]
    assert left == []
