"""A thousand equal requests at one instant, over two gateways and three nodes: one event, and one receipt for all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from cdrs_process import CdrsProcess
from engine_nodes import engine_variables
from raw_http import Answer, connected, request_bytes
from sse_socket import Subscriber, data_of
from write_paths import portable_slow

EQUAL = 1000
BODY = b'{"n":1}'
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(params=["embedded", "engines"])
async def gateways(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[CdrsProcess, CdrsProcess]]:
    async with AsyncExitStack() as stack:
        env: dict[str, str] = {}
        if request.param == "engines":
            env = await stack.enter_async_context(engine_variables())
        first = CdrsProcess(tmp_path / "first", ["--nodes", "3"], env=env)
        second = CdrsProcess(tmp_path / "second", ["--data", str(first.data)], env=env, role="gateway")
        for each in (first, second):
            stack.callback(each.stop)
            each.start(timeout=90)
        yield first, second


def post(event_id: str, body: bytes = BODY) -> bytes:
    headers = {
        "content-type": "application/json",
        "ce-specversion": "1.0",
        "ce-id": event_id,
        "ce-source": "/test",
        "ce-type": "t",
    }
    return request_bytes("POST", "/v1/streams/orders/events", body, headers)


async def all_at_once(gateways: tuple[CdrsProcess, CdrsProcess], requests: list[bytes]) -> list[Answer]:
    """Each over a connection of its own, all open before the first is sent; half of them to each gateway."""
    async with AsyncExitStack() as stack:
        ports = [gateways[at % 2].port for at in range(len(requests))]
        connections = [await stack.enter_async_context(connected(port)) for port in ports]
        for connection, request in zip(connections, requests, strict=True):
            connection.writer.write(request)
        return list(await asyncio.gather(*[connection.answer() for connection in connections]))


@portable_slow
async def test_equal_posts_at_once_are_one_event(gateways: tuple[CdrsProcess, CdrsProcess]) -> None:
    with Subscriber(gateways[0].port, "orders", params={"from": "earliest"}) as reader:
        answers = await all_at_once(gateways, [post("same")] * EQUAL)
        receipts = [answer.json() for answer in answers]
        assert sorted(answer.status for answer in answers) == [200] * (EQUAL - 1) + [201], receipts[:3]
        assert [receipt.pop("duplicate") for receipt in receipts].count(False) == 1
        assert receipts == [receipts[0]] * EQUAL
        assert gateways[1].publish("orders", b'"end"').status == 201
        reader.wait_count(2, 20)
        assert [data_of(block.data) for block in reader.blocks] == [BODY, b'"end"']


async def test_of_two_bodies_under_one_identity_the_first_wins(gateways: tuple[CdrsProcess, CdrsProcess]) -> None:
    bodies = [b'{"n":%d}' % (at % 4 // 2) for at in range(200)]
    answers = await all_at_once(gateways, [post("two", body) for body in bodies])
    won = next(body for answer, body in zip(answers, bodies, strict=True) if answer.status == 201)
    for answer, body in zip(answers, bodies, strict=True):
        assert answer.status in ({200, 201} if body == won else {422}), answer
    assert sum(answer.status == 201 for answer in answers) == 1
    assert {answer.problem for answer in answers if answer.status == 422} == {"idempotency-mismatch"}
