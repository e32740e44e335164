"""Which JSON value satisfies a schema? A small one, steered by a hash."""

from typing import Any

from .reply import Obj

_DEEPEST = 8


def fill(schema: Obj, seed: str) -> Any:
    """Return a value of the schema's type; object keys keep the order of ``properties``."""
    return _Filler(schema, seed).value(schema, 0)


class _Filler:
    def __init__(self, root: Obj, seed: str) -> None:
        self._root = root
        self._seed = seed
        self._used = 0

    def value(self, schema: Any, depth: int) -> Any:
        if not isinstance(schema, dict) or depth > _DEEPEST:
            return None
        if "$ref" in schema:
            return self.value(self._resolve(schema["$ref"]), depth + 1)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            choices = schema["enum"]
            return choices[self._number() % len(choices)]
        for union in ("anyOf", "oneOf", "allOf"):
            if schema.get(union):
                return self.value(schema[union][0], depth + 1)
        return self._by_type(schema, depth)

    def _by_type(self, schema: Obj, depth: int) -> Any:
        kind = schema.get("type", "object" if "properties" in schema else "string")
        if isinstance(kind, list):
            kind = kind[0] if kind else "string"
        match kind:
            case "object":
                properties = schema.get("properties") or {}
                return {name: self.value(part, depth + 1) for name, part in properties.items()}
            case "array":
                count = max(1, int(schema.get("minItems", 1)))
                return [self.value(schema.get("items", {}), depth + 1) for _ in range(count)]
            case "integer":
                return int(self._bounded(schema))
            case "number":
                return self._bounded(schema) + 0.5 * ("maximum" not in schema)
            case "boolean":
                return self._number() % 2 == 0
            case "null":
                return None
        return f"té{self._number():04x}"

    def _bounded(self, schema: Obj) -> float:
        low = schema.get("minimum", 0)
        return float(min(low + self._number() % 1000, schema.get("maximum", float("inf"))))

    def _number(self) -> int:
        start = (self._used * 4) % 60
        self._used += 1
        return int(self._seed[start : start + 4], 16)

    def _resolve(self, pointer: Any) -> Any:
        found: Any = self._root
        for part in str(pointer).removeprefix("#").strip("/").split("/"):
            found = found.get(part) if isinstance(found, dict) else None
        return found
