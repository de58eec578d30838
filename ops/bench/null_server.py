"""`cdrs up` in one process on a log that keeps nothing: what everything but the disk costs.

``python null_server.py PORT FOLDER``
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from services import launcher
from services.process import run_server
from shared.backplane import Ports
from shared.direct import Appended
from shared.ports import NodeRegistry
from shared.position import Epoch
from shared.records import Duplicate, LogBatch, NewEvent, Record, StreamInfo
from shared.settings import Settings

PARTITIONS = 12


class NullLog:
    """`EventLog` and `EventStore` at once. A record is there until the tail has read it; identities are ignored."""

    epoch = Epoch(1, 1)
    partitions = PARTITIONS
    decides_identity = True
    is_log = True

    def __init__(self) -> None:
        self._next = dict.fromkeys(range(PARTITIONS), 0)
        self._unread: dict[int, list[Record]] = {}
        self._grown = asyncio.Event()

    def append_all(self, appends: Sequence[tuple[int, Sequence[NewEvent], Appended]]) -> None:
        now = time.time_ns() // 1_000_000
        for partition, events, _ in appends:
            start = self._next[partition]
            self._unread.setdefault(partition, []).extend(
                Record(
                    partition, offset, now, event.identity, event.stream, event.key, event.value, event.data_at,
                    event.kind, event.accepted_ms,
                )
                for offset, event in enumerate(events, start)
            )  # fmt: skip
            self._next[partition] = start + len(events)
        self._grown.set()
        for _, events, appended in appends:
            appended([None] * len(events))

    async def append(self, partition: int, events: Sequence[NewEvent], *, base: int) -> Sequence[Duplicate | None]:
        self.append_all([(partition, events, lambda _: None)])
        return [None] * len(events)

    def tail(self, _positions: Mapping[int, int]) -> NullLog:
        return self

    async def poll(self, *, max_records: int, timeout: float) -> Sequence[LogBatch]:
        if not self._unread:
            self._grown.clear()
            try:
                async with asyncio.timeout(timeout):
                    await self._grown.wait()
            except TimeoutError:
                return []
        unread, self._unread = self._unread, {}
        return [LogBatch(p, records[0].offset, records[-1].offset + 1, records) for p, records in unread.items()]

    async def close(self) -> None:
        """Nothing to close."""

    async def ends(self) -> Mapping[int, int]:
        return dict(self._next)

    checkpoints = ends

    async def starts(self) -> Mapping[int, int]:
        return dict.fromkeys(range(PARTITIONS), 0)

    async def stream(self, name: str) -> StreamInfo | None:
        return StreamInfo(name, 1, 0)


@asynccontextmanager
async def open_ports(
    _settings: Settings, _clock: object, *, registry: NodeRegistry, waiting: object
) -> AsyncGenerator[Ports]:
    log: Any = NullLog()
    yield Ports(log, log, registry)


def main(port: int, folder: Path) -> int:
    launcher.open_ports = open_ports  # type: ignore[assignment]
    settings = Settings(data=folder)
    settings = settings.model_copy(update={"gateway": settings.gateway.model_copy(update={"port": port})})

    async def ready(_url: str) -> None:
        """Asked for over HTTP."""

    async def role(stop: asyncio.Event) -> None:
        await launcher.run_all_in_one(settings, stop, ready)

    return run_server(role, log_level="warning")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2])))
