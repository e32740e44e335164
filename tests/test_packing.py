"""Are large entries stored small, and does only what was packed come out again?"""

from __future__ import annotations

import json
import random
import zlib

import pytest

from tinyllm_cli import (
    CacheEntry,
    CorruptEntryError,
    GenerateResponse,
    UnreadableEntryError,
    codec,
    packing,
)

KEY = "a" * 64
PROSE = "The answer to this question depends on what one means by the word. " * 200


@pytest.fixture(params=["zlib", "zstd"], autouse=True)
def packer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run every test as in a Python without zstd, and as in one with it."""
    name = str(request.param)
    if name == "zlib":
        monkeypatch.setattr(packing, "_zstd", lambda: None)
    elif packing._zstd() is None:
        pytest.skip("no zstd here: neither Python 3.14 nor the zstd extra")
    return name


def entry_of(text: str) -> CacheEntry:
    return CacheEntry(GenerateResponse("m", "", text, True), created_at=1.0, last_accessed=1.0)


def test_a_large_entry_takes_less_room_and_comes_back_whole() -> None:
    blob = codec.dumps(KEY, entry_of(PROSE))
    assert len(blob) < len(PROSE) / 5
    assert codec.loads(KEY, blob).response.response == PROSE


def test_a_small_entry_is_plain_json() -> None:
    blob = codec.dumps(KEY, entry_of("short"))
    assert json.loads(blob)["entry"]["response"]["response"] == "short"


def test_what_does_not_shrink_is_left_alone() -> None:
    assert packing.pack(b"0" * (packing.PACK_ABOVE - 1)) is None
    assert packing.pack(random.Random(1).randbytes(packing.PACK_ABOVE * 4)) is None


def test_the_line_before_the_packed_bytes_is_json_and_says_how() -> None:
    line, _, _ = codec.dumps(KEY, entry_of(PROSE)).partition(b"\n")
    head = json.loads(line)
    assert (head["v"], head["packed"]) == (codec.FORMAT_VERSION, _letter())


def _letter() -> str:
    packed = packing.pack(PROSE.encode())
    assert packed is not None
    return packed[0].decode()


@pytest.mark.parametrize("position", [0, 20, 90, 100, 101, 150, -1])
def test_a_flipped_bit_in_a_packed_entry_is_noticed(position: int) -> None:
    blob = bytearray(codec.dumps(KEY, entry_of(PROSE)))
    blob[position] ^= 1
    with pytest.raises(CorruptEntryError):
        codec.loads(KEY, bytes(blob))


def test_a_packed_entry_is_bound_to_its_key() -> None:
    with pytest.raises(CorruptEntryError):
        codec.loads("b" * 64, codec.dumps(KEY, entry_of(PROSE)))


def test_a_way_of_packing_from_the_future_is_left_alone() -> None:
    with pytest.raises(UnreadableEntryError):
        packing.unpack(b"?", b"whatever")


def test_bytes_that_unpack_to_more_than_any_answer_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packing, "_MOST", 1000)
    with pytest.raises(CorruptEntryError, match="too much"):
        packing.unpack(b"z", zlib.compress(b"0" * 1_000_000))


@pytest.mark.parametrize("packed", [b"", b"not zlib", zlib.compress(b"0" * 5000)[:-5]])
def test_bytes_that_do_not_unpack_are_refused(packed: bytes) -> None:
    with pytest.raises(CorruptEntryError):
        packing.unpack(b"z", packed)


def test_zstd_is_used_where_this_python_has_it(packer: str) -> None:
    assert _letter() == {"zlib": "z", "zstd": "s"}[packer]
    assert packing.unpack(b"z", zlib.compress(b"old")) == b"old"


def test_an_entry_packed_with_zstd_is_left_alone_by_a_python_without_it(packer: str) -> None:
    if packer == "zstd":
        assert packing.unpack(*(packing.pack(PROSE.encode()) or (b"", b""))) == PROSE.encode()
    else:
        with pytest.raises(UnreadableEntryError, match="zstd"):
            packing.unpack(b"s", b"whatever")
