"""A catalog's location leads to the image it was noted for, and to no other."""

import pytest
from fakes import picture

from data.durable import digest_bytes
from data.errors import ImageError
from data.images import ImageLimits
from data.pairs import ImageBytes, ImageFile, ImageRange
from serving.image_files import find_image, image_at, location_of, read_image
from serving.uploaded_images import keep_image

RED, BLUE = picture("red"), picture("blue")


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "shard#1.tar"
    path.write_bytes(b"head" + RED + BLUE)
    return path


def test_an_image_in_a_file_of_its_own_or_inside_another_is_found_by_its_location(archive, tmp_path):
    own = tmp_path / "a#5+3"
    own.write_bytes(RED)
    for image in (ImageFile(own), ImageRange(archive, 4, len(RED))):
        assert image_at(location_of(image)) == image
        assert read_image(tmp_path, digest_bytes(RED), location_of(image)) == RED
    assert location_of(ImageBytes(lambda: RED)) == ""


@pytest.mark.parametrize("location", ["", "/nowhere.png", "/nowhere#0+5", "/etc\0", "x" * 5000, "#1+1", "/tmp#-1+5"])
def test_a_location_where_nothing_is_leads_nowhere(location, tmp_path):
    assert read_image(tmp_path, digest_bytes(RED), location) is None


def test_only_the_bytes_with_the_digest_are_given(archive, tmp_path):
    location = location_of(ImageRange(archive, 4, len(RED)))
    assert find_image(tmp_path, digest_bytes(BLUE), location) is None
    assert find_image(tmp_path, "", location) is None
    archive.write_bytes(b"gone")
    assert read_image(tmp_path, digest_bytes(RED), location) is None


def test_an_uploaded_image_needs_no_location(tmp_path):
    digest = keep_image(tmp_path, RED)
    assert read_image(tmp_path, digest, "") == RED
    assert read_image(None, digest, "") is None


def test_a_range_longer_than_allowed_or_than_the_file_is_refused(archive):
    with pytest.raises(ImageError, match="at most 10 bytes"):
        ImageRange(archive, 4, len(RED)).read(ImageLimits(max_bytes=10))
    with pytest.raises(ImageError, match="after 4 bytes"):
        ImageRange(archive, len(RED + BLUE), 100).read()
