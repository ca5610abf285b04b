"""How far and how fast backbones that train may move from where they start; knows no layer and no optimizer."""

from __future__ import annotations

from dataclasses import dataclass

from data.errors import TrainingError


@dataclass(frozen=True)
class FineTuning:
    """Settings for the backbones that train; a frozen one is not concerned.

    Their layers come in groups (`layer_groups` of the backbone; without it the backbone is one group).

    image_top, text_top
        How many groups train, counted from the features down; None is all. What lies below stays as it was, runs in
        inference mode, and for images its output is computed once and cached unless pixels are augmented.
    rate, rate_decay
        The learning rate of the top group as a share of the heads', and what each group below multiplies it by (ULMFiT,
        Howard & Ruder 2018, arXiv:1801.06146, section 3.2, takes 1 / 2.6). Heads and scale keep the schedule's rate.
    unfreeze_every
        Epochs after which one more group starts to train: first the heads alone, then the top group, and so on (ULMFiT,
        section 3.3). 0: all from the start.
    train_batch_norm
        Whether batch normalisation in groups that train learns and follows the batches' statistics. Off, it stays as
        published, which is safer for small data and small batches; a network from random weights needs it on.
    """

    image_top: int | None = None
    text_top: int | None = None
    rate: float = 1.0
    rate_decay: float = 1.0
    unfreeze_every: int = 0
    train_batch_norm: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        tops = [top for top in (self.image_top, self.text_top) if top is not None]
        if min([1, *tops]) < 1 or not self.rate > 0 or not 0 < self.rate_decay <= 1 or self.unfreeze_every < 0:
            raise TrainingError(
                "at least 1 top group, a positive rate, a rate_decay in (0, 1], unfreeze_every of at least 0",
                str(self),
                "correct the recipe",
            )

    def rate_of(self, depth: int) -> float:
        """The share of the heads' rate for the group `depth` groups below the top one."""
        return self.rate * self.rate_decay**depth

    def first_epoch(self, depth: int) -> int:
        """The epoch, from 0, in which the group `depth` groups below the top one starts to train."""
        return self.unfreeze_every * (depth + 1)
