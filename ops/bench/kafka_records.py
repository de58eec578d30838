"""Events for benchmarks of the Kafka adapter alone."""

from __future__ import annotations

import asyncio

from new_events import event

from shared.backends.kafka.log import KafkaLog
from shared.records import NewEvent

PARTITIONS = 12
BATCH = 1000
PAYLOAD = (
    b'{"page":"Talk:Oswald Tilghman","user":"GELongstreet","added":36,"deleted":0,"delta":36,"isRobot":false,'
    b'"comment":"/* top */ added project","namespace":"Talk","isNew":false,"isAnonymous":false}'
)


def made(count: int, name: str = "") -> list[NewEvent]:
    """Different events, with ordering keys."""
    return [event(f"{name}{n:08d}", stream=f"s{n % 50}", data=PAYLOAD, key=f"page {n % 1000}") for n in range(count)]


async def fill(log: KafkaLog, count: int) -> None:
    """So many events into an empty log, the same number into each partition."""
    share = count // PARTITIONS

    async def one(partition: int) -> None:
        mine = made(share, f"{partition}-")
        for at in range(0, share, BATCH):
            await log.append(partition, mine[at : at + BATCH], base=at)

    await asyncio.gather(*[one(partition) for partition in range(PARTITIONS)])
