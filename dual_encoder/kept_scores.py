"""Keeps the scores of each part of a data set's captions, so that a killed run loses one part; scores nothing itself.

A file of the cache is named by a digest of every number that the scores depend on: what has changed is scored anew, and
what has not is read, whichever data set it is of.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import fields
from pathlib import Path

import numpy as np

from data.array_files import load_array
from data.durable import cache_directory, canonical_json, write_atomic
from dual_encoder import pair_scores
from dual_encoder.pair_scores import Part, Scorer, Scores

VERSION = 1  # of the way that scores are made


def kept_in_cache(score: Scorer) -> Scorer:
    """`score`, but parts that were scored before, by this process or another, are read from the cache."""

    def scored(part: Part) -> Scores:
        path = cache_directory("pair_scores") / f"{digest_of(part)}.npy"
        known = _read(path, len(part.captions))
        if known is None:
            known = np.stack(score(part))
            buffer = io.BytesIO()
            np.save(buffer, known, allow_pickle=False)
            write_atomic(path, buffer.getvalue())
        return known[0], known[1]

    return scored


def digest_of(part: Part) -> str:
    """SHA-256 of all that the scores of a part depend on."""
    settings = [VERSION, pair_scores.FOLDS, pair_scores.NEIGHBOURS, pair_scores.GALLERY]
    digest = hashlib.sha256(canonical_json(settings))
    for field in fields(part):
        value = getattr(part, field.name)
        if isinstance(value, np.ndarray):
            digest.update(canonical_json([field.name, str(value.dtype), *value.shape]))
            digest.update(np.ascontiguousarray(value).data)
        else:
            known = value.bit_generator.state if isinstance(value, np.random.Generator) else value
            digest.update(canonical_json([field.name, known]))
    return digest.hexdigest()


def _read(path: Path, captions: int) -> np.ndarray | None:
    """Scores (2, B, K), or None where they are not, or damaged."""
    try:
        found = load_array(path)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.ndim == 3 and found.shape[:2] == (2, captions) else None
