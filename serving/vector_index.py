"""What an index of vectors must offer, and what a search returns; knows no engine, and imports no NumPy at run time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from data.pairs import AttributeValue
    from serving.row_subset import RowSubset


@dataclass(frozen=True)
class SearchHit:
    """One image that matches a query; `score` is the cosine similarity, `rank` counts from 1.

    `probability` is that of being what was meant, and `vector` the stored embedding; None where there is none to tell.
    """

    image_id: str
    score: float
    rank: int
    captions: tuple[str, ...] = ()
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    probability: float | None = None
    vector: Sequence[float] | None = None


class VectorIndex(Protocol):
    """Implementers answer "which rows are nearest" over vectors that somebody else keeps.

    `vectors` is (N, D) float32 or float16 with rows of unit length, in memory or memory-mapped, and must not change
    afterwards. An index may keep compressed copies of its own, but the scores it returns are computed from `vectors`.
    Implementers also offer the class methods `build(vectors)` and `load(path, vectors, kind)`.
    """

    @property
    def kind(self) -> str:
        """How the index searches, in the engine's own words."""

    @property
    def dimension(self) -> int:
        """D, the number of components of a vector."""

    def __len__(self) -> int:
        """N, the number of rows."""

    def search(
        self, queries: np.ndarray, k: int, allowed: RowSubset | None = None, oversampling: float = 1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores (Q, K) float32 and rows (Q, K) int64 of the nearest rows, best first; K = min(k, N).

        `queries` is (Q, D) float32. A score is the inner product; rows of equal score are ordered by row. With
        `allowed` only its rows can be found, and K = min(k, len(allowed)), which may be 0. An approximate index looks
        at `oversampling` times as many candidates as usual. Safe to call from several threads. `QueryError` for k < 1,
        a wrong shape, a NaN or infinite component, or a zero vector.
        """

    def save(self, path: Path) -> None:
        """Write everything but `vectors` to the file `path`; read back by `load(path, vectors, kind)`."""
