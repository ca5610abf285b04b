"""A published CLIP with random weights goes all the way: imported, evaluated, trained, exported, indexed, served."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf
from chain import Machine
from parity_inputs import write_published
from shapes import write_shapes

from data.errors import TrainingError
from dual_encoder import evaluate, export, import_model, train
from dual_encoder.bundle import open_bundle
from dual_encoder.bundle_model import load_model
from dual_encoder.runtime import Runtime
from serving import build_index

TEXTS = ["a red circle", "square, painted blue"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("imported")


@pytest.fixture(scope="module")
def data(home):
    return write_shapes(home / "shapes")


@pytest.fixture(scope="module")
def imported(home):
    published = write_published("clip", home / "clip")
    assert import_model.main(["--from", str(published), "--out", str(home / "imported"), "--name", "tiny"]) == 0
    return home / "imported"


@pytest.fixture(scope="module")
def trained(home, imported, data):
    """One epoch of the heads, as `--start` does by itself."""
    out = home / "trained"
    assert train.main(["--start", str(imported), "--data", data, "--epochs", "1", "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_the_bundle_says_what_it_is(imported):
    bundle = open_bundle(imported)
    assert bundle.manifest["trained"]["imported"]["architecture"] == "CLIPModel"
    assert {"image_tower.onnx", "text_tower.onnx", "tokenizer.json"} <= bundle.manifest["files"].keys()
    assert "nothing was trained here" in (imported / "README.md").read_text()


@pytest.mark.slow
def test_it_is_evaluated_like_any_other(home, imported, data):
    report = home / "report.json"
    assert evaluate.main(["--bundle", str(imported), "--data", data, "--json", str(report)]) == 0
    figures = json.loads(report.read_text())
    assert figures["text_to_image"]["queries"] == 24
    assert figures["bundle"]["name"] == "tiny"


@pytest.mark.slow
def test_training_starts_from_its_weights_and_changes_the_heads_alone(imported, trained):
    before, after = (load_model(open_bundle(path)).parts() for path in (imported, trained))
    for part in ("image_backbone", "text_backbone"):
        for ours, theirs in zip(before[part], after[part], strict=True):
            np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    for part in ("image_head", "text_head"):
        (ours,), (theirs,) = (np.asarray(before[part]), np.asarray(after[part]))
        assert 0 < np.abs(ours - theirs).max() < 0.01, part
    assert float(after["log_scale"][0]) == pytest.approx(float(before["log_scale"][0]), abs=0.01)
    start = open_bundle(imported)
    told = open_bundle(trained).manifest["trained"]
    assert told["recipe"]["start"]["from"] == start.fingerprint
    assert f"the bundle tiny, fingerprint {start.fingerprint[:12]}" in (trained / "README.md").read_text()
    assert open_bundle(trained).tokenizer().to_json() == start.tokenizer().to_json()


@pytest.mark.slow
def test_a_recipe_that_trains_towers_fine_tunes_the_top_of_its_own(home, imported, data):
    out = home / "fine_tuned"
    command = ["--start", str(imported), "--recipe", "finetune", "--data", data, "--out", str(out)]
    assert train.main([*command, "--epochs", "1", "--batch-size", "30"]) == 0
    before, after = (load_model(open_bundle(path)) for path in (imported, out))
    changed = {
        ours.path.split("/")[0]
        for ours, theirs in zip(before.image_backbone.weights, after.image_backbone.weights, strict=True)
        if not np.array_equal(np.asarray(ours), np.asarray(theirs))
    }
    assert changed == {"encoder_block_1", "encoder_block_2", "layer_norm"}
    for ours, theirs in zip(before.text_backbone.weights, after.text_backbone.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.slow
def test_the_same_directory_for_start_and_result_is_refused(imported, data):
    with pytest.raises(TrainingError, match="another directory for --out"):
        train.main(["--start", str(imported), "--data", data, "--out", str(imported)])


@pytest.mark.slow
def test_it_is_exported_with_its_tokeniser_beside_it(home, trained):
    out = home / "saved_model"
    assert export.main(["--bundle", str(trained), "--out", str(out)]) == 0
    runtime = Runtime.load(trained)
    assert (out / "assets.extra" / "tokenizer.json").read_text() == runtime.tokenizer.to_json()
    tokens = runtime.tokenizer.encode(TEXTS)
    signature = tf.saved_model.load(str(out)).signatures["embed_tokens"]
    found = signature(ids=tf.constant(tokens.ids), mask=tf.constant(tokens.mask))["embeddings"]
    np.testing.assert_allclose(found, runtime.embed_texts(TEXTS), atol=1e-4)


@pytest.mark.slow
def test_it_is_indexed_served_and_queried(home, trained, data):
    index = home / "index"
    assert build_index.main(["--bundle", str(trained), "--data", data, "--out", str(index)]) == 0
    runtime = Runtime.load(trained)
    with Machine.at(home / "machine").server(trained, index) as served:
        for text, embedding in zip(TEXTS, runtime.embed_texts(TEXTS), strict=True):
            np.testing.assert_allclose(served.client.embed_texts([text])[0], embedding, atol=1e-5)
            hits = served.client.search(text, k=3)
            assert [hit.rank for hit in hits] == [1, 2, 3]
            assert hits[0].score >= hits[1].score >= hits[2].score
            image = (home / "shapes" / hits[0].image_id).read_bytes()
            assert hits[0].score == pytest.approx(float(runtime.embed_images([image])[0] @ embedding), abs=1e-4)
