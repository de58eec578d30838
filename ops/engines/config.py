"""Which processes belong to a set of engines, and where: names, ports, folders. No I/O."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ops.engines.errors import EngineError

ENGINES = ("kafka", "hazelcast", "mongo")
"""Every engine, in the order they are shown."""
SIZE = 3
"""Members of each engine: the smallest number of which one may die."""
FIRST_BASE_PORT = 19_100
PORTS_PER_SET = 40
"""A set's ports are its base port + 1 … + 33: brokers, controllers, Hazelcast members, MongoDB nodes, ten apart."""
LAST_BASE_PORT = 32_768 - PORTS_PER_SET
"""Above, the kernel hands out ports to clients, so a member's port could be taken while it is down."""

_OFFSETS = {"kafka": 0, "hazelcast": 20, "mongo": 30}
_CONTROLLERS = 10
_SET_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


@dataclass(frozen=True, slots=True)
class Member:
    """One process of one engine."""

    engine: str
    number: int
    """1, 2 or 3."""
    port: int
    """Where clients reach it, on 127.0.0.1."""
    folder: Path
    """Its configuration, data and log file."""

    @property
    def name(self) -> str:
        """As typed by people: ``kafka-2``."""
        return f"{self.engine}-{self.number}"

    @property
    def log_file(self) -> Path:
        """Both of its output streams, appended at each start."""
        return self.folder / "output.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSet:
    """Engines that belong together. Two sets share nothing but the downloads."""

    name: str
    folder: Path
    base_port: int
    engines: tuple[str, ...] = ENGINES

    @property
    def cluster(self) -> str:
        """Name of the Hazelcast cluster and of the replica set, so that members of two sets never join each other."""
        return f"cdrs-{self.name}"

    def members(self, engine: str | None = None) -> list[Member]:
        """The members of one engine, or of all engines of this set."""
        return [
            Member(each, number, self.base_port + _OFFSETS[each] + number, self.folder / f"{each}-{number}")
            for each in self.engines
            if engine in {None, each}
            for number in range(1, SIZE + 1)
        ]

    def ports(self) -> list[int]:
        """Every port this set listens on."""
        controllers = [self.controller_port(number) for number in range(1, SIZE + 1)] if "kafka" in self.engines else []
        return [*(member.port for member in self.members()), *controllers]

    def controller_port(self, number: int) -> int:
        """Where the Kafka brokers talk to each other about who leads."""
        return self.base_port + _CONTROLLERS + number

    def member(self, name: str) -> Member:
        """A member by its name; `EngineError` lists the names there are."""
        for member in self.members():
            if member.name == name:
                return member
        names = ", ".join(member.name for member in self.members())
        raise EngineError(f"there is no {name!r} in set {self.name!r}; its members are {names}")


def check_set_name(name: str) -> str:
    """The name itself, if it may be part of a folder's and of a cluster's name."""
    if not _SET_NAME.fullmatch(name):
        raise EngineError(f"{name!r} is no name for a set: up to 32 of a-z, 0-9 and '-', not starting with '-'")
    return name


def check_base_port(port: int) -> int:
    """The port itself, if the whole block fits below the ports that the kernel hands out to clients."""
    if not 1024 <= port <= LAST_BASE_PORT:
        raise EngineError(f"--base-port {port} is out of range: 1024 to {LAST_BASE_PORT}")
    return port


def parse_engines(text: str) -> tuple[str, ...]:
    """``kafka,mongo`` as a tuple in the usual order."""
    wanted = {part.strip() for part in text.split(",") if part.strip()}
    unknown = sorted(wanted - set(ENGINES))
    if unknown or not wanted:
        raise EngineError(f"--only takes names out of {','.join(ENGINES)}, not {','.join(unknown) or 'nothing'}")
    return tuple(engine for engine in ENGINES if engine in wanted)


def default_cache(environ: Mapping[str, str]) -> Path:
    """Where downloads are kept, outside the checkout: they outlive it, and its copies share them."""
    return _xdg(environ, "XDG_CACHE_HOME", ".cache") / "cdrs-engines"


def default_sets(environ: Mapping[str, str]) -> Path:
    """The folder of all sets that were not given one by ``--data``."""
    return _xdg(environ, "XDG_STATE_HOME", ".local/state") / "cdrs-engines"


def _xdg(environ: Mapping[str, str], variable: str, below_home: str) -> Path:
    given = environ.get(variable, "")
    # The XDG base directory specification: a relative path is to be ignored.
    return Path(given) if given.startswith("/") else Path(environ.get("HOME") or os.path.expanduser("~")) / below_home  # noqa: PTH111


def settings_of(engines: EngineSet) -> dict[str, str]:
    """The settings that point cdrs at this set, as environment variables."""

    def hosts(engine: str) -> str:
        return ",".join(f"127.0.0.1:{member.port}" for member in engines.members(engine))

    urls = {
        "kafka": ("CDRS_LOG__URL", f"kafka://{hosts('kafka')}"),
        "hazelcast": ("CDRS_REGISTRY__URL", f"hazelcast://{hosts('hazelcast')}/{engines.cluster}"),
        "mongo": ("CDRS_STORE__URL", f"mongodb://{hosts('mongo')}/?replicaSet={engines.cluster}"),
    }
    return dict(urls[engine] for engine in engines.engines)


def choose_base_port(claimed: Sequence[int], free: Iterable[int]) -> int:
    """The first block that no other set claims, out of those whose ports are free now."""
    for base in free:
        if all(abs(base - other) >= PORTS_PER_SET for other in claimed):
            return base
    raise EngineError("no block of free ports was found; name one with --base-port")
