"""Workers give the pixels that `load_pixels` gives and its refusals; one that dies or hangs costs its image alone, and
none of them can reach a file, a network or another process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fakes import picture

from data.errors import ImageError
from data.images import FORMATS, ImagePreprocessing, load_pixels
from data.thumbnails import thumbnail
from serving.isolated_decoding import IsolatedDecoder
from serving.overload import Overloaded

ROOT = Path(__file__).resolve().parent.parent
SMALL = ImagePreprocessing(size=8)


@pytest.fixture(scope="module")
def decoder():
    decoder = IsolatedDecoder(workers=1)
    decoder.check()
    yield decoder
    decoder.close()


def decoded(decoder, data, preprocessing=SMALL):
    return asyncio.run(decoder.pixels(data, preprocessing))


@pytest.mark.parametrize("name", FORMATS)
def test_pixels_are_those_of_training_and_indexing(decoder, name):
    data = picture("orange", seed=3, size=50, format=name)
    for preprocessing in (SMALL, ImagePreprocessing(size=16, resize="pad", mirror=True, mean=(0.5, 0.5, 0.5))):
        np.testing.assert_array_equal(decoded(decoder, data, preprocessing), load_pixels(data, preprocessing))


@pytest.mark.parametrize(
    "data", [b"", b"no image", picture("red")[:-30], b"x" * (33 << 20)], ids=["none", "text", "cut off", "too large"]
)
def test_refusals_are_those_of_load_pixels(decoder, data):
    with pytest.raises(ImageError) as here:
        load_pixels(data, SMALL)
    with pytest.raises(ImageError) as there:
        decoded(decoder, data)
    assert (there.value.reason, str(there.value)) == (here.value.reason, str(here.value))


@pytest.mark.parametrize("name", FORMATS)
def test_thumbnails_are_those_of_reports(decoder, name):
    data = picture("orange", seed=3, size=(90, 50), format=name)
    assert asyncio.run(decoder.thumbnail(data, 40, 75)) == thumbnail(data, 40, 75)
    with pytest.raises(ImageError) as refused:
        asyncio.run(decoder.thumbnail(b"no image", 40, 75))
    assert refused.value.reason == "not_an_image"


def test_a_worker_that_was_killed_is_replaced(decoder):
    (former,) = decoder.process_ids
    os.kill(former, signal.SIGKILL)
    decoder._workers[0]._process.wait()
    np.testing.assert_array_equal(decoded(decoder, picture("red")), load_pixels(picture("red"), SMALL))
    assert decoder.process_ids != [former]


def test_an_image_whose_decoder_hangs_or_dies_is_refused_and_the_next_one_is_not():
    async def main(decoder):
        (pid,) = decoder.process_ids
        os.kill(pid, signal.SIGSTOP)  # as a decoder that never ends
        with pytest.raises(ImageError, match="takes too long") as refusal:
            await decoder.pixels(picture("red"), SMALL)
        assert refusal.value.reason == "damaged"
        await decoder.pixels(picture("red"), SMALL)
        (pid,) = decoder.process_ids
        os.kill(pid, signal.SIGSTOP)
        decoding = asyncio.create_task(decoder.pixels(picture("red"), SMALL))
        await asyncio.sleep(0.1)
        os.kill(pid, signal.SIGKILL)  # as one that crashes
        with pytest.raises(ImageError, match="ends its decoder|takes too long"):
            await decoding
        await decoder.pixels(picture("red"), SMALL)

    decoder = IsolatedDecoder(workers=1, seconds=1.0)
    decoder.check()
    try:
        asyncio.run(main(decoder))
    finally:
        decoder.close()


def test_what_a_worker_that_was_taken_over_says_is_not_believed(decoder, monkeypatch):
    for answer in ((1, b"12345"), (2, b"[1]"), (2, b"\xff"), (2, b"[1,2,3,4]"), (9, b"")):
        decoder.check()
        with monkeypatch.context() as patched:
            patched.setattr(decoder._workers[0], "_receive", lambda answer=answer: answer)
            patched.setattr(decoder._workers[0], "wait_until_ready", lambda: None)
            with pytest.raises(ImageError, match="confuses its decoder"):
                decoded(decoder, picture("red"))
    np.testing.assert_array_equal(decoded(decoder, picture("red")), load_pixels(picture("red"), SMALL))


def test_no_more_images_wait_than_there_is_room_for():
    async def main(decoder):
        await decoder.pixels(picture("red"), SMALL)
        tasks = [asyncio.create_task(decoder.pixels(picture("red"), SMALL)) for _ in range(3)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [np.ndarray, np.ndarray, Overloaded]

    decoder = IsolatedDecoder(workers=1, max_waiting=2)
    try:
        asyncio.run(main(decoder))
    finally:
        decoder.close()


def test_a_worker_can_open_nothing_write_nothing_and_start_nothing():
    code = """
import os, resource, socket, sys
from serving.decoding_worker import MEMORY_BYTES, lower_privileges
lower_privileges(os.getppid())
for name, attempt in {
    "file": lambda: open("/etc/hostname"),
    "socket": lambda: socket.socket(),
    "memory": lambda: bytearray(MEMORY_BYTES),
}.items():
    try:
        attempt()
    except (OSError, MemoryError):
        continue
    sys.exit(f"{name} is possible")
os.write(1, b"TensorFlow" if "tensorflow" in sys.modules else b"isolated")
"""
    command = [sys.executable, "-c", code]
    finished = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert finished.stdout == "isolated", finished.stdout + finished.stderr


def test_workers_end_with_their_server():
    code = (
        "import os, signal; from serving.isolated_decoding import IsolatedDecoder; d = IsolatedDecoder(1); d.check();"
        "print(d.process_ids[0], flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    pid = int(finished.stdout)
    deadline = 100
    while deadline and Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        deadline -= 1
        os.sched_yield()
        asyncio.run(asyncio.sleep(0.05))
    assert deadline
