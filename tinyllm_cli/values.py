"""What the frozen values have in common.

Written out by hand because a frozen dataclass costs close to a millisecond to define, on every start
of the command, for each of the classes a cache hit needs.
"""

from __future__ import annotations

from typing import Any, Self

__all__ = ["Value"]


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
        return hash(tuple(self._items().values()))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self._items().items())
        return f"{type(self).__name__}({shown})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), tuple(self._plain().values()))

    def _plain(self) -> dict[str, Any]:
        return self._items()
