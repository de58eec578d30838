"""The hand that hurts: every fault of the catalogue that is injected into real processes, by its number."""

from __future__ import annotations

import json
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from cdrs_process import request, wait_until
from faults.history import Actor, sha_of
from faults.load import SOURCE, Producer
from faults.proxy import FaultProxy
from faults.systems import NODES, STALL, System

BOTH = ("embedded", "distributed")
ANY_MOMENT = "any moment"
REACHED_WITHIN = 20.0
"""Seconds under load for a process to come to a step that is armed."""


@dataclass
class Scene:
    """What an injection may use."""

    system: System
    random: random.Random
    history: Actor
    proxy: FaultProxy
    streams: Sequence[str]
    producers: Sequence[Producer]
    number: int = 0
    name: str = ""
    decks: dict[str, list[str]] = field(default_factory=dict)
    """Fault → of the moments at which it may come, those that are still to come before one comes again."""

    def node(self) -> str:
        return f"node-{self.random.randint(1, NODES)}"

    def draw(self, *moments: str) -> str:
        deck = self.decks.setdefault(self.name, [])
        if not deck:
            deck += self.random.sample(moments, len(moments))
        return deck.pop()

    def begin(self, target: str, *, step: str = "", t: int | None = None) -> None:
        """The very moment of the injection, unless ``t`` says when it was; ``step``: where a process died."""
        self.history.write("fault", t=t, phase="start", name=self.name, n=self.number, target=target, step=step)

    def hold(self, seconds: float) -> None:
        time.sleep(seconds)


class Fault(NamedTuple):
    """One kind of injection."""

    about: str
    inject: Callable[[Scene], None]
    profiles: tuple[str, ...] = BOTH


def _dies(role: str, *steps: str) -> Callable[[Scene], None]:
    """SIGKILL at any moment or, if the seed says so, at one of these steps. Where nobody comes to it, at any moment."""

    def inject(scene: Scene) -> None:
        step = scene.draw(ANY_MOMENT, *steps)
        name = scene.node() if role == "node" else role
        if step != ANY_MOMENT:
            if _dies_at(scene, step):
                return
            step = f"{ANY_MOMENT}, as nobody came to {step}"
        pid = scene.system.pid(name)
        scene.begin(name, step=step)
        _signal(pid, signal.SIGKILL)

    return inject


def _dies_at(scene: Scene, step: str) -> bool:
    """Whether a process was killed at this step."""
    names = {pid: name for name, pid in scene.system.processes().items()}
    scene.system.failpoints.arm(step)
    try:
        hit = scene.system.failpoints.wait(step, REACHED_WITHIN)
    except TimeoutError:
        return False
    scene.begin(names.get(hit.pid, "unknown"), step=step, t=hit.t)
    return True


def _stop_gateway(scene: Scene) -> None:
    pid = scene.system.pid("gateway")
    scene.begin("gateway")
    _signal(pid, signal.SIGSTOP)
    scene.hold(3 + 2 * scene.random.random())
    _signal(pid, signal.SIGCONT)


def _stop_node(scene: Scene) -> None:
    """Longer than it takes to be declared dead; it comes back as a zombie."""
    name = scene.node()
    pid = scene.system.pid(name)
    scene.begin(name)
    _signal(pid, signal.SIGSTOP)
    scene.hold(3 + 2 * scene.random.random())
    _signal(pid, signal.SIGCONT)


def _stall_node(scene: Scene) -> None:
    name = scene.node()
    pid = scene.system.pid(name)
    scene.begin(name)
    _signal(pid, signal.SIGUSR2)
    scene.hold(STALL)


def _await_end(pid: int) -> None:
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 30, "the process to end")


def _terminate(scene: Scene) -> None:
    """Each role in turn, as a rolling restart does it."""
    for name in [*(f"node-{n}" for n in range(1, NODES + 1)), "gateway"]:
        pid = scene.system.pid(name)
        if name == "node-1":
            scene.begin(name)
        _signal(pid, signal.SIGTERM)
        _await_end(pid)
        scene.system.wait_whole()


def _storm(scene: Scene) -> None:
    """Nodes die one after the other, faster than they come back."""
    scene.begin("nodes")
    for _ in range(5):
        for name, pid in scene.system.processes().items():
            if name != "gateway" and scene.random.random() < 0.5:
                _signal(pid, signal.SIGKILL)
        scene.hold(0.7)


