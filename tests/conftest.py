"""Gives every test run a cache of its own, never the user's; knows no test.

The cache lives under build/test-cache, named after the code that fills it: the default model is built once for the
whole suite and again only when that code has changed, so that no test passes on what older code made.
"""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from chain import Chain, Served

    from dual_encoder.bundle import Bundle
    from dual_encoder.runtime import Runtime

ROOT = Path(__file__).resolve().parent.parent
CACHES = ROOT / "build" / "test-cache"
KEPT_SECONDS = 3600  # a cache takes some 300 MB; other runs may be using theirs


# A busy machine is no defect of the code under test.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module is imported, so that processes started by tests inherit it too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background jobs ignore Ctrl-C, which is tested
        signal.signal(signal.SIGINT, signal.default_int_handler)
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "data").rglob("*.py"), *(ROOT / "dual_encoder").rglob("*.py")]):
        digest.update(path.read_bytes())
    digest.update(b"".join(sorted(path.read_bytes() for path in ROOT.glob("requirements*.txt"))))
    cache = CACHES / digest.hexdigest()[:16]
    cache.mkdir(parents=True, exist_ok=True)
    os.utime(cache)
    for other in CACHES.iterdir():
        if time.time() - other.stat().st_mtime > KEPT_SECONDS:
            shutil.rmtree(other, ignore_errors=True)
    os.environ["DUAL_ENCODER_CACHE"] = str(cache)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test first: it takes ten minutes, in which the other process runs all the others."""
    items.sort(key=lambda item: item.path.name != "test_soak.py")


def pytest_collection_finish() -> None:
    """Modules stay to the end: the collector need not walk through those of TensorFlow again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def no_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing that downloads published models reaches anybody, and nothing is kept on this machine."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    for cache in ("TFHUB_CACHE_DIR", "KAGGLEHUB_CACHE"):
        monkeypatch.setenv(cache, str(tmp_path / "kept"))
    monkeypatch.setattr("keras.src.utils.file_utils.config.keras_home", lambda: str(tmp_path / "kept"))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small index of drawings by the model of colours; each test module has one of its own."""
    from fakes import ColourRuntime, ListSource

    from serving.index_job import build_index

    out = tmp_path_factory.mktemp("index")
    build_index(ColourRuntime(), ListSource(), out)
    return out


@pytest.fixture(scope="session")
def default_runtime() -> Runtime:
    """The untrained default model; the first test run of this code builds it in about half a minute."""
    from dual_encoder.runtime import Runtime

    return Runtime.load("default")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of some kilobytes, named "m", with ONNX graphs; change only copies."""
    import keras
    from tiny_training import CONFIG, tokenizer

    from dual_encoder.bundle_model import save_bundle
    from dual_encoder.model import DualEncoder

    keras.utils.set_random_seed(0)
    out = tmp_path_factory.mktemp("tiny") / "m"
    return save_bundle(out, DualEncoder(CONFIG), tokenizer(), name="m", card="", trained={})


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Chain:
    """A small model, trained and indexed by the real commands: once for all worker processes, so change only copies."""
    from chain import shared_chain

    base = tmp_path_factory.getbasetemp()
    return shared_chain(base if worker_id == "master" else base.parent, worker_id)


@pytest.fixture(scope="session")
def served(chain: Chain) -> Iterator[Served]:
    """The real server on that model and index."""
    with chain.machine.server(chain.bundle, chain.index) as running:
        yield running


@pytest.fixture
def no_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles without ONNX graphs, whose conversion is most of the time of writing one: for tests of anything else."""
    monkeypatch.setattr("dual_encoder.bundle_model._publish_engines", lambda *_: None)


@pytest.fixture
def kept_streams() -> None:
    """For tests of packages that set up logging anew, and thereby close every handler there is: that of absl, which
    TensorFlow brings, would close the stream with it that pytest captures standard error by."""
    from absl import logging as absl_logging

    absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__
