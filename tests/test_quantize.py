"""A text tower in int8 is published only where it is as good and faster; the bundle stays the same model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from chain import Chain

from data.errors import BundleError, SourceError
from data.pairs import ImageBytes, ImageTextPair
from dual_encoder import int8_graph, quantize
from dual_encoder.bundle import open_bundle, with_quantised
from dual_encoder.onnx_export import HEAD_PREFIX
from dual_encoder.runtime import Runtime


def figures(loss: float = 0.0, gain: float = 1.5) -> dict[str, Any]:
    recall = {"text_to_image": 0.6, "image_to_text": 0.5}
    return {
        "recall@10": {"float32": recall, "int8": {name: value - loss for name, value in recall.items()}},
        "speed": {"1": 1.5, "32": gain},
    }


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (figures(), ""),
        (figures(loss=0.0049), ""),
        (figures(loss=-0.1), ""),
        (figures(loss=0.0051), "falls by 0.51 points"),
        (figures(gain=1.05), "1.05 times as fast at batch 32"),
        (figures(loss=float("nan")), "falls by nan"),
    ],
)
def test_the_gate_lets_pass_what_is_as_good_and_faster(found: dict[str, Any], reason: str) -> None:
    assert reason in quantize.refusal(found)
    assert bool(reason) == bool(quantize.refusal(found))


@pytest.fixture
def bundle(chain: Chain, tmp_path: Path) -> Path:
    return Path(shutil.copytree(chain.bundle, tmp_path / "model"))


@pytest.mark.slow
def test_int8_runs_from_then_on_and_the_fingerprint_stays(
    bundle: Path, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "LEAST_GAIN", 0.0)  # a busy machine is no defect
    monkeypatch.setattr(quantize, "FEWEST", 1)  # and one image of these few is more than the gate allows
    monkeypatch.setattr(quantize, "LARGEST_LOSS", 1.0)
    before = Runtime.load(bundle)
    assert quantize.main(["--bundle", str(bundle), "--data", f"prepared:{chain.data}"]) == 0
    after, full = Runtime.load(bundle), Runtime.load(bundle, engine="onnxruntime")
    assert after.fingerprint == before.fingerprint
    assert open_bundle(bundle).manifest["quantised"]["text_tower"]["captions"] > 0
    texts = ["a red bicycle", "dog", "a very long caption of a small house with a garden behind a wall"]
    np.testing.assert_array_equal(full.embed_texts(texts), before.embed_texts(texts))
    cosines = (after.embed_texts(texts) * before.embed_texts(texts)).sum(axis=1)
    assert (cosines > 0.98).all()
    assert (cosines < 0.999999).any()
    alone = np.concatenate([after.embed_texts([text]) for text in texts])
    np.testing.assert_allclose(alone, after.embed_texts(texts), atol=1e-5)
    assert open_bundle(bundle).engine_file("image_tower") == bundle / "image_tower.onnx"


@pytest.mark.slow
def test_what_does_not_pass_leaves_the_bundle_as_it_was(
    bundle: Path, chain: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quantize, "FEWEST", 1)
    monkeypatch.setattr(quantize, "LARGEST_LOSS", 1.0)
    monkeypatch.setattr(quantize, "LEAST_GAIN", 1000.0)
    before = {path.name: path.read_bytes() for path in bundle.iterdir() if path.is_file()}
    assert quantize.main(["--bundle", str(bundle), "--data", f"prepared:{chain.data}"]) == 1
    assert "not published: it is only" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in bundle.iterdir() if path.is_file()} == before


@pytest.mark.slow
def test_a_bundle_of_an_earlier_version_whose_graph_names_its_operations_twice_is_quantised(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_bundle(bundle)
    graph = onnx.load(bundle / "text_tower.onnx")
    graph.opset_import.extend(list(graph.opset_import))
    onnx.save(graph, bundle / "text_tower.onnx")
    monkeypatch.setattr(int8_graph, "MOST_ROWS", 64)
    found = quantize.fitted(opened, ["a red bicycle", "a dog in a garden"] * 8).graph()
    assert "MatMulIntegerToFloat" in {node.op_type for node in found.graph.node}
    head = {node.op_type for node in found.graph.node if node.name.startswith(HEAD_PREFIX)}
    assert "MatMul" in head, "the head stays in float32"
    assert "MatMulIntegerToFloat" not in head


def test_scales_are_fitted_to_the_train_split_unless_it_has_few_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    def pair(number: int, split: str) -> ImageTextPair:
        caption, digest = f"{split} {number}", f"{number:064x}"
        return ImageTextPair(str(number), ImageBytes(bytes), (caption,), split=split, digest=digest)

    pairs = [pair(number, "validation" if number % 3 else "train") for number in range(30)]
    measured = [each for each in pairs if each.split == "validation"]
    monkeypatch.setattr(quantize, "CALIBRATION", 8)
    chosen = quantize.calibration_captions(pairs, measured)
    assert len(set(chosen)) == 8
    assert all(caption.startswith("train") for caption in chosen)
    monkeypatch.setattr(quantize, "CALIBRATION", 15)
    assert all(caption.startswith("validation") for caption in quantize.calibration_captions(pairs, measured))


def test_too_few_images_to_judge_by_are_refused(bundle: Path, chain: Chain) -> None:
    with pytest.raises(SourceError, match="at least 200 images"):
        quantize.main(["--bundle", str(bundle), "--data", f"prepared:{chain.data}"])


def test_a_changed_byte_of_the_int8_graph_is_refused(bundle: Path) -> None:
    with_quantised(open_bundle(bundle), "text_tower", b"a graph", {})
    (bundle / "text_tower.int8.onnx").write_bytes(b"another")
    with pytest.raises(BundleError, match="int8"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("losses", "gains", "shares"),
    [
        ((0.0,), (2.0,), [0.0]),
        ((0.0067, 0.0022), (2.0, 1.8), [0.0, 0.0625]),
        ((0.0067, 0.0067), (2.0, 1.05), [0.0, 0.0625]),
        ((0.0067,) * 5, (2.0,) * 5, [0.0, 0.0625, 0.125, 0.25, 0.5]),
    ],
    ids=["the first passes", "more in float32 passes", "too slow to go on", "none passes"],
)
def test_where_recall_falls_too_far_products_go_back_to_float32_while_speed_is_left(
    monkeypatch: pytest.MonkeyPatch, losses: tuple[float, ...], gains: tuple[float, ...], shares: list[float]
) -> None:
    asked: list[float] = []

    class Fit:
        def graph(self, share: float) -> onnx.ModelProto:
            asked.append(share)
            return onnx.ModelProto(producer_name=f"{share}")

    found = iter([figures(loss, gain) for loss, gain in zip(losses, gains, strict=True)])
    monkeypatch.setattr(quantize, "fitted", lambda bundle, captions: Fit())
    monkeypatch.setattr(quantize, "measure", lambda bundle, graph, pairs: next(found))
    told: list[float] = []
    graph, last = quantize.chosen(None, [], [], lambda each: told.append(each["weights_in_float32"]))
    assert asked == told == shares
    assert onnx.ModelProto.FromString(graph).producer_name == f"{last['weights_in_float32']}" == f"{shares[-1]}"
