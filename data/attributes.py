"""What an attribute of an image may hold, and its form in JSON; knows no data-set format and no index."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data.pairs import AttributeValue

EXPECTED = (
    "attributes that are texts, 64-bit whole numbers, finite numbers, truth values, "
    "times with their offset from UTC or lists of texts"
)

# JSON knows no times; `{"$timestamp": "2024-05-17T12:00:00Z"}` stands for one.
TIMESTAMP = "$timestamp"


def is_attribute(value: object) -> bool:
    """Whether an index can keep `value` as it is: NaN, larger integers and times without an offset have no place."""
    if isinstance(value, str):
        return is_unicode(value)
    if isinstance(value, int):  # truth values included
        return -(2**63) <= value < 2**63
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list | tuple):
        return all(isinstance(item, str) for item in value) and is_unicode("".join(value))
    return isinstance(value, datetime) and _has_moment(value)


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8; file names and JSON may hold halves of characters that cannot."""
    return text.isascii() or not re.search("[\ud800-\udfff]", text)


def attributes_to_json(attributes: Mapping[str, AttributeValue]) -> dict[str, Any]:
    """What `json.dumps` takes, times as `{"$timestamp": TEXT}`."""
    return {
        name: attribute_to_json(value) if isinstance(value, datetime) else value for name, value in attributes.items()
    }


def attribute_to_json(value: object) -> dict[str, str]:
    """What stands for the one kind of value that JSON does not know; `TypeError` for what is no attribute."""
    if isinstance(value, datetime):
        return {TIMESTAMP: timestamp_text(value)}
    raise TypeError(f"expected {EXPECTED}; received {value!r}")


def attributes_from_json(attributes: Mapping[str, Any]) -> dict[str, AttributeValue]:
    """What `attributes_to_json` was given, times in UTC."""
    return {
        name: parse_timestamp(value[TIMESTAMP]) if isinstance(value, dict) else value
        for name, value in attributes.items()
    }


def timestamp_text(moment: datetime) -> str:
    """RFC 3339 in UTC, to the microsecond: `2024-05-17T12:00:00Z`."""
    return moment.astimezone(UTC).isoformat().removesuffix("+00:00") + "Z"


def parse_timestamp(text: str) -> datetime:
    """A time in RFC 3339, in UTC; `ValueError` when it is none or has no offset."""
    moment = datetime.fromisoformat(text)
    if not _has_moment(moment):
        raise ValueError(f"expected a time with its offset from UTC; received {text!r}")
    return moment.astimezone(UTC)


def _has_moment(moment: datetime) -> bool:
    """Whether a time names one moment, which has a year from 1 to 9999 in UTC too."""
    if moment.utcoffset() is None:
        return False
    if 1 < moment.year < 9_999:
        return True
    try:
        moment.astimezone(UTC)
    except OverflowError:
        return False
    return True
