"""What a server tells about itself: metrics, logs, traces, a profile; and the files that read them fit it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from chain import ROOT
from fakes import ColourRuntime
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from server_process import COMMAND, ENVIRONMENT, running

from protos.imageretrieval.v1 import query_pb2, search_service_pb2
from serving.call_guard import CallGuard, CallRefused
from serving.callers import Origin
from serving.client import SearchClient
from serving.embedded_store import EmbeddedStore
from serving.grpc_service import SearchService
from serving.search_engine import SearchEngine
from serving.server_log import CallLog, JsonFormatter
from serving.server_metrics import ServerMetrics
from serving.stack_sampler import start_profile
from serving.tracing import CallTracer

DEPLOY = ROOT / "deploy"


def asked(guard: CallGuard, index: Path, *texts: str, metadata=None) -> None:
    """Ask an engine of the guard's for each text, as the gRPC edge does; a refusal is the client's."""

    async def main() -> None:
        runtime = ColourRuntime()
        guard.engine = SearchEngine(runtime, EmbeddedStore.open(index, runtime.fingerprint, writable=False))
        service = SearchService(guard)
        for text in texts:
            request = search_service_pb2.SearchRequest(query=query_pb2.Query(text=text), page_size=3)
            try:
                with guard.admit("SearchService.Search", Origin("192.0.2.7", metadata or {})) as call:
                    await service.Search(request, call)
            except CallRefused:
                pass
        guard.collected = b"" if metrics is None else generate_latest(metrics.registry)
        guard.engine.close()
        guard.engine = None

    metrics = getattr(guard, "metrics", None)
    asyncio.run(main())


def samples(text: bytes) -> dict[tuple, float]:
    """Values by name and sorted labels."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def collected(index):
    guard = CallGuard()
    guard.metrics = ServerMetrics(guard)
    asked(guard, index, "red", "blue", "red", " ")
    with pytest.raises(CallRefused):
        guard.admit("SearchService.Invented", Origin())
    return samples(generate_latest(guard.metrics.registry)) | samples(guard.collected)


def test_calls_are_counted_by_how_they_ended(collected):
    def calls(method, code, reason):
        return collected[("image_search_calls_total", ("code", code), ("method", method), ("reason", reason))]

    assert calls("SearchService.Search", "OK", "") == 3
    assert calls("SearchService.Search", "INVALID_ARGUMENT", "INVALID_QUERY") == 1
    assert calls("unknown", "UNIMPLEMENTED", "METHOD_NOT_FOUND") == 1
    assert collected[("image_search_call_seconds_count", ("method", "SearchService.Search"))] == 4


def test_stages_queues_and_the_index_are_measured(collected):
    for stage in ("embedding", "queueing", "search", "lookup"):
        assert collected[("image_search_stage_seconds_count", ("stage", stage))] == 3
    assert collected[("image_search_ready",)] == 1
    assert collected[("image_search_images",)] == 40
    assert collected[("image_search_waiting", ("queue", "texts"))] == 0
    assert collected[("image_search_kept_answers_total", ("found", "yes"))] == 1
    assert collected[("image_search_kept_answers_total", ("found", "no"))] == 3
    assert collected[("image_search_kept_embeddings_total", ("found", "yes"))] == 0
    assert collected[("image_search_kept_embeddings_total", ("found", "no"))] == 2
    assert collected[("process_resident_memory_bytes",)] > 1e6


def metric_names(text: str) -> set[str]:
    return set(re.findall(r"\b(?:image_search|process)_\w+", text))


@pytest.mark.parametrize("file", ["grafana-dashboard.json", "alerts.yml"])
def test_dashboard_and_alerts_ask_for_metrics_that_there_are(collected, file):
    named = metric_names((DEPLOY / file).read_text())
    assert len(named) > 3
    assert named - {name for name, *_ in collected} == set()


def test_every_alert_and_metric_is_in_the_handbook(collected):
    handbook = (ROOT / "docs" / "operations.md").read_text("utf-8")
    for alert in re.findall(r"alert: (\w+)", (DEPLOY / "alerts.yml").read_text()):
        assert alert in handbook, alert
    for name in {name for name, *_ in collected if name.startswith("image_search")}:
        assert re.sub(r"_(bucket|count|sum|created)$", "", name) in handbook, name


@pytest.fixture
def logged():
    """What is logged of calls, as JSON lines."""
    lines = []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.append(json.loads(JsonFormatter().format(record)))

    handler, logger = Keep(), logging.getLogger("serving.calls")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(before)


def test_calls_are_logged_without_their_texts(index, logged):
    guard = CallGuard()
    guard.observers.append(CallLog("all"))
    asked(guard, index, "red secret", " ")
    first, second = logged
    assert (first["method"], first["code"], first["peer"]) == ("SearchService.Search", "OK", "192.0.2.7")
    assert (first["searches"], first["hits"], first["level"]) == (1, 3, "INFO")
    assert (second["code"], second["reason"]) == ("INVALID_ARGUMENT", "INVALID_QUERY")
    assert first["request_id"] != second["request_id"]
    assert "secret" not in json.dumps(logged)


