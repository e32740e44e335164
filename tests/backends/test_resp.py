"""Does the parser give whole replies, however they arrive, and refuse what is none?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm_cli.backends.resp import NOT_YET, Parser, ProtocolError, Push, ReplyError, pack

REPLIES: list[tuple[bytes, object]] = [
    (b"+OK\r\n", b"OK"),
    (b":-12\r\n", -12),
    (b"$5\r\na\r\nbc\r\n", b"a\r\nbc"),
    (b"$0\r\n\r\n", b""),
    (b"$-1\r\n", None),
    (b"*-1\r\n", None),
    (b"_\r\n", None),
    (b"*2\r\n:1\r\n*1\r\n+x\r\n", [1, [b"x"]]),
    (b"~1\r\n:7\r\n", [7]),
    (b"%1\r\n+a\r\n:1\r\n", [(b"a", 1)]),
    (b"=7\r\ntxt:abc\r\n", b"abc"),
    (b"#t\r\n", True),
    (b",1.5\r\n", 1.5),
    (b"(123456789012345678901234567890\r\n", b"123456789012345678901234567890"),
    (b"|1\r\n+ttl\r\n:1\r\n:5\r\n", 5),
    (b">2\r\n+invalidate\r\n*1\r\n+k\r\n", Push([b"invalidate", [b"k"]])),
]


@pytest.mark.parametrize(("raw", "reply"), REPLIES)
def test_every_kind_of_reply(raw: bytes, reply: object) -> None:
    parser = Parser(1000)
    parser.feed(raw)
    found = parser.gets()
    assert found == reply
    assert type(found) is type(reply)
    assert parser.gets() is NOT_YET


def test_replies_come_whole_however_they_are_cut() -> None:
    raw = b"".join(raw for raw, _ in REPLIES)
    for size in range(1, len(raw)):
        parser = Parser(1000)
        found = []
        for start in range(0, len(raw), size):
            parser.feed(raw[start : start + size])
            while (reply := parser.gets()) is not NOT_YET:
                found.append(reply)
        assert found == [reply for _, reply in REPLIES]


def test_an_error_is_a_reply_like_any_other() -> None:
    parser = Parser(1000)
    parser.feed(b"-WRONGTYPE no\r\n!9\r\nBAD thing\r\n+OK\r\n")
    first, second, third = parser.gets(), parser.gets(), parser.gets()
    assert isinstance(first, ReplyError)
    assert first.code == "WRONGTYPE"
    assert isinstance(second, ReplyError)
    assert (second.code, third) == ("BAD", b"OK")


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"SSH-2.0-OpenSSH",
        b"\x15\x03\x01\x00\x02\x02",
        b"$999999999999\r\n",
        b"$x\r\n",
        b"$3\r\nabcdef\r\n",
        b"*99999999\r\n",
        b":12x\r\n",
        b",1x\r\n",
        b"*1\r\n" * 200_000,
        b"+" + b"x" * 100_000,
    ],
)
def test_what_is_no_reply_is_refused(raw: bytes) -> None:
    parser = Parser(1000)
    parser.feed(raw)
    with pytest.raises(ProtocolError):
        parser.gets()


@given(st.binary(max_size=200))
def test_whatever_arrives_is_a_reply_or_not_yet_or_refused(raw: bytes) -> None:
    parser = Parser(1000)
    parser.feed(raw)
    try:
        while parser.gets() is not NOT_YET:
            pass
    except ProtocolError:
        pass


def test_a_command_is_packed_with_the_length_of_its_bytes() -> None:
    assert pack(("SET", b"k\r\n", "é", 12)) == (
        b"*4\r\n$3\r\nSET\r\n$3\r\nk\r\n\r\n$2\r\n\xc3\xa9\r\n$2\r\n12\r\n"
    )
