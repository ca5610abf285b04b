"""A subset of rows is the same in every form, and what is none is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.row_subset import RowSubset


@given(st.lists(st.booleans(), max_size=40))
def test_every_form_names_the_same_rows(flags):
    mask = np.array(flags, np.bool_)
    rows = [row for row, flag in enumerate(flags) if flag]
    for subset in (RowSubset.from_mask(mask), RowSubset.from_rows(np.array(rows, np.int32), len(flags))):
        assert len(subset) == len(rows)
        assert subset.total == len(flags)
        assert subset.rows.tolist() == rows
        assert subset.mask.tolist() == flags
        assert [row for row in range(len(flags)) if subset.bits[row // 8] >> (row % 8) & 1] == rows
        assert subset.rows.dtype == np.int64


@pytest.mark.parametrize(
    "rows",
    [[-1, 2], [2, 2], [3, 1], [5], [0.5], [[1]]],
    ids=["negative", "twice", "falling", "beyond", "float", "axes"],
)
def test_what_names_no_rows_is_refused(rows):
    with pytest.raises(ValueError, match="expected"):
        RowSubset.from_rows(np.array(rows), 5)


@pytest.mark.parametrize("mask", [np.ones(3), np.ones((2, 2), np.bool_)], ids=["float", "axes"])
def test_what_is_no_mask_is_refused(mask):
    with pytest.raises(ValueError, match="bool"):
        RowSubset.from_mask(mask)
