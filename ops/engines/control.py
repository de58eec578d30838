"""The commands: start, stop, look at and disturb a set of engines."""

from __future__ import annotations

import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ops.engines import kafka, keeper, mongo, wine
from ops.engines.config import (
    FIRST_BASE_PORT,
    LAST_BASE_PORT,
    PORTS_PER_SET,
    EngineSet,
    Member,
    check_base_port,
    choose_base_port,
)
from ops.engines.errors import EngineError
from ops.engines.hazelcast import Hazelcast
from ops.engines.install import Programs, install
from ops.engines.processes import MARK, Launch, Process, Running, marked, start, stop, tail, wait_all
from ops.engines.progress import Progress
from ops.engines.state import FILE, State, load, locked

LOCK = "lock"
_POLL = 0.2
_PORT_WAIT = 5.0
_GRACE = 8.0
_WINE = "wine"


class Engine(Protocol):
    """What is particular to an engine."""

    def prepare(self, members: Sequence[Member]) -> None:
        """Make the members' folders ready for a start."""
        ...

    def launch(self, member: Member) -> Launch:
        """The command that starts a member."""
        ...

    def pending(self, running: Sequence[Running]) -> str:
        """What the running members still lack to be of use, in words; empty when nothing."""
        ...


def up(
    folder: Path, name: str, *, base_port: int | None, engines: tuple[str, ...], cache: Path, timeout: float
) -> None:
    """Start what does not run, and wait until all of it is ready."""
    began = time.monotonic()
    with locked(folder / LOCK), Progress() as progress:
        state = _open(folder, name, base_port, engines)
        programs = install(cache, state.engines.engines, progress)
        _check_mongod(state, programs)
        ready = time.monotonic()
        for each in state.alive():
            if each.process.is_paused():
                each.process.send(signal.SIGCONT)
        _start(state, {engine: state.stopped(engine) for engine in state.engines.engines}, programs, timeout, progress)
        times = f"downloads {ready - began:.1f} s, start {time.monotonic() - ready:.1f} s"
        if state.mongod == _WINE:
            keeper.start(folder, name, cache)
        progress.say(f"set {name!r} is ready ({times}); its folder is {folder}")


def start_members(folder: Path, names: Sequence[str], *, cache: Path, timeout: float) -> None:
    """Start these members on the folders they had, and wait until they are part of their clusters again."""
    need(folder)  # without a set there is nothing to lock, and no folder to make
    with locked(folder / LOCK), Progress() as progress:
        state = need(folder)
        members = [member for name in names for member in resolve(state, name)]
        alive = {each.member.name for each in state.alive()}
        stopped: dict[str, list[Member]] = {}
        for member in members:
            if member.name not in alive:
                stopped.setdefault(member.engine, []).append(member)
        _start(state, stopped, install(cache, list(stopped), progress), timeout, progress)


def down(folder: Path, *, purge: bool) -> None:
    """End every process of the set: with ``purge`` at once, and remove its folder; else in good order."""
    if not (folder / FILE).exists() and not (folder / LOCK).exists():
        # Its folder may have been removed under processes that still run.
        left = marked(MARK, folder)
        stop(left, 0.0)
        print(f"there is no set in {folder}; {len(left)} processes of one were ended", file=sys.stderr)
        return
    with locked(folder / LOCK):
        state = load(folder)
        stop([each.process for each in state.alive()] if state else [], 0.0 if purge else _GRACE)
        # Whatever else was started for the set: wine's services, or members that a killed `up` could not write down.
        stop(marked(MARK, folder), 0.0)
        if state is not None:
            state.running.clear()
            state.save()
        if purge:
            _purge(folder)


def send(folder: Path, names: Sequence[str], number: signal.Signals) -> list[str]:
    """Kill, pause or resume members; the names that were meant. Done when it returns."""
    need(folder)
    with locked(folder / LOCK):
        state = need(folder)
        alive = {each.member.name: each.process for each in state.alive()}
        members = list(dict.fromkeys(member.name for name in names for member in resolve(state, name)))
        if dead := [name for name in members if name not in alive]:
            raise EngineError(f"not running: {', '.join(dead)}")
        for name in members:
            alive[name].send(number)
        if number is signal.SIGKILL:
            if wait_all([alive[name] for name in members], 10.0):
                raise EngineError("a process did not end on SIGKILL within 10 s")
            for name in members:
                del state.running[name]
            state.save()
        else:
            _await_pause([alive[name] for name in members], paused=number is signal.SIGSTOP)
        return members


