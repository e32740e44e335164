"""May this Host and this Origin talk to the server? Checked when ``check_hosts`` is on."""

import ipaddress
from urllib.parse import urlsplit

from .reply import Reply
from .world import Logged, World

_LOCAL_ORIGINS = ("localhost", "127.0.0.1", "0.0.0.0")
_APP_SCHEMES = ("app", "file", "tauri", "vscode-webview", "vscode-file")
_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")


def refuse(world: World, logged: Logged) -> Reply | None:
    """Return the empty 403 of a foreign Host or Origin, the 204 of a preflight, or None."""
    if world.check_hosts:
        host = logged.headers.get("host", "")
        if not _host_allowed(host) or not _origin_allowed(logged.headers.get("origin", ""), host):
            return Reply(403, "")
    return Reply(204, "") if logged.method == "OPTIONS" else None


def _host_allowed(host: str) -> bool:
    name = (urlsplit(f"//{host}").hostname or "").lower()
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name in ("", "localhost") or name.endswith(_LOCAL_SUFFIXES)
    return address.is_loopback or address.is_private or address.is_unspecified


def _origin_allowed(origin: str, host: str) -> bool:
    parts = urlsplit(origin)
    if not origin or parts.scheme in _APP_SCHEMES:
        return True
    return parts.scheme in ("http", "https") and (
        parts.netloc == host or parts.hostname in _LOCAL_ORIGINS
    )
