"""Probabilities of hits: they are what they say, in any order, and refuse what they cannot be."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import BundleError
from dual_encoder.calibration import Calibration

CALIBRATION = Calibration(
    bias=-1.5, slope=20.0, context=6.0, gallery=0.9, smallest=40, largest=400, queries=500, depth=5
)
SCORES = st.lists(st.floats(-1, 1), min_size=5, max_size=12).map(lambda row: sorted(row, reverse=True))


def by_hand(row: list[float], gallery: int) -> list[float]:
    """The formula of the module in plain Python, without any care for overflow."""
    last = row[:5][-1]
    weights = [math.exp(-1.5 + 20 * score - 6 * last - 0.9 * math.log(gallery)) for score in row]
    return [weight / (1 + sum(weights[:5])) for weight in weights]


@given(SCORES, st.integers(12, 10**8))
def test_probabilities_are_those_of_the_formula(row: list[float], gallery: int) -> None:
    found = CALIBRATION.probability(np.array([row]), gallery)
    assert found[0] == pytest.approx(by_hand(row, gallery), rel=1e-9)
    assert CALIBRATION.answered(np.array([row]), gallery)[0] == pytest.approx(sum(by_hand(row, gallery)[:5]))


@given(SCORES, st.integers(12, 10**8), st.integers(0, 3), st.floats(0.001, 1))
def test_a_higher_score_is_likelier_and_a_larger_gallery_makes_it_less_so(
    row: list[float], gallery: int, position: int, more: float
) -> None:
    raised = row.copy()
    raised[position] += more
    before, after = (CALIBRATION.probability(np.array([r]), gallery)[0] for r in (row, raised))
    assert after[position] > before[position]
    assert CALIBRATION.answered(np.array([row]), 2 * gallery) < CALIBRATION.answered(np.array([row]), gallery)
    assert np.all(np.diff(before) <= 0), "in the order of the scores"
    assert 0 <= before[:5].sum() <= 1


def test_extreme_scores_overflow_nothing() -> None:
    steep = Calibration(**{**CALIBRATION.to_config(), "slope": 1e5, "context": 0.0})
    assert steep.probability(np.array([[1.0, 0.9, 0, 0, -1]]), 10)[0].tolist() == [1, 0, 0, 0, 0]


def test_a_small_gallery_gives_what_it_has_and_nothing_is_expected_of_scores_that_are_none() -> None:
    assert CALIBRATION.probability(np.array([[0.5, 0.1]]), 2).shape == (1, 2)
    found = CALIBRATION.probability(np.array([[0.5, 0.1, np.nan, -np.inf, -np.inf]]), 40)
    assert np.all(found[0, 2:] == 0)
    assert np.all(found[0, :2] > 0)
    assert CALIBRATION.answered(np.full((1, 5), -np.inf), 40).tolist() == [0]
    assert CALIBRATION.probability(np.empty((0, 5)), 40).shape == (0, 5)


def test_fewer_hits_than_the_map_looks_at_are_refused() -> None:
    with pytest.raises(ValueError, match=r"first 5 hits or more\), received \(1, 3\)"):
        CALIBRATION.probability(np.array([[0.5, 0.4, 0.3]]), 40)
    with pytest.raises(ValueError, match="expected scores"):
        CALIBRATION.probability(np.array([0.5, 0.4, 0.3, 0.2, 0.1]), 40)


def test_it_survives_json() -> None:
    assert Calibration.from_config(json.loads(json.dumps(CALIBRATION.to_config()))) == CALIBRATION


@pytest.mark.parametrize(
    "wrong", [{"slope": -1.0}, {"slope": math.nan}, {"bias": "high"}, {"depth": 0}, {"offset": 1.0}]
)
def test_what_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(BundleError, match="calibration of"):
        Calibration.from_config({**CALIBRATION.to_config(), **wrong})