def _same_id_at_once(scene: Scene) -> None:
    """One event, two gateways, many connections at the same instant: one place, one receipt."""
    stream, event_id = scene.random.choice(scene.streams), f"burst-{scene.number}"
    payload = b'{"burst":%d}' % scene.number
    named = {"stream": stream, "source": SOURCE, "id": event_id, "op": f"burst-{scene.number}"}
    scene.history.write("invoke", key=None, sha=sha_of(payload), **named)
    scene.begin("gateways")
    gate = threading.Barrier(48)

    def post(port: int) -> None:
        headers = {
            "content-type": "application/json", "ce-specversion": "1.0", "ce-id": event_id, "ce-source": SOURCE,
            "ce-type": "t",
        }  # fmt: skip
        gate.wait(10)
        with suppress(OSError):
            answer = request(port, "POST", f"/v1/streams/{stream}/events", payload, headers)
            if answer.status in (200, 201):
                receipt = answer.json()
                place = [receipt["epoch"], receipt["partition"], int(receipt["offset"])]
                scene.history.write("ok", position=place, duplicate=receipt["duplicate"], **named)

    threads = [threading.Thread(target=post, args=(scene.system.ports[n % 2],), daemon=True) for n in range(48)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)


def _full_disk(scene: Scene) -> None:
    scene.begin("disk")
    ballast = scene.system.fill_disk()
    try:
        scene.hold(3)
    finally:
        ballast.unlink()


def _out_of_memory(scene: Scene) -> None:
    """The kernel ends a node that wants more memory than there is left for it, for a request that is never complete."""
    name = scene.node()
    pid = scene.system.pid(name)
    nodes = request(scene.system.ports[1], "GET", "/v1/nodes", headers={"accept": "application/json"}).json()["nodes"]
    url = urlsplit(next(each["url"] for each in nodes if each["id"] == name and each["state"] == "live"))
    with socket.create_connection((url.hostname or "", url.port or 0), timeout=5) as sock:
        sock.sendall(b"POST /internal/v1/handoffs HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n\r\n")
        with scene.system.no_more_memory(pid):
            scene.begin(name)
            with suppress(OSError):
                for _ in range(29):
                    sock.sendall(bytes(1_000_000))
            _await_end(pid)


def _jump_clock(scene: Scene) -> None:
    """An hour ahead or back for some seconds, and then right again: a jump in each direction."""
    ahead = scene.random.choice((3600, -3600))
    scene.begin(f"clock {ahead:+d} s")
    try:
        scene.system.jump_clock(ahead)
        scene.hold(4)
    finally:
        scene.system.jump_clock(0)
    scene.hold(2)


def _lost_packets(scene: Scene) -> None:
    """Everything between some clients and a gateway vanishes, in one direction or both; no connection ends."""
    both = scene.random.choice(("up", "down", "both"))
    scene.begin(f"clients {both}")
    scene.proxy.drops_up = both != "down"
    scene.proxy.drops_down = both != "up"
    scene.hold(3)
    scene.proxy.drops_up = scene.proxy.drops_down = False
    scene.proxy.cut()  # what was lost will never come: a TCP stack would end these too


def _cut_connections(scene: Scene) -> None:
    scene.begin("clients")
    for _ in range(5):
        scene.proxy.cut()
        scene.hold(0.2)


