"""Settings: flag > environment > config file > default, each with the place it came from.

Environment and files are read when `load` is called, never at import.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .backends.memory import DEFAULT_MAX_BYTES, DEFAULT_MAX_ENTRY_BYTES
from .errors import ConfigError
from .eviction import EVICTIONS
from .policy import DEFAULT_TTL_S
from .quantities import parse_duration, parse_size, parse_ttl

__all__ = [
    "DEFAULT_MODEL",
    "EMBEDDED_MODEL",
    "SETTINGS",
    "Settings",
    "config_file",
    "load",
    "variable",
]

DEFAULT_MODEL = "qwen2.5:0.5b"
EMBEDDED_MODEL = "smollm2:135m"
SNAPSHOT_NAME = "snapshot-v1.sqlite3"
_MAX_CONFIG_BYTES = 1 << 20
_LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
_BACKENDS = ("memory", "redis", "tiered")


def _boolean(text: str) -> bool:
    value = text.strip().lower()
    if value in ("1", "true", "yes", "on"):
        return True
    if value in ("0", "false", "no", "off"):
        return False
    raise ConfigError(f"{text[:40]!a} is neither true nor false", hint="write true or false")


def _count(text: str) -> int:
    value = text.strip()
    if not (value.isascii() and value.isdigit() and len(value) < 16 and int(value) > 0):
        raise ConfigError(f"{text[:40]!a} is not a whole number of 1 or more")
    return int(value)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1000:  # refuses NaN as well
        raise ConfigError(f"{text[:40]!a} is not a number from 0 to 1000")
    return value


def _wait(text: str) -> float:
    seconds = parse_duration(text)
    if not seconds:
        raise ConfigError("a wait of 0 gives nothing time to come")
    return seconds


def _one_of(*allowed: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        value = text.strip().lower()
        if value not in allowed:
            raise ConfigError(
                f"{text[:40]!a} is not one of {', '.join(allowed)}",
            )
        return value

    return read


def _text(text: str) -> str:
    if not text.strip():
        raise ConfigError("it is empty")
    if not text.isprintable():
        raise ConfigError("it holds control characters")
    return text.strip()


def _redis_url(text: str) -> str:
    from .backends.redis_url import parse_redis_url

    parse_redis_url(text.strip())
    return text.strip()


def _secret(text: str) -> str:
    if len(text.strip()) < 16:
        raise ConfigError(
            "it is shorter than 16 characters", hint="make one with `openssl rand -hex 32`"
        )
    return text.strip()


def _port(text: str) -> int:
    if not 0 < _count(text) < 65536:
        raise ConfigError(f"{text[:40]!a} is not a port, 1 to 65535")
    return _count(text)


def _directory(text: str) -> Path:
    return Path(_text(text)).expanduser()


class Settings:
    """What a command works with; durations in seconds, sizes in bytes.

    `cache_ttl` None = never expires. `host` None leaves OLLAMA_HOST's default. `cache_dir` None
    is the user's cache directory. `embedded_model` is a file of weights, None the small model that
    is fetched into `data_dir`, None being the user's data directory. `origins` says for each setting
    that was given where.
    """

    model: str
    host: str | None
    cache: bool
    cache_backend: str
    cache_ttl: float | None
    cache_dir: Path | None
    cache_max_entries: int
    cache_max_bytes: int
    cache_max_entry_bytes: int
    cache_eviction: str
    cache_cloud: bool
    keep_requests: bool
    require_cache: bool
    namespace: str
    redis_url: str
    redis_host: str | None
    redis_port: int | None
    redis_password: str | None
    redis_secret: str | None
    redis_timeout: float
    redis_ca_file: Path | None
    redis_cert_file: Path | None
    redis_key_file: Path | None
    first_byte_timeout: float
    idle_timeout: float
    log_level: str | None
    stale_while_revalidate: float
    stale_if_error: float
    early_renewal_beta: float
    cache_when: str
    coherence: str
    digest_max_age: float
    engine: str
    embedded_model: Path | None
    data_dir: Path | None

    def __init__(self, values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
        for name, (_, default) in SETTINGS.items():
            setattr(self, name, values.get(name, default))
        self.origins = origins

    def snapshot_path(self) -> Path:
        """Return where the memory backend keeps its snapshot."""
        if self.cache_dir is not None:
            return self.cache_dir / SNAPSHOT_NAME
        return _user_directory("cache") / SNAPSHOT_NAME


#: Every setting: how its text is read, and its default. Its variable is TINYLLM_<NAME>.
SETTINGS: dict[str, tuple[Callable[[str], Any], Any]] = {
    "model": (_text, DEFAULT_MODEL),
    "host": (_text, None),
    "cache": (_boolean, True),
    "cache_backend": (_one_of(*_BACKENDS), "memory"),
    "cache_ttl": (parse_ttl, DEFAULT_TTL_S),
    "cache_dir": (_directory, None),
    "cache_max_entries": (_count, 10_000),
    "cache_max_bytes": (parse_size, DEFAULT_MAX_BYTES),
    "cache_max_entry_bytes": (parse_size, DEFAULT_MAX_ENTRY_BYTES),
    "cache_eviction": (_one_of(*EVICTIONS), "lru"),
    "cache_cloud": (_boolean, False),
    "keep_requests": (_boolean, True),
    "require_cache": (_boolean, False),
    "namespace": (_text, ""),
    "redis_url": (_redis_url, "redis://localhost:6379/0"),
    "redis_host": (_text, None),
    "redis_port": (_port, None),
    "redis_password": (str, None),
    "redis_secret": (_secret, None),
    "redis_timeout": (parse_duration, 0.5),
    "redis_ca_file": (_directory, None),
    "redis_cert_file": (_directory, None),
    "redis_key_file": (_directory, None),
    "first_byte_timeout": (_wait, 300),
    "idle_timeout": (_wait, 60),
    "log_level": (_one_of(*_LOG_LEVELS), None),
    "stale_while_revalidate": (parse_duration, 0),
    "stale_if_error": (parse_duration, 0),
    "early_renewal_beta": (_share, 0.0),
    "cache_when": (_one_of("all", "deterministic"), "all"),
    "coherence": (_one_of("lazy", "strict"), "lazy"),
    "digest_max_age": (parse_duration, 60),
    "engine": (_one_of("auto", "ollama", "embedded"), "auto"),
    "embedded_model": (_directory, None),
    "data_dir": (_directory, None),
}


_SECRETS = ("redis_url", "redis_password", "redis_secret")


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    return "OLLAMA_HOST" if name == "host" else f"TINYLLM_{name.upper()}"


def load(
    flags: Mapping[str, Any], warn: Callable[[str], None], environ: Mapping[str, str] | None = None
) -> Settings:
    """Return the settings for one command.

    `flags` holds what was given on the command line: text as the user wrote it, or a value ready
    to use; None means not given. `warn` is told of unknown config keys, one line each. Raises
    ConfigError naming the flag, variable or key that makes no sense.
    """
    environ = os.environ if environ is None else environ
    path = config_file(environ)
    from_file = _read_file(path)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, (read, _) in SETTINGS.items():
        given = flags.get(name)
        if given is not None:
            origin = "--" + name.replace("_", "-")
        elif environ.get(variable(name)):
            given, origin = environ[variable(name)], variable(name)
        elif name in from_file:
            given, origin = _as_text(from_file[name], name, path), f"{name} in {path}"
        else:
            continue
        values[name] = _parsed(given, origin, read)
        origins[name] = origin
        if name in _SECRETS and _holds_secret(name, values[name]):
            _refuse_shown(origin, path)
    for name in sorted(from_file.keys() - SETTINGS.keys()):
        warn(f"{path}: unknown setting {ascii(name)[:60]}; it is ignored")
    return Settings(values, origins)


def _holds_secret(name: str, value: str) -> bool:
    if name != "redis_url":
        return True
    from .backends.redis_url import parse_redis_url

    address = parse_redis_url(value)
    return address.password is not None or address.sentinel_password is not None


def _refuse_shown(origin: str, path: Path) -> None:
    """Refuse a secret that other users can see: in the list of processes, or in a file they may read."""
    if origin.startswith("--"):
        raise ConfigError(
            f"{origin}: a password on the command line is seen by every user of this machine",
            hint="set TINYLLM_REDIS_URL or TINYLLM_REDIS_PASSWORD instead",
        )
    if origin.startswith("TINYLLM_") or os.name != "posix":
        return
    try:
        mode = path.stat().st_mode
    except OSError as exc:
        raise ConfigError(f"cannot look at {path}: {exc.strerror}") from exc
    if mode & 0o077:
        raise ConfigError(
            f"{origin} is a secret, and other users may read the file",
            hint=f"run `chmod 600 {path}`",
        )


def config_file(environ: Mapping[str, str]) -> Path:
    """Return where the config file is looked for: TINYLLM_CONFIG_DIR, else the user's config directory."""
    folder = environ.get("TINYLLM_CONFIG_DIR")
    if folder:
        try:
            return Path(folder).expanduser() / "config.toml"
        except RuntimeError as exc:  # no home directory for that user
            raise ConfigError(f"TINYLLM_CONFIG_DIR: {exc}") from exc
    return _user_directory("config") / "config.toml"


