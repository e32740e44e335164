"""OLLAMA_HOST is read as Ollama and its Python client read it, and never misread."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm_cli.errors import ConfigError
from tinyllm_cli.ollama.host import DEFAULT_HOST, is_loopback, resolve_host


@pytest.mark.parametrize(
    ("text", "url"),
    [
        (None, DEFAULT_HOST),
        ("", DEFAULT_HOST),
        ("  \t", DEFAULT_HOST),
        ('""', DEFAULT_HOST),
        (":56789", "http://127.0.0.1:56789"),
        (":", DEFAULT_HOST),
        ("11434", "http://11434:11434"),
        ("1.2.3.4", "http://1.2.3.4:11434"),
        ("1.2.3.4:", "http://1.2.3.4:11434"),
        ("1.2.3.4:0", "http://1.2.3.4:11434"),
        ("1.2.3.4:65535", "http://1.2.3.4:65535"),
        ("http://1.2.3.4", "http://1.2.3.4:80"),
        ("https://h", "https://h:443"),
        ("HTTPS://Example.COM:8443", "https://example.com:8443"),
        ("ollama.com", "https://ollama.com:443"),
        ("http://ollama.com", "http://ollama.com:80"),
        ("ollama.com:11434", "http://ollama.com:11434"),
        ("::1", "http://[::1]:11434"),
        ("[::1]", "http://[::1]:11434"),
        ("[::1]:9", "http://[::1]:9"),
        ("0:0:0:0:0:0:0:1", "http://[::1]:11434"),
        ("http://[2001:DB8::1]:9", "http://[2001:db8::1]:9"),
        ("http://::1", "http://[::1]:80"),
        ("example.com:56789/path/", "http://example.com:56789/path"),
        ("https://example.com/a/b//", "https://example.com:443/a/b"),
        ("example.com/?x=1#y", "http://example.com:11434"),
        ('"1.2.3.4:5"', "http://1.2.3.4:5"),
        ("' 1.2.3.4:5 '", "http://1.2.3.4:5"),
        ("  h:7  ", "http://h:7"),
        ("h:7\n", "http://h:7"),
        ("u:p@h:9", "http://h:9"),
        ("https://u:p@h", "https://h:443"),
        ("u:p@", DEFAULT_HOST),
        ("0.0.0.0", DEFAULT_HOST),
        ("0.0.0.0:8080", "http://127.0.0.1:8080"),
        ("http://0.0.0.0:8080/x", "http://127.0.0.1:8080/x"),
        ("::", "http://[::1]:11434"),
        ("[::]:9", "http://[::1]:9"),
        ("my_container:11434", "http://my_container:11434"),
        ("bücher.example", "http://xn--bcher-kva.example:11434"),
        ("host.example.:1", "http://host.example.:1"),
    ],
)
def test_reads_what_both_read(text: str | None, url: str) -> None:
    assert resolve_host(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "1.2.3.4:99999",
        "localhost:abc",
        "localhost:-1",
        "localhost:1e3",
        "localhost:٣",
        "http://h:123456789",
        "a b",
        "h:1 /x",
        "h\x00",
        "h\x1b[31m",
        "h/\npath",
        "http://",
        "http:///path",
        "https://:443",
        "ftp://h",
        "unix:///run/ollama.sock",
        "://h",
        "a..b",
        "x" * 64,
        "[::1",
        "[::1]9",
        "[1.2.3.4]",
        "::1:11434",
        "fe80::1%eth0",
        "a:b:c",
        "h<script>",
        "h\\x",
        "\udcff",
        "é" * 70,
        "h/" + "x" * 70_000,
    ],
)
def test_refuses_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match="OLLAMA_HOST") as caught:
        resolve_host(text)
    assert caught.value.hint is not None
    assert "OLLAMA_HOST=" in caught.value.hint
    assert str(caught.value).isprintable()


def test_a_refusal_does_not_show_a_password() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_host("http://user:geheim/with-slash@h:x")
    assert "geheim" not in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        url = resolve_host(text)
    except ConfigError:
        return
    assert url.startswith(("http://", "https://"))
    assert not url.endswith("/")
    assert resolve_host(url) == url
    assert url.isprintable()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9:80", True),
        ("0.0.0.0", True),
        ("::1", True),
        ("::", True),
        ("[::ffff:127.0.0.1]:9", True),
        ("localhost", True),
        ("LOCALHOST:9/x", True),
        ("ollama.localhost", True),
        ("localhost.", True),
        ("https://localhost", True),
        ("128.0.0.1", False),
        ("192.168.0.2", False),
        ("::2", False),
        ("localhost.example", False),
        ("notlocalhost", False),
        ("127.0.0.1.example", False),
        ("ollama.com", False),
    ],
)
def test_loopback_is_this_machine_alone(host: str, expected: bool) -> None:
    assert is_loopback(resolve_host(host)) is expected


def test_a_hit_pays_for_no_network_library() -> None:
    code = (
        "import sys, tinyllm_cli.ollama.client as c; c.OllamaClient();"
        "print(sorted({'httpx', 'asyncio', 'pydantic', 'ssl', 'socket'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
