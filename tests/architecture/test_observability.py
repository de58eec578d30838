"""What Prometheus alerts on and Grafana draws exists: every metric, every label of it, every target."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from shared.metrics import METRICS
from shared.telemetry import Telemetry

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "ops/grafana/dashboards/cdrs.json").read_text(encoding="utf-8"))
ALERTS: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "ops/prometheus/alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
SCRAPES: list[dict[str, Any]] = yaml.safe_load((ROOT / "ops/prometheus/prometheus.yml").read_text(encoding="utf-8"))[
    "scrape_configs"
]
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
OF_THE_SCRAPE = {"job", "instance"}
FUNCTIONS = {"sum", "max", "min", "count", "by", "rate", "increase", "histogram_quantile"}


def exported() -> dict[str, set[str]]:
    """Series as they are stored → their labels."""
    body, _ = Telemetry(version="1", process=True).render()
    found = {
        sample.name: {*sample.labels, *OF_THE_SCRAPE}
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    for spec in METRICS:  # those that have no series yet
        for suffix in ("_bucket", "_sum", "_count") if spec.kind == "histogram" else ("",):
            extra = {"le"} if suffix == "_bucket" else set[str]()
            found[spec.name + suffix] = {*spec.labels, *OF_THE_SCRAPE, *extra}
    return {**found, "up": set(OF_THE_SCRAPE)}  # Prometheus' own


EXPORTED = exported()


def expressions() -> Iterator[tuple[str, str]]:
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for rule in ALERTS:
        yield rule["alert"], rule["expr"]


def used(expression: str) -> tuple[set[str], set[str]]:
    """The metrics of an expression, and the labels it selects or groups by."""
    labels = {
        name
        for block in re.findall(r"\{([^}]*)\}", expression)
        for name in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", block)
    }
    labels |= {name for group in re.findall(r"by \(([^)]*)\)", expression) for name in re.findall(r"\w+", group)}
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|by \([^)]*\)", "", expression)
    return set(re.findall(r"[a-z_]\w*", bare)) - FUNCTIONS, labels


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_every_metric_and_label_exists(where: str, expression: str) -> None:
    metrics, labels = used(expression)
    assert metrics, where
    for metric in metrics:
        assert metric in EXPORTED, f"{where}: there is no {metric}"
        assert labels <= EXPORTED[metric], f"{where}: {metric} has no {labels - EXPORTED[metric]}"


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_every_value_of_a_job_is_scraped(where: str, expression: str) -> None:
    jobs = {scrape["job_name"] for scrape in SCRAPES}
    for _, values in re.findall(r'job(=~|=)"([^"]+)"', expression):
        assert set(values.split("|")) <= jobs, where


def test_the_check_itself_sees_a_slip() -> None:
    metrics, labels = used('sum by (le, hop) (rate(cdrs_event_latency_seconds_bucket{job="x", hap=~"y"}[1m])) > 0.5')
    assert (metrics, labels) == ({"cdrs_event_latency_seconds_bucket"}, {"le", "hop", "job", "hap"})
    assert "cdrs_event_latency_seconds" not in EXPORTED
    assert "hap" not in EXPORTED["cdrs_event_latency_seconds_bucket"]


def test_the_dashboard_is_complete() -> None:
    shown = set[str]().union(*(used(target["expr"])[0] for panel in PANELS for target in panel["targets"]))
    known = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    assert len(known & {spec.name for spec in METRICS}) >= 14
    identifiers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identifiers)) == len(identifiers)
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


def test_the_dashboard_asks_the_provisioned_source() -> None:
    folder = ROOT / "ops/grafana/provisioning"
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yaml").read_text(encoding="utf-8"))["datasources"]
    assert {panel["datasource"]["uid"] for panel in PANELS} == {source["uid"]}
    services = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((folder / "dashboards/cdrs.yaml").read_text(encoding="utf-8"))["providers"]
    mounted = [volume for volume in services["grafana"]["volumes"] if isinstance(volume, dict)]
    mounts = {volume["target"]: volume["source"] for volume in mounted}
    assert mounts[provider["options"]["path"]] == "./ops/grafana/dashboards"
    home = Path(services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (ROOT / mounts[str(home.parent)] / home.name).is_file()


def test_every_process_is_scraped_where_it_listens() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    targets = {scrape["job_name"]: scrape["static_configs"][0]["targets"] for scrape in SCRAPES}
    for kind, port in (("gateway", 8080), ("node", 7000)):
        assert targets[kind] == [f"{name}:{port}" for name in services if name.startswith(f"{kind}-")]
    stats = services["haproxy"]["environment"]["HAPROXY_STATS_BIND"]
    assert targets["haproxy"] == [f"haproxy:{stats.rpartition(':')[2]}"]


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_it_means(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"].endswith(".")