def test_texts_are_logged_when_asked_for(index, logged):
    guard = CallGuard()
    guard.observers.append(CallLog("all", queries=True))
    asked(guard, index, "red secret")
    assert logged[0]["queries"] == ["red secret"]


@pytest.mark.parametrize(
    ("which", "slow_seconds", "count"), [("none", 0, 0), ("errors", 0, 0), ("slow", 0, 2), ("slow", 60, 0)]
)
def test_only_what_was_asked_for_is_logged(index, logged, which, slow_seconds, count):
    guard = CallGuard()
    guard.observers.append(CallLog(which, slow_seconds))
    asked(guard, index, "red", "blue")
    assert len(logged) == count


def test_an_exception_is_part_of_its_line():
    try:
        raise ValueError("for the log")
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, "", 0, "it failed: %s", ("here",), sys.exc_info())
    line = json.loads(JsonFormatter().format(record))
    assert (line["message"], line["level"]) == ("it failed: here", "ERROR")
    assert "ValueError: for the log" in line["exception"]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """A collector that keeps what it is sent."""

    def __init__(self):
        self.spans = []

    def Export(self, request, context):
        self.spans += [span for spans in request.resource_spans for scope in spans.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


def test_a_call_s_spans_are_part_of_its_client_s_trace(index):
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        guard, tracer = CallGuard(), CallTracer(f"127.0.0.1:{port}", share=0.0)
        guard.observers.append(tracer)
        trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
        asked(guard, index, "red", " ", metadata={"traceparent": f"00-{trace}-{parent}-01"})
        asked(guard, index, "blue")  # not the client's wish, and none of the server's share
        tracer.close()
    finally:
        server.stop(None)
    assert {span.trace_id.hex() for span in collector.spans} == {trace}
    calls = [span for span in collector.spans if span.name == "SearchService.Search"]
    assert [span.parent_span_id.hex() for span in calls] == [parent, parent]
    assert [span.status.code for span in calls] == [0, 2]
    parts = [span for span in collector.spans if span.parent_span_id == calls[0].span_id]
    assert [span.name for span in parts] == ["embedding", "queueing", "search", "lookup"]
    for span in parts:
        assert calls[0].start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= calls[0].end_time_unix_nano


def test_a_profile_names_what_threads_did(tmp_path):
    ended = threading.Event()

    def busy_in_this_function():
        while not ended.wait(0.001):
            sum(range(1_000))

    worker = threading.Thread(target=busy_in_this_function, name="worker")
    worker.start()
    start_profile(tmp_path, seconds=0.3).join()
    ended.set()
    worker.join()
    (file,) = tmp_path.iterdir()
    lines = file.read_text().splitlines()
    assert any(line.startswith("worker;") and "busy_in_this_function" in line for line in lines)
    assert all(re.fullmatch(r".+ \d+", line) for line in lines)


def test_the_container_file_is_clean():
    subprocess.run([Path(sys.executable).parent / "hadolint", DEPLOY / "Containerfile"], check=True)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze, which comes with systemd")
def test_the_systemd_unit_is_clean(tmp_path):
    unit = (DEPLOY / "image-search.service").read_text().replace("/opt/image-search/.venv/bin/python", sys.executable)
    (tmp_path / "image-search.service").write_text(unit)
    found = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / "image-search.service"], capture_output=True, text=True
    )
    assert (found.returncode, found.stderr) == (0, "")


def test_a_server_is_watched_as_its_settings_say(index, tmp_path):
    flags = ["--observe-metrics-address", "127.0.0.1:0", "--observe-profile-directory", str(tmp_path)]
    with running(index, *flags, "--log-calls", "all", "--log-format", "json") as (process, address):
        url = process.stdout.readline().removeprefix("metrics on ").strip()
        with SearchClient(address) as client:
            client.wait_until_ready(30)
            client.search("red", k=5)
        with urllib.request.urlopen(url) as response:
            assert samples(response.read())[("image_search_stage_seconds_count", ("stage", "search"))] == 1
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        lines = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
        assert [line["method"] for line in lines if line["logger"] == "serving.calls"] == ["SearchService.Search"]


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_an_ipv6_address_is_listened_on_and_told_in_brackets(index):
    flags = ["--observe-metrics-address", "[::1]:0", "--http-address", "[::1]:0"]
    with running(index, *flags, address="[::1]:0") as (process, address):
        assert address.startswith("[::1]:")
        for told, path in (("metrics on ", ""), ("page on ", "/v1/status")):
            url = process.stdout.readline().removeprefix(told).strip()
            assert url.startswith("http://[::1]:")
            with SearchClient(address) as client:
                client.wait_until_ready(30)
            with urllib.request.urlopen(url + path) as response:
                assert response.status == 200


def test_a_taken_address_for_metrics_is_a_clear_error(index):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [*COMMAND, str(index), "127.0.0.1:0", "--observe-metrics-address", address]
        ended = subprocess.run(command, env=ENVIRONMENT, text=True, capture_output=True, timeout=60)
    assert ended.returncode == 2
    assert f"{address}" in ended.stderr
    assert "choose another --observe-metrics-address" in ended.stderr
    assert "Traceback" not in ended.stderr
