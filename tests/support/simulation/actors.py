"""Producers and subscribers of the simulation. They speak to real gateway code, through the bytes of its event streams
on the reading side, and write histories; what they judge by is their own."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from faults.checker import matches
from faults.cursors import read_cursor
from faults.history import Actor, sha_of
from sse_socket import EventStreamParser, data_of
from starlette.requests import Request

from gateway.placement import settle, submit
from gateway.subscribe import Subscription
from shared.errors import CdrsError
from shared.events import SPREAD_UNKNOWN, Draft
from shared.records import DataKind, NewEvent, Settlement, identity_of

if TYPE_CHECKING:
    from simulation.world import GatewayProcess, World

WIDE = "c.wide"
"""May be created with a spread, and its events have keys."""
STREAMS = ("a", "b.one", "b.two", WIDE)
SELECTIONS = (("a",), ("b.*",), (">",), ("a", "b.one"), ("b.two",), (WIDE,), ("c.*", "a"))


def payload_of(value: bytes) -> tuple[str, str, str]:
    """Stream, id and payload hash of a CloudEvent."""
    event = json.loads(value)
    return event["cdrsstream"], event["id"], sha_of(data_of(value))


class Publisher:
    """Sends requests one after the other, or each by two gateways at once; repeats it, at any gateway, until all of it
    is settled, or tries once."""

    def __init__(self, world: World, name: str) -> None:
        self.history = Actor(name)
        self._world = world
        self._name = name
        self._random = random.Random(f"{world.seed}/{name}")
        self._once = self._random.random() < 0.25
        self._doubles = self._random.random() < 0.2
        self._pause = self._random.choice((0.0, 0.02, 0.2))
        self._op = 0
        self._number = 0
        self._new: set[str] = set()
        """What was answered as stored by that very request."""

    async def run(self) -> None:
        for _ in range(self._world.plan.requests):
            drafts = [self._draft() for _ in range(self._random.choice((1, 1, 2, 5)))]
            await self._settle(drafts)
            if self._pause:
                await asyncio.sleep(self._random.random() * self._pause)

    def _draft(self) -> Draft:
        self._number += 1
        event_id = f"{self._name}-{self._number}"
        stream = self._random.choice(STREAMS)
        key = self._random.choice(("k", "l")) if stream == WIDE else None
        head = {"specversion": "1.0", "id": event_id, "source": "/sim", "type": "t", "cdrsstream": stream}
        body = json.dumps(head, separators=(",", ":")).encode()[:-1] + b',"data":'
        event = NewEvent(
            identity_of(stream, "/sim", event_id), stream, key, body + b'"%d"}' % self._random.randrange(10**9),
            len(body), DataKind.JSON, self._world.clock.unix_ms(), spread=SPREAD_UNKNOWN,
        )  # fmt: skip
        return Draft(event_id, event)

    async def _settle(self, drafts: list[Draft]) -> None:
        left = drafts
        while left:
            gateway = self._world.some_gateway()
            if gateway is None or not gateway.context.hub.started:
                await asyncio.sleep(0.05)
                continue
            other = self._world.some_gateway() if self._doubles else None
            if other is not None and other.context.hub.started:
                lefts = await asyncio.gather(self._attempt(gateway, left), self._attempt(other, left))
                left = [draft for draft in lefts[0] if draft in lefts[1]]
            else:
                left = await self._attempt(gateway, left)
            if self._once:
                return
            if left:
                # All of it again, the settled ones too, as a client does that lost the answer.
                left = drafts if self._random.random() < 0.5 else left
                await asyncio.sleep(0.05)

    def _write(self, kind: str, op: int, draft: Draft, **fields: Any) -> None:
        self.history.write(
            kind, t=int(self._world.loop.now * 1e9), op=op, stream=draft.event.stream, source="/sim",
            id=draft.id, **fields,
        )  # fmt: skip

    async def _attempt(self, gateway: GatewayProcess, drafts: list[Draft]) -> list[Draft]:
        """One request; returns what has no receipt."""
        self._op = op = self._op + 1
        for draft in drafts:
            self._write("invoke", op, draft, key=draft.event.key, sha=payload_of(draft.event.value)[2])
        work = gateway.spawn(self._post(gateway, drafts))
        await asyncio.wait((work,))
        self._world.trace("answer", self._name, op, work.cancelled())
        if work.cancelled():
            results: list[Settlement | None] = [None] * len(drafts)
        else:
            results = work.result()
        left: list[Draft] = []
        for draft, result in zip(drafts, results, strict=True):
            if result is None or result.problem == "outcome-unknown":
                self._write("info", op, draft, why="unknown")
                left.append(draft)
            elif result.problem in ("unavailable", "overloaded", "stale-stream"):  # all of them are a 503
                self._write("fail", op, draft, why=result.problem)
                left.append(draft)
            elif result.problem:
                self._world.verdict.add("phantom", f"{draft.id}: an answer that nobody asked for: {result}")
            else:
                place = [str(self._world.log.epoch), result.partition, result.offset]
                self._write("ok", op, draft, position=place, duplicate=result.duplicate)
                if not result.duplicate and draft.id in self._new:
                    self._world.verdict.add("duplicate", f"two receipts say that {draft.id} is new")
                elif not result.duplicate:
                    self._new.add(draft.id)
        return left

    async def _post(self, gateway: GatewayProcess, drafts: list[Draft]) -> list[Settlement | None]:
        try:
            pending = await submit(gateway.context, drafts)
        except CdrsError as error:
            return [Settlement(problem="unavailable", detail=str(error))] * len(drafts)
        results = await settle(gateway.context, drafts, pending)
        await gateway.call(0)
        return list(results)


class Reader:
    """Subscribes, is cut, comes back with its last id at any gateway, and writes down every block."""

    def __init__(self, world: World, name: str) -> None:
        self.history = Actor(name)
        self._world = world
        self._name = name
        self._random = random.Random(f"{world.seed}/{name}")
        self._streams = list(self._random.choice(SELECTIONS))
        self._is_slow = self._random.random() < 0.3
        is_one = len(self._streams) == 1 and self._streams[0] in STREAMS
        self._from = self._random.choice(("latest", "earliest", "-2s", "-3" if is_one else "earliest"))
        self._conn = 0
        self._last_id = ""
        self._reached: dict[int, int] = {}
        self._vector: Mapping[int, int] = {}
        """What the last id says."""

    def is_done(self) -> bool:
        """Whether it has been told of everything that is in the log."""
        if not self._last_id:
            return False
        ends = self._world.log.ends
        visible = self._world.log.visible
        wanted = {
            partition: max((r.offset for r in visible(partition, 16) if self._wants(r.stream)), default=-1)
            for partition in ends
        }
        return all(self._reached.get(p, 0) > offset for p, offset in wanted.items() if offset >= 0)

    def _wants(self, stream: str) -> bool:
        return any(matches(pattern, stream) for pattern in self._streams)

    async def run(self) -> None:
        while True:
            gateway = self._world.some_gateway()
            if gateway is not None and gateway.context.hub.started:
                await self._connection(gateway)
            await asyncio.sleep(self._random.random() * 0.1)

    def _write(self, kind: str, **fields: Any) -> None:
        self.history.write(kind, t=int(self._world.loop.now * 1e9), conn=self._conn, **fields)

    async def _connection(self, gateway: GatewayProcess) -> None:
        self._conn += 1
        resume = read_cursor(self._last_id)[1] if self._last_id else None
        self._write("open", streams=self._streams, resume=resume, epoch=str(self._world.log.epoch))
        self._world.trace("open", self._name, self._last_id)
        wire: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        serving = gateway.spawn(self._serve(gateway, wire))
        parser = EventStreamParser(self._last_id.encode())
        patience = self._random.choice((3, 20, 200, 200))
        try:
            while patience:
                chunk = await self._receive(serving, wire)
                if chunk is None:
                    break
                if self._is_slow and not self._world.is_healing:
                    await asyncio.sleep(self._random.random() * 0.3)
                patience -= 1
                if not patience and not self._world.is_healing:
                    chunk = chunk[: self._random.randint(0, len(chunk))]  # cut in the middle of a write
                for block in parser.feed(chunk):
                    self._take(block.event.decode(), block.id.decode(), block.data)
        finally:
            serving.cancel()
        self._write("end", why="cut" if not patience else "ended")

    async def _receive(self, serving: asyncio.Task[None], wire: asyncio.Queue[bytes | None]) -> bytes | None:
        if not wire.empty():
            return wire.get_nowait()
        arrival = self._world.loop.create_task(wire.get())
        try:
            await asyncio.wait((arrival, serving), return_when=asyncio.FIRST_COMPLETED)
            if arrival.done():
                return arrival.result()
        finally:
            arrival.cancel()
        if not serving.cancelled() and serving.exception() is not None:
            self._world.verdict.add("crash", f"a subscription failed: {serving.exception()!r}")
        return None

    async def _serve(self, gateway: GatewayProcess, wire: asyncio.Queue[bytes | None]) -> None:
        query = "&".join([f"stream={stream}" for stream in self._streams] + ["stamps=true", f"from={self._from}"])
        headers = [(b"last-event-id", self._last_id.encode())] if self._last_id else []
        scope = {
            "type": "http", "method": "GET", "path": "/v1/events", "query_string": query.encode(), "headers": headers,
            "client": ("127.0.0.1", 1), "path_params": {},
        }  # fmt: skip
        subscription = Subscription.of(Request(scope), gateway.context)
        try:
            await subscription.prepare()
        except CdrsError as error:
            self._world.verdict.add("phantom", f"a subscription was refused: {error!r}")
            return
        async with aclosing(subscription.chunks()) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                await gateway.call(0)
                await wire.put(chunk)
        await wire.put(None)

    def _is_true(self, detail: dict[str, Any]) -> bool:
        """Whether all of that was deleted, and not given before."""
        if detail["reason"] != "retention":
            return False
        partition, start, stop = int(detail["partition"]), int(detail["from"]), int(detail["to"])
        given = self._vector.get(partition, 0)
        return given <= start < stop <= self._world.store.floors[partition]

    def _take(self, kind: str, cursor: str, data: bytes) -> None:
        self._world.trace("block", self._name, kind, cursor, data[:80])
        if kind == "cdrs.gap":
            detail = json.loads(data)
            resumes = read_cursor(detail["resumes_at"])[1]
            self._write(
                "gap", reason=detail["reason"], partition=detail.get("partition"), next=resumes,
                to=detail.get("to"), **{"from": detail.get("from")},
            )  # fmt: skip
            # No cursor is invented in this world: there is nothing to tell of but what was deleted.
            if not self._is_true(detail):
                self._world.verdict.add("notice", f"{self._name}: {detail}")
            for partition, offset in resumes.items():
                self._reached[partition] = max(self._reached.get(partition, 0), offset)
        elif kind in ("", "message", "cdrs.cursor"):
            epoch, vector = read_cursor(cursor)
            self._last_id = cursor
            self._vector = vector
            for partition, offset in vector.items():
                self._reached[partition] = max(self._reached.get(partition, 0), offset)
            if kind == "cdrs.cursor":
                self._write("cursor", epoch=epoch, next=vector)
                return
            event = json.loads(data)
            where = event["cdrsposition"].split("/")
            self._write(
                "recv", stream=event["cdrsstream"], source=event["source"], id=event["id"], sha=sha_of(data_of(data)),
                position=[where[0], int(where[1]), int(where[2])], next=vector,
            )  # fmt: skip
