"""Sends a span for every call, and for the parts of its search, to a collector of OpenTelemetry; knows no metric.

Spans are children of the trace that a client names in `traceparent` (W3C Trace Context).
"""

from __future__ import annotations

import time

from google.rpc import code_pb2
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serving.call_guard import EndedCall
from serving.searches import Timings

_STAGES = ("embedding", "queueing", "search", "lookup")


class CallTracer:
    """An observer of `CallGuard` that makes spans when a call has ended, and sends them in the background.

    `share` of the calls are traced, and those whose client's trace is.
    """

    def __init__(self, endpoint: str, share: float = 1.0, insecure: bool = True) -> None:
        resource = Resource.create({"service.name": "image-search"})
        self._provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(share)), resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, insecure=insecure)))
        self._tracer = self._provider.get_tracer("serving")
        self._propagator = TraceContextTextMapPropagator()

    def __call__(self, call: EndedCall) -> None:
        """Make the spans of one call."""
        end = time.time_ns()
        start = end - round(1e9 * call.seconds)
        texts = {name: value for name, value in call.origin.metadata.items() if isinstance(value, str)}
        span = self._tracer.start_span(
            call.method,
            self._propagator.extract(texts),
            SpanKind.SERVER,
            {"rpc.system": "grpc", "rpc.method": call.method, "request_id": call.request_id},
            start_time=start,
        )
        if call.notes and call.notes.timings and span.is_recording():
            span.set_attributes({"searches": call.notes.searches, "hits": call.notes.hits})
            self._parts(span, call.notes.timings, end)
        if call.code != code_pb2.OK:
            span.set_attribute("error.type", call.reason or code_pb2.Code.Name(call.code))
            span.set_status(Status(StatusCode.ERROR))
        span.end(end)

    def _parts(self, parent: object, timings: Timings, end: int) -> None:
        """Spans of the last search's stages, which stood one after the other at the end of the call."""
        context = set_span_in_context(parent)  # type: ignore[arg-type]
        moment = end - round(1e9 * sum(getattr(timings, stage) for stage in _STAGES))
        for stage in _STAGES:
            span = self._tracer.start_span(stage, context, start_time=moment)
            moment += round(1e9 * getattr(timings, stage))
            span.end(moment)

    def close(self) -> None:
        """Send what is left, for some seconds at most."""
        self._provider.shutdown()
