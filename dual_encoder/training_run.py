"""Assembles one run from a recipe and lists of pairs: model, tokeniser, batches, validation; knows no command line."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from data.console import say
from data.errors import TrainingError
from data.images import ImagePreprocessing
from data.loading import decoded_batches
from data.pairs import ImageTextPair
from data.text import CaptionTokenizer
from dual_encoder.anchoring import class_embeddings, prototype_captions, prototype_features
from dual_encoder.bridge_choice import choose_bridge
from dual_encoder.calibration import Calibration
from dual_encoder.calibration_fit import fit_calibration
from dual_encoder.engines import IMAGE_BATCH, KerasEngine, run_on_texts
from dual_encoder.feature_batches import Batches, FeatureBatches
from dual_encoder.feature_store import MappedRows
from dual_encoder.frozen_features import FrozenBackbone, caption_features, freeze, image_features
from dual_encoder.held_out import HeldOut, predict
from dual_encoder.hubness import HubnessCorrection, as_served, choose_correction, sample_bank
from dual_encoder.layer_groups import TrainedTower
from dual_encoder.metrics import rank_both_directions, unit
from dual_encoder.model import DualEncoder, anchor_in_language, classifier_of
from dual_encoder.projection_head import AnchoredHead
from dual_encoder.recipe import Recipe
from dual_encoder.replicas import Replicas
from dual_encoder.starting_bundle import begin_from
from dual_encoder.teacher import taught
from dual_encoder.towers import backbone_config
from dual_encoder.trainer import Progress, Trainer
from dual_encoder.training_batches import CaptionBatches, PixelBatches, check_variations
from dual_encoder.training_data import CaptionTable, captioned, image_groups

PROTOTYPE_SAMPLE = 65_536  # images whose features tell mean and spread


class TrainingRun:
    """A model ready to train.

    What stands still runs once for every image and caption, and its output is cached: a frozen backbone, and the trunk
    of an image backbone of which only the top trains, unless its pixels are augmented. The rest runs in every step.
    """

    def __init__(
        self,
        recipe: Recipe,
        train: Sequence[ImageTextPair],
        validation: Sequence[ImageTextPair],
        replicas: Replicas | None = None,
    ) -> None:
        if recipe.distillation is not None:
            recipe = dataclasses.replace(recipe, distillation=recipe.distillation.resolved(recipe.objective))
        self.recipe, self.replicas = recipe, replicas or Replicas()
        self.train = captioned(train, "train")
        held_out = captioned(validation, "validation")
        keras.utils.set_random_seed(recipe.trainer.seed)
        self.tokenizer = self._tokenizer()
        with self.replicas.scope():
            self.model = DualEncoder(
                recipe.model,
                recipe.objective.initial_scale,
                precision=recipe.trainer.precision,
                load_weights=recipe.start is None,
                initial_bias=recipe.objective.initial_bias,
            )
            if recipe.start is not None:
                begin_from(recipe.start, self.model)
        self.frozen: dict[str, FrozenBackbone] = {}
        self._top_of_images: keras.Model | None = None  # above the trunk, where its output is cached
        for part in ("image_backbone", "text_backbone"):
            backbone = getattr(recipe.model, part)
            if not backbone.trainable:
                self.frozen[part] = freeze(getattr(self.model, part), backbone_config(backbone))
        if isinstance(recipe.model.image_head, AnchoredHead):
            anchor_in_language(self.model, class_embeddings(self._text_features, recipe.model.image_head.templates))
        self.trunk = self.frozen.get("image_backbone") or self._frozen_trunk()
        check_variations(recipe, image_is_cached=self.trunk is not None)
        self.validation = self._held_out(held_out)
        if recipe.choose_bridge:
            self._choose_bridge()
        self.hubness: HubnessCorrection | None = None  # known once trained
        self.batches = self._pixel_batches() if self.trunk is None else self._feature_batches()
        if recipe.distillation is not None:
            self.batches = taught(self.batches, recipe.distillation.teacher, self.train)

    def _tokenizer(self) -> CaptionTokenizer | None:
        """The start's, or the text backbone's own, which may learn it from the training captions."""
        if self.recipe.start is not None:
            return self.recipe.start.tokenizer()
        return self.recipe.model.text_backbone.tokenizer(lambda: (c for pair in self.train for c in pair.captions))

    def _frozen_trunk(self) -> FrozenBackbone | None:
        """The lower part of an image backbone of which only the top trains; None where each step needs pixels."""
        recipe, settings = self.recipe, self.recipe.trainer.fine_tuning
        tower = TrainedTower(
            recipe.model.image_backbone, self.model.image_backbone, settings.image_top, settings.train_batch_norm
        )
        if tower.lowest == 0 or recipe.augmentation.of_images:
            return None
        trunk = tower.groups.section(0, tower.lowest)
        self._top_of_images = tower.groups.section(tower.lowest, len(tower.groups))
        return freeze(trunk, {**backbone_config(recipe.model.image_backbone), "groups": tower.lowest})

    def _choose_bridge(self) -> None:
        """Take the bridge's temperature and number of classes from the validation split; `self.recipe` says which."""
        head = self.recipe.model.image_head
        images, texts = self.validation.images, self.validation.texts
        if not isinstance(head, AnchoredHead) or images is None or texts is None:
            cached = images is not None and texts is not None
            raise TrainingError(
                "a language-anchored head on cached features, whose bridge can be chosen",
                f"a {head.kind} head" + ("" if cached else " and a backbone that trains from its input on"),
                "set choose_bridge to False, or use AnchoredHead and freeze the backbones (of images, a lower part)",
            )
        features = np.asarray(images) if self._top_of_images is None else predict(self._top_of_images, images)
        kernel, bias, classes = (np.asarray(weight) for weight in self.model.image_head.get_layer("bridge").weights)
        words, rows = unit(np.asarray(texts)), self.validation.table.image_row
        chosen = choose_bridge(head, features @ kernel + bias, classes, words, rows)
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
            self.recipe.distillation,
        )
        progress = trainer.fit()
        if self.recipe.hubness_correction:
            self.hubness = self._choose_hubness()
        return progress

    def metrics(self, pairs: Sequence[ImageTextPair] | None = None) -> dict[str, Any]:
        """Retrieval metrics of the model as it is, on `pairs` or else on the validation split."""
        chosen = self.validation if pairs is None else self._held_out(captioned(pairs, "given"))
        return chosen.metrics(*self._served(chosen))

    def calibration(self) -> Calibration:
        """How scores of the model as it is become probabilities, fitted on the validation split; see `fit_calibration`.

        `SourceError` where there is too little to fit it on.
        """
        image, text = self._served(self.validation)
        rows = np.array(self.validation.table.image_row)
        return fit_calibration(image, text, rows, image_groups(self.validation.pairs))

    def _served(self, held_out: HeldOut) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of held-out images and of all their captions whose inner products are the scores of a search."""
        image, text = self._project(held_out)
        return as_served(self.hubness, unit(image), unit(text))

    def _choose_hubness(self) -> HubnessCorrection | None:
        """A correction by a sample of the training captions, its weight chosen on the validation split."""
        captions = sample_bank([caption for pair in self.train for caption in pair.captions], self.recipe.trainer.seed)
        image, text = self._project(self.validation)
        rows = np.array(self.validation.table.image_row)
        chosen = choose_correction(unit(self._project_texts(captions)), unit(image), unit(text), rows)
        if chosen is None:
            say("hubness correction: none, for it does not surely help on the validation split")
        else:
            say(f"hubness correction: weight {chosen.weight:g}, chosen on the validation split")
        return chosen

    def _validate(self) -> Mapping[str, float]:
        """Recall@10 averaged over both directions, and the objective over batches of the validation pairs."""
        image, text = self._project(self.validation)
        ranked = rank_both_directions(unit(image), unit(text), np.array(self.validation.table.image_row))
        recall = np.mean([np.mean(queries.ranks <= 10) for queries in ranked.values()])
        return {
            "recall": float(recall),
            "loss": self.validation.loss(
                image, text, self.recipe.objective, self.model, self.recipe.trainer.batch_size
            ),
        }

    def _project(self, held_out: HeldOut) -> tuple[np.ndarray, np.ndarray]:
        """Projections (N, D) of held-out images and (C, D) of all their captions."""
        image_engine, text_engine = self._engines
        if held_out.images is not None:
            images = predict(self._images_from_cache, held_out.images)
        else:
            preprocessing = self.recipe.model.image_backbone.preprocessing
            batches = decoded_batches((pair.image for pair in held_out.pairs), preprocessing, IMAGE_BATCH)
            images = np.concatenate([image_engine.run({"pixels": batch.pixels}) for batch in batches])
        if held_out.texts is not None:
            return images, predict(self.model.text_head, held_out.texts)
        return images, run_on_texts(text_engine, self.tokenizer, held_out.table.captions)

    def _project_texts(self, captions: Sequence[str]) -> np.ndarray:
        """Projections (C, D) of captions."""
        if "text_backbone" in self.frozen:
            return predict(self.model.text_head, self._text_features(captions))
        return run_on_texts(self._engines[1], self.tokenizer, captions)

    @functools.cached_property
    def _images_from_cache(self) -> Callable[..., Any]:
        """What is cached of images to their projections."""
        head, top = self.model.image_head, self._top_of_images
        if top is None:
            return head
        return tf.function(
            lambda x, training: head(top(x, training=training), training=training), reduce_retracing=True
        )

    @functools.cached_property
    def _engines(self) -> tuple[KerasEngine, KerasEngine]:
        """Pixels and tokens to projections, traced once for the whole run."""
        model = self.model
        return (
            KerasEngine(lambda x: model.image_head(model.image_backbone(x, training=False), training=False)),
            KerasEngine(lambda x: model.text_head(model.text_backbone(x, training=False), training=False)),
        )

    def _held_out(self, pairs: list[ImageTextPair]) -> HeldOut:
        """Pairs to measure on without those that do not decode, and what is cached of them."""
        preprocessing = self.recipe.model.image_backbone.preprocessing
        images: MappedRows | None = None
        if self.trunk is None:
            batches = decoded_batches((pair.image for pair in pairs), preprocessing, IMAGE_BATCH)
            bad = [position for batch in batches for position, _ in batch.rejected]
        else:
            images, bad = self._cached_images(preprocessing, pairs)
        kept, images = _without(bad, pairs, images)
        table = CaptionTable.of(kept)
        texts = self._text_features(table.captions) if "text_backbone" in self.frozen else None
        return HeldOut(kept, table, images, texts)

    def _cached_images(
        self, preprocessing: ImagePreprocessing, pairs: list[ImageTextPair]
    ) -> tuple[MappedRows, list[int]]:
        """What the frozen part of the image backbone gives for each image, and those that do not decode."""
        assert self.trunk is not None
        whole = "image_backbone" in self.frozen
        # Half precision halves a trunk's files; its rounding, 0.05 %, is far below what training moves.
        return image_features(self.trunk, preprocessing, pairs, np.float32 if whole else np.float16)

    def _text_features(self, captions: Sequence[str]) -> MappedRows:
        if "text_backbone" not in self.frozen:
            raise TrainingError(
                "a frozen text backbone with a language-anchored head",
                "a trainable one",
                "freeze it, or use LinearHead",
            )
        return caption_features(self.frozen["text_backbone"], self.tokenizer, captions)

    def _feature_batches(self) -> Batches:
        """Batches with what is cached of images; images that do not decode are left out."""
        recipe = self.recipe
        preprocessing = recipe.model.image_backbone.preprocessing
        train_rows, bad = self._cached_images(preprocessing, self.train)
        self.train, train_rows = _without(bad, self.train, train_rows)
        views, prototypes = [train_rows], None
        if recipe.mirrored:
            mirrored, _ = self._cached_images(dataclasses.replace(preprocessing, mirror=True), self.train)
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
        frozen_text = "text_backbone" in self.frozen
        features = self._text_features(captions) if frozen_text else np.arange(len(captions))
        groups = self._image_groups()
        if groups is not None:  # prototypes are groups of their own
            groups += range(len(groups), len(captions_of))
        weights = table.weights + [1.0] * (len(captions) - len(table.captions))
        config = recipe.trainer
        drawn = FeatureBatches(
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
        if frozen_text:
            return drawn
        return CaptionBatches(drawn, captions, self.tokenizer, recipe.augmentation)

    def _image_groups(self) -> list[int] | None:
        return image_groups(self.train) if self.recipe.group_positives else None

    def _pixel_batches(self) -> Batches:
        recipe, config, frozen_text = self.recipe, self.recipe.trainer, "text_backbone" in self.frozen
        text = self._text_features(CaptionTable.of(self.train).captions) if frozen_text else self.tokenizer
        return PixelBatches(
            self.train,
            recipe.model.image_backbone.preprocessing,
            text,
            config.batch_size,
            config.seed,
            self._image_groups(),
            recipe.augmentation,
        )


def _without(
    bad: Sequence[int], pairs: list[ImageTextPair], rows: MappedRows | None
) -> tuple[list[ImageTextPair], Any]:
    if not bad:
        return pairs, rows
    shown = ", ".join(pairs[position].image_id for position in bad[:3])
    say(f"{len(bad)} images cannot be decoded and are left out: {shown}{' …' if len(bad) > 3 else ''}")
    left_out = set(bad)
    kept = [position for position in range(len(pairs)) if position not in left_out]
    if not kept:
        raise TrainingError("images that decode", "none", "check the data set with python -m data.prepare")
    return [pairs[position] for position in kept], None if rows is None else rows.only(kept)
