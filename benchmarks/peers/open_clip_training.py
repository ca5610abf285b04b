"""Trains OpenCLIP's CLIP on random pixels and tokens, a turn at a time; run by `benchmarks.training_speed`.

Its model, loss and clamp as in `open_clip_train`, and its AdamW. Speaks the protocol of
`benchmarks.peer_process`.
"""

import json
import os
import sys
import time

ANSWERS = os.dup(1)
os.dup2(2, 1)  # whatever libraries print is no answer

import open_clip  # noqa: E402
import torch  # noqa: E402
from open_clip.loss import ClipLoss  # noqa: E402
from open_clip.model import CLIP  # noqa: E402


def main() -> None:
    """Get ready, then take turns until the input ends."""
    settings = json.loads(sys.stdin.readline())
    step = training_step(settings)
    for _ in range(2):  # compilation, caches, the optimizer's state
        loss = step()
    answer(
        {
            "loss": loss,
            "threads": torch.get_num_threads(),
            "versions": {"torch": torch.__version__, "open_clip_torch": open_clip.__version__},
        }
    )
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            step()
        answer(time.perf_counter() - began)


def training_step(settings):
    """A function that takes one step and gives its loss."""
    torch.manual_seed(0)
    torch.set_num_threads(settings["threads"])
    image, text, batch = settings["image"], settings["text"], settings["batch"]
    model = CLIP(
        embed_dim=settings["embedding_dim"],
        vision_cfg={
            "image_size": image["size"],
            "patch_size": image["patch"],
            "width": image["width"],
            "layers": image["layers"],
            "head_width": image["width"] // image["heads"],
        },
        text_cfg={
            "context_length": text["length"],
            "vocab_size": text["vocabulary"],
            "width": text["width"],
            "layers": text["layers"],
            "heads": text["heads"],
        },
    )
    if settings["frozen_text"]:
        model.lock_text_tower()
    model.train()
    run = torch.compile(model) if settings["compile"] else model
    loss_of = ClipLoss()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
    pixels = torch.randn(batch, 3, image["size"], image["size"])
    ids = torch.randint(1, text["vocabulary"] - 1, (batch, text["length"]))
    ids[:, -1] = text["vocabulary"] - 1  # the end of a text is its largest id

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_of(*run(pixels, ids))
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)
        return loss.item()

    return step


def answer(value) -> None:
    """Print one line of JSON."""
    os.write(ANSWERS, (json.dumps(value) + "\n").encode())


if __name__ == "__main__":
    main()
