"""The probes and metrics of a node: the same shape as a gateway's, from its first moment on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from model_log import ModelLog, ModelStore
from node_world import TIMEOUT, running, until

from cdrs.node import Node
from cdrs.probes import NodeHealth
from services.doorway import Doorway
from services.listening import listening
from shared.clock import SystemClock
from shared.errors import Unavailable
from shared.settings import Settings
from shared.telemetry import Telemetry


@dataclass
class LedLog(ModelLog):
    """A log with brokers, which may be away."""

    away: bool = False

    async def ends(self) -> Mapping[int, int]:
        if self.away:
            raise Unavailable("tried 127.0.0.1:1")
        return await super().ends()

    def leaders(self) -> Mapping[int, int]:
        return {1: 2, 2: 0} if self.away else {1: 2, 2: 1}


@dataclass
class AwayStore(ModelStore):
    away: bool = False

    async def checkpoints(self) -> Mapping[int, int]:
        if self.away:
            raise Unavailable("tried 127.0.0.1:2")
        return await super().checkpoints()


@asynccontextmanager
async def door() -> AsyncIterator[tuple[Doorway, aiohttp.ClientSession, Telemetry]]:
    telemetry = Telemetry(version="1")
    with listening("127.0.0.1", 0, flag="--port") as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        doorway = Doorway(sock, NodeHealth(SystemClock(), telemetry))
        async with running(doorway.serve), aiohttp.ClientSession(url) as session:
            yield doorway, session, telemetry


async def verbose(session: aiohttp.ClientSession) -> tuple[int, dict[str, Any]]:
    async with session.get("/readyz?verbose") as answer:
        assert answer.content_type == "application/json"
        assert answer.headers["cache-control"] == "no-store"
        return answer.status, await answer.json()


async def status_of(session: aiohttp.ClientSession, path: str, method: str = "GET") -> int:
    async with session.request(method, path) as answer:
        return answer.status


async def test_before_there_is_a_node_its_door_says_what_is_missing() -> None:
    async with door() as (doorway, session, _):
        doorway.tell("log", "setting log.url: tried 127.0.0.1:1")
        status, told = await verbose(session)
        assert (status, told["status"], told["draining"]) == (503, "unavailable", False)
        check = told["checks"]["log"]
        assert check.keys() == {"ok", "detail", "since"}
        assert (check["ok"], check["detail"]) == (False, "setting log.url: tried 127.0.0.1:1")
        doorway.tell("log", "setting log.url: tried 127.0.0.1:1 again")
        again = (await verbose(session))[1]["checks"]["log"]
        assert again == {**check, "detail": "setting log.url: tried 127.0.0.1:1 again"}, "it is so since then"
        for path, method, expected in (
            ("/livez", "GET", 200),
            ("/livez", "HEAD", 200),
            ("/livez", "POST", 405),
            ("/readyz", "GET", 503),
            ("/startupz", "GET", 503),
            ("/metrics", "GET", 200),
            ("/internal/v1/handoff", "POST", 503),
        ):
            assert await status_of(session, path, method) == expected, (path, method)


async def test_what_is_lost_later_is_told_and_what_comes_back_too() -> None:
    log = LedLog(decides_identity=False)
    store = AwayStore(log)
    async with door() as (doorway, session, telemetry):
        node = Node(log, store, Settings(), SystemClock(), node_id="n1", incarnation="i1", telemetry=telemetry)
        async with running(node.run):
            assert await node.ready(TIMEOUT)
            doorway.health.node = node
            await until(lambda: not any(node.needs.values()))
            status, told = await verbose(session)
            assert (status, told["status"]) == (200, "ok")
            assert {name for name, check in told["checks"].items() if check["ok"]} == {"log", "store", "tail"}
            async with session.get("/metrics") as answer:
                metrics = await answer.text()
            assert 'cdrs_log_partition_leaders{broker="2"} 1.0' in metrics
            assert "cdrs_dedupe_degraded 0.0" in metrics

            store.away = True
            await until(lambda: node.needs["store"])
            status, told = await verbose(session)
            assert (status, told["status"]) == (200, "degraded")
            assert told["checks"]["store"]["detail"] == "tried 127.0.0.1:2"
            await until(lambda: b"cdrs_dedupe_degraded 1.0" in telemetry.render()[0])

            log.away = True
            await until(lambda: node.needs["log"])
            status, told = await verbose(session)
            assert (status, told["checks"]["log"]["detail"]) == (503, "tried 127.0.0.1:1")
            await until(lambda: b'cdrs_log_partition_leaders{broker="2"} 0.0' in telemetry.render()[0])

            log.away = store.away = False
            await until(lambda: not any(node.needs.values()))
            assert (await verbose(session))[1]["status"] == "ok"
            await node.drain(0.1)
            status, told = await verbose(session)
            assert (status, told["draining"]) == (503, True)
            assert await status_of(session, "/startupz") == 200
