"""Assembles one run from a recipe and lists of pairs: model, tokeniser, batches, validation; knows no command line."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf

from data.console import say
from data.errors import TrainingError
from data.images import ImagePreprocessing
from data.loading import decoded_batches
from data.pairs import ImageTextPair
from data.pipeline import batches as pixel_batches
from data.text import CaptionTokenizer
from dual_encoder.anchoring import class_embeddings, prototype_captions, prototype_features
from dual_encoder.bridge_choice import choose_bridge
from dual_encoder.calibration import Calibration
from dual_encoder.calibration_fit import fit_calibration
from dual_encoder.engines import IMAGE_BATCH, KerasEngine, run_on_texts
from dual_encoder.feature_batches import Batches, FeatureBatches, caption_groups
from dual_encoder.feature_store import MappedRows
from dual_encoder.frozen_features import FrozenBackbone, caption_features, freeze, image_features
from dual_encoder.losses import Matches
from dual_encoder.metrics import rank_both_directions, retrieval_metrics
from dual_encoder.model import DualEncoder, anchor_in_language, classifier_of
from dual_encoder.projection_head import AnchoredHead
from dual_encoder.recipe import Recipe
from dual_encoder.replicas import Replicas
from dual_encoder.towers import backbone_config
from dual_encoder.trainer import Progress, Trainer
from dual_encoder.training_data import CaptionTable, captioned, image_groups

PROTOTYPE_SAMPLE = 65_536  # images whose features tell mean and spread
Rows = TypeVar("Rows", MappedRows, None)


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Pairs to measure on: their captions, and cached features of images (N, F) and captions (C, G) where there are."""

    pairs: list[ImageTextPair]
    table: CaptionTable
    features: tuple[MappedRows, MappedRows] | None

    def metrics(self, image: np.ndarray, text: np.ndarray) -> dict[str, Any]:
        """Retrieval metrics of projections (N, D) and (C, D)."""
        return retrieval_metrics(_unit(image), _unit(text), np.array(self.table.image_row))


