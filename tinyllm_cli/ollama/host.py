"""Where does Ollama listen? OLLAMA_HOST as its server and its Python client read it, made one URL.

Where the two readings differ, the one that cannot surprise wins: a port that is none is refused
(the server would quietly take 11434), bare `ollama.com` means https. Imports little, because a
cache hit loads this too.
"""

from __future__ import annotations

import ipaddress
import re

from ..errors import ConfigError

__all__ = ["DEFAULT_HOST", "is_loopback", "resolve_host"]

DEFAULT_HOST = "http://127.0.0.1:11434"
_DEFAULT_PORT = 11434
_SCHEME_PORTS = {"http": 80, "https": 443}
_LONGEST = 2000  # characters; messages show the whole URL
_CLOUD_HOST = "ollama.com"
_EXAMPLE = "use for example OLLAMA_HOST=127.0.0.1:11434 or OLLAMA_HOST=https://models.example:8443"
_HOST_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")


def resolve_host(text: str | None) -> str:
    """Return scheme://host:port[/path] for what OLLAMA_HOST holds, without a slash at the end.

    None or blank is the default. User and password are dropped; 0.0.0.0 and :: become loopback,
    since nobody can connect to them. Raises ConfigError for what is no address.
    """
    plain = (text or "").strip().strip("\"'").strip()
    if not plain:
        return DEFAULT_HOST
    scheme, authority, path = _split(plain)
    if authority.lower() == _CLOUD_HOST and not scheme:
        scheme = "https"
    host, port = _host_and_port(authority, needs_host=bool(scheme))
    if not port:
        port = _SCHEME_PORTS[scheme] if scheme else _DEFAULT_PORT
    return f"{scheme or 'http'}://{host}:{port}{path}"


def is_loopback(base_url: str) -> bool:
    """Say whether a URL from `resolve_host` names this machine, so that no proxy may be asked."""
    authority = base_url.partition("://")[2].partition("/")[0]
    host = authority.rpartition(":")[0].strip("[]").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def _split(plain: str) -> tuple[str, str, str]:
    """Return scheme (or ""), host with port, and path; the query, the fragment and the user go."""
    if len(plain) > _LONGEST:
        raise _refusal("it is too long")
    if not plain.isprintable() or " " in plain:
        raise _refusal("it holds blanks or control characters")
    scheme, rest = "", plain
    if "://" in plain:
        scheme, _, rest = plain.partition("://")
        scheme = scheme.lower()
        if scheme not in _SCHEME_PORTS:
            raise _refusal("only http:// and https:// are spoken")
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    authority, slash, path = rest.partition("/")
    return scheme, authority.rpartition("@")[2], (slash + path).rstrip("/")


def _host_and_port(authority: str, *, needs_host: bool) -> tuple[str, int]:
    """Return the host as a URL spells it, and the port or 0 where none is given."""
    address = _ip_address(authority)  # `::1` is all address, no port
    if address:
        return address, 0
    host, colon, digits = authority.rpartition(":")
    if not colon:
        host, digits = authority, ""
    if ":" in host and not host.startswith("["):
        raise _refusal("an IPv6 address with a port stands in brackets")
    if not host and needs_host:
        raise _refusal("it names no host")
    return _ip_address(host) or _host_name(host or "127.0.0.1"), _port(digits)


def _ip_address(host: str) -> str | None:
    """Return an IP address as a URL spells it, or None where *host* is something else."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return None
    if "%" in bare or (bare != host and address.version == 4):
        raise _refusal("its host is no name and no IP address")
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return str(address) if address.version == 4 else f"[{address}]"


def _host_name(host: str) -> str:
    try:
        name = host.lower() if host.isascii() else host.encode("idna").decode("ascii").lower()
    except UnicodeError:
        name = ""
    if not _HOST_NAME.fullmatch(name):
        raise _refusal("its host is no name and no IP address")
    return name


def _port(digits: str) -> int:
    if not digits:
        return 0
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 5 or int(digits) > 65535:
        raise _refusal("its port is not a number from 0 to 65535")
    return int(digits)


def _refusal(why: str) -> ConfigError:
    # Never with the text itself: it may hold a password, in a place nobody expects one.
    return ConfigError(f"OLLAMA_HOST is not an address: {why}", hint=_EXAMPLE)