def _user_directory(kind: str) -> Path:
    """Return this user's "cache" or "config" directory for tinyllm, as platformdirs names it."""
    if sys.platform.startswith("linux"):
        # the XDG rule itself: importing platformdirs costs a hit a twentieth of its time
        # (https://specifications.freedesktop.org/basedir-spec/latest/)
        base = os.environ.get(f"XDG_{kind.upper()}_HOME", "")
        if not os.path.isabs(base):
            base = os.path.expanduser(f"~/.{kind}")
        if not os.path.isabs(base):
            base = os.devnull  # a user without a home: nothing can be there, and the store says so
        return Path(base, "tinyllm")
    import platformdirs

    find = platformdirs.user_cache_path if kind == "cache" else platformdirs.user_config_path
    return find("tinyllm", appauthor=False)


def _parsed(given: Any, origin: str, read: Callable[[str], Any]) -> Any:
    if not isinstance(given, str):
        return given
    try:
        return read(given)
    except ConfigError as exc:
        raise ConfigError(f"{origin}: {exc}", hint=exc.hint or _HINTS.get(read)) from exc
    except (RuntimeError, ValueError, OverflowError) as exc:  # no home directory, NUL in a path
        raise ConfigError(f"{origin}: {exc}") from exc


def _as_text(value: Any, name: str, path: Path) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, int, float)):
        return str(value)
    raise ConfigError(f"{name} in {path}: a {type(value).__name__} is not a value here")


def _read_file(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            raw = file.read(_MAX_CONFIG_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as exc:
        raise ConfigError(f"cannot read {path}: {exc}", hint="mend or remove the file") from exc
    if len(raw) > _MAX_CONFIG_BYTES:
        raise ConfigError(f"{path} is larger than 1 MiB", hint="mend or remove the file")
    import tomllib

    try:
        return tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"{path} is not TOML: {exc}", hint="mend or remove the file") from exc


_HINTS: dict[Callable[[str], Any], str] = {
    _count: "give a whole number, 1 or more",
}
