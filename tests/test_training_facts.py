"""Facts are those of the data and the machine, and a run goes on with the recipe that it began with."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from data.errors import TrainingError
from data.pairs import ImageBytes, ImageTextPair
from dual_encoder.auto_recipe import Machine
from dual_encoder.training_facts import FILE, facts_of, recipe_for, this_machine

SMALL = Machine(cores=2, memory_gb=16)
GPU = Machine(cores=2, memory_gb=16, gpus=1, gpu_memory_gb=16, compute_capability=8.6)


def pairs(count: int, caption: str = "a dog") -> list[ImageTextPair]:
    return [ImageTextPair(f"image-{n}", ImageBytes(lambda: b""), (caption, f"{caption} {n}")) for n in range(count)]


def splits(images: int) -> dict[str, list[ImageTextPair]]:
    return {"train": pairs(images), "validation": pairs(images // 8), "test": []}


def test_facts_are_counted() -> None:
    train = [*pairs(30), *pairs(10, "the LEFT hand"), ImageTextPair("bare", ImageBytes(lambda: b""))]
    facts = facts_of({"train": train, "validation": pairs(7), "test": []}, SMALL)
    assert (facts.images, facts.captions, facts.validation, facts.sided) == (40, 80, 7, 0.25)
    assert facts.words == (30 * (2 + 3) + 10 * (3 + 4)) / 80
    assert facts_of({"train": pairs(9, "bright, leftover"), "validation": []}, SMALL).sided == 0, "whole words"


def test_the_machine_is_this_one() -> None:
    machine = this_machine()
    assert machine.cores == len(os.sched_getaffinity(0))
    assert 0.1 < machine.memory_gb <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9 + 0.1


def test_a_begun_run_keeps_its_recipe_on_another_machine_and_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    begun, _ = recipe_for(splits(24_000), SMALL, tmp_path)
    captured = capfd.readouterr()
    assert "because" in captured.out
    assert captured.err == ""
    assert recipe_for(splits(24_000), GPU, tmp_path)[0] == begun
    captured = capfd.readouterr()
    assert "this machine would choose otherwise; the run goes on as it began" in captured.err
    assert "no GPU" in captured.out, "the reasons of the recipe that is used"
    assert recipe_for(splits(24_000), GPU, tmp_path / "elsewhere")[0] != begun


def test_a_machine_that_would_choose_the_same_changes_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe_for(splits(200), SMALL, tmp_path)
    before = (tmp_path / FILE).read_bytes()
    recipe_for(splits(200), dataclasses.replace(SMALL, cores=64), tmp_path)
    assert (tmp_path / FILE).read_bytes() == before
    assert capfd.readouterr().err == ""


def test_other_data_are_chosen_for_anew(tmp_path: Path) -> None:
    recipe_for(splits(200), SMALL, tmp_path)
    recipe_for(splits(400), GPU, tmp_path)
    stored = json.loads((tmp_path / FILE).read_text())
    assert stored["facts"]["images"] == 400
    assert stored["facts"]["machine"]["gpus"] == 1
    assert stored["choices"][0][0] == "towers"


@pytest.mark.parametrize("content", ["{", "[]", '{"facts": {"images": 1}}'])
def test_a_damaged_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(TrainingError, match="add --fresh"):
        recipe_for(splits(200), SMALL, tmp_path)
