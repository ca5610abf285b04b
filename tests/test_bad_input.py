"""Whatever is swapped in by mistake or damaged is refused with what was expected, what was found and what to do, and
nothing that was there before is lost."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import struct
import time
import zlib
from pathlib import Path

import pytest
from chain import Chain, Finished, Served, flip_byte, link_copy
from PIL import Image

from data.durable import directory_digests
from data.errors import BundleError
from dual_encoder.bundle import open_bundle
from serving.client import ServiceError
from serving.snapshot import current_name, open_snapshot


def assert_refused(finished: Finished, *words: str) -> None:
    """The command ended with exit code 2 and the three parts of a refusal, `words` among them."""
    assert finished.code == 2, finished
    assert re.search(r"^error: expected \S.*^ +received \S.*^ +\S", finished.errors, re.MULTILINE | re.DOTALL)
    for word in words:
        assert word in finished.errors
    assert not finished.output.removeprefix("listening on 127.0.0.1").partition("\n")[2]


def serve(chain: Chain, bundle: object, index: object) -> Finished:
    """Start a server that is expected to end by itself."""
    return chain.machine.run("serving.server", "--bundle", bundle, "--index", index, "--address", "127.0.0.1:0")


def live_snapshot(chain: Chain, index: Path) -> Path:
    return index / "snapshots" / str(current_name(index))


def assert_whole(chain: Chain, index: Path) -> None:
    """Every byte of the index is as it was published, for this model."""
    open_snapshot(index, open_bundle(chain.bundle).fingerprint).close()


def bomb(side: int = 12_000) -> bytes:
    """A PNG of some kilobytes whose pixels would take hundreds of megabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side // 8 + 1) * side))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def photograph(seed: int = 0) -> bytes:
    """A JPEG."""
    buffer = io.BytesIO()
    Image.effect_noise((200, 150), 50 + seed).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


# Wrong model, swapped or damaged files


def test_an_index_of_another_model_is_refused_and_the_advice_repairs_it(chain: Chain, tmp_path: Path):
    index = link_copy(chain.index, tmp_path / "index")
    before = directory_digests(index)
    refused = serve(chain, "default", index)
    fingerprint = open_bundle(chain.bundle).fingerprint
    assert_refused(refused, f"one of model {fingerprint}", "expected an index of model ")
    assert directory_digests(index) == before

    python, dash_m, *advice = shlex.split(refused.errors.partition("build it again: ")[2].splitlines()[0])
    assert (python, dash_m) == ("python", "-m")
    chain.machine.done(*advice)
    with chain.machine.server("default", index) as served:
        assert served.client.status().image_count == len(chain.pairs)
        assert served.client.status().model_revision != fingerprint


@pytest.mark.parametrize("swapped", ["bundle", "index", "neither exists"])
def test_a_directory_of_another_sort_is_refused(chain: Chain, swapped: str, tmp_path: Path):
    bundle, index, word = {
        "bundle": (chain.index, chain.index, "bundle.json"),
        "index": (chain.bundle, chain.bundle, "CURRENT"),
        "neither exists": (tmp_path / "absent", tmp_path / "absent", "nothing at"),
    }[swapped]
    assert_refused(serve(chain, bundle, index), word)


@pytest.mark.parametrize("file", ["index.faiss", "vectors.npy", "catalog.sqlite", "manifest.json"])
def test_a_changed_byte_in_an_index_is_refused(chain: Chain, file: str, tmp_path: Path):
    index = link_copy(chain.index, tmp_path / "index")
    flip_byte(live_snapshot(chain, index) / file)
    before = directory_digests(index)
    assert_refused(serve(chain, chain.bundle, index), file, "build the index again")
    assert directory_digests(index) == before
    assert_whole(chain, chain.index)


