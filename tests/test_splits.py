"""Nothing leaks between splits, and a split never changes because something else was added."""

from __future__ import annotations

import io
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.errors import SourceError
from data.pairs import ImageBytes, ImageTextPair
from data.splits import SPLITS, SplitAssigner, SplitFractions, UnionFind, split_pairs

names = st.text("abcdefgh", min_size=1, max_size=2)
# (group or none, digest or none); the id is the position.
rows = st.lists(st.tuples(st.none() | names, st.none() | names), min_size=1, max_size=40)


def assign(items: list[tuple], seed: int = 0, fractions: SplitFractions | None = None) -> dict[str, str]:
    assigner = SplitAssigner(seed, fractions)
    for item in items:
        assigner.add(*item)
    return assigner.assign()


def with_ids(pairs: list[tuple[str | None, str | None]]) -> list[tuple[str, str | None, str | None]]:
    return [(f"i{position}", group, digest) for position, (group, digest) in enumerate(pairs)]


@given(rows, st.integers(0, 5))
@settings(max_examples=300, deadline=None)
def test_what_belongs_together_stays_together(pairs: list, seed: int) -> None:
    items = with_ids(pairs)
    splits = assign(items, seed)
    assert list(splits) == [item[0] for item in items]
    assert set(splits.values()) <= set(SPLITS)
    for column in (1, 2):
        for name in {item[column] for item in items} - {None}:
            assert len({splits[item[0]] for item in items if item[column] == name}) == 1


@given(rows, st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_the_order_of_images_does_not_matter(pairs: list, random: object) -> None:
    items = with_ids(pairs)
    shuffled = list(items)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert assign(items) == assign(shuffled)


@given(rows, rows)
@settings(max_examples=200, deadline=None)
def test_adding_other_groups_changes_nothing(pairs: list, more: list) -> None:
    items = with_ids(pairs)
    others = [
        (f"other{position}", group and f"other {group}", digest and f"other {digest}")
        for position, (group, digest) in enumerate(more)
    ]
    before, after = assign(items), assign(others + items)
    assert {image_id: after[image_id] for image_id in before} == before


def test_a_new_image_of_a_known_group_joins_its_split() -> None:
    for number in range(50):
        before = assign([("z", f"g{number}", None)])
        assert assign([("a", f"g{number}", None), ("z", f"g{number}", None)])["a"] == before["z"]


def test_fractions_are_met_by_groups() -> None:
    splits = Counter(assign([(f"image{n}", f"g{n // 2}", None) for n in range(20_000)]).values())
    assert splits["train"] / 20_000 == pytest.approx(0.8, abs=0.02)
    assert splits["validation"] / 20_000 == pytest.approx(0.1, abs=0.015)
    half = Counter(assign([(f"{n}",) for n in range(4000)], fractions=SplitFractions(0.5, 0.0, 0.5)).values())
    assert half["validation"] == 0
    assert half["train"] == pytest.approx(2000, abs=150)


def test_another_seed_gives_another_split() -> None:
    items = [(f"i{n}",) for n in range(200)]
    assert assign(items, 1) != assign(items, 2)
    assert assign(items, 1) == assign(items, 1)


def test_the_assignment_is_stable_between_releases() -> None:
    """Literal values: a change here would silently move test images of every user into training."""
    splits = assign([(f"image{n}", None if n % 2 else f"group{n}") for n in range(24)])
    letters = "".join(split[:2] for split in splits.values())
    assert letters == "trtrtrtrtrtrtrtrtrtrtrtrtrtrtrtrtetrtrvatrtrtetr"


@given(rows, st.data())
@settings(max_examples=200, deadline=None)
def test_prescribed_splits_are_honoured_or_refused(pairs: list, data: st.DataObject) -> None:
    items = [(*item, data.draw(st.none() | st.sampled_from(SPLITS))) for item in with_ids(pairs)]
    sets = UnionFind()
    for image_id, group, digest, _ in items:
        for other in (group and f"g:{group}", digest and f"d:{digest}"):
            if other:
                sets.join(image_id, other)
    wanted: dict[object, set[str]] = {}
    for image_id, _, _, split in items:
        wanted.setdefault(sets.find(image_id), set()).update({split} - {None})
    torn = any(len(splits) > 1 for splits in wanted.values())
    if torn:
        with pytest.raises(SourceError, match="across prescribed splits"):
            assign(items)
    else:
        splits = assign(items)
        assert all(splits[item[0]] == item[3] for item in items if item[3])


def test_a_leak_is_reported_with_examples_and_a_way_out() -> None:
    items = [("a.jpg", "g1", None, "train"), ("b.jpg", "g1", None, None), ("c.jpg", "g1", None, "test")]
    with pytest.raises(SourceError) as caught:
        assign([*items, ("d.jpg", None, "same", "train"), ("e.jpg", None, "same", "validation")])
    message = str(caught.value)
    for word in ("2 groups", "a.jpg (train) and c.jpg (test)", "d.jpg (train) and e.jpg (validation)", "--resplit"):
        assert word in message


def test_an_image_without_prescription_follows_its_group() -> None:
    for split in SPLITS:
        assert assign([("a", "g", None, split), ("b", "g"), ("c", None, None)])["b"] == split


def test_an_id_twice_is_refused() -> None:
    with pytest.raises(SourceError, match="a.jpg twice"):
        assign([("a.jpg",), ("a.jpg",)])


@pytest.mark.parametrize("shares", [(0.8, 0.1, 0.2), (1.2, -0.1, -0.1)])
def test_fractions_must_add_up(shares: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="add up to 1"):
        SplitFractions(*shares)


def test_a_long_chain_is_joined_without_recursion() -> None:
    sets = UnionFind()
    for number in range(100_000):
        sets.join(number, number + 1)
    assert sets.find(0) == sets.find(100_000)


def image(colour: int) -> ImageBytes:
    buffer = io.BytesIO()
    Image.new("L", (2, 2), colour).save(buffer, "PNG")
    return ImageBytes(buffer.getvalue)


def test_pairs_with_identical_bytes_share_a_split() -> None:
    pairs = [ImageTextPair(f"{n}.png", image(n % 40)) for n in range(200)]
    splits = split_pairs(pairs)
    assert sorted(pair.image_id for split in splits.values() for pair in split) == sorted(p.image_id for p in pairs)
    for colour in range(40):
        assert sum(any(int(p.image_id[:-4]) % 40 == colour for p in split) for split in splits.values()) == 1
    assert [p.image_id for p in splits["train"]] == [p.image_id for p in pairs if p in splits["train"]]
    unread = [ImageTextPair(pair.image_id, ImageBytes(lambda: pytest.fail("read"))) for pair in pairs]
    assert sum(map(len, split_pairs(unread, compare_bytes=False).values())) == 200
