"""What the doctor found as one HTML page with pictures, to be read before its lists are trusted; finds nothing."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.caption_checks import CaptionFindings
from data.html_page import attribute, page, section, table, text
from data.image_checks import ImageFindings
from data.pairs import PairSource
from data.quarantine import QuarantineEntry
from data.svg_plots import Axis, histogram_plot
from data.thumbnails import thumbnails

EXAMPLES = 12  # of each reason
PAIRS = 24  # of near-duplicates: the least alike, which are the likeliest mistakes


@dataclass
class DoctorReport:
    """What a page shows: `figures` is what report.json holds; what was not looked at is empty."""

    source: PairSource
    figures: Mapping[str, Any]
    entries: Sequence[QuarantineEntry]
    images: ImageFindings = field(default_factory=ImageFindings)
    captions: CaptionFindings = field(default_factory=CaptionFindings)


def render(report: DoctorReport) -> str:
    """The whole page; reads the images that it shows."""
    by_reason: dict[str, list[QuarantineEntry]] = {}
    for entry in report.entries:
        by_reason.setdefault(entry.reason, []).append(entry)
    shown = {reason: _examples(entries) for reason, entries in by_reason.items()}
    near = sorted(report.images.near, key=lambda pair: pair.likeness)[:PAIRS]
    notes = report.images.notes[:EXAMPLES]
    wanted = {entry.image_id for entries in shown.values() for entry in entries}
    wanted |= {image_id for pair in near for image_id in (pair.image_id, pair.other_id)} | {name for name, _ in notes}
    pictures = thumbnails(report.source, wanted)
    title = f"Data set doctor: {report.source.name}"
    counts = [(reason, f"{len(entries):,}") for reason, entries in sorted(by_reason.items())]
    sections = [
        section("What is listed", table("quarantine.jsonl", ("reason", "entries"), counts or [("nothing", "0")])),
        *(
            section(
                reason.capitalize(), _strip([_entry(e, pictures) for e in shown[reason]], _told(shown[reason], entries))
            )
            for reason, entries in sorted(by_reason.items())
        ),
        _near(near, len(report.images.near), pictures),
        _notes(notes, len(report.images.notes), pictures),
        _plots(report),
        *_tables(report.figures),
    ]
    return page(title, title, sections)


def _examples(entries: Sequence[QuarantineEntry]) -> list[QuarantineEntry]:
    """The surest ones first, where they have a score."""
    return sorted(entries, key=lambda entry: 0.0 if entry.score is None else entry.score)[:EXAMPLES]


def _told(shown: Sequence[Any], every: Sequence[Any]) -> str:
    return "" if len(shown) == len(every) else f"<p>{len(shown)} of {len(every):,}, the surest first.</p>"


def _entry(entry: QuarantineEntry, pictures: Mapping[str, bytes]) -> str:
    words = entry.caption or entry.image_id
    trust = f" <small>fits with probability {entry.weight:.2f}</small>" if entry.score is not None else ""
    return _figure(entry.image_id, pictures, f"{text(words)}{trust}")


def _near(near: Sequence[Any], count: int, pictures: Mapping[str, bytes]) -> str:
    if not near:
        return ""
    rows = []
    for pair in near:
        how = f"likeness {pair.likeness:.3f}" + (", mirrored" if pair.mirrored else "")
        both = "".join(_figure(name, pictures, text(name)) for name in (pair.image_id, pair.other_id))
        rows.append(f'<article><div class="strip">{both}</div><p>{how}</p></article>')
    note = f"<p>{len(near)} of {count:,} pairs, the least alike first: they stay in one split (groups.jsonl).</p>"
    return section("Images of one picture", note + "".join(rows))


def _notes(notes: Sequence[tuple[str, str]], count: int, pictures: Mapping[str, bytes]) -> str:
    if not notes:
        return ""
    told = f"<p>{len(notes)} of {count:,}; not listed, because they harm nothing.</p>"
    return section("Worth a look", _strip([_figure(name, pictures, text(note)) for name, note in notes], told))


def _plots(report: DoctorReport) -> str:
    plots = []
    if (words := report.captions.words[1:]) and sum(words):
        longest = max(number for number, count in enumerate(words, 1) if count)
        x = Axis("words of a caption", 0.5, longest + 0.5, whole=True)
        edges = [number + 0.5 for number in range(longest + 1)]
        told = f"{sum(words):,} captions of up to {longest} words"
        plots.append(histogram_plot("Length of captions", told, x, edges, {"captions": words[:longest]}))
    if sides := [min(size) for size in report.images.sizes]:
        bins = 40
        step = max(1, -(-(max(sides) + 1) // bins))
        counts = [0] * bins
        for side in sides:
            counts[side // step] += 1
        x = Axis("shorter side, pixels", 0, step * bins)
        told = f"{len(sides):,} images of {min(sides):,} to {max(sides):,} pixels"
        edges = [float(step * number) for number in range(bins + 1)]
        plots.append(histogram_plot("Size of images", told, x, edges, {"images": counts}))
    return section("Sizes", "".join(plots)) if plots else ""


def _tables(figures: Mapping[str, Any]) -> list[str]:
    """Plain numbers in one table, those by name in one each."""
    single = [(name, _number(value)) for name, value in figures.items() if isinstance(value, int | float)]
    nested = {name: value for name, value in figures.items() if isinstance(value, dict) and value and name != "listed"}
    return [
        section("Figures", table("all that was counted", ("figure", "number"), single)),
        *(
            section(name.capitalize(), table(name, ("which", "number"), [(k, _number(v)) for k, v in value.items()]))
            for name, value in nested.items()
        ),
    ]


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _strip(figures: Sequence[str], before: str = "") -> str:
    return f'{before}<div class="strip">{"".join(figures)}</div>'


def _figure(image_id: str, pictures: Mapping[str, bytes], told: str) -> str:
    if image_id in pictures:
        data = base64.b64encode(pictures[image_id]).decode()
        shown = f'<img alt="{attribute(image_id)}" src="data:image/webp;base64,{data}">'
    else:
        shown = f'<div class="missing" role="img" aria-label="{attribute(image_id)}">no picture</div>'
    return f'<figure class="told">{shown}<figcaption>{told}</figcaption></figure>'
