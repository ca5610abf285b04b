"""Groups of images that must not be parted, as JSON lines `{"image_id": …, "group": …}`; knows not who found them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from data.durable import canonical_json, write_atomic
from data.errors import SourceError


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


def _texts(row: dict[str, object]) -> bool:
    return all(isinstance(value, str) for value in row.values())