def _frozen_subscriber(scene: Scene) -> None:
    """Asks for everything and reads nothing; nobody else may notice. Those behind the proxy stand still as long, fall
    behind, and are given all of it when they go on."""
    scene.begin("subscriber")
    scene.proxy.holds = True
    sock = socket.create_connection(("127.0.0.1", scene.system.ports[0]), timeout=5)
    try:
        sock.sendall(b"GET /v1/events?stream=%3E&from=earliest HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(4):
            sock.recv(1)
            scene.hold(1)
    finally:
        scene.proxy.holds = False
        sock.close()


def _crowd(scene: Scene) -> None:
    """A gateway dies with many open streams; each comes back to a place of its own."""
    port = scene.system.ports[0]
    socks = []
    with suppress(OSError):
        for _ in range(200):
            sock = socket.create_connection(("127.0.0.1", port), timeout=5)
            sock.sendall(b"GET /v1/events?stream=%3E HTTP/1.1\r\nHost: x\r\n\r\n")
            socks.append(sock)
    pid = scene.system.pid("gateway")
    scene.begin("gateway")
    _signal(pid, signal.SIGKILL)
    for sock in socks:
        sock.close()


def _engine(*members: str, hold: float, back: str = "start", how: str = "kill") -> Callable[[Scene], None]:
    def inject(scene: Scene) -> None:
        hurt = []
        scene.begin(",".join(members))
        for member in members:
            hurt += scene.system.engines(how, member).split()
        scene.hold(hold)
        scene.system.engines(back, *dict.fromkeys(hurt))

    return inject


def _roll_back(scene: Scene) -> None:
    """A primary that no secondary follows takes writes that cannot reach a majority, and dies; the others elect a new
    one without them, and the old one returns and must roll them back."""
    scene.begin("mongo")
    members = json.loads(scene.system.engines("status", "--json"))["members"]
    secondaries = [each["name"] for each in members if each["role"] == "secondary"]
    (primary,) = [each["name"] for each in members if each["role"] == "primary"]
    scene.system.engines("pause", *secondaries)
    scene.hold(1.5)  # less than it takes to step down
    scene.system.engines("kill", primary)
    scene.system.engines("resume", *secondaries)
    scene.hold(4)
    scene.system.engines("start", primary)


def _signal(pid: int, number: int) -> None:
    import os  # noqa: PLC0415

    with suppress(ProcessLookupError):
        os.kill(pid, number)


EMBEDDED = ("embedded",)
DISTRIBUTED = ("distributed",)
FAULTS: dict[str, Fault] = {
    "F1": Fault("gateway SIGKILL under load, or before the handoff", _dies("gateway", "gateway-accepted")),
    "F2": Fault("gateway SIGKILL under load, or before the reply", _dies("gateway", "gateway-answered")),
    "F3": Fault("gateway SIGSTOP 3-5 s, then on", _stop_gateway),
    "F5": Fault("one id, 48 connections, two gateways at once", _same_id_at_once),
    "F7": Fault("node SIGKILL under load, or before it has stored", _dies("node", "node-judged", "persist-read")),
    "F8": Fault(
        "node SIGKILL under load, or when it has stored",
        _dies("node", "node-appended", "node-answering", "persist-written", "persist-recorded"),
    ),
    "F9": Fault("node SIGSTOP 3-5 s, back as a zombie", _stop_node),
    "F10": Fault(f"node's event loop stalled {STALL:g} s", _stall_node),
    "F11": Fault("SIGTERM to each role, one after the other", _terminate),
    "F12": Fault("nodes killed faster than they return", _storm),
    "F14": Fault("Kafka partition leader SIGKILL", _engine("kafka-leader", hold=4), DISTRIBUTED),
    "F15": Fault("two of three Kafka brokers SIGKILL", _engine("kafka-1", "kafka-2", hold=4), DISTRIBUTED),
    "F16": Fault("Kafka broker SIGSTOP 8 s", _engine("kafka-2", hold=8, how="pause", back="resume"), DISTRIBUTED),
    "F20": Fault("disk of the log full for 3 s", _full_disk, EMBEDDED),
    "F26": Fault("MongoDB primary SIGKILL", _engine("mongo-primary", hold=4), DISTRIBUTED),
    "F28": Fault("MongoDB primary without followers, dead, rolled back", _roll_back, DISTRIBUTED),
    "F29": Fault("no MongoDB majority for 10 s", _engine("mongo-1", "mongo-2", hold=10), DISTRIBUTED),
    "F33": Fault("Hazelcast member SIGKILL", _engine("hazelcast-1", hold=4), DISTRIBUTED),
    "F34": Fault("whole Hazelcast cluster SIGKILL, back empty", _engine("hazelcast", hold=4), DISTRIBUTED),
    "F36": Fault("wall clock of a gateway and the nodes jumps an hour, and back", _jump_clock),
    "F37": Fault("subscribers that read one byte a second, or nothing for 4 s", _frozen_subscriber),
    "F38": Fault("packets of clients vanish for 3 s", _lost_packets),
    "F39": Fault("gateway SIGKILL with 200 more streams", _crowd),
    "F42": Fault("node ended by the kernel, out of memory", _out_of_memory),
    "F45": Fault("client connections reset in the middle of a write", _cut_connections),
}
"""F4 (bodies cut half-way, or answers never read) is part of the load and runs all the time."""
