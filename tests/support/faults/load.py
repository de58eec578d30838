"""Producers and subscribers that can be believed: plain sockets, own parsers, every step written into a history."""

from __future__ import annotations

import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from faults.cursors import read_cursor
from faults.history import Actor, sha_of
from sse_socket import Block, Subscriber, data_of

SOURCE = "/faults"
WIDE = "keys"
"""The stream whose keys lie in several partitions."""
SPREAD = 4
KEYS = 9
Event = dict[str, Any]


class Producer(threading.Thread):
    """Sends request after request to one of several gateways, and the same again to the next one until each event has
    its receipt. ``request`` is what the kinds differ in."""

    size = 20

    def __init__(
        self, name: str, ports: Sequence[int], streams: Sequence[str], folder: Path | None, *, seed: int, pause: float
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.history = Actor(name, folder)
        self.acknowledged = 0
        self.error: BaseException | None = None
        self._home = list(ports)
        self._ports = list(ports)
        self._streams = streams
        self._random = random.Random(f"{seed}/{name}")
        self._pause = pause
        self._op = 0
        self._number = 0
        self._finishing = threading.Event()
        self._giving_up = threading.Event()
        self._homing = threading.Event()
        self._connection: http.client.HTTPConnection | None = None

    def finish(self) -> None:
        """Begin nothing new; what is under way is settled."""
        self._finishing.set()

    def give_up(self) -> None:
        self._finishing.set()
        self._giving_up.set()

    def go_home(self) -> None:
        """Begin the next request at the first of the gateways again: whoever has left one that died would else stay
        away, and the next death would find nobody there."""
        self._homing.set()

    def run(self) -> None:
        try:
            while not self._finishing.is_set():
                if self._homing.is_set():
                    self._homing.clear()
                    self._ports = list(self._home)
                    self._close()
                self.step([self._event() for _ in range(self.size)])
                self._finishing.wait(self._pause * self._random.random() * 2)
        except BaseException as error:  # told by the runner
            self.error = error
        finally:
            self._close()
            self.history.close()

    def step(self, events: list[Event]) -> None:
        """Until all of it has receipts, the settled ones sent along each time."""
        left = {event["id"] for event in events}
        while left and not self._giving_up.is_set():
            left -= self._attempt(events)
            if left:
                self._ports.append(self._ports.pop(0))
                self._close()
                time.sleep(0.02)

    def _event(self) -> Event:
        self._number += 1
        stream = self._random.choice(self._streams)
        keyed = {"partitionkey": f"k{self._random.randrange(KEYS)}"} if stream == WIDE else {}
        data = {"n": self._number, "pad": "é ☃ " + "x" * (self._number % 60)}
        return {
            "specversion": "1.0", "id": f"{self.name}-{self._number}", "source": SOURCE, "type": "t",
            "cdrsstream": stream, **keyed, "data": data,
        }  # fmt: skip

    def _write(self, kind: str, event: Event, **fields: Any) -> None:
        self.history.write(kind, op=self._op, stream=event["cdrsstream"], source=SOURCE, id=event["id"], **fields)

    def _attempt(self, events: list[Event]) -> set[str]:
        """One request; returns the ids that have receipts."""
        self._op += 1
        for event in events:
            self._write("invoke", event, **_lane(event), gateway=self._ports[0])
        answers: dict[str, tuple[str, Any]] = {}
        rest = ("info", "no answer")
        try:
            rest = self.request(events, answers)
        except ConnectionRefusedError:
            rest = ("fail", "refused")
        except (OSError, http.client.HTTPException, ValueError) as error:
            rest = ("info", type(error).__name__)
        if rest[0] != "ok" and len(answers) < len(events):
            self._close()
        done: set[str] = set()
        for event in events:
            kind, what = answers.get(event["id"], rest)
            if kind == "ok":
                self._write("ok", event, position=what[0], duplicate=what[1])
                done.add(event["id"])
            else:
                self._write(kind, event, why=what)
        self.acknowledged += len(done)
        return done

    def request(self, events: list[Event], answers: dict[str, tuple[str, Any]]) -> tuple[str, Any]:
        """Send it, enter answers by id; returns what holds for all others."""
        body = b"[" + b",".join(map(_line, events)) + b"]"
        response = self._send("/v1/events", body, {"content-type": "application/cloudevents-batch+json"})
        text = response.read()
        if response.status not in (200, 201, 207):
            return _refusal(response.status, text)
        for at, entry in enumerate(json.loads(text)):
            if "problem" in entry:
                answers[events[at]["id"]] = _refusal(entry["status"], json.dumps(entry["problem"]).encode())
            else:
                answers[events[at]["id"]] = _receipt(entry)
        return "ok", None

    def _send(self, path: str, body: bytes, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._ports[0], timeout=12)
        self._connection.request("POST", path, body=body, headers=dict(headers))
        return self._connection.getresponse()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _lane(event: Event) -> dict[str, Any]:
    return {"key": event.get("partitionkey"), "sha": sha_of(_payload(event))}


def _line(event: Event) -> bytes:
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()


def _payload(event: Event) -> bytes:
    return json.dumps(event["data"], ensure_ascii=False, separators=(",", ":")).encode()


def _receipt(entry: Mapping[str, Any]) -> tuple[str, Any]:
    return "ok", ([entry["epoch"], entry["partition"], int(entry["offset"])], entry["duplicate"])


def _refusal(status: int, text: bytes) -> tuple[str, Any]:
    if status in (429, 503):
        return "fail", status
    if status in (500, 504):
        return "info", status
    raise AssertionError(f"status {status}: {text[:300]!r}")


class BatchProducer(Producer):
    """JSON batches."""


class LineProducer(Producer):
    """NDJSON, whose answer streams."""

    size = 60

    def request(self, events: list[Event], answers: dict[str, tuple[str, Any]]) -> tuple[str, Any]:
        body = b"".join(_line(event) + b"\n" for event in events)
        response = self._send("/v1/events", body, {"content-type": "application/x-ndjson"})
        if response.status != 200:
            return _refusal(response.status, response.read())
        for line in response:
            answer = json.loads(line)
            if "id" in answer:
                answers[answer["id"]] = _receipt(answer)
            elif "problem" in answer:
                problem = answer["problem"]
                answers[events[answer["line"] - 1]["id"]] = _refusal(problem["status"], line)
        return "info", "cut off"


class OnceProducer(Producer):
    """Single POSTs, each tried once."""

    size = 1

    def step(self, events: list[Event]) -> None:
        if not self._attempt(events):
            self._ports.append(self._ports.pop(0))
            self._close()
            time.sleep(0.02)

    def request(self, events: list[Event], answers: dict[str, tuple[str, Any]]) -> tuple[str, Any]:
        (event,) = events
        headers = {
            "content-type": "application/json", "ce-specversion": "1.0", "ce-id": event["id"], "ce-source": SOURCE,
            "ce-type": "t", **({"ce-partitionkey": event["partitionkey"]} if "partitionkey" in event else {}),
        }  # fmt: skip
        response = self._send(f"/v1/streams/{event['cdrsstream']}/events", _payload(event), headers)
        text = response.read()
        if response.status not in (200, 201):
            return _refusal(response.status, text)
        answers[event["id"]] = _receipt(json.loads(text))
        return "ok", None


class TornProducer(Producer):
    """F4: cuts the connection half-way in the body (then nothing may be stored), or behind it without reading."""

    size = 3

    def step(self, events: list[Event]) -> None:
        self._op += 1
        for event in events:
            self._write("invoke", event, **_lane(event), gateway=self._ports[0])
        body = b"[" + b",".join(map(_line, events)) + b"]"
        is_torn = self._random.random() < 0.5
        part = body[: self._random.randint(1, len(body) - 1)] if is_torn else body
        head = (
            f"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/cloudevents-batch+json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        kind, why = ("fail", "torn") if is_torn else ("info", "not read")
        try:
            with socket.create_connection(("127.0.0.1", self._ports[0]), timeout=5) as sock:
                sock.sendall(head.encode() + part)
        except ConnectionRefusedError:
            kind, why = "fail", "refused"
        except OSError as error:
            why = type(error).__name__
        for event in events:
            self._write(kind, event, why=why)
        time.sleep(0.05)


class HistorySubscriber(Subscriber):
    """`sse_socket.Subscriber` that writes its history and may change the gateway with each connection."""

    def __init__(self, name: str, ports: Sequence[int], streams: Sequence[str], folder: Path | None) -> None:
        super().__init__(ports[0], streams, params={"stamps": "true", "from": "earliest"}, name=name)
        self.history = Actor(name, folder)
        self.reached: dict[int, int] = {}
        self.received = 0
        self.name_patterns = list(streams)
        self._ports = list(ports)
        self._conn = 0
        self._epoch = ""

    def _connection(self) -> str:
        self._conn += 1
        self._address = (self._address[0], self._ports[self._conn % len(self._ports)])
        end = super()._connection()
        self.history.write("end", conn=self._conn, why=end)
        return end

    def _request(self) -> bytes:
        resume = read_cursor(self.last_id.decode())[1] if self.last_id else None
        self.history.write("open", conn=self._conn, streams=self.name_patterns, resume=resume, epoch=self._epoch)
        return super()._request()

    def _take(self, blocks: list[Block]) -> bool:
        for block in blocks:
            if not block.is_control or block.event == b"cdrs.cursor":
                self._place(block)
            elif block.event == b"cdrs.gap":
                detail = json.loads(block.data)
                self.history.write(
                    "gap", conn=self._conn, reason=detail["reason"], partition=detail.get("partition"),
                    to=detail.get("to"), next=read_cursor(detail["resumes_at"])[1], **{"from": detail.get("from")},
                )  # fmt: skip
        whole = super()._take(blocks)
        self.blocks.clear()  # the history has them
        self.controls.clear()
        return whole

    def _place(self, block: Block) -> None:
        self._epoch, vector = read_cursor(block.id.decode())
        if block.is_control:
            self.history.write("cursor", conn=self._conn, epoch=self._epoch, next=vector)
        else:
            event = json.loads(block.data)
            epoch, partition, offset = event["cdrsposition"].split("/")
            self.received += 1
            self.history.write(
                "recv", conn=self._conn, stream=event["cdrsstream"], source=event["source"], id=event["id"],
                sha=sha_of(data_of(block.data)), position=[epoch, int(partition), int(offset)], next=vector,
            )  # fmt: skip
        for partition, offset in vector.items():
            self.reached[partition] = max(self.reached.get(partition, 0), offset)

    def close(self) -> None:
        super().close()
        self.history.close()


def make_wide(port: int) -> None:
    """Create `WIDE`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    body = json.dumps({"spread": SPREAD})
    connection.request("PUT", f"/v1/streams/{WIDE}", body=body, headers={"content-type": "application/json"})
    status = connection.getresponse().status
    connection.close()
    assert status in (200, 201), status


def dump(port: int, streams: Sequence[str], folder: Path | None) -> Actor:
    """The final history of every stream, read page by page over HTTP, and of `WIDE`."""
    store = Actor("store", folder)
    _dump_wide(port, store)
    for stream in streams:
        at = "earliest"
        while True:
            page = _page(port, f"/v1/streams/{stream}/events?limit=1000&from={quote(at)}")
            for item in page["events"]:
                event = item["event"]
                epoch, vector = read_cursor(item["cursor"])
                ((partition, following),) = vector.items()
                # Encoded as producers do; that the very bytes arrive is what subscribers judge.
                data = json.dumps(event["data"], ensure_ascii=False, separators=(",", ":")).encode()
                store.write(
                    "store", stream=event["cdrsstream"], source=event["source"], id=event["id"], sha=sha_of(data),
                    position=[epoch, partition, following - 1],
                )  # fmt: skip
            at = page["next"]
            if page["at_end"]:
                break
    store.close()
    return store


def _dump_wide(port: int, store: Actor) -> None:
    """Over SSE: the cursors of a page do not say where an event stands, if there are several partitions."""
    with Subscriber(port, [WIDE], params={"stamps": "true", "from": "earliest"}, name="wide") as reader:
        reader.wait(lambda: any(each.event == b"cdrs.caught-up" for each in reader.controls), 90, "all of its history")
        for block in reader.blocks:
            event = json.loads(block.data)
            epoch, partition, offset = event["cdrsposition"].split("/")
            store.write(
                "store", stream=event["cdrsstream"], source=event["source"], id=event["id"],
                sha=sha_of(data_of(block.data)), position=[epoch, int(partition), int(offset)],
            )  # fmt: skip


def _page(port: int, path: str) -> Any:
    for attempt in range(20):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("GET", path, headers={"accept": "application/json"})
            response = connection.getresponse()
            text = response.read()
            if response.status == 200:
                return json.loads(text)
        except (OSError, http.client.HTTPException):
            text = b"no connection"
        finally:
            connection.close()
        time.sleep(0.1 * (attempt + 1))
    raise AssertionError(f"{path} cannot be read: {text[:300]!r}")
