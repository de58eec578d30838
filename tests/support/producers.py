"""Producers that can be believed: threads that post events with ids of their own and write down every answer."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Position = tuple[str, int, str]


@dataclass
class Ledger:
    """What one producer sent and what it was told."""

    stream: str
    sent: list[bytes] = field(default_factory=list)
    """Payloads in the order sent first."""
    acknowledged: dict[str, Position] = field(default_factory=dict)
    """Event id → place, from the first receipt."""
    refused: set[str] = field(default_factory=set)
    """Ids answered with a status that promises that nothing was stored (503, 4xx)."""
    unknown: set[str] = field(default_factory=set)
    answers: dict[str, int] = field(default_factory=dict)
    contradictions: list[str] = field(default_factory=list)

    def note(self, what: str) -> None:
        self.answers[what] = self.answers.get(what, 0) + 1

    def receipt(self, receipt: dict[str, Any]) -> None:
        place = (receipt["epoch"], int(receipt["partition"]), str(receipt["offset"]))
        first = self.acknowledged.setdefault(receipt["id"], place)
        if first != place:
            self.contradictions.append(f"{receipt['id']}: first {first}, then {place}")
        self.note("duplicate" if receipt["duplicate"] else "new")


class Producer:
    """A thread that produces until it is told to stop; `finish` lets it settle what it has begun."""

    def __init__(self, port: int, stream: str, *, pause: float = 0.0) -> None:
        self.ledger = Ledger(stream)
        self.error: BaseException | None = None
        self._port = port
        self._pause = pause
        self.never_sent = False
        self._number = 0
        self._stopping = threading.Event()
        self._giving_up = threading.Event()
        self._connection: http.client.HTTPConnection | None = None
        self._thread = threading.Thread(target=self._run, name=f"producer {stream}", daemon=True)

    def start(self) -> Producer:
        self._thread.start()
        return self

    def __enter__(self) -> Producer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Stop, whether it has settled or not."""
        self._stopping.set()
        self._giving_up.set()
        self._thread.join(30)

    def finish(self, timeout: float = 60.0) -> Ledger:
        self._stopping.set()
        self._thread.join(timeout)
        if self.error is not None:
            raise AssertionError(f"{self._thread.name}: {self.error!r}") from self.error
        assert not self._thread.is_alive(), f"{self._thread.name} could not settle: {self.ledger.answers}"
        return self.ledger

    def step(self) -> None:
        raise NotImplementedError

    def event(self) -> dict[str, Any]:
        self._number += 1
        data = {"n": self._number, "pad": "é\\u00e9 ☃ " + "x" * (self._number % 50)}
        self.ledger.sent.append(json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode())
        return {
            "specversion": "1.0", "id": f"{self.ledger.stream}/{self._number}", "source": "ledger", "type": "crash",
            "cdrsstream": self.ledger.stream, "data": data,
        }  # fmt: skip

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self.step()
                if self._pause:
                    time.sleep(self._pause)
        except BaseException as error:  # handed to finish()
            self.error = error
        finally:
            if self._connection is not None:
                self._connection.close()

    def post(
        self, path: str, body: bytes | Iterable[bytes], headers: dict[str, str]
    ) -> http.client.HTTPResponse | None:
        """Send and read the head; None where the connection broke. A body in pieces is sent chunked."""
        if self._giving_up.is_set():
            raise TimeoutError("the test has ended")
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        try:
            self._connection.request("POST", path, body=body, headers=headers)
            return self._connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self.broke(error)
            return None

    def broke(self, error: Exception) -> None:
        self.ledger.note(type(error).__name__)
        self.never_sent = isinstance(error, ConnectionRefusedError)
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        time.sleep(0.05)


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()


class BatchProducer(Producer):
    """Batches, repeated with the same ids until every event has its receipt; nothing newer before that."""

    size = 20

    def step(self) -> None:
        body = b"[" + b",".join(_line(self.event()) for _ in range(self.size)) + b"]"
        while True:
            response = self.post("/v1/events", body, {"content-type": "application/cloudevents-batch+json"})
            if response is None:
                continue
            try:
                text = response.read()
            except (OSError, http.client.HTTPException) as error:
                self.broke(error)
                continue
            self.ledger.note(f"status {response.status}")
            if response.status in (200, 201, 207):
                entries = json.loads(text)
                for entry in entries:
                    if "problem" not in entry:
                        self.ledger.receipt(entry)
                if not any("problem" in entry for entry in entries):
                    return
            elif response.status not in (500, 503, 504):
                raise AssertionError(f"{response.status}: {text[:300]!r}")
            time.sleep(0.05)


class NdjsonProducer(Producer):
    """NDJSON requests; whatever has no receipt when an answer is cut off is sent again with all its line mates."""

    size = 100

    def step(self) -> None:
        events = [self.event() for _ in range(self.size)]
        body = b"".join(_line(e) + b"\n" for e in events)
        while not all(e["id"] in self.ledger.acknowledged for e in events):
            response = self.post("/v1/events", body, {"content-type": "application/x-ndjson"})
            if response is None:
                continue
            self.ledger.note(f"status {response.status}")
            summary = False
            try:
                for line in response:
                    answer = json.loads(line)
                    if "id" in answer:
                        self.ledger.receipt(answer)
                    summary = "summary" in answer
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.broke(error)
                continue
            if not summary:
                self.ledger.note("no summary")
                self.broke(ConnectionError())


class OnceProducer(Producer):
    """Single POSTs, each tried exactly once: acknowledged, refused, or unknown for ever."""

    def step(self) -> None:
        event = self.event()
        payload = self.ledger.sent[-1]
        headers = {
            "content-type": "application/json", "ce-specversion": "1.0", "ce-id": event["id"], "ce-source": "ledger",
            "ce-type": "crash",
        }  # fmt: skip
        response = self.post(f"/v1/streams/{self.ledger.stream}/events", payload, headers)
        try:
            text = response.read() if response is not None else b""
        except (OSError, http.client.HTTPException) as error:
            self.broke(error)
            response = None
        if response is None and self.never_sent:
            self.ledger.refused.add(event["id"])
        elif response is None or response.status in (500, 504):
            self.ledger.unknown.add(event["id"])
        elif response.status in (200, 201):
            # 200, a duplicate: a node stored it and died before it could say so, and the next one found it.
            self.ledger.note(f"status {response.status}")
            self.ledger.receipt(json.loads(text))
        elif response.status == 503:
            self.ledger.note("status 503")
            self.ledger.refused.add(event["id"])
        else:
            raise AssertionError(f"{response.status}: {text[:300]!r}")
