"""Encodes pixels in memory, or a folder of JPEG files, as users of PyTorch do; run by `benchmarks.runtime`.

Contestants: "torch" (timm's EfficientNet-Lite0), "open_clip" (its ViT-B/32), "onnxruntime" (either of them through
`torch.onnx.export` and ONNX Runtime with its default options), and "folder": files through a PyTorch DataLoader with
torchvision's transforms, as `clip-retrieval inference` loads them, into the ONNX graph that `settings` name.
Speaks the protocol of `benchmarks.peer_process`; a step is one batch, or the whole folder.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

ANSWERS = os.dup(1)
os.dup2(2, 1)  # whatever libraries print is no answer

import numpy as np  # noqa: E402
import torch  # noqa: E402


def main() -> None:
    """Get ready, then take turns until the input ends."""
    settings = json.loads(sys.stdin.readline())
    torch.set_num_threads(settings["threads"])
    step = folder(settings) if settings["contestant"] == "folder" else pixels(settings)
    step()
    step()
    answer({"versions": {"torch": torch.__version__}})
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            step()
        answer(time.perf_counter() - began)


def tower(name):
    """A tower with random weights."""
    torch.manual_seed(0)
    if name == "lite0":
        import timm

        return timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()
    import open_clip

    return open_clip.create_model("ViT-B-32", pretrained=None).visual.eval()


def pixels(settings):
    """A step on the same random pixels."""
    batch = torch.randn(settings["batch"], 3, 224, 224)
    model = tower(settings["tower"])
    if settings["contestant"] != "onnxruntime":

        def step():
            with torch.inference_mode():
                return model(batch)

        return step
    with tempfile.TemporaryDirectory() as directory, torch.no_grad():
        path = str(Path(directory) / "model.onnx")
        torch.onnx.export(model, (batch,), path, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        run = session(path, settings["threads"])
    array = batch.numpy()
    name = run.get_inputs()[0].name
    return lambda: run.run(None, {name: array})


def session(path, threads):
    """ONNX Runtime as one starts it by hand."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class Files(torch.utils.data.Dataset):
    """JPEG files, resized and normalised."""

    def __init__(self, directory, mean, std):
        from torchvision import transforms

        self.paths = sorted(Path(directory).glob("*.jpg"))
        bicubic = transforms.InterpolationMode.BICUBIC
        self.transform = transforms.Compose(
            [transforms.Resize((224, 224), bicubic), transforms.ToTensor(), transforms.Normalize(mean, std)]
        )

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, number):
        from PIL import Image

        return self.transform(Image.open(self.paths[number]).convert("RGB"))


def folder(settings):
    """A step is every file of the folder."""
    files = Files(settings["directory"], settings["mean"], settings["std"])
    run = session(settings["graph"], settings["threads"])
    name = run.get_inputs()[0].name

    def step():
        loader = torch.utils.data.DataLoader(files, settings["batch"], num_workers=settings["threads"])
        return [run.run(None, {name: np.ascontiguousarray(b.permute(0, 2, 3, 1).numpy())})[0] for b in loader]

    return step


def answer(value) -> None:
    """Print one line of JSON."""
    os.write(ANSWERS, (json.dumps(value) + "\n").encode())


if __name__ == "__main__":
    main()
