"""Entry point: classifies a data set by the names of its classes alone, and says how well.

python -m dual_encoder.zero_shot --bundle default --data folder:my_classes --report build/zero_shot.html
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data import console
from data.durable import write_atomic, write_json
from data.errors import SourceError
from data.sources import SOURCE_HELP, open_source
from dual_encoder.prompts import TEMPLATES, name_of_folder
from dual_encoder.zero_shot_tables import (
    ACCURACY_COLUMNS,
    CLASS_COLUMNS,
    DIFFERENCE_COLUMNS,
    accuracy_rows,
    class_rows,
    difference_rows,
)

if TYPE_CHECKING:
    from data.pairs import ImageTextPair
    from dual_encoder.runtime import Runtime
    from dual_encoder.zero_shot_classifier import ClassLabel, Verdicts

SHOWN = 30  # classes in the terminal's table


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, classify, print, write."""
    parser = _parser()
    options = parser.parse_args(argv)
    for out in (options.json, options.report):
        if out and out.is_dir():
            parser.error(f"expected a file to write, received the directory {out}")
    templates = tuple(options.template or TEMPLATES)
    if wrong := [template for template in templates if "{name}" not in template]:
        parser.error(f"expected templates with {{name}}, received {wrong[0]!r}")
    from dual_encoder.runtime import Runtime
    from dual_encoder.zero_shot_classifier import difference

    source = open_source(options.data)
    pairs = labelled(source, options.label)
    classes = class_labels(pairs, options.label, read_names(options.names))
    runtime = Runtime.load(options.bundle)
    report, verdicts = measure(runtime, pairs, options.label, classes, templates)
    report |= {"data": source.name, "label": options.label}
    if options.against:
        other = Runtime.load(options.against)
        theirs, their_verdicts = measure(other, pairs, options.label, classes, templates)
        report["against"] = {
            "bundle": theirs["bundle"],
            "accuracy": theirs["accuracy"],
            "difference": difference(verdicts, their_verdicts),
        }
    _print(report)
    if options.json:
        write_json(options.json, report)
        console.say(f"written: {options.json}")
    if options.report:
        from dual_encoder.zero_shot_report import render

        write_atomic(options.report, render(report, verdicts.confusion(len(classes))).encode())
        console.say(f"written: {options.report}")
    return console.EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dual_encoder.zero_shot",
        description="Classify images by the names of their classes, without training on them: one folder per class, or "
        "any data set whose images have an attribute that names the class.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=SOURCE_HELP,
    )
    parser.add_argument("--bundle", required=True, help='a model, or "default": the untrained one')
    parser.add_argument(
        "--data", required=True, metavar="SOURCE", help="folder:DIR with a folder a class, or see below"
    )
    parser.add_argument("--label", default="folder", metavar="ATTRIBUTE", help="that names the class (default: folder)")
    parser.add_argument(
        "--names", type=Path, metavar="FILE.json", help='words for classes: {"n02084071": ["dog", "domestic dog"], …}'
    )
    parser.add_argument(
        "--template",
        action="append",
        metavar="TEXT",
        help="prompt with {name} in it; may be repeated, and replaces the ones that are averaged otherwise",
    )
    parser.add_argument(
        "--against", metavar="BUNDLE", help="the same with this bundle, such as the one before training"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the figures to this file")
    parser.add_argument(
        "--report", type=Path, metavar="OUT.html", help="also write a page with the confusions pictured"
    )
    return parser


def labelled(pairs: Any, label: str) -> list[ImageTextPair]:
    """The pairs whose class is known; `SourceError` where that is none, or fewer than two classes."""
    every = list(pairs)
    kept = [pair for pair in every if isinstance(pair.attributes.get(label), str) and pair.attributes[label]]
    if len({pair.attributes[label] for pair in kept}) < 2:
        known = sorted({name for pair in every for name, value in pair.attributes.items() if isinstance(value, str)})
        raise SourceError(
            f"images of at least two classes, named by the attribute {label!r}",
            f"{len(kept)} of {len(every)} images with it; attributes: {', '.join(known) or 'none'}",
            "put each class into a folder of its own, or name another --label",
        )
    if len(kept) < len(every):
        console.say(f"{len(every) - len(kept):,} images without {label!r} are left out")
    return kept


def class_labels(pairs: Sequence[ImageTextPair], label: str, names: dict[str, tuple[str, ...]]) -> list[ClassLabel]:
    """The classes in alphabetical order; their names are those given, else the value's last part in words.

    Where two classes end in the same part, the whole path tells them apart.
    """
    from dual_encoder.zero_shot_classifier import ClassLabel

    values = sorted({str(pair.attributes[label]) for pair in pairs})
    if unknown := sorted(set(names) - set(values)):
        console.say(f"names for {len(unknown)} classes without an image are not used, such as {unknown[0]}")
    last_words = Counter(map(name_of_folder, values))
    words = {value: name_of_folder(value, whole=last_words[name_of_folder(value)] > 1) for value in values}
    classes = [ClassLabel(value, names.get(value) or (words[value] or value,)) for value in values]
    twice = [name for name, count in Counter(name for c in classes for name in set(c.names)).items() if count > 1]
    if twice:
        raise SourceError("another name for each class", f"{twice[0]!r} for two", "tell them apart by --names")
    return classes


def read_names(path: Path | None) -> dict[str, tuple[str, ...]]:
    """Words for classes from a JSON file: a string or a list of strings for each."""
    if path is None:
        return {}
    expected = f'an object such as {{"n02084071": ["dog", "domestic dog"]}} in {path}'
    try:
        content = json.loads(path.read_text("utf-8"))
        names = {key: (value,) if isinstance(value, str) else tuple(value) for key, value in content.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise SourceError(expected, str(error), "correct the file, or leave --names out") from None
    wrong = [key for key, own in names.items() if not own or not all(isinstance(n, str) and n.strip() for n in own)]
    if wrong:
        raise SourceError(expected, f"{wrong[0]!r} without a name", "correct the file")
    return names


def measure(
    runtime: Runtime,
    pairs: Sequence[ImageTextPair],
    label: str,
    classes: Sequence[ClassLabel],
    templates: Sequence[str],
) -> tuple[dict[str, Any], Verdicts]:
    """What `--json` holds of one bundle, and its verdicts."""
    from dual_encoder.embedded_pairs import embed_images
    from dual_encoder.zero_shot_classifier import TOPS, accuracy, by_class, classify

    images, bad = embed_images(runtime, pairs)
    row = {entry.value: number for number, entry in enumerate(classes)}
    kept = [pair for position, pair in enumerate(pairs) if position not in bad]
    true = np.array([row[str(pair.attributes[label])] for pair in kept])
    verdicts = classify(runtime, images, true, classes, templates)
    report: dict[str, Any] = {
        "bundle": {"name": runtime.name, "fingerprint": runtime.fingerprint},
        "images": len(kept),
        "rejected_images": sorted(pairs[position].image_id for position in bad),
        "templates": list(templates),
        "accuracy": accuracy(verdicts),
        "chance": {f"top_{k}": min(1.0, k / len(classes)) for k in TOPS},
        "classes": by_class(verdicts, classes),
    }
    if list(templates) != ["{name}"]:
        report["bare_names"] = accuracy(classify(runtime, images, true, classes, ["{name}"]))
    return report, verdicts


def _print(report: dict[str, Any]) -> None:
    title = f"{report['bundle']['name']} on {report['data']}: {report['images']:,} images"
    console.print_table(f"{title}, {len(report['classes'])} classes", ACCURACY_COLUMNS, accuracy_rows(report))
    rows = class_rows(report["classes"])
    shown = f"the {SHOWN} worst of {len(rows)} classes" if len(rows) > SHOWN else "classes, the worst first"
    console.print_table(shown, CLASS_COLUMNS, rows[:SHOWN])
    if "against" in report:
        title = f"{report['bundle']['name']} against {report['against']['bundle']['name']}"
        console.print_table(title, DIFFERENCE_COLUMNS, difference_rows(report))
    if report["rejected_images"]:
        console.say(f"{len(report['rejected_images'])} images could not be decoded and were left out")


if __name__ == "__main__":
    console.run(main)
