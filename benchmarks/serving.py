"""The server under load, against what its parts do alone and against the service that one writes otherwise.

python -m benchmarks.serving --json build/serving.json

The server runs in a process of its own, over an index of vectors enlarged from real ones, and is asked by text: the
same real captions in every load, each made unique, so that nothing is answered from a cache but where the table says
so. The load comes from this process, which shares the cores with it and is written to leave them to the server.
Latencies count from the moment at which a call was meant to be made. The parts alone and the loads take turns, for a
machine does more or less from one second to the next: one client and the parts every few texts, the parts' rate before
and after each load that is compared with it. Ratios are medians over the turns. The peer is FastAPI,
sentence-transformers and hnswlib with the same weights and vectors (`make peers`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import statistics
import time
from collections import defaultdict
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.index import real_embeddings
from benchmarks.lean_client import LeanConnection, headers
from benchmarks.load import Call, Outcome, closed_loop, one_after_another, open_loop, without
from benchmarks.peer_process import DEFAULT_PYTHON
from benchmarks.report import Report, argument_parser
from benchmarks.search_calls import KEPT, REFUSED, PeerSearches, Searches, made_unique, unused_numbers
from benchmarks.serving_contestants import Server, made_index, our_server, peer_service, real_captions
from data import console

if TYPE_CHECKING:
    from dual_encoder.runtime import Runtime
    from serving.vector_store import StoreView

CLIENTS = 24  # that wait for their answers, at saturation; few more are refused on two cores
STREAMS, IN_FLIGHT = 4, 16
OVERHEAD_MS = 1.5
SHARE_OF_BARE, UNARY, STREAMED = 0.85, 1_200.0, 3_000.0
GOODPUT, TAIL, REFUSED_MS, AGAINST_PEER = 0.9, 3.0, 50.0, 2.0
# How the parts are measured alone: with pauses of so many seconds, of which 2 ms are about what gRPC takes between two
# searches of one client; on the texts that one client asks for, for how long they are is most of it.
ALONE = {"": 0.0, ", after a pause": 0.002}
TEXTS = 512  # that are asked for in every load: of others, more or less would be long
SAME, AT_A_TIME = 300, 20
SETTLED = 0.01  # seconds after which no thread of the parts spins any more

_HEADS = ["load", "answers/s", "p50 ms", "p99 ms", "refused/s", "refused p99 ms", "server ms", "load's cores", "MB"]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the parts, the server and the peer in turns; print tables; check the promised figures."""
    options = _options(argv)
    options.work.mkdir(parents=True, exist_ok=True)
    real = real_embeddings("default", options.data, options.work)
    captions = real_captions(options.data)
    vectors, index = made_index(real, captions, options.images, options.work)
    texts = captions[:TEXTS]
    report = Report("serving", {"images": options.images, "seconds": options.seconds, "turns": options.turns})
    with _parts_alone(index) as before, our_server(index) as server, _parts_alone(index) as after:
        loads, parts = _Loads(server), _Parts((before, after), texts)
        found = asyncio.run(_measure(loads, parts, texts, options.seconds / options.turns, options.turns))
    report.figures |= {"bare": parts.figures, "ours": loads.figures, "turn_by_turn": found}
    _check(report, loads.outcomes, found)
    rows = [[name, f"{value:.4g}"] for name, value in parts.figures.items()]
    console.print_table("the parts alone, medians of the turns", ["part", "figure"], rows)
    table = loads.rows
    if options.peer:
        with peer_service(options.peer_python, vectors) as port:
            peer = asyncio.run(_measure_peer(port, texts, options.seconds))
        table.append([f"FastAPI, sentence-transformers, hnswlib: {CLIENTS} clients", *_cells(peer), "", "", ""])
        report.figures["peer"] = _figures(peer)
        full = loads.outcomes["saturation"]
        report.at_least("throughput / peer's", full.rate / peer.rate, AGAINST_PEER)
        report.at_most("p99 at saturation / peer's", full.quantile(0.99) / peer.quantile(0.99), 1.0)
    console.print_table(f"{options.images:,} images", _HEADS, table)
    return report.finish(options.json)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argument_parser("serving", __doc__)
    parser.add_argument("--data", action="append", metavar="SOURCE", help="default: all of $DATASETS_DIR, and emoji")
    parser.add_argument("--images", type=int, default=100_000, help="in the index, default 100,000")
    parser.add_argument("--seconds", type=float, default=24.0, help="of each load, in all turns together; default 24")
    parser.add_argument("--turns", type=int, default=6, help="default 6")
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="leave the other service out")
    parser.add_argument("--peer-python", type=Path, default=DEFAULT_PYTHON, metavar="PATH")
    parser.add_argument("--work", type=Path, default=Path("build/serving_benchmark"), help="vectors and index")
    return parser.parse_args(argv)