def keep(folder: Path, *, cache: Path) -> None:
    """Be the keeper of a set, until it is gone."""

    def replace(lost: list[Running]) -> list[Running]:
        with locked(folder / LOCK), Progress() as progress:
            state = need(folder)
            # Whoever held the set until now may have ended, paused or replaced them.
            still = [each for each in lost if each in state.running.values() and keeper.is_lost(each)]
            if still:
                engine = engine_of(state, "mongo", install(cache, ["mongo"], progress))
                _replace(state, engine, still, threading.Lock())
            return still

    keeper.keep(folder, replace)


def need(folder: Path) -> State:
    """The set in this folder; `EngineError` when there is none."""
    state = load(folder)
    if state is None:
        raise EngineError(f"there is no set in {folder}; `scripts/engines up` makes one")
    return state


def resolve(state: State, name: str) -> list[Member]:
    """Members by a name: one's own, an engine's for all of its members, or one of the roles ``mongo-primary`` and
    ``kafka-leader``."""
    if name in state.engines.engines:
        return state.engines.members(name)
    if name == "mongo-primary":
        return [state.engines.member(mongo.primary(state.awake("mongo")))]
    if name == "kafka-leader":
        return [state.engines.member(kafka.leader(state.awake("kafka")))]
    return [state.engines.member(name)]


def engine_of(state: State, name: str, programs: Programs) -> Engine:
    """The engine of a set by its name."""
    if name == "kafka":
        return kafka.Kafka(state.engines, programs.java, programs.jars, state.kafka_cluster)
    if name == "hazelcast":
        return Hazelcast(state.engines, programs.java, programs.jars)
    return mongo.Mongo(state.engines, programs.mongod, programs.wine)


def _open(folder: Path, name: str, base_port: int | None, engines: tuple[str, ...]) -> State:
    state = load(folder)
    if state is None:
        with locked(folder.parent / "ports.lock"):
            port = check_base_port(base_port) if base_port else _find_ports(folder, name)
            state = State(EngineSet(name=name, folder=folder, base_port=port, engines=engines), kafka.new_cluster_id())
            state.save()  # claims the ports
        return state
    was = state.engines
    if name != was.name:
        raise EngineError(f"{folder} holds the set {was.name!r}, not {name!r}")
    if base_port not in {None, was.base_port}:
        raise EngineError(
            f"set {name!r} was made with base port {was.base_port}, and its members know each other by their ports: "
            "`down --purge` first, or give another --set"
        )
    state.engines = replace(was, engines=tuple(dict.fromkeys([*was.engines, *engines])))
    return state


def _find_ports(folder: Path, name: str) -> int:
    claimed = [
        other.engines.base_port
        for each in folder.parent.glob(f"*/{FILE}")
        if each.parent != folder and (other := load(each.parent)) is not None
    ]
    # The first block stays with the set that people mean when they name none.
    first = FIRST_BASE_PORT if name == "default" else FIRST_BASE_PORT + PORTS_PER_SET
    blocks = range(first, LAST_BASE_PORT, PORTS_PER_SET)
    return choose_base_port(claimed, (base for base in blocks if not _taken(_ports(name, folder, base))))


def _ports(name: str, folder: Path, base_port: int) -> list[int]:
    return EngineSet(name=name, folder=folder, base_port=base_port).ports()


def _taken(ports: Sequence[int]) -> list[int]:
    taken: list[int] = []
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                taken.append(port)
    return taken


def _check_mongod(state: State, programs: Programs) -> None:
    if "mongo" not in state.engines.engines:
        return
    kind = "native" if programs.wine is None else _WINE
    if state.mongod not in {"", kind}:
        raise EngineError(
            f"the data folders of MongoDB were written by the {state.mongod} mongod, and now there is the {kind} one: "
            "`down --purge` first, or give another --set"
        )
    state.mongod = kind


