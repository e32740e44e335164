"""Do stored bytes give back the entry they were made of, and nothing else ever an entry?"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.samples import NOW, answer, entry, key_of
from tests.test_values import FULL_RESPONSE
from tinyllm_cli import codec
from tinyllm_cli.entry import CacheEntry
from tinyllm_cli.errors import CorruptEntryError

KEY = key_of("one")
DATA = Path(__file__).parent / "data"
FULL = CacheEntry(
    FULL_RESPONSE,
    created_at=NOW,
    ttl=60,
    seconds=1.5,
    chunks=[(1, 2, 0, 10), (0, 0, 1, 20)],
    request={"model": "m", "prompt": "p", "options": {"seed": 1}},
)


def stored(one: CacheEntry) -> CacheEntry:
    return codec.loads(KEY, codec.dumps(KEY, one))


def envelope(payload: Any) -> bytes:
    """Return an envelope around any payload, with the digest it has to have."""
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    digest = hashlib.sha256(KEY.encode() + b"\0" + data).hexdigest().encode()
    return b'{"v":1,"digest":"' + digest + b'","entry":' + data + b"}"


def payload(**changes: Any) -> dict[str, Any]:
    return {
        "key": KEY,
        "created_at": NOW,
        "ttl": None,
        "response": answer().to_dict(),
        "cost": {"seconds": 1.0, "tokens": 5},
        **changes,
    }


# --- there and back

STORED = ("response", "created_at", "ttl", "seconds", "chunks", "request", "tokens")
OF_ONE_PROCESS = ("access_count", "last_accessed", "grace", "tokens")


def test_every_field_of_an_entry_is_stored_or_belongs_to_one_process() -> None:
    assert {*STORED, *OF_ONE_PROCESS} == set(CacheEntry.__slots__)
    again = stored(FULL)
    for name in STORED:
        assert getattr(again, name) == getattr(FULL, name), name


def test_what_is_not_set_stays_so() -> None:
    again = stored(entry())
    assert (again.ttl, again.chunks, again.request, again.seconds) == (None, None, None, 0.0)
    assert again.response == answer()


_TEXT = st.text(st.characters(codec=None, exclude_categories=()))


@given(text=_TEXT, thinking=_TEXT, prompt=_TEXT)
def test_any_text_survives(text: str, thinking: str, prompt: str) -> None:
    """Lone surrogates, NUL and line separators included: a model can send them as JSON escapes."""
    one = entry(response=answer(text, thinking=thinking), request={"prompt": prompt})
    again = stored(one)
    assert again.response == one.response
    assert again.request == {"prompt": prompt}


_NUMBERS = st.integers(0, 2**80)


@given(
    counts=st.lists(_NUMBERS, min_size=6, max_size=6),
    context=st.lists(_NUMBERS, max_size=3),
    ttl=st.none() | st.integers(1) | st.floats(min_value=1e-6, allow_infinity=False),
    created_at=st.floats(0, 1e12),
)
def test_any_number_survives(
    counts: list[int], context: list[int], ttl: float | None, created_at: float
) -> None:
    response = answer(
        total_duration=counts[0],
        load_duration=counts[1],
        prompt_eval_count=counts[2],
        prompt_eval_duration=counts[3],
        eval_count=counts[4],
        eval_duration=counts[5],
        context=context,
    )
    if ttl is not None and ttl > 1e308:
        return
    again = stored(entry(response=response, ttl=ttl, created_at=created_at))
    assert again.response == response
    assert (again.ttl, again.created_at) == (ttl, created_at)


def test_the_request_is_left_out_if_not_wanted() -> None:
    one = entry(request={"prompt": "a private question"})
    blob = codec.dumps(KEY, one, keep_request=False)
    assert b"private" not in blob
    assert codec.loads(KEY, blob).request is None
    assert b"private" in codec.dumps(KEY, one)


def test_an_envelope_is_one_json_object_in_ascii() -> None:
    blob = codec.dumps(KEY, entry("Gr\u00fc\u00dfe \u2028 \ud800"))
    data = json.loads(blob.decode("ascii"))
    assert data.keys() == {"v", "digest", "entry"}
    assert data["v"] == codec.FORMAT_VERSION == 1
    assert data["entry"]["key"] == KEY
    assert b"\n" not in blob


def test_the_cost_is_stored_for_those_who_read_the_bytes() -> None:
    one = entry(response=answer(prompt_eval_count=3, eval_count=4), seconds=1.23456789)
    data = json.loads(codec.dumps(KEY, one))
    assert data["entry"]["cost"] == {"seconds": 1.234568, "tokens": 7}


# --- what was written once must be readable for ever

GOLDEN = {"plain": entry("Because."), "full": FULL}


@pytest.mark.parametrize("name", GOLDEN)
def test_envelopes_of_a_released_format_still_decode(name: str) -> None:
    """A file here is never changed; a new FORMAT_VERSION gets new ones beside it."""
    blob = (DATA / f"entry-v1-{name}.json").read_bytes()
    again = codec.loads(KEY, blob)
    for field in STORED:
        assert getattr(again, field) == getattr(GOLDEN[name], field), field


@pytest.mark.parametrize("name", GOLDEN)
def test_the_format_is_still_written_the_same(name: str) -> None:
    assert codec.dumps(KEY, GOLDEN[name]) == (DATA / f"entry-v1-{name}.json").read_bytes()


# --- damage

BLOB = codec.dumps(KEY, FULL)
BLOBS = {"plain": BLOB, "packed": codec.dumps(KEY, entry("Because. " * 1000))}
every_blob = pytest.mark.parametrize("blob", BLOBS.values(), ids=BLOBS.keys())


def test_a_large_entry_is_packed_and_a_small_one_is_not() -> None:
    assert b'"packed":' in BLOBS["packed"] and b'"packed":' not in BLOBS["plain"]
    assert len(BLOBS["packed"]) < 1000
    assert codec.loads(KEY, BLOBS["packed"]).response.response == "Because. " * 1000


@every_blob
def test_any_flipped_bit_is_noticed(blob: bytes) -> None:
    for place in range(len(blob)):
        for bit in range(8):
            damaged = bytearray(blob)
            damaged[place] ^= 1 << bit
            with pytest.raises(CorruptEntryError):
                codec.loads(KEY, bytes(damaged))


@every_blob
def test_any_truncation_is_noticed(blob: bytes) -> None:
    for length in range(len(blob)):
        with pytest.raises(CorruptEntryError):
            codec.loads(KEY, blob[:length])


@every_blob
@pytest.mark.parametrize("tail", [b"\0", b" ", b"\n", b"}", b"{}", BLOB])
def test_anything_appended_or_put_before_is_noticed(blob: bytes, tail: bytes) -> None:
    for changed in (blob + tail, tail + blob, blob[:-1] + tail + blob[-1:]):
        with pytest.raises(CorruptEntryError):
            codec.loads(KEY, changed)


@every_blob
@pytest.mark.parametrize("other", [key_of("two"), KEY.upper(), KEY[:-1], "", "\u00e9" * 64])
def test_an_entry_found_under_another_key_is_refused(blob: bytes, other: str) -> None:
    with pytest.raises(CorruptEntryError):
        codec.loads(other, blob)


@given(st.binary(max_size=300))
def test_no_bytes_at_all_are_an_entry_by_chance(blob: bytes) -> None:
    with pytest.raises(CorruptEntryError):
        codec.loads(KEY, blob)


def test_the_data_cannot_choose_its_own_digest() -> None:
    data = json.loads(BLOB)
    for version in (0, 2, "1", 1.0, None):
        blob = json.dumps({**data, "v": version}, separators=(",", ":")).encode()
        with pytest.raises(CorruptEntryError):
            codec.loads(KEY, blob)


# --- forged by somebody who can compute a digest


def test_a_well_made_envelope_decodes() -> None:
    assert codec.loads(KEY, envelope(payload())).response == answer()


FORGED: dict[str, Any] = {
    "no object": [],
    "a text": "entry",
    "null": None,
    "a number": 5,
    "nothing": {},
    "no JSON": b"{",
    "two values": b"{} {}",
    "not UTF-8": b'{"key":"\xff"}',
    "another key": payload(key=key_of("two")),
    "a key that is no text": payload(key=5),
    "created_at missing": {name: value for name, value in payload().items() if name != "created_at"},
    "created_at null": payload(created_at=None),
    "created_at text": payload(created_at="now"),
    "created_at true": payload(created_at=True),
    "created_at NaN": payload(created_at=float("nan")),
    "created_at infinite": payload(created_at=float("inf")),
    "created_at above a float": payload(created_at=10**400),
    "created_at of 5000 digits": json.dumps(payload(created_at="@")).encode().replace(
        b'"@"', b"9" * 5000
    ),
    "ttl text": payload(ttl="60"),
    "ttl NaN": payload(ttl=float("nan")),
    "ttl above a float": payload(ttl=-(10**400)),
    "ttl a list": payload(ttl=[]),
    "no cost": {name: value for name, value in payload().items() if name != "cost"},
    "cost a number": payload(cost=5),
    "cost a list": payload(cost=[1]),
    "cost empty": payload(cost={}),
    "seconds NaN": payload(cost={"seconds": float("nan"), "tokens": 1}),
    "no response": {name: value for name, value in payload().items() if name != "response"},
    "response null": payload(response=None),
    "response a list": payload(response=[]),
    "response a text": payload(response="Because."),
    "response without model": payload(response={"response": "r", "done": True, "created_at": "t"}),
    "response of numbers": payload(response={**answer().to_dict(), "response": 5}),
    "done as text": payload(response={**answer().to_dict(), "done": "yes"}),
    "count as text": payload(response={**answer().to_dict(), "eval_count": "5"}),
    "context of texts": payload(response={**answer().to_dict(), "context": ["a"]}),
    "NaN in a field nobody knows": payload(response={**answer().to_dict(), "x": float("nan")}),
    "chunks a number": payload(chunks=5),
    "chunks an object": payload(chunks={}),
    "chunks of text": payload(chunks=["abcd"]),
    "chunks too short": payload(chunks=[[1, 2, 3]]),
    "chunks negative": payload(chunks=[[1, -2, 3, 4]]),
    "chunks with fractions": payload(chunks=[[1, 2.0, 3, 4]]),
    "chunks with true": payload(chunks=[[1, True, 3, 4]]),
    "request a list": payload(request=[1]),
    "request a text": payload(request="p"),
    "deep nesting": b"[" * 100_000 + b"]" * 100_000,
    "deep nesting in the answer": json.dumps(
        payload(response={**answer().to_dict(), "x": "@"})
    ).encode().replace(b'"@"', b"[" * 5_000 + b"]" * 5_000),
}  # fmt: skip


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED.keys())
def test_a_right_digest_does_not_make_an_entry(forged: Any) -> None:
    with pytest.raises(CorruptEntryError) as raised:
        codec.loads(KEY, envelope(forged))
    assert KEY[:12] in str(raised.value)


def test_what_json_cannot_hold_is_not_written() -> None:
    with pytest.raises(ValueError):
        codec.dumps(KEY, entry(created_at=float("nan")))
