"""MongoDB is away, and gateways and subscribers are behind by more than the rings hold: the log gives them the rest."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from cdrs_process import CdrsProcess, wait_until
from engine_nodes import engine_variables, engine_world, proxied_mongo, proxied_url
from mongo_adapter import database_url
from new_events import events
from node_world import read_feed
from sse_socket import Subscriber, data_of
from write_paths import portable_slow

from shared.settings import PersistSettings

pytestmark = pytest.mark.timeout(240)

RING = 16


def metrics(cdrs: CdrsProcess) -> bytes:
    return cdrs.request("GET", "/metrics").body


@pytest.mark.slow
async def test_a_feed_from_far_behind_while_the_store_is_away() -> None:
    async with engine_world() as world:
        with proxied_mongo() as proxy:
            url = proxied_url(proxy, database_url())
            async with world.node(store_url=url, ring_records=RING, persist=PersistSettings(linger=0.01)) as one:
                first = events(0, 50)
                await one.append(0, first)
                async with asyncio.timeout(30):
                    while (await one.store.checkpoints())[0] < 50:
                        await asyncio.sleep(0.02)
                proxy.leave()
                async with asyncio.timeout(30):
                    while not one.node.troubles:
                        await asyncio.sleep(0.02)
                sent = list(first)
                for at in range(1000, 4000, 250):
                    more = events(at, at + 250)
                    await one.append(0, more)
                    sent += more
                end = (await one.log.ends())[0]
                assert end == 3050
                readers = [read_feed(one.node, one.log, end, start=start) for start in (50, 300, 50, 1111, 2999)]
                for start, values in zip((50, 300, 50, 1111, 2999), await asyncio.gather(*readers), strict=True):
                    assert values == [each.value for each in sent[start:]]
                assert one.node._history.log_reader.reads < 20, "each reader has read for itself"
                proxy.come_back()
                assert await read_feed(one.node, one.log, end) == [each.value for each in sent]


@portable_slow
async def test_subscribers_lose_nothing_while_the_store_is_away(tmp_path: Path) -> None:
    """As clients see it: from the earliest, and cut again and again, below the rings of gateway and node."""
    total = 1000
    async with engine_variables() as env:
        with proxied_mongo() as proxy:
            through = {
                **env,
                "CDRS_STORE__URL": proxied_url(proxy, env["CDRS_STORE__URL"]),
                "CDRS_NODE__RING_RECORDS": str(RING),
                "CDRS_SSE__RING_RECORDS": str(RING),
            }
            with CdrsProcess(tmp_path / "cdrs", env=through).start() as cdrs:
                first = cdrs.publish("orders", b"0")
                assert first.status == 201
                proxy.leave()
                wait_until(lambda: b"cdrs_dedupe_degraded 1.0" in metrics(cdrs), 30, "the store's absence")
                lines = b"".join(b"%d\n" % number for number in range(1, total))
                kind = {"content-type": "application/x-ndjson"}
                answer = cdrs.request("POST", "/v1/streams/orders/events?receipts=errors", lines, headers=kind)
                assert b'"stored":%d' % (total - 1) in answer.body, answer
                start = first.json()["cursor"]
                with Subscriber(cdrs.port, "orders", params={"from": start}, cut_at=range(100, total, 150)) as reader:
                    reader.wait_count(total - 1, 60)
                    numbers = [int(data_of(block.data)) for block in reader.blocks]
                    assert numbers == list(range(1, total))
                    assert len(reader.resumed_with) >= 5
                    assert not [block for block in reader.controls if block.event == b"cdrs.gap"]
                proxy.come_back()
                wait_until(lambda: b"cdrs_dedupe_degraded 0.0" in metrics(cdrs), 30, "the store's return")
                with Subscriber(cdrs.port, "orders", params={"from": "earliest"}) as reader:
                    reader.wait_count(total, 60)
                    assert [int(data_of(block.data)) for block in reader.blocks] == list(range(total))
