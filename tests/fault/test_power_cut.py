"""F21: the power of every broker goes at once. What was acknowledged is kept by ``kafka.paranoid``; what the default
loses then is measured.

Killing a process loses nothing that the kernel holds, so the brokers' disk is an ext4 image on a loop device: at the
cut, the image as it stands, without what the kernel had not yet written to it, becomes the disk they start from again.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from engine_set import EngineSet, engine_url
from kafka_engine import KafkaTopics
from new_events import event, read

from shared.backends.kafka.log import KafkaLog
from shared.errors import CdrsError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

PARTITIONS = 3
BATCH = 50
ACKNOWLEDGED = 6_000
"""Events that must be acknowledged before the cut, which comes while more are on their way."""


@contextmanager
def disk(folder: Path) -> Iterator[tuple[Path, Path]]:
    """A mounted image, and where; skips the test where this machine allows no such thing."""
    image, mounted = folder / "disk.img", folder / "disk"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(4 << 30)
    try:
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True, capture_output=True)
        mount(image, mounted)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk of its own can be mounted here: {error}")
    try:
        yield image, mounted
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=False, capture_output=True)


def mount(image: Path, mounted: Path) -> None:
    subprocess.run(["mount", "-o", "loop", str(image), str(mounted)], check=True, capture_output=True)


def cut_power(brokers: EngineSet, image: Path, mounted: Path) -> None:
    """Everything ends at once, and the disk has what had reached it."""
    brokers("pause", "kafka")  # nobody writes while the image is taken
    after = image.with_suffix(".after")
    subprocess.run(["cp", "--sparse=always", str(image), str(after)], check=True)
    brokers("kill", "kafka")
    subprocess.run(["umount", "-l", str(mounted)], check=True)
    after.replace(image)
    mount(image, mounted)


async def append_until(cut: asyncio.Event, log: KafkaLog, acknowledged: list[set[bytes]]) -> None:
    """Append without a pause until the power goes; the identity of each event that was acknowledged, by partition."""

    async def one(partition: int) -> None:
        number = 0
        while not cut.is_set():
            batch = [event(f"{partition}-{number + n}", stream=f"s{partition}") for n in range(BATCH)]
            number += BATCH
            with suppress(CdrsError):
                await log.append(partition, batch, base=0)
                acknowledged[partition] |= {each.identity for each in batch}

    async with asyncio.TaskGroup() as group:
        for partition in range(PARTITIONS):
            group.create_task(one(partition))


async def lost_by_a_cut(brokers: EngineSet, image: Path, mounted: Path, *, paranoid: bool) -> tuple[int, int]:
    """How many events were acknowledged before the power went, and how many of them are not in the log afterwards."""
    topics, cut = KafkaTopics(brokers.url("kafka")), asyncio.Event()
    acknowledged: list[set[bytes]] = [set() for _ in range(PARTITIONS)]
    async with (
        topics.open(partitions=PARTITIONS, paranoid=paranoid) as log,
        asyncio.timeout(120),
        asyncio.TaskGroup() as group,
    ):
        group.create_task(append_until(cut, log, acknowledged))
        while sum(map(len, acknowledged)) < ACKNOWLEDGED:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(cut_power, brokers, image, mounted)
        cut.set()
    await brokers.run("start", "kafka")
    async with topics.open(partitions=PARTITIONS, paranoid=paranoid) as log:
        kept = [{record.identity for record in await read(log, each)} for each in range(PARTITIONS)]
    lost = sum(len(mine - those) for mine, those in zip(acknowledged, kept, strict=True))
    return sum(map(len, acknowledged)), lost


@pytest.mark.parametrize("paranoid", [True, False])
async def test_power_of_every_broker_is_cut(paranoid: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine_url("kafka")  # skips where no engines are wanted
    with disk(tmp_path) as (image, mounted):
        brokers = EngineSet(f"power-{os.getpid()}", mounted / "set")
        try:
            brokers("up", "--only", "kafka")
            os.sync()  # configuration and state of the set itself
            acknowledged, lost = await lost_by_a_cut(brokers, image, mounted, paranoid=paranoid)
        finally:
            brokers("down", "--purge")
    with capsys.disabled():
        print(f"\n  kafka.paranoid={paranoid}: {lost} of {acknowledged} acknowledged events were lost")
    if paranoid:
        assert lost == 0
