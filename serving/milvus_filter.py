"""A filter in Milvus's boolean expressions; knows no client.

Milvus calls a comparison with a value that is missing, or of another kind, neither true nor false, and its opposite the
same. Attributes therefore carry their kind in their name, and every test asks first whether there is one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from data.pairs import AttributeValue
from serving.filters import And, Compare, Contains, Exists, Filter, Ids, In, Not, Or, Scalar

FIELD = "attributes"
_RELATIONS = {"=": "==", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_NOTHING, _ALL = 'image_id == ""', 'image_id != ""'  # no id is empty


def encode_attributes(attributes: Mapping[str, AttributeValue]) -> dict[str, Any]:
    """Attributes as one JSON object whose keys say the kind of the value."""
    return {f"{_kind(value)}:{name}": _plain(value) for name, value in attributes.items()}


def decode_attributes(stored: Mapping[str, Any]) -> dict[str, AttributeValue]:
    """The inverse of `encode_attributes`."""
    return {
        key.partition(":")[2]: datetime.fromisoformat(value["is"]) if key.startswith("time:") else value
        for key, value in stored.items()
    }


def expression(where: Filter) -> str:
    """What Milvus filters by to find exactly what `filters.matches` does."""
    match where:
        case And(terms):
            return _joined("and", terms, _ALL)
        case Or(terms):
            return _joined("or", terms, _NOTHING)
        case Not(term):
            return f"not ({expression(term)})"
        case Ids(image_ids):
            return f"image_id in {json.dumps(sorted(image_ids), ensure_ascii=False)}" if image_ids else _NOTHING
        case Exists(attribute):
            kinds = ("number", "text", "truth", "time", "list")
            return "(" + " or ".join(f"exists {_path(kind, attribute)}" for kind in kinds) + ")"
        case Contains(attribute, text):
            path = _path("list", attribute)
            return f"(exists {path} and json_contains({path}, {_literal(text)}))"
        case In(attribute, values):
            return _joined("or", tuple(Compare(attribute, "=", value) for value in values), _NOTHING)
        case Compare(attribute, relation, value):
            path = _path(_kind(value), attribute)
            compared = f'{FIELD}[{_literal(f"time:{attribute}")}]["at"]' if isinstance(value, datetime) else path
            return f"(exists {path} and {compared} {_RELATIONS[relation]} {_literal(value)})"


def _joined(word: str, terms: tuple[Filter, ...], of_none: str) -> str:
    return "(" + f" {word} ".join(expression(term) for term in terms) + ")" if terms else of_none


def _path(kind: str, attribute: str) -> str:
    return f"{FIELD}[{_literal(f'{kind}:{attribute}')}]"


def _kind(value: AttributeValue | Scalar) -> str:
    match value:
        case bool():
            return "truth"
        case int() | float():
            return "number"
        case str():
            return "text"
        case datetime():
            return "time"
    return "list"


def _plain(value: AttributeValue) -> Any:
    """A moment keeps its own form beside the microseconds that it is compared by."""
    return {"at": _microseconds(value), "is": value.isoformat()} if isinstance(value, datetime) else value


def _literal(value: Scalar) -> str:
    return str(_microseconds(value)) if isinstance(value, datetime) else json.dumps(value, ensure_ascii=False)


def _microseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1_000_000)
