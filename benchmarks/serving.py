"""The server under load, against what its parts do alone and against the service that one writes otherwise.

python -m benchmarks.serving --json build/serving.json

The server runs in a process of its own, over an index of vectors enlarged from real ones, and is asked by text: real
captions, each made unique, so that nothing is answered from a cache but where the table says so. The load comes from
this process, which shares the cores with it. Latencies count from the moment at which a call was meant to be made. The
peer is FastAPI, sentence-transformers and hnswlib with the same weights and vectors (`make peers`).
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import statistics
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.index import real_embeddings
from benchmarks.load import Call, Outcome, closed_loop, open_loop, without
from benchmarks.peer_process import DEFAULT_PYTHON
from benchmarks.report import Report, argument_parser
from benchmarks.serving_contestants import Server, made_index, our_server, peer_service, real_captions
from data import console
from protos.imageretrieval.v1 import query_pb2, search_service_pb2, search_service_pb2_grpc

CLIENTS = 12  # that wait for their answers, at saturation: more are refused on two cores
STREAMS, IN_FLIGHT = 4, 16
KEPT = 200  # texts that are asked again and again
DEADLINE = 2.0  # seconds, of every call
OVERHEAD_MS = 1.5
SHARE_OF_BARE, UNARY, STREAMED = 0.85, 1_200.0, 3_000.0
GOODPUT, TAIL, REFUSED_MS, AGAINST_PEER = 0.9, 3.0, 50.0, 2.0

_HEADS = ["load", "answers/s", "p50 ms", "p99 ms", "refused/s", "refused p99 ms", "server MB"]


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
        rows, ours = asyncio.run(_measure(server, texts, bare, options.seconds, report))
        report.figures["ours"] = ours
    if options.peer:
        with peer_service(options.peer_python, vectors) as port:
            peer = asyncio.run(_measure_peer(port, texts, options.seconds))
        rows.append(_row(f"FastAPI, sentence-transformers, hnswlib: {CLIENTS} clients", peer, None))
        report.figures["peer"] = _figures(peer)
        report.at_least("throughput / peer's", ours["saturation"]["rate"] / peer.rate, AGAINST_PEER)
        report.at_most("p99 at saturation / peer's", ours["saturation"]["p99_ms"] / peer.quantile(0.99), 1.0)
    console.print_table(f"{options.images:,} images", _HEADS, rows)
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
    """The model and the index without a service: milliseconds of one, texts a second in batches, one search."""
    from dual_encoder.runtime import Runtime
    from serving.embedded_store import EmbeddedStore
    from serving.index_bundle import bundle_of

    runtime = Runtime.load(bundle_of(index))
    store = EmbeddedStore.open(index, runtime.fingerprint, writable=False)
    runtime.warm_up(32, 8)
    embedding, searching = [], []
    with store.view() as view:
        for number, text in enumerate(texts[:300]):
            text = _made_unique(text, number)
            began = time.perf_counter()
            vector = runtime.embed_texts([text])
            embedded = time.perf_counter()
            hits = view.search(vector, 10, by_text=1.0)[0]
            view.get([hit.image_id for hit in hits])
            embedding.append(embedded - began)
            searching.append(time.perf_counter() - embedded)
    batches, began = 0, time.perf_counter()
    while time.perf_counter() < began + 5 or batches < 10:
        first = 32 * batches % (len(texts) - 32)
        runtime.embed_texts([_made_unique(text, batches) for text in texts[first : first + 32]])
        batches += 1
    rate = 32 * batches / (time.perf_counter() - began)
    store.close()
    return {
        "embedding p50 ms": 1_000 * statistics.median(embedding),
        "search and lookup p50 ms": 1_000 * statistics.median(searching),
        "batched texts/s": rate,
    }


async def _measure(
    server: Server, texts: Sequence[str], bare: dict[str, float], seconds: float, report: Report
) -> tuple[list[list[str]], dict[str, Any]]:
    """Every load on ours, its table rows, figures and checks."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    rows, figures = [], {}
    async with grpc.aio.insecure_channel(server.address, options=options) as channel:
        stub = search_service_pb2_grpc.SearchServiceStub(channel)
        unique, repeated = _unary(stub, texts, None), _unary(stub, texts, KEPT)

        async def load(name: str, key: str, outcome: Outcome) -> Outcome:
            rows.append(_row(name, outcome, server.memory))
            figures[key] = {**_figures(outcome), "server_mb": server.memory}
            return outcome

        await closed_loop(unique, 4, 2)
        one = await load("one client", "one_client", await closed_loop(unique, 1, seconds))
        parts = bare["embedding p50 ms"] + bare["search and lookup p50 ms"]
        figures["empty_call_ms"] = empty = await _empty_call(channel, parts / 1_000)
        console.say(f"a call that does nothing takes {empty:.2f} ms, as often as one client searches")
        report.at_most("p50 of one client beyond the parts, ms", one.quantile(0.5) - parts, OVERHEAD_MS)
        full = await load(f"{CLIENTS} clients", "saturation", await closed_loop(unique, CLIENTS, seconds))
        report.at_least("at saturation / bare batched embedding", full.rate / bare["batched texts/s"], SHARE_OF_BARE)
        calm = await load("at random, 70 % of saturation", "calm", await open_loop(unique, 0.7 * full.rate, seconds))
        await load("at random, 200 %", "twice", await open_loop(unique, 2 * full.rate, seconds))
        before = server.memory
        flood = await load("at random, 500 %", "flood", await open_loop(unique, 5 * full.rate, seconds))
        report.at_least("goodput at 500 % / at saturation", flood.rate / full.rate, GOODPUT)
        report.at_most("p99 of the admitted at 500 % / at 70 %", flood.quantile(0.99) / calm.quantile(0.99), TAIL)
        refused = flood.quantile(0.99, "OVERLOADED with a delay")
        report.at_most("p99 of refusals with RetryInfo at 500 %, ms", refused, REFUSED_MS)
        others = without(flood, ("ok", "OVERLOADED with a delay"))
        report.at_most("calls at 500 % that ended in another way", sum(others.values()), 0)
        report.at_most("memory gained at 500 %, MB", server.memory - before, 100)
        for number in range(KEPT):
            await repeated(number)
        unary = await load("asked before, 32 clients", "kept_unary", await closed_loop(repeated, 32, seconds))
        streamed = await _streams(stub, texts, seconds)
        await load(f"asked before, {STREAMS} streams of {IN_FLIGHT}", "kept_streamed", streamed)
        share = max(unary.rate / UNARY, streamed.rate / STREAMED)
        report.at_least(f"asked before: calls/s / {UNARY:,.0f}, or streamed searches/s / {STREAMED:,.0f}", share, 1.0)
    return rows, figures


