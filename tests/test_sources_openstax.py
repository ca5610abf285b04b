"""OpenStax clones give figures with alt text, credit and licence; hostile and unlicensed content gets no further."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from data.errors import SourceError
from data.prepare import REJECTED, PrepareSettings, prepare
from data.sources import open_source
from data.sources.cnxml import MAX_DEPTH, MAX_XML_BYTES
from data.sources.openstax import licence_name, short_form, split_credit

COLLECTION = """<?xml version="1.0"?>
<col:collection xmlns="http://cnx.rice.edu/collxml" xmlns:md="http://cnx.rice.edu/mdml"
    xmlns:col="http://cnx.rice.edu/collxml" xml:lang="en">
  <metadata mdml-version="0.5">
    <md:title>Birds of the Coast </md:title>
    <md:license url="{licence}">a licence</md:license>
    <md:slug>{slug}</md:slug>
  </metadata>
  <col:content><col:subcollection><md:title>One</md:title><col:content>{modules}</col:content></col:subcollection>
  </col:content>
</col:collection>"""
MODULE = """<document xmlns="http://cnx.rice.edu/cnxml"><title>Gulls</title>
<metadata xmlns:md="http://cnx.rice.edu/mdml"><md:title>Gulls</md:title></metadata>
<content>{content}</content></document>"""
BY = "http://creativecommons.org/licenses/by/4.0/"
FIGURE = """<figure id="gull"><media id="m1" alt="A photo of a gull on a
    rock. It looks at the sea."><image mime-type="image/jpeg" src="../../media/gull one.jpg" width="280"/></media>
  <caption>A <emphasis effect="italics">Larus</emphasis> at rest.
    (credit: “Gull” by A. Person (Flickr), CC BY 2.0)</caption>
