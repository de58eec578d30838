"""Metrics: what is exported, what is documented, and that a batch counts like its events."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from shared.metrics import METRICS, metrics_table
from shared.telemetry import Telemetry

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
DESIGNED = {
    "cdrs_ingest_events_total",
    "cdrs_ingest_duration_seconds",
    "cdrs_log_append_duration_seconds",
    "cdrs_consumer_lag_records",
    "cdrs_persist_lag_records",
    "cdrs_dedupe_degraded",
    "cdrs_log_foreign_records_total",
    "cdrs_dead_letters_total",
    "cdrs_log_partition_leaders",
    "cdrs_log_in_sync_replicas",
    "cdrs_task_failures_total",
    "cdrs_event_loop_delay_seconds",
    "cdrs_disk_free_bytes",
    "cdrs_sse_connections",
    "cdrs_sse_deliveries_total",
    "cdrs_sse_gzip_connections",
    "cdrs_sse_gzip_windows",
    "cdrs_sse_gzip_events_total",
    "cdrs_sse_gzip_in_bytes_total",
    "cdrs_sse_gzip_out_bytes_total",
    "cdrs_sse_gzip_seconds_total",
    "cdrs_sse_closed_total",
    "cdrs_sse_resumes_total",
    "cdrs_history_questions_total",
    "cdrs_sse_gaps_total",
    "cdrs_event_latency_seconds",
    "cdrs_check_ok",
    "cdrs_registry_nodes",
    "cdrs_detection_duration_seconds",
    "cdrs_failover_duration_seconds",
    "cdrs_build_info",
}


def samples(telemetry: Telemetry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    body, _ = telemetry.render()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def test_the_designed_metrics_exist_and_no_others() -> None:
    assert {spec.name for spec in METRICS} == DESIGNED
    assert len(METRICS) == len(DESIGNED)


@pytest.mark.parametrize("spec", METRICS, ids=lambda spec: spec.name)
def test_every_metric_is_explained_and_exported(spec) -> None:
    assert spec.help.endswith(".")
    assert len(spec.help) > 15
    assert (spec.kind == "counter") == spec.name.endswith("_total")
    assert (spec.kind == "histogram") == bool(spec.buckets)
    assert not {"stream", "subject", "client", "node"} & set(spec.labels)
    body, _ = Telemetry(version="1").render()
    assert f"# HELP {spec.name} {spec.help}\n# TYPE {spec.name} {spec.kind}\n" in body.decode()
    assert f"| `{spec.name}` | {spec.kind} |" in metrics_table()


def test_the_documented_table_is_the_real_one() -> None:
    if not OPERATIONS.exists():
        pytest.skip("docs/operations.md is not written yet")
    assert metrics_table() in OPERATIONS.read_text()


def test_a_batch_counts_like_its_events() -> None:
    one_by_one, at_once = Telemetry(version="1"), Telemetry(version="1")
    for _ in range(20):
        one_by_one.ingested("stored")
        one_by_one.latency("append", 0.003)
    at_once.ingested("stored", 20)
    at_once.latency("append", 0.003, 20)
    found = samples(at_once)
    assert found == pytest.approx(samples(one_by_one))
    assert found["cdrs_ingest_events_total", (("result", "stored"),)] == 20
    assert found["cdrs_event_latency_seconds_count", (("hop", "append"),)] == 20
    assert found["cdrs_event_latency_seconds_sum", (("hop", "append"),)] == pytest.approx(0.06)


def test_buckets_are_cumulative_and_take_their_upper_bound() -> None:
    telemetry = Telemetry(version="1")
    for seconds in (0.0005, 0.0006, 0.5, 60.0):
        telemetry.ingest_took(seconds)
    found = samples(telemetry)
    name = "cdrs_ingest_duration_seconds_bucket"
    assert [found[name, (("le", le),)] for le in ("0.0005", "0.001", "0.25", "0.5", "10.0", "+Inf")] == [
        1,
        2,
        2,
        3,
        3,
        4,
    ]


def test_results_that_never_happened_are_zero_not_absent() -> None:
    found = samples(Telemetry(version="1.2.3"))
    assert found["cdrs_ingest_events_total", (("result", "failed"),)] == 0
    assert found["cdrs_sse_gaps_total", (("reason", "retention"),)] == 0
    assert found["cdrs_sse_deliveries_total", ()] == 0
    assert found["cdrs_build_info", (("version", "1.2.3"),)] == 1


def test_gauges_follow_what_was_said_last() -> None:
    telemetry = Telemetry(version="1")
    telemetry.connections(7)
    telemetry.consumer_lag({0: 5, 3: 0})
    telemetry.registry_nodes({("node", "live"): 3})
    telemetry.registry_nodes({("node", "dead"): 1})
    found = samples(telemetry)
    assert found["cdrs_sse_connections", ()] == 7
    assert found["cdrs_consumer_lag_records", (("partition", "0"),)] == 5
    assert found["cdrs_registry_nodes", (("role", "node"), ("state", "dead"))] == 1
    assert found["cdrs_registry_nodes", (("role", "node"), ("state", "live"))] == 0


def test_a_clock_that_runs_behind_gives_no_negative_latency() -> None:
    telemetry = Telemetry(version="1")
    telemetry.latency("dispatch", -3.0)
    assert samples(telemetry)["cdrs_event_latency_seconds_sum", (("hop", "dispatch"),)] == 0


def test_hooks_run_before_each_scrape() -> None:
    telemetry = Telemetry(version="1")
    telemetry.before_render(lambda: telemetry.connections(3))
    assert samples(telemetry)["cdrs_sse_connections", ()] == 3


@pytest.mark.parametrize(
    ("accept", "content_type", "end"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8", ""),
        ("text/html", "text/plain; version=0.0.4; charset=utf-8", ""),
        ("text/plain;version=0.0.4;q=0.5;escaping=evil", "text/plain; version=0.0.4; charset=utf-8", ""),
        (
            "application/openmetrics-text;version=9.9.9;charset=evil",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            "# EOF\n",
        ),
    ],
)
def test_the_format_is_negotiated_and_nothing_is_echoed(accept: str, content_type: str, end: str) -> None:
    body, answered = Telemetry(version="1", process=True).render(accept)
    assert answered == content_type
    assert body.decode().endswith(end)
    assert b"process_cpu_seconds_total" in body
