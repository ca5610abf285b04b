"""A change that cannot be kept is refused by the name of its field, and what is kept is what was given."""

from __future__ import annotations

import numpy as np
import pytest

from data.errors import QueryError
from serving.change_request import encode_changes
from serving.vector_store import Upsert

VECTOR = np.array([0.6, 0.8], np.float32)


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("digest", {"digest": "\ud800"}),
        ("location", {"location": "/a\udcff"}),
        ("captions", {"captions": ("fine", "half \udfff")}),
        ("attributes", {"attributes": {"na\ud800me": 1}}),
        ("attributes", {"attributes": {"name": ["fine", "\ud800"]}}),
    ],
    ids=repr,
)
def test_half_a_character_is_refused_by_its_field(field, given):
    fine = Upsert("a", VECTOR, "é", "/é", ("é 🚀",), {"é": "🚀"})
    with pytest.raises(QueryError) as refusal:
        encode_changes([fine, Upsert("b", VECTOR, **given)], "", 2)
    assert refusal.value.field == field


def test_halves_that_meet_between_two_texts_stay_halves():
    with pytest.raises(QueryError, match="valid Unicode"):
        encode_changes([Upsert("a", VECTOR, captions=("\ud83d", "\ude80"))], "", 2)


def test_attributes_of_any_mapping_are_kept_in_the_order_of_their_names():
    class Given(dict):
        pass

    (row,) = encode_changes([Upsert("a", VECTOR, attributes=Given(b=[], a=True))], "", 2).rows
    assert row.attributes == '{"a":true,"b":[]}'
