"""MongoDB goes away while events come in, and returns: nothing is lost, nothing doubled, and it is said meanwhile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cdrs_process import Answer, CdrsProcess, wait_until
from engine_nodes import engine_variables, proxied_mongo, proxied_url
from mongo_adapter import plain_client

OLD = 600
WINDOW = {"CDRS_NODE__WINDOW": "256"}
pytestmark = pytest.mark.timeout(240)


def post(cdrs: CdrsProcess, stream: str, event_id: str, body: bytes = b"1") -> Answer:
    return cdrs.publish(stream, body, ce_id=event_id, ce_source="/test", ce_type="t", ce_specversion="1.0")


def fill(folder: Path, env: dict[str, str]) -> None:
    """Make the log longer than what the index of a process that starts later keeps, so that it has to ask the store."""
    lines = b"".join(b'{"n":%d}\n' % number for number in range(OLD))
    kind = {"content-type": "application/x-ndjson"}
    with CdrsProcess(folder, env=env).start() as cdrs:
        assert cdrs.request("POST", "/v1/streams/orders/events", lines, headers=kind).status == 200
        wait_until(lambda: in_store(env) == OLD, 30, "all in the store")


def in_store(env: dict[str, str]) -> int:
    database = env["CDRS_STORE__URL"].rpartition("/")[2].partition("?")[0]
    return plain_client()[database].events.count_documents({"s": "orders"})


def checks(cdrs: CdrsProcess) -> Any:
    return cdrs.request("GET", "/readyz?verbose").json()


def metric(cdrs: CdrsProcess, name: str) -> float:
    text = cdrs.request("GET", "/metrics").body.decode()
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


def stored(cdrs: CdrsProcess, stream: str) -> list[str]:
    """Ids in history, in order."""
    path = f"/v1/streams/{stream}/events?limit=1000"
    page = cdrs.request("GET", path, headers={"accept": "application/json"}).json()
    return [each["event"]["id"] for each in page["events"]]


async def test_events_are_taken_while_the_store_is_away(tmp_path: Path) -> None:
    async with engine_variables() as env:
        fill(tmp_path / "fill", {**env, **WINDOW})
        with proxied_mongo() as proxy:
            through = {**env, **WINDOW, "CDRS_STORE__URL": proxied_url(proxy, env["CDRS_STORE__URL"])}
            with CdrsProcess(tmp_path / "cdrs", env=through).start() as cdrs:
                receipt = post(cdrs, "orders", "a")
                assert receipt.status == 201, receipt
                assert "dedupe" not in receipt.json()
                assert checks(cdrs)["status"] == "ok"
                proxy.leave()
                away = wait_until(lambda: metric(cdrs, "cdrs_dedupe_degraded"), 20, "the metric")
                assert away == 1
                state = wait_until(
                    lambda: (found := checks(cdrs)) and not found["checks"].get("dedupe", {"ok": True})["ok"] and found,
                    20,
                    lambda: str(checks(cdrs)),
                )
                assert state["status"] == "degraded"
                assert "in memory alone" in state["checks"]["dedupe"]["detail"]
                assert cdrs.request("GET", "/readyz").status == 200
                for number in range(20):
                    answer = post(cdrs, "orders", f"b{number}")
                    assert (answer.status, answer.json().get("dedupe")) == (201, "window"), cdrs.stderr()[-3000:]
                again = post(cdrs, "orders", "a")
                assert (again.status, again.json()) == (200, {**receipt.json(), "duplicate": True})
                assert post(cdrs, "orders", "a", b"2").status == 422
                unheard = post(cdrs, "unheard", "a")
                assert (unheard.status, "retry-after" in unheard.headers) == (503, True), unheard
                proxy.come_back()
                wait_until(lambda: checks(cdrs)["status"] == "ok", 30, lambda: str(checks(cdrs)))
                assert metric(cdrs, "cdrs_dedupe_degraded") == 0
                after = post(cdrs, "orders", "c")
                assert (after.status, "dedupe" in after.json()) == (201, False)
                assert post(cdrs, "unheard", "a").status == 201
                ids = ["a", *(f"b{number}" for number in range(20)), "c"]
                assert stored(cdrs, "orders")[OLD:] == ids
                wait_until(lambda: in_store(env) == OLD + len(ids), 30, "all in the store")


@pytest.mark.slow
async def test_strict_refuses_and_a_lag_beyond_its_bound_refuses(tmp_path: Path) -> None:
    async with engine_variables() as env:
        fill(tmp_path / "fill", {**env, **WINDOW})
        with proxied_mongo() as proxy:
            through = {
                **env,
                **WINDOW,
                "CDRS_STORE__URL": proxied_url(proxy, env["CDRS_STORE__URL"]),
                "CDRS_PERSIST__MAX_LAG": "1000",
            }
            with CdrsProcess(tmp_path / "cdrs", env=through).start() as cdrs:
                assert post(cdrs, "orders", "first").status == 201
                proxy.leave()
                wait_until(lambda: metric(cdrs, "cdrs_dedupe_degraded"), 20, "the metric")
                lines = b"".join(b'{"n":%d}\n' % number for number in range(1100))
                kind = {"content-type": "application/x-ndjson"}
                answer = cdrs.request("POST", "/v1/streams/orders/events?receipts=errors", lines, headers=kind)
                summary = json.loads(answer.body.splitlines()[-1])["summary"]
                assert summary["stored"] == 1100, (summary, cdrs.stderr()[-2000:])
                full = wait_until(
                    lambda: (found := post(cdrs, "orders", "late")).status == 503 and found, 20, "a refusal"
                )
                assert int(full.headers["retry-after"]) >= 1
                proxy.come_back()
                wait_until(lambda: post(cdrs, "orders", "last").status in {200, 201}, 30, "it takes events again")
                wait_until(lambda: len(stored(cdrs, "orders")) == 1000, 10, "history")
            strict = {**through, "CDRS_DEDUPE__STRICT": "true"}
            with CdrsProcess(tmp_path / "strict", env=strict).start() as cdrs:
                assert post(cdrs, "orders", "a").status == 201
                proxy.leave()
                wait_until(lambda: metric(cdrs, "cdrs_dedupe_degraded"), 20, "the metric")
                assert post(cdrs, "orders", "b").status == 503
                proxy.come_back()
                wait_until(lambda: post(cdrs, "orders", "b").status == 201, 30, "it takes events again")
