"""Any TensorFlow Hub model or local SavedModel as an image or text backbone; knows no architecture.

A SavedModel is a program: name only those you trust. A handle is a directory, a web address (`https://tfhub.dev/…`,
`https://www.kaggle.com/models/…`), which `tensorflow_hub` keeps under `TFHUB_CACHE_DIR`, or
`kaggle://owner/model/tensorFlow2/variation/version`, which `kagglehub` keeps under `KAGGLEHUB_CACHE`. What is not kept
there is downloaded. A bundle takes the SavedModel along.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from data.errors import UserError
from data.images import ImagePreprocessing
from dual_encoder.towers.kaggle import KAGGLE, how_to_get_from_kaggle, kaggle_directory

if TYPE_CHECKING:
    import keras

# The entries of a dictionary of outputs that hold one vector a row, the best first.
OUTPUTS = ("pooled_output", "default", "output_0")


@dataclass(frozen=True)
class TfHubImage:
    """An image model in TensorFlow Hub's convention: pixels `(B, size, size, 3)` to features `(B, F)` float32.

    `handle` is as the module says; `mean` and `std` are the model's scaling (0 and 1: RGB in [0, 1], the
    convention). `output` picks an entry where the model gives several; a feature map is averaged over its positions.
    Example: `TfHubImage("models/mobilenet", size=224, trainable=True)`.
    """

    family: ClassVar[str] = "tf_hub_image"

    handle: str
    size: int = 224
    resize: Literal["squash", "crop", "pad"] = "squash"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    output: str | None = None
    trainable: bool = False

    def __post_init__(self) -> None:
        """JSON brings lists where tuples were."""
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))

    @property
    def preprocessing(self) -> ImagePreprocessing:
        """As the settings say."""
        return ImagePreprocessing(self.size, self.resize, self.mean, self.std)

    def build(self, load_weights: bool = True) -> keras.Model:
        """The SavedModel inside a Keras model; it brings its weights in either case."""
        import tensorflow as tf

        models = [load_saved_model(self.handle)]
        spec = tf.TensorSpec((None, self.size, self.size, 3), tf.float32, name="pixels")
        return _keras_model(spec, models, self.output, self.trainable, "tf_hub_image")

    def write_assets(self, directory: Path) -> list[str]:
        """See `Bundled`."""
        return _copy_saved_models(directory, handle=self.handle)


@dataclass(frozen=True)
class TfHubText:
    """A text model of TensorFlow Hub: strings `(B,)` to features `(B, F)` float32.

    `preprocessor` is the handle of the model that turns strings into the encoder's inputs, as BERT encoders need; None
    where the encoder takes strings itself. Example: `TfHubText("models/sentence_encoder")`.
    """

    family: ClassVar[str] = "tf_hub_text"

    handle: str
    preprocessor: str | None = None
    output: str | None = None
    trainable: bool = False

    def tokenizer(self, captions: Callable[[], Iterable[str]]) -> None:
        """None: the model tokenises inside its graph."""

    def build(self, load_weights: bool = True) -> keras.Model:
        """The SavedModels inside a Keras model; they bring their weights in either case."""
        import tensorflow as tf
        import tensorflow_text  # noqa: F401  registers the operations that text models are made of

        models = [load_saved_model(handle) for handle in (self.preprocessor, self.handle) if handle]
        spec = tf.TensorSpec((None,), tf.string, name="texts")
        return _keras_model(spec, models, self.output, self.trainable, "tf_hub_text")

    def write_assets(self, directory: Path) -> list[str]:
        """See `Bundled`."""
        return _copy_saved_models(directory, handle=self.handle, preprocessor=self.preprocessor)


def load_saved_model(handle: str) -> Any:
    """The loaded SavedModel of a handle."""
    import tensorflow as tf

    return tf.saved_model.load(str(local_directory(handle)))


def local_directory(handle: str) -> Path:
    """Where a handle's SavedModel is on this machine, downloaded if it has to be; `UserError` if it cannot be had."""
    directory = Path(handle)
    if "://" in handle:
        fetch = kaggle_directory if handle.startswith(KAGGLE) else _from_tensorflow_hub
        try:
            directory = fetch(handle)
        except Exception as error:  # both libraries, and what downloads for them, raise whatever they like
            raise UserError(f"the SavedModel {handle}", str(error)[:200], _how_to_get(handle)) from None
    if not (directory / "saved_model.pb").is_file():
        raise UserError(
            f"a directory with saved_model.pb, a web address or {KAGGLE}owner/model/tensorFlow2/variation/version",
            handle,
            "download the model first, or correct the path",
        )
    return directory


def _from_tensorflow_hub(handle: str) -> Path:
    with warnings.catch_warnings(action="ignore"):  # it imports pkg_resources, which complains
        import tensorflow_hub

    return Path(tensorflow_hub.resolve(handle))


def _how_to_get(handle: str) -> str:
    """What to do on a machine without a connection."""
    if handle.startswith(KAGGLE):
        return how_to_get_from_kaggle(handle)
    name = hashlib.sha1(handle.encode()).hexdigest()  # noqa: S324  tensorflow_hub calls it so
    return (
        f"on a machine with a connection download {handle}?tf-hub-format=compressed (a .tar.gz), unpack it on this "
        f"machine, and put the directory's path in the place of the handle, or the directory at $TFHUB_CACHE_DIR/{name}"
    )


