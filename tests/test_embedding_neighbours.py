"""The nearest rows are proposed, all of them while rows are few and nearly all where they are parted into cells."""

from __future__ import annotations

import numpy as np
import pytest

from data import embedding_neighbours
from data.embedding_neighbours import LEAST, NEIGHBOURS, neighbours


def proposed(rows: np.ndarray) -> set[tuple[int, int]]:
    return {pair for one, two in neighbours(rows) for pair in zip(one.tolist(), two.tolist(), strict=True)}


def with_copies(count: int, length: int, noise: float = 0.3) -> np.ndarray:
    """Rows, and then a noisy copy of each; cosine about 0.96 at 0.3."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(count, length)).astype(np.float32)
    return np.concatenate([rows, rows + noise * random.normal(size=rows.shape).astype(np.float32)])


@pytest.mark.parametrize("block", [7, 1 << 14])
def test_short_rows_give_what_comparing_all_gives(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_neighbours, "_GALLERY", block)
    monkeypatch.setattr(embedding_neighbours, "_BLOCK", 5)
    rows = with_copies(40, 8)
    unit = rows.astype(np.float64) / np.linalg.norm(rows, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -1)
    wanted = {
        (min(i, int(j)), max(i, int(j)))
        for i, row in enumerate(cosine)
        for j in np.argsort(-row)[:NEIGHBOURS]
        if row[j] >= LEAST
    }
    assert proposed(rows) == wanted
    assert {(n, n + 40) for n in range(40)} <= wanted


def test_long_rows_are_projected_and_their_copies_still_found() -> None:
    found = proposed(with_copies(300, 1280))
    assert found == {(n, n + 300) for n in range(300)}


def test_copies_among_many_rows_meet_in_a_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_neighbours, "EXACT", 100)
    monkeypatch.setattr(embedding_neighbours, "CELL", 50)
    count = 1000
    found = proposed(with_copies(count, 64))
    assert len({(n, n + count) for n in range(count)} & found) >= 0.95 * count
    assert all(one < two for one, two in found)


def test_rows_without_content_and_too_few_rows_have_no_neighbours() -> None:
    assert proposed(np.zeros((3, 8), np.float32)) == set()
    assert proposed(np.ones((1, 8), np.float32)) == set()
    assert proposed(np.zeros((0, 8), np.float32)) == set()
