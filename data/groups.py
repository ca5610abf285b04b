"""Groups of images that must not be parted, joined and as JSON lines `{"image_id": …, "group": …}`; knows no image."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

from data.durable import canonical_json, write_atomic
from data.errors import SourceError
from data.splits import UnionFind

Member = tuple[str, str | None, str | None]  # image id, group, split of an image
_Key = tuple[str, str]  # "image" or "group", and which


def read_groups(path: Path) -> dict[str, str]:
    """`{image_id: group}`; `SourceError` with the line of what is malformed."""
    groups: dict[str, str] = {}
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"a list of groups at {path}", str(error), "check the path, or run data.doctor") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError:
            row = line
        if row is None:
            continue
        if not (isinstance(row, dict) and set(row) == {"image_id", "group"} and _texts(row)):
            raise SourceError(
                f'an object with the texts "image_id" and "group" in {path}, line {number}',
                line[:200],
                "correct the line, or make the list anew with python -m data.doctor",
            )
        groups[row["image_id"]] = row["group"]
    return groups


def write_groups(path: Path, groups: Mapping[str, str]) -> None:
    """Write a list that `read_groups` reads."""
    rows = ({"image_id": image_id, "group": group} for image_id, group in groups.items())
    write_atomic(path, b"".join(canonical_json(row) + b"\n" for row in rows))


def add_groups_option(parser: argparse.ArgumentParser) -> None:
    """`--groups FILE`."""
    parser.add_argument(
        "--groups", type=Path, metavar="FILE", help="images to keep together when splitting, as data.doctor lists them"
    )


def chosen_groups(options: argparse.Namespace) -> dict[str, str] | None:
    """The groups that a command line names."""
    return None if options.groups is None else read_groups(options.groups)


def join_groups(identical: Iterable[list[Member]]) -> dict[str, str]:
    """The group of each image with a copy, and of its own group; groups with a copy in common are joined whole."""
    sets = [list(members) for members in identical]
    keys = UnionFind()
    for first, *others in sets:
        for other in others:
            keys.join(_key(other), _key(first))
    groups: dict[str, str] = {}
    for members in sets:
        for member in members:
            if (key := _key(member)) in keys:
                kind, name = cast(_Key, keys.find(key))
                groups[member[0]] = name if kind == "group" else f"same image as {name}"
    return groups


def _key(member: Member) -> _Key:
    image_id, group, _ = member
    return ("image", image_id) if group is None else ("group", group)


def _texts(row: dict[str, object]) -> bool:
    return all(isinstance(value, str) for value in row.values())
