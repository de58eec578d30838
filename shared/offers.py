"""What a log or a store may offer beside its port (`shared.ports`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from shared.records import Expiry, FormerEpoch


@runtime_checkable
class ExpiringStore(Protocol):
    """What a store may offer beside `EventStore`: to delete what is too old."""

    async def expire(self, expiry: Expiry) -> bool:
        """Delete a bounded piece of what has expired; whether there may be more.

        From each partition's beginning on, and never at or beyond the checkpoint. The floor is raised before what is
        below it is deleted, or together with it, so whoever reads the floor after a page knows what the page may lack.
        Any number of processes may do it at once. Identities outlive their events: until ``until_ms`` copies are known.
        Raises `Unavailable` or `OutcomeUnknown`; then it is to be repeated.
        """
        ...


@runtime_checkable
class DatedLog(Protocol):
    """What a log may offer beside `EventLog` that somebody may delete and make anew under its name."""

    async def firsts(self) -> Mapping[int, tuple[int, int]]:
        """Per partition that has any records, offset and stamp of the first one kept, as the log says at this moment.

        The stamp is the time at which the log took the record, in ms, and never above the record's append time. While
        the log is the same one, an offset has one stamp, and lower offsets have no later ones. Raises `Unavailable`.
        """
        ...


class Replicas(NamedTuple):
    """Who keeps copies of a partition, by the numbers of the brokers."""

    all: frozenset[int]
    in_sync: frozenset[int]
    """Those that have everything; only these can take over."""


@runtime_checkable
class ReplicatedLog(Protocol):
    """What a log may offer beside `EventLog`: who keeps copies of its partitions."""

    def replicas(self) -> Mapping[int, Replicas]:
        """Per partition, as last seen, some seconds old at most; empty while it is not known."""
        ...


@runtime_checkable
class SuccessorLog(Protocol):
    """What a log may offer beside `EventLog`: which incarnations it goes on with."""

    @property
    def former(self) -> Sequence[FormerEpoch]:
        """Earlier incarnations of this log, in any order. Constant while it is open."""
        ...

    @property
    def origins(self) -> Mapping[int, int]:
        """Per partition the offset of the first record that was ever written in this incarnation; 0 if not named."""
        ...


@runtime_checkable
class TrimmableLog(Protocol):
    """What a log may offer beside `EventLog` that is not the store too: to let go of what is stored."""

    async def trim(self, below: Mapping[int, int]) -> None:
        """Partition → delete its records below this offset, for good. It may keep some of them, and may show them
        again for a while. Nothing at or above it goes. Idempotent. Raises `Unavailable` where any partition could not
        be asked; the others were all the same, and it is to be repeated.
        """
        ...
