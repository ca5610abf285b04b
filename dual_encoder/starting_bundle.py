"""A bundle as what training starts from: architecture, weights, tokeniser, scale and bias; knows no training loop."""

from __future__ import annotations

import dataclasses

from data.errors import TrainingError
from dual_encoder.bundle import ASSETS, WEIGHTS, Bundle
from dual_encoder.bundle_model import load_model
from dual_encoder.losses import InfoNCE, SigmoidLoss
from dual_encoder.model import DualEncoder, DualEncoderConfig
from dual_encoder.projection_head import AnchoredHead, Head, IdentityHead, LinearHead
from dual_encoder.recipe import Recipe, TrainerConfig
from dual_encoder.schedules import WarmupCosine
from dual_encoder.weights import weight_names


def default_recipe(bundle: Bundle) -> Recipe:
    """What `train` does with a bundle and no recipe: towers stand still, heads, scale and bias train.

    The objective is the one the bundle has a bias for, or InfoNCE, and how far the weights move from where they start
    is chosen on the validation split (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903).
    """
    model = load_config(bundle)
    has_bias = any(name.startswith("logit_bias/") for name in weight_names(bundle.path / WEIGHTS))
    trainer = TrainerConfig(
        schedule=WarmupCosine(peak=3e-4), epochs=10, batch_size=256, patience=3, interpolate=(0.25, 0.5, 0.75, 1.0)
    )
    return start_from(bundle, Recipe("heads", model, SigmoidLoss() if has_bias else InfoNCE(), trainer))


def start_from(bundle: Bundle, recipe: Recipe) -> Recipe:
    """`recipe` with the bundle's model for its own; which backbones train, and all else, stays as the recipe says."""
    model = load_config(bundle)
    towers = {
        name: dataclasses.replace(getattr(model, name), trainable=getattr(recipe.model, name).trainable)
        for name in ("image_backbone", "text_backbone")
    }
    model = dataclasses.replace(model, **towers)
    if not any(tower.trainable for tower in towers.values()) and not any(map(_trains, _heads(model))):
        image, text = (_trainable(head, bundle.embedding_dim) for head in _heads(model))
        model = dataclasses.replace(model, image_head=image, text_head=text)
    if recipe.class_prototypes or recipe.choose_bridge:
        recipe = dataclasses.replace(recipe, class_prototypes=False, choose_bridge=False)
    return dataclasses.replace(recipe, model=model, start=bundle)


def load_config(bundle: Bundle) -> DualEncoderConfig:
    """What the bundle's model is made of."""
    return DualEncoderConfig.from_config(bundle.manifest["config"], bundle.path / ASSETS)


def begin_from(bundle: Bundle, model: DualEncoder) -> None:
    """Give `model` the bundle's weights; a head of other settings than the bundle's keeps its own start.

    `TrainingError` for a backbone of other settings than the bundle's.
    """
    theirs, ours = load_config(bundle), model.config
    changed = [
        name
        for name in ("image_backbone", "text_backbone")
        if dataclasses.replace(getattr(theirs, name), trainable=False)
        != dataclasses.replace(getattr(ours, name), trainable=False)
    ]
    if changed:
        raise TrainingError(
            f"the towers of {bundle.name}, to start from its weights",
            f"another {' and another '.join(changed)}",
            "let the recipe's model be the bundle's, as `start_from` makes it",
        )
    source = load_model(bundle)
    for part, variables in model.parts().items():
        is_other_head = part.endswith("head") and getattr(theirs, part) != getattr(ours, part)
        if is_other_head or part not in source.parts():
            continue
        for mine, given in zip(variables, source.parts()[part], strict=True):
            mine.assign(given)


def _heads(model: DualEncoderConfig) -> tuple[Head, Head]:
    return model.image_head, model.text_head


def _trains(head: Head) -> bool:
    return getattr(head, "trainable", not isinstance(head, IdentityHead))


def _trainable(head: Head, embedding_dim: int) -> Head:
    """A head that begins as `head` is and can learn."""
    if isinstance(head, AnchoredHead):
        return dataclasses.replace(head, trainable=True)
    return LinearHead(embedding_dim, start_as_identity=True) if isinstance(head, IdentityHead) else head
