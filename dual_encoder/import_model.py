"""Entry point: makes a bundle of a published CLIP, SigLIP or SigLIP 2 model.

python -m dual_encoder.import_model --from downloads/clip-vit-base-patch32 --out build/clip
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data import console
from data.errors import PretrainedError
from data.quiet_tensorflow import load_tensorflow

if TYPE_CHECKING:
    from dual_encoder.bundle import Bundle
    from dual_encoder.pretrained.keras_presets import PresetModel
    from dual_encoder.pretrained.published_model import PublishedModel


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and import."""
    parser = argparse.ArgumentParser(
        prog="python -m dual_encoder.import_model",
        description="Make a bundle of a published CLIP, SigLIP or SigLIP 2 model: both towers with their projections, "
        "scale and bias, the tokeniser, and how images are prepared. Files are read as data only.",
    )
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="DIR_OR_PRESET",
        help="a directory as Hugging Face publishes it (config.json, model.safetensors or shards, tokeniser files, "
        "preprocessor_config.json) or OpenCLIP (open_clip_config.json, open_clip_model.safetensors, tokeniser files); "
        "or a KerasHub preset: its directory, or a name such as clip_vit_base_patch32, which KerasHub downloads",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="BUNDLE", help="directory of the bundle")
    parser.add_argument("--name", help="what people call the model (default: the directory's or the preset's name)")
    options = parser.parse_args(argv)
    bundle = import_model(options.source, options.out, options.name)
    console.say(f"bundle {options.out}: {bundle.name}, fingerprint {bundle.fingerprint[:12]}")
    return console.EXIT_OK


def import_model(source: str, out: Path, name: str | None = None) -> Bundle:
    """Write the bundle `out`, whole or not at all; `PretrainedError` for a model that cannot be imported."""
    load_tensorflow()
    from dual_encoder.bundle import check_replaceable
    from dual_encoder.bundle_model import save_bundle
    from dual_encoder.pretrained.card import import_card

    check_replaceable(out)
    published = read_published(source)
    model = published.build()
    name = name or published.name
    imported = {"source": name, **published.facts}
    return save_bundle(
        out,
        model,
        published.tokenizer,
        name=name,
        card=import_card(name, published),
        trained={"recipe": None, "imported": imported},
    )


def read_published(source: str) -> PublishedModel | PresetModel:
    """The model in a directory, by the files that are there, or else the KerasHub preset of that name."""
    from dual_encoder.pretrained import hugging_face, keras_presets, open_clip

    directory = Path(source)
    # Some models are published in both formats in one place; whoever took part of it has one format's weights.
    if (directory / open_clip.CONFIG).is_file() and (
        open_clip.has_weights(directory) or not (directory / hugging_face.CONFIG).is_file()
    ):
        return open_clip.read_open_clip(directory)
    if keras_presets.is_preset(source):
        return keras_presets.read_preset(source)
    if (directory / hugging_face.CONFIG).is_file():
        return hugging_face.read_hugging_face(directory)
    raise PretrainedError(
        f"a directory with {hugging_face.CONFIG} or {open_clip.CONFIG}, or the name of a CLIP or SigLIP preset",
        source,
        "download a model first, or correct the path",
    )


if __name__ == "__main__":
    console.run(main)
