"""A bundle's README.md, from what its manifest and its figures say; measures nothing.

The sections are those of Mitchell et al. 2019, "Model Cards for Model Reporting" (arXiv:1810.03993), as far as somebody
who trains on pictures of their own can fill them; what is not known is said to be unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data.pairs import ImageTextPair
from dual_encoder.calibration import Calibration

SPLITS = ("train", "validation", "test", "all")
SHOWN = 5  # licences of the data that are named one by one


def model_card(
    name: str,
    trained: Mapping[str, Any],
    metrics: Mapping[str, Any],
    calibration: Calibration | None,
    versions: Mapping[str, str],
) -> str:
    """Markdown; `trained` and `versions` are the manifest's, `metrics` has figures by split as `metrics.json` does."""
    parts = [
        f"# {name}",
        "A dual encoder for natural-language image search: texts and images become vectors whose cosine is the score.",
        _section("Use", _use()),
        _section("Data", _data(trained)),
        _section("Model and training", _training(trained)),
        _section("Figures", _figures(metrics)),
        _section("Probabilities", _probabilities(calibration, metrics)),
        _section("Limits", _limits()),
        _section("Environment", _environment(trained, versions)),
    ]
    return "\n\n".join(parts) + "\n"


def data_licences(pairs: Iterable[ImageTextPair]) -> dict[str, Any]:
    """What the images of a data set say of their licence: how many name each, and how many come with a credit."""
    named: Counter[str] = Counter()
    credited = total = 0
    for pair in pairs:
        total += 1
        credited += bool(pair.attributes.get("credit"))
        licence = pair.attributes.get("licence") or pair.attributes.get("license")
        if licence:
            named[str(licence)] += 1
    return {"images": total, "credited": credited, "licences": dict(named.most_common())}


def _use() -> str:
    return """\
Meant for searching a collection of pictures like those below by what they show, in the language of their captions. Not
meant for deciding about people, for recognising them, or for finding what must not be missed.

```
python -m dual_encoder.evaluate --bundle BUNDLE --data SOURCE
python -m serving.build_index --bundle BUNDLE --data SOURCE --out INDEX
python -m serving.server --bundle BUNDLE --index INDEX --address 127.0.0.1:50051
python -m serving.client search "what you look for" --address 127.0.0.1:50051
```"""


def _data(trained: Mapping[str, Any]) -> str:
    pairs = ", ".join(f"{trained['pairs'][split]:,} {split}" for split in SPLITS if split in trained["pairs"])
    lines = [
        f"- source: `{trained['data']}`",
        f"- images by split: {pairs}; images that belong together are in one split",
        f"- digest of ids, captions and splits: `{trained['data_digest']}`",
        f"- licence: {_licences(trained.get('data_licences'))}",
    ]
    return "\n".join(lines)


def _licences(told: Mapping[str, Any] | None) -> str:
    if not told or not told["images"]:
        return "not known"
    named = list(told["licences"].items())
    if not named:
        said = "the source names none; whoever passes this model on must know it"
    else:
        said = ", ".join(f"{licence} ({count:,} images)" for licence, count in named[:SHOWN])
        missing = told["images"] - sum(count for _, count in named)
        said += f", and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
        said += f"; {missing:,} images name none" if missing else ""
    credited = told["credited"]
    return said + (f". {credited:,} of {told['images']:,} images come with a credit to be kept" if credited else "")


def _training(trained: Mapping[str, Any]) -> str:
    recipe = trained["recipe"]
    trainer, objective = recipe["trainer"], recipe["objective"]
    schedule = {key: value for key, value in trainer["schedule"].items() if value is not None}
    rows = [
        ("recipe", recipe["name"]),
        ("objective", _settings(objective)),
        ("image head", _settings(recipe["model"]["image_head"])),
        ("text head", _settings(recipe["model"]["text_head"])),
        ("schedule of the learning rate", _settings(schedule)),
        *((key.replace("_", " "), value) for key, value in trainer.items() if key != "schedule"),
        *((key.replace("_", " "), value) for key, value in recipe.items() if isinstance(value, bool)),
        ("augmentation", recipe.get("augmentation")),
        ("best epoch", f"{trained['best_epoch']} of {trained['epochs']}"),
        *_interpolation(trained.get("interpolation")),
        *_distillation(recipe.get("distillation")),
    ]
    backbones = [
        f"- {part.replace('_', ' ')}: {told['weights']}, {told['trainable']}. Origin: {told['origin'] or 'not known'}. "
        f"Licence of the weights: {told['licence'] or 'not known here, ask its publisher'}."
        for part, told in trained.get("backbones", {}).items()
    ]
    table = _table(("setting", "value"), [(key, _settings(value)) for key, value in rows])
    why = trained.get("choices")
    chosen = (
        ["The recipe was chosen for the data and the machine:", _table(("setting", "value", "because"), why)]
        if why
        else []
    )
    smoothed = objective.get("label_smoothing", 0)
    warned = (
        [
            f"Trained with label smoothing {smoothed:g}: a poor teacher for another model, since it has forgotten how "
            "alike wrong answers are (Müller et al. 2019, arXiv:1906.02629)."
        ]
        if smoothed
        else []
    )
    return "\n\n".join(["\n".join(backbones), table, *warned, *chosen]).strip()


