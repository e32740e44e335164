"""Where Redis is and how to log in: a URL becomes a RedisAddress, or an error that shows no secret.

    redis://[user[:password]@]host[:6379][/db]         one server
    rediss://...                                       the same over TLS
    unix://[user[:password]@]/path/to.sock[?db=0]
    redis+sentinel://[user[:password]@]host[:26379][,host[:port]...]/service[/db]
    redis+cluster://[user[:password]@]host[:6379][,host[:port]...]

`rediss+sentinel` and `rediss+cluster` are these over TLS. Options: ssl_ca_certs, ssl_certfile,
ssl_keyfile; for Sentinel's own login sentinel_username, sentinel_password.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote

from ..errors import ConfigError

__all__ = ["DEFAULT_PORT", "Endpoint", "RedisAddress", "Tls", "masked", "parse_redis_url"]

DEFAULT_PORT = 6379
_SENTINEL_PORT = 26379

_SCHEME = re.compile(r"(redis|rediss|unix|rediss?\+sentinel|rediss?\+cluster)://(.*)", re.DOTALL)
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HOST = re.compile(r"[^\s:/@?#\[\]%,\\]+")
_IPV6 = re.compile(r"\[([0-9A-Fa-f:.]+)\]")
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_OPTIONS = {"db", "sentinel_username", "sentinel_password", *_TLS_OPTIONS}
_HINT = "write redis://host:6379/0, rediss://, unix://, redis+sentinel:// or redis+cluster://"


class Endpoint(NamedTuple):
    """A host and port, or the path of a Unix socket with port 0."""

    host: str
    port: int

    def __str__(self) -> str:
        if not self.port:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Tls(NamedTuple):
    """Files for TLS; None = the system's authorities, no client certificate. Always verified."""

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None


class RedisAddress(NamedTuple):
    """Everything a connection needs; `kind` is "single", "sentinel" or "cluster".

    `endpoints` are the server, the sentinels, or some nodes of the cluster.
    """

    kind: str
    endpoints: tuple[Endpoint, ...]
    db: int = 0
    username: str | None = None
    password: str | None = None
    tls: Tls | None = None
    service: str = ""
    sentinel_username: str | None = None
    sentinel_password: str | None = None

    def __str__(self) -> str:
        """The address fit for a message: no login, no options."""
        where = ",".join(str(endpoint) for endpoint in self.endpoints)
        return f"{where}/{self.service}" if self.service else where

    def __repr__(self) -> str:
        """As `str`: a password must not reach a traceback or a log."""
        return str(self)

    def with_tls_files(
        self, ca: str | None, certificate: str | None, key: str | None
    ) -> RedisAddress:
        """Return the address with files for what its URL left open; one without TLS stays as it is."""
        if self.tls is None:
            return self
        given = self.tls
        return self._replace(
            tls=Tls(given.ca or ca, given.certificate or certificate, given.key or key)
        )


def parse_redis_url(url: str) -> RedisAddress:
    """Return the address a URL stands for; raises ConfigError that shows the password as ***."""
    try:
        return _parse(url)
    except _BadError as exc:
        # `from None`: the cause would carry the URL, password and all, into a traceback
        shown = ascii(masked(url))[1:-1].strip() or "the URL"
        raise ConfigError(f"{shown} {exc}", hint=_HINT) from None


def masked(url: str) -> str:
    """Return a URL, good or bad, with every password in it shown as ***, cut to a line's share."""
    head, slashes, rest = url.partition("://")
    if not slashes:
        head, rest = "", url
    login, at, where = rest.rpartition("@")
    if at:
        user = login.partition(":")[0] if slashes else ""
        rest = f"{user}:***@{where}" if ":" in login or not slashes else f"{user}@{where}"
    rest = re.sub(r"(?i)((?:password|secret)[^=&]*=)[^&]*", r"\1***", rest)
    return f"{head}{slashes}{rest}"[:80]


