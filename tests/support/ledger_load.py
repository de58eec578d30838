"""Load on a gateway while something is hurt: producers whose ledgers are compared with what readers got."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack

from cdrs_process import wait_until
from exactly_once import check_exactly_once
from producers import BatchProducer, Ledger, NdjsonProducer, OnceProducer, Producer
from sse_socket import Subscriber, data_of


class SmallBatches(BatchProducer):
    """Few events at a time, so that streams have many receipts."""

    size = 5


class Trickle(NdjsonProducer):
    """Lines that come a few at a time, as one request: more of a stream is always behind what is on its way to a node,
    and must not overtake it."""

    size = 50

    def post(
        self, path: str, body: bytes | Iterable[bytes], headers: dict[str, str]
    ) -> http.client.HTTPResponse | None:
        assert isinstance(body, bytes)
        return super().post(path, trickle(body.splitlines(keepends=True)), headers)


def trickle(lines: Sequence[bytes]) -> Iterator[bytes]:
    for at in range(0, len(lines), 5):
        yield b"".join(lines[at : at + 5])
        time.sleep(0.02)


class LedgerLoad:
    """``each`` producers of three kinds, every one with a stream of its own, and readers of all of them."""

    def __init__(self, port: int, prefix: str, stack: ExitStack, *, each: int = 3, readers: int = 3) -> None:
        self.producers: list[Producer] = []
        self.readers = [stack.enter_context(Subscriber(port, f"{prefix}.>")) for _ in range(readers)]
        self._least = 2 * each
        for number in range(each):
            self.producers.append(SmallBatches(port, f"{prefix}.batch{number}", pause=0.02))
            self.producers.append(OnceProducer(port, f"{prefix}.once{number}", pause=0.02))
            self.producers.append(Trickle(port, f"{prefix}.lines{number}"))
        for producer in self.producers:
            stack.enter_context(producer)
        self._late = Subscriber(port, f"{prefix}.>", params={"from": "earliest"}, name="from earliest")
        self._stack = stack

    def go_on(self, what: str, timeout: float, *, more: int = 5) -> None:
        """Wait until every stream has so many more receipts."""
        began = time.monotonic()
        goals = [len(producer.ledger.acknowledged) + more for producer in self.producers]
        wait_until(
            lambda: all(len(p.ledger.acknowledged) >= goal for p, goal in zip(self.producers, goals, strict=True)),
            timeout,
            lambda: f"receipts after {what}: {[(p.ledger.stream, p.ledger.answers) for p in self.producers]}",
        )
        print(f"{what}: {more} more receipts for each stream after {time.monotonic() - began:.2f} s")

    @property
    def receipts(self) -> int:
        """So many have come."""
        return sum(len(producer.ledger.acknowledged) for producer in self.producers)

    def told(self, *statuses: int) -> int:
        """So often a request was answered with one of these."""
        return sum(p.ledger.answers.get(f"status {status}", 0) for p in self.producers for status in statuses)

    def finish(self) -> None:
        """Let all producers settle; then judge what every reader got, and what the history holds."""
        ledgers = [producer.finish() for producer in self.producers]
        for ledger in ledgers:
            print(ledger.stream, len(ledger.sent), "sent:", ledger.answers)
            assert not ledger.contradictions, ledger.contradictions[:3]
        wanted = {event_id for ledger in ledgers for event_id in ledger.acknowledged}
        for reader in [*self.readers, self._stack.enter_context(self._late)]:
            reader.wait(lambda r=reader: wanted <= set(ids(r)), 20, "everything acknowledged")
            self._check(reader, ledgers)
        orders = [by_stream(reader) for reader in self.readers]
        assert all(order == orders[0] for order in orders), "readers saw different orders"

    def _check(self, reader: Subscriber, ledgers: Sequence[Ledger]) -> None:
        check_reader(reader, ledgers)
        settled = {each.stream: each.sent for each in ledgers if len(each.acknowledged) == len(each.sent)}
        assert len(settled) >= self._least
        check_exactly_once([b for b in reader.blocks if stream_of(b.data) in settled], settled, reader.name)


def check_reader(reader: Subscriber, ledgers: Sequence[Ledger]) -> None:
    """Everything acknowledged, once and in the order sent; nothing that was refused; no gap."""
    assert not [block for block in reader.controls if block.event == b"cdrs.gap"], reader.summary()
    payloads: dict[str, list[bytes]] = {}
    places: dict[str, list[int]] = {}
    for event_id, block in zip(ids(reader), list(reader.blocks), strict=True):
        stream, _, number = event_id.partition("/")
        places.setdefault(stream, []).append(int(number))
        payloads.setdefault(stream, []).append(data_of(block.data))
    for ledger in ledgers:
        numbers = places.get(ledger.stream, [])
        assert len(numbers) == len(set(numbers)), f"{ledger.stream}: an event came twice"
        refused = {int(event_id.rpartition("/")[2]) for event_id in ledger.refused}
        assert not refused & set(numbers), f"{ledger.stream}: refused, and yet stored"
        assert payloads.get(ledger.stream, []) == [ledger.sent[number - 1] for number in numbers], ledger.stream
        known = [number for number in numbers if f"{ledger.stream}/{number}" in ledger.acknowledged]
        assert known == sorted(known), f"{ledger.stream}: out of order"


def ids(subscriber: Subscriber) -> list[str]:
    return [block.data.split(b'"id":"')[1].split(b'"')[0].decode() for block in list(subscriber.blocks)]


def by_stream(subscriber: Subscriber) -> dict[str, list[str]]:
    """Streams have an order. How several are merged may differ for one who was cut off and resumed."""
    found: dict[str, list[str]] = {}
    for event_id in ids(subscriber):
        found.setdefault(event_id.partition("/")[0], []).append(event_id)
    return found


def stream_of(data: bytes) -> str:
    """Ids of ledgers begin with their stream."""
    return data.split(b'"id":"')[1].split(b"/")[0].decode()