@dataclass
class _Parts:
    """The model and the index without a service; its figures are medians over the turns.

    They are there twice, loaded before the server and after it: what is loaded later lies better in a machine's memory,
    by up to a tenth of the time of one search.
    """

    loaded: Sequence[tuple[Runtime, StoreView]]
    texts: Sequence[str]
    figures: dict[str, float] = field(default_factory=dict)
    _found: dict[str, list[float]] = field(default_factory=dict)
    _fresh: Iterator[int] = field(default_factory=unused_numbers)

    def each(self, numbers: Sequence[int], pause: float) -> list[tuple[float, float]]:
        """Milliseconds to embed each of these texts, one by one, and to search and look up, after a pause."""
        return [self._one(*parts, number, pause) for parts in self.loaded for number in numbers]

    def _one(self, runtime: Runtime, view: StoreView, number: int, pause: float) -> tuple[float, float]:
        text = self._text(number)
        time.sleep(pause)
        began = time.perf_counter()
        vector = runtime.embed_texts([text])
        embedded = time.perf_counter()
        hits = view.search(vector, 10, by_text=1.0)[0]
        view.get([hit.image_id for hit in hits])
        return 1_000 * (embedded - began), 1_000 * (time.perf_counter() - embedded)

    def median(self, taken: Sequence[tuple[float, float]], told: str) -> float:
        """The median of both parts of what `one` gave; noted, and those of each by itself."""
        for part, milliseconds in zip(("embedding", "search and lookup"), zip(*taken, strict=True), strict=True):
            self._note(f"{part} p50 ms{told}", statistics.median(milliseconds))
        return self._note(f"both p50 ms{told}", statistics.median(map(sum, taken)))

    def batched(self, seconds: float) -> float:
        """Texts a second in batches of 32."""
        done, began, processor = 0, time.perf_counter(), time.process_time()
        while (taken := time.perf_counter() - began) < seconds:
            for runtime, _ in self.loaded:
                runtime.embed_texts([self._text(done + place) for place in range(32)])
                done += 32
        self._note("processor ms of a batched text", 1_000 * (time.process_time() - processor) / done)
        return self._note("batched texts/s", done / taken)

    def _text(self, number: int) -> str:
        return made_unique(self.texts[number % len(self.texts)], next(self._fresh))

    def _note(self, name: str, value: float) -> float:
        found = self._found.setdefault(name, [])
        found.append(value)
        self.figures[name] = statistics.median(found)
        return value


@contextlib.contextmanager
def _parts_alone(index: Path) -> Iterator[tuple[Runtime, StoreView]]:
    from dual_encoder.runtime import Runtime
    from serving.embedded_store import EmbeddedStore
    from serving.index_bundle import bundle_of

    runtime = Runtime.load(bundle_of(index))
    runtime.warm_up(32, 8)
    store = EmbeddedStore.open(index, runtime.fingerprint, writable=False)
    with contextlib.closing(store), store.view() as view:
        yield runtime, view


@dataclass
class _Spent:
    """What a load took: its own processor seconds and the server's, wall seconds, and the server's memory after it."""

    server: float = 0.0
    own: float = 0.0
    seconds: float = 0.0
    memory: float = 0.0


class _Loads:
    """What came of each load in all turns, and what it took of the processors."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.outcomes: dict[str, Outcome] = {}
        self._names: dict[str, str] = {}
        self._spent: dict[str, _Spent] = {}

    async def run(self, name: str, key: str, load: Awaitable[Outcome]) -> Outcome:
        """Do it once more; `name` is for the table, `key` for the figures. The outcome is this turn's."""
        spent = self._spent.setdefault(key, _Spent())
        server, own, began = self.server.processor_seconds, time.process_time(), time.perf_counter()
        outcome = await load
        spent.seconds += time.perf_counter() - began
        spent.server += self.server.processor_seconds - server
        spent.own += time.process_time() - own
        spent.memory = self.server.memory
        self._names[key] = name
        self.outcomes.setdefault(key, Outcome(0.0)).extend(outcome)
        return outcome

    def each(self, key: str) -> float:
        """Milliseconds of the server's processor time for an answer."""
        spent = self._spent[key]
        return 1_000 * spent.server / spent.seconds / max(1e-9, self.outcomes[key].rate)

    @property
    def rows(self) -> list[list[str]]:
        """A row of the table for each load."""
        rows = []
        for key, name in self._names.items():
            spent, outcome = self._spent[key], self.outcomes[key]
            own, memory = f"{spent.own / spent.seconds:.2f}", f"{spent.memory:,.0f}"
            rows.append([name, *_cells(outcome), f"{self.each(key):.1f}", own, memory])
        return rows

    @property
    def figures(self) -> dict[str, Any]:
        """The figures of each load."""
        return {
            key: {
                **_figures(self.outcomes[key]),
                "server_processor_ms_per_answer": self.each(key),
                "server_cores": spent.server / spent.seconds,
                "load_cores": spent.own / spent.seconds,
                "server_mb": spent.memory,
            }
            for key, spent in self._spent.items()
        }