class TrainingRun:
    """A model ready to train.

    With both backbones frozen, their features are computed once and only the heads run; otherwise every batch goes from
    pixels and tokens through the whole model.
    """

    def __init__(
        self,
        recipe: Recipe,
        train: Sequence[ImageTextPair],
        validation: Sequence[ImageTextPair],
        replicas: Replicas | None = None,
    ) -> None:
        self.recipe, self.replicas = recipe, replicas or Replicas()
        self.train = captioned(train, "train")
        held_out = captioned(validation, "validation")
        keras.utils.set_random_seed(recipe.trainer.seed)
        text_backbone = recipe.model.text_backbone
        self.tokenizer = text_backbone.tokenizer(lambda: (c for pair in self.train for c in pair.captions))
        with self.replicas.scope():
            self.model = DualEncoder(
                recipe.model,
                recipe.objective.initial_scale,
                precision=recipe.trainer.precision,
                initial_bias=recipe.objective.initial_bias,
            )
        self.frozen: dict[str, FrozenBackbone] = {}
        for part in ("image_backbone", "text_backbone"):
            backbone = getattr(recipe.model, part)
            if not backbone.trainable:
                self.frozen[part] = freeze(getattr(self.model, part), backbone_config(backbone))
        if isinstance(recipe.model.image_head, AnchoredHead):
            anchor_in_language(self.model, class_embeddings(self._text_features, recipe.model.image_head.templates))
        self.validation = self._held_out(held_out)
        if recipe.choose_bridge:
            self._choose_bridge()
        self.batches = self._feature_batches() if len(self.frozen) == 2 else self._pixel_batches()

    def _choose_bridge(self) -> None:
        """Take the bridge's temperature and number of classes from the validation split; `self.recipe` says which."""
        head = self.recipe.model.image_head
        if not isinstance(head, AnchoredHead) or self.validation.features is None:
            raise TrainingError(
                "a language-anchored head on frozen backbones, whose bridge can be chosen",
                f"a {head.kind} head" + ("" if self.validation.features else " and a backbone that trains"),
                "set choose_bridge to False, or use AnchoredHead and freeze both backbones",
            )
        images, texts = (np.asarray(rows) for rows in self.validation.features)
        kernel, bias, classes = (np.asarray(weight) for weight in self.model.image_head.get_layer("bridge").weights)
        chosen = choose_bridge(head, images @ kernel + bias, classes, _unit(texts), self.validation.table.image_row)
        say(
            f"language bridge: temperature {chosen.temperature:g}, {chosen.top} classes, chosen on the validation split"
        )
        self.model.set_bridge(chosen)
        self.recipe = dataclasses.replace(self.recipe, model=self.model.config)

    def fit(self, directory: Path, run_key: str) -> Progress:
        """Train, or go on from the checkpoint in `directory`; the model ends with the best epoch's weights."""
        trainer = Trainer(
            self.model,
            self.recipe.objective,
            self.recipe.trainer,
            self.batches,
            self._validate,
            directory,
            run_key,
            self.replicas,
        )
        return trainer.fit()

    def metrics(self, pairs: Sequence[ImageTextPair] | None = None) -> dict[str, Any]:
        """Retrieval metrics of the model as it is, on `pairs` or else on the validation split."""
        chosen = self.validation if pairs is None else self._held_out(captioned(pairs, "given"))
        return chosen.metrics(*self._project(chosen))

    def calibration(self) -> Calibration:
        """How scores of the model as it is become probabilities, fitted on the validation split; see `fit_calibration`.

        `SourceError` where there is too little to fit it on.
        """
        image, text = self._project(self.validation)
        rows = np.array(self.validation.table.image_row)
        return fit_calibration(_unit(image), _unit(text), rows, image_groups(self.validation.pairs))

    def _validate(self) -> Mapping[str, float]:
        """Recall@10 averaged over both directions, and the objective over batches of the validation pairs."""
        image, text = self._project(self.validation)
        ranked = rank_both_directions(_unit(image), _unit(text), np.array(self.validation.table.image_row))
        recall = np.mean([np.mean(queries.ranks <= 10) for queries in ranked.values()])
        return {"recall": float(recall), "loss": self._validation_loss(image, text)}

    def _validation_loss(self, image: np.ndarray, text: np.ndarray) -> float:
        """Mean objective over batches of images with their first captions."""
        table = self.validation.table
        first = [rows[0] for rows in table.rows_of_images(len(image))]
        text, groups = text[first], caption_groups([table.captions[row] for row in first])
        size = min(self.recipe.trainer.batch_size, len(image))
        rows = np.arange(size)
        losses = [
            self.recipe.objective(
                image[start : start + size],
                text[start : start + size],
                self.model.log_scale,
                Matches(rows, groups[start : start + size]),
                self.model.logit_bias,
            )
            for start in range(0, len(image) - size + 1, size)
        ]
        return float(np.mean([float(loss) for loss in losses]))

    def _project(self, held_out: HeldOut) -> tuple[np.ndarray, np.ndarray]:
        """Projections (N, D) of held-out images and (C, D) of all their captions."""
        if held_out.features is not None:
            image_rows, text_rows = held_out.features
            return _predict(self.model.image_head, image_rows), _predict(self.model.text_head, text_rows)
        preprocessing = self.recipe.model.image_backbone.preprocessing
        image_engine, text_engine = self._engines
        batches = decoded_batches((pair.image for pair in held_out.pairs), preprocessing, IMAGE_BATCH)
        images = np.concatenate([image_engine.run({"pixels": batch.pixels}) for batch in batches])
        return images, run_on_texts(text_engine, self.tokenizer, held_out.table.captions)

    @functools.cached_property
    def _engines(self) -> tuple[KerasEngine, KerasEngine]:
        """Pixels and tokens to projections, traced once for the whole run."""
        model = self.model
        return (
            KerasEngine(lambda x: model.image_head(model.image_backbone(x, training=False), training=False)),
            KerasEngine(lambda x: model.text_head(model.text_backbone(x, training=False), training=False)),
        )

    def _held_out(self, pairs: list[ImageTextPair]) -> HeldOut:
        """Pairs to measure on without those that do not decode, and their features where both backbones are frozen."""
        preprocessing = self.recipe.model.image_backbone.preprocessing
        if len(self.frozen) < 2:
            batches = decoded_batches((pair.image for pair in pairs), preprocessing, IMAGE_BATCH)
            bad = [position for batch in batches for position, _ in batch.rejected]
            kept, _ = _without(bad, pairs, None)
            return HeldOut(kept, CaptionTable.of(kept), None)
        rows, bad = image_features(self.frozen["image_backbone"], preprocessing, pairs)
        kept, rows = _without(bad, pairs, rows)
        table = CaptionTable.of(kept)
        return HeldOut(kept, table, (rows, self._text_features(table.captions)))

    def _text_features(self, captions: Sequence[str]) -> MappedRows:
        if "text_backbone" not in self.frozen:
            raise TrainingError(
                "a frozen text backbone with a language-anchored head",
                "a trainable one",
                "freeze it, or use LinearHead",
            )
        return caption_features(self.frozen["text_backbone"], self.tokenizer, captions)

    def _feature_batches(self) -> Batches:
        """Batches of cached features; images that do not decode are left out."""
        recipe, frozen = self.recipe, self.frozen["image_backbone"]
        preprocessing = recipe.model.image_backbone.preprocessing
        train_rows, bad = image_features(frozen, preprocessing, self.train)
        self.train, train_rows = _without(bad, self.train, train_rows)
        views, prototypes = [train_rows], None
        if recipe.mirrored:
            mirrored, _ = image_features(frozen, dataclasses.replace(preprocessing, mirror=True), self.train)
            views.append(mirrored)
        table = CaptionTable.of(self.train)
        captions, captions_of = list(table.captions), table.rows_of_images(len(self.train))
        if recipe.class_prototypes:
            kernel, _ = classifier_of(recipe.model.image_backbone)
            sample = train_rows[:: -(-len(train_rows) // PROTOTYPE_SAMPLE)]
            prototypes = prototype_features(kernel, sample)
            for texts in prototype_captions():
                captions_of.append(list(range(len(captions), len(captions) + len(texts))))
                captions += texts
        features = self._text_features(captions)
        groups = self._image_groups()
        if groups is not None:  # prototypes are groups of their own
            groups += range(len(groups), len(captions_of))
        weights = table.weights + [1.0] * (len(captions) - len(table.captions))
        config = recipe.trainer
        return FeatureBatches(
            views,
            features,
            captions_of,
            captions,
            config.batch_size,
            config.seed,
            groups,
            weights if min(weights) < 1 else None,
            prototypes,
        )

    def _image_groups(self) -> list[int] | None:
        return image_groups(self.train) if self.recipe.group_positives else None

    def _pixel_batches(self) -> Batches:
        if self.tokenizer is None:
            raise TrainingError(
                "a text backbone with a tokeniser", "one that takes strings", "freeze both backbones, or use another"
            )
        if self.recipe.mirrored or self.recipe.class_prototypes:
            raise TrainingError(
                "frozen backbones with mirrored views or class prototypes, which are made of cached features",
                "a backbone that trains",
                "set mirrored and class_prototypes to False, or freeze both backbones",
            )
        config, preprocessing = self.recipe.trainer, self.recipe.model.image_backbone.preprocessing
        groups = self._image_groups()
        return PixelBatches(self.train, preprocessing, self.tokenizer, config.batch_size, config.seed, groups)


class PixelBatches:
    """Batches of pixels and token ids, for backbones that train; with `image_groups` (N,), "image_group" (B,) too."""

    def __init__(
        self,
        pairs: Sequence[ImageTextPair],
        preprocessing: ImagePreprocessing,
        tokenizer: CaptionTokenizer,
        batch_size: int,
        seed: int,
        image_groups: Sequence[int] | None = None,
    ) -> None:
        self.image_groups = None if image_groups is None else np.asarray(image_groups, np.int32)
        self.pairs, self.preprocessing, self.tokenizer = pairs, preprocessing, tokenizer
        self.batch_size, self.seed = min(batch_size, len(pairs)), seed
        self.steps_per_epoch = len(pairs) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Mapping[str, Any]]:
        """See `Batches`."""
        dataset = pixel_batches(
            self.pairs, self.preprocessing, self.tokenizer, self.batch_size, self.seed, epoch, start_batch=start
        )
        try:
            for batch in dataset.take(self.steps_per_epoch - start):
                if self.image_groups is None:
                    yield batch
                else:
                    yield {**batch, "image_group": self.image_groups[np.asarray(batch["image_row"])]}
        except tf.errors.OpError as error:
            raise TrainingError(
                "images that decode",
                (error.message or "").splitlines()[0],
                "train on the output of python -m data.prepare, which leaves such images out",
            ) from None


def _without(bad: Sequence[int], pairs: list[ImageTextPair], rows: Rows) -> tuple[list[ImageTextPair], Rows]:
    if not bad:
        return pairs, rows
    shown = ", ".join(pairs[position].image_id for position in bad[:3])
    say(f"{len(bad)} images cannot be decoded and are left out: {shown}{' …' if len(bad) > 3 else ''}")
    left_out = set(bad)
    kept = [position for position in range(len(pairs)) if position not in left_out]
    if not kept:
        raise TrainingError("images that decode", "none", "check the data set with python -m data.prepare")
    return [pairs[position] for position in kept], None if rows is None else rows.only(kept)


def _predict(head: keras.Model, features: MappedRows) -> np.ndarray:
    rows = [head(features[start : start + 4096], training=False) for start in range(0, len(features), 4096)]
    return np.concatenate([np.asarray(row, np.float32) for row in rows])


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
