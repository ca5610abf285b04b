"""The server under load, against what its parts do alone and against the service that one writes otherwise.

python -m benchmarks.serving --json build/serving.json

The server runs in a process of its own, over an index of vectors enlarged from real ones, and is asked by text: real
captions, each made unique, so that nothing is answered from a cache but where the table says so. The load comes from
this process, which shares the cores with it and is written to leave them to the server. Latencies count from the moment
at which a call was meant to be made. The peer is FastAPI, sentence-transformers and hnswlib with the same weights and
vectors (`make peers`).
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.index import real_embeddings
from benchmarks.lean_client import LeanConnection, headers
from benchmarks.load import Outcome, closed_loop, open_loop, without
from benchmarks.peer_process import DEFAULT_PYTHON
from benchmarks.report import Report, argument_parser
from benchmarks.search_calls import KEPT, REFUSED, PeerSearches, Searches, made_unique
from benchmarks.serving_contestants import Server, made_index, our_server, peer_service, real_captions
from data import console

CLIENTS = 12  # that wait for their answers, at saturation: more are refused on two cores
STREAMS, IN_FLIGHT = 4, 16
OVERHEAD_MS = 1.5
SHARE_OF_BARE, UNARY, STREAMED = 0.85, 1_200.0, 3_000.0
GOODPUT, TAIL, REFUSED_MS, AGAINST_PEER = 0.9, 3.0, 50.0, 2.0
PAUSE = 0.002  # seconds, about what gRPC takes between two searches of one client

_HEADS = ["load", "answers/s", "p50 ms", "p99 ms", "refused/s", "refused p99 ms", "server ms", "load's cores", "MB"]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the parts, the server and the peer; print tables; check the promised figures."""
    options = _options(argv)
    options.work.mkdir(parents=True, exist_ok=True)
    real = real_embeddings("default", options.data, options.work)
    texts = real_captions(options.data)
    vectors, index = made_index(real.images, options.images, options.work)
    report = Report("serving", {"images": options.images, "seconds": options.seconds})
    bare = _bare(index, texts)
    report.figures["bare"] = bare
    console.print_table("the parts alone", ["part", "figure"], [[name, f"{value:.4g}"] for name, value in bare.items()])
    with our_server(index) as server:
        loads = asyncio.run(_measure(server, texts, bare, options.seconds, report))
    report.figures["ours"] = loads.figures
    if options.peer:
        with peer_service(options.peer_python, vectors) as port:
            peer = asyncio.run(_measure_peer(port, texts, options.seconds))
        loads.rows.append([f"FastAPI, sentence-transformers, hnswlib: {CLIENTS} clients", *_cells(peer), "", "", ""])
        report.figures["peer"] = _figures(peer)
        full = loads.figures["saturation"]
        report.at_least("throughput / peer's", full["rate"] / peer.rate, AGAINST_PEER)
        report.at_most("p99 at saturation / peer's", full["p99_ms"] / peer.quantile(0.99), 1.0)
    console.print_table(f"{options.images:,} images", _HEADS, loads.rows)
    return report.finish(options.json)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argument_parser("serving", __doc__)
    parser.add_argument("--data", action="append", metavar="SOURCE", help="default: all of $DATASETS_DIR, and emoji")
    parser.add_argument("--images", type=int, default=100_000, help="in the index, default 100,000")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load, default 10")
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="leave the other service out")
    parser.add_argument("--peer-python", type=Path, default=DEFAULT_PYTHON, metavar="PATH")
    parser.add_argument("--work", type=Path, default=Path("build/serving_benchmark"), help="vectors and index")
    return parser.parse_args(argv)


def _bare(index: Path, texts: Sequence[str]) -> dict[str, float]:
    """The model and the index without a service: milliseconds of one, texts a second in batches, one search.

    Once without a break, and once as rarely as one client of a service asks, which finds caches cold and cores asleep.
    """
    from dual_encoder.runtime import Runtime
    from serving.embedded_store import EmbeddedStore
    from serving.index_bundle import bundle_of

    runtime = Runtime.load(bundle_of(index))
    store = EmbeddedStore.open(index, runtime.fingerprint, writable=False)
    runtime.warm_up(32, 8)
    figures = {}
    with store.view() as view:
        for pause, told in ((0.0, ""), (PAUSE, ", after a pause")):
            embedding, searching = [], []
            for number, text in enumerate(texts[:300]):
                text = made_unique(text, number)
                time.sleep(pause)
                began = time.perf_counter()
                vector = runtime.embed_texts([text])
                embedded = time.perf_counter()
                hits = view.search(vector, 10, by_text=1.0)[0]
                view.get([hit.image_id for hit in hits])
                embedding.append(embedded - began)
                searching.append(time.perf_counter() - embedded)
            figures[f"embedding p50 ms{told}"] = 1_000 * statistics.median(embedding)
            figures[f"search and lookup p50 ms{told}"] = 1_000 * statistics.median(searching)
    batches, began, processor = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() < began + 5 or batches < 10:
        first = 32 * batches % (len(texts) - 32)
        runtime.embed_texts([made_unique(text, batches) for text in texts[first : first + 32]])
        batches += 1
    figures["batched texts/s"] = 32 * batches / (time.perf_counter() - began)
    figures["processor ms of a batched text"] = 1_000 * (time.process_time() - processor) / (32 * batches)
    store.close()
    return figures


