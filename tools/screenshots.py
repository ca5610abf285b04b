"""Takes the pictures of the page in the documents, by Chromium on the demonstration's index: `make screenshots`."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data import console
from data.errors import UserError
from tools.chromium import chromium, prefer, resize, until


@dataclass(frozen=True)
class Shot:
    """One picture: its file, what is searched for, the screen in points, light or dark, and what is done before."""

    name: str
    address: str
    width: int = 1280
    height: int = 800
    scheme: str = "light"
    mobile: bool = False
    before: str = ""


BIKE = "/?q=somebody+riding+a+bike"
CAT = "/?q=a+cat&like=1~emoji/1F638&like=-0.5~emoji/1F63D"
OPEN = "document.querySelectorAll('.tile a')[1].click()"
SHOTS = (
    Shot("page", BIKE),
    Shot("page_dark", BIKE, scheme="dark"),
    Shot("page_parts", CAT, height=620),
    Shot("page_detail", CAT, height=620, before=OPEN),
    Shot("page_phone", "/?q=a+juicy+apple", 390, 780, mobile=True),
)
SHOWN = "return document.querySelector('.tile') && !document.querySelector('.tile:not(.loaded)')"


def main(argv: Sequence[str] | None = None) -> int:
    """Serve, look, write."""
    parser = argparse.ArgumentParser(prog="python -m tools.screenshots", description=__doc__)
    parser.add_argument("--index", type=Path, default=Path("build/demo/index"))
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    options = parser.parse_args(argv)
    if not options.index.is_dir():
        raise UserError("the demonstration's index", f"nothing at {options.index}", "run: make demo DEMO=check")
    with page(options.index) as address, tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as window:
        for shot in SHOTS:
            resize(window, shot.width, shot.height, shot.mobile, scale=1.5)
            prefer(window, shot.scheme)
            window.get(address + shot.address)
            until(window, lambda: window.execute_script(SHOWN), "thumbnails")
            if shot.before:
                window.execute_script(shot.before)
                until(window, lambda: window.find_element("id", "detail").is_displayed(), "the dialog")
                until(
                    window, lambda: window.execute_script("return document.querySelector('#detail img').complete"), "it"
                )
            # Pictures fade in; a moving one would not be the same twice.
            until(window, lambda: not window.execute_script("return document.getAnimations().length"), "stillness")
            path = options.out / f"{shot.name}.webp"
            with Image.open(io.BytesIO(window.get_screenshot_as_png())) as taken:
                taken.convert("RGB").save(path, "WEBP", quality=82, method=6)
            console.say(f"{path}: {path.stat().st_size:,} bytes")
    return console.EXIT_OK


@contextlib.contextmanager
def page(index: Path) -> Iterator[str]:
    """The address of the page over `index`, by a server of its own that is ready."""
    from serving.client import SearchClient

    command = ["serving.server", "--index", str(index), "--address", "127.0.0.1:0", "--http-address", "127.0.0.1:0"]
    process = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        told = {}
        for line in process.stdout:
            if found := re.fullmatch(r"(listening|page) on (\S+)\s*", line):
                told[found[1]] = found[2]
            if "page" in told:
                break
        else:
            raise UserError("a server", f"exit code {process.wait()}", "see above")
        with SearchClient(told["listening"]) as client:
            client.wait_until_ready(timeout=120)
        yield told["page"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
        if process.stdout is not None:
            process.stdout.close()


if __name__ == "__main__":
    console.run(main)
