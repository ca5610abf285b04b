"""What is refused before a job begins: an index that is in no directory, names that lead elsewhere."""

from __future__ import annotations

import asyncio

import pytest
from fakes import ColourRuntime, ListSource, colour_pair

from data.errors import QueryError
from serving.index_job import build_index
from serving.index_upkeep import IndexUpkeep, NotOffered

WORK = {
    "snapshots": IndexUpkeep.snapshots,
    "build": lambda upkeep: upkeep.build("folder:photos"),
    "publish": IndexUpkeep.publish,
    "roll_back": IndexUpkeep.roll_back,
    "verify": IndexUpkeep.verify,
    "back_up": lambda upkeep: upkeep.back_up("monday"),
}


@pytest.mark.parametrize("name", WORK)
def test_an_index_that_is_elsewhere_is_looked_after_there(name):
    with pytest.raises(NotOffered, match="not in a directory of this server"):
        WORK[name](IndexUpkeep(None))


@pytest.mark.parametrize("source", ["", "x" * 4_097, "folder:a\nb", "folder:a\0b"])
def test_a_source_is_one_line(tmp_path, source):
    with pytest.raises(QueryError, match="the name of a data set"):
        IndexUpkeep(tmp_path).build(source)


def test_a_source_is_never_taken_for_an_option(tmp_path):
    build_index(ColourRuntime(), ListSource([colour_pair(1)], "one"), tmp_path)
    (tmp_path / "bundles" / ColourRuntime().fingerprint).mkdir(parents=True)

    async def main():
        upkeep = IndexUpkeep(tmp_path)
        upkeep.build_command = ["echo"]
        operation = upkeep.build("--discard-vectors")
        await operation.wait(None)
        return upkeep.operations.get(operation.name)

    started = []
    original = asyncio.create_subprocess_exec

    async def spy(*command, **options):
        started.append(command)
        return await original(*command, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(asyncio, "create_subprocess_exec", spy)
        assert asyncio.run(main()).done
    assert "--data=--discard-vectors" in started[0]
