"""What does Redis get to see of a key and an entry, with and without a secret?"""

from __future__ import annotations

import json

import pytest

from tests.samples import entry, key_of
from tinyllm_cli.backends.redis_vault import Vault
from tinyllm_cli.errors import ConfigError, CorruptEntryError

KEY = key_of("a question")
SECRET = "a secret of the team"
BODY = {"model": "llama3.2", "prompt": "canary", "options": {"temperature": 0.3, "seed": 1}}


def test_a_name_is_prefix_version_namespace_and_key() -> None:
    assert Vault().name(KEY) == f"tinyllm:cache:v1:default:{KEY}".encode()
    assert Vault("p:", "team").name(KEY) == f"p:v1:team:{KEY}".encode()
    assert Vault().name("any text").startswith(b"tinyllm:cache:v1:default:")
    assert len(Vault().name("any text")) == len(Vault().name(KEY))


def test_no_namespace_reaches_into_another_or_is_a_hash_tag() -> None:
    outer, inner = Vault(namespace="a"), Vault(namespace="a:b")
    assert not inner.name(KEY).startswith(outer.prefix)
    assert not outer.is_entry(inner.name(KEY))
    assert b"{" not in Vault(namespace="{x}").name(KEY)
    assert b"*" not in Vault(namespace="*").prefix


@pytest.mark.parametrize("digits", ["note", KEY + "0", KEY[:-1], KEY[:-1] + ":", ""])
def test_only_names_it_gives_are_its_own(digits: str) -> None:
    vault = Vault()
    assert vault.is_entry(vault.name(KEY))
    assert not vault.is_entry(vault.prefix + digits.encode())


def test_without_a_secret_an_entry_is_the_envelope() -> None:
    vault = Vault()
    blob = vault.seal(KEY, entry(request=BODY))
    assert json.loads(blob)["v"] == 1
    assert vault.open(KEY, blob).response == entry().response
    assert vault.open_named(vault.name(KEY), blob)[0] == KEY


def test_the_question_stays_out_unless_it_is_wanted() -> None:
    blob = Vault().seal(KEY, entry(request=BODY))
    assert b"canary" not in blob
    digests = json.loads(blob)["entry"]["request"]["digests"]
    assert set(digests) == set(BODY)
    assert set(digests["options"]) == {"temperature", "seed"}
    other = json.loads(Vault().seal(KEY, entry(request={**BODY, "prompt": "b"})))
    assert other["entry"]["request"]["digests"]["model"] == digests["model"]
    assert other["entry"]["request"]["digests"]["prompt"] != digests["prompt"]
    assert b"canary" in Vault(keep_requests=True).seal(KEY, entry(request=BODY))


def test_with_a_secret_names_tell_nothing_and_entries_are_sealed() -> None:
    vault = Vault(secret=SECRET)
    blob = vault.seal(KEY, entry(request=BODY))
    assert KEY.encode() not in vault.name(KEY)
    assert vault.is_entry(vault.name(KEY))
    assert vault.open(KEY, blob).response == entry().response
    assert vault.open_named(vault.name(KEY), blob)[0] == KEY
    assert vault.name(KEY) != Vault(secret=SECRET, namespace="b").name(KEY)


@pytest.mark.parametrize(
    "forged",
    [
        Vault().seal(KEY, entry("forged")),
        Vault(secret="another team's secret").seal(KEY, entry("forged")),
        Vault(secret=SECRET).seal(key_of("another"), entry("forged")),
        Vault(secret=SECRET, namespace="b").seal(KEY, entry("forged")),
        Vault(secret=SECRET).seal(KEY, entry("forged"))[:-1],
        b"",
        b"tinyllm-sealed-1:",
    ],
)
def test_without_the_secret_nothing_can_be_forged(forged: bytes) -> None:
    with pytest.raises(CorruptEntryError):
        Vault(secret=SECRET).open(KEY, forged)


def test_every_flipped_bit_of_a_sealed_entry_is_noticed() -> None:
    vault = Vault(secret=SECRET)
    blob = vault.seal(KEY, entry())
    for at in range(len(blob)):
        damaged = bytearray(blob)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(CorruptEntryError):
            vault.open(KEY, bytes(damaged))


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ConfigError, match="shorter"):
        Vault(secret="short")
