"""The image search that one writes otherwise, with the same weights and vectors; run by `benchmarks.serving`.

FastAPI and uvicorn, sentence-transformers' `encode` in a handler that FastAPI runs in a thread, hnswlib, a list of
captions. Settings are a line of JSON on standard input; "listening PORT" is printed when it is ready.
"""

import json
import socket
import sys

import hnswlib
import numpy as np
import sentence_transformers
import torch
import uvicorn
from fastapi import FastAPI


def main() -> None:
    """Load, index, serve until killed."""
    settings = json.loads(sys.stdin.readline())
    torch.set_num_threads(settings["threads"])
    model = sentence_transformers.SentenceTransformer(settings["model"], device="cpu")
    vectors = np.load(settings["vectors"], mmap_mode="r")
    index = hnswlib.Index(space="ip", dim=vectors.shape[1])
    index.init_index(max_elements=len(vectors), ef_construction=120, M=24)
    index.add_items(vectors, num_threads=settings["threads"])
    index.set_ef(settings["ef"])
    captions = [f"image {row}" for row in range(len(vectors))]
    app = FastAPI()

    @app.get("/search")
    def search(q: str, k: int = 10):
        vector = model.encode(q, normalize_embeddings=True, show_progress_bar=False)
        rows, distances = index.knn_query(vector, k=k, num_threads=1)
        hits = zip(rows[0].tolist(), distances[0].tolist(), strict=True)
        return {"hits": [{"id": row, "score": 1 - away, "caption": captions[row]} for row, away in hits]}

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    print(f"listening {listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])


if __name__ == "__main__":
    main()
