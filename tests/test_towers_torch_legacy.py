import os
import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import UserError
from dual_encoder.towers.torch_legacy import FORMAT_VERSION, MAGIC, read_tensors

VALUES = np.arange(12, dtype="<f4")
PLATFORM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}

# Hand-written pickles, so that the test needs no PyTorch and can lie in every field.
TENSOR = (
    b"(ctorch._utils\n_rebuild_tensor_v2\n"
    b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x00%(key)s"
    b"X\x03\x00\x00\x00cpuM%(count)sNtQ"
    b"K%(offset)s(%(shape)st(%(strides)st\x89ccollections\nOrderedDict\n)RtR"
)


def tensor_pickle(count=12, offset=0, shape=(3, 4), strides=(4, 1)):
    fields = {
        b"key": b"0",
        b"count": struct.pack("<H", count),
        b"offset": bytes([offset]),
        b"shape": b"".join(b"K" + bytes([size]) for size in shape),
        b"strides": b"".join(b"K" + bytes([size]) for size in strides),
    }
    call = TENSOR.removeprefix(b"(")
    for name, value in fields.items():
        call = call.replace(b"%(" + name + b")s", value)
    return b"\x80\x02ccollections\nOrderedDict\n)R(X\x06\x00\x00\x00weight" + call + b"u."


def checkpoint(tensors=None, keys=None, storage=None, magic=MAGIC, version=FORMAT_VERSION, platform=PLATFORM):
    parts = [pickle.dumps(magic, 2), pickle.dumps(version, 2), pickle.dumps(platform, 2)]
    parts.append(tensor_pickle() if tensors is None else tensors)
    parts.append(pickle.dumps(["0"] if keys is None else keys, 2))
    parts.append(struct.pack("<q", 12) + VALUES.tobytes() if storage is None else storage)
    return b"".join(parts)


@pytest.fixture
def read(tmp_path):
    def read(content):
        path = tmp_path / "weights.pth"
        path.write_bytes(content)
        return read_tensors(path)

    return read


def test_tensors_come_back_with_their_shape_offset_and_strides(read):
    assert list(read(checkpoint())) == ["weight"]
    np.testing.assert_array_equal(read(checkpoint())["weight"], VALUES.reshape(3, 4))
    transposed = read(checkpoint(tensor_pickle(shape=(4, 3), strides=(1, 4))))["weight"]
    np.testing.assert_array_equal(transposed, VALUES.reshape(3, 4).T)
    part = read(checkpoint(tensor_pickle(offset=5, shape=(2,), strides=(3,))))["weight"]
    np.testing.assert_array_equal(part, VALUES[[5, 8]])


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("place", ["magic", "platform", "tensors", "keys"])
def test_a_malicious_pickle_is_refused_and_executes_nothing(read, tmp_path, place, protocol):
    target = tmp_path / "executed"
    attack = pickle.dumps(OrderedDict(weight=Malicious(target)), protocol)
    pickle.loads(attack)  # the attack works where nothing guards against it
    target.rmdir()
    content = {
        "magic": attack + checkpoint(),
        "platform": pickle.dumps(MAGIC, 2) + pickle.dumps(FORMAT_VERSION, 2) + attack,
        "tensors": checkpoint(attack),
        "keys": pickle.dumps(MAGIC, 2)
        + pickle.dumps(FORMAT_VERSION, 2)
        + pickle.dumps(PLATFORM, 2)
        + tensor_pickle()
        + attack,
    }[place]
    with pytest.raises(UserError, match="PyTorch checkpoint in the legacy format"):
        read(content)
    assert not target.exists()


def test_a_forbidden_name_is_shown(read):
    with pytest.raises(UserError, match="reference to 'os.system'"):
        read(checkpoint(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R."))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"PK\x03\x04 a zip checkpoint", id="zip"),
        pytest.param(checkpoint(magic=1), id="magic"),
        pytest.param(checkpoint(version=2), id="version"),
        pytest.param(checkpoint(platform={"little_endian": False}), id="big-endian"),
        pytest.param(checkpoint(platform=[]), id="platform"),
        pytest.param(checkpoint(pickle.dumps([1], 2)), id="no-dictionary"),
        pytest.param(checkpoint(pickle.dumps({"weight": 1}, 2)), id="no-tensor"),
        pytest.param(checkpoint(tensor_pickle(offset=1)), id="past-the-storage"),
        pytest.param(checkpoint(tensor_pickle(shape=(255, 255), strides=(0, 0))), id="more-elements-than-stored"),
        pytest.param(checkpoint(tensor_pickle(shape=(3, 4), strides=(4,))), id="strides"),
        pytest.param(checkpoint(tensor_pickle(shape=(0, 4), strides=(4, 1))), id="no-elements"),
        pytest.param(checkpoint(tensor_pickle(count=65535)), id="count"),
        pytest.param(checkpoint(storage=struct.pack("<q", 2**62)), id="huge-storage"),
        pytest.param(checkpoint(storage=struct.pack("<q", -1)), id="negative-storage"),
        pytest.param(checkpoint(keys=["0", "0"]), id="storage-twice"),
        pytest.param(checkpoint(keys=["1"]), id="unknown-storage"),
        pytest.param(checkpoint(keys=[["0"]]), id="unhashable-storage"),
        pytest.param(checkpoint() + b"x", id="trailing-bytes"),
        pytest.param(checkpoint()[:-1], id="truncated"),
        pytest.param(b"\x80\x02X\xff\xff\xff\xffabc", id="length-of-4-GB"),
        pytest.param(b"\x80\x02" + b"K\x01" * 1_100_000 + b".", id="too-many-opcodes"),
        pytest.param(b"\x80\x02r\xff\xff\xff\xff.", id="memo-of-an-empty-stack"),
    ],
)
def test_hostile_and_damaged_files_are_refused(read, content):
    with pytest.raises(UserError, match="PyTorch checkpoint in the legacy format"):
        read(content)


@given(position=st.integers(0, len(checkpoint()) - 1), byte=st.integers(0, 255))
def test_any_changed_byte_gives_tensors_or_a_refusal(tmp_path_factory, position, byte):
    content = bytearray(checkpoint())
    content[position] = byte
    path = tmp_path_factory.mktemp("changed") / "weights.pth"
    path.write_bytes(content)
    try:
        tensors = read_tensors(path)
    except UserError:
        return
    assert all(tensor.size <= len(VALUES) for tensor in tensors.values())
