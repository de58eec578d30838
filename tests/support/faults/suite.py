"""One run of the suite on real processes: load, faults one after the other, then the verdict from histories alone."""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.checker import Verdict, check
from faults.figures import Figures, figures
from faults.history import Actor, Record
from faults.load import (
    WIDE,
    BatchProducer,
    HistorySubscriber,
    LineProducer,
    OnceProducer,
    Producer,
    TornProducer,
    dump,
    make_wide,
)
from faults.nemesis import FAULTS, Scene
from faults.proxy import FaultProxy
from faults.systems import CannotRun, System, Watcher

STREAMS = ("orders.eu", "orders.us", "audit", "chat.one", "chat.two")
CATCH_UP = 60.0


@dataclass
class Run:
    """What came of it."""

    seed: int
    verdict: Verdict
    figures: list[Figures]
    seconds: float
    connections: int
    skipped: dict[str, str] = field(default_factory=dict)
    steps: dict[str, Counter[str]] = field(default_factory=dict)
    """Fault → how often it was injected at which step, for those whose step is drawn."""
    is_broken_off: bool = False


Tell = Callable[[float, str], None]
"""Called with the share done and what goes on."""


def run(system: System, *, names: Sequence[str], seed: int, seconds: float, folder: Path, tell: Tell) -> Run:
    """Start the system, hurt it for so many seconds, let it heal, and judge. Each fault is injected at least once."""
    with ExitStack() as stack:
        tell(0.0, "starting")
        stack.callback(system.stop)
        system.start()
        system.wait_whole()
        return _run(system, stack, names=names, seed=seed, seconds=seconds, folder=folder, tell=tell)


def _run(
    system: System, stack: ExitStack, *, names: Sequence[str], seed: int, seconds: float, folder: Path, tell: Tell
) -> Run:
    proxy = FaultProxy(system.ports[0])
    stack.callback(proxy.close)
    make_wide(system.ports[0])
    producers = _producers(system, proxy, folder, seed)
    for producer in producers:
        stack.callback(producer.join, 15)
        stack.callback(producer.give_up)
    subscribers = _subscribers(system, proxy, folder)
    for subscriber in subscribers:
        stack.callback(subscriber.close)
        subscriber.start(30)
    watcher = Watcher(system.ports[1], folder)
    stack.callback(watcher.stop)
    for thread in (watcher, *producers):
        thread.start()
    scene = Scene(system, random.Random(seed), Actor("nemesis", folder), proxy, STREAMS, producers)
    stack.callback(scene.history.close)
    began = time.monotonic()
    run = Run(seed, Verdict(), [], 0.0, 0)
    troubles: list[tuple[str, str]] = []

    def load() -> str:
        return f"{sum(p.acknowledged for p in producers):,} acknowledged"

    try:
        _hurt(scene, run, names, seconds, began, lambda share, what: tell(share, f"{what}, {load()}"))
    except KeyboardInterrupt:
        run.is_broken_off = True
    except AssertionError as error:  # what was recorded until then is judged all the same
        troubles.append(("unhealed", f"{scene.name}: {error}"))
    tell(1.0, f"healing, {load()}")
    actors = [*producers, watcher, *subscribers]
    extra = _finish(system, producers, subscribers, folder)
    run.seconds = time.monotonic() - began
    run.connections = sum(subscriber.connections for subscriber in subscribers)
    records: list[Record] = [r for actor in actors for r in actor.history.records] + scene.history.records + extra
    tell(1.0, f"judging {len(records):,} records")
    run.verdict = check(records)
    for name, what in troubles + _troubles(producers, subscribers):
        run.verdict.add(name, what)
    run.figures = figures([actor.history.records for actor in actors] + [scene.history.records])
    for record in scene.history.records:
        if record.get("step"):
            run.steps.setdefault(record["name"], Counter())[record["step"]] += 1
    return run


def _producers(system: System, proxy: FaultProxy, folder: Path, seed: int) -> list[Producer]:
    first, second = system.ports
    plan: list[tuple[type[Producer], list[int], float]] = [
        (BatchProducer, [first, second], 0.02), (BatchProducer, [second, first], 0.02),
        (LineProducer, [first, second], 0.05), (OnceProducer, [first, second], 0.005),
        (OnceProducer, [second, first], 0.005), (BatchProducer, [proxy.port, second], 0.05),
        (TornProducer, [first], 0.05),
    ]  # fmt: skip
    return [
        kind(f"producer-{at}", ports, (*STREAMS, WIDE), folder, seed=seed, pause=pause)
        for at, (kind, ports, pause) in enumerate(plan)
    ]


def _subscribers(system: System, proxy: FaultProxy, folder: Path) -> list[HistorySubscriber]:
    first, second = system.ports
    return [
        HistorySubscriber("all", [first, second], [">"], folder),
        HistorySubscriber("orders", [first], ["orders.*"], folder),
        HistorySubscriber("audit", [second, first], ["audit"], folder),
        HistorySubscriber("keys", [first, second], [WIDE], folder),
        HistorySubscriber("through-proxy", [proxy.port], ["chat.one", "audit"], folder),
    ]


