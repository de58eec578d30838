"""MongoDB: a replica set of three, by the system's own mongod or by one that runs under wine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.engines import wine
from ops.engines.config import EngineSet, Member
from ops.engines.errors import EngineError
from ops.engines.mongo_wire import MongoError, command
from ops.engines.processes import Launch, Running

_ALREADY_INITIALIZED = 23


def prefix(member: Member) -> Path:
    """The wine prefix of a node."""
    return member.folder / "wine"


def options(engines: EngineSet, member: Member, *, dbpath: str) -> tuple[str, ...]:
    """The node's command line after the program."""
    return (
        *("--port", str(member.port), "--bind_ip", "127.0.0.1", "--dbpath", dbpath, "--replSet", engines.cluster),
        *("--wiredTigerCacheSizeGB", "0.25"),
        # 7.0.15 predates the fix of CVE-2025-14847, which needs zlib.
        *("--networkMessageCompressors", "disabled"),
        # Its collector ends the process under wine.
        *("--setParameter", "diagnosticDataCollectionEnabled=false"),
    )


def replica_set(engines: EngineSet) -> dict[str, Any]:
    """The configuration the set is made with: elections within about two seconds."""
    return {
        "_id": engines.cluster,
        "members": [
            {"_id": member.number - 1, "host": f"127.0.0.1:{member.port}"} for member in engines.members("mongo")
        ],
        "settings": {"electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 500},
    }


@dataclass(frozen=True, slots=True)
class Mongo:
    """How to start the nodes of a set, make them a replica set, and tell that it takes majority writes."""

    engines: EngineSet
    mongod: Path
    wine: wine.Wine | None
    """None: ``mongod`` is a program of this system."""

    def prepare(self, members: Sequence[Member]) -> None:
        """Data folders and wine prefixes."""
        for member in members:
            (member.folder / "data").mkdir(exist_ok=True)
            if self.wine is not None:
                self.wine.prepare(prefix(member))

    def launch(self, member: Member) -> Launch:
        """The node's command."""
        data = member.folder / "data"
        if self.wine is None:
            return Launch((self.mongod, *options(self.engines, member, dbpath=str(data))))
        words = options(self.engines, member, dbpath=wine.windows_path(data))
        return Launch((self.wine.program, self.mongod, *words), self.wine.environment(prefix(member)))

    def pending(self, running: Sequence[Running]) -> str:
        """What is not ready yet; empty when there is a primary, every other running node follows it, and a majority has
        written. With less than a majority running, answering is all one can ask. Makes the replica set once."""
        states: dict[str, Mapping[str, Any]] = {}
        for each in running:
            try:
                states[each.member.name] = command(each.member.port, {"hello": 1, "$db": "admin"})
            except (OSError, MongoError) as error:
                return f"{each.member.name} does not answer ({error or type(error).__name__})"
        if len(running) < 2:
            return ""
        if not any("setName" in state for state in states.values()):
            return self._initiate(running)
        primary = next((each for each in running if states[each.member.name].get("isWritablePrimary")), None)
        if primary is None:
            return "no primary is elected yet"
        for name, state in states.items():
            if not state.get("secondary") and name != primary.member.name:
                return f"{name} does not follow yet"
        note: dict[str, Any] = {"appendOplogNote": 1, "data": {"ready": "?"}, "$db": "admin"}
        note["writeConcern"] = {"w": "majority", "j": True, "wtimeout": 2000}
        try:
            command(primary.member.port, note)
        except (OSError, MongoError) as error:
            return f"no majority write yet ({error or type(error).__name__})"
        return ""

    def _initiate(self, running: Sequence[Running]) -> str:
        if len(running) < len(self.engines.members("mongo")):
            return "the replica set was never made, and that takes all of its nodes"
        request = {"replSetInitiate": replica_set(self.engines), "$db": "admin"}
        try:
            command(running[0].member.port, request, timeout=15)
        except MongoError as error:
            if error.code != _ALREADY_INITIALIZED:
                return f"the replica set cannot be made ({error})"
        except OSError as error:
            return f"the replica set cannot be made ({error or type(error).__name__})"
        return "no primary is elected yet"


def role(member: Member) -> str:
    """primary, secondary, or empty when it does not say."""
    try:
        state = command(member.port, {"hello": 1, "$db": "admin"}, timeout=0.5)
    except (OSError, MongoError):
        return ""
    return "primary" if state.get("isWritablePrimary") else "secondary" if state.get("secondary") else ""


def primary(running: Sequence[Running]) -> str:
    """The name of the primary."""
    for each in running:
        if role(each.member) == "primary":
            return each.member.name
    raise EngineError("there is no primary now")
