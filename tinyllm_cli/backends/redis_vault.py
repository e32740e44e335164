"""What a key and an entry are called and look like in a server that others can read and write.

    <prefix>v1:<namespace>:<64 digits>       an entry: the envelope of codec.py
    <prefix>stats:v1:<namespace>             the team's counters, one hash
    <prefix>lease:v1:<namespace>:<64 digits> who is asking the model just now; with :<16 digits> more,
                                             who takes over from one that died

With a secret the digits are an HMAC of the key, so names tell nothing and cannot be guessed, and an
entry is preceded by a MAC over its name, key and bytes, checked before anything is read from it.
Without the secret one can then cause misses and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from .. import codec
from ..entry import CacheEntry
from ..errors import ConfigError, CorruptEntryError
from ..sha import sha256_hex

__all__ = ["DEFAULT_PREFIX", "Vault"]

DEFAULT_PREFIX = "tinyllm:cache:"
_DIGITS = 64
_MIN_SECRET = 16
_SEAL = b"tinyllm-sealed-1:"
_SEALED_AT = len(_SEAL) + _DIGITS + 1
_ENVELOPE = b'{"v":%d,' % codec.FORMAT_VERSION
_GLOB = "*?[]^\\"


class Vault:
    """Names and bytes of entries under one prefix and namespace ("" is called "default").

    Raises ConfigError for a secret below 16 characters.
    """

    def __init__(
        self,
        prefix: str = DEFAULT_PREFIX,
        namespace: str = "",
        secret: str | None = None,
        *,
        keep_requests: bool = False,
    ) -> None:
        # no ":" and no "{" of a namespace reaches a name: one namespace's names never begin with
        # another's, and no namespace is a hash tag that would put it all on one node of a cluster
        space = f"v{codec.FORMAT_VERSION}:{quote(namespace, safe='') or 'default'}"
        self._entries = f"{prefix}{space}:".encode()
        self._leases = f"{prefix}lease:{space}:".encode()
        self.stats_name = f"{prefix}stats:{space}".encode()
        self._keep_requests = keep_requests
        self._mac: _Mac | None = None
        if secret is not None:
            if len(secret) < _MIN_SECRET:
                raise ConfigError(
                    f"the Redis secret is shorter than {_MIN_SECRET} characters",
                    hint="make one with `openssl rand -hex 32`",
                )
            self._mac = _Mac(secret.encode("utf-8", "surrogateescape"))

    @property
    def prefix(self) -> bytes:
        """How the name of every entry of this namespace begins."""
        return self._entries

    @property
    def pattern(self) -> bytes:
        """The glob of this namespace's names; `is_entry` decides among those it finds."""
        text = self._entries.decode()
        return "".join(f"\\{c}" if c in _GLOB else c for c in text).encode() + b"*"

    def name(self, key: str) -> bytes:
        """Return the name of the entry under a key."""
        return self._entries + self._digits(key)

    def lease_name(self, key: str) -> bytes:
        """Return the name of the lease of a key."""
        return self._leases + self._digits(key)

    def takeover_name(self, key: str, mark: str) -> bytes:
        """Return the name under which one asker claims the lease of a dead holder by its last mark."""
        return self.lease_name(key) + b":" + sha256_hex(mark.encode())[:16].encode()

    def is_entry(self, name: bytes) -> bool:
        """Say whether a name is one that `name` can give in this namespace."""
        digits = name[len(self._entries) :]
        return name.startswith(self._entries) and len(digits) == _DIGITS and digits.isalnum()

    def digits_tell_the_key(self) -> bool:
        """Say whether a name ends with its key: without a secret, for keys of 64 digits."""
        return self._mac is None

    def _digits(self, key: str) -> bytes:
        if self._mac is not None:
            return self._mac.digits(b"name", self._entries, key.encode("utf-8", "surrogateescape"))
        # a key of another shape is none of ours, but a program may have its own
        if len(key) == _DIGITS and key.isascii() and key.isalnum():
            return key.encode()
        return sha256_hex(key.encode("utf-8", "surrogateescape")).encode()

    def seal(self, key: str, entry: CacheEntry) -> bytes:
        """Return the bytes to store; the request's fields go as digests unless they are kept."""
        if entry.request is not None and not self._keep_requests:
            entry = _without_request(entry, self._field_digest)
        blob = codec.dumps(key, entry)
        if self._mac is None:
            return blob
        body = b"".join((key.encode("utf-8", "surrogateescape"), b"\n", blob))
        return b"".join((_SEAL, self._mac.digits(b"value", self.name(key), body), b"\n", body))

    def open(self, key: str, blob: bytes) -> CacheEntry:
        """Return the entry in bytes found under a key's name; CorruptEntryError if they do not check."""
        if self._mac is None:
            return codec.loads(key, blob)
        return self.open_named(self.name(key), blob)[1]

    def open_named(self, name: bytes, blob: bytes) -> tuple[str, CacheEntry]:
        """As `open` for a name whose key is not known; return the key as well."""
        if self._mac is not None:
            body = blob[_SEALED_AT:]
            expected = b"".join((_SEAL, self._mac.digits(b"value", name, body), b"\n"))
            if not self._mac.same(blob[:_SEALED_AT], expected):
                raise CorruptEntryError("an entry does not carry this team's seal")
            written, _, blob = body.partition(b"\n")
            key = written.decode("utf-8", "surrogateescape")
        else:
            key = name[-_DIGITS:].decode("ascii")
        return key, codec.loads(key, blob)

    def may_be_ours(self, beginning: bytes) -> bool:
        """Say whether bytes begin as an entry does, though they are more than we would read."""
        return beginning.startswith(_SEAL if self._mac is not None else _ENVELOPE)

    def _field_digest(self, name: str, value: Any) -> str:
        text = json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
        if self._mac is None:
            return "sha256:" + sha256_hex(text)
        return "hmac-sha256:" + self._mac.digits(b"field", name.encode(), text).decode()


class _Mac:
    """HMAC-SHA256 under one secret, for purposes that cannot be mistaken for each other."""

    def __init__(self, secret: bytes) -> None:
        # here and not above: loading OpenSSL costs a hit without a secret more than all else
        import hmac

        self._hmac = hmac
        self._secret = secret

    def digits(self, purpose: bytes, context: bytes, data: bytes) -> bytes:
        """Return 64 hex digits over all three, each with its length known."""
        head = b"%b %d " % (purpose, len(context))
        return self._hmac.new(self._secret, head + context + data, "sha256").hexdigest().encode()

    def same(self, one: bytes, other: bytes) -> bool:
        """Compare in a time that does not tell where they differ."""
        return self._hmac.compare_digest(one, other)


def _without_request(entry: CacheEntry, digest: Callable[[str, Any], str]) -> CacheEntry:
    """Return the entry with a digest per field and option of its request: enough to say what differs."""
    fields: dict[str, Any] = {}
    for name, value in (entry.request or {}).items():
        if name == "options" and isinstance(value, Mapping):
            fields[name] = {option: digest(option, given) for option, given in value.items()}
        else:
            fields[name] = digest(name, value)
    return CacheEntry(
        entry.response,
        entry.created_at,
        entry.ttl,
        seconds=entry.seconds,
        chunks=entry.chunks,
        request={"digests": fields},
    )
