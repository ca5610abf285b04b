"""Weights as data: digests of arrays, and safetensors files that hold nothing else; knows no model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from data.durable import canonical_json, write_atomic
from data.errors import BundleError

_DIGEST = "sha256"  # of everything else in a file, in its metadata


def digest_weights(variables: Iterable[Any], start: bytes = b"") -> str:
    """SHA-256 over `start`, then shapes, dtypes and values, in order."""
    digest = hashlib.sha256(start)
    for variable in variables:
        array = np.asarray(variable, order="C")
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def named_weights(parts: Mapping[str, list[Any]]) -> dict[str, Any]:
    """`PART/POSITION:NAME` → variable. Keras numbers layers per process; a position depends on the config alone."""
    return {
        f"{part}/{position:04d}:{variable.name}": variable
        for part, variables in parts.items()
        for position, variable in enumerate(variables)
    }


def save_weights(path: Path, variables: Mapping[str, Any], metadata: dict[str, str] | None = None) -> None:
    """Write variables or arrays to a safetensors file, atomically; its metadata hold a digest of all the rest."""
    arrays = {name: np.asarray(variable, order="C") for name, variable in variables.items()}
    metadata = metadata or {}
    write_atomic(path, save(arrays, {**metadata, _DIGEST: _digest(arrays, metadata)}))


def weight_names(path: Path) -> list[str]:
    """The names in a safetensors file; `BundleError` when it is none."""
    try:
        with safe_open(path, framework="numpy") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise BundleError(f"a safetensors file at {path}", str(error), "write it again") from None


def read_weight(path: Path, part: str) -> np.ndarray:
    """The first weight of a part, read alone; `BundleError` when there is none."""
    name = next((name for name in weight_names(path) if name.startswith(f"{part}/")), None)
    if name is None:
        raise BundleError(f"weights with {part}", f"{path} without it", "export or import the bundle again")
    with safe_open(path, framework="numpy") as file:
        return file.get_tensor(name)


def load_weights(path: Path, variables: Mapping[str, Any], expected: Mapping[str, str] | None = None) -> dict[str, str]:
    """Assign a file's arrays to variables of the same names; returns the file's metadata.

    Names and shapes, and the `expected` part of the metadata, must agree exactly, or nothing is assigned and a
    `BundleError` names the differences. So it is when a byte has changed since `save_weights` wrote the file; a file
    that something else wrote has no digest to tell, and passes where nothing is `expected`.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise BundleError(f"a safetensors file at {path}", str(error), "write it again") from None
    digest = metadata.pop(_DIGEST, None)
    if (digest or expected) and digest != _digest(arrays, metadata):
        raise BundleError(f"{path.name} as it was written", "changed bytes", "write it again")
    problems = [
        f"{key} {metadata.get(key)!r} instead of {value!r}"
        for key, value in (expected or {}).items()
        if metadata.get(key) != value
    ]
    problems += [f"missing {name}" for name in sorted(set(variables) - set(arrays))]
    problems += [f"left over {name}" for name in sorted(set(arrays) - set(variables))]
    problems += [
        f"{name} has shape {arrays[name].shape} instead of {tuple(variable.shape)}"
        for name, variable in variables.items()
        if name in arrays and tuple(arrays[name].shape) != tuple(variable.shape)
    ]
    if problems:
        shown = "; ".join(problems[:5]) + ("; …" if len(problems) > 5 else "")
        raise BundleError(f"the weights of this model in {path.name}", shown, "use the config the weights came with")
    for name, variable in variables.items():
        variable.assign(arrays[name])
    return metadata


def _digest(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    names = sorted(arrays)
    return digest_weights((arrays[name] for name in names), canonical_json([dict(metadata), names]))