def test_building_again_repairs_a_damaged_index(chain: Chain, tmp_path: Path):
    index = link_copy(chain.index, tmp_path / "index")
    flip_byte(live_snapshot(chain, index) / "vectors.npy")
    chain.machine.done("serving.build_index", "--bundle", chain.bundle, "--data", chain.data, "--out", index)
    assert_whole(chain, index)


@pytest.mark.parametrize("file", ["weights.safetensors", "image_tower.onnx", "tokenizer.json", "bundle.json"])
def test_a_changed_byte_in_a_bundle_is_refused_by_every_tool_and_harms_no_index(
    chain: Chain, file: str, tmp_path: Path
):
    bundle, index = link_copy(chain.bundle, tmp_path / "model"), link_copy(chain.index, tmp_path / "index")
    flip_byte(bundle / file)
    before = directory_digests(index)
    if file == "weights.safetensors":
        refused = chain.machine.run("serving.build_index", "--bundle", bundle, "--data", chain.data, "--out", index)
    elif file == "image_tower.onnx":
        refused = chain.machine.run("dual_encoder.evaluate", "--bundle", bundle, "--data", chain.data)
    else:
        refused = serve(chain, bundle, index)
    assert_refused(refused, file, "export the bundle again")
    assert directory_digests(index) == before
    open_bundle(chain.bundle)


@pytest.mark.parametrize("word", ["drawings ", "tensorflow", "best_epoch", "sha256", "preprocessing"])
def test_a_changed_letter_in_what_a_bundle_says_of_itself_is_refused(chain: Chain, word: str, tmp_path: Path):
    bundle = link_copy(chain.bundle, tmp_path / "model")
    said = (bundle / "bundle.json").read_text()
    assert word in said
    (bundle / "bundle.json").unlink()
    (bundle / "bundle.json").write_text(said.replace(word, word[:-1] + "_", 1))
    with pytest.raises(BundleError, match=r"bundle\.json|written"):
        open_bundle(bundle)


# Data sets that hold nothing of use


def test_a_folder_without_an_image_is_refused_and_nothing_is_written(chain: Chain, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no picture")
    for module, out in (("serving.build_index", "index"), ("data.prepare", "pairs"), ("dual_encoder.train", "model")):
        how = {"serving.build_index": ("--bundle", chain.bundle), "dual_encoder.train": ("--recipe", chain.recipe)}
        said = chain.machine.run(
            module, *how.get(module, ()), "--data", f"folder:{tmp_path / 'empty'}", "--out", tmp_path / out
        )
        assert_refused(said, "images", str(tmp_path / "empty"), "received none")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


def skipped(index: Path) -> list[dict]:
    return [json.loads(line) for line in (index / "skipped.jsonl").read_text("utf-8").splitlines()]


def test_a_folder_with_only_a_text_named_jpg_is_refused_and_the_live_index_stays(chain: Chain, tmp_path: Path):
    index = link_copy(chain.index, tmp_path / "index")
    live = current_name(index)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "holiday.jpg").write_text("this is a text")
    command = ("--bundle", chain.bundle, "--data", tmp_path / "pictures", "--out", index)
    assert_refused(chain.machine.run("serving.build_index", *command), "1 unreadable", "skipped.jsonl")
    assert [(entry["image_id"], entry["reason"]) for entry in skipped(index)] == [("holiday.jpg", "not_an_image")]
    assert json.loads((index / "report.json").read_text())["snapshot"] is None
    assert current_name(index) == live
    assert_whole(chain, index)


