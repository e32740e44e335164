"""Lines are the same however the bytes arrive, and nothing that is no JSON object gets through."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm_cli.errors import IncompleteAnswerError, OllamaProtocolError
from tinyllm_cli.ollama.ndjson import LineReader, decode_line


def read(*pieces: bytes) -> list[bytes]:
    reader = LineReader()
    return [line for piece in pieces for line in reader.feed(piece)] + reader.end()


@given(
    st.lists(st.sampled_from([b"\n", b"\r\n", b"\r", b"a", b" ", b"\x85", "\u2028é".encode()])),
    st.data(),
)
def test_any_split_of_the_bytes_gives_the_same_lines(
    parts: list[bytes], data: st.DataObject
) -> None:
    whole = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)))))
    pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    expected = [line.removesuffix(b"\r") for line in whole.split(b"\n") if line.strip(b" \t\r")]
    assert read(*pieces) == read(whole) == expected
    assert read(*(bytes([byte]) for byte in whole)) == expected


@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.none(), max_size=3)))
def test_objects_survive_the_wire(objects: list[dict[str, object]]) -> None:
    for ascii_only in (True, False):
        sent = b"".join(
            json.dumps(item, ensure_ascii=ascii_only).encode() + b"\n" for item in objects
        )
        assert [decode_line(line) for line in read(sent)] == objects


def test_only_a_line_feed_ends_a_line() -> None:
    text = "a\x85b\u2028c\u2029d\x7fe"
    line = json.dumps({"response": text}, ensure_ascii=False).encode()
    assert [decode_line(found) for found in read(line + b"\n")] == [{"response": text}]


def test_the_last_line_needs_no_line_feed() -> None:
    assert read(b'{"a":1}\n{"b":2}') == [b'{"a":1}', b'{"b":2}']


def test_a_line_may_be_as_long_as_the_limit_and_no_longer() -> None:
    assert LineReader(max_line=4).feed(b"abcd\n") == [b"abcd"]
    with pytest.raises(OllamaProtocolError, match="longer than 4 bytes"):
        LineReader(max_line=4).feed(b"abcde\n")
    reader = LineReader(max_line=4)
    assert reader.feed(b"ab\ncd") == [b"ab"]
    with pytest.raises(OllamaProtocolError):
        reader.feed(b"efg")


def test_all_lines_together_may_be_as_long_as_the_limit() -> None:
    reader = LineReader(max_total=4)
    assert reader.feed(b"a\nb\n") == [b"a", b"b"]
    with pytest.raises(IncompleteAnswerError, match="longer than 4 bytes"):
        reader.feed(b"\n")
    unlimited = LineReader(max_total=None)
    for _ in range(100):
        unlimited.feed(b"x" * 1000 + b"\n")


def test_time_is_linear_in_the_number_of_bytes() -> None:
    def seconds(size: int) -> float:
        best = float("inf")
        for _ in range(3):
            reader = LineReader()
            started = time.perf_counter()
            for _ in range(size):
                reader.feed(b"x")
            best = min(best, time.perf_counter() - started)
        return best

    # Ten times the bytes take ten times as long; quadratic code would need a hundred times.
    assert seconds(200_000) < 40 * seconds(20_000)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"1",
        b"[1]",
        b'"text"',
        b"{",
        b"{'a': 1}",
        b'{"a": 1} {"b": 2}',
        b'{"a": "\xff"}',
        b'{"a": "\xed\xa0\x80"}',
        b'{"a": "\\ud800"}',
        b'{"\\udcff": 1}',
        b'{"a": NaN}',
        b'{"a": [Infinity]}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": "\x0b"}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a":' * 300 + b"1" + b"}" * 300,
        b'{"a":' + b"[" * 300 + b"]" * 300 + b"}",
        "{}".encode("utf-16"),
        b"<html></html>",
    ],
)
def test_what_is_no_answer_is_refused(line: bytes) -> None:
    with pytest.raises(OllamaProtocolError):
        decode_line(line)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        (b' {"a": 1} ', {"a": 1}),
        (b'{"a": "\\ud83d\\ude00"}', {"a": "😀"}),
        (b'{"a": 1.5e3, "b": -0.0}', {"a": 1500.0, "b": -0.0}),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", None),
        (b'{"a": [' + b"[]," * 500 + b"[]]}", None),
    ],
)
def test_what_is_an_answer_is_not(line: bytes, value: object) -> None:
    assert decode_line(line) == (json.loads(line) if value is None else value)
