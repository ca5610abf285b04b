"""Runs `python -m dual_encoder.train` with a checkpoint after every step, telling each step and each write.

`resume_driver.py ARGUMENT…`: a test kills it after any of these lines, so in the middle of what the line tells.
"""

from __future__ import annotations

import sys
from typing import Any

from data.quiet_tensorflow import load_tensorflow

load_tensorflow()

import dual_encoder.trainer  # noqa: E402
from data import console  # noqa: E402
from dual_encoder.train import main  # noqa: E402

dual_encoder.trainer.CHECKPOINT_SECONDS = 0.0
save_weights = dual_encoder.trainer.save_weights
Trainer = dual_encoder.trainer.Trainer
train_step = Trainer._new_step


def telling_step(self: Any) -> Any:
    step = train_step(self)

    def told(batch: Any) -> Any:
        print("step", self.progress.epoch, self.progress.step, flush=True)
        return step(batch)

    return told


def telling_write(*given: Any) -> None:
    print("write", flush=True)
    save_weights(*given)


Trainer._new_step = telling_step  # type: ignore[method-assign]
dual_encoder.trainer.save_weights = telling_write

if __name__ == "__main__":
    console.run(lambda _: main(sys.argv[1:]))
