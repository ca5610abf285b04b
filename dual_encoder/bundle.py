"""One directory that holds a model for use: weights, preprocessing, tokeniser, config, engines, figures, fingerprint.

Reading one imports no TensorFlow. Every file's digest, and its own, is in `bundle.json`; a changed byte is refused. The
fingerprint names what decides an embedding or a score (config, weights, tokeniser, hubness correction), so it stays the
same when only figures or a calibration are added.
"""

from __future__ import annotations

import errno
import importlib.metadata
import io
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from data.array_files import load_array
from data.durable import changed_files, digest_json, directory_digests, publish_directory, readable_json, write_json
from data.errors import BundleError
from data.images import ImagePreprocessing
from data.text import CaptionTokenizer
from dual_encoder.calibration import Calibration
from dual_encoder.hubness import HubnessCorrection

MANIFEST = "bundle.json"
WEIGHTS = "weights.safetensors"
TOKENIZER = "tokenizer.json"
METRICS = "metrics.json"
QUERY_BANK = "query_bank.npy"
CARD = "README.md"
ASSETS = "assets"
QUANTISED = ".int8.onnx"
FORMAT = 1


@dataclass(frozen=True)
class Bundle:
    """An opened bundle whose files were found unchanged."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """Digest of config, weights and tokeniser, in hexadecimal."""
        return self.manifest["fingerprint"]

    @property
    def name(self) -> str:
        """What people call this model."""
        return self.manifest["name"]

    @property
    def embedding_dim(self) -> int:
        """D, the size of an embedding."""
        return self.manifest["embedding_dim"]

    @property
    def preprocessing(self) -> ImagePreprocessing:
        """How images are prepared for the image tower."""
        return ImagePreprocessing.from_config(self.manifest["preprocessing"])

    @property
    def calibration(self) -> Calibration | None:
        """How scores become probabilities; None where training had too little to fit it on."""
        config = self.manifest.get("calibration")
        return None if config is None else Calibration.from_config(config)

    @property
    def hubness(self) -> HubnessCorrection | None:
        """What is taken off the scores of images that stand near every query; None where nothing is."""
        settings = self.manifest.get("hubness")
        if settings is None:
            return None
        return HubnessCorrection(load_array(self.path / QUERY_BANK), **settings)

    @property
    def half_precision(self) -> str:
        """The Keras dtype policy in which it may compute on a GPU; float32 where no other was admitted."""
        return self.manifest.get("half_precision", {}).get("precision", "float32")

    def tokenizer(self) -> CaptionTokenizer | None:
        """The text tower's tokeniser; None for a tower that takes strings."""
        if self.manifest["max_tokens"] is None:
            return None
        text = (self.path / TOKENIZER).read_text("utf-8")
        return CaptionTokenizer.from_json(text, self.manifest["max_tokens"])

    def engine_file(self, tower: str, quantised: bool = False) -> Path | None:
        """The ONNX graph of "image_tower" or "text_tower", if it was published; `quantised` prefers the one in int8."""
        names = ([f"{tower}{QUANTISED}"] if quantised else []) + [f"{tower}.onnx"]
        return next((self.path / name for name in names if name in self.manifest["files"]), None)


def check_replaceable(out: Path) -> None:
    """Refuse, before any work, to replace what is no bundle or to write where that is not permitted.

    `BundleError`, or an `OSError` with the path at fault.
    """
    nearest = next(parent for parent in out.absolute().parents if parent.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(nearest))
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(nearest))
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(
            "a new directory, or a bundle to replace", f"{out}, which holds something else", "choose another --out"
        )


def open_bundle(path: str | Path, verify: bool = True) -> Bundle:
    """Open a bundle; `BundleError` when it is absent, of an unknown format, or any file differs from its digest."""
    directory = Path(path)
    file = directory / MANIFEST
    if not file.is_file():
        raise BundleError(
            f"a bundle directory with {MANIFEST}",
            f"{directory} without it" if directory.is_dir() else f"nothing at {directory}",
            "train one (python -m dual_encoder.train --help), or use `--bundle default`",
        )
    try:
        manifest = json.loads(file.read_text("utf-8"))
        if manifest["format"] != FORMAT:
            raise BundleError(f"bundle format {FORMAT}", repr(manifest["format"]), "export it again with this version")
        problems = changed_files(directory, manifest["files"]) if verify else []
        stated, named = fingerprint_of(manifest), manifest["fingerprint"]
        unchanged = manifest["digest"] == _digest(manifest)
        ImagePreprocessing.from_config(manifest["preprocessing"])
        if not isinstance(manifest["name"], str) or not isinstance(manifest["trained"], dict):
            raise TypeError("name or trained")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"a valid {MANIFEST}", f"{file} ({error!r})", "copy or export the bundle again") from None
    if problems:
        raise BundleError("the files that were exported", "; ".join(problems[:3]), "copy or export the bundle again")
    if stated != named:
        raise BundleError(
            f"fingerprint {str(named)[:12]}… as {file} says", f"content of {stated[:12]}…", "export the bundle again"
        )
    if not unchanged:
        raise BundleError(f"{file} as it was written", "another content", "copy or export the bundle again")
    return Bundle(directory, manifest)


