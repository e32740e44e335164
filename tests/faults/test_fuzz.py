"""Does anything that can be sent, typed or set end in a traceback, a wrong value or a control byte?"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Tinyllm
from tests.fake_ollama import FakeOllama
from tests.faults.hostile import PARSERS, complaint, invocations, parser_inputs, parses
from tinyllm_cli.cli.terminal import inert

CONTROLS = {*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), "\u202e", "\u2066", "\u2028"}


@pytest.mark.parametrize("number", [2_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_every_parser_takes_or_refuses_whatever_comes(number: int) -> None:
    taken = {name: [0, 0] for name in PARSERS}
    for one in itertools.islice(parser_inputs(number), number):
        taken[one.parser][parses(one)] += 1
    names_anything = taken.pop("a model's name")
    assert names_anything[True] > 0
    assert all(refused > 0 and kept > 0 for refused, kept in taken.values()), taken


@pytest.mark.parametrize("number", [10, pytest.param(300, marks=pytest.mark.slow)])
def test_every_command_line_ends_in_one_of_the_documented_ways(
    tinyllm: Tinyllm, ollama: FakeOllama, number: int
) -> None:
    codes = set()
    for one in itertools.islice(invocations(number), number):
        done = tinyllm(*one.arguments, stdin=one.stdin, environ=one.environ)
        assert complaint(done.code, done.out, done.err) == "", (one, done)
        codes.add(done.code)
    assert {0, 2} <= codes


@given(st.text(st.characters(codec="utf-8") | st.sampled_from(sorted(CONTROLS))), st.data())
def test_what_a_terminal_is_shown_does_not_depend_on_where_the_text_is_cut(
    text: str, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    shown = inert(text)
    assert "".join(map(inert, pieces)) == shown
    assert not CONTROLS & set(shown) - set("\n\t")
    assert inert(shown) == shown
