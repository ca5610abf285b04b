"""Draws what a running server answers as one picture for the README: a row a query, the best hits from left to right.

python -m tools.results_picture --data build/demo/pairs --address 127.0.0.1:50051 --out docs/images/results.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from data import console
from data.images import decode
from data.sources import open_source
from serving.client import DEFAULT_ADDRESS, SearchClient

CELL, GAP, TEXT_WIDTH, HITS = 128, 12, 300, 6
QUERIES = (
    "somebody riding a bike",
    "a birthday cake with candles",
    "someone playing the violin",
    "fireworks in the night sky",
    "dark clouds and heavy rain",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Ask, draw, write."""
    parser = argparse.ArgumentParser(prog="python -m tools.results_picture", description=__doc__)
    parser.add_argument("--data", required=True, help="the images that the server's index holds")
    parser.add_argument("--address", default=DEFAULT_ADDRESS)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    images = {pair.image_id: pair.image for pair in open_source(options.data)}
    row_height = CELL + 3 * GAP
    sheet = Image.new("RGB", (TEXT_WIDTH + HITS * (CELL + GAP) + GAP, len(QUERIES) * row_height + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(19), ImageFont.load_default(14)
    with SearchClient(options.address) as client:
        for row, query in enumerate(QUERIES):
            top = GAP + row * row_height
            draw.text((GAP, top + CELL // 2 - 12), query, "black", large)
            for column, hit in enumerate(client.search(query, k=HITS)):
                left = TEXT_WIDTH + column * (CELL + GAP)
                picture = decode(images[hit.image_id].read()).resize((CELL, CELL), Image.Resampling.LANCZOS)
                sheet.paste(picture, (left, top))
                draw.text((left + CELL // 2, top + CELL + 4), f"{hit.score:.2f}", "dimgray", small, anchor="ma")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(128).save(options.out, optimize=True)
    return console.EXIT_OK


if __name__ == "__main__":
    console.run(main)
