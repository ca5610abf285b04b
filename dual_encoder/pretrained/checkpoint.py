"""The tensors of a published checkpoint, in one safetensors file or several; knows no architecture.

Only safetensors is read, which holds numbers and their names and nothing that could run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from data.errors import PretrainedError
from data.published_files import read_object

# Of a tensor of numbers that a float32 can stand for.
_DTYPES = ("F32", "F16", "BF16", "F64")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5")


class Checkpoint:
    """Names and shapes of all tensors; the numbers are read one tensor at a time."""

    def __init__(self, files: Mapping[str, Any], place: str) -> None:
        self._files, self.place = files, place
        self.shapes: dict[str, tuple[int, ...]] = {
            name: tuple(file.get_slice(name).get_shape()) for name, file in files.items()
        }

    def read(self, name: str) -> np.ndarray:
        """A tensor as float32; `PretrainedError` for other types and for what is not finite."""
        file = self._files[name]
        dtype = file.get_slice(name).get_dtype()
        if dtype not in _DTYPES:
            raise PretrainedError(f"{name} in {self.place} of type {', '.join(_DTYPES)}", dtype, _ANOTHER)
        array = np.asarray(file.get_tensor(name)).astype(np.float32)
        if not np.isfinite(array).all():
            raise PretrainedError(f"finite numbers in {name} of {self.place}", "NaN or infinity", _ANOTHER)
        return array


_ANOTHER = "download the model again, or use another"


@contextmanager
def open_checkpoint(directory: Path, name: str) -> Iterator[Checkpoint]:
    """The checkpoint `name`.safetensors of a directory, or its shards as `name`.safetensors.index.json lists them.

    `PretrainedError` where there is neither, a shard lies elsewhere, or a file is no safetensors file.
    """
    single, index = directory / f"{name}.safetensors", directory / f"{name}.safetensors.index.json"
    with ExitStack() as stack:
        if single.is_file():
            file = _open(stack, single)
            yield Checkpoint(dict.fromkeys(file.keys(), file), single.name)
        elif index.is_file():
            yield Checkpoint(_shards(stack, directory, index), index.name)
        else:
            raise _absent(directory, single.name)


def _shards(stack: ExitStack, directory: Path, index: Path) -> dict[str, Any]:
    """Tensor → the opened shard that holds it, for every tensor of every shard."""
    listed = read_object(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise PretrainedError(f"a weight_map in {index}", "none", "copy the file again")
    names = sorted({str(shard) for shard in listed.values()})
    if outside := [name for name in names if not re.fullmatch(r"[\w.-]+\.safetensors", name) or ".." in name]:
        raise PretrainedError(
            f"the names of safetensors files beside {index}", ", ".join(map(repr, outside[:3])), "do not use this model"
        )
    if absent := [name for name in names if not (directory / name).is_file()]:
        raise PretrainedError(
            f"all {len(names)} shards that {index.name} lists in {directory}",
            f"{len(absent)} missing: {', '.join(absent[:3])}",
            "download the rest of the files",
        )
    opened = {name: _open(stack, directory / name) for name in names}
    files = {tensor: file for file in opened.values() for tensor in file.keys()}  # noqa: SIM118
    if lost := sorted(tensor for tensor, shard in listed.items() if tensor not in opened[shard].keys()):  # noqa: SIM118
        raise PretrainedError(
            f"{lost[0]} in {listed[lost[0]]}, as {index.name} says",
            f"a shard without it ({len(lost)} such tensors)",
            "download the shards again",
        )
    return files


def _open(stack: ExitStack, path: Path) -> Any:
    try:
        return stack.enter_context(safe_open(path, framework="numpy"))
    except (SafetensorError, OSError, MemoryError) as error:
        raise PretrainedError(f"a safetensors file at {path}", str(error)[:200], "download it again") from None


def _absent(directory: Path, name: str) -> PretrainedError:
    others = sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern))
    if others:
        return PretrainedError(
            f"{name} in {directory}",
            f"only {', '.join(others[:3])}, whose format can run code when it is read",
            "download the safetensors file, or convert it on a machine you can lose: "
            "transformers' save_pretrained writes safetensors",
        )
    return PretrainedError(f"{name} or {name}.index.json in {directory}", "neither", "download the model's weights")
