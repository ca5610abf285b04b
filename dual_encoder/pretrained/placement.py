"""Puts the tensors of a checkpoint into the variables of a Keras model; knows no architecture and no file format.

Names, shapes and completeness are settled before anything is read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.errors import PretrainedError
from dual_encoder.pretrained.checkpoint import Checkpoint


@dataclass(frozen=True)
class Source:
    """Where a variable's numbers are: a tensor, or the `part`-th of `parts` equal parts of its first axis.

    `as_kernel` says that a matrix is stored as (in, out), like a Keras kernel; PyTorch's linear layers have (out, in).
    `shape` is what the tensor must have, where it is not what the variable asks for.
    """

    tensor: str
    part: int = 0
    parts: int = 1
    as_kernel: bool = False
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Module:
    """The two tensors of a layer with weight and bias, or the same part of both."""

    weight: str
    bias: str
    part: int = 0
    parts: int = 1

    @classmethod
    def of(cls, name: str) -> Module:
        """PyTorch's usual names."""
        return cls(f"{name}.weight", f"{name}.bias")

    def sources(self, path: str) -> dict[str, Source]:
        """By the paths of the variables of a Keras layer at `path`: a normalisation, or a layer with a kernel."""
        names = ("gamma", "beta") if "norm" in path.rsplit("/", 1)[-1] else ("kernel", "bias")
        weight, bias = (f"{path}/{name}" for name in names)
        return {weight: Source(self.weight, self.part, self.parts), bias: Source(self.bias, self.part, self.parts)}


def layer_sources(count: int, paths: str, modules: Mapping[str, Module]) -> dict[str, Source]:
    """Sources of `count` equal layers; `paths` and the names in `modules` have `{n}` for the layer's number."""
    found: dict[str, Source] = {}
    for n in range(count):
        for path, module in modules.items():
            one = Module(module.weight.format(n=n), module.bias.format(n=n), module.part, module.parts)
            found |= one.sources(f"{paths.format(n=n)}/{path}")
    return found


# Variables that are computed, not learned.
COMPUTED = ("position_ids",)


def place(
    checkpoint: Checkpoint,
    variables: Mapping[str, Mapping[str, Any]],
    sources: Mapping[str, Mapping[str, Source]],
    unused: Collection[str] = (),
) -> None:
    """Assign every variable of every part; `variables` and `sources` are by part, then by path.

    Every variable must have a tensor of the right shape, and every tensor must be used or end in one of `unused`, or a
    `PretrainedError` names what is missing, left over or of another shape, and nothing is assigned.
    """
    wanted = {
        (part, path): variable
        for part, paths in variables.items()
        for path, variable in paths.items()
        if not path.endswith(COMPUTED)
    }
    known = {(part, path): source for part, paths in sources.items() for path, source in paths.items()}
    assert wanted.keys() == known.keys(), sorted(map(str, wanted.keys() ^ known.keys()))
    shapes = {source.tensor: _stored_shape(source, tuple(wanted[key].shape), key[1]) for key, source in known.items()}
    check_tensors(checkpoint, shapes, unused)
    for key, source in known.items():
        wanted[key].assign(_array(checkpoint.read(source.tensor), source, tuple(wanted[key].shape), key[1]))


def check_tensors(checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]], unused: Collection[str]) -> None:
    """Refuse a checkpoint whose tensors are not exactly those in `shapes`, beside ones that end in `unused`."""
    left_over = [name for name in checkpoint.shapes.keys() - shapes.keys() if not name.endswith(tuple(unused))]
    misshapen = [
        f"{name} {checkpoint.shapes[name]} instead of {shape}"
        for name, shape in sorted(shapes.items())
        if checkpoint.shapes.get(name, shape) != shape
    ]
    problems = {
        "missing": sorted(shapes.keys() - checkpoint.shapes.keys()),
        "left over": sorted(left_over),
        "of another shape": misshapen,
    }
    if any(problems.values()):
        raise PretrainedError(
            f"in {checkpoint.place} the {len(shapes)} tensors that the config asks for, and no other",
            "; ".join(f"{len(names)} {kind}: {_shown(names)}" for kind, names in problems.items() if names),
            "use the config that the weights came with",
        )


def _shown(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _stored_shape(source: Source, shape: tuple[int, ...], path: str) -> tuple[int, ...]:
    """The shape of the tensor that a variable of `shape` comes from."""
    if source.shape is not None:
        return source.shape
    if path.endswith("kernel") and len(shape) == 4:  # a convolution
        stored: tuple[int, ...] = (shape[3], shape[2], shape[0], shape[1])
    elif path.endswith("kernel"):
        inputs = 2 if "attention_output" in path else 1  # axes of heads come before or after
        matrix = int(np.prod(shape[:inputs])), int(np.prod(shape[inputs:]))
        stored = matrix if source.as_kernel else matrix[::-1]
    elif path.endswith("bias"):
        stored = (int(np.prod(shape)),)
    else:
        stored = shape
    return (stored[0] * source.parts, *stored[1:]) if stored else stored


def _array(tensor: np.ndarray, source: Source, shape: tuple[int, ...], path: str) -> np.ndarray:
    """A stored tensor as the variable has it."""
    if source.parts > 1:
        tensor = np.split(tensor, source.parts)[source.part]
    if tensor.ndim == 4:
        tensor = tensor.transpose(2, 3, 1, 0)
    elif path.endswith("kernel") and not source.as_kernel:
        tensor = tensor.T
    return tensor.reshape(shape)
