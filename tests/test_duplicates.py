"""The list of duplicates names copies by digest and pictures by their look, and nothing that only resembles another."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from fakes import ColourRuntime, ListSource
from PIL import Image, ImageFilter

import dual_encoder.runtime
from data.sources import open_source
from serving import build_index, index_job
from serving.duplicates import DuplicateCounts, report_duplicates
from serving.index_job import BuildSettings

SETTINGS = BuildSettings(shard_size=10)


def scene(seed: int) -> Image.Image:
    """A picture with shapes of its own."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC)


def save(image: Image.Image, path: Path, **options: object) -> None:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG" if path.suffix == ".jpg" else "PNG", **options)
    path.write_bytes(buffer.getvalue())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(12):
        save(scene(seed), folder / f"scene-{seed:02}.png")
    (folder / "a copy.png").write_bytes((folder / "scene-03.png").read_bytes())
    (folder / "b copy.png").write_bytes((folder / "scene-03.png").read_bytes())
    save(scene(5).filter(ImageFilter.GaussianBlur(0.5)).resize((120, 90)), folder / "saved again.jpg", quality=80)
    save(scene(7).transpose(Image.Transpose.FLIP_LEFT_RIGHT), folder / "mirrored.png")
    return folder


def found(index: Path) -> dict:
    return json.loads((index / "duplicates.json").read_text("utf-8"))


def test_copies_and_pictures_saved_again_are_listed_and_nothing_else(photos: Path, tmp_path: Path):
    index_job.build_index(ColourRuntime(), open_source(f"folder:{photos}"), tmp_path / "index", SETTINGS)
    counts = report_duplicates(tmp_path / "index")
    assert counts == DuplicateCounts(groups=1, copies=2, near=2)
    said = found(tmp_path / "index")
    assert said["counts"] == {"groups": 1, "copies": 2, "near": 2}
    (group,) = said["exact"]
    assert group["image_ids"] == ["a copy.png", "b copy.png", "scene-03.png"]
    near = {(pair["one"], pair["other"]): pair for pair in said["near"]}
    assert set(near) == {("saved again.jpg", "scene-05.png"), ("mirrored.png", "scene-07.png")}
    assert near["mirrored.png", "scene-07.png"]["mirrored"]
    assert not near["saved again.jpg", "scene-05.png"]["mirrored"]
    assert all(pair["likeness"] > 0.9 and pair["cosine"] > 0.9 for pair in said["near"])


def test_where_pictures_are_not_at_hand_only_certain_embeddings_count(photos: Path, tmp_path: Path):
    index_job.build_index(ColourRuntime(), open_source(f"folder:{photos}"), tmp_path / "index", SETTINGS)
    for file in photos.iterdir():
        file.unlink()
    report_duplicates(tmp_path / "index")
    said = found(tmp_path / "index")
    assert len(said["exact"]) == 1
    assert said["near"]
    assert all(pair["likeness"] is None and pair["cosine"] >= 0.98 for pair in said["near"])


def test_an_index_without_duplicates_says_so_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(dual_encoder.runtime.Runtime, "load", lambda *_, **__: ColourRuntime())
    monkeypatch.setattr(build_index, "open_source", lambda _: ListSource(ListSource().pairs[:3]))
    options = ["--bundle", "x", "--data", "x", "--out", str(tmp_path / "index"), "--report-duplicates"]
    assert build_index.main(options) == 0
    assert "0 images have the bytes of another, 0 pairs are of the same picture" in capsys.readouterr().err
    said = found(tmp_path / "index")
    assert (said["exact"], said["near"]) == ([], [])
