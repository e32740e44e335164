"""What the frozen values have in common.

Written out by hand because a frozen dataclass costs close to a millisecond to define, on every start
of the command, for each of the classes a cache hit needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Self

__all__ = ["Value", "freeze", "thaw"]


def freeze(value: Any) -> Any:
    """Return JSON-like data that nobody can change: read-only mappings and tuples all the way down."""
    if isinstance(value, Mapping):
        return MappingProxyType({name: freeze(item) for name, item in value.items()})
    if isinstance(value, (list, tuple)):
        return tuple(freeze(item) for item in value)
    return value


def thaw(value: Any) -> Any:
    """Return frozen data as the plain dicts and lists that `json` and `pickle` know."""
    if isinstance(value, Mapping):
        return {name: thaw(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [thaw(item) for item in value]
    return value


class Value:
    """Base of a frozen value: its fields are its slots, in the order of the constructor.

    Equal if the type and all fields are equal; may be copied and pickled. A subclass sets its
    fields with `_set` in its constructor, and nobody after that.
    """

    __slots__: tuple[str, ...] = ()

    _set = object.__setattr__

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return type(self)(**{**self._items(), **changes})

    def _items(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen; use replace({name}=...)")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    def __hash__(self) -> int:
        # nested objects have no hash; equal values agree in their text and numbers all the same
        return hash(tuple(v for v in self._items().values() if isinstance(v, (str, int, float))))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self._items().items())
        return f"{type(self).__name__}({shown})"

    def __reduce__(self) -> tuple[Any, ...]:
        # read-only mappings do not pickle
        return (type(self), tuple(thaw(value) for value in self._items().values()))
