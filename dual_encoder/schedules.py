"""Learning rates as pure functions of progress and validation history; knows no optimizer.

Being pure, a schedule needs no state of its own in a checkpoint: a resumed run continues it exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """Implementers give the learning rate of a step."""

    def learning_rate(self, step: int, total_steps: int, validation_losses: Sequence[float]) -> float:
        """The rate for step `step` of `total_steps`, after epochs that ended with `validation_losses`."""


@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up to `peak`, then a half cosine down to `floor` (SGDR, Loshchilov & Hutter 2017, one cycle)."""

    peak: float = 1e-3
    warmup: float = 0.1  # share of all steps
    floor: float = 0.0

    def learning_rate(self, step: int, total_steps: int, validation_losses: Sequence[float]) -> float:
        """See `Schedule`; the validation history is not used."""
        warmup_steps = max(1, round(self.warmup * total_steps))
        if step < warmup_steps:
            return self.peak * (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return _half_cosine(self.peak, self.floor, progress)


@dataclass(frozen=True)
class OneCycle:
    """Up from `peak` / `start_divisor` to `peak`, then down to `peak` / `end_divisor`, both along a half cosine.

    Smith & Topin 2017, arXiv:1708.07120, with fast.ai's cosines and defaults. The momentum is not cycled.
    """

    peak: float = 1e-3
    warmup: float = 0.25  # share of all steps
    start_divisor: float = 25.0
    end_divisor: float = 1e5

    def learning_rate(self, step: int, total_steps: int, validation_losses: Sequence[float]) -> float:
        """See `Schedule`; the validation history is not used."""
        warmup_steps = max(1, round(self.warmup * total_steps))
        if step < warmup_steps:
            return _half_cosine(self.peak / self.start_divisor, self.peak, step / warmup_steps)
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps))
        return _half_cosine(self.peak, self.peak / self.end_divisor, progress)


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class ReduceOnPlateau:
    """Multiply the rate by `factor` after `patience` epochs without a lower validation loss (as Keras's callback)."""

    initial: float = 1e-3
    factor: float = 0.2
    patience: int = 3

    def learning_rate(self, step: int, total_steps: int, validation_losses: Sequence[float]) -> float:
        """See `Schedule`; the step is not used."""
        rate, best, waited = self.initial, math.inf, 0
        for loss in validation_losses:
            if loss < best - 1e-4:
                best, waited = loss, 0
                continue
            waited += 1
            if waited >= self.patience:
                rate, waited = rate * self.factor, 0
        return rate