def _hurt(scene: Scene, run: Run, names: Sequence[str], seconds: float, began: float, tell: Tell) -> None:
    """Round after round in a new order, until the time is over; the first round is finished in any case."""
    time.sleep(1.0)
    rounds = 0
    while rounds == 0 or time.monotonic() - began < seconds:
        order = [name for name in names if name not in run.skipped]
        scene.random.shuffle(order)
        for at, name in enumerate(order):
            left = time.monotonic() - began
            if rounds and left > seconds:
                return
            share = min(max(left / seconds if seconds else 0.0, at / len(order) if not rounds else 0.0), 0.99)
            tell(share, f"{name} {FAULTS[name].about}")
            scene.number += 1
            scene.name = name
            try:
                FAULTS[name].inject(scene)
            except CannotRun as reason:
                run.skipped[name] = str(reason)
                continue
            finally:
                scene.history.write("fault", phase="stop", name=name, n=scene.number, target="")
            scene.system.wait_whole(90)
            for producer in scene.producers:
                producer.go_home()
            time.sleep(0.5 + scene.random.random())
        rounds += 1
        if not order or len(run.skipped) == len(names):
            return


def _finish(
    system: System, producers: Sequence[Producer], subscribers: Sequence[HistorySubscriber], folder: Path
) -> list[Record]:
    system.wait_whole(90)
    for producer in producers:
        producer.finish()
    deadline = time.monotonic() + CATCH_UP
    for producer in producers:
        producer.join(max(deadline - time.monotonic(), 0.1))
    time.sleep(1.5)  # what timed out may still be on its way into the log
    store = dump(system.ports[1], STREAMS, folder)
    ends: dict[str, dict[int, int]] = {}
    for record in store.records:
        lane = ends.setdefault(record["stream"], {})
        lane[record["position"][1]] = max(lane.get(record["position"][1], 0), record["position"][2] + 1)
    deadline = time.monotonic() + CATCH_UP
    while time.monotonic() < deadline and not all(_has_all(each, ends) for each in subscribers):
        time.sleep(0.1)
    time.sleep(0.5)
    return list(store.records)


def _has_all(subscriber: HistorySubscriber, ends: dict[str, dict[int, int]]) -> bool:
    from faults.checker import matches  # noqa: PLC0415

    return all(
        subscriber.reached.get(partition, 0) >= end
        for stream, lane in ends.items()
        if any(matches(pattern, stream) for pattern in subscriber.name_patterns)
        for partition, end in lane.items()
    )


def _troubles(producers: Sequence[Producer], subscribers: Sequence[HistorySubscriber]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for producer in producers:
        if producer.error is not None:
            found.append(("answer", f"{producer.name}: {producer.error!r}"))
        elif producer.is_alive():
            found.append(("stuck", f"{producer.name} could not settle what it had begun"))
    found += [("stream", f"{each.name}: {each.error!r}") for each in subscribers if each.error is not None]
    return found


# --- what people see ---------------------------------------------------------------------------------


def table(run: Run) -> str:
    """fault → observed, one line for each kind: the worst of its injections."""
    rows = [("fault", "what", "n", "detection", "failover", "longest gap", "silence", "failed", "lost", "doubled")]
    kinds = dict.fromkeys(each.name for each in run.figures)
    lost = sum(run.verdict.counts[name] for name in ("lost", "unseen", "gap", "un-shown"))
    doubled = run.verdict.counts["duplicate"]
    for name in sorted(kinds, key=lambda text: int(text[1:])):
        each = [figure for figure in run.figures if figure.name == name]
        rows.append((
            name, FAULTS[name].about, str(len(each)), _worst(f.detection for f in each),
            _worst(f.failover for f in each), _worst(f.gap for f in each), _worst(f.silence for f in each),
            str(max(f.failed for f in each)), str(lost), str(doubled),
        ))  # fmt: skip
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def steps(run: Run) -> list[str]:
    """Where processes were killed, one line for each kind of fault that has steps."""
    return [
        f"{name} killed at: " + ", ".join(f"{step} ({count})" for step, count in sorted(run.steps[name].items()))
        for name in sorted(run.steps, key=lambda text: int(text[1:]))
    ]


def _worst(values: Any) -> str:
    known = [value for value in values if value is not None]
    return f"{max(known) * 1000:,.0f} ms" if known else "-"


def write_summary(run: Run, folder: Path, system: System) -> None:
    """The verdict beside the histories, for machines."""
    summary = {
        "seed": run.seed, "profile": system.profile, "write_path": system.write_path,
        "seconds": round(run.seconds, 1), "ok": run.verdict.ok,
        "acknowledged": run.verdict.acknowledged, "stored": run.verdict.stored, "seen": run.verdict.seen,
        "violations": dict(run.verdict.counts), "connections": run.connections, "skipped": run.skipped,
        "steps": run.steps, "figures": [figure._asdict() for figure in run.figures],
    }  # fmt: skip
    (folder / "verdict.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


class Progress:
    """One line that is drawn again on a terminal; elsewhere a line for each new step."""

    def __init__(self) -> None:
        self._is_tty = sys.stderr.isatty()
        self._last = ""

    def __call__(self, share: float, what: str) -> None:
        if self._is_tty:
            filled = round(share * 24)
            sys.stderr.write(f"\r\x1b[2K[{'#' * filled}{'.' * (24 - filled)}] {share * 100:3.0f} % {what}")
            sys.stderr.flush()
        elif what != self._last:
            sys.stderr.write(f"{share * 100:3.0f} % {what}\n")
        self._last = what

    def end(self) -> None:
        if self._is_tty:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