class _BadError(Exception):
    """Why a URL is not an address; never holds a part of it that may be secret."""


def _parse(url: str) -> RedisAddress:
    if not url.strip():
        raise _BadError("is empty")
    if not url.isprintable() or " " in url:
        raise _BadError("holds a space or a control character")
    if _BAD_PERCENT.search(url):
        raise _BadError("holds a % that is not followed by two hex digits")
    found = _SCHEME.fullmatch(url)
    if found is None:
        raise _BadError("is not the address of a Redis server")
    scheme, rest = found[1], found[2]
    if "#" in rest:
        raise _BadError("holds a #; write %23 in a password")
    rest, _, query = rest.partition("?")
    if "@" in query:
        raise _BadError("holds a ? before an @; write %3F in a password")
    options = _query(query)
    authority, slash, path = rest.rpartition("@")[2].partition("/")
    username, password = _login(rest.rpartition("@")[0] if "@" in rest else None)
    tls = None
    if scheme.startswith("rediss"):
        tls = Tls(*(options.get(name) for name in _TLS_OPTIONS))
    elif any(name in options for name in _TLS_OPTIONS):
        raise _BadError("names certificates but not TLS; write rediss://")
    address = RedisAddress("single", (), 0, username, password, tls)
    if scheme == "unix":
        if authority or not path:
            raise _BadError("names no absolute path; write unix:///path/to.sock")
        socket = Endpoint(unquote(slash + path), 0)
        return address._replace(endpoints=(socket,), db=_database(options.get("db", "")))
    kind = scheme.partition("+")[2] or "single"
    default = _SENTINEL_PORT if kind == "sentinel" else DEFAULT_PORT
    hosts = tuple(_endpoint(text, default) for text in authority.split(","))
    address = address._replace(kind=kind, endpoints=hosts)
    if kind == "single":
        if len(hosts) > 1:
            raise _BadError("names several hosts; write redis+cluster:// or redis+sentinel://")
        return address._replace(db=_database(path or options.get("db", "")))
    if kind == "cluster":
        if _database(path or options.get("db", "")):
            raise _BadError("names a database; a cluster has only 0")
        return address
    service, _, db = path.partition("/")
    if not service:
        raise _BadError("names no service; write redis+sentinel://host:26379/service")
    return address._replace(
        service=unquote(service),
        db=_database(db or options.get("db", "")),
        sentinel_username=options.get("sentinel_username"),
        sentinel_password=options.get("sentinel_password"),
    )


def _query(text: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for pair in text.split("&") if text else ():
        name, _, value = pair.partition("=")
        if name in ("ssl_cert_reqs", "ssl_check_hostname"):
            if value.lower() not in ("required", "true", "1"):
                raise _BadError("turns verification off, which tinyllm does not do")
            continue
        if name not in _OPTIONS:
            raise _BadError(f"has an option that is not known ({ascii(name)[:30]})")
        options[name] = unquote(value)
    return options


def _login(text: str | None) -> tuple[str | None, str | None]:
    if text is None:
        return None, None
    user, colon, password = text.partition(":")
    return unquote(user) or None, unquote(password) if colon else None


def _endpoint(text: str, default: int) -> Endpoint:
    host, port = text, ""
    bracketed = _IPV6.match(text)
    if bracketed is not None:
        host, rest = bracketed[1], text[bracketed.end() :]
        if rest[:1] not in ("", ":"):
            raise _BadError("has a host that cannot be read")
        port = rest[1:]
    else:
        host, _, port = text.partition(":")
        if not host and not port:
            raise _BadError("names no host")
        if not _HOST.fullmatch(host):
            raise _BadError("has a host that cannot be read")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
        raise _BadError("has a port that is not a number from 1 to 65535")
    return Endpoint(host, int(port) if port else default)


def _database(text: str) -> int:
    text = text.rstrip("/")
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise _BadError("names a database that is not a number")
    return int(text)
