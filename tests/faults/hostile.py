"""Bytes, settings and command lines that nobody should send, for whoever wants to count what they do.

Every generator is endless and gives the same for the same seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tests.samples import entry, key_of
from tinyllm_cli import codec
from tinyllm_cli.backends.redis_url import parse_redis_url
from tinyllm_cli.backends.resp import NOT_YET, Parser, ProtocolError
from tinyllm_cli.cli.exit_codes import ExitCode
from tinyllm_cli.config import SETTINGS, variable
from tinyllm_cli.errors import ConfigError, CorruptEntryError, OllamaError
from tinyllm_cli.key import cache_key
from tinyllm_cli.model_name import canonical_model
from tinyllm_cli.ollama import wire
from tinyllm_cli.ollama.host import resolve_host
from tinyllm_cli.ollama.ndjson import LineReader, decode_line

__all__ = [
    "PARSERS",
    "Invocation",
    "ParserInput",
    "complaint",
    "invocations",
    "parser_inputs",
    "parses",
]

KEY = key_of("a question")
TEXTS = (
    "", " ", "x", "-1", "0", "1e999", "NaN", "inf", "1.5", "5 apples", "10000000000", "true", "\x00",
    "\x1b[31m", "\u202e", "é" * 50, "漢字", "🙂", "a\nb", "%zz", "[::1", "http://", "redis://h:x",
    "[/red]", "--", "-", "{}", "[]", '"', "'", "x" * 5000, "1h", "7d", "10MB", "127.0.0.1:1", "../..",
)  # fmt: skip
PIECES = (
    b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"[" * 300, b"{" * 300, b'"\\ud800"', b"1" * 5000,
    b"NaN", b"-Infinity", b"1e999", b"null", b"true", b"\r\n", b"\n\n", b"$999999999999\r\n",
    b"*1000000000\r\n", b"-ERR no\r\n", b":\r\n", b'{"a":1,"a":2}', b"\x85\xe2\x80\xa8", b"'", b"%",
)  # fmt: skip


class ParserInput(NamedTuple):
    """Bytes for one of the PARSERS, and where they are cut on their way."""

    parser: str
    data: bytes
    cut: int


def _codec(data: bytes, cut: int) -> None:
    assert codec.loads(KEY, data).response.response == "An answer. " * 20


def _lines(data: bytes, cut: int) -> None:
    reader = LineReader(max_line=100_000, max_total=200_000)
    for line in [*reader.feed(data[:cut]), *reader.feed(data[cut:]), *reader.end()]:
        json.dumps(decode_line(line), ensure_ascii=False).encode()


def _reply(read: Callable[[dict[str, Any]], object]) -> Callable[[bytes, int], None]:
    def parse(data: bytes, cut: int) -> None:
        read(decode_line(data.strip()))

    return parse


def _resp(data: bytes, cut: int) -> None:
    parser = Parser(1_000_000)
    for piece in (data[:cut], data[cut:]):
        parser.feed(piece)
        while parser.gets() is not NOT_YET:
            pass


def _text(read: Callable[[str], object]) -> Callable[[bytes, int], None]:
    return lambda data, cut: void(read(data.decode("utf-8", "surrogateescape")))


def void(value: object) -> None:
    """Take what nobody needs."""


def _setting(data: bytes, cut: int) -> None:
    text = data.decode("utf-8", "surrogateescape")
    names = list(SETTINGS)
    read, _ = SETTINGS[names[cut % len(names)]]
    read(text)


def _key(data: bytes, cut: int) -> None:
    body = decode_line(data.strip())
    assert len(cache_key(body, digest="0" * 64)) == 64


class _Parser(NamedTuple):
    """What reads, the only errors it may raise, and input it takes."""

    read: Callable[[bytes, int], None]
    refusals: tuple[type[Exception], ...]
    sound: tuple[bytes, ...]


_OLLAMA = (OllamaError,)
_CONFIG = (ConfigError,)
_ANSWER = b'{"model":"m","created_at":"t","response":"Hi","done":true,"done_reason":"stop"}\n'
PARSERS: dict[str, _Parser] = {
    "a stored entry": _Parser(
        _codec, (CorruptEntryError,), (codec.dumps(KEY, entry("An answer. " * 20)),)
    ),
    "lines of an answer": _Parser(_lines, _OLLAMA, (_ANSWER * 3, b'{"a":"\\ud83d\\ude42"}\r\n')),
    "an answer": _Parser(
        _reply(wire.response),
        _OLLAMA,
        (_ANSWER, b'{"response":"","context":[1,2],"tool_calls":[{"function":{"name":"f"}}]}'),
    ),
    "a list of models": _Parser(
        _reply(wire.installed_models),
        _OLLAMA,
        (b'{"models":[{"name":"m:latest","digest":"' + b"0" * 64 + b'"}]}\n',),
    ),
    "vectors": _Parser(
        _reply(lambda fields: wire.vectors(fields, 1)), _OLLAMA, (b'{"embeddings":[[0.1,0.2]]}\n',)
    ),
    "a pull's progress": _Parser(
        _reply(wire.pull_line),
        _OLLAMA,
        (b'{"status":"pulling","digest":"sha256:1","total":10,"completed":5}\n',),
    ),
    "replies of Redis": _Parser(
        _resp,
        (ProtocolError,),
        (b"*2\r\n$3\r\nabc\r\n:12\r\n", b"%1\r\n+a\r\n:1\r\n$-1\r\n>2\r\n+x\r\n*1\r\n+k\r\n"),
    ),
    "an address of Redis": _Parser(
        _text(parse_redis_url),
        _CONFIG,
        (
            b"redis://user:password@host:6379/0?ssl_ca_certs=/x",
            b"rediss+sentinel://host:26379,other:26379/service/1",
            b"unix://:password@/path?db=1",
        ),
    ),
    "an address of Ollama": _Parser(
        _text(resolve_host), _CONFIG, (b"https://example.com:11434/path", b"0.0.0.0", b"[::1]:1")
    ),
    "a model's name": _Parser(
        _text(canonical_model), (ValueError,), (b"qwen2.5:0.5b", b"host:1/space/name:tag")
    ),
    "a setting": _Parser(
        _setting, _CONFIG, (b"7d", b"256MiB", b"redis", b"never", b"true", b"0.5", b"10")
    ),
    "a question": _Parser(
        _key,
        (ConfigError, OllamaError),
        (
            b'{"model":"m","prompt":"Why?","options":{"temperature":0.5,"stop":["x"]},"stream":true}',
        ),
    ),
}


def parses(one: ParserInput) -> bool:
    """Return whether the bytes were taken, False if they were refused; any other error goes through."""
    parser = PARSERS[one.parser]
    try:
        parser.read(one.data, one.cut)
    except parser.refusals:
        return False
    return True


def parser_inputs(seed: int) -> Iterator[ParserInput]:
    """Yield mutations of sound input and pure noise, for one parser after the other."""
    dice = random.Random(seed)
    while True:
        for name, parser in PARSERS.items():
            data = _mutated(dice.choice(parser.sound), dice)
            yield ParserInput(name, data, dice.randrange(len(data) + 1))


def _mutated(sound: bytes, dice: random.Random) -> bytes:
    if dice.random() < 0.1:
        return dice.randbytes(dice.randrange(200))
    data = bytearray(sound)
    for _ in range(dice.randrange(4)):
        place = dice.randrange(len(data) + 1)
        match dice.randrange(5):
            case 0:
                data[place : place + 1] = bytes([dice.randrange(256)])
            case 1:
                del data[place : place + dice.randrange(20)]
            case 2:
                data[place:place] = dice.choice(PIECES)
            case 3:
                data[place:] = data[place:] * 2
            case _:
                other = dice.choice(dice.choice(list(PARSERS.values())).sound)
                data[place:] = other[dice.randrange(len(other)) :]
    return bytes(data[:20_000])


class Invocation(NamedTuple):
    """One run of the command: its arguments, what its environment adds, and its standard input."""

    arguments: list[str]
    environ: dict[str, str]
    stdin: bytes


#: What fits: options with values that are taken, or None for a switch.
OPTIONS: dict[str, dict[str, tuple[str, ...] | None]] = {
    "run": {
        "-m": ("llama3.2", "nosuchmodel"), "-s": ("Be brief.",), "-t": ("0", "0.5"), "-q": None,
        "--max-tokens": ("5", "100"), "-o": ("num_ctx=1024", "stop=x", "nosuchoption=1"), "-v": None,
        "--json-mode": None, "--format": ("json", "nosuchfile"), "--image": ("nosuchfile",),
        "--think": None, "-f": ("-", "nosuchfile"), "--no-stdin": None, "--no-stream": None,
        "--json": None, "--raw": None, "--no-cache": None, "--refresh": None, "--cache-only": None,
        "--require-cache": None, "--cache-ttl": ("1h", "0", "never"), "--sample": ("1", "3"),
        "--cache-max-entries": ("1", "5"), "--cache-max-bytes": ("1KiB", "1MiB"),
        "--cache-eviction": ("cost",), "--cache-when": ("deterministic",), "--samples": ("2",),
        "--replay-speed": ("1000",), "--stale-if-error": ("1d",), "--coherence": ("strict",),
        "--digest-max-age": ("0",), "--namespace": ("other", "a/b"), "Why?": None, "--": None,
    },
    "cache-stats": {"--json": None, "--reset": None, "--namespace": ("other",), "--help": None},
    "cache-clear": {
        "-y": None, "--expired": None, "--older-than": ("1h",), "--dry-run": None,
        "-m": ("llama3.2",), "--key": ("abc",),
    },
    "cache-explain": {"Why?": None, "-m": ("llama3.2",), "--json": None, "--sample": ("2",)},
    "doctor": {"--json": None, "--fix": None, "-m": ("llama3.2",)},
    "nonsense": {"--help": None},
    "": {"--help": None, "--version": None},
}  # fmt: skip
#: These lead away from the directories and servers of whoever runs this.
_ELSEWHERE = {"cache_dir", "data_dir", "host", "redis_url", "redis_host", "engine"}
_FITTING = {
    "cache_ttl": "1h", "log_level": "debug", "coherence": "strict", "cache": "false",
    "cache_max_entries": "3", "keep_requests": "false", "require_cache": "true",
    "cache_when": "deterministic", "namespace": "other", "stale_if_error": "1d",
}  # fmt: skip


def invocations(seed: int) -> Iterator[Invocation]:
    """Yield command lines with options and settings that fit, some that do not, and noise."""
    dice = random.Random(seed)
    settings = sorted(SETTINGS.keys() - _ELSEWHERE)
    while True:
        command = dice.choice(("run", "run", "run", *OPTIONS))
        arguments = [command] if command else []
        for option, values in dice.sample(
            sorted(OPTIONS[command].items()), min(len(OPTIONS[command]), dice.randrange(5))
        ):
            arguments += [option, dice.choice(values)] if values else [option]
        if command == "run" and dice.random() < 0.7:
            arguments.append(f"Question {dice.randrange(20)}?")
        if dice.random() < 0.3:
            arguments.insert(dice.randrange(len(arguments) + 1), _word(dice))
        environ: dict[str, str] = {}
        if dice.random() < 0.3:
            name = dice.choice(sorted(_FITTING))
            environ[variable(name)] = _FITTING[name]
        if dice.random() < 0.1:
            environ[variable(dice.choice(settings))] = _word(dice)
        if dice.random() < 0.1:
            environ[dice.choice(("COLUMNS", "TERM", "LANG", "HOME"))] = dice.choice(("", "0", "x"))
        stdin = b""
        if dice.random() < 0.3:
            stdin = dice.choice((b"Why?", _mutated(_ANSWER, dice), b"\xff", b"y\n", b"x" * 100_000))
        yield Invocation(arguments, environ, stdin)


def _word(dice: random.Random) -> str:
    options = [option for found in OPTIONS.values() for option in found]
    text = dice.choice((*TEXTS, *dice.sample(options, 10)))
    return text.replace("\x00", "\x01")  # neither arguments nor variables can hold a NUL


def complaint(code: int, out: bytes, err: bytes) -> str:
    """Return what is wrong with how a command ended, "" if nothing is: every end is one of ours.

    An error is one line of reason and one of hint; other lines are log lines that were asked for.
    The doctor's report, on standard output, holds both.
    """
    said = err.rpartition(b" [y/N] ")[2]  # a question that nobody answered
    lines = [line for line in said.splitlines() if not line.startswith(b"tinyllm: DEBUG ")]
    if b"Traceback" in err:
        return "a traceback"
    if code not in set(ExitCode) - {ExitCode.BUG}:
        return f"exit code {code}"
    if len(lines) > 2:
        return f"{len(lines)} lines on standard error"
    explained = [line[:6] for line in lines] == [b"tinyll", b"hint: "]
    reported = not lines and b"problem" in out and b"hint" in out
    if code == ExitCode.USAGE and not (explained or reported):
        return "an error without a reason and a hint"
    return ""
