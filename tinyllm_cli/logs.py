"""What is logged and when: one line per cache event, nothing of it paid for while nobody listens.

Events carry a shortened key and sizes, never a prompt or an answer. The library configures no
handler; the command line does (-v, TINYLLM_LOG_LEVEL).
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["debug", "error", "listening"]

_NAME = "tinyllm_cli"
_DEBUG = 10
_logger: Any = None


def listening() -> bool:
    """Say whether anybody wants DEBUG events; cheap enough to ask on every hit."""
    logger = _logger or _find_logger()
    return logger is not None and logger.isEnabledFor(_DEBUG)


def debug(event: str, key: str, **fields: Any) -> None:
    """Log one event of the cache's daily work."""
    logger = _logger or _find_logger()
    if logger is not None and logger.isEnabledFor(_DEBUG):
        logger.debug(_line(event, key, fields))


def error(event: str, exc: BaseException) -> None:
    """Log a failure of the store by its class and reason."""
    logger = _logger or _find_logger()
    if logger is not None:
        logger.error(_line(event, "", {"error": _public_name(exc), "reason": str(exc)}))


def _find_logger() -> Any:
    """Return our logger if the program has logging at all; a hit must not load it for nobody."""
    global _logger
    logging = sys.modules.get("logging")
    if logging is not None:
        _logger = logging.getLogger(_NAME)
        _logger.addHandler(logging.NullHandler())  # a library is silent until told otherwise
    return _logger


def _line(event: str, key: str, fields: dict[str, Any]) -> str:
    if key:
        fields = {"key": key[:12], **fields}
    return " ".join((event, *(f"{name}={value}" for name, value in fields.items())))


def _public_name(exc: BaseException) -> str:
    """Return the name of the first class that a user can look up."""
    names = (kind.__name__ for kind in type(exc).__mro__)
    return next(name for name in names if not name.startswith("_"))
