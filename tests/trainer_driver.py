"""Trains the tiny problem in a process of its own, telling each step, so that a test can kill it anywhere.

`trainer_driver.py DIRECTORY`: a checkpoint is written after every step.
"""

from __future__ import annotations

import sys
from pathlib import Path

from data.quiet_tensorflow import load_tensorflow

load_tensorflow()

from tiny_training import trainer  # noqa: E402

import dual_encoder.trainer  # noqa: E402

dual_encoder.trainer.CHECKPOINT_SECONDS = 0.0

if __name__ == "__main__":
    trainer(Path(sys.argv[1]), before=lambda step: print("step", step, flush=True)).fit()