class _Loads:
    """What came of each load, as rows of the table and as figures, with what it took of the processors."""

    def __init__(self, server: Server) -> None:
        self.rows: list[list[str]] = []
        self.figures: dict[str, Any] = {}
        self._server = server

    async def run(self, name: str, key: str, load: Awaitable[Outcome]) -> Outcome:
        """Do it; `name` is for the table, `key` for the figures."""
        server, own = self._server.processor_seconds, time.process_time()
        began = time.perf_counter()
        outcome = await load
        seconds = time.perf_counter() - began
        server, own = self._server.processor_seconds - server, (time.process_time() - own) / seconds
        answers = len(outcome.latencies.get("ok", ()))
        each, memory = 1_000 * server / max(1, answers), self._server.memory
        self.rows.append([name, *_cells(outcome), f"{each:.1f}", f"{own:.2f}", f"{memory:,.0f}"])
        self.figures[key] = {
            **_figures(outcome),
            "server_processor_ms_per_answer": each,
            "server_cores": server / seconds,
            "load_cores": own,
            "server_mb": memory,
        }
        console.say(f"{name}: {outcome.rate:,.0f} answers/s")
        return outcome


async def _measure(
    server: Server, texts: Sequence[str], bare: dict[str, float], seconds: float, report: Report
) -> _Loads:
    """Every load on ours, and its checks."""
    loads = _Loads(server)
    async with Searches.of(server.address, texts) as searches:
        new, kept = searches.one(searches.new_text), searches.one(searches.kept_text)
        await closed_loop(new, 4, 2)
        one = await loads.run("one client", "one_client", closed_loop(new, 1, seconds))
        loads.figures["empty_call_ms"] = empty = await _empty_call(server.address, one.quantile(0.5) / 1_000)
        console.say(f"a call that does nothing takes {empty:.2f} ms, as often as one client searches")
        for told in ("", ", after a pause"):
            parts = bare[f"embedding p50 ms{told}"] + bare[f"search and lookup p50 ms{told}"]
            report.at_most(f"p50 of one client beyond the parts{told}, ms", one.quantile(0.5) - parts, OVERHEAD_MS)
        full = await loads.run(f"{CLIENTS} clients", "saturation", closed_loop(new, CLIENTS, seconds))
        report.at_least("at saturation / bare batched embedding", full.rate / bare["batched texts/s"], SHARE_OF_BARE)
        streams = searches.streams(searches.new_text, STREAMS, IN_FLIGHT, seconds)
        streamed = await loads.run(f"{STREAMS} streams of {IN_FLIGHT}", "streamed", streams)
        report.at_least("in streams / bare batched embedding", streamed.rate / bare["batched texts/s"], SHARE_OF_BARE)
        calm = await loads.run("at random, 70 % of the clients'", "calm", open_loop(new, 0.7 * full.rate, seconds))
        await loads.run("at random, 200 %", "twice", open_loop(new, 2 * full.rate, seconds))
        before = server.memory
        flood = await loads.run("at random, 500 %", "flood", open_loop(new, 5 * full.rate, seconds))
        report.at_least("goodput at 500 % / at saturation", flood.rate / full.rate, GOODPUT)
        report.at_most("p99 of the admitted at 500 % / at 70 %", flood.quantile(0.99) / calm.quantile(0.99), TAIL)
        report.at_most("p99 of refusals with RetryInfo at 500 %, ms", flood.quantile(0.99, REFUSED), REFUSED_MS)
        report.at_most("calls at 500 % that ended in another way", sum(without(flood, ("ok", REFUSED)).values()), 0)
        report.at_most("memory gained at 500 %, MB", server.memory - before, 100)
        for number in range(KEPT):
            await kept(number)
        unary = await loads.run("asked before, 32 clients", "kept_unary", closed_loop(kept, 32, seconds))
        again = searches.streams(searches.kept_text, STREAMS, IN_FLIGHT, seconds)
        streamed = await loads.run(f"asked before, {STREAMS} streams of {IN_FLIGHT}", "kept_streamed", again)
        share = max(unary.rate / UNARY, streamed.rate / STREAMED)
        report.at_least(f"asked before: calls/s / {UNARY:,.0f}, or streamed searches/s / {STREAMED:,.0f}", share, 1.0)
    return loads


async def _empty_call(address: str, pause: float) -> float:
    """Milliseconds of a health check, the median of some with a pause before each: what gRPC itself takes."""
    taken, head = [], headers("/grpc.health.v1.Health/Check")
    connection = await LeanConnection.connect(address)
    for _ in range(300):
        await asyncio.sleep(pause)
        began, ended = time.perf_counter(), asyncio.get_running_loop().create_future()
        connection.start(head, b"", ended.set_result)
        await ended
        taken.append(time.perf_counter() - began)
    connection.close()
    return 1_000 * statistics.median(taken)


async def _measure_peer(port: int, texts: Sequence[str], seconds: float) -> Outcome:
    """As many clients as at our saturation."""
    searches = PeerSearches(port, texts, CLIENTS)
    await closed_loop(searches.call, CLIENTS, 3)
    return await closed_loop(searches.call, CLIENTS, seconds)


def _cells(outcome: Outcome) -> list[str]:
    refused = sum(without(outcome, ("ok",)).values()) / outcome.seconds
    delay = outcome.quantile(0.99, REFUSED)
    return [
        f"{outcome.rate:,.0f}",
        f"{outcome.quantile(0.5):.1f}",
        f"{outcome.quantile(0.99):.1f}",
        f"{refused:,.0f}",
        "" if np.isnan(delay) else f"{delay:.1f}",
    ]


def _figures(outcome: Outcome) -> dict[str, Any]:
    quantiles = {f"p{share * 100:g}_ms": outcome.quantile(share) for share in (0.5, 0.9, 0.99)}
    return {"rate": outcome.rate, "ended": outcome.counts, **quantiles}


if __name__ == "__main__":
    console.run(main)
