"""A real model answers behind somebody else's implementation of Ollama's API.

TINYLLM_TEST_OLLAMA is the URL of a running server, TINYLLM_TEST_OLLAMA_MODEL the model to ask there
(default smollm2:135m).
"""

from __future__ import annotations

import os

import pytest

from tests.conftest import Tinyllm

# read at import: every test gets an environment of its own
SERVER = os.environ.get("TINYLLM_TEST_OLLAMA", "")
SERVED = os.environ.get("TINYLLM_TEST_OLLAMA_MODEL", "smollm2:135m")

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(not SERVER, reason="TINYLLM_TEST_OLLAMA names no server"),
]


@pytest.fixture
def customer(tinyllm: Tinyllm) -> Tinyllm:
    tinyllm.environ["OLLAMA_HOST"] = SERVER
    tinyllm.environ["TINYLLM_MODEL"] = SERVED
    return tinyllm


def test_another_servers_answer_is_stored_and_replayed(customer: Tinyllm) -> None:
    question = ["run", "What is AI?", "--max-tokens", "48"]
    first = customer(*question, timeout=120)
    assert (first.code, first.err) == (0, b"")
    assert "intelligence" in first.text.lower()
    second = customer(*question)
    assert (second.code, second.out, second.err) == (0, first.out, b"")
    whole = customer(*question, "--no-stream", "--refresh", timeout=120)
    assert whole.code == 0 and whole.text.strip()


def test_another_server_answers_in_json(customer: Tinyllm) -> None:
    done = customer("run", "Describe a person as JSON.", "--json-mode", "--max-tokens", "20")
    assert done.code == 0 and done.text.lstrip().startswith("{")


def test_another_server_refuses_a_model_it_lacks(customer: Tinyllm) -> None:
    done = customer("run", "Hi", "--model", "no-such-model")
    assert (done.code, done.out) == (4, b""), done
    assert len(done.complaint.splitlines()) == 2
