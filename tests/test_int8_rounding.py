"""A product in int8 never overflows and changes its outputs as little as eight bits allow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dual_encoder.int8_rounding import (
    LARGEST,
    LARGEST_SUM,
    Int8Input,
    Int8Weight,
    column_scales,
    fit_input,
    fit_weight,
    round_compensated,
)


def product(inputs: np.ndarray, chosen: Int8Input, weight: Int8Weight) -> np.ndarray:
    return chosen.rounded(inputs) @ (weight.values * weight.scales) + weight.correction


def error(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.square(found - exact).sum() / np.square(exact).sum())


def correlated(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(rows, columns // 4)) @ rng.normal(size=(columns // 4, columns)) / columns**0.5).astype(
        "f4"
    )


@given(st.integers(1, 9), st.integers(1, 3), st.floats(1e-3, 1e3), st.integers(0, 10_000))
def test_two_neighbouring_weights_of_one_sign_never_sum_to_more_than_16_bits_hold(
    rows: int, columns: int, size: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = (size * rng.standard_t(2, (rows, columns))).astype(np.float32)  # with outliers
    inputs = rng.normal(size=(20, rows)).astype(np.float32)
    found = fit_weight(inputs, weight, fit_input(inputs, weight)).values.astype(int)
    assert np.abs(found).max() <= LARGEST
    padded = np.concatenate([found, np.zeros((rows % 2, columns), int)]).reshape(-1, 2, columns)
    assert np.maximum(padded, 0).sum(axis=1).max() <= LARGEST_SUM
    assert np.minimum(padded, 0).sum(axis=1).min() >= -LARGEST_SUM
    assert 255 * LARGEST_SUM < 2**15


def test_scales_are_as_fine_as_the_sums_allow() -> None:
    alone = np.array([[127.0], [0], [0], [-60]], np.float32)
    np.testing.assert_allclose(column_scales(alone), [1.0])
    together = np.array([[64.0], [64], [-127], [127]], np.float32)  # opposite signs need no room
    np.testing.assert_allclose(column_scales(together), [1.0])
    np.testing.assert_allclose(column_scales(np.array([[100.0], [100]], np.float32)), [200 / 128])


def test_rows_to_come_make_up_for_the_error_of_rows_before() -> None:
    weight = np.random.default_rng(1).normal(size=(64, 24)).astype(np.float32)
    inputs, fresh = np.split(correlated(900, 64), [400])
    scales = 8 * column_scales(weight)  # coarse, so that rounding is all there is to see
    nearest = np.rint(weight / scales) * scales
    compensated = round_compensated(weight, scales, inputs.T @ inputs) * scales
    assert error(fresh @ compensated, fresh @ weight) < 0.5 * error(fresh @ nearest, fresh @ weight)


def test_one_channel_that_is_many_times_as_large_does_not_coarsen_the_others() -> None:
    rng = np.random.default_rng(2)
    inputs, weight = rng.normal(size=(500, 32)).astype(np.float32), rng.normal(size=(32, 16)).astype(np.float32)
    weight[5] *= 0.02
    inputs[:, 5] *= 50
    chosen = fit_input(inputs, weight)
    assert chosen.factors is not None
    assert chosen.factors.argmax() == 5
    plain = Int8Input(np.float32(2 * np.abs(inputs).max() / 255), np.uint8(128), None)
    fitted, unfitted = (product(inputs, way, fit_weight(inputs, weight, way)) for way in (chosen, plain))
    assert error(fitted, inputs @ weight) < 0.05 * error(unfitted, inputs @ weight)


def test_channels_of_one_size_are_not_divided() -> None:
    rng = np.random.default_rng(3)
    inputs = rng.uniform(-1, 1, (500, 32)).astype(np.float32)
    assert fit_input(inputs, rng.normal(size=(32, 16)).astype(np.float32)).factors is None


def test_the_mean_error_goes_into_the_bias() -> None:
    inputs = np.abs(correlated(300, 32))
    weight = np.random.default_rng(4).normal(size=(32, 8)).astype(np.float32)
    chosen = fit_input(inputs, weight)
    fitted = fit_weight(inputs, weight, chosen)
    errors = product(inputs, chosen, fitted) - inputs @ weight
    np.testing.assert_allclose(errors.mean(axis=0), 0, atol=1e-5)
    assert np.abs((errors - fitted.correction).mean(axis=0)).max() > 1e-4


@pytest.mark.parametrize("nothing", ["inputs", "weight"])
def test_zeros_stay_zeros(nothing: str) -> None:
    inputs, weight = np.ones((3, 4), np.float32), np.ones((4, 2), np.float32)
    (inputs if nothing == "inputs" else weight)[:] = 0
    chosen = fit_input(inputs, weight)
    np.testing.assert_allclose(product(inputs, chosen, fit_weight(inputs, weight, chosen)), 0, atol=1e-6)
