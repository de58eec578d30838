"""Histories: what producers, subscribers and the hand that hurts did and saw, as JSON lines, one file for each actor.

Every record has ``type``, ``actor`` and ``t`` (nanoseconds of one monotonic clock). Positions are ``[epoch, partition,
offset]``, vectors ``{partition: next offset}``; an event is named by ``stream``, ``source`` and ``id``.

========  ==========================================================================================================
type      fields
========  ==========================================================================================================
invoke    op, stream, source, id, key, sha: this event is sent as part of request ``op``
ok        op, stream, source, id, position, duplicate: a receipt
fail      op, stream, source, id, why: a status that promises that this attempt stored nothing
info      op, stream, source, id, why: nobody can tell (504, a broken connection)
open      conn, streams (names and patterns), resume (vector or null), epoch: a subscriber connects
cursor    conn, epoch, next (vector): a cursor block
recv      conn, stream, source, id, sha, position, next (vector of its id line)
gap       conn, reason, partition, from, to (null = all partitions, unknown range), next (where reading goes on)
end       conn, why: the connection is over
store     stream, source, id, sha, position: one event of the final history, as read after everything healed
version   name, number, sha, replicas: (hash, copies) of an object's version as read at the end
fault     name, phase (start or stop), n, target, step (where the process died, for those that die at one)
told      target, state: the registry's picture told of a member's new state
note      anything for people
========  ==========================================================================================================
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

Record = dict[str, Any]


def sha_of(payload: bytes) -> str:
    """What stands for a payload in a history."""
    return hashlib.blake2b(payload, digest_size=12).hexdigest()


class Actor:
    """One actor's history: in memory, and in its file if it has one. Thread-safe: lines are whole."""

    def __init__(self, name: str, folder: Path | None = None) -> None:
        self.name = name
        self.records: list[Record] = []
        self._lock = threading.Lock()
        self._file: IO[str] | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / f"{name}.jsonl").open("w", encoding="utf-8")

    def write(self, kind: str, *, t: int | None = None, **fields: Any) -> Record:
        """Add a record, now unless ``t`` says when."""
        record = {"type": kind, "actor": self.name, "t": time.monotonic_ns() if t is None else t, **fields}
        with self._lock:
            self.records.append(record)
            if self._file is not None:
                self._file.write(json.dumps(record, separators=(",", ":")) + "\n")
        return record

    def close(self) -> None:
        """Flush and close the file."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None


def read_folder(folder: Path) -> list[Record]:
    """Every actor's records, each in its order. Raises ``ValueError`` that names file and line."""
    found: list[Record] = []
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                record = json.loads(line)
                record["type"], record["actor"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path.name} line {number} is no history record: {line[:80]!r}") from error
            if "next" in record and isinstance(record["next"], dict):
                record["next"] = vector(record["next"])
            if isinstance(record.get("resume"), dict):
                record["resume"] = vector(record["resume"])
            found.append(record)
    return found


def vector(offsets: Mapping[Any, int]) -> dict[int, int]:
    """A vector with numbers for keys, which JSON turned into text."""
    return {int(partition): offset for partition, offset in offsets.items()}


def merged(actors: Iterable[Actor]) -> list[Record]:
    """The records of several actors, actor by actor."""
    return [record for actor in actors for record in actor.records]
