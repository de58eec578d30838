"""F22: packets between a gateway and its nodes get lost, on both ways or on one, and connections are reset. What was
acknowledged stands in its stream once and in order; whoever reads misses nothing; and traffic goes on by itself.

Nodes say that they are reached at an address where only a lossy link listens. The registry does not lie on that way: it
calls a node alive all the time, so that a gateway has to find out by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from cdrs_process import CdrsProcess, free_port, wait_until
from engine_place import own_place
from ledger_load import LedgerLoad
from lossy_link import LossyLink
from write_paths import portable_slow

pytestmark = pytest.mark.timeout(120)

LOST = 3.0
"""Seconds during which packets get lost."""
HEALS_WITHIN = 20.0
"""Seconds after which every stream has receipts again. 3 to 4 are usual: a link is given up after 2.5 s of silence.
Where only requests get lost the feed is not silent, and an attempt takes its whole time: 4 s, and 6.4 s on Kafka."""
ENV = {"CDRS_GATEWAY__PRODUCE_TIMEOUT": "2"}
"""Less than the time without packets: what is under way then has to be repeated, with the same ids."""
slow = pytest.mark.slow


@dataclass
class World:
    """A gateway, and nodes that it reaches over links only."""

    gateway: CdrsProcess
    nodes: Sequence[CdrsProcess]
    links: Sequence[LossyLink]
    stack: ExitStack

    def are_live(self) -> bool:
        """Whether the registry calls every node alive."""
        return [node["state"] for node in self.gateway.nodes()] == ["live"] * len(self.nodes)

    def load(self) -> LedgerLoad:
        load = LedgerLoad(self.gateway.port, "lost", self.stack)
        load.go_on("the load", 20)
        return load


@contextmanager
def deployed(folder: Path, profile: str, *, nodes: int) -> Iterator[World]:
    with ExitStack() as stack:
        env: Mapping[str, str] = {**(stack.enter_context(own_place()).env if profile == "engines" else {}), **ENV}
        data = [] if profile == "engines" else ["--data", str(folder / "data")]
        links, processes = list[LossyLink](), list[CdrsProcess]()
        for number in range(nodes):
            port = free_port()
            link = stack.enter_context(LossyLink(port))
            links.append(link)
            own = {**env, "CDRS_NODE__URL": link.url, "CDRS_NODE__ID": f"node-{number}"}
            processes.append(CdrsProcess(folder / f"node-{number}", data, port, own, role="node"))
        gateway = CdrsProcess(folder / "gateway", data, env=env, role="gateway")
        for each in [*processes, gateway]:
            stack.callback(each.stop)
            each.start(wait=False)
        for each in [*processes, gateway]:
            each.wait_ready(60)
        world = World(gateway, processes, links, stack)
        wait_until(world.are_live, 20, "the gateway to know its nodes")
        yield world


def hold(seconds: float) -> None:
    """The fault lasts so long."""
    threading.Event().wait(seconds)


@portable_slow
@pytest.mark.parametrize("profile", ["embedded", pytest.param("engines", marks=slow)])
def test_packets_lost_on_the_way_to_every_node(tmp_path: Path, profile: str) -> None:
    with deployed(tmp_path, profile, nodes=2) as cdrs:
        load = cdrs.load()
        for what, directions in (("both ways lost", {}), ("answers lost", {"up": False})):
            for link in cdrs.links:
                link.lose(**directions)
            load.readers[1].cut()  # it comes back while no node can be asked
            hold(LOST / 2)
            before = load.receipts
            hold(LOST / 2)
            assert load.receipts == before, "somebody was served all the same"
            for link in cdrs.links:
                link.heal()
            load.go_on(what, HEALS_WITHIN)
        for number in range(6):
            cdrs.links[number % 2].reset()
            load.go_on("a reset", HEALS_WITHIN, more=1)
        load.finish()
        assert load.readers[0].connections == 1


@portable_slow
@pytest.mark.parametrize(
    ("profile", "directions"),
    [
        pytest.param("embedded", {"up": False}, id="answers"),
        pytest.param("embedded", {"down": False}, id="requests", marks=slow),
        pytest.param("embedded", {}, id="both ways", marks=slow),
        pytest.param("engines", {"up": False}, id="answers, engines", marks=slow),
        pytest.param("engines", {"down": False}, id="requests, engines", marks=slow),
    ],
)
def test_a_gateway_cut_from_one_node_goes_on_with_the_other(
    tmp_path: Path, profile: str, directions: dict[str, bool]
) -> None:
    with deployed(tmp_path, profile, nodes=2) as cdrs:
        cut = cdrs.links[0]
        load = cdrs.load()
        for node in cdrs.nodes:
            wait_served(node)
        cut.lose(**directions)
        load.go_on("cut from one of two", HEALS_WITHIN)
        wait_until(cdrs.are_live, 5, "a node that cannot be reached, and yet is alive")
        cut.heal()
        wait_served(cdrs.nodes[0])
        load.go_on("healed", HEALS_WITHIN)
        load.finish()
        assert [reader.connections for reader in load.readers] == [1] * len(load.readers)


def wait_served(node: CdrsProcess) -> None:
    """Until it gets handoffs, from now on."""

    def appends() -> float:
        text = node.request("GET", "/metrics").body.decode()
        name = "cdrs_log_append_duration_seconds_count"
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(name))

    before = appends()
    wait_until(lambda: appends() > before + 5, 2 * HEALS_WITHIN, f"{node.folder.name} to get handoffs", every=0.1)