def _copy_saved_models(directory: Path, **handles: str | None) -> list[str]:
    """Copy each handle's SavedModel to the sub-directory of `directory` that its setting is called; the settings."""
    given = {name: handle for name, handle in handles.items() if handle}
    for name, handle in given.items():
        shutil.copytree(local_directory(handle), directory / name)
    return list(given)


def _run(model: Any, inputs: Any, training: bool) -> Any:
    """Call a SavedModel by the call it was saved with, or by its serving signature."""
    if not callable(model):
        signature = model.signatures.get("serving_default") or model.signatures.get("default")
        if signature is None:
            raise UserError(
                "a SavedModel with a call or a signature serving_default or default",
                f"one with the signatures {sorted(model.signatures)}",
                "save the model again with one of them",
            )
        names = list(signature.structured_input_signature[1])
        return signature(**(inputs if isinstance(inputs, dict) else {names[0]: inputs}))
    if not training:
        return model(inputs)
    try:
        return model(inputs, training=True)
    except (TypeError, ValueError):  # saved without a training argument: one behaviour for both
        return model(inputs)


def _one_vector(outputs: Any, wanted: str | None) -> Any:
    """The features (B, F) among a model's outputs."""
    import tensorflow as tf

    if isinstance(outputs, dict):
        candidates = (wanted,) if wanted else (*OUTPUTS, *(outputs if len(outputs) == 1 else ()))
        name = next((name for name in candidates if name in outputs), None)
        if name is None:
            raise UserError(
                f"an output {wanted}" if wanted else f"one output, or one called {' or '.join(OUTPUTS)}",
                ", ".join(f"{key} {tuple(value.shape)}" for key, value in sorted(outputs.items())),
                "set `output` to the entry that holds one vector a row",
            )
        outputs = outputs[name]
    elif isinstance(outputs, list | tuple) and len(outputs) == 1:
        outputs = outputs[0]
    if isinstance(outputs, tf.Tensor) and len(outputs.shape) == 4:
        outputs = tf.reduce_mean(outputs, axis=(1, 2))
    if not isinstance(outputs, tf.Tensor) or len(outputs.shape) != 2 or outputs.shape[1] is None:
        raise UserError("one vector of known size a row", f"{outputs!r}", "set `output`, or save a pooled model")
    return tf.cast(outputs, tf.float32)


def _keras_model(spec: Any, models: list[Any], output: str | None, trainable: bool, name: str) -> keras.Model:
    import keras

    layer = _layer_class()(spec, models, output, name="saved_model")
    inputs = keras.Input(spec.shape[1:], dtype=spec.dtype.name, name=spec.name)
    result = keras.Model(inputs, layer(inputs), name=name)
    result.trainable = trainable
    return result


@functools.cache
def _layer_class() -> type:
    """Defined at first use, so that naming a backbone does not import TensorFlow."""
    import keras
    import tensorflow as tf

    class SavedModelLayer(keras.layers.Layer):
        """Runs a loaded SavedModel, behind others that prepare its input, and owns the variables they use.

        They are Keras variables that share the SavedModels' memory.
        """

        def __init__(self, spec: Any, models: list[Any], output: str | None, name: str) -> None:
            super().__init__(dtype="float32", autocast=False, name=name)
            self.run_as_inference = False  # set where batch normalisation must stand still while the rest trains
            for number, model in enumerate(models):  # an export looks for variables and tables in attributes
                setattr(self, f"saved_model_{number}", model)

            def compute(inputs: Any, training: bool) -> Any:
                for preparing in models[:-1]:
                    inputs = _run(preparing, inputs, False)
                return _one_vector(_run(models[-1], inputs, training), output)

            self._compute = compute
            # The training call comes second: it may use more variables (moving averages) or give another graph.
            traces = [self._trace(spec, training) for training in (False, True)]
            self._feature_dim = traces[0].structured_outputs.shape[1]
            variables = {id(variable): variable for trace in traces for variable in trace.graph.variables}
            for number, variable in enumerate(variables.values()):
                self._own(variable, number)
            self.built = True

        def _trace(self, spec: Any, training: bool) -> Any:
            traced = tf.function(lambda inputs: self._compute(inputs, training), autograph=False)
            return traced.get_concrete_function(spec)

        def _own(self, variable: Any, number: int) -> None:
            owned = keras.Variable(
                variable,
                trainable=variable.trainable,
                dtype=variable.dtype.name,
                name=f"{number}_{variable.name.split(':')[0].replace('/', '_')}",
            )
            self._track_variable(owned)

        def call(self, inputs: Any, training: bool = False) -> Any:
            """Strings or pixels to features; a frozen layer runs as in inference."""
            return self._compute(inputs, bool(training) and self.trainable and not self.run_as_inference)

        def compute_output_spec(self, inputs: Any, training: bool = False) -> Any:
            """Known from tracing the SavedModel."""
            return keras.KerasTensor((inputs.shape[0], self._feature_dim), "float32")

    return SavedModelLayer