async def _measure(
    loads: _Loads, parts: _Parts, texts: Sequence[str], seconds: float, turns: int
) -> dict[str, list[float]]:
    """The parts and every load on ours, in turns; gives what the turns compare."""
    found: dict[str, list[float]] = defaultdict(list)
    server, saturation = loads.server, (f"{CLIENTS} clients", "saturation")
    async with Searches.of(server.address, texts) as searches:
        new, kept = searches.one(searches.new_text), searches.one(searches.kept_text)
        await closed_loop(new, 4, 2)
        await closed_loop(new, CLIENTS, 2)
        gc.freeze()  # or every so often the load would stop, to look through all that the parts have loaded
        for turn in range(turns):
            one, alone = await _one_client(loads, parts, new)
            for told, milliseconds in alone.items():
                found[f"one{told}"].append(one - milliseconds)
            batched = [parts.batched(seconds)]
            full = await loads.run(*saturation, closed_loop(new, CLIENTS, seconds))
            batched.append(parts.batched(seconds))
            found["clients"].append(full.rate / statistics.mean(batched))
            streams = searches.streams(searches.new_text, STREAMS, IN_FLIGHT, seconds)
            streamed = await loads.run(f"{STREAMS} streams of {IN_FLIGHT}", "streamed", streams)
            batched.append(parts.batched(seconds))
            found["streams"].append(streamed.rate / statistics.mean(batched[1:]))
            calm, twice = (open_loop(new, share * full.rate, seconds, turn) for share in (0.7, 2))
            await loads.run("at random, 70 % of the clients'", "calm", calm)
            await loads.run("at random, 200 %", "twice", twice)
            before = await loads.run(*saturation, closed_loop(new, CLIENTS, seconds))
            held = server.memory
            flood = await loads.run("at random, 500 %", "flood", open_loop(new, 5 * before.rate, seconds, turn))
            found["gained"].append(server.memory - held)
            after = await loads.run(*saturation, closed_loop(new, CLIENTS, seconds))
            found["goodput"].append(flood.rate / statistics.mean([before.rate, after.rate]))
            said = ", ".join(f"{name} {values[-1]:.2f}" for name, values in found.items())
            console.say(f"turn {turn + 1} of {turns}: {said}")
        parts.figures["a call that does nothing, ms"] = await _empty_call(
            server.address, loads.outcomes["one_client"].quantile(0.5) / 1_000
        )
        for number in range(KEPT):
            await kept(number)
        await loads.run("asked before, 32 clients", "kept_unary", closed_loop(kept, 32, seconds * 2))
        streams = searches.streams(searches.kept_text, STREAMS, IN_FLIGHT, seconds * 2)
        await loads.run(f"asked before, {STREAMS} streams of {IN_FLIGHT}", "kept_streamed", streams)
    return found


async def _one_client(loads: _Loads, parts: _Parts, call: Call) -> tuple[float, dict[str, float]]:
    """Median milliseconds of one client, and of the parts by how they were measured, for the same texts."""
    served = Outcome(0.0)
    alone: dict[str, list[tuple[float, float]]] = {told: [] for told in ALONE}
    for first in range(0, SAME, AT_A_TIME):
        numbers = range(first, first + AT_A_TIME)
        for told, pause in ALONE.items():
            alone[told] += parts.each(numbers, pause)
        await asyncio.sleep(SETTLED)
        served.extend(await loads.run("one client", "one_client", one_after_another(call, numbers)))
        await asyncio.sleep(SETTLED)
    return served.quantile(0.5), {told: parts.median(taken, told) for told, taken in alone.items()}


def _check(report: Report, outcomes: Mapping[str, Outcome], found: Mapping[str, Sequence[float]]) -> None:
    """The promised figures of ours."""
    median = {name: statistics.median(values) for name, values in found.items()}
    calm, flood = outcomes["calm"], outcomes["flood"]
    for told in ALONE:
        report.at_most(f"p50 of one client beyond the parts{told}, ms", median[f"one{told}"], OVERHEAD_MS)
    report.at_least("at saturation / bare batched embedding", median["clients"], SHARE_OF_BARE)
    report.at_least("in streams / bare batched embedding", median["streams"], SHARE_OF_BARE)
    report.at_least("goodput at 500 % / at saturation", median["goodput"], GOODPUT)
    report.at_most("p99 of the admitted at 500 % / at 70 %", flood.quantile(0.99) / calm.quantile(0.99), TAIL)
    report.at_most("p99 of refusals with RetryInfo at 500 %, ms", flood.quantile(0.99, REFUSED), REFUSED_MS)
    report.at_most("calls at 500 % that ended in another way", sum(without(flood, ("ok", REFUSED)).values()), 0)
    report.at_most("memory gained at 500 %, MB", max(found["gained"]), 100)
    share = max(outcomes["kept_unary"].rate / UNARY, outcomes["kept_streamed"].rate / STREAMED)
    report.at_least(f"asked before: calls/s / {UNARY:,.0f}, or streamed searches/s / {STREAMED:,.0f}", share, 1.0)


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
    refused = sum(without(outcome, ("ok",)).values()) / outcome.spent
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
