"""The gRPC server process: opens the ports, loads, reports health, drains and stops; knows no query.

Example: `python -m serving.server --index index --address 127.0.0.1:50051`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from data import console
from data.errors import UserError
from serving.garbage_collection import collect_rarely
from serving.lent_loop import LentLoop
from serving.network import join_address, split_address
from serving.observation import observed
from serving.request_memory import RequestMemory
from serving.server_settings import DEFAULT_ADDRESS, ServerSettings, read_arguments
from serving.settings_sources import to_toml
from serving.unit_loader import unit_loader

if TYPE_CHECKING:
    import grpc
    from grpc_health.v1 import health

    from serving.call_guard import CallGuard
    from serving.core_server import CoreServer
    from serving.hot_swap import HotSwap
    from serving.isolated_decoding import IsolatedDecoder
    from serving.search_engine import SearchEngine


QUIET_SECONDS = 0.25  # without a call: balancers have gone elsewhere

# In gRPC's words: the thread that takes calls reads them too. Left to itself, gRPC reads in threads that then wake it.
POLLING = "-event_engine_client,-event_engine_listener,-event_engine_for_all_other_endpoints"


class Loader(Protocol):
    """Loads units: a model and its index; see `unit_loader.UnitLoader`. Called in a thread."""

    @property
    def decoder(self) -> IsolatedDecoder | None:
        """What decodes images that nobody trusts, in processes of its own."""

    def load(self) -> SearchEngine:
        """The first."""

    def load_next(self, former: SearchEngine) -> SearchEngine:
        """The one that was published in the place of another model's; see `hot_swap.HotSwap`."""


def serve(settings: ServerSettings, loader: Loader) -> None:
    """Serve what `loader` loads until SIGTERM or SIGINT; then callers have `settings.drain` seconds to go elsewhere,
    and running calls `settings.grace`.

    The ports are open, and health says NOT_SERVING, while it loads. Prints `listening on HOST:PORT` on
    standard output, then `operators on …`, `metrics on …` and `page on …` where there are such. `UserError` when
    an address or a file of the settings cannot be used; what `loader.load` raises is raised.
    """
    os.environ.setdefault("GRPC_EXPERIMENTS", POLLING)  # before gRPC is loaded
    with asyncio.Runner(loop_factory=LentLoop) as runner:
        still_loading = runner.run(_serve(settings, loader))
    if still_loading:
        # A thread inside a model's native code can neither be stopped nor outlive the interpreter.
        sys.stdout.flush()
        os._exit(console.EXIT_OK)


async def _serve(settings: ServerSettings, loader: Loader) -> bool:
    """Run the server, watched; return whether `loader` was still at work when it was asked to stop."""
    from serving.access import Access
    from serving.call_guard import CallGuard
    from serving.caller_limits import CallerLimits

    guard = CallGuard(Access(settings.access), CallerLimits(settings.limits))
    with observed(guard, settings.log, settings.observe) as told:
        return await _serve_calls(settings, loader, guard, told)


async def _serve_calls(settings: ServerSettings, loader: Loader, guard: CallGuard, told: Sequence[str]) -> bool:
    """As `_serve`; `told` is what it prints beside its own addresses."""
    from grpc_health.v1 import health

    from serving.hot_swap import HotSwap, in_daemon_thread

    health_service = health.aio.HealthServicer()
    servers = _open_ports(settings, guard, health_service)
    stopping = _stop_signal()
    await _set_serving(health_service, False)
    for server, listening in servers:
        await server.start()
        print(listening, flush=True)
    for line in told:
        print(line, flush=True)
    page = contextlib.AsyncExitStack()
    if settings.http.address:
        from serving.web.http_server import http_server

        page_address = await page.enter_async_context(http_server(settings.http, guard, settings.grace, loader.decoder))
        print(f"page on {page_address}", flush=True)
    loading = in_daemon_thread(loader.load)
    loaded = False
    swap = HotSwap(guard.unit, loader.load_next)
    watching = asyncio.ensure_future(swap.watch())
    try:
        either: set[asyncio.Future[Any]] = {loading, stopping}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        loaded = loading.done()
        if loaded:
            _begin(guard, loading.result(), settings, swap)
            del loading, either  # nothing here keeps a unit that another has replaced
            await _set_serving(health_service, True)
            await stopping
            await health_service.enter_graceful_shutdown()
            await _until_calls_go_elsewhere(guard, settings.drain)
        console.say("stopping; running calls are finished first")
    finally:
        await health_service.enter_graceful_shutdown()
        watching.cancel()
        if guard.upkeep is not None:
            await guard.upkeep.close()  # before its callers are told to end, so that they learn how it ended
        await asyncio.gather(*(server.stop(settings.grace) for server, _ in servers), page.aclose())
        await guard.unit.close()
    return swap.loading or not loaded


