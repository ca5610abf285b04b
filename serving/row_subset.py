"""Some of an index's rows, as filters and deletions leave them, in the forms that searches want; knows no engine."""

from __future__ import annotations

from functools import cached_property

import numpy as np


class RowSubset:
    """A set of rows of an index with `total` rows; each form is made when it is first asked for, and kept.

    Immutable: the arrays given must not change afterwards. Example: `RowSubset.from_mask(~deleted)`.
    """

    def __init__(self, total: int, *, mask: np.ndarray | None = None, rows: np.ndarray | None = None) -> None:
        self.total = total
        if mask is not None:
            self.__dict__["mask"] = mask
        if rows is not None:
            self.__dict__["rows"] = rows

    @classmethod
    def from_mask(cls, mask: np.ndarray) -> RowSubset:
        """The rows where `mask`, (N,) bool, is true."""
        if mask.ndim != 1 or mask.dtype != np.bool_:
            raise ValueError(f"expected a (N,) bool array; received {mask.dtype} {mask.shape}")
        return cls(len(mask), mask=mask)

    @classmethod
    def from_rows(cls, rows: np.ndarray, total: int) -> RowSubset:
        """`rows`, strictly increasing whole numbers from 0 to `total` - 1."""
        rows = np.asarray(rows)
        if rows.ndim != 1 or (rows.dtype.kind not in "iu" and rows.size):
            raise ValueError(f"expected a (M,) array of whole numbers; received {rows.dtype} {rows.shape}")
        rows = rows.astype(np.int64, copy=False)
        if rows.size and (rows[0] < 0 or rows[-1] >= total or (np.diff(rows) <= 0).any()):
            raise ValueError(f"expected strictly increasing rows below {total:,}")
        return cls(total, rows=rows)

    def __len__(self) -> int:
        return self._count

    @cached_property
    def rows(self) -> np.ndarray:
        """(M,) int64, increasing."""
        return np.flatnonzero(self.mask)

    @cached_property
    def mask(self) -> np.ndarray:
        """(N,) bool."""
        mask = np.zeros(self.total, np.bool_)
        mask[self.rows] = True
        return mask

    @cached_property
    def bits(self) -> np.ndarray:
        """(ceil(N / 8),) uint8: bit i % 8 of byte i // 8 tells whether row i is in."""
        return np.packbits(self.mask, bitorder="little")

    @cached_property
    def _count(self) -> int:
        return len(self.rows) if "rows" in self.__dict__ else int(np.count_nonzero(self.mask))