def _start(
    state: State, stopped: dict[str, list[Member]], programs: Programs, timeout: float, progress: Progress
) -> None:
    saving = threading.Lock()

    def bring_up(name: str) -> None:
        engine, began = engine_of(state, name, programs), time.monotonic()
        members = stopped[name]
        for member in members:
            member.folder.mkdir(parents=True, exist_ok=True)
            member.log_file.touch()
        engine.prepare(members)
        _await_ports(state, members)
        for member in members:
            _launch(state, engine, member, saving)
        _await_ready(state, members, engine, name, began + timeout, progress.cancelled, saving)
        what = ", ".join(member.name for member in members) or "it ran already"
        progress.say(f"{name}: ready after {time.monotonic() - began:.1f} s ({what})")

    problems: list[str] = []
    with ThreadPoolExecutor(max_workers=3, thread_name_prefix="start") as pool:
        try:
            for future in as_completed([pool.submit(bring_up, name) for name in stopped]):
                try:
                    future.result()
                except EngineError as error:
                    problems.append(str(error))
        except KeyboardInterrupt:
            progress.cancelled.set()
            raise
    if problems:
        raise EngineError("\n".join(problems))


def _launch(state: State, engine: Engine, member: Member, saving: threading.Lock) -> None:
    with saving:
        state.running[member.name] = start(engine.launch(member), member, state.engines.folder)
        state.save()


def _replace(state: State, engine: Engine, hung: Sequence[Running], saving: threading.Lock) -> None:
    """SIGKILL, and a new process on the same folder."""
    members = [each.member for each in hung]
    for member in members:
        # Its wine server as well, which may be what hangs, and holds its port.
        stop(marked(wine.PREFIX, mongo.prefix(member)), 0.0)
    _await_ports(state, members)
    for member in members:
        _launch(state, engine, member, saving)


def _await_ports(state: State, members: Sequence[Member]) -> None:
    ports = [member.port for member in members]
    ports += [state.engines.controller_port(member.number) for member in members if member.engine == "kafka"]
    deadline = time.monotonic() + _PORT_WAIT
    while taken := _taken(ports):
        if time.monotonic() > deadline:
            raise EngineError(f"{members[0].engine}: something else listens on port {', '.join(map(str, taken))}")
        time.sleep(_POLL)


def _await_ready(
    state: State,
    started: Sequence[Member],
    engine: Engine,
    name: str,
    deadline: float,
    cancelled: threading.Event,
    saving: threading.Lock,
) -> None:
    watch = keeper.Watch() if name == "mongo" and state.mongod == _WINE else None
    while True:
        for member in started:
            if not (each := state.running[member.name]).process.is_alive():
                raise EngineError(f"{member.name} ended; its log says:\n{tail(member.log_file, each.log_from)}")
        awake = state.awake(name)
        if not (pending := engine.pending(awake)):
            return
        if watch is not None and (hung := watch.hung(awake)):
            _replace(state, engine, hung, saving)
        if time.monotonic() > deadline:
            logs = ", ".join(str(each.member.log_file) for each in awake)
            raise EngineError(f"{name} is not ready in time: {pending}. See {logs}")
        if cancelled.wait(_POLL):
            raise EngineError(f"{name}: broken off")


def _await_pause(processes: Sequence[Process], *, paused: bool) -> None:
    deadline = time.monotonic() + 5.0
    while any(process.is_alive() and process.is_paused() != paused for process in processes):
        if time.monotonic() > deadline:
            raise EngineError("a process did not stop or go on within 5 s")
        time.sleep(0.01)


def _purge(folder: Path) -> None:
    # By name and not the whole tree: --data may point at a folder that holds something else too.
    for pattern in ("kafka-?", "hazelcast-?", "mongo-?"):
        for each in folder.glob(pattern):
            shutil.rmtree(each)
    for name in (FILE, FILE + ".new", LOCK, keeper.LOCK, keeper.LOG):
        (folder / name).unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError:
        print(f"{folder} holds files of others and stays", file=sys.stderr)