async def _until_calls_go_elsewhere(guard: CallGuard, seconds: float) -> None:
    """Take calls until none has come for a moment, `seconds` at most: who asks health goes to another server.

    Calls that wait in gRPC when a server stops are dropped as CANCELLED, which nobody repeats.
    """
    end = time.perf_counter() + seconds
    while (now := time.perf_counter()) < end and (quiet := now - guard.last_call) < QUIET_SECONDS:
        await asyncio.sleep(min(end - now, QUIET_SECONDS - quiet))


def _begin(guard: CallGuard, engine: SearchEngine, settings: ServerSettings, swap: HotSwap) -> None:
    """Let the first unit answer, and operators look after its index."""
    from serving.embedded_store import EmbeddedStore
    from serving.index_upkeep import IndexUpkeep

    guard.engine = engine
    collect_rarely()
    index = engine.store.index if isinstance(engine.store, EmbeddedStore) else None
    guard.upkeep = IndexUpkeep(index, settings.backup_directory, swap.go_over, settings.bundle)
    with engine.store.view() as view:
        described = view.describe()
    console.say(f"serving {described.image_count:,} images of {described.source} with model {described.model_name}")


def _open_ports(
    settings: ServerSettings, guard: CallGuard, health_service: health.aio.HealthServicer
) -> list[tuple[CoreServer, str]]:
    """The servers, not yet started, and the line that tells where each listens."""
    from serving.tls import CertificateFiles

    certificates = CertificateFiles(settings.tls) if settings.tls.on else None
    memory = RequestMemory(settings.memory)
    addresses = [("--address", settings.address, settings.admin_on_main, "listening on")]
    if settings.admin_address:
        addresses.append(("--admin-address", settings.admin_address, True, "operators on"))
    opened = []
    for flag, address, admin, told in addresses:
        server = _make_server(settings, memory, guard, health_service, admin)
        port = _open_port(server, address, flag, certificates.credentials() if certificates else None)
        opened.append((server, f"{told} {join_address(split_address(address, flag, DEFAULT_ADDRESS)[0], port)}"))
    return opened


def _make_server(
    settings: ServerSettings,
    memory: RequestMemory,
    guard: CallGuard,
    health_service: health.aio.HealthServicer,
    admin: bool,
) -> CoreServer:
    """A server with our services and health, not yet on a port; with reflection where operators call."""
    from grpc_health.v1 import health, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

    from serving.bounded_requests import BoundedServer
    from serving.connections import channel_options
    from serving.core_server import CoreServer
    from serving.grpc_methods import READ_AHEAD, refuse_other_methods, refuse_unread
    from serving.grpc_service import SERVICES, add_services

    server = CoreServer(channel_options(settings.connections), refuse_unread(guard), READ_AHEAD, guard.place)
    bounded = BoundedServer(server, memory)
    add_services(bounded, guard, admin)
    health_pb2_grpc.add_HealthServicer_to_server(health_service, bounded)
    if admin:
        services = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            reflection.aio.ReflectionServicer(service_names=services), bounded
        )
    refuse_other_methods(bounded, guard, admin)
    return server


def _open_port(server: CoreServer, address: str, flag: str, credentials: grpc.ServerCredentials | None) -> int:
    """Bind the server to `address` and return the port, which the system chooses when it is 0."""
    try:
        return server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError:
        raise UserError(
            "an address of this machine that is free",
            f"{address}, which cannot be opened",
            f"stop the program that uses it, or choose another {flag} (port 0 takes any free one)",
        ) from None


async def _set_serving(health_service: health.aio.HealthServicer, serving: bool) -> None:
    """Report the overall health and that of each service."""
    from grpc_health.v1 import health, health_pb2

    from serving.grpc_service import SERVICES

    statuses = health_pb2.HealthCheckResponse
    for service in (health.OVERALL_HEALTH, *SERVICES):
        await health_service.set(service, statuses.SERVING if serving else statuses.NOT_SERVING)


def _stop_signal() -> asyncio.Task[Any]:
    """Done when the process is asked to stop, which it may be from now on."""
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    return asyncio.create_task(asked.wait())


def main(argv: Sequence[str] | None = None) -> int:
    """Read the settings and serve."""
    settings, print_only = read_arguments(argv)
    if print_only:
        print(to_toml(settings), end="")
        return console.EXIT_OK
    settings.check_source()
    # Searches run side by side; threads of one matrix product would only take cores from the others. NumPy reads this
    # when it is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with unit_loader(settings) as loader:
        serve(settings, loader)
    return console.EXIT_OK


if __name__ == "__main__":
    console.run(main)
