"""MongoDB goes away while events come in, and returns: nothing is lost, nothing doubled, and it is said meanwhile."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from cdrs_process import Answer, CdrsProcess, wait_until
from engine_nodes import engine_variables, proxied_mongo, proxied_url
from mongo_adapter import plain_database
from sse_socket import Subscriber, data_of
from write_paths import each_path

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
        # The checkpoint comes behind the events. Without it, the next process reads the log from its beginning, and
        # needs no store to know what is in it.
        read_up_to = {"next": {"$gte": OLD}}
        wait_until(lambda: plain_database(env).checkpoints.count_documents(read_up_to), 30, "all in the store")


def in_store(env: dict[str, str]) -> int:
    return plain_database(env).events.count_documents({"s": "orders"})


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
                wait_until(lambda: checks(cdrs)["status"] == "ok", 30, lambda: str(checks(cdrs)))
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


AWAY = float(os.environ.get("CDRS_TEST_STORE_AWAY", "600"))
"""Seconds."""


@each_path
@pytest.mark.slow
@pytest.mark.timeout(AWAY + 240)
async def test_ten_minutes_without_the_store(tmp_path: Path) -> None:
    """Events are taken up to the bound, then refused at once; reading goes on, memory stays as it is, and all of it is
    in the store soon after it is back."""
    async with engine_variables() as env:
        with proxied_mongo() as proxy:
            through = {**env, "CDRS_STORE__URL": proxied_url(proxy, env["CDRS_STORE__URL"])}
            through["CDRS_PERSIST__MAX_LAG"] = "20000"
            with (
                CdrsProcess(tmp_path / "cdrs", env=through).start() as cdrs,
                Subscriber(cdrs.port, "orders", params={"from": "earliest"}) as reader,
            ):
                assert cdrs.publish("orders", b"0").status == 201
                taken, refusals, memory = [0], list[float](), dict[str, int]()
                proxy.leave()
                began = time.monotonic()
                for number in count(1, 100):
                    asked = time.monotonic()
                    if asked - began > AWAY:
                        break
                    stored = send(cdrs, range(number, number + 100))
                    taken += stored
                    if not stored:
                        refusals.append(time.monotonic() - asked)
                        memory.setdefault("at the bound", rss_mib(cdrs.pid))
                    time.sleep(0.2)
                memory["at the end"] = rss_mib(cdrs.pid)
                assert refusals, "the bound was not reached"
                assert len(taken) > 20_000
                print(f"{len(taken)} taken, {len(refusals)} times refused, after {max(refusals):.3f} s; MiB {memory}")
                assert memory["at the end"] <= memory["at the bound"] + 16
                assert cdrs.request("GET", "/readyz").status == 200
                reader.wait_count(len(taken), 60)
                proxy.come_back()
                back = time.monotonic()
                wait_until(lambda: cdrs.publish("orders", b"-1").status == 201, 60, "events to be taken again")
                wait_until(lambda: in_store(env) == len(taken) + 1, 60, "all in the store")
                print(f"all in the store {time.monotonic() - back:.1f} s after it was back")
                reader.wait_count(len(taken) + 1, 30)
                assert [int(data_of(block.data)) for block in reader.blocks] == [*taken, -1]
                assert not [block for block in reader.controls if block.event == b"cdrs.gap"]


def send(cdrs: CdrsProcess, numbers: Sequence[int]) -> list[int]:
    """Those of the numbers that were stored."""
    lines = b"".join(b"%d\n" % number for number in numbers)
    kind = {"content-type": "application/x-ndjson"}
    answer = cdrs.request("POST", "/v1/streams/orders/events?receipts=errors", lines, headers=kind)
    told = [json.loads(line) for line in answer.body.splitlines()] if answer.status == 200 else []
    failed = {each["line"] for each in told if "problem" in each}
    return [number for at, number in enumerate(numbers, 1) if at not in failed] if told else []


def rss_mib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) // 1024
