"""The gRPC server process: opens the port, loads, reports health, drains and stops; knows no query.

Example: `python -m serving.server --index index --address 127.0.0.1:50051`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data import console
from data.errors import UserError
from serving.web.http_settings import HttpSettings

if TYPE_CHECKING:
    import grpc
    from grpc_health.v1 import health

    from serving.call_guard import CallGuard
    from serving.search_engine import SearchEngine
    from serving.vector_store import VectorStore

DEFAULT_ADDRESS = "127.0.0.1:50051"

# Changes above the snapshot at which a compaction starts; every search compares with each of them.
COMPACT_AFTER = 10_000

# The largest image is 32 MiB; the rest of a request is small.
MAX_MESSAGE_BYTES = 33 * 1024 * 1024


def serve(
    address: str, load: Callable[[], SearchEngine], grace: float = 10.0, http: HttpSettings | None = None
) -> None:
    """Serve what `load` returns on `address` until SIGTERM or SIGINT; then running calls have `grace` seconds.

    The port is open, and health says NOT_SERVING, while `load` runs in a thread. Prints `listening on HOST:PORT` on
    standard output, and `page on http://HOST:PORT` where `http` asks for the page. `UserError` when an address cannot
    be used; what `load` raises is raised.
    """
    still_loading = asyncio.run(_serve(address, load, grace, http))
    if still_loading:
        # A thread inside a model's native code can neither be stopped nor outlive the interpreter.
        sys.stdout.flush()
        os._exit(console.EXIT_OK)


async def _serve(
    address: str, load: Callable[[], SearchEngine], grace: float, http: HttpSettings | None = None
) -> bool:
    """Run the server; return whether `load` was still running when it was asked to stop."""
    server, guard, health_service = _make_server()
    port = _open_port(server, address)
    stopping = asyncio.ensure_future(_stop_signal())
    await _set_serving(health_service, False)
    await server.start()
    print(f"listening on {address.rpartition(':')[0]}:{port}", flush=True)
    page = contextlib.AsyncExitStack()
    if http is not None:
        from serving.web.http_server import http_server

        page_address = await page.enter_async_context(http_server(http, guard, grace))
        print(f"page on {page_address}", flush=True)
    loading = _in_daemon_thread(load)
    try:
        either: set[asyncio.Future[Any]] = {loading, stopping}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            guard.engine = loading.result()
            await _set_serving(health_service, True)
            with guard.engine.store.view() as view:
                index = view.describe()
            console.say(f"serving {index.image_count:,} images of {index.source} with model {index.model_name}")
            await stopping
        console.say("stopping; running calls are finished first")
    finally:
        await health_service.enter_graceful_shutdown()
        await asyncio.gather(server.stop(grace), page.aclose())
        if guard.engine is not None:
            guard.engine.close()
    return not loading.done()


def _make_server() -> tuple[grpc.aio.Server, CallGuard, health.aio.HealthServicer]:
    """A server with our services, health and reflection, not yet on a port."""
    import grpc
    from grpc_health.v1 import health, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection

    from serving.call_guard import CallGuard
    from serving.grpc_methods import refuse_other_methods
    from serving.grpc_service import SERVICES, add_services

    options = [
        ("grpc.so_reuseport", 0),  # a second server on the same port must fail, not share its calls
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ]
    server, guard, health_service = grpc.aio.server(options=options), CallGuard(), health.aio.HealthServicer()
    add_services(server, guard, admin=True)
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    refuse_other_methods(server)
    return server, guard, health_service


def _open_port(server: grpc.aio.Server, address: str) -> int:
    """Bind the server to `address` and return the port, which the system chooses when it is 0."""
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal() and int(port) < 65_536):
        raise UserError("an address HOST:PORT", repr(address), f"name one such as --address {DEFAULT_ADDRESS}")
    try:
        return server.add_insecure_port(address)
    except RuntimeError:
        raise UserError(
            "an address of this machine that is free",
            f"{address}, which cannot be opened",
            "stop the program that uses it, or choose another --address (port 0 takes any free one)",
        ) from None


async def _set_serving(health_service: health.aio.HealthServicer, serving: bool) -> None:
    """Report the overall health and that of each service."""
    from grpc_health.v1 import health, health_pb2

    from serving.grpc_service import SERVICES

    statuses = health_pb2.HealthCheckResponse
    for service in (health.OVERALL_HEALTH, *SERVICES):
        await health_service.set(service, statuses.SERVING if serving else statuses.NOT_SERVING)


async def _stop_signal() -> None:
    """Return when the process is asked to stop."""
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    await asked.wait()


def _in_daemon_thread(load: Callable[[], SearchEngine]) -> asyncio.Future[SearchEngine]:
    """Run `load` in a thread that does not keep the process alive."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[SearchEngine] = loop.create_future()

    def deliver(setter: Callable[[Any], None], value: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(lambda: None if future.done() else setter(value))

    def run() -> None:
        try:
            engine = load()
        except BaseException as error:
            deliver(future.set_exception, error)
        else:
            deliver(future.set_result, engine)

    threading.Thread(target=run, name="loading", daemon=True).start()
    return future


def load_engine(
    index: Path | None, bundle: str | None = None, address: str = "", writable: bool = False
) -> SearchEngine:
    """Open an index with the bundle in it, or with another copy of that, and run the model as queries will.

    Without an index, the one at the `address` of Milvus, with `bundle`. `writable` to be changed.
    `BundleError`, `SnapshotError`, `FingerprintMismatch` or `vector_store.StoreUnreachable`.
    """
    from dual_encoder.runtime import Runtime
    from serving.embedded_store import EmbeddedStore
    from serving.index_bundle import bundle_of
    from serving.query_encoder import IMAGE_BATCH, TEXT_BATCH
    from serving.search_engine import SearchEngine

    store: VectorStore
    if index is None:
        from serving.milvus_store import MilvusStore

        runtime = Runtime.load(bundle or "default")
        store = MilvusStore.open(address, runtime.fingerprint, writable=writable)
    else:
        runtime = Runtime.load(bundle or bundle_of(index))
        store = EmbeddedStore.open(
            index, runtime.fingerprint, bundle=bundle or "BUNDLE", writable=writable, compact_after=COMPACT_AFTER
        )
    runtime.warm_up(TEXT_BATCH, IMAGE_BATCH)
    return SearchEngine(runtime, store)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse arguments and serve."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.server",
        description="Answer image searches over gRPC until SIGTERM. Without TLS: keep it on a loopback address.",
    )
    parser.add_argument("--bundle", help='directory of the model, or "default", if not the copy in the index')
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--index", type=Path, help="directory that serving.build_index made")
    place.add_argument(
        "--store", default="", metavar="milvus://HOST:PORT?name=NAME", help="what build_index --store filled"
    )
    parser.add_argument(
        "--address", default=DEFAULT_ADDRESS, metavar="HOST:PORT", help="default %(default)s; port 0: any"
    )
    parser.add_argument(
        "--http-address", metavar="HOST:PORT", help="serve the page and its JSON here; default: nowhere"
    )
    parser.add_argument("--grace", type=float, default=10.0, metavar="SECONDS", help="for running calls when stopping")
    parser.add_argument("--writable", action="store_true", help="accept changes; one process at a time")
    arguments = parser.parse_args(argv)
    if arguments.store and not arguments.bundle:
        parser.error("--store needs --bundle, the model that the images were embedded by")
    # Searches run side by side; threads of one matrix product would only take cores from the others. NumPy reads this
    # when it is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    http = HttpSettings(arguments.http_address) if arguments.http_address else None

    def load() -> SearchEngine:
        return load_engine(arguments.index, arguments.bundle, arguments.store, arguments.writable)

    serve(arguments.address, load, arguments.grace, http)
    return console.EXIT_OK


if __name__ == "__main__":
    console.run(main)
