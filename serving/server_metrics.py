"""What a server counts and measures, in the form that Prometheus collects; knows no port.

Every metric's name begins with `image_search_`; docs/operations.md tells what to do about each.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from google.rpc import code_pb2
from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from data.errors import UserError
from serving.call_guard import CallGuard, EndedCall
from serving.searches import Timings

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_log = logging.getLogger(__name__)

STAGES = ("embedding", "queueing", "search", "lookup")


class ServerMetrics:
    """The metrics of one server; `registry` holds them. Observes the guard's calls from when it is made."""

    def __init__(self, guard: CallGuard) -> None:
        self.registry = CollectorRegistry()
        for process in (ProcessCollector, PlatformCollector, GCCollector):
            process(registry=self.registry)
        self._calls = Counter(
            "image_search_calls", "Calls that ended", ("method", "code", "reason"), registry=self.registry
        )
        self._seconds = Histogram(
            "image_search_call_seconds", "From a call to its end", ("method",), buckets=SECONDS, registry=self.registry
        )
        stages = Histogram(
            "image_search_stage_seconds", "Parts of a search", ("stage",), buckets=SECONDS, registry=self.registry
        )
        self._stages = [(stage, stages.labels(stage)) for stage in STAGES]
        self.registry.register(_State(guard))
        guard.observers.append(self._call_ended)
        guard.search_observers.append(self._searched)

    def _call_ended(self, call: EndedCall) -> None:
        # What nobody has a policy for is one name: a client's inventions must not make metrics without end.
        method = "unknown" if call.reason == "METHOD_NOT_FOUND" else call.method
        self._calls.labels(method, code_pb2.Code.Name(call.code), call.reason).inc()
        self._seconds.labels(method).observe(call.seconds)

    def _searched(self, timings: Timings) -> None:
        for stage, histogram in self._stages:
            histogram.observe(getattr(timings, stage))


class _State(Collector):
    """What is looked up when somebody collects."""

    def __init__(self, guard: CallGuard) -> None:
        self._guard = guard
        self._began = time.time()

    def collect(self) -> Iterator[Metric]:
        """Every gauge, and the counters that are kept elsewhere."""
        engine = self._guard.engine
        yield GaugeMetricFamily(
            "image_search_ready", "Whether a model and an index are loaded", float(engine is not None)
        )
        yield GaugeMetricFamily("image_search_start_time_seconds", "When the server began", self._began)
        if engine is None:
            return
        waiting = GaugeMetricFamily("image_search_waiting", "Items that wait or run", labels=("queue",))
        waiting.add_metric(["texts"], engine.encoder.texts.waiting)
        waiting.add_metric(["images"], engine.encoder.images.waiting)
        waiting.add_metric(["search"], engine.searches.waiting + engine.workers.waiting)
        yield waiting
        kept = CounterMetricFamily(
            "image_search_kept_embeddings", "Queries by whether a kept embedding answered", labels=("found",)
        )
        kept.add_metric(["yes"], engine.encoder.kept.hits)
        kept.add_metric(["no"], engine.encoder.kept.misses)
        yield kept
        answers = CounterMetricFamily(
            "image_search_kept_answers", "Searches by whether a kept answer was given again", labels=("found",)
        )
        answers.add_metric(["yes"], engine.kept.hits)
        answers.add_metric(["no"], engine.kept.misses)
        yield answers
        try:
            with engine.store.view() as view:
                described = view.describe()
        except (UserError, OSError) as error:  # what else there is to tell is worth the more now
            _log.warning("the index cannot be described: %s", error)
            return
        yield GaugeMetricFamily("image_search_images", "Images that are searched", described.image_count)
        yield GaugeMetricFamily("image_search_changes", "Changes above the snapshot", described.changes)
        age = max(0.0, time.time() - described.create_time.timestamp())
        yield GaugeMetricFamily("image_search_snapshot_age_seconds", "Since the snapshot was built", age)
        unit = GaugeMetricFamily(
            "image_search_unit", "The model and the snapshot that answer", labels=("model", "snapshot")
        )
        unit.add_metric([described.model_fingerprint, described.snapshot], 1)
        yield unit