async def _empty_call(channel: grpc.aio.Channel, pause: float) -> float:
    """Milliseconds of a health check, the median of some with a pause before each: what gRPC itself takes."""
    check, taken = health_pb2_grpc.HealthStub(channel).Check, []
    for _ in range(300):
        await asyncio.sleep(pause)
        began = time.perf_counter()
        await check(health_pb2.HealthCheckRequest())
        taken.append(time.perf_counter() - began)
    return 1_000 * statistics.median(taken)


def _unary(stub: Any, texts: Sequence[str], distinct: int | None) -> Call:
    """One Search a call: of `distinct` texts, or of ever new ones."""
    fresh = iter(range(10**9))

    async def call(number: int) -> str:
        text = texts[number % distinct] if distinct else _made_unique(texts[number % len(texts)], next(fresh))
        try:
            await stub.Search(_request(text), timeout=DEADLINE)
        except grpc.aio.AioRpcError as error:
            return _reason(error)
        return "ok"

    return call


def _made_unique(text: str, number: int) -> str:
    return f"{text} {number}"


def _request(text: str) -> search_service_pb2.SearchRequest:
    return search_service_pb2.SearchRequest(query=query_pb2.Query(text=text), page_size=10)


def _reason(error: grpc.aio.AioRpcError) -> str:
    """How a call ended: its reason, and whether it says when to come back."""
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    status = rpc_status.from_call(error)
    names = {detail.TypeName(): detail for detail in status.details} if status else {}
    info = error_details_pb2.ErrorInfo()
    if "google.rpc.ErrorInfo" not in names or not names["google.rpc.ErrorInfo"].Unpack(info):
        return error.code().name
    return f"{info.reason} with a delay" if "google.rpc.RetryInfo" in names else info.reason


async def _streams(stub: Any, texts: Sequence[str], seconds: float) -> Outcome:
    """Searches for texts that were asked before, over a few streams, so many under way in each."""
    outcome = Outcome()
    began = time.perf_counter()

    async def stream(first: int) -> None:
        room, sent = asyncio.Semaphore(IN_FLIGHT), {}

        async def requests() -> AsyncIterator[search_service_pb2.StreamSearchRequest]:
            tag = 0
            while time.perf_counter() < began + seconds:
                await room.acquire()
                sent[tag] = time.perf_counter()
                yield search_service_pb2.StreamSearchRequest(tag=tag, request=_request(texts[(first + tag) % KEPT]))
                tag += 1

        async for response in stub.StreamSearch(requests()):
            ended = "ok" if response.result.HasField("response") else "refused"
            outcome.add(ended, time.perf_counter() - sent.pop(response.tag))
            room.release()

    await asyncio.gather(*(stream(50 * number) for number in range(STREAMS)))
    outcome.seconds = time.perf_counter() - began
    return outcome


async def _measure_peer(port: int, texts: Sequence[str], seconds: float) -> Outcome:
    """As many clients, each with a connection and a thread of its own."""
    fresh, pool = iter(range(10**9)), ThreadPoolExecutor(CLIENTS)
    connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=60) for _ in range(CLIENTS)]

    def ask(connection: http.client.HTTPConnection, number: int) -> str:
        text = _made_unique(texts[number % len(texts)], next(fresh))
        connection.request("GET", "/search?" + urllib.parse.urlencode({"q": text, "k": 10}))
        response = connection.getresponse()
        response.read()
        return "ok" if response.status == 200 else str(response.status)

    async def client(call: Callable[[int], Any], warm: bool) -> Outcome:
        return await closed_loop(call, CLIENTS, 3 if warm else seconds)

    free = list(connections)

    async def call(number: int) -> str:
        connection = free.pop()
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, ask, connection, number)
        finally:
            free.append(connection)

    await client(call, warm=True)
    return await client(call, warm=False)


def _row(name: str, outcome: Outcome, memory: float | None) -> list[str]:
    refused = sum(without(outcome, ("ok",)).values()) / outcome.seconds
    delay = outcome.quantile(0.99, "OVERLOADED with a delay")
    return [
        name,
        f"{outcome.rate:,.0f}",
        f"{outcome.quantile(0.5):.1f}",
        f"{outcome.quantile(0.99):.1f}",
        f"{refused:,.0f}",
        "" if np.isnan(delay) else f"{delay:.1f}",
        "" if memory is None else f"{memory:,.0f}",
    ]


def _figures(outcome: Outcome) -> dict[str, Any]:
    quantiles = {f"p{share * 100:g}_ms": outcome.quantile(share) for share in (0.5, 0.9, 0.99)}
    return {"rate": outcome.rate, "ended": outcome.counts, **quantiles}


if __name__ == "__main__":
    console.run(main)
