"""Makes requests that no client would: any message of a type with fields at and beyond their limits, and bytes that are
almost one; knows no service."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

DEEPEST = 4

INTEGERS = (0, 1, -1, 2, 10, 1_000, 1_001, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63))
REALS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-300, 1e300, float("nan"), float("inf"), float("-inf"))
TEXTS = (
    *("", " ", "a red one", "\x00", "\u202e<script>", "🚲" * 50, "x" * 1_024, "é" * 10_001),
    *("'; DROP TABLE images; --", "..", "/etc/passwd"),
)
BYTES = (b"", b"x", b"\x89PNG\r\n\x1a\n" + bytes(64), b"GIF89a" + b"\xff" * 16, b"\xff\xd8\xff\xe0" + bytes(200))


class MessageFuzzer:
    """Draws messages from `seeded`; `words` are texts that mean something to the service, such as ids and filters."""

    def __init__(self, seeded: random.Random, words: tuple[str, ...], data: tuple[bytes, ...]) -> None:
        self._random = seeded
        self._texts, self._bytes = TEXTS + 2 * words, BYTES + data

    def request(self, descriptor: Descriptor) -> bytes:
        """The bytes of a request of this type: a message, or one with some bytes changed."""
        data = self.message(descriptor).SerializePartialToString()
        return data if self._random.random() < 0.7 else self._changed(data)

    def message(self, descriptor: Descriptor, depth: int = 0) -> Message:
        """A message with some of its fields set."""
        message = GetMessageClass(descriptor)()
        for field in descriptor.fields:
            if self._random.random() < (0.6 if depth < DEEPEST else 0.1):
                self._set(message, field, depth)
        return message

    def _set(self, message: Message, field: FieldDescriptor, depth: int) -> None:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key, value = field.message_type.fields
            for _ in range(self._random.choice((1, 1, 3, 101))):
                held = getattr(message, field.name)
                if value.message_type is None:
                    held[self._scalar(key)] = self._scalar(value)
                elif depth < DEEPEST:
                    held[self._scalar(key)].CopyFrom(self.message(value.message_type, depth + 1))
        elif field.is_repeated:
            made = [self._value(field, depth) for _ in range(self._random.choice((1, 1, 2, 8, 70)))]
            getattr(message, field.name).extend(made)
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(self._value(field, depth))
        else:
            setattr(message, field.name, self._value(field, depth))

    def _value(self, field: FieldDescriptor, depth: int) -> Any:
        if field.message_type is None:
            return self._scalar(field)
        deeper = depth + 1 if depth < DEEPEST else DEEPEST
        return (
            GetMessageClass(field.message_type)() if depth >= 3 * DEEPEST else self.message(field.message_type, deeper)
        )

    def _scalar(self, field: FieldDescriptor) -> Any:
        drawn: dict[int, Callable[[], Any]] = {
            FieldDescriptor.CPPTYPE_BOOL: lambda: self._random.random() < 0.5,
            FieldDescriptor.CPPTYPE_STRING: lambda: self._random.choice(
                self._texts if field.type == FieldDescriptor.TYPE_STRING else self._bytes
            ),
            FieldDescriptor.CPPTYPE_DOUBLE: lambda: self._random.choice(REALS),
            FieldDescriptor.CPPTYPE_FLOAT: lambda: self._random.choice(REALS),
            FieldDescriptor.CPPTYPE_ENUM: lambda: self._random.choice((0, 1, 2, 99)),
            FieldDescriptor.CPPTYPE_INT32: lambda: self._integer(-(2**31), 2**31),
            FieldDescriptor.CPPTYPE_UINT32: lambda: self._integer(0, 2**32),
            FieldDescriptor.CPPTYPE_INT64: lambda: self._integer(-(2**63), 2**63),
            FieldDescriptor.CPPTYPE_UINT64: lambda: self._integer(0, 2**64),
        }
        return drawn[field.cpp_type]()

    def _integer(self, low: int, high: int) -> int:
        return self._random.choice([number for number in INTEGERS if low <= number < high])

    def _changed(self, data: bytes) -> bytes:
        """With a few bytes flipped, cut off, doubled, or with a length that lies."""
        changed = bytearray(data or b"\x0a")
        for _ in range(self._random.choice((1, 1, 2, 5))):
            place = self._random.randrange(len(changed))
            match self._random.randrange(5):
                case 0:
                    changed[place] ^= 1 << self._random.randrange(8)
                case 1:
                    del changed[place:]
                case 2:
                    changed[place:place] = changed[place : place + 16]
                case 3:
                    changed[place:place] = b"\x0a\xff\xff\xff\xff\x07"
                case 4:
                    changed[place:place] = struct.pack("<Q", self._random.getrandbits(64))
            changed = changed or bytearray(b"\x00")
        return bytes(changed)
