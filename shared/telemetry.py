"""What a process counts and times, for Prometheus. The only module that knows ``prometheus_client``.

Everything here is called with whole batches: one call a batch, never one an event. Labels take values from small fixed
sets; a stream, a subject, a client or a node's name is never one. Not thread-safe: a process counts on its event loop.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from shared.detector import NodeState
from shared.metrics import (
    APPEND_SECONDS,
    BUILD_INFO,
    CHECK_OK,
    CONSUMER_LAG,
    DEAD_LETTERS,
    DEDUPE_DEGRADED,
    DETECTION_SECONDS,
    DISK_FREE,
    EVENT_LATENCY,
    FAILOVER_SECONDS,
    FOREIGN_RECORDS,
    GZIP,
    HISTORY_QUESTIONS,
    IN_SYNC,
    INGEST_EVENTS,
    INGEST_SECONDS,
    LOOP_DELAY,
    METRICS,
    PARTITION_LEADERS,
    PERSIST_LAG,
    REGISTRY_NODES,
    SSE_CLOSED,
    SSE_CONNECTIONS,
    SSE_DELIVERIES,
    SSE_GAPS,
    SSE_RESUMES,
    TASK_FAILURES,
    MetricSpec,
)

IngestResult = Literal["stored", "duplicate", "refused", "failed"]
LetterResult = Literal["stored", "known", "dropped", "refused"]
ResumeResult = Literal["ring", "history", "gap"]
Hop = Literal["append", "dispatch"]


class _Values:
    """The series of a counter or gauge: label values → number."""

    __slots__ = ("series", "spec")

    def __init__(self, spec: MetricSpec) -> None:
        self.spec = spec
        self.series: dict[tuple[str, ...], float] = dict.fromkeys(spec.known if spec.labels else ((),), 0.0)

    def add(self, amount: float, *labels: str) -> None:
        self.series[labels] = self.series.get(labels, 0.0) + amount

    def collect(self) -> Metric:
        spec = self.spec
        family = (
            CounterMetricFamily(spec.name, spec.help, labels=spec.labels)
            if spec.kind == "counter"
            else GaugeMetricFamily(spec.name, spec.help, labels=spec.labels)
        )
        for labels, value in self.series.items():
            family.add_metric(labels, value)
        return family


class _Histogram:
    """The series of a histogram. The client library's own takes one observation at a time; this one takes n alike."""

    __slots__ = ("series", "spec", "sums")

    def __init__(self, spec: MetricSpec) -> None:
        self.spec = spec
        known = spec.known if spec.labels else ((),)
        self.series: dict[tuple[str, ...], list[int]] = {labels: self._empty() for labels in known}
        self.sums: dict[tuple[str, ...], float] = dict.fromkeys(known, 0.0)

    def _empty(self) -> list[int]:
        return [0] * (len(self.spec.buckets) + 1)

    def observe(self, value: float, n: int, *labels: str) -> None:
        counts = self.series.get(labels)
        if counts is None:
            counts = self.series[labels] = self._empty()
            self.sums[labels] = 0.0
        counts[bisect_left(self.spec.buckets, value)] += n
        self.sums[labels] += value * n

    def collect(self) -> Metric:
        spec = self.spec
        family = HistogramMetricFamily(spec.name, spec.help, labels=spec.labels)
        names = [*(str(bound) for bound in spec.buckets), "+Inf"]
        for labels, counts in self.series.items():
            total = 0
            buckets: list[tuple[str, float]] = []
            for name, count in zip(names, counts, strict=True):
                total += count
                buckets.append((name, total))
            family.add_metric(labels, buckets, self.sums[labels])
        return family


class _Labelled(Collector):
    """All series of a registry with one more label."""

    def __init__(self, registry: CollectorRegistry, worker: str) -> None:
        self._registry = registry
        self._worker = worker

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            family.samples = [each._replace(labels={**each.labels, "worker": self._worker}) for each in family.samples]
            yield family


