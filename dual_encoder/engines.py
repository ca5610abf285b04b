"""What runs a tower: ONNX Runtime (fastest on a CPU, no TensorFlow needed) or Keras; knows no file of a bundle.

An engine maps a dictionary of named arrays to one array (B, D) float32.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data.console import progress
from data.loading import available_cores, map_ordered
from data.quiet_tensorflow import load_tensorflow
from data.text import CaptionTokenizer, clean_caption
from dual_encoder.worker_threads import WorkerThreads

IMAGE_BATCH = 32
TEXT_BATCH = 64
SPIN_MICROSECONDS = 2_000
SHARED_SPIN_MICROSECONDS = 1_000  # bridges the parts of a run, and soon leaves the core to what comes after it
FEW_CORES = 4  # with more, another core is soon found for a thread that waits for one
ROWS_OF_A_CORE = 4  # with fewer, dividing a batch among cores gains nothing
ROWS_OF_PIXELS = 8  # that a core computes at a time: what is between the layers of more does not stay in its cache
# From this share on of runs that found another under way, threads that wait for each other lose their cores to others.
CROWDED, _NEWEST = 0.25, 1 / 16
_WINDOW = 32 * TEXT_BATCH  # texts that are tokenised together and sorted by their length
_TOKENS_OF_A_RUN = 16  # what every run costs beyond its tokens, as tokens of a small batch

Inputs = dict[str, np.ndarray]


class Engine(Protocol):
    """Implementers run one tower or backbone on a batch."""

    name: str
    runs_at_once: int  # in threads; more do not do more

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Named inputs, batch first, to (B, D) float32."""


class OnnxEngine:
    """Runs an ONNX file on the CPU; safe to call from several threads.

    A batch with `ROWS_OF_A_CORE` rows or more for each of `threads`, by default all cores, is divided among them:
    each computes its rows by itself, images in parts, so that none waits for another after every product. Smaller
    ones are computed by all threads together. An engine that is made `shared` gives a run beside another one thread:
    both do more than one after the other; and every run, while it is `CROWDED`. Cores that compute by themselves have
    weights of their own in common, loaded with the first such run, or at once by an engine that is shared; they are
    the same weights even if another model has taken the file's place.
    """

    name = "onnxruntime"

    def __init__(self, path: Path, threads: int | None = None, *, shared: bool = False) -> None:
        self._threads, self._shared = threads or available_cores(), shared
        self.runs_at_once = self._threads if shared else 1
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        spin = SHARED_SPIN_MICROSECONDS if shared else SPIN_MICROSECONDS
        self._wide, self._workers = _onnx_session(self._file, self._threads, spin)
        self.input_names = [entry.name for entry in self._wide.get_inputs()]
        self._alone: Any = None if self._threads > 1 else self._wide
        self._running, self._crowded, self._lock = 0, 0.0, threading.Lock()
        if shared:
            self._on_one_core()

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `Engine`."""
        if len(self.input_names) == 1:  # converters choose the name of a single input
            inputs = {self.input_names[0]: next(iter(inputs.values()))}
        else:
            inputs = {name: inputs[name] for name in self.input_names}
        with self._lock:
            self._running += 1
            beside_another = self._running > 1
            self._crowded += _NEWEST * (beside_another - self._crowded)
            crowded = self._crowded > CROWDED
        try:
            if self._shared and beside_another:
                return self._on_one_core().run(None, inputs)[0]
            rows = len(next(iter(inputs.values())))
            if self._threads > 1 and rows >= ROWS_OF_A_CORE * self._threads:
                return self._divided(inputs, rows)
            if self._shared and crowded:
                return self._on_one_core().run(None, inputs)[0]
            if self._threads <= FEW_CORES and not beside_another:
                self._workers.leave_core()
            return self._wide.run(None, inputs)[0]
        finally:
            with self._lock:
                self._running -= 1

    def _divided(self, inputs: Mapping[str, np.ndarray], rows: int) -> np.ndarray:
        session = self._on_one_core()
        pixels = any(array.ndim == 4 for array in inputs.values())
        count = self._threads * (-(-rows // (self._threads * ROWS_OF_PIXELS)) if pixels else 1)
        cuts = [rows * part // count for part in range(count + 1)]
        parts = [{name: array[a:b] for name, array in inputs.items()} for a, b in itertools.pairwise(cuts)]
        return np.concatenate(
            list(map_ordered(lambda part: session.run(None, part)[0], parts, len(parts), self._threads))
        )

    def _on_one_core(self) -> Any:
        """A session that runs in the thread of its caller, of which there may be several."""
        with self._lock:
            if self._alone is None:
                self._alone, _ = _onnx_session(self._file, 1)
            return self._alone


def _onnx_session(file: int, threads: int, spin: int = SPIN_MICROSECONDS) -> tuple[Any, WorkerThreads]:
    """A session, and the threads that help it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that spin between the parts of a run answer a third faster, and those that still do when the next run
    # comes an eighth; but by default they would go on for 20 ms, on cores that decoding and searches need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin))
    # By its descriptor: the same file, without a copy in memory.
    return WorkerThreads.begun_by(
        lambda: onnxruntime.InferenceSession(f"/dev/fd/{file}", options, providers=["CPUExecutionProvider"])
    )


