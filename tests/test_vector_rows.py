"""Rows read one by one are those of the mapping, in the order asked for; a file that was cut short is an error."""

from __future__ import annotations

import os

import numpy as np
import pytest

from serving.vector_rows import FEW, map_vectors, rows_of


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("count", [0, 1, 50, FEW + 1])
def test_rows_come_as_they_stand(tmp_path, dtype, count):
    rng = np.random.default_rng(0)
    stored = rng.normal(size=(3_000, 5)).astype(dtype)
    np.save(tmp_path / "x.npy", stored)
    rows = rng.integers(0, len(stored), count)
    found = rows_of(map_vectors(tmp_path / "x.npy"), rows)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, stored[rows])


def test_a_file_that_was_cut_short_is_an_error(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.ones((100, 5), np.float32))
    vectors = map_vectors(path)
    os.truncate(path, path.stat().st_size - 10)
    assert len(rows_of(vectors, np.array([98, 3]))) == 2
    with pytest.raises(OSError, match="rows 3 to 99 are not in the file"):
        rows_of(vectors, np.array([3, 99]))
