"""A published model that is read and checked but not built yet, and how it becomes a `DualEncoder`; knows no format."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.errors import PretrainedError, UserError
from data.text import CaptionTokenizer
from dual_encoder.model import DualEncoder, DualEncoderConfig
from dual_encoder.pretrained.checkpoint import Checkpoint, open_checkpoint
from dual_encoder.pretrained.placement import Source, check_tensors, place
from dual_encoder.projection_head import LinearHead


@dataclass(frozen=True)
class PublishedModel:
    """What a format's reader found.

    `sources` are by part ("image_backbone", …, "scale") and path of the variable. `weights` is the name of the
    checkpoint in `directory` without its suffix. `facts` go into the bundle: where the model came from.
    """

    name: str
    directory: Path
    weights: str
    config: DualEncoderConfig
    tokenizer: CaptionTokenizer
    sources: Mapping[str, Mapping[str, Source]]
    has_bias: bool
    unused: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> DualEncoder:
        """The model with its weights; `PretrainedError` names what does not fit."""
        with open_checkpoint(self.directory, self.weights) as checkpoint:
            self._check_names(checkpoint)
            model = DualEncoder(self.config, load_weights=False, initial_bias=0.0 if self.has_bias else None)
            place(checkpoint, variables_of(model), self._sources(checkpoint), self.unused)
        return model

    def _sources(self, checkpoint: Checkpoint) -> Mapping[str, Mapping[str, Source]]:
        """Scale and bias are single numbers, stored with one axis or none."""
        names = {"log_scale": "logit_scale", **({"logit_bias": "logit_bias"} if self.has_bias else {})}
        scale = {
            path: Source(tensor, shape=(1,) if checkpoint.shapes.get(tensor) == (1,) else ())
            for path, tensor in names.items()
        }
        return {**self.sources, "scale": scale}

    def _check_names(self, checkpoint: Checkpoint) -> None:
        """Before a network of perhaps a billion weights is made: are the right tensors there, by their names?"""
        wanted = {s.tensor for paths in self._sources(checkpoint).values() for s in paths.values()}
        check_tensors(checkpoint, {name: checkpoint.shapes.get(name, ()) for name in wanted}, self.unused)
        stored, asked = sum(map(math.prod, checkpoint.shapes.values())), _least_size(self.config)
        if asked > stored:
            raise PretrainedError(
                f"the {asked:,} numbers or more that the config asks for in {checkpoint.place}",
                f"{stored:,}",
                "use the config that the weights came with",
            )


def _least_size(config: DualEncoderConfig) -> int:
    """Weights in the layers of both towers, by their settings alone."""
    towers: tuple[Any, Any] = (config.image_backbone, config.text_backbone)
    layers = sum(tower.layers * (4 * tower.width**2 + 2 * tower.width * tower.hidden) for tower in towers)
    return layers + towers[1].vocabulary_size * towers[1].width


def variables_of(model: DualEncoder) -> dict[str, dict[str, Any]]:
    """The model's variables by part and path."""
    parts = ("image_backbone", "text_backbone", "image_head", "text_head")
    found = {part: {v.path: v for v in getattr(model, part).weights} for part in parts}
    scale = {"log_scale": model.log_scale}
    return {**found, "scale": scale if model.logit_bias is None else {**scale, "logit_bias": model.logit_bias}}


@contextmanager
def as_config_error(path: Path) -> Iterator[None]:
    """Report settings that no tower can be made of as a mistake of the file `path`."""
    try:
        yield
    except PretrainedError:
        raise
    except UserError as error:
        raise PretrainedError(f"in {path} {error.expected}", error.received, "use the model's own config") from None
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        raise PretrainedError(
            f"a model's settings in {path}", repr(error)[:200], "use the model's own config"
        ) from None


def projection(embedding_dim: Any) -> LinearHead:
    """CLIP's bias-free projection to embeddings of a size that a config states."""
    if type(embedding_dim) is not int or embedding_dim < 1:
        raise PretrainedError("a positive size of embeddings", repr(embedding_dim), "use the model's own config")
    return LinearHead(embedding_dim)


def check_tokenizer(tokenizer: CaptionTokenizer, vocabulary_size: int, directory: Path) -> None:
    """Refuse a tokeniser with ids that the text tower has no row for."""
    largest = max(tokenizer.tokenizer.get_vocab().values())
    if largest >= vocabulary_size:
        raise PretrainedError(
            f"token ids below {vocabulary_size:,}, the text tower's vocabulary, from the tokeniser in {directory}",
            f"ids up to {largest:,}",
            "use the tokeniser that the weights came with",
        )


def check_end(tokenizer: CaptionTokenizer, end_id: int | None, directory: Path) -> None:
    """CLIP is read where the text ends: at the token `end_id`, or for None at the highest id there is."""
    last = int(tokenizer.encode(["a"]).ids[0, -1])
    expected = max(tokenizer.tokenizer.get_vocab().values()) if end_id is None else end_id
    if last != expected:
        raise PretrainedError(
            f"a tokeniser in {directory} that ends a text with token {expected}, where the text tower is read",
            f"one that ends it with {last}",
            "use the tokeniser that the weights came with",
        )