class KerasEngine:
    """Runs a Keras model, or any function of tensors, as one TensorFlow graph: for GPUs and unconvertible towers.

    The graph is traced once, with the first inputs: from then on any number of rows, and of tokens, runs through it.
    """

    name, runs_at_once = "keras", 1

    def __init__(self, function: Any) -> None:
        import tensorflow as tf

        self._traced = tf.function(lambda inputs: function(next(iter(inputs.values())) if len(inputs) == 1 else inputs))
        self._lock = threading.Lock()
        self._graph: Any = None

    @property
    def traces(self) -> int:
        """How often the graph was traced so far."""
        return self._traced.experimental_get_tracing_count()

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `Engine`; a single input is passed by itself, several as a dictionary."""
        import tensorflow as tf

        tensors = {name: tf.convert_to_tensor(value) for name, value in inputs.items()}
        with self._lock:
            if self._graph is None:
                self._graph = self._traced.get_concrete_function(
                    {name: tf.TensorSpec(_open_shape(value), value.dtype) for name, value in tensors.items()}
                )
        return np.asarray(self._graph(tensors), np.float32)


def _open_shape(tensor: Any) -> list[int | None]:
    """Any number of rows; token ids of any length too, whereas features and images keep their sizes."""
    return [None, *([None] * (tensor.shape.rank - 1) if tensor.dtype.is_integer else tensor.shape[1:])]


def gpu_is_present() -> bool:
    """Whether TensorFlow sees a GPU. Where it is not imported yet, it is only if the machine shows one."""
    if "tensorflow" not in sys.modules:
        if not _machine_shows_gpu():
            return False
        load_tensorflow()
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def _machine_shows_gpu(devices: Path = Path("/dev")) -> bool:
    """Whether there is a device of NVIDIA's, AMD's or (under WSL) Windows's that this process may use."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    return any(devices.glob("nvidia[0-9]*")) or any((devices / name).exists() for name in ("kfd", "dxg"))


def run_on_pixels(engine: Engine, pixels: np.ndarray) -> np.ndarray:
    """Run an image engine on pixels (B, S, S, 3) float32."""
    return engine.run({"pixels": pixels})


def run_on_texts(
    engine: Engine, tokenizer: CaptionTokenizer | None, texts: Sequence[str], shown: str | None = None
) -> np.ndarray:
    """Run a text engine on one string or more; rows keep their order. With `shown`, behind a progress bar.

    Texts of one length run together, so that little is spent on padding, and while they do the next are tokenised.
    """
    if len(texts) == 1 and tokenizer is not None and shown is None:  # nothing to sort, and not padded
        tokens = tokenizer.encode(texts)
        return engine.run({"ids": tokens.ids, "mask": tokens.mask})
    batches: Iterable[list[tuple[np.ndarray, Inputs]]] = _text_batches(tokenizer, texts)
    if shown:
        batches = progress(batches, f"{shown}, batches of {TEXT_BATCH}", -(-len(texts) // TEXT_BATCH))
    stacked: np.ndarray | None = None
    for rows, inputs in itertools.chain.from_iterable(batches):
        found = engine.run(inputs)
        if stacked is None:
            stacked = np.empty((len(texts), *found.shape[1:]), found.dtype)
        stacked[rows] = found
    assert stacked is not None
    return stacked


def _text_batches(
    tokenizer: CaptionTokenizer | None, texts: Sequence[str]
) -> Iterator[list[tuple[np.ndarray, Inputs]]]:
    """`TEXT_BATCH` texts of about one length at a time, as rows and inputs of the runs that they take."""

    def prepare(start: int) -> tuple[Inputs, np.ndarray]:
        window = texts[start : start + _WINDOW]
        if tokenizer is None:
            cleaned = [clean_caption(text) for text in window]
            return {"texts": np.array(cleaned, object)}, np.array([len(text) for text in cleaned])
        tokens = tokenizer.encode(window)
        return {"ids": tokens.ids, "mask": tokens.mask}, tokens.mask.sum(axis=1)

    starts = range(0, len(texts), _WINDOW)
    windows = map_ordered(prepare, starts, ahead=1, workers=1) if len(starts) > 1 else map(prepare, starts)
    for start, (inputs, lengths) in zip(starts, windows, strict=True):
        order = np.argsort(lengths, kind="stable")
        for first in range(0, len(order), TEXT_BATCH):
            batch = order[first : first + TEXT_BATCH]
            parts = [slice(None)] if tokenizer is None else _least_padded(lengths[batch])
            yield [(start + batch[part], _inputs_of(inputs, batch[part], lengths[batch[part][-1]])) for part in parts]


def _inputs_of(inputs: Inputs, rows: np.ndarray, longest: int) -> Inputs:
    """These rows, padded to the longest of them."""
    length = max(1, longest)
    return {name: array[rows] if array.ndim == 1 else array[rows, :length] for name, array in inputs.items()}


def _least_padded(lengths: np.ndarray) -> list[slice]:
    """Cut rising `lengths` (B,) in token counts into the runs that together take the least time.

    A run takes what its tokens, padded to its longest text, and `_TOKENS_OF_A_RUN` take: the cheapest cuts by dynamic
    programming over the places where the length changes.
    """
    ends = [*(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(lengths)]
    best: dict[int, tuple[int, int]] = {0: (0, 0)}  # up to this place: the cost, and where the last run begins
    for end in ends:
        longest = int(lengths[end - 1])
        best[end] = min((cost + _TOKENS_OF_A_RUN + (end - begin) * longest, begin) for begin, (cost, _) in best.items())
    cuts = [len(lengths)]
    while cuts[-1]:
        cuts.append(best[cuts[-1]][1])
    return [slice(begin, end) for end, begin in itertools.pairwise(cuts)][::-1]
