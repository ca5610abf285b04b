"""Attributes keep their kind and value through JSON, and what an index cannot keep is told apart."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.attributes import attributes_from_json, attributes_to_json, is_attribute, parse_timestamp, timestamp_text
from serving.proto_attributes import attribute_message, attribute_of

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
ZONES = st.sampled_from([UTC, timezone(timedelta(hours=-7, minutes=-30))])
MOMENT = st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=ZONES)
VALUE = st.one_of(
    TEXT, st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), MOMENT,
    st.lists(TEXT, max_size=3),
)  # fmt: skip


@given(st.dictionaries(TEXT, VALUE, max_size=4))
def test_json_gives_back_every_kind(attributes):
    again = attributes_from_json(json.loads(json.dumps(attributes_to_json(attributes), allow_nan=False)))
    assert again == attributes
    assert {name: type(value) for name, value in again.items()} == {n: type(v) for n, v in attributes.items()}
    assert all(is_attribute(value) for value in attributes.values())


@given(VALUE)
def test_messages_give_back_every_kind(value):
    again = attribute_of(attribute_message(value))
    assert (again, type(again)) == (value, type(value))


@pytest.mark.parametrize(
    "value",
    [
        float("nan"), float("inf"), 2**63, -(2**63) - 1, "\ud800", ["a", 1], ["\udfff"], None, {"a": 1}, b"x",
        datetime(2024, 5, 17), datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1))),
    ],
    ids=repr,
)  # fmt: skip
def test_what_an_index_cannot_keep_is_told_apart(value):
    assert not is_attribute(value)


def test_times_are_written_in_utc():
    noon = datetime(2024, 5, 17, 12, tzinfo=timezone(timedelta(hours=2)))
    assert timestamp_text(noon) == "2024-05-17T10:00:00Z"
    assert timestamp_text(noon.replace(microsecond=1)) == "2024-05-17T10:00:00.000001Z"
    assert parse_timestamp("2024-05-17T12:00:00+02:00") == noon
    assert parse_timestamp("2024-05-17T12:00:00+02:00").tzinfo is UTC


@pytest.mark.parametrize("text", ["2024-05-17", "2024-05-17T12:00:00", "noon", ""])
def test_a_time_without_its_offset_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011 - Python's own message for what is no time at all
        parse_timestamp(text)
