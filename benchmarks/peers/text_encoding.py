"""Encodes sentences with MiniLM as its users do; run by `benchmarks.runtime`.

"ours" is the default bundle, in the project's own environment. "sentence_transformers" is `SentenceTransformer.encode`
in PyTorch. "onnxruntime" is what one writes by hand: the same model through `torch.onnx.export`, ONNX Runtime with its
default options, Hugging Face's tokeniser, NumPy's mean.
Speaks the protocol of `benchmarks.peer_process`; a step is one call.
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


def main() -> None:
    """Get ready, then take turns until the input ends."""
    settings = json.loads(sys.stdin.readline())
    every = {"ours": ours, "sentence_transformers": sentence_transformers, "onnxruntime": by_hand}
    make = every[settings["contestant"]]
    encode, versions = make(settings)
    for _ in range(3):
        encode(settings["sentences"])
    found = encode(settings["samples"])
    answer({"embeddings": np.asarray(found, np.float64).tolist(), "versions": versions})
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            encode(settings["sentences"])
        answer(time.perf_counter() - began)


def ours(settings):
    """What our users call."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from dual_encoder.runtime import Runtime

    return Runtime.load("default", threads=settings["threads"]).embed_texts, {}


def sentence_transformers(settings):
    """The library's own call, on its own number of threads unless told."""
    import sentence_transformers
    import torch

    torch.set_num_threads(settings["threads"])
    model = sentence_transformers.SentenceTransformer(settings["model"], device="cpu")
    model.max_seq_length = settings["longest"]

    def encode(sentences):
        return model.encode(sentences, batch_size=settings["batch"], normalize_embeddings=True, show_progress_bar=False)

    return encode, {"sentence-transformers": sentence_transformers.__version__, "torch": torch.__version__}


def by_hand(settings):
    """Exported once, then without PyTorch."""
    import onnxruntime
    import torch
    import transformers
    from tokenizers import Tokenizer

    model = transformers.AutoModel.from_pretrained(settings["model"], attn_implementation="eager").eval()
    example = {
        name: torch.ones((2, 8), dtype=torch.int64) for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with tempfile.TemporaryDirectory() as directory, torch.no_grad():
        path = str(Path(directory) / "model.onnx")
        torch.onnx.export(model, kwargs=example, f=path, dynamic_shapes=dict.fromkeys(example, any_size))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings["threads"]
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(Path(settings["model"]) / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(256)

    def encode(sentences):
        encoded = tokenizer.encode_batch(sentences)
        ids = np.array([row.ids for row in encoded])
        mask = np.array([row.attention_mask for row in encoded])
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        hidden = session.run(None, inputs)[0]
        mean = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    return encode, {"onnxruntime": onnxruntime.__version__, "transformers": transformers.__version__}


def answer(value) -> None:
    """Print one line of JSON."""
    os.write(ANSWERS, (json.dumps(value) + "\n").encode())


if __name__ == "__main__":
    main()
