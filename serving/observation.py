"""What an operator sees of a running server, by the settings: logs, metrics, traces, and a profile on demand; knows no
call.

`observed` sets all of it up around a server's life.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import UserError
from serving.network import join_address, split_address
from serving.settings_sources import SettingsError, setting

if TYPE_CHECKING:
    from serving.call_guard import CallGuard

METRICS_EXAMPLE = "127.0.0.1:9090"


@dataclass(frozen=True)
class LogSettings:
    """Events go to standard error. What people look for is personal, and left out unless `queries` asks for it."""

    format: str = setting("text", "a line of text or a JSON object for each event", "text, json")
    calls: str = setting(
        "errors", "which calls: none, the server's own failures, also slow ones, or all", "none, errors, slow, all"
    )
    slow_seconds: float = setting(1.0, "a call that takes so long is slow", "SECONDS", 0)
    queries: bool = setting(False, "log the texts of queries too", "true, false")

    def __post_init__(self) -> None:
        for name, given, known in (
            ("log.format", self.format, ("text", "json")),
            ("log.calls", self.calls, ("none", "errors", "slow", "all")),
        ):
            if given not in known:
                raise SettingsError(f"{name} of {', '.join(known)}", repr(given), "use one of these")


@dataclass(frozen=True)
class ObservationSettings:
    """Metrics and traces for an operator's own systems; off unless their addresses are given."""

    metrics_address: str = setting("", "where Prometheus collects; it asks for no token", "HOST:PORT")
    metrics_public: bool = setting(False, "allow an address for it that others reach", "true, false")
    otlp_endpoint: str = setting("", "collector of OpenTelemetry that is sent traces, over gRPC", "HOST:PORT")
    otlp_tls: bool = setting(False, "with TLS", "true, false")
    trace_share: float = setting(0.01, "of calls that are traced, beside those whose client asks", "0 to 1", 0, 1)
    profile_directory: Path | None = setting(None, "where SIGUSR1 puts profiles; that of temporary files", "DIR")


@contextlib.contextmanager
def observed(guard: CallGuard, log: LogSettings, settings: ObservationSettings) -> Iterator[list[str]]:
    """Watch the guard's calls until the end of the block; gives the lines that tell where. Wants a running loop."""
    from serving.server_log import CallLog, set_up_logging
    from serving.stack_sampler import start_profile

    set_up_logging(as_json=log.format == "json")
    told = []
    with contextlib.ExitStack() as stack:
        if log.calls != "none":
            guard.observers.append(CallLog(log.calls, log.slow_seconds, log.queries))
        if settings.metrics_address:
            told.append(f"metrics on {stack.enter_context(_metrics(guard, settings.metrics_address))}")
        if settings.otlp_endpoint:
            from serving.tracing import CallTracer

            tracer = CallTracer(settings.otlp_endpoint, settings.trace_share, insecure=not settings.otlp_tls)
            stack.callback(tracer.close)
            guard.observers.append(tracer)
        directory = settings.profile_directory or Path(tempfile.gettempdir())
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, lambda: start_profile(directory))
        stack.callback(loop.remove_signal_handler, signal.SIGUSR1)
        yield told


@contextlib.contextmanager
def _metrics(guard: CallGuard, address: str) -> Iterator[str]:
    """Answer Prometheus in a thread; gives the URL."""
    from prometheus_client import start_http_server

    from serving.server_metrics import ServerMetrics

    host, port = split_address(address, "--observe-metrics-address", METRICS_EXAMPLE)
    try:
        server, thread = start_http_server(port, host, ServerMetrics(guard).registry)
    except OSError as error:
        next_step = "stop the program that uses it, or choose another --observe-metrics-address"
        raise UserError("an address of this machine that is free", f"{address}: {error}", next_step) from None
    try:
        yield f"http://{join_address(host, server.server_port)}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
