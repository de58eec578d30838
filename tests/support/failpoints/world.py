"""Two gateways and two nodes, each a process of its own that failpoints reach, and a stream that is followed through
the death of one of them."""

from __future__ import annotations

import http.client
import json
import signal
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cdrs_process import Answer, CdrsProcess, request, wait_until
from failpoints.arming import Failpoints
from sse_socket import Subscriber

SOURCE = "/failpoints"
WITHIN = 30.0
"""Seconds for anything to happen that is waited for."""
AGAIN = {429, 500, 503, 504}
JSON = {"accept": "application/json"}
Receipt = dict[str, Any]


class World:
    """The processes. Whoever has died is started again by `mend`."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.points = Failpoints(folder / "failpoints")
        data = [] if env else ["--data", str(folder / "data")]
        each = {**env, **self.points.env}
        self.gateways = [CdrsProcess(folder / f"gateway-{n}", data, role="gateway", env=each) for n in range(2)]
        self.nodes = [CdrsProcess(folder / f"node-{n}", data, role="node", env=each) for n in range(2)]

    @property
    def processes(self) -> list[CdrsProcess]:
        return [*self.gateways, *self.nodes]

    def __enter__(self) -> Self:
        try:
            for each in self.processes:
                each.start(wait=False)
            self._wait_whole()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        for each in self.processes:
            each.stop()

    def mend(self) -> None:
        """Start whoever was killed, and wait until all of them serve and see each other."""
        for each in self.processes:
            assert each.process is not None
            if (code := each.process.poll()) is not None:
                assert code == -signal.SIGKILL, f"{each.folder.name} ended with {code}: {each.stderr()[-3000:]}"
                each.start(wait=False)
        self._wait_whole()

    def _wait_whole(self) -> None:
        for each in self.processes:
            each.wait_ready(2 * WITHIN)

        def live() -> list[int]:
            return [sum(node["state"] == "live" for node in each.nodes()) for each in self.gateways]

        wait_until(lambda: live() == [2, 2], WITHIN, lambda: f"two live nodes at each gateway: {live()}")

    def by_pid(self, pid: int) -> CdrsProcess:
        return next(each for each in self.processes if each.pid == pid)


@dataclass
class Story:
    """A producer that sends one request after the other to one stream, and two subscribers, one at each gateway."""

    world: World
    stream: str
    sent: list[str] = field(default_factory=list)
    """Ids in the order of sending."""
    receipts: dict[str, Receipt] = field(default_factory=dict)
    """Id → the first receipt, without the word whether it was a duplicate: each later one must say the same."""
    _stack: ExitStack = field(default_factory=ExitStack)
    _subscribers: list[Subscriber] = field(default_factory=list)

    def __enter__(self) -> Story:
        self.world.mend()  # a test that failed may have left somebody dead
        for gateway in self.world.gateways:
            self._subscribers.append(self._stack.enter_context(self._subscriber(gateway, {})))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def _subscriber(self, gateway: CdrsProcess, params: Mapping[str, str]) -> Subscriber:
        return Subscriber(gateway.port, self.stream, params={"stamps": "true", **params})

    # --- producing

    def send(self, gateway: CdrsProcess, count: int) -> list[bool]:
        """New events in one request, repeated until each has its receipt; which of them were duplicates."""
        return self.repeat(gateway, self._new(count))

    def repeat(self, gateway: CdrsProcess, ids: Sequence[str]) -> list[bool]:
        """The same for these, which may have been sent before."""
        answer: list[Answer | None] = [None]

        def is_settled() -> bool:
            answer[0] = self._post(gateway, ids)
            return answer[0] is not None and answer[0].status not in AGAIN

        wait_until(is_settled, WITHIN, lambda: f"receipts of {ids}, the last answer was {answer[0]}")
        assert answer[0] is not None
        return self._read(answer[0], ids)

    def die(self, step: str, count: int) -> tuple[CdrsProcess, list[str], list[bool] | None]:
        """Send new events to the first gateway with a step armed: who was killed there, the events, and which were
        duplicates; None where the connection broke instead."""
        ids = self._new(count)
        self.world.points.arm(step)
        answer = self._post(self.world.gateways[0], ids)
        hit = self.world.points.wait(step, WITHIN)
        victim = self.world.by_pid(hit.pid)
        assert victim.wait(WITHIN) == -signal.SIGKILL
        return victim, ids, None if answer is None else self._read(answer, ids)

    def _new(self, count: int) -> list[str]:
        ids = [f"e{len(self.sent) + n}" for n in range(count)]
        self.sent += ids
        return ids

    def _post(self, gateway: CdrsProcess, ids: Sequence[str]) -> Answer | None:
        """A lone event goes the short way, several as a batch. None where the connection broke."""
        if len(ids) == 1:
            path = f"/v1/streams/{self.stream}/events"
            named = {"ce-specversion": "1.0", "ce-source": SOURCE, "ce-type": "t", "ce-id": ids[0]}
            headers = {"content-type": "application/json", **named}
            body = json.dumps(_data(ids[0])).encode()
        else:
            path, headers = "/v1/events", {"content-type": "application/cloudevents-batch+json"}
            named = {"specversion": "1.0", "source": SOURCE, "type": "t", "cdrsstream": self.stream}
            body = json.dumps([{**named, "id": each, "data": _data(each)} for each in ids]).encode()
        try:
            return request(gateway.port, "POST", path, body, headers, timeout=WITHIN)
        except (OSError, http.client.HTTPException):
            return None

    def _read(self, answer: Answer, ids: Sequence[str]) -> list[bool]:
        assert answer.status in {200, 201, 207}, answer
        receipts: list[Receipt] = [answer.json()] if len(ids) == 1 else answer.json()
        duplicates = [bool(receipt.pop("duplicate")) for receipt in receipts]
        assert answer.status == (207 if len(set(duplicates)) > 1 else 200 if duplicates[0] else 201), answer
        assert [receipt["id"] for receipt in receipts] == list(ids)
        for receipt in receipts:
            assert self.receipts.setdefault(receipt["id"], receipt) == receipt, "two receipts of one event differ"
        return duplicates

    # --- what is there

    def stored(self, gateway: CdrsProcess, ids: Sequence[str]) -> list[str]:
        """Those of these events that can be read by their id."""
        found: list[str] = []
        for each in ids:
            answer = gateway.request("GET", f"/v1/streams/{self.stream}/events/{each}", headers=JSON)
            assert answer.status in {200, 404}, answer
            found += [each] if answer.status == 200 else []
        return found

    def check(self) -> None:
        """Every subscriber, and history at each gateway, has every event once, in order, where its receipt says."""
        assert set(self.receipts) == set(self.sent)
        receipts = [self.receipts[each] for each in self.sent]
        places = [f"{each['epoch']}/{each['partition']}/{each['offset']}" for each in receipts]
        with ExitStack() as stack:
            late = [self._subscriber(gateway, {"from": "earliest"}) for gateway in self.world.gateways]
            for subscriber in (*self._subscribers, *map(stack.enter_context, late)):
                subscriber.wait_count(len(self.sent), WITHIN)
                events = [json.loads(block.data) for block in subscriber.blocks]
                assert [each["id"] for each in events] == self.sent, subscriber.summary()
                assert [each["cdrsposition"] for each in events] == places
                assert [each["data"] for each in events] == [_data(each) for each in self.sent]
                assert not [block for block in subscriber.controls if block.event == b"cdrs.gap"], subscriber.summary()
        for gateway in self.world.gateways:
            page = gateway.request("GET", f"/v1/streams/{self.stream}/events?limit=1000", headers=JSON).json()
            assert [each["event"]["id"] for each in page["events"]] == self.sent
            assert [each["cursor"] for each in page["events"]] == [each["cursor"] for each in receipts]
            assert (page["at_end"], page["gap"]) == (True, None)
            assert self.stored(gateway, self.sent) == self.sent


def _data(event_id: str) -> dict[str, Any]:
    return {"of": event_id, "pad": "é ☃"}
