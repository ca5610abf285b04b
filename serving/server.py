"""The gRPC server process: opens the ports, loads, reports health, drains and stops; knows no query.

Example: `python -m serving.server --index index --address 127.0.0.1:50051`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from data import console
from data.errors import UserError
from serving.network import split_address
from serving.observation import observed
from serving.server_settings import DEFAULT_ADDRESS, ServerSettings, read_arguments
from serving.settings_sources import to_toml
from serving.unit_loader import unit_loader

if TYPE_CHECKING:
    import grpc
    from grpc_health.v1 import health

    from serving.call_guard import CallGuard
    from serving.index_upkeep import IndexUpkeep
    from serving.search_engine import SearchEngine


def serve(settings: ServerSettings, load: Callable[[], SearchEngine]) -> None:
    """Serve what `load` returns until SIGTERM or SIGINT; then running calls have `settings.grace` seconds.

    The ports are open, and health says NOT_SERVING, while `load` runs in a thread. Prints `listening on HOST:PORT` on
    standard output, then `operators on …`, `metrics on …` and `page on …` where there are such. `UserError` when
    an address or a file of the settings cannot be used; what `load` raises is raised.
    """
    still_loading = asyncio.run(_serve(settings, load))
    if still_loading:
        # A thread inside a model's native code can neither be stopped nor outlive the interpreter.
        sys.stdout.flush()
        os._exit(console.EXIT_OK)


async def _serve(settings: ServerSettings, load: Callable[[], SearchEngine]) -> bool:
    """Run the server, watched; return whether `load` was still running when it was asked to stop."""
    from serving.access import Access
    from serving.call_guard import CallGuard
    from serving.caller_limits import CallerLimits

    guard = CallGuard(Access(settings.access), CallerLimits(settings.limits))
    with observed(guard, settings.log, settings.observe) as told:
        return await _serve_calls(settings, load, guard, told)


async def _serve_calls(
    settings: ServerSettings, load: Callable[[], SearchEngine], guard: CallGuard, told: Sequence[str]
) -> bool:
    """As `_serve`; `told` is what it prints beside its own addresses."""
    from grpc_health.v1 import health

    health_service = health.aio.HealthServicer()
    servers = _open_ports(settings, guard, health_service)
    stopping = asyncio.ensure_future(_stop_signal())
    await _set_serving(health_service, False)
    for server, listening in servers:
        await server.start()
        print(listening, flush=True)
    for line in told:
        print(line, flush=True)
    page = contextlib.AsyncExitStack()
    if settings.http.address:
        from serving.web.http_server import http_server

        page_address = await page.enter_async_context(http_server(settings.http, guard, settings.grace))
        print(f"page on {page_address}", flush=True)
    loading = _in_daemon_thread(load)
    upkeep: IndexUpkeep | None = None
    try:
        either: set[asyncio.Future[Any]] = {loading, stopping}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            guard.engine = engine = loading.result()
            upkeep = guard.upkeep = _upkeep(settings, engine)
            await _set_serving(health_service, True)
            with engine.store.view() as view:
                index = view.describe()
            console.say(f"serving {index.image_count:,} images of {index.source} with model {index.model_name}")
            await stopping
        console.say("stopping; running calls are finished first")
    finally:
        await health_service.enter_graceful_shutdown()
        if upkeep is not None:
            await upkeep.close()  # before its callers are told to end, so that they learn how it ended
        await asyncio.gather(*(server.stop(settings.grace) for server, _ in servers), page.aclose())
        if guard.engine is not None:
            guard.engine.close()
    return not loading.done()


def _upkeep(settings: ServerSettings, engine: SearchEngine) -> IndexUpkeep:
    """What operators ask of the index in this process."""
    from serving.embedded_store import EmbeddedStore
    from serving.index_upkeep import IndexUpkeep

    store = engine.store
    if not isinstance(store, EmbeddedStore):
        return IndexUpkeep(None)

    async def go_over() -> None:
        await asyncio.to_thread(store.refresh)

    return IndexUpkeep(store.index, settings.backup_directory, go_over)


def _open_ports(
    settings: ServerSettings, guard: CallGuard, health_service: health.aio.HealthServicer
) -> list[tuple[grpc.aio.Server, str]]:
    """The servers, not yet started, and the line that tells where each listens."""
    from serving.tls import CertificateFiles

    certificates = CertificateFiles(settings.tls) if settings.tls.on else None
    addresses = [("--address", settings.address, settings.admin_on_main, "listening on")]
    if settings.admin_address:
        addresses.append(("--admin-address", settings.admin_address, True, "operators on"))
    opened = []
    for flag, address, admin, told in addresses:
        server = _make_server(settings, guard, health_service, admin)
        port = _open_port(server, address, flag, certificates.credentials() if certificates else None)
        opened.append((server, f"{told} {split_address(address, flag, DEFAULT_ADDRESS)[0]}:{port}"))
    return opened


def _make_server(
    settings: ServerSettings, guard: CallGuard, health_service: health.aio.HealthServicer, admin: bool
) -> grpc.aio.Server:
    """A server with our services and health, not yet on a port; with reflection where operators call."""
    import grpc
    from grpc_health.v1 import health, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection

    from serving.connections import channel_options
    from serving.grpc_methods import refuse_other_methods
    from serving.grpc_service import SERVICES, add_services

    server = grpc.aio.server(options=channel_options(settings.connections))
    add_services(server, guard, admin)
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    if admin:
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    refuse_other_methods(server, guard, admin)
    return server


def _open_port(server: grpc.aio.Server, address: str, flag: str, credentials: grpc.ServerCredentials | None) -> int:
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
        serve(settings, loader.load)
    return console.EXIT_OK


if __name__ == "__main__":
    console.run(main)