def _interpolation(found: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """How far the weights lie from those at the start to the best epoch's, and what else was tried (WiSE-FT)."""
    if found is None:
        return []
    tried = ", ".join(f"{alpha}: {value:.3f}" for alpha, value in found["validation"].items())
    said = f"{found['alpha']:g}" + (f" (on the validation split {tried})" if tried else "")
    return [("share of the way from the start to the best epoch", said)]


def _distillation(told: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Whose similarities the model learned from, and how much they counted."""
    if told is None:
        return []
    rest = {key: value for key, value in told.items() if key not in ("teacher", "fingerprint")}
    return [("teacher", f"{told['teacher']}, fingerprint {told['fingerprint'][:12]} ({_settings(rest)})")]


def _settings(value: Any) -> str:
    if isinstance(value, Mapping):
        kind = value.get("kind", "")
        rest = ", ".join(f"{key} {_settings(item)}" for key, item in value.items() if key != "kind")
        return f"{kind}: {rest}" if kind and rest else str(kind or rest)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_settings, value)) or "none"
    return "none" if value is None else str(value)


def _figures(metrics: Mapping[str, Any]) -> str:
    columns = ("split", "direction", "R@1 %", "R@5 %", "R@10 %", "median rank", "queries", "gallery")
    rows = [
        (
            split,
            direction.replace("_", " "),
            *(_with_interval(figures[direction], f"recall@{k}") for k in (1, 5, 10)),
            f"{figures[direction]['median_rank']:g}",
            figures[direction]["queries"],
            figures[direction]["gallery"],
        )
        for split, figures in _in_order(metrics)
        for direction in ("text_to_image", "image_to_text")
    ]
    notes = [
        "Every caption is a query. In brackets, 95 % intervals over other images of the same kind.",
        "The validation split chose the epoch, so its figures flatter.",
    ]
    if "test" not in metrics:
        notes.append("`python -m dual_encoder.evaluate --card` adds those of the test split.")
    return f"{_table(columns, rows)}\n\n{' '.join(notes)}"


def _in_order(metrics: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(metrics.items(), key=lambda item: SPLITS.index(item[0]))


def _with_interval(figures: Mapping[str, Any], metric: str) -> str:
    low, high = figures["confidence_95"][metric]
    return f"{100 * figures[metric]:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _probabilities(calibration: Calibration | None, metrics: Mapping[str, Any]) -> str:
    if calibration is None:
        return "None: there were too few validation captions to fit them on. A score is a cosine and no probability."
    lines = [
        "A score is a cosine; `bundle.json` holds the map to a probability, fitted on the validation split with "
        f"galleries of {calibration.smallest:,} to {calibration.largest:,} images; half of the queries had no answer."
    ]
    for split, figures in _in_order(metrics):
        if measured := figures.get("calibration"):
            first, apart = measured["first_hit"], measured["unanswerable"]["by_probability"]
            lines.append(
                f"On the {split} split, first hits are off by "
                f"{100 * first['expected_calibration_error']:.1f} percentage points on average, with a Brier score of "
                f"{first['brier']:.3f} ({first['brier_of_the_base_rate']:.3f} for the base rate); queries without an "
                f"answer are told from the others with AUROC {apart['auroc']:.2f}."
            )
    return " ".join(lines)


def _limits() -> str:
    return """\
It knows what its data and its backbones' data showed it, with their gaps and their prejudices. It reads no text in
pictures, counts badly, and confuses who does what to whom. On pictures, words or languages unlike the training data,
measure before relying on it."""


def _environment(trained: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    machine = trained.get("machine", {})
    said = [f"{package} {version}" for package, version in versions.items()]
    lines = [f"- versions: {', '.join(said)}"]
    if machine:
        gpus = f"{machine['gpus']} GPUs of {machine['gpu_memory_gb']:.0f} GB" if machine["gpus"] else "no GPU"
        lines.append(f"- machine: {machine['cores']} cores, {machine['memory_gb']:.0f} GB memory, {gpus}")
    if "seconds" in trained:
        lines.append(f"- time: {trained['seconds']:,.0f} s for the last sitting, features included unless cached")
    return "\n".join(lines)


def _section(title: str, content: str) -> str:
    return f"## {title}\n\n{content}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
