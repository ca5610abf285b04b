"""Captions that say nothing of their image are listed, good data is left alone, and languages are told apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from fakes import picture
from hypothesis import given
from hypothesis import strategies as st

from data.caption_checks import REPEATED_IMAGES, look_at_captions, plain
from data.caption_language import NONE, UNKNOWN, language_of, script_of
from data.pairs import ImageBytes, ImageTextPair
from data.sources.openmoji import OpenMoji


class Captions:
    """A source of nothing but captions."""

    name = "captions"

    def __init__(self, captions: Sequence[tuple[str, ...]]) -> None:
        self._captions = captions

    def __len__(self) -> int:
        return len(self._captions)

    def __iter__(self) -> Iterator[ImageTextPair]:
        image = ImageBytes(lambda: picture("red"))
        return (ImageTextPair(str(number), image, captions) for number, captions in enumerate(self._captions))


BOILERPLATE = "Image not available."


def test_the_same_caption_on_many_images_is_listed_whatever_its_case_and_punctuation() -> None:
    forms = [BOILERPLATE, "image  NOT available", "Image not available!"]
    source = Captions(
        [(f"picture number {n} of a town", *([forms[n % 3]] if n <= REPEATED_IMAGES else [])) for n in range(400)]
    )
    found = look_at_captions(source)
    assert {entry.reason for entry in found.entries} == {"same caption on many images"}
    assert {int(entry.image_id) for entry in found.entries} == set(range(REPEATED_IMAGES + 1))
    assert {entry.caption for entry in found.entries} == set(forms), "as the data set spells it"
    assert found.figures["same caption on many images"] == {BOILERPLATE: REPEATED_IMAGES + 1}
    assert found.figures["captions that say the same as another"] == REPEATED_IMAGES


def test_a_caption_is_not_listed_for_being_on_a_few_images_or_twice_on_one() -> None:
    few = Captions([(f"picture number {n}", *(["a dog"] if n < REPEATED_IMAGES else [])) for n in range(400)])
    assert not look_at_captions(few).entries
    twice = Captions([(f"picture number {n}", *(["a dog", "A dog."] if n < 30 else [])) for n in range(400)])
    assert not look_at_captions(twice).entries


def test_names_of_classes_are_left_alone() -> None:
    classes = Captions([(f"a photo of a {('cat', 'dog', 'horse')[n % 3]}",) for n in range(300)])
    assert not look_at_captions(classes).entries


def test_empty_long_and_odd_captions_are_counted_not_listed() -> None:
    source = Captions(
        [(), ("", " \n"), ("word " * 100,), ("see https://example.org",), ("a <b>bold</b> cat &amp; dog",)]
    )
    found = look_at_captions(source)
    assert not found.entries
    assert found.figures["images without a caption"] == 2
    assert found.figures["empty captions"] == 2
    assert found.figures["captions of more than 80 words"] == 1
    assert found.figures["captions with a web address"] == 1
    assert found.figures["captions with markup"] == 1
    assert sum(found.words) == found.figures["captions"] == 3


@pytest.mark.parametrize(
    "caption", ["IMG_1234", "dsc 0042", "photo 7", "Screenshot 2019-04-12", "20190412_134455", "00001234", "cat.jpg"]
)
def test_names_that_a_camera_gives_are_listed(caption: str) -> None:
    (entry,) = look_at_captions(Captions([(caption, "a dog on a beach")])).entries
    assert (entry.caption, entry.reason) == (caption, "file name as caption")


@pytest.mark.parametrize("caption", ["100", "1969", "747", "1 2 3", "24-7", "1000000", "image", "a photo of 2 cats"])
def test_numbers_and_words_are_captions(caption: str) -> None:
    """A hundred points is an emoji."""
    assert not look_at_captions(Captions([(caption,)])).entries


def test_a_common_beginning_is_told_with_how_often_it_occurs() -> None:
    source = Captions([(f"stock photo for free download {n} of a street",) for n in range(100)])
    found = look_at_captions(source)
    assert not found.entries
    assert found.figures["same beginning or end"] == {"stock photo for free download …": 100}


@pytest.mark.parametrize(
    ("caption", "script", "language"),
    [
        ("A dog runs on the beach with a ball", "LATIN", "English"),
        ("Ein Hund und eine Katze auf der Wiese", "LATIN", "German"),
        ("Un chien et un chat dans le jardin", "LATIN", "French"),
        ("Un perro y un gato en el jardín", "LATIN", "Spanish"),
        ("Собака бежит по пляжу", "CYRILLIC", UNKNOWN),
        ("海滩上的一只狗", "CJK", UNKNOWN),
        ("كلب على الشاطئ", "ARABIC", UNKNOWN),
        ("grinning", "LATIN", UNKNOWN),
        ("123 — !", NONE, UNKNOWN),
        ("", NONE, UNKNOWN),
    ],
)
def test_scripts_and_languages(caption: str, script: str, language: str) -> None:
    assert (script_of(caption), language_of(caption)) == (script, language)


def test_the_languages_of_emoji_names_are_seen() -> None:
    pairs = list(OpenMoji())
    found = look_at_captions(Captions([pair.captions for pair in pairs]))
    assert found.figures["captions"] == sum(len(pair.captions) for pair in pairs)
    assert max(found.figures["scripts"], key=found.figures["scripts"].get) == "LATIN"


@given(st.text(max_size=40))
def test_plain_text_is_plain_already(text: str) -> None:
    assert plain(plain(text)) == plain(text)
