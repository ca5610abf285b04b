"""What of a model trains, from which epoch on and how fast; knows no loss, no batch order and no checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from dual_encoder.fine_tuning import FineTuning
from dual_encoder.layer_groups import TrainedTower
from dual_encoder.model import DualEncoder
from dual_encoder.optimizer import GroupedAdamW, VariableSettings, decays
from dual_encoder.recipe import TrainerConfig


class TrainedModel:
    """A model with both backbones as `TrainedTower`s; `trainable` are the weights that train in the present epoch."""

    def __init__(self, model: DualEncoder, fine_tuning: FineTuning) -> None:
        self.model, self.fine_tuning = model, fine_tuning
        config, batch_norm = model.config, fine_tuning.train_batch_norm
        self.image_tower = TrainedTower(config.image_backbone, model.image_backbone, fine_tuning.image_top, batch_norm)
        self.text_tower = TrainedTower(config.text_backbone, model.text_backbone, fine_tuning.text_top, batch_norm)
        self.trainable: list[Any] = []
        self.unfreeze(0)

    @property
    def _towers(self) -> tuple[TrainedTower, TrainedTower]:
        return self.image_tower, self.text_tower

    def unfreeze(self, epoch: int) -> bool:
        """Let the groups train that are to do so in `epoch`, counted from 0; whether those are others than before."""
        before = self.trainable
        for tower in self._towers:
            number = len(tower.groups)
            waiting = [n for n in range(tower.lowest, number) if self.fine_tuning.first_epoch(number - 1 - n) > epoch]
            tower.frozen = tower.lowest + len(waiting)
        still = {id(v) for tower in self._towers for v in tower.groups.variables(tower.lowest, tower.frozen)}
        self.trainable = [v for v in self.model.trainable_variables if id(v) not in still]
        return len(self.trainable) != len(before)

    def project(self, batch: Mapping[str, Any]) -> tuple[Any, Any]:
        """Projections (B, D) of both sides as in a training step.

        A side comes from what its trunk gave, cached ("image_features", "text_features"; of a frozen backbone these are
        its features), or goes through the whole backbone ("image"; "ids" and "mask", or "texts").
        """
        if "image_features" in batch:
            image = self.image_tower.features_of_trunk(batch["image_features"])
        else:
            image = self.image_tower.features(batch["image"])
        if "text_features" in batch:
            text = self.text_tower.features_of_trunk(batch["text_features"])
        elif "texts" in batch:
            text = self.text_tower.features(batch["texts"])
        else:
            text = self.text_tower.features({"ids": batch["ids"], "mask": batch["mask"]})
        return self.model.image_head(image, training=True), self.model.text_head(text, training=True)

    def optimizer(self, config: TrainerConfig, steps_per_epoch: int) -> keras.optimizers.Optimizer:
        """AdamW, built for every variable that trains at some time."""
        grouped = {}
        for tower in self._towers:
            for depth, variables in enumerate(reversed(tower.trainable_by_group())):
                first = self.fine_tuning.first_epoch(depth) * steps_per_epoch
                grouped.update({id(v): (self.fine_tuning.rate_of(depth), first) for v in variables})
        settings = []
        for variable in self.model.trainable_variables:
            rate, first_step = grouped.get(id(variable), (1.0, 0))
            decay = config.weight_decay if config.decay_all or decays(variable) else 0.0
            settings.append(VariableSettings(rate, decay, first_step))
        optimizer: keras.optimizers.Optimizer = GroupedAdamW(settings)
        if config.precision == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        optimizer.build(self.model.trainable_variables)
        return optimizer

    def variables(self) -> dict[str, Any]:
        """What training may change: weights, and the state of random generators; what stands still is left out."""
        model = self.model
        parts = {
            "image_head": model.image_head.variables,
            "text_head": model.text_head.variables,
            "image_backbone": self.image_tower.variables(),
            "text_backbone": self.text_tower.variables(),
        }
        named = {f"{part}/{i:04d}": v for part, variables in parts.items() for i, v in enumerate(variables)}
        bias = {} if model.logit_bias is None else {"logit_bias": model.logit_bias}
        return {**named, "log_scale": model.log_scale, **bias}

    def arrays(self) -> dict[str, np.ndarray]:
        """The values of `variables`."""
        return {name: np.asarray(variable) for name, variable in self.variables().items()}

    def assign(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Put values that `arrays` gave back."""
        for name, variable in self.variables().items():
            variable.assign(arrays[name])