def fingerprint_of(manifest: Mapping[str, Any]) -> str:
    """What identifies a model: everything that decides an embedding or a score, and nothing that does not."""
    decisive = {name: entry["sha256"] for name, entry in manifest["files"].items() if _decides(name)}
    kept = ["config", "preprocessing", "max_tokens", "embedding_dim"]
    kept += ["hubness"] if manifest.get("hubness") else []
    return digest_json({"files": decisive, **{key: manifest[key] for key in kept}})


def _digest(manifest: Mapping[str, Any]) -> str:
    """Digest of everything the manifest says, names and figures included."""
    return digest_json({key: value for key, value in manifest.items() if key != "digest"})


def _write(directory: Path, manifest: dict[str, Any]) -> Bundle:
    """Write a manifest with its own digest."""
    manifest = {**manifest, "digest": _digest(manifest)}
    write_json(directory / MANIFEST, manifest)
    return Bundle(directory, manifest)


def _decides(name: str) -> bool:
    return name in (WEIGHTS, TOKENIZER, QUERY_BANK) or name.startswith(f"{ASSETS}/")


def package_versions() -> dict[str, str]:
    """The packages that decide what a model computes, as they are now."""
    return {package: importlib.metadata.version(package) for package in ("tensorflow", "keras", "pillow")}


def with_figures(bundle: Bundle, metrics: Mapping[str, Any], card: str) -> Bundle:
    """Put other figures and another card into a bundle, whole or not at all; its fingerprint stays."""
    return _with_files(bundle, {METRICS: readable_json(metrics), CARD: card.encode()})


def with_quantised(bundle: Bundle, tower: str, graph: bytes, figures: Mapping[str, Any]) -> Bundle:
    """Put an int8 graph of a tower into a bundle, and the figures it was admitted by; its fingerprint stays."""
    name = f"{tower}{QUANTISED}"
    return _with_files(bundle, {name: graph}, quantised={**bundle.manifest.get("quantised", {}), tower: dict(figures)})


def with_correction(bundle: Bundle, hubness: HubnessCorrection | None, calibration: Calibration | None) -> Bundle:
    """Put another hubness correction, or none, into a bundle, with the calibration of the scores it makes.

    The fingerprint is another one, since an index holds offsets that belong to the correction.
    """
    files = {} if hubness is None else {QUERY_BANK: _npy(hubness.bank)}
    settings = None if hubness is None else hubness.to_config()
    fitted = None if calibration is None else calibration.to_config()
    return _with_files(bundle, files, without={QUERY_BANK}, hubness=settings, calibration=fitted)


def with_half_precision(bundle: Bundle, precision: str, figures: Mapping[str, Any]) -> Bundle:
    """Say in a bundle that it may compute in 16 bits on a GPU, and by which figures; its fingerprint stays."""
    return _with_files(bundle, {}, half_precision={"precision": precision, **figures})


def _with_files(
    bundle: Bundle, changed: Mapping[str, bytes], without: frozenset[str] | set[str] = frozenset(), **manifest: Any
) -> Bundle:
    """A bundle with some files and statements changed; the others are linked, not copied, where the file system can."""
    with publish_directory(bundle.path) as directory:
        for name in bundle.manifest["files"]:
            if name not in changed and name not in without:
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                _link(bundle.path / name, directory / name)
        for name, content in changed.items():
            (directory / name).write_bytes(content)
        told = {**bundle.manifest, **manifest, "files": directory_digests(directory)}
        written = _write(directory, {**told, "fingerprint": fingerprint_of(told)})
    return Bundle(bundle.path, written.manifest)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def write_manifest(
    directory: Path,
    *,
    name: str,
    config: dict[str, Any],
    preprocessing: ImagePreprocessing,
    max_tokens: int | None,
    embedding_dim: int,
    trained: Mapping[str, Any],
    calibration: Calibration | None = None,
    hubness: HubnessCorrection | None = None,
) -> Bundle:
    """Describe the files already in `directory` and give the model its fingerprint."""
    if hubness is not None:
        (directory / QUERY_BANK).write_bytes(_npy(hubness.bank))
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "name": name,
        "config": config,
        "preprocessing": preprocessing.to_config(),
        "max_tokens": max_tokens,
        "embedding_dim": embedding_dim,
        "trained": dict(trained),
        **({} if calibration is None else {"calibration": calibration.to_config()}),
        **({} if hubness is None else {"hubness": hubness.to_config()}),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": package_versions(),
        "files": directory_digests(directory, skip=frozenset({MANIFEST})),
    }
    manifest["fingerprint"] = fingerprint_of(manifest)
    return _write(directory, manifest)
