"""Engines take any batch in one trace, run on what the machine has, and are warm when they say so."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies
from tiny_training import CONFIG, IMAGE, TEXT, WORDS, tokenizer

from dual_encoder import engines
from dual_encoder.bundle import Bundle
from dual_encoder.engines import TEXT_BATCH, KerasEngine, OnnxEngine, gpu_is_present, run_on_texts
from dual_encoder.model import DualEncoder
from dual_encoder.runtime import Runtime


class Recording:
    """Gives the number and the sum of a row's tokens, or the mean of its pixels, and keeps what it was given."""

    name, runs_at_once = "recording", 1

    def __init__(self) -> None:
        self.seen: list[Mapping[str, np.ndarray]] = []

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        self.seen.append(inputs)
        if "pixels" in inputs:
            return inputs["pixels"].mean((1, 2)).astype(np.float32)
        return np.stack([inputs["mask"].sum(1), (inputs["ids"] * inputs["mask"]).sum(1)], axis=1).astype(np.float32)


def captions(count: int) -> list[str]:
    random = np.random.default_rng(0)
    return [" ".join(random.choice(WORDS, random.integers(0, 9))) for _ in range(count)]


def test_a_keras_engine_is_traced_once_whatever_the_batch_and_the_length() -> None:
    keras.utils.set_random_seed(0)
    model = DualEncoder(CONFIG)
    texts, images = KerasEngine(model.embed_texts), KerasEngine(model.embed_images)
    assert texts.traces == 0
    for rows, length in ((1, 3), (2, 3), (5, 12), (1, 1), (64, 7)):
        inputs = {"ids": np.ones((rows, length), np.int32), "mask": np.ones((rows, length), np.int32)}
        np.testing.assert_allclose(texts.run(inputs), model.embed_texts(inputs), atol=1e-6)
        pixels = np.ones((rows, 16, 16, 3), np.float32)
        np.testing.assert_allclose(images.run({"pixels": pixels}), model.embed_images(pixels), atol=1e-6)
    assert (texts.traces, images.traces) == (1, 1)


def test_batches_of_texts_are_full_and_hold_little_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_WINDOW", 4 * TEXT_BATCH)
    texts, engine = captions(10 * TEXT_BATCH + 3), Recording()
    found = run_on_texts(engine, tokenizer(), texts, shown="texts")
    np.testing.assert_array_equal(found, np.concatenate([run_on_texts(Recording(), tokenizer(), [t]) for t in texts]))
    assert len(engine.seen) < len(texts) / 10
    tokens = sum(int(inputs["mask"].sum()) for inputs in engine.seen)
    assert sum(inputs["ids"].size for inputs in engine.seen) < 1.3 * tokens
    assert all(inputs["mask"].any(axis=0).all() for inputs in engine.seen), "no column is padding alone"


@hypothesis.given(strategies.lists(strategies.integers(0, 128), min_size=1, max_size=10))
def test_runs_of_texts_take_the_least_time_of_all_ways_to_cut_them(lengths: list[int]) -> None:
    rising = np.sort(lengths)

    def cost(cuts: Sequence[int]) -> int:
        runs = itertools.pairwise([0, *cuts, len(rising)])
        return sum(engines._TOKENS_OF_A_RUN + (end - begin) * int(rising[end - 1]) for begin, end in runs)

    places = range(1, len(rising))
    least = min(cost(cuts) for count in range(len(rising)) for cuts in itertools.combinations(places, count))
    parts = engines._least_padded(rising)
    assert cost([part.stop for part in parts[:-1]]) == least
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == len(rising)


def test_one_long_text_does_not_lengthen_all_the_others() -> None:
    engine = Recording()
    run_on_texts(engine, tokenizer(), [*["red"] * 31, " ".join(["red"] * 9)])
    assert [inputs["ids"].shape for inputs in engine.seen] == [(31, 3), (1, 11)]


