"""Every kind of cursor that was ever given holds over a restart of everything."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cdrs_process import CdrsProcess
from engine_nodes import engine_variables
from sse_socket import Block, Subscriber
from write_paths import each_path

pytestmark = pytest.mark.timeout(180)

ONE, WIDE = "cursor.one", "cursor.wide"
EVENTS = 30
MORE = 5
Seen = list[tuple[str, int]]


@pytest.fixture(params=["embedded", pytest.param("engines", marks=pytest.mark.slow)])
async def variables(request: pytest.FixtureRequest) -> AsyncIterator[dict[str, str]]:
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(engine_variables()) if request.param == "engines" else {}


def publish(cdrs: CdrsProcess, numbers: range) -> dict[int, str]:
    """To both streams in turn; number → the receipt's cursor in the one."""
    cursors: dict[int, str] = {}
    for number in numbers:
        for stream in (ONE, WIDE):
            headers = {"content-type": "application/json", "cdrs-key": f"k{number % 5}"}
            path = f"/v1/streams/{stream}/events"
            answer = cdrs.request("POST", path, b'{"n":%d}' % number, headers=headers)
            assert answer.status == 201, answer
            if stream == ONE:
                cursors[number] = json.loads(answer.body)["cursor"]
    return cursors


def seen(blocks: Sequence[Block]) -> Seen:
    events = [json.loads(block.data) for block in blocks if not block.is_control]
    return [(event["cdrsstream"], event["data"]["n"]) for event in events]


def read(
    cdrs: CdrsProcess, streams: Sequence[str], count: int, last_id: bytes = b""
) -> tuple[list[Block], list[Block]]:
    """So many events from there on, or from the beginning, and the control blocks among and behind them."""
    params = {} if last_id else {"from": "earliest"}
    subscriber = Subscriber(cdrs.port, streams, params=params)
    subscriber.last_id = last_id
    with subscriber:
        subscriber.wait_count(count, 30)
        subscriber.wait(lambda: any(b.event == b"cdrs.caught-up" for b in subscriber.controls), 30, "the end")
        assert not [block for block in subscriber.controls if block.event == b"cdrs.gap"], subscriber.summary()
        return list(subscriber.blocks), list(subscriber.controls)


def page(cdrs: CdrsProcess, start: str, limit: int) -> Any:
    path = f"/v1/streams/{ONE}/events?limit={limit}&from={quote(start)}"
    answer = cdrs.request("GET", path, headers={"accept": "application/json"})
    assert answer.status == 200, answer
    return json.loads(answer.body)


def everything(count: int) -> set[tuple[str, int]]:
    return {(stream, number) for stream in (ONE, WIDE) for number in range(count)}


@each_path
async def test_all_kinds(tmp_path: Path, variables: dict[str, str]) -> None:
    with CdrsProcess(tmp_path / "before", ["--data", str(tmp_path / "data")], env=variables).start(timeout=90) as cdrs:
        json_type = {"content-type": "application/json"}
        made = cdrs.request("PUT", f"/v1/streams/{WIDE}", b'{"spread":2}', headers=json_type)
        assert made.status == 201, made
        receipts = publish(cdrs, range(EVENTS))
        records, _ = read(cdrs, [ONE], EVENTS)
        both, controls = read(cdrs, [ONE, WIDE], 2 * EVENTS)
        first = page(cdrs, "earliest", 7)
    idle = next(block.id for block in controls if block.event == b"cdrs.caught-up")
    total = EVENTS + MORE
    with CdrsProcess(tmp_path / "after", ["--data", str(tmp_path / "data")], env=variables).start(timeout=90) as cdrs:
        publish(cdrs, range(EVENTS, total))

        def one_from(last_id: bytes, first: int) -> None:
            assert seen(read(cdrs, [ONE], total - first, last_id)[0]) == [(ONE, n) for n in range(first, total)]

        one_from(receipts[9].encode(), 10)
        one_from(records[14].id, 15)
        for at in (0, 20, 2 * EVENTS - 1):  # cursors of several partitions
            before = set(seen(both[: at + 1]))
            rest = seen(read(cdrs, [ONE, WIDE], 2 * total - len(before), both[at].id)[0])
            assert len(rest) == len(set(rest)), "twice"
            assert set(rest) == everything(total) - before
        behind = seen(read(cdrs, [ONE, WIDE], 2 * MORE, idle)[0])
        assert sorted(behind) == sorted(everything(total) - everything(EVENTS))
        found = [item["event"]["data"]["n"] for item in page(cdrs, first["next"], 100)["events"]]
        assert found == list(range(7, total))
        item = first["events"][3]["cursor"]
        assert [each["event"]["data"]["n"] for each in page(cdrs, item, 100)["events"]] == list(range(4, total))
