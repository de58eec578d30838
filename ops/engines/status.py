"""What runs, where, and whether it is of use."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from ops.engines import mongo
from ops.engines.config import settings_of
from ops.engines.control import Engine
from ops.engines.state import State


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """One member."""

    name: str
    state: str
    """``running``, ``paused`` or ``down``."""
    port: int
    pid: int | None
    memory_mib: int
    cpu_seconds: float
    role: str
    """MongoDB: ``primary`` or ``secondary``; else empty."""
    log: str


def member_statuses(state: State) -> list[MemberStatus]:
    """Every member of the set."""
    alive = {each.member.name: each.process for each in state.alive()}
    found: list[MemberStatus] = []
    for member in state.engines.members():
        process = alive.get(member.name)
        what = "down" if process is None else "paused" if process.is_paused() else "running"
        found.append(
            MemberStatus(
                name=member.name,
                state=what,
                port=member.port,
                pid=process.pid if process else None,
                memory_mib=process.memory() >> 20 if process else 0,
                cpu_seconds=process.cpu_seconds() if process else 0.0,
                role=mongo.role(member) if what == "running" and member.engine == "mongo" else "",
                log=str(member.log_file),
            )
        )
    return found


def pending(state: State, engine: Engine, name: str) -> str:
    """What an engine lacks to be complete and ready, in words; empty when nothing."""
    awake = {each.member.name for each in state.awake(name)}
    missing = [member.name for member in state.engines.members(name) if member.name not in awake]
    return f"not running: {', '.join(missing)}" if missing else engine.pending(state.awake(name))


def as_tree(state: State, lacks: dict[str, str]) -> dict[str, Any]:
    """For ``status --json``."""
    members = member_statuses(state)
    return {
        "set": state.engines.name,
        "folder": str(state.engines.folder),
        "ready": not any(lacks.values()),
        "pending": {name: lack for name, lack in lacks.items() if lack},
        "settings": settings_of(state.engines),
        "members": [
            {slot: getattr(member, slot) for slot in ("name", "state", "port", "pid", "memory_mib", "cpu_seconds")}
            | {"role": member.role, "log": member.log}
            for member in members
        ],
        "as_of": round(time.time(), 3),
    }


def as_text(tree: dict[str, Any]) -> str:
    """The same for people."""
    lines = [f"set {tree['set']}: {'ready' if tree['ready'] else 'not ready'}, in {tree['folder']}"]
    lines += [f"  {name}: {lack}" for name, lack in tree["pending"].items()]
    lines.append(f"{'member':<12} {'state':<8} {'port':>5} {'pid':>8} {'MiB':>5} {'CPU s':>7}  role")
    for each in tree["members"]:
        numbers = f"{each['port']:>5} {each['pid'] or '-':>8} {each['memory_mib']:>5} {each['cpu_seconds']:>7.1f}"
        lines.append(f"{each['name']:<12} {each['state']:<8} {numbers}  {each['role']}".rstrip())
    total = sum(each["memory_mib"] for each in tree["members"])
    lines.append(f"together {total} MiB resident")
    return "\n".join(lines)