def test_texts_in_bulk_have_the_embeddings_they_have_alone(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_WINDOW", TEXT_BATCH)
    texts = captions(3 * TEXT_BATCH)
    runtime = Runtime.load(tiny_bundle.path)
    together = runtime.embed_texts(texts)
    np.testing.assert_allclose(together, np.concatenate([runtime.embed_texts([text]) for text in texts]), atol=1e-6)


def test_keras_is_chosen_where_tensorflow_sees_a_gpu(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(Runtime.load(tiny_bundle.path).text_engine, OnnxEngine)
    listed = tf.config.list_physical_devices
    gpu = tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [gpu] if kind == "GPU" else listed(kind))
    assert gpu_is_present()
    chosen = Runtime.load(tiny_bundle.path)
    assert isinstance(chosen.text_engine, KerasEngine)
    assert isinstance(chosen.image_engine, KerasEngine)
    assert isinstance(Runtime.load(tiny_bundle.path, engine="onnxruntime").text_engine, OnnxEngine)


@pytest.mark.parametrize(
    ("names", "visible", "shown"),
    [
        ((), None, False),
        (("nvidiactl", "null"), None, False),
        (("nvidia0",), None, True),
        (("nvidia0",), "0", True),
        (("nvidia0",), "", False),
        (("nvidia0",), "-1", False),
        (("kfd",), None, True),
        (("dxg",), None, True),
    ],
)
def test_a_machine_shows_its_gpu_without_tensorflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], visible: str | None, shown: bool
) -> None:
    for name in names:
        (tmp_path / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert engines._machine_shows_gpu(tmp_path) is shown


def test_onnx_runtime_has_as_many_threads_as_the_process_has_cores(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_bundle.engine_file("text_tower")
    assert path is not None

    def threads(*arguments: int) -> int:
        return OnnxEngine(path, *arguments)._wide.get_session_options().intra_op_num_threads

    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3})
    monkeypatch.setattr("os.cpu_count", lambda: 96)
    assert threads() == 1
    assert threads(2) == 2


def test_threads_spin_within_a_run_and_not_long_after_it(tiny_bundle: Bundle) -> None:
    """Measured: a third faster for one query, and few cores taken from decoding and search."""
    path = tiny_bundle.engine_file("text_tower")
    assert path is not None
    options = OnnxEngine(path, 2)._wide.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert int(options.get_session_config_entry("session.intra_op.spin_duration_us")) <= 2_000


