"""Cuts a built backbone into groups of layers, so that its top can train above a still trunk; knows no loss.

Depth is counted in groups, from input to output. Groups below a cut run in inference mode: no dropout, and batch
normalisation by the statistics it has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from data.errors import TrainingError
from dual_encoder.towers import ImageBackbone, TextBackbone

WHOLE = "backbone"  # the one group of a backbone that names none


class LayerGroups:
    """The groups of `model`, which `backbone` built; what is between two cuts is a Keras model of its own.

    A backbone of one group cannot be cut: `names` is ("backbone",).
    """

    def __init__(self, backbone: ImageBackbone | TextBackbone, model: keras.Model) -> None:
        self.model = model
        ends = backbone.layer_groups() if hasattr(backbone, "layer_groups") else {WHOLE: None}
        self.names = tuple(ends)
        self._ends = list(ends.values())[:-1]  # of the last group: the features
        self._sections: dict[tuple[int, int], keras.Model] = {(0, len(self.names)): model}

    def __len__(self) -> int:
        return len(self.names)

    def section(self, start: int, end: int) -> keras.Model:
        """Groups `start` to `end` - 1 as a model.

        Its input is the backbone's if `start` is 0, else the output of group `start` - 1; where the backbone takes a
        mask, a list of both. It shares layers and weights with the backbone.
        """
        if (start, end) not in self._sections:
            inputs: Any = self.model.input
            if start:
                hidden = self._boundary(start)
                inputs = [hidden, inputs["mask"]] if isinstance(inputs, dict) else hidden
            outputs = self.model.output if end == len(self) else self._boundary(end)
            name = f"{self.model.name}_groups_{start}_to_{end}"
            self._sections[start, end] = keras.Model(inputs, outputs, name=name)
        return self._sections[start, end]

    def _boundary(self, group: int) -> Any:
        return self.model.get_layer(self._ends[group - 1]).output

    def layers(self, start: int, end: int) -> Iterator[keras.Layer]:
        """Every layer of groups `start` to `end` - 1, those inside nested models too."""
        yield from _layers_inside(self.section(start, end))

    def variables(self, start: int, end: int) -> list[Any]:
        """Weights and states of groups `start` to `end` - 1."""
        return self.section(start, end).variables if start < end else []


def _layers_inside(model: keras.Model) -> Iterator[keras.Layer]:
    for layer in model.layers:
        inside = getattr(layer, "network", layer)  # what a frozen network is wrapped in
        if isinstance(inside, keras.Model):
            yield from _layers_inside(inside)
        else:
            yield layer


class TrainedTower:
    """A backbone as training runs it: `frozen` groups from the input on stand still, those above them train.

    Groups below `lowest` never train in this run; `frozen` starts there and may be raised for a while (gradual
    unfreezing). A backbone that does not train has `lowest` equal to its number of groups.
    """

    def __init__(
        self,
        backbone: ImageBackbone | TextBackbone,
        model: keras.Model,
        top: int | None = None,
        train_batch_norm: bool = False,
    ) -> None:
        self.groups = LayerGroups(backbone, model)
        number = len(self.groups)
        if top is not None and backbone.trainable and not 1 <= top <= number:
            one = ", a backbone that cannot be cut" if number == 1 else ""
            raise TrainingError(
                f"between 1 and {number} top groups of {backbone.family} to train: {', '.join(self.groups.names)}{one}",
                str(top),
                "correct the recipe's fine_tuning",
            )
        self.lowest = self.frozen = number if not backbone.trainable else number - (number if top is None else top)
        for layer in self.groups.layers(0, self.lowest) if self.lowest else ():
            layer.trainable = False
        if not train_batch_norm:
            _hold_batch_norm(self.groups.layers(0, number))

    def features(self, inputs: Any) -> Any:
        """Pixels or tokens to features (B, F), as a training step wants them."""
        return self._run(inputs, 0)

    def features_of_trunk(self, hidden: Any) -> Any:
        """What the groups below `lowest` gave, from a cache, to features (B, F)."""
        return self._run(hidden, self.lowest)

    def _run(self, value: Any, start: int) -> Any:
        mask = value["mask"] if isinstance(value, dict) and "mask" in value else None
        end = len(self.groups)
        for first, last, training in ((start, self.frozen, False), (max(start, self.frozen), end, True)):
            if first < last:
                whole = first == 0 or mask is None
                value = self.groups.section(first, last)(value if whole else [value, mask], training=training)
        return value

    def variables(self) -> list[Any]:
        """Weights and states of all groups that train at some time in this run."""
        return self.groups.variables(self.lowest, len(self.groups))

    def trainable_by_group(self) -> list[list[Any]]:
        """The trainable weights of each group from `lowest` on, input to output."""
        return [self.groups.section(n, n + 1).trainable_variables for n in range(self.lowest, len(self.groups))]


def _hold_batch_norm(layers: Iterator[keras.Layer]) -> None:
    """Batch normalisation keeps its statistics, scale and shift, and runs in inference mode also while others train."""
    for layer in layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
        elif hasattr(layer, "run_as_inference"):  # a SavedModel, whose layers are out of reach
            layer.run_as_inference = True
