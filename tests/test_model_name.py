"""Which spellings are one model, and which names ask for a model that runs elsewhere?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm_cli.model_name import canonical_model, is_cloud_model, short_model

HOME = "registry.ollama.ai/library/"


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("llama3.2", HOME + "llama3.2:latest"),
        ("llama3.2:latest", HOME + "llama3.2:latest"),
        ("LLAMA3.2", HOME + "llama3.2:latest"),
        ("  llama3.2\n", HOME + "llama3.2:latest"),
        ("library/llama3.2", HOME + "llama3.2:latest"),
        ("registry.ollama.ai/library/llama3.2:latest", HOME + "llama3.2:latest"),
        ("https://registry.ollama.ai/library/llama3.2", HOME + "llama3.2:latest"),
        ("qwen2.5:0.5b", HOME + "qwen2.5:0.5b"),
        ("qwen2.5:0.5B-Instruct", HOME + "qwen2.5:0.5b-instruct"),
        ("someone/m", "registry.ollama.ai/someone/m:latest"),
        ("hf.co/someone/M-GGUF:Q4_K_M", "hf.co/someone/m-gguf:q4_k_m"),
        ("localhost:5000/someone/m", "localhost:5000/someone/m:latest"),
        ("localhost:5000/someone/m:t", "localhost:5000/someone/m:t"),
        ("_m", HOME + "_m:latest"),
        # where it runs
        ("x:local", HOME + "x:latest"),
        ("x:20b:local", HOME + "x:20b"),
        ("x:cloud", HOME + "x:latest:cloud"),
        ("x:20b-cloud", HOME + "x:20b:cloud"),
        ("x:20b:cloud", HOME + "x:20b:cloud"),
        ("X:20B-CLOUD", HOME + "x:20b:cloud"),
        ("x-cloud", HOME + "x-cloud:latest"),
        # what Ollama refuses stays as it is
        ("localhost:5000/m", "localhost:5000/m"),
        ("m@sha256:" + "a" * 64, "m@sha256:" + "a" * 64),
        ("a/b/c/d", "a/b/c/d"),
        ("some.one/m", "some.one/m"),
        ("-m", "-m"),
        ("m:", "m:"),
        (":t", ":t"),
        ("", ""),
        ("mod\u00e9l", "mod\u00e9l"),
        ("M o d", "M o d"),
        ("m" * 81, "m" * 81),
        ("m\nx", "m\nx"),
    ],
)
def test_canonical(name: str, canonical: str) -> None:
    assert canonical_model(name) == canonical


@pytest.mark.parametrize("length", [1, 79, 80])
def test_a_part_has_at_most_80_characters(length: int) -> None:
    assert canonical_model("M" * length) == HOME + "m" * length + ":latest"


@pytest.mark.parametrize(
    ("name", "cloud"),
    [
        ("x:cloud", True),
        ("x:20b-cloud", True),
        ("x:20b:Cloud", True),
        (" x:cloud ", True),
        ("someone/x:cloud", True),
        ("x", False),
        ("x-cloud", False),
        ("x:local", False),
        ("x:cloudy", False),
        ("x:cloud:20b", False),
        ("cloud", False),
        ("cloud:latest", False),
        ("x:cloud/y", False),
    ],
)
def test_cloud(name: str, cloud: bool) -> None:
    assert is_cloud_model(name) is cloud


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("LLAMA3.2", "llama3.2:latest"),
        ("registry.ollama.ai/library/qwen2.5:0.5b", "qwen2.5:0.5b"),
        ("hf.co/someone/m", "hf.co/someone/m:latest"),
        ("someone/m", "registry.ollama.ai/someone/m:latest"),
        ("not a name", "not a name"),
    ],
)
def test_short(name: str, short: str) -> None:
    assert short_model(name) == short


@given(st.text(max_size=40))
def test_any_text_has_a_canonical_form_that_is_its_own(name: str) -> None:
    canonical = canonical_model(name)
    assert canonical == canonical.strip()
    assert canonical_model(f"  {name} ") == canonical


_PART = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,6}", fullmatch=True)


@given(model=_PART, tag=_PART)
def test_names_with_another_model_or_tag_are_others(model: str, tag: str) -> None:
    assert canonical_model(model) != canonical_model(f"{model}x")
    assert canonical_model(f"{model}:{tag}") != canonical_model(f"{model}:{tag}x")
    assert short_model(short_model(f"{model}:{tag}")) == short_model(f"{model}:{tag}")