class Telemetry(Collector):
    """The metrics of one process, in a registry of their own: two in one test do not meet.

    Every method is a few dictionary operations. Durations are in seconds.
    """

    def __init__(self, *, version: str, process: bool = False, worker: str = "") -> None:
        """``process`` adds the usual ``process_*`` and ``python_gc_*`` metrics; ``worker`` is the label of that name on
        all of them, where several processes answer for each other."""
        made: dict[str, _Values | _Histogram] = {}
        self._ingested = made[INGEST_EVENTS.name] = _Values(INGEST_EVENTS)
        self._ingest_seconds = made[INGEST_SECONDS.name] = _Histogram(INGEST_SECONDS)
        self._append_seconds = made[APPEND_SECONDS.name] = _Histogram(APPEND_SECONDS)
        self._lag = made[CONSUMER_LAG.name] = _Values(CONSUMER_LAG)
        self._persist_lag = made[PERSIST_LAG.name] = _Values(PERSIST_LAG)
        self._degraded = made[DEDUPE_DEGRADED.name] = _Values(DEDUPE_DEGRADED)
        self._foreign = made[FOREIGN_RECORDS.name] = _Values(FOREIGN_RECORDS)
        self._letters = made[DEAD_LETTERS.name] = _Values(DEAD_LETTERS)
        self._leaders = made[PARTITION_LEADERS.name] = _Values(PARTITION_LEADERS)
        self._in_sync = made[IN_SYNC.name] = _Values(IN_SYNC)
        self._task_failures = made[TASK_FAILURES.name] = _Values(TASK_FAILURES)
        self._loop_delay = made[LOOP_DELAY.name] = _Values(LOOP_DELAY)
        self._disk_free = made[DISK_FREE.name] = _Values(DISK_FREE)
        # Nothing is said of what may not be there at all.
        self._in_sync.series.clear()
        self._disk_free.series.clear()
        self._connections = made[SSE_CONNECTIONS.name] = _Values(SSE_CONNECTIONS)
        self._deliveries = made[SSE_DELIVERIES.name] = _Values(SSE_DELIVERIES)
        self._gzip = [_Values(spec) for spec in GZIP]
        made.update((values.spec.name, values) for values in self._gzip)
        self._closed = made[SSE_CLOSED.name] = _Values(SSE_CLOSED)
        self._resumes = made[SSE_RESUMES.name] = _Values(SSE_RESUMES)
        self._history_questions = made[HISTORY_QUESTIONS.name] = _Values(HISTORY_QUESTIONS)
        self._gaps = made[SSE_GAPS.name] = _Values(SSE_GAPS)
        self._latency = made[EVENT_LATENCY.name] = _Histogram(EVENT_LATENCY)
        self._nodes = made[REGISTRY_NODES.name] = _Values(REGISTRY_NODES)
        self._checks = made[CHECK_OK.name] = _Values(CHECK_OK)
        self._detection = made[DETECTION_SECONDS.name] = _Histogram(DETECTION_SECONDS)
        self._failover = made[FAILOVER_SECONDS.name] = _Histogram(FAILOVER_SECONDS)
        build = made[BUILD_INFO.name] = _Values(BUILD_INFO)
        build.series[(version,)] = 1.0
        self._metrics = [made[spec.name] for spec in METRICS]
        self._hooks: list[Callable[[], None]] = []
        self._registry = CollectorRegistry()
        self._registry.register(self)
        if process:
            ProcessCollector(registry=self._registry)
            GCCollector(registry=self._registry)
        self._shown: Collector = _Labelled(self._registry, worker) if worker else self._registry

    def ingested(self, result: IngestResult, n: int = 1) -> None:
        """Events of producers that ended in this way."""
        self._ingested.add(n, result)

    def ingest_took(self, seconds: float) -> None:
        """One produce request was answered."""
        self._ingest_seconds.observe(seconds, 1)

    def append_took(self, seconds: float) -> None:
        """One batch was appended to the log."""
        self._append_seconds.observe(seconds, 1)

    def consumer_lag(self, lag: Mapping[int, int]) -> None:
        """Partition → records that the log holds and this process has not read."""
        self._lag.series = {(str(partition),): float(records) for partition, records in lag.items()}

    def persist_lag(self, lag: Mapping[int, int]) -> None:
        """Partition → records that were read of the log and are not in the store."""
        self._persist_lag.series = {(str(partition),): float(records) for partition, records in lag.items()}

    def dedupe_degraded(self, degraded: bool) -> None:
        """Whether identities are looked up in memory alone."""
        self._degraded.series[()] = float(degraded)

    def foreign_record(self, cause: str) -> None:
        """A record that is not ours was skipped."""
        self._foreign.add(1, cause)

    def dead_letters(self, result: LetterResult, n: int = 1) -> None:
        """Dead letters that ended in this way."""
        self._letters.add(n, result)

    def partition_leaders(self, leaders: Mapping[int, int]) -> None:
        """Broker → partitions it leads. A broker that is gone is told as 0, not forgotten."""
        known = dict.fromkeys(self._leaders.series, 0.0)
        self._leaders.series = known | {(str(broker),): float(n) for broker, n in leaders.items()}

    def in_sync(self, replicas: int) -> None:
        """So many replicas of the log's worst partition are in sync."""
        self._in_sync.series[()] = float(replicas)

    def task_failed(self) -> None:
        """A background task failed and is started again."""
        self._task_failures.add(1)

    def loop_delay(self, seconds: float) -> None:
        """The event loop came so late, at worst, of late."""
        self._loop_delay.series[()] = seconds

    def disk_free(self, size: int) -> None:
        """Bytes free where the process keeps its data."""
        self._disk_free.series[()] = float(size)

    def connections(self, n: int) -> None:
        """How many event streams are open now."""
        self._connections.series[()] = n

    def delivered(self, n: int) -> None:
        """Events handed to sockets."""
        self._deliveries.add(n)

    def gzip_now(self, connections: int, windows: int) -> None:
        """How many streams are answered in gzip, and how many views are deflated, now."""
        self._gzip[0].series[()], self._gzip[1].series[()] = connections, windows

    def deflated(self, events: int, size: int, deflated: int, seconds: float) -> None:
        """Events of one view were deflated together: bytes before and after, and the time it took."""
        for at, amount in enumerate((events, size, deflated, seconds), 2):
            self._gzip[at].add(amount)

    def closed(self, reason: str, n: int = 1) -> None:
        """Event streams ended."""
        self._closed.add(n, reason)

    def resumed(self, result: ResumeResult, n: int = 1) -> None:
        """A subscription came with a cursor."""
        self._resumes.add(n, result)

    def asked_history(self) -> None:
        """A node was asked for a page of history."""
        self._history_questions.add(1)

    def gap(self, reason: str, n: int = 1) -> None:
        """A gap was told to a subscriber."""
        self._gaps.add(n, reason)

    def latency(self, hop: Hop, seconds: float, n: int = 1) -> None:
        """``n`` events took so long. Clocks of two machines may disagree: what would be negative counts as nothing."""
        self._latency.observe(max(seconds, 0.0), n, hop)

    def registry_nodes(self, counts: Mapping[tuple[str, str], int]) -> None:
        """(role, state) → how many; replaces what was said before. A pair that is gone is told as 0, not forgotten."""
        self._nodes.series = dict.fromkeys(self._nodes.series, 0.0) | {pair: float(n) for pair, n in counts.items()}

    def checks(self, found: Mapping[str, bool]) -> None:
        """What was looked at, and whether it was well."""
        self._checks.series |= {(name,): float(ok) for name, ok in found.items()}

    def state_changed(self, state: NodeState, seconds: float) -> None:
        """Another process is in another state, and it took so long to find that out. Of use where it is taken for
        suspect or dead."""
        if state in {NodeState.SUSPECT, NodeState.DEAD}:
            self._detection.observe(seconds, 1, state.value)

    def failover_took(self, cause: str, seconds: float) -> None:
        """A partition is served again."""
        self._failover.observe(seconds, 1, cause)

    def before_render(self, hook: Callable[[], None]) -> None:
        """Call this before each scrape, to set gauges that nobody needs in between. It must not fail or block."""
        self._hooks.append(hook)

    def collect(self) -> Iterator[Metric]:
        """`prometheus_client`'s side of the bargain."""
        for metric in self._metrics:
            yield metric.collect()

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The body of a scrape and its content type: OpenMetrics 1.0 where asked for, else Prometheus text 0.0.4."""
        for hook in self._hooks:
            hook()
        # Two fixed choices: the library would put parts of a client's Accept header into the answer's.
        wanted = "application/openmetrics-text"
        encode, content_type = choose_encoder(wanted if wanted in accept.lower() else "text/plain")
        return encode(self._shown), content_type
