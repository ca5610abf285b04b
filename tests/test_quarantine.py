"""A quarantine leaves out or weighs down exactly what it lists, never in test, and everything made with it says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapes import FROZEN, write_shapes

from data.curated import Curated
from data.errors import SourceError
from data.groups import read_groups, write_groups
from data.pairs import ImageBytes, ImageTextPair
from data.prepare import main as prepare_main
from data.quarantine import Quarantine, QuarantineEntry, read_entries, read_quarantine, write_entries
from data.sources import open_source
from data.splits import split_pairs
from data.text import CaptionTokenizer
from dual_encoder.train import main as train_main
from dual_encoder.train import train
from dual_encoder.training_data import CaptionTable


def pair(image_id: str = "a", captions: tuple[str, ...] = ("one", "two"), **more: object) -> ImageTextPair:
    return ImageTextPair(image_id, ImageBytes(lambda: b""), captions, **more)  # type: ignore[arg-type]


def entry(weight: float, caption: str | None = "one", image_id: str = "a") -> QuarantineEntry:
    return QuarantineEntry(image_id, caption, "mismatched", weight, score=0.25)


def left(mode: str, *entries: QuarantineEntry, of: ImageTextPair | None = None) -> tuple | None:
    found = Quarantine(entries, mode).cleaned(of or pair())  # type: ignore[arg-type]
    return None if found is None else (found.captions, found.caption_weights)


def test_dropping_leaves_out_what_is_trusted_less_than_half_and_touches_nothing_else() -> None:
    assert left("drop", entry(0.49)) == (("two",), ())
    assert left("drop", entry(0.5)) == (("one", "two"), ())
    assert left("drop", entry(0, None)) is None
    assert left("drop", entry(0), entry(0, "two")) is None, "an image without captions has nothing to teach"
    assert left("drop", entry(0, image_id="b")) == (("one", "two"), ())
    assert left("drop", entry(0), of=pair(captions=("  one ", "ONE"))) == (("ONE",), ()), "compared once cleaned"


def test_weighing_down_multiplies_weights_and_leaves_out_what_has_none() -> None:
    assert left("down-weight", entry(0.25)) == (("one", "two"), (0.25, 1.0))
    assert left("down-weight", entry(0.25), entry(0.5, None)) == (("one", "two"), (0.125, 0.5))
    assert left("down-weight", entry(0.25), of=pair(caption_weights=(0.5, 1.0))) == (("one", "two"), (0.125, 1.0))
    assert left("down-weight", entry(0)) == (("two",), ())
    assert left("down-weight", entry(0.7), entry(0.2)) == (("one", "two"), (0.2, 1.0)), "the least trust decides"


def test_test_pairs_are_left_as_they_are_and_images_go_before_splits_are_made() -> None:
    quarantine = Quarantine([entry(0, None)])
    assert not quarantine.admits(pair())
    assert not quarantine.admits(pair(split="train"))
    assert quarantine.admits(pair(split="test"))
    splits = {"train": [pair(), pair("b")], "validation": [pair()], "test": [pair()]}
    found = {name: [p.image_id for p in pairs] for name, pairs in quarantine.of_splits(splits).items()}
    assert found == {"train": ["b"], "validation": [], "test": ["a"]}


def test_a_list_of_another_data_set_is_refused() -> None:
    with pytest.raises(SourceError, match="none of which it has"):
        Quarantine([entry(0)]).of_splits({"train": [pair("z")]})


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
entries = st.builds(
    QuarantineEntry,
    text,
    st.none() | text,
    text,
    st.floats(0, 1),
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
)


@given(st.lists(entries, max_size=5))
def test_a_list_survives_its_file_and_its_name_ignores_order(tmp_path_factory, listed: list[QuarantineEntry]) -> None:
    path = tmp_path_factory.mktemp("list") / "quarantine.jsonl"
    write_entries(path, listed)
    assert read_entries(path) == listed
    assert read_quarantine(path).to_config() == Quarantine(listed[::-1]).to_config()
    assert read_quarantine(path, "down-weight").to_config() != Quarantine(listed).to_config()


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"image_id": "a"}', '{"image_id": "a", "caption": 1, "reason": "r", "weight": 0}',
     '{"image_id": "a", "caption": null, "reason": "r", "weight": 1.5}',
     '{"image_id": "a", "caption": null, "reason": "r", "weight": 0, "colour": "red"}',
     '{"image_id": "a", "caption": null, "reason": "r", "weight": NaN}'],
)  # fmt: skip
def test_a_malformed_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "list.jsonl"
    write_entries(path, [entry(0)])
    path.write_text(path.read_text() + line)
    with pytest.raises(SourceError, match="line 2"):
        read_quarantine(path)


def test_groups_survive_their_file_and_a_malformed_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "groups.jsonl"
    write_groups(path, {"é": "g 1", "b\n": "g 1"})
    assert read_groups(path) == {"é": "g 1", "b\n": "g 1"}
    path.write_text('{"image_id": "a", "group": 1}')
    with pytest.raises(SourceError, match="line 1"):
        read_groups(path)
    with pytest.raises(SourceError, match=r"absent\.jsonl"):
        read_groups(tmp_path / "absent.jsonl")


def test_caption_tables_carry_weights_past_empty_captions() -> None:
    table = CaptionTable.of([pair(captions=("x", " ", "y"), caption_weights=(0.5, 0.1, 0.25)), pair("b")])
    assert table.captions == ["x", "y", "one", "two"]
    assert table.weights == [0.5, 0.25, 1.0, 1.0]


def test_pixel_batches_carry_the_weight_of_the_caption_that_was_drawn() -> None:
    from fakes import picture

    from data.images import ImagePreprocessing
    from data.pipeline import batches

    pairs = [
        ImageTextPair(
            str(n), ImageBytes(lambda: picture("red")), ("red", " ", "round"), caption_weights=(0.25, 0.5, 1.0)
        )
        for n in range(12)
    ]
    tokenizer = CaptionTokenizer.trained(["red round"], 60, 8)
    red = tokenizer.encode(["red"]).ids[0]
    (batch,) = batches(pairs, ImagePreprocessing(size=8), tokenizer, 12, 1, 0).as_numpy_iterator()
    is_red = (batch["ids"] == red).all(axis=1)
    assert 0 < is_red.sum() < 12
    np.testing.assert_array_equal(batch["weight"], np.where(is_red, 0.25, 1.0).astype(np.float32))
    plain = [pair(str(n), ("red",)) for n in range(2)]
    assert "weight" not in batches(plain, ImagePreprocessing(size=8), tokenizer, 2, 1, 0).element_spec


@pytest.fixture
def shapes(tmp_path: Path) -> tuple[str, list[ImageTextPair]]:
    source = write_shapes(tmp_path / "shapes")
    return source, list(open_source(source))


def test_prepare_leaves_out_what_is_listed_keeps_groups_and_records_both(shapes, tmp_path: Path) -> None:
    source, pairs = shapes
    train_pairs = [p for p in pairs if p.split == "train"]
    (test_pair, *_) = [p for p in pairs if p.split == "test"]
    listed = [
        QuarantineEntry(train_pairs[0].image_id, None, "blank"),
        QuarantineEntry(train_pairs[1].image_id, train_pairs[1].captions[0], "mismatched", 0.125),
        QuarantineEntry(test_pair.image_id, None, "blank"),
    ]
    write_entries(tmp_path / "quarantine.jsonl", listed)
    write_groups(tmp_path / "groups.jsonl", {p.image_id: "together" for p in train_pairs[2:4]})
    options = ["--data", source, "--quarantine", f"{tmp_path}/quarantine.jsonl", "--groups", f"{tmp_path}/groups.jsonl"]
    for mode in ("drop", "down-weight"):
        out = tmp_path / mode
        assert prepare_main([*options, "--out", str(out), "--quarantine-mode", mode]) == 0
        found = {p.image_id: p for p in open_source(str(out))}
        assert len(found) == len(pairs) - 1
        assert train_pairs[0].image_id not in found
        assert test_pair.image_id in found
        marked = found[train_pairs[1].image_id]
        if mode == "drop":
            assert (marked.captions, marked.caption_weights) == (train_pairs[1].captions[1:], ())
        else:
            assert (marked.captions, marked.caption_weights) == (train_pairs[1].captions, (0.125, 1.0))
        assert [found[p.image_id].group for p in train_pairs[2:5]] == ["together", "together", None]
        made_from = json.loads((out / "manifest.json").read_text())["made_from"]
        assert made_from["quarantine"] == read_quarantine(tmp_path / "quarantine.jsonl", mode).to_config()


@pytest.mark.usefixtures("no_engines")
def test_training_keeps_groups_of_a_list_together(tmp_path: Path) -> None:
    source = write_shapes(tmp_path / "shapes", [""] * 9)
    pairs = list(open_source(source))
    groups = {pair.image_id: "even" if number % 2 else "odd" for number, pair in enumerate(pairs[:40])}
    recipe = FROZEN.with_settings(epochs=1)
    trained = train(recipe, source, tmp_path / "model", groups=groups).manifest["trained"]
    expected = split_pairs(Curated(open_source(source), groups))
    assert trained["pairs"] == {name: len(found) for name, found in expected.items()}
    assert trained["pairs"] != {name: len(found) for name, found in split_pairs(open_source(source)).items()}
    assert trained["groups"]
    with pytest.raises(SourceError, match="a list of groups"):
        train_main(["--data", source, "--out", str(tmp_path / "no"), "--groups", f"{tmp_path}/absent.jsonl"])


@pytest.mark.usefixtures("no_engines")
def test_training_names_its_quarantine_and_another_list_is_another_run(shapes, tmp_path: Path) -> None:
    source, pairs = shapes
    doubted = [QuarantineEntry(p.image_id, p.captions[0], "mismatched", 0.2) for p in pairs if p.split == "train"]
    recipe = FROZEN.with_settings(epochs=1)
    runs = {}
    for mode in ("drop", "down-weight"):
        quarantine = Quarantine(doubted, mode)
        trained = train(recipe, source, tmp_path / mode, quarantine=quarantine).manifest["trained"]
        assert trained["quarantine"] == quarantine.to_config()
        runs[mode] = trained["run"]
    plain = train(recipe, source, tmp_path / "plain").manifest["trained"]
    assert "quarantine" not in plain
    assert len({*runs.values(), plain["run"]}) == 3