</figure>"""


def clone(root: Path, content: str = FIGURE, licence: str = BY, slug: str = "coast-birds", module: str = "m1") -> Path:
    """A repository of one book with one module."""
    for folder in ("collections", f"modules/{module}", "media"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    modules = f'<col:module document="{module}"/>'
    (root / f"collections/{slug}.collection.xml").write_text(
        COLLECTION.format(licence=licence, slug=slug, modules=modules), "utf-8"
    )
    (root / f"modules/{module}/index.cnxml").write_text(MODULE.format(content=content), "utf-8")
    Image.new("RGB", (8, 8), "grey").save(root / "media/gull one.jpg")
    return root


def media(alt: str, src: str, rest: str = "") -> str:
    return f'<media alt="{alt}"><image mime-type="image/jpeg" src="../../media/{src}"/>{rest}</media>'


def test_a_figure_becomes_a_pair_with_everything_known_about_it(tmp_path: Path) -> None:
    root = clone(tmp_path / "osbooks-birds")
    commit = "0123456789abcdef0123456789abcdef01234567"
    (root / ".git/refs/heads").mkdir(parents=True)
    (root / ".git/HEAD").write_text("ref: refs/heads/main\n")
    (root / ".git/refs/heads/main").write_text(f"{commit}\n")
    (root / ".git/config").write_text('[remote "origin"]\n\turl = https://github.com/openstax/osbooks-birds.git\n')
    source = open_source(f"openstax:{root}")
    (pair,) = source
    assert len(source) == 1
    assert source.name == f"openstax:{root}"
    assert pair.image_id == "media/gull one.jpg"
    assert pair.captions == (
        "A gull on a rock. It looks at the sea.",
        "A photo of a gull on a rock. It looks at the sea.",
    )
    assert pair.group is None
    assert pair.attributes == {
        "book": "coast-birds",
        "kind": "photo",
        "multi_panel": False,
        "licence": "CC BY 4.0",
        "source": "OpenStax Birds of the Coast (github.com/openstax/osbooks-birds@0123456789 media/gull one.jpg)",
        "credit": "(credit: “Gull” by A. Person (Flickr), CC BY 2.0)",
        "context": "A Larus at rest.",
    }
    assert pair.image.read() == (root / "media/gull one.jpg").read_bytes()

    (root / ".git/packed-refs").write_text(f"# pack-refs\n{'a' * 40} refs/heads/main\n")
    (root / ".git/refs/heads/main").unlink()
    assert "@aaaaaaaaaa " in next(iter(open_source(f"openstax:{root}"))).attributes["source"]


def test_several_clones_are_told_apart_and_the_same_picture_gathers_its_texts(tmp_path: Path) -> None:
    again = FIGURE + media("The same gull.", "gull one.jpg") + media("A tern.", "tern.png")
    clone(tmp_path / "one", again)
    clone(tmp_path / "two")
    pairs = {pair.image_id: pair for pair in open_source(f"openstax:{tmp_path}")}
    assert list(pairs) == ["one/media/gull one.jpg", "one/media/tern.png", "two/media/gull one.jpg"]
    assert pairs["one/media/gull one.jpg"].captions[-1] == "The same gull."
    groups = [pair.group for pair in pairs.values()]
    assert groups == ["one/media/gull one.jpg", None, "one/media/gull one.jpg"], "the same alt text"


def test_panels_belong_together_and_panels_within_an_image_are_flagged(tmp_path: Path) -> None:
    content = (
        '<figure id="f"><subfigure id="a">'
        + media("A gull in flight.", "a.jpg")
        + "<caption>In the air.</caption></subfigure><subfigure id='b'>"
        + media("A gull at rest.", "b.jpg")
        + "</subfigure><caption>Two gulls.</caption></figure><figure id='g'>"
        + media("Photo (a) shows a gull. Photo (b) shows a tern.", "both.jpg")
        + "</figure>"
    )
    a, b, both = open_source(f"openstax:{clone(tmp_path, content)}")
    assert a.group == b.group == "media/a.jpg"
    assert both.group is None
    assert [pair.attributes["multi_panel"] for pair in (a, b, both)] == [False, False, True]
    assert [pair.attributes.get("context") for pair in (a, b, both)] == ["In the air. Two gulls.", "Two gulls.", None]


@pytest.mark.parametrize(
    ("alt", "kind"),
    [
        ("A man at a table with a painted sign behind him.", "art"),
        ("An engraving shows a ship.", "art"),
        ("A graph shows the number of gulls.", "diagram"),
        ("A gull. In the back hangs a painting.", "photo"),
    ],
)
def test_the_kind_is_guessed_from_the_first_sentence(alt: str, kind: str, tmp_path: Path) -> None:
    (pair,) = open_source(f"openstax:{clone(tmp_path, media(alt, 'gull one.jpg'))}")
    assert pair.attributes["kind"] == kind


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = (
        FIGURE
        + media("", "plain.jpg")
        + media("A drawing.", "vector.svg")
        + media("Another book's.", "../../other/media/x.jpg")
        + '<media alt="A film."><video src="../../media/film.mp4"/></media>'
        + '<media alt="Print first."><image for="pdf" src="../../media/p.jpg"/><image src="../../media/w.jpg"/></media>'
    )
    root = clone(tmp_path, content)
    (root / "collections/other.collection.xml").write_text(
        COLLECTION.format(licence=BY, slug="other", modules='<col:module document="m999"/>')
    )
    assert [pair.image_id for pair in open_source(f"openstax:{root}")] == ["media/gull one.jpg", "media/w.jpg"]
    said = capsys.readouterr().err
    for words in (
        "1 images without alt text",
        "1 media of other formats",
        "1 images outside",
        "1 modules that are not in",
    ):
        assert words in said


def test_missing_media_are_reported_by_prepare(tmp_path: Path) -> None:
    root = clone(tmp_path / "birds", FIGURE + media("A tern.", "tern.jpg"))
    prepare(open_source(f"openstax:{root}"), tmp_path / "out", PrepareSettings())
    assert '"media/tern.jpg","reason":"missing"' in (tmp_path / "out" / REJECTED).read_text()


@pytest.mark.parametrize(
    ("licence", "words"),
    [
        ("http://creativecommons.org/licenses/by-nc-sa/4.0/", "CC BY-NC-SA 4.0"),
        ("https://creativecommons.org/licenses/by-nd/4.0/deed.en", "CC BY-ND 4.0"),
        ("https://example.org/licenses/by/4.0/", "https://example.org"),
        ("", "without a licence"),
    ],
)
def test_other_licences_are_refused_by_name(licence: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=words) as caught:
        open_source(f"openstax:{clone(tmp_path, licence=licence)}")
    assert "before it changed" in caught.value.next_step


def test_a_book_of_another_licence_does_not_stop_the_others(tmp_path: Path, capsys) -> None:
    clone(tmp_path, licence="http://creativecommons.org/licenses/by-sa/4.0/")
    clone(tmp_path, slug="closed", module="m2", licence="http://creativecommons.org/licenses/by-nc/4.0/")
    (pair,) = open_source(f"openstax:{tmp_path}")
    assert (pair.attributes["book"], pair.attributes["licence"]) == ("coast-birds", "CC BY-SA 4.0")
    assert "book closed" in capsys.readouterr().err
    assert licence_name("http://creativecommons.org/publicdomain/zero/1.0/") == "CC0 1.0"


def test_links_and_modules_that_lead_outside_are_not_followed(tmp_path: Path, capsys) -> None:
    secret = tmp_path / "secret.jpg"
    Image.new("RGB", (8, 8)).save(secret)
    root = clone(tmp_path / "birds", FIGURE + media("Not yours.", "link.jpg"))
    (root / "media/link.jpg").symlink_to(secret)
    (root / "media/loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/index.cnxml").write_text(MODULE.format(content=media("Stolen.", "x.jpg")))
    (root / "collections/trick.collection.xml").write_text(
        COLLECTION.format(licence=BY, slug="trick", modules='<col:module document="../../elsewhere"/>')
    )
    assert [pair.image_id for pair in open_source(f"openstax:{root}")] == ["media/gull one.jpg"]
    said = capsys.readouterr().err
    assert "1 images outside their repository" in said
    assert "1 modules that are not in the repository" in said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<document><content>", "well-formed XML"),
        (b"", "well-formed XML"),
        (b'<!DOCTYPE d [<!ENTITY a "aaaa">]><document>&a;</document>', "without a document type"),
        (b'<!DOCTYPE d SYSTEM "file:///etc/passwd"><document/>', "without a document type"),
        (b'<?xml version="1.0" encoding="UTF-16"?>'.decode().encode("utf-16"), "UTF-8"),
        (b"<document>\xff</document>", "UTF-8"),
        (b"<d>" * (MAX_DEPTH + 1), "nested elements"),
        (b"<document>a\0b</document>", "well-formed XML"),
        (b" " * (MAX_XML_BYTES + 1), "at most"),
    ],
)
@pytest.mark.parametrize("file", ["modules/m1/index.cnxml", "collections/coast-birds.collection.xml"])
def test_hostile_xml_is_refused_with_its_file(file: str, content: bytes, words: str, tmp_path: Path) -> None:
    root = clone(tmp_path)
    (root / file).write_bytes(content)
    with pytest.raises(SourceError, match=words) as caught:
        open_source(f"openstax:{root}")
    assert file in str(caught.value)


def test_a_directory_without_books_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="clone of an OpenStax textbook"):
        open_source(f"openstax:{tmp_path}")
    with pytest.raises(SourceError, match="no figures"):
        open_source(f"openstax:{clone(tmp_path, content='<para>Only words.</para>')}")


def test_short_forms_and_credits() -> None:
    assert short_form("This image shows two gulls. They fly.") == "Two gulls. They fly."
    long = "A gull " + "very " * 30 + "far away. It flies."
    assert short_form(long) == "A gull " + "very " * 30 + "far away."
    assert short_form("Gulls.") == "Gulls."
    assert split_credit("Gulls (a) and terns (b). (credit a: X (Y); credit b: Z) At sea.") == (
        "Gulls (a) and terns (b). At sea.",
        "(credit a: X (Y); credit b: Z)",
    )
    assert split_credit("Unclosed (credit: X") == ("Unclosed", "(credit: X")
    assert split_credit("") == ("", "")