def test_runs_beside_another_have_a_thread_each_where_the_engine_is_shared(tiny_bundle: Bundle) -> None:
    path = tiny_bundle.engine_file("text_tower")
    assert path is not None
    shared, alone = OnnxEngine(path, 2, shared=True), OnnxEngine(path, 2)
    assert (shared.runs_at_once, alone.runs_at_once) == (2, 1)
    inputs = {"ids": np.ones((2, 4), np.int32), "mask": np.ones((2, 4), np.int32)}
    expected = alone.run(inputs)
    used = []

    class Session:
        def __init__(self, name: str, within: Callable[[], None]) -> None:
            self.name, self.within = name, within

        def run(self, outputs: None, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
            used.append(self.name)
            self.within()
            return [expected]

    np.testing.assert_allclose(shared.run(inputs), expected, atol=1e-6)
    np.testing.assert_allclose(shared._on_one_core().run(None, inputs)[0], expected, atol=1e-6)
    shared._alone = Session("narrow", lambda: None)
    shared._wide = Session("wide", lambda: used.append("inner") or shared.run(inputs) if len(used) == 1 else None)
    shared.run(inputs)
    shared.run(inputs)
    assert used == ["wide", "inner", "narrow", "wide"]


def test_a_shared_engine_gives_every_run_one_thread_while_most_are_beside_another(tiny_bundle: Bundle) -> None:
    path = tiny_bundle.engine_file("text_tower")
    assert path is not None
    engine = OnnxEngine(path, 2, shared=True)
    inputs = {"ids": np.ones((1, 4), np.int32), "mask": np.ones((1, 4), np.int32)}
    result, used = engine.run(inputs), []

    class Session:
        def __init__(self, name: str) -> None:
            self.name = name

        def run(self, outputs: None, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
            used.append(self.name)
            if len(used) % 2 and len(used) < 40:  # another begins meanwhile
                engine.run(inputs)
            return [result]

    engine._alone, engine._wide = Session("narrow"), Session("wide")
    for _ in range(20):
        engine.run(inputs)
    assert used[0] == "wide", "nobody was there before"
    assert set(used[20:40]) == {"narrow"}
    for _ in range(60):
        engine.run(inputs)
    assert used[-1] == "wide", "calm again"


@pytest.mark.parametrize(("rows", "parts"), [(12, [4, 4, 4]), (32, [5, 5, 6] * 2), (48, [8] * 6)])
def test_cores_compute_images_in_parts_as_many_for_each(tiny_bundle: Bundle, rows: int, parts: list[int]) -> None:
    path = tiny_bundle.engine_file("image_tower")
    assert path is not None
    engine = OnnxEngine(path, 3, shared=True)
    session, ran = engine._on_one_core(), []

    class Session:
        def run(self, outputs: None, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
            ran.append(len(next(iter(inputs.values()))))
            return session.run(outputs, inputs)

    engine._alone = Session()
    size = session.get_inputs()[0].shape[1]
    pixels = np.random.default_rng(0).normal(size=(rows, size, size, 3)).astype(np.float32)
    found = engine.run({"pixels": pixels})
    assert sorted(ran) == sorted(parts)
    expected = np.concatenate([session.run(None, {session.get_inputs()[0].name: row[None]})[0] for row in pixels])
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("rows", [engines.ROWS_OF_A_CORE * 3 - 1, engines.ROWS_OF_A_CORE * 3, 50])
def test_a_large_batch_is_divided_among_cores_and_its_rows_keep_their_order(
    tiny_bundle: Bundle, tmp_path: Path, rows: int, shared: bool
) -> None:
    published = tiny_bundle.engine_file("text_tower")
    assert published is not None
    path = tmp_path / "text.onnx"
    path.write_bytes(published.read_bytes())
    engine = OnnxEngine(path, 3, shared=shared)
    path.unlink()  # or replaced by another model
    ids = np.random.default_rng(0).integers(1, 9, (rows, 5)).astype(np.int32)
    inputs = {"ids": ids, "mask": np.ones_like(ids)}
    expected = OnnxEngine(published, 1).run(inputs)
    computed = []

    class Session:
        def __init__(self, session: Any) -> None:
            self.session = session

        def run(self, outputs: None, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
            computed.append(len(inputs["ids"]))
            return self.session.run(outputs, inputs)

    engine._alone, engine._wide = Session(engine._on_one_core()), Session(engine._wide)
    np.testing.assert_allclose(engine.run(inputs), expected, atol=1e-6)
    assert sum(computed) == rows
    assert len(computed) == (3 if rows >= engines.ROWS_OF_A_CORE * 3 else 1)
    assert max(computed) - min(computed) <= 1


def test_a_warm_runtime_has_seen_the_largest_batch_and_the_longest_text(tiny_bundle: Bundle) -> None:
    engine = Recording()
    Runtime(tiny_bundle, engine, engine).warm_up(text_batch=5, image_batch=3)
    texts = [inputs["ids"].shape for inputs in engine.seen if "ids" in inputs]
    assert {rows for rows, _ in texts} == {1, 5}
    assert max(length for _, length in texts) == TEXT.max_tokens
    size = IMAGE.preprocessing.size
    assert [inputs["pixels"].shape for inputs in engine.seen if "pixels" in inputs] == [
        (1, size, size, 3),
        (3, size, size, 3),
    ]


def test_a_warm_runtime_traces_nothing_more(tiny_bundle: Bundle) -> None:
    runtime = Runtime.load(tiny_bundle.path, engine="keras")
    assert isinstance(runtime.text_engine, KerasEngine)
    assert isinstance(runtime.image_engine, KerasEngine)
    runtime.warm_up(text_batch=4, image_batch=2)
    runtime.embed_texts(captions(70))
    runtime.embed_pixels(np.zeros((7, 16, 16, 3), np.float32))
    assert (runtime.text_engine.traces, runtime.image_engine.traces) == (1, 1)
