"""Learning rates follow their published curves and depend on nothing but their arguments."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dual_encoder.schedules import OneCycle, ReduceOnPlateau, WarmupCosine

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in Keras


def test_warm_up_is_linear_to_the_peak_and_the_cosine_ends_at_the_floor() -> None:
    schedule = WarmupCosine(peak=0.1, warmup=0.1, floor=0.01)
    rates = [schedule.learning_rate(step, 100, []) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) / 10 for step in range(10)])
    assert max(rates) == pytest.approx(0.1)
    assert rates[10] == pytest.approx(0.1)
    assert rates[55] == pytest.approx((0.1 + 0.01) / 2)  # half of the way down
    assert rates[100] == pytest.approx(0.01)
    assert all(later <= earlier + 1e-12 for earlier, later in zip(rates[10:], rates[11:], strict=False))


@given(st.integers(1, 2000), st.floats(0, 1), st.integers(0, 3000))
def test_every_rate_is_positive_and_at_most_the_peak(total: int, warmup: float, step: int) -> None:
    rate = WarmupCosine(peak=1e-3, warmup=warmup, floor=1e-5).learning_rate(step, total, [])
    assert 0 < rate <= 1e-3 * (1 + 1e-9)
    assert math.isfinite(rate)


def test_steps_beyond_the_end_stay_at_the_floor() -> None:
    assert WarmupCosine(peak=1.0, floor=0.2).learning_rate(500, 100, []) == pytest.approx(0.2)


def test_one_cycle_rises_and_falls_along_half_cosines() -> None:
    schedule = OneCycle(peak=1.0, warmup=0.25, start_divisor=25, end_divisor=1e5)
    rates = [schedule.learning_rate(step, 101, []) for step in range(101)]
    start, end = 1 / 25, 1e-5
    rising = [start + (1 - start) * (1 - math.cos(math.pi * step / 25)) / 2 for step in range(25)]
    falling = [end + (1 - end) * (1 + math.cos(math.pi * step / 75)) / 2 for step in range(76)]
    assert rates == pytest.approx(rising + falling)
    assert schedule.learning_rate(5000, 101, []) == pytest.approx(end)
    assert OneCycle(peak=0.3).learning_rate(0, 1, []) == pytest.approx(0.3 / 25)


@pytest.mark.parametrize("patience", [1, 3])
@given(losses=st.lists(st.sampled_from([1.0, 0.9, 0.89995, 0.8, 0.5, 2.0]), max_size=20))
def test_the_plateau_rule_is_the_one_of_keras_s_callback(patience: int, losses: list[float]) -> None:
    import keras

    model = keras.Sequential()
    model.optimizer = keras.optimizers.SGD(0.1)
    callback = keras.callbacks.ReduceLROnPlateau(monitor="val_loss", factor=0.2, patience=patience)
    callback.set_model(model)
    callback.on_train_begin()
    schedule = ReduceOnPlateau(initial=0.1, factor=0.2, patience=patience)
    for epoch, loss in enumerate(losses):
        callback.on_epoch_end(epoch, {"val_loss": loss})
        expected = float(model.optimizer.learning_rate)
        assert schedule.learning_rate(0, 1, losses[: epoch + 1]) == pytest.approx(expected, rel=1e-5)
