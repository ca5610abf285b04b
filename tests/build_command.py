"""Stands for `serving.build_index` where drawn pictures are indexed: `build_command.py --bundle=… --data=N --out=INDEX`
indexes the first N of them; `--data=slow` waits until it is stopped, and `--data=bad` is refused."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from fakes import ColourRuntime, ListSource, colour_pair

from data import console
from data.errors import SourceError
from serving.index_job import build_index


def main(argv: list[str] | None = None) -> int:
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    source = options["--data"]
    if source == "bad":
        raise SourceError("a data set", "none", "name another one")
    if source == "slow":
        console.say("begun")
        time.sleep(600)
    pairs = [colour_pair(number) for number in range(int(source))]
    build_index(ColourRuntime(), ListSource(pairs, f"colours:{source}"), Path(options["--out"]))
    return 0


if __name__ == "__main__":
    console.run(main)
