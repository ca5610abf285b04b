"""Looks at data and machine for the automatic recipe, and keeps what a run began with; chooses nothing itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data import console
from data.durable import write_json
from data.errors import TrainingError
from data.pairs import ImageTextPair
from dual_encoder.auto_recipe import DataFacts, Machine, choose_recipe

if TYPE_CHECKING:
    from dual_encoder.recipe import Recipe

FILE = "auto.json"
_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)
_CONTROL_GROUPS = ("memory.max", "memory/memory.limit_in_bytes")  # version 2, version 1


def facts_of(splits: Mapping[str, Sequence[ImageTextPair]], machine: Machine) -> DataFacts:
    """What the automatic recipe looks at."""
    captions = [caption for pair in splits["train"] for caption in pair.captions]
    sided = sum(bool(_SIDES.search(caption)) for caption in captions) / max(1, len(captions))
    images = sum(1 for pair in splits["train"] if pair.captions)
    words = round(sum(len(caption.split()) for caption in captions) / max(1, len(captions)), 2)
    return DataFacts(images, len(captions), len(splits["validation"]), words, sided, machine)


def this_machine(devices: int | None = None) -> Machine:
    """Cores and memory that this process may use, and the GPUs that TensorFlow sees, or the first `devices` of them."""
    gpus = _gpus()[:devices]
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        memory_gb=round(_memory_bytes() / 1e9, 1),
        gpus=len(gpus),
        gpu_memory_gb=min((memory for memory, _ in gpus), default=0.0),
        compute_capability=min((capability for _, capability in gpus), default=0.0),
    )


def recipe_for(
    splits: Mapping[str, Sequence[ImageTextPair]], machine: Machine, directory: Path
) -> tuple[Recipe, list[list[str]]]:
    """The automatic recipe of a run whose files are in `directory`; prints what was chosen and why.

    With the recipe come its choices as rows of setting, value and reason.

    A run that was begun goes on with the recipe it began with, also on another machine; facts of other data are
    forgotten, and the checkpoint made with them is refused where it is read.
    """
    facts = facts_of(splits, machine)
    begun = _read(directory / FILE)
    if begun is not None and _same_data(begun, facts):
        recipe, choices = choose_recipe(begun)
        if recipe != choose_recipe(facts)[0]:
            console.say(f"this machine would choose otherwise; the run goes on as it began ({directory / FILE})")
        facts = begun
    else:
        recipe, choices = choose_recipe(facts)
    rows = [[choice.setting, choice.value, choice.reason] for choice in choices]
    console.print_table("Chosen for this data and machine", ["setting", "value", "because"], rows)
    write_json(directory / FILE, {"facts": facts.to_config(), "choices": rows})
    return recipe, rows


def _same_data(one: DataFacts, other: DataFacts) -> bool:
    return {**one.to_config(), "machine": None} == {**other.to_config(), "machine": None}


def _read(path: Path) -> DataFacts | None:
    if not path.is_file():
        return None
    try:
        return DataFacts.from_config(json.loads(path.read_bytes())["facts"])
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            "the facts that a run began with", f"{path} ({error!r})", "add --fresh to choose anew"
        ) from None


def _memory_bytes() -> float:
    """The smaller of the machine's memory and a container's limit."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for name in _CONTROL_GROUPS:
        try:
            total = min(total, float(Path("/sys/fs/cgroup", name).read_text()))
        except (OSError, ValueError):  # absent, or "max"
            continue
    return total


def _gpus() -> list[tuple[float, float]]:
    """Memory in GB and compute capability of each GPU that TensorFlow sees, 0 for what nobody tells."""
    import tensorflow as tf

    memory = _gpu_memory_gb()
    found = []
    for device in tf.config.list_physical_devices("GPU"):
        major, minor = tf.config.experimental.get_device_details(device).get("compute_capability", (0, 0))
        found.append((memory, major + minor / 10))
    return found


def _gpu_memory_gb() -> float:
    """Memory of the smallest GPU as NVIDIA's own tool tells it; 0 where there is no such tool."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0.0
    query = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    told = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return min((float(mebibytes) for mebibytes in told if mebibytes.isdigit()), default=0.0) * 2**20 / 1e9
