"""Hazelcast for tests: registries on a cluster that all share, and a cluster that can be cut in two."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import time
import uuid
from collections.abc import AsyncGenerator, Collection, Generator, Iterable
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from pathlib import Path

import pytest
from engine_set import engine_url

from ops.engines.config import EngineSet, default_cache
from ops.engines.hazelcast import Hazelcast, configuration
from ops.engines.install import find_java
from shared.backends.hazelcast.registry import HazelcastRegistry, open_hazelcast_registry
from shared.settings import RegistrySettings


def new_prefix() -> str:
    """For structures that no other test sees."""
    return f"cdrs-test-{uuid.uuid4().hex[:12]}"


def shared_cluster() -> str:
    """Its URL; skips the test where there is none."""
    return engine_url("hazelcast")


@asynccontextmanager
async def connected(url: str, settings: RegistrySettings, *, prefix: str) -> AsyncGenerator[HazelcastRegistry]:
    """A registry that has found its cluster."""
    async with open_hazelcast_registry(url, settings, prefix=prefix) as registry:
        await found(registry)
        yield registry


async def found(registry: HazelcastRegistry, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while registry.detail:
        assert time.monotonic() < deadline, registry.detail
        await asyncio.sleep(0.01)


class Unfeasible(Exception):
    """The system does not allow networks of our own."""


class PartedCluster:
    """Three members, each in a network namespace of its own. Clients outside reach all of them, whatever is cut."""

    def __init__(self, folder: Path) -> None:
        jars = default_cache(os.environ) / "jars"
        if not list(jars.glob("hazelcast-*.jar")):
            raise Unfeasible("Hazelcast was never downloaded")
        self._name = f"cdrs{uuid.uuid4().hex[:6]}"
        self._net = f"198.18.{random.randrange(1, 255)}"
        """Addresses that are set aside for tests of networks."""
        self._set = EngineSet(name=self._name, folder=folder, base_port=5680, engines=("hazelcast",))
        self._hazelcast = Hazelcast(self._set, find_java(os.environ), jars)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        return self.url_of((1, 2, 3))

    def url_of(self, numbers: Collection[int]) -> str:
        """With the addresses of these members only."""
        hosts = [f"{self._address(each.number)}:{each.port}" for each in self._set.members() if each.number in numbers]
        return f"hazelcast://{','.join(hosts)}/{self._set.cluster}"

    def up(self) -> None:
        """Start the members; raises `Unfeasible` where that cannot be done."""
        try:
            _ip("link", "add", self._name, "type", "bridge")
            _ip("addr", "add", f"{self._net}.254/24", "dev", self._name)
            _ip("link", "set", self._name, "up")
            for number in (1, 2, 3):
                self._connect(number)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Unfeasible(f"no networks of our own: {error}") from error
        for member in self._set.members():
            member.folder.mkdir(parents=True)
            tree = json.loads(configuration(self._set, member))
            network = tree["hazelcast"]["network"]
            network["interfaces"]["interfaces"] = [self._address(member.number)]
            members = [f"{self._address(each.number)}:{each.port}" for each in self._set.members()]
            network["join"]["tcp-ip"]["member-list"] = members
            (member.folder / "hazelcast.yaml").write_text(json.dumps(tree), encoding="utf-8")
            command = [str(part) for part in self._hazelcast.launch(member).argv]
            with member.log_file.open("wb") as log:
                self._processes[member.number] = subprocess.Popen(
                    ["ip", "netns", "exec", self._namespace(member.number), *command], stdout=log, stderr=log
                )

    def _connect(self, number: int) -> None:
        space, outer = self._namespace(number), f"{self._name}v{number}"
        _ip("netns", "add", space)
        _ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", outer, "master", self._name, "up")
        _ip("-n", space, "addr", "add", f"{self._address(number)}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        _ip("-n", space, "link", "set", "lo", "up")

    def cut(self, some: Collection[int], others: Collection[int]) -> None:
        """From now on nothing passes between these and those."""
        self._routes("add", some, others)

    def heal(self, some: Collection[int], others: Collection[int]) -> None:
        """Undo `cut`. Idempotent."""
        self._routes("del", some, others)

    def _routes(self, verb: str, some: Collection[int], others: Collection[int]) -> None:
        for here, there in [(a, b) for a in some for b in others]:
            for at, to in ((here, there), (there, here)):
                route = ("route", verb, "blackhole", f"{self._address(to)}/32")
                with suppress(subprocess.CalledProcessError) if verb == "del" else nullcontext():
                    _ip("-n", self._namespace(at), *route)

    def stop(self, number: int) -> None:
        """SIGSTOP."""
        self._processes[number].send_signal(signal.SIGSTOP)

    def go_on(self, number: int) -> None:
        """SIGCONT."""
        self._processes[number].send_signal(signal.SIGCONT)

    def seen_by(self, number: int) -> list[int]:
        """The members that this one said last that its cluster has, the oldest first."""
        log = self._set.members()[number - 1].log_file.read_text(encoding="utf-8", errors="replace")
        lists = re.findall(r"Members \{size:\d+.*\n((?:\tMember .*\n)+)", log)
        return [int(each) for each in re.findall(r"\.(\d+)\]:", lists[-1])] if lists else []

    async def agree(self, *halves: Iterable[int], seconds: float = 90) -> None:
        """Wait until each of these sees its own half as the whole cluster."""
        deadline = time.monotonic() + seconds
        for half in map(set, halves):
            while not all(set(self.seen_by(number)) == half for number in half):
                assert time.monotonic() < deadline, {number: self.seen_by(number) for number in (1, 2, 3)}
                await asyncio.sleep(0.1)

    def down(self) -> None:
        """End everything. Idempotent."""
        for process in self._processes.values():
            process.kill()
            process.wait(10)
        for number in (1, 2, 3):
            with suppress(OSError, subprocess.CalledProcessError):
                _ip("link", "del", f"{self._name}v{number}")
            with suppress(OSError, subprocess.CalledProcessError):
                _ip("netns", "del", self._namespace(number))
        with suppress(OSError, subprocess.CalledProcessError):
            _ip("link", "del", self._name)

    def _address(self, number: int) -> str:
        return f"{self._net}.{number}"

    def _namespace(self, number: int) -> str:
        return f"{self._name}n{number}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


@contextmanager
def parted_cluster(folder: Path) -> Generator[PartedCluster]:
    """Skips the test where the system does not allow it."""
    engine_url("hazelcast")
    cluster: PartedCluster | None = None
    try:
        try:
            cluster = PartedCluster(folder)
            cluster.up()
        except Unfeasible as error:
            pytest.skip(str(error))
        yield cluster
    finally:
        if cluster is not None:
            cluster.down()
