"""The metrics of cdrs by name, kind and help text; `shared.telemetry` counts them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

Kind = Literal["counter", "gauge", "histogram"]

FAST_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Buckets for what takes milliseconds."""
SLOW_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
"""Buckets for failovers, around the detector's 1.5 s."""


class MetricSpec(msgspec.Struct, frozen=True):
    """One metric as documented: `docs/operations.md` prints this table."""

    name: str
    """As a user queries it; counters with their ``_total``."""
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    known: tuple[tuple[str, ...], ...] = ()
    """Label values that are exported from the start, as zero, so that a rate exists before the first event."""
    buckets: tuple[float, ...] = ()


def _values(*values: str) -> tuple[tuple[str, ...], ...]:
    return tuple((value,) for value in values)


INGEST_EVENTS = MetricSpec(
    "cdrs_ingest_events_total",
    "counter",
    "Events that producers sent: stored, found stored (duplicate), refused as wrong, or failed for want of a log.",
    ("result",),
    _values("stored", "duplicate", "refused", "failed"),
)
INGEST_SECONDS = MetricSpec(
    "cdrs_ingest_duration_seconds",
    "histogram",
    "Time from the head of a produce request to its last receipt.",
    buckets=FAST_SECONDS,
)
APPEND_SECONDS = MetricSpec(
    "cdrs_log_append_duration_seconds",
    "histogram",
    "Time one append of a batch took in the log, made durable.",
    buckets=FAST_SECONDS,
)
CONSUMER_LAG = MetricSpec(
    "cdrs_consumer_lag_records",
    "gauge",
    "Records of the partition that the log holds and this process has not read yet.",
    ("partition",),
)
PERSIST_LAG = MetricSpec(
    "cdrs_persist_lag_records",
    "gauge",
    "Records of the partition that this node has read of the log and the store lacks, as far as the node knows.",
    ("partition",),
)
DEDUPE_DEGRADED = MetricSpec(
    "cdrs_dedupe_degraded",
    "gauge",
    "1 while the store is away and identities are looked up in this node's memory alone, else 0.",
)
FOREIGN_RECORDS = MetricSpec(
    "cdrs_log_foreign_records_total",
    "counter",
    "Records that none of our processes wrote, skipped by readers of this process, by what is wrong with them; counted "
    "again each time a reader meets one.",
    ("cause",),
    _values("no-header", "bad-header", "other-epoch", "too-large", "not-utf8", "not-json", "unreadable"),
)
DEAD_LETTERS = MetricSpec(
    "cdrs_dead_letters_total",
    "counter",
    "Dead letters about such records: stored in cdrs.dead.log, found there (known), dropped because there were too "
    "many at once, or refused by the log.",
    ("result",),
    _values("stored", "known", "dropped", "refused"),
)
PARTITION_LEADERS = MetricSpec(
    "cdrs_log_partition_leaders",
    "gauge",
    "Partitions of the log that each Kafka broker leads, as this node last saw it.",
    ("broker",),
)
IN_SYNC = MetricSpec(
    "cdrs_log_in_sync_replicas",
    "gauge",
    "The smallest number of in-sync replicas of a partition of the Kafka topic, as this node last saw it.",
)
TASK_FAILURES = MetricSpec(
    "cdrs_task_failures_total",
    "counter",
    "Background tasks of this process that failed and were started again; what they waited for and did not get is not "
    "counted.",
)
LOOP_DELAY = MetricSpec(
    "cdrs_event_loop_delay_seconds",
    "gauge",
    "The longest that the event loop of the process came late in the last 15 s.",
)
DISK_FREE = MetricSpec("cdrs_disk_free_bytes", "gauge", "Room on the disk of the data folder, where there is one.")
SSE_CONNECTIONS = MetricSpec("cdrs_sse_connections", "gauge", "Open event streams.")
SSE_DELIVERIES = MetricSpec(
    "cdrs_sse_deliveries_total", "counter", "Events handed to subscribers' sockets: one event to ten readers is ten."
)
GZIP = (
    MetricSpec("cdrs_sse_gzip_connections", "gauge", "Open event streams that are answered in gzip."),
    MetricSpec("cdrs_sse_gzip_windows", "gauge", "Views whose events are deflated now, once for all their readers."),
    MetricSpec("cdrs_sse_gzip_events_total", "counter", "Events deflated, each once for a view."),
    MetricSpec("cdrs_sse_gzip_in_bytes_total", "counter", "Bytes that went into those passes."),
    MetricSpec("cdrs_sse_gzip_out_bytes_total", "counter", "Bytes that came out of them."),
    MetricSpec("cdrs_sse_gzip_seconds_total", "counter", "CPU time that they took."),
)
SSE_CLOSED = MetricSpec(
    "cdrs_sse_closed_total",
    "counter",
    "Event streams that ended, by reason: the client left, took nothing (slow), or was told the named reason.",
    ("reason",),
    _values("client", "drain", "rotate", "overload", "slow"),
)
SSE_RESUMES = MetricSpec(
    "cdrs_sse_resumes_total",
    "counter",
    "Subscriptions that came with a cursor: served from memory (ring), from history, or with a gap.",
    ("result",),
    _values("ring", "history", "gap"),
)
HISTORY_QUESTIONS = MetricSpec(
    "cdrs_history_questions_total",
    "counter",
    "Pages of history that this gateway asked nodes for, as its own memory did not reach back far enough.",
)
SSE_GAPS = MetricSpec(
    "cdrs_sse_gaps_total",
    "counter",
    "Gaps told to subscribers, by reason.",
    ("reason",),
    _values("retention", "epoch", "damage", "cursor-invalid", "cursor-future", "not-in-cursor"),
)
EVENT_LATENCY = MetricSpec(
    "cdrs_event_latency_seconds",
    "histogram",
    "How long events took: append = from the gateway's acceptance to the log, dispatch = from the log to the frames "
    "that subscribers are given.",
    ("hop",),
    _values("append", "dispatch"),
    FAST_SECONDS,
)
REGISTRY_NODES = MetricSpec(
    "cdrs_registry_nodes", "gauge", "Processes in the registry as this process sees them.", ("role", "state")
)
CHECK_OK = MetricSpec(
    "cdrs_check_ok",
    "gauge",
    "1 while a check of /readyz?verbose finds what this process needs (log, store, registry, disk, ...), 0 while not.",
    ("check",),
)
DETECTION_SECONDS = MetricSpec(
    "cdrs_detection_duration_seconds",
    "histogram",
    "Time from the last sign of life of another process to the moment when this one took it for suspect or dead. A "
    "link that breaks makes a suspect at once.",
    ("state",),
    _values("suspect", "dead"),
    SLOW_SECONDS,
)
FAILOVER_SECONDS = MetricSpec(
    "cdrs_failover_duration_seconds",
    "histogram",
    "Time from the first failed attempt at handing events to a node to the attempt that stored them, by what failed.",
    ("cause",),
    _values("link-broken", "timeout", "unavailable", "overloaded", "outcome-unknown", "stale-epoch", "internal"),
    SLOW_SECONDS,
)
BUILD_INFO = MetricSpec("cdrs_build_info", "gauge", "Always 1; the label says which version runs.", ("version",))

METRICS: tuple[MetricSpec, ...] = (
    INGEST_EVENTS,
    INGEST_SECONDS,
    APPEND_SECONDS,
    CONSUMER_LAG,
    PERSIST_LAG,
    DEDUPE_DEGRADED,
    FOREIGN_RECORDS,
    DEAD_LETTERS,
    PARTITION_LEADERS,
    IN_SYNC,
    TASK_FAILURES,
    LOOP_DELAY,
    DISK_FREE,
    SSE_CONNECTIONS,
    SSE_DELIVERIES,
    *GZIP,
    SSE_CLOSED,
    SSE_RESUMES,
    HISTORY_QUESTIONS,
    SSE_GAPS,
    EVENT_LATENCY,
    REGISTRY_NODES,
    CHECK_OK,
    DETECTION_SECONDS,
    FAILOVER_SECONDS,
    BUILD_INFO,
)


def metrics_table(metrics: Sequence[MetricSpec] = METRICS) -> str:
    """The table of `docs/operations.md`, in Markdown."""
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for spec in metrics:
        labels = ", ".join(f"`{label}`" for label in spec.labels) or "–"
        rows.append(f"| `{spec.name}` | {spec.kind} | {labels} | {spec.help} |")
    return "\n".join(rows) + "\n"
