"""Weight files hold arrays bit by bit, fit one model only, and change nothing when they do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from data.errors import BundleError
from dual_encoder.weights import digest_weights, load_weights, named_weights, save_weights


class Slot:
    """Takes an array as a variable does."""

    def __init__(self, *shape: int) -> None:
        self.shape, self.value, self.name = shape, None, "slot"

    def assign(self, array: np.ndarray) -> None:
        self.value = array


def arrays() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        "matrix": generator.normal(size=(3, 5)).astype(np.float32),
        "transposed": generator.normal(size=(4, 2)).astype(np.float32).T,
        "scalar": np.float32(2.5),
        "generator_state": np.array([1, 2**32 - 1], np.uint32),
        "steps": np.array(2**40, np.int64),
        "odd": np.array([np.nan, -0.0, np.inf, 1e-45], np.float32),
    }


def slots() -> dict[str, Slot]:
    return {name: Slot(*np.shape(array)) for name, array in arrays().items()}


def test_every_bit_comes_back_with_the_metadata(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(path, arrays(), {"run": "abc", "note": "é"})
    loaded = slots()
    assert load_weights(path, loaded) == {"run": "abc", "note": "é"}
    for name, array in arrays().items():
        assert loaded[name].value.dtype == np.asarray(array).dtype
        assert loaded[name].value.tobytes() == np.asarray(array, order="C").tobytes(), name


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda model: model.pop("odd"), "left over odd"),
        (lambda model: model.update(extra=Slot(1)), "missing extra"),
        (lambda model: model.update(matrix=Slot(5, 3)), r"matrix has shape \(3, 5\) instead of \(5, 3\)"),
    ],
)
def test_a_file_of_another_model_is_refused_and_nothing_is_assigned(tmp_path: Path, change, named: str) -> None:
    save_weights(tmp_path / "w.safetensors", arrays())
    model = slots()
    change(model)
    with pytest.raises(BundleError, match=named):
        load_weights(tmp_path / "w.safetensors", model)
    assert all(slot.value is None for slot in model.values())


def test_metadata_that_must_agree_is_checked_before_anything_is_assigned(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", arrays(), {"run": "one"})
    model = slots()
    with pytest.raises(BundleError, match="run 'one' instead of 'two'"):
        load_weights(tmp_path / "w.safetensors", model, expected={"run": "two"})
    assert all(slot.value is None for slot in model.values())
    load_weights(tmp_path / "w.safetensors", model, expected={"run": "one"})
    assert all(slot.value is not None for slot in model.values())


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:20], lambda data: b"", lambda data: b"{"]
)
def test_a_cut_file_is_refused(tmp_path: Path, damage) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, arrays())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BundleError, match=r"a safetensors file at .*w\.safetensors"):
        load_weights(path, slots())


def test_any_changed_byte_of_a_file_that_must_be_of_this_run_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, arrays(), {"run": "one", "progress": '{"epoch": 3}'})
    whole = path.read_bytes()
    for place in range(len(whole)):
        for flip in (1, 0x20):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            with pytest.raises(BundleError):
                load_weights(path, slots(), expected={"run": "one"})
    path.write_bytes(whole)
    load_weights(path, slots(), expected={"run": "one"})


def test_a_file_of_others_has_no_digest_and_is_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"odd": arrays()["odd"]}, path)
    assert load_weights(path, {"odd": Slot(4)}) == {}
    with pytest.raises(BundleError, match="changed bytes"):
        load_weights(path, {"odd": Slot(4)}, expected={"run": "one"})


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        load_weights(tmp_path / "none.safetensors", slots())


def test_a_digest_hears_values_shapes_types_and_order() -> None:
    one, two = np.arange(6, dtype=np.float32), np.ones(2, np.float32)
    digests = [
        digest_weights([one, two]),
        digest_weights([two, one]),
        digest_weights([one.reshape(2, 3), two]),
        digest_weights([one.astype(np.float64), two]),
        digest_weights([np.nextafter(one, 9), two]),
        digest_weights([one]),
    ]
    assert len(set(digests)) == len(digests)
    assert digest_weights([one.copy(), two.copy()]) == digests[0]
    assert digest_weights([one.reshape(2, 3).T]) != digest_weights([one.reshape(2, 3)])


def test_names_tell_part_position_and_weight() -> None:
    assert list(named_weights({"head": [Slot(1), Slot(2)], "scale": [Slot()]})) == [
        "head/0000:slot",
        "head/0001:slot",
        "scale/0000:slot",
    ]
