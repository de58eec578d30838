"""S6: a resume storm. Everybody comes back at once, 200 events behind, while events go on: to a gateway that was there
all the time, and to one that has just been started.

In turns with it F, plain send() in C, to which as many connect without wanting anything old: neither it nor a naive
server (B0) keeps what somebody has missed. It is what this loader and kernel need for the connections alone.
"""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cdrs_process import CdrsProcess, environment, pinned
from fan_out import STREAM, all_descriptors, compiled, floor
from machine import LOADER_CPUS, beside_the_loader, our_server, rss_kib, thread_seconds
from report import Result

RUNS = 3
CLIENTS = 5_000
WITNESSES = 100
BEHIND = 200
PLACES = 50
"""Different cursors among the clients."""
RATE = 50.0
QUIET = 5.0
BODY_BYTES = 200
PATH = f"/v1/streams/{STREAM}/events"
NOTHING = ("-", 2**32 - 1)
"""A place for F, which does not look at it: whatever comes first is right."""
OURS = ("nothing missed", "from memory", "after a restart")


class Publisher:
    """Events at a steady rate over one connection, until it is stopped."""

    def __init__(self, port: int, path: str = PATH) -> None:
        self.cursors: dict[int, str] = {}
        """Number → cursor, from the receipts."""
        self.number = 0
        self.refused: list[int] = []
        self._port = port
        self._path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def post(self, connection: http.client.HTTPConnection) -> None:
        number = self.number + 1
        head = f'{{"q":"{number:010d}","t":"{time.monotonic_ns():019d}","pad":"'
        body = (head + "x" * (BODY_BYTES - len(head) - 2) + '"}').encode()
        connection.request("POST", self._path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status == 201:
            self.number = number
            if text:  # F says nothing
                self.cursors[number] = json.loads(text)["cursor"]
        else:
            self.refused.append(answer.status)

    def fill(self, count: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        for _ in range(count):
            self.post(connection)
        connection.close()

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        due = time.monotonic()
        while not self._stop.wait(max(due - time.monotonic(), 0)):
            self.post(connection)
            due = max(due + 1 / RATE, time.monotonic() - 1)
        connection.close()

    def __enter__(self) -> Publisher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)


class Storm:
    """The compiled subscribers."""

    def __init__(self, process: subprocess.Popen[str], cursors: Path) -> None:
        self._process = process
        self._cursors = cursors
        assert self.line()["open"] == WITNESSES

    def line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        said: dict[str, Any] = json.loads(self._process.stdout.readline())
        return said

    def ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self.line()

    def come_back(self, cursors: list[tuple[str, int]]) -> dict[str, Any]:
        """All at once, each from one of these places; until the last one is live."""
        self._cursors.write_text("".join(f"{cursor} {number}\n" for cursor, number in cursors))
        return self.ask("storm")

    def cpu(self) -> float:
        """Seconds that they have used."""
        return thread_seconds(self._process.pid)


@contextmanager
def subscribers(port: int, path: str = PATH, mark: str = "event: cdrs.caught-up") -> Iterator[Storm]:
    with tempfile.NamedTemporaryFile() as cursors:
        argv = [str(compiled("storm")), str(port), str(WITNESSES), str(CLIENTS), path, cursors.name, str(BODY_BYTES)]
        process = subprocess.Popen(
            [*pinned(LOADER_CPUS), *argv], env=environment({"STORM_MARK": mark}), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=sys.stderr, text=True,
        )  # fmt: skip
        try:
            yield Storm(process, Path(cursors.name))
        finally:
            process.kill()
            process.wait(5)


def run(runs: int) -> Result:
    all_descriptors()
    rows: list[list[str]] = []
    found: dict[str, list[dict[str, Any]]] = {}
    with beside_the_loader():  # where the publisher runs
        for number in range(runs):
            for name in ("F", *OURS):
                said = floored() if name == "F" else one(name)
                found.setdefault(name, []).append(said)
                rows.append(row(number, name, said))
    medians = {
        name: {
            key: statistics.median(float(each[key]) for each in all_of)
            for key in ("seconds", "quiet", "during", "after", "cpu")
        }
        for name, all_of in found.items()
    }
    memory, cold, none, least = (medians[name] for name in ("from memory", "after a restart", "nothing missed", "F"))
    return Result(
        ["run", "what", "all live s", "mean s", "CPU s", "live p99 ms quiet", "storm p50", "storm p99", "storm max",
         "times", "p99, all live", "MiB", "loader", "pages asked", "all"],
        rows,
        f"all {CLIENTS:,} live after {memory['seconds']:.2f} s from memory (live p99 {memory['quiet']:.1f} -> "
        f"{memory['during']:.1f} ms, {memory['after']:.1f} ms with all of them live), "
        f"{cold['seconds']:.2f} s after a restart ({cold['quiet']:.1f} -> "
        f"{cold['during']:.1f}, {cold['after']:.1f} ms); 0 gaps, 0 repeats" + ("" if sound(found) else " NOT HELD"),
        f"{none['seconds']:.2f} s: as many come back and have missed nothing (live p99 {none['during']:.1f} ms); "
        f"F {least['seconds']:.2f} s (live p99 {least['during']:.1f} ms)",
        "all live <= 4 s, live p99 <= 3 x quiet, 0 gaps, 0 repeats",
        [f"each {BEHIND} to {BEHIND + PLACES} events of {BODY_BYTES} bytes behind; {RATE:.0f} events/s go on",
         f"live: as {WITNESSES} see it who were there before; server on one core, subscribers on the other",
         "pages asked: questions for history that the gateway put to its node; all: each event once and in order",
         "F: the same connections and events, nothing old; loader: the share of its core in the storm"],
        figures=figures(medians),
    )  # fmt: skip


def figures(medians: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Times in units of those with nothing missed, as F's are too short to be a measure; CPU in units of F's."""
    times = {"all live s": "seconds", "live p99 ms": "during"}
    waited = [(f"{unit}, {name}", name, key) for unit, key in times.items() for name in OURS[1:]]
    return {
        "cdrs": {figure: medians[name][key] for figure, name, key in waited}
        | {f"CPU s, {name}": medians[name]["cpu"] for name in OURS},
        "nothing missed": {figure: medians["nothing missed"][key] for figure, _, key in waited},
        "F": {f"CPU s, {name}": medians["F"]["cpu"] for name in OURS},
    }


def row(number: int, name: str, said: dict[str, Any]) -> list[str]:
    return [
        str(number + 1), name, f"{said['seconds']:.2f}", f"{said['mean']:.2f}", f"{said['cpu']:.2f}",
        f"{said['quiet']:.1f}", f"{said['p50_ms']:.1f}", f"{said['during']:.1f}", f"{said['max_ms']:.1f}",
        f"{said['during'] / max(said['quiet'], 0.001):.1f}", f"{said['after']:.1f}", f"{said['rss_kib'] / 1024:.0f}",
        f"{said['loader']:.2f}", str(said["pages"]), "yes" if said["sound"] else "NO",
    ]  # fmt: skip


def sound(found: dict[str, list[dict[str, Any]]]) -> bool:
    return all(said["sound"] for all_of in found.values() for said in all_of)


def one(name: str) -> dict[str, Any]:
    """A storm on ours."""
    with our_server() as cdrs:
        publisher = Publisher(cdrs.port)
        publisher.fill(BEHIND * 3)
        if name == "after a restart":
            cdrs.stop()
            cdrs.start()

        def places() -> list[tuple[str, int]]:
            last = publisher.number
            behind = 0 if name == "nothing missed" else BEHIND
            if name == "after a restart":
                last = BEHIND * 3  # of which this process has seen nothing
                behind = BEHIND - round((publisher.number - last) * 0.5)
            numbers = (last - behind - step for step in range(PLACES if behind else 1))
            return [(publisher.cursors[number], number) for number in numbers]

        with subscribers(cdrs.port) as storm, publisher:
            pages = asked(cdrs)
            said = stormed(name, storm, publisher, places, cdrs.pid)
            return said | {"pages": asked(cdrs) - pages}


def floored() -> dict[str, Any]:
    """As many come to F."""
    with floor() as server:
        publisher = Publisher(server.port, server.post)
        with subscribers(server.port, server.events, server.mark) as storm, publisher:
            return stormed("F", storm, publisher, lambda: [NOTHING], server.pids[0]) | {"pages": "-"}


def stormed(
    name: str, storm: Storm, publisher: Publisher, places: Callable[[], list[tuple[str, int]]], pid: int
) -> dict[str, Any]:
    """What the witnesses saw before, in and after the storm, and what it cost."""
    time.sleep(1)
    storm.ask("watch")
    time.sleep(QUIET)
    quiet = storm.ask("watch")
    cursors, cpu, own, began = places(), thread_seconds(pid), storm.cpu(), time.monotonic()
    said = storm.come_back(cursors)
    said["cpu"] = thread_seconds(pid) - cpu
    said["loader"] = (storm.cpu() - own) / (time.monotonic() - began)
    during = storm.ask("watch")
    time.sleep(1)
    storm.ask("watch")
    time.sleep(QUIET)
    after = storm.ask("watch")
    wrong = storm.ask(f"check {publisher.number}")
    said |= {"quiet": quiet["p99_ms"], "during": during["p99_ms"], "after": after["p99_ms"]}
    said |= {"p50_ms": during["p50_ms"], "max_ms": during["max_ms"], "rss_kib": rss_kib(pid)}
    faults = [wrong[key] for key in ("behind", "repeats", "gaps", "told", "lost")]
    said["sound"] = said["live"] == CLIENTS and not any(faults) and not publisher.refused
    if not said["sound"]:
        print(name, said, wrong, publisher.refused[:5], file=sys.stderr)
    return said


def asked(cdrs: CdrsProcess) -> int:
    """Questions for history that the gateway has put to nodes."""
    for line in cdrs.request("GET", "/metrics").body.decode().splitlines():
        if line.startswith("cdrs_history_questions_total "):
            return round(float(line.split()[1]))
    return -1