def test_of_a_mixed_folder_the_good_image_is_indexed_and_the_others_are_listed(chain: Chain, tmp_path: Path):
    pictures, index = tmp_path / "pictures", tmp_path / "index"
    pictures.mkdir()
    (pictures / "good.jpg").write_bytes(photograph())
    (pictures / "text.jpg").write_text("this is a text")
    (pictures / "torn.jpg").write_bytes(photograph()[:2_000])
    (pictures / "empty.png").touch()
    (pictures / "bomb.png").write_bytes(bomb())
    (pictures / "dangling.png").symlink_to("absent.png")
    command = ("--bundle", chain.bundle, "--data", f"folder:{pictures}", "--out", index)
    assert "5 images were skipped" in chain.machine.done("serving.build_index", *command).errors
    reasons = {entry["image_id"]: entry["reason"] for entry in skipped(index)}
    assert reasons == {
        "text.jpg": "not_an_image",
        "torn.jpg": "damaged",
        "empty.png": "not_an_image",
        "bomb.png": "too_many_pixels",
        "dangling.png": "missing",
    }
    assert all("expected" in entry["message"] and "received" in entry["message"] for entry in skipped(index))
    snapshot = open_snapshot(index, open_bundle(chain.bundle).fingerprint)
    assert [entry.image_id for entry in snapshot.catalog] == ["good.jpg"]
    snapshot.close()


def test_training_without_captions_is_refused_and_the_model_there_stays(chain: Chain, tmp_path: Path):
    bundle = link_copy(chain.bundle, tmp_path / "model")
    before = directory_digests(bundle)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(40):
        (pictures / f"IMG_{number:04}.jpg").write_bytes(photograph(number))
    command = ("--recipe", chain.recipe, "--data", f"folder:{pictures}", "--out", bundle)
    assert_refused(chain.machine.run("dual_encoder.train", *command), "none with a caption", "add captions")
    assert directory_digests(bundle) == before


# Queries


def test_a_bomb_as_a_query_costs_neither_time_nor_memory(served: Served):
    data = bomb()
    assert len(data) < 100_000
    before = resident_bytes(served.process.pid)
    for _ in range(20):
        started = time.monotonic()
        with pytest.raises(ServiceError) as refused:
            served.client.search(image=data)
        assert time.monotonic() - started < 1
        assert (refused.value.code, refused.value.reason) == ("INVALID_ARGUMENT", "INVALID_IMAGE")
        (violation,) = refused.value.field_violations
        assert (violation.field, violation.reason) == ("query.image", "TOO_MANY_PIXELS")
        assert "12000 × 12000" in violation.description
    assert resident_bytes(served.process.pid) - before < 100_000_000
    assert served.client.search("a red apple", k=1)


def resident_bytes(pid: int) -> int:
    """The memory that a process occupies now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_text_named_jpg_as_a_query_is_refused_with_the_reason(chain: Chain, served: Served, tmp_path: Path):
    (tmp_path / "holiday.jpg").write_text("this is a text")
    address = ("--address", served.client.address)
    said = chain.machine.run("serving.client", "search-image", tmp_path / "holiday.jpg", *address)
    assert (said.code, said.output) == (2, "")
    assert "INVALID_ARGUMENT: query.image: expected a JPEG, PNG, WebP or GIF image" in said.errors
    assert "convert the file" in said.errors
    assert served.client.search("a red apple", k=1)


# Places that cannot be written to


@pytest.mark.parametrize("module", ["serving.build_index", "data.prepare", "dual_encoder.train"])
def test_a_directory_that_may_not_be_written_to_is_named(chain: Chain, module: str, tmp_path: Path):
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    shelf.chmod(0o555)
    how = {"serving.build_index": ("--bundle", chain.bundle), "dual_encoder.train": ("--recipe", chain.recipe)}
    # Root may write anywhere unless it gives that right up.
    prefix = ("setpriv", "--bounding-set=-dac_override", "--") if os.geteuid() == 0 else ()
    said = chain.machine.run(module, *how.get(module, ()), "--data", chain.data, "--out", shelf / "out", prefix=prefix)
    assert said.code == 1
    assert f"error: Permission denied: {shelf}" in said.errors
    assert "run the same command again" in said.errors
    assert "features" not in said.errors  # training finds out before its long work
    assert not list(shelf.iterdir())
    shelf.chmod(0o755)
