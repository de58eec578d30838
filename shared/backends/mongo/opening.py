"""From a URL to a store that can be used."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from pymongo import IndexModel
from pymongo.errors import ConfigurationError, OperationFailure, PyMongoError
from pymongo.uri_parser import parse_uri

from shared.backends.mongo.documents import (
    BY_IDENTITY,
    BY_POSITION,
    BY_STREAM,
    BY_TIME,
    CHECKPOINTS,
    EVENTS,
    FLOORS,
    STREAMS,
)
from shared.backends.mongo.driver import REFUSED, Calls, Client, Database, told
from shared.backends.mongo.store import MongoStore
from shared.backends.mongo.succession import Epochs
from shared.clock import Clock
from shared.errors import StartError
from shared.position import Epoch
from shared.settings import MongoSettings

SETTING = "store.url"
"""The setting that holds the URL, for messages."""
DATABASE = "cdrs"
"""Used where the URL names none."""
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 2.0
PROBE_TIMEOUT = 1.0
SPREAD_OUT = 1.0
"""Seconds over which processes that find an empty database begin to fill it."""
_EXISTS = 48
_OTHER_OPTIONS = frozenset({85, 86})
"""IndexOptionsConflict, IndexKeySpecsConflict."""

INDEXES = (
    # Not partial: it is also the index that a shard key needs.
    IndexModel([("p", 1), ("s", 1), ("_id", 1)], name=BY_STREAM),
    IndexModel([("p", 1), ("i", 1)], name=BY_IDENTITY, unique=True, partialFilterExpression={"i": {"$exists": True}}),
    IndexModel([("p", 1), ("t", 1), ("_id", 1)], name=BY_TIME, partialFilterExpression={"t": {"$exists": True}}),
)

Waiting = Callable[[str], None]
"""Told what is missing, once for each attempt."""


@dataclass(frozen=True, slots=True)
class Location:
    """What a URL says, without its password."""

    url: str
    hosts: Sequence[str]
    database: str
    replica_set: str
    user: str
    is_srv: bool

    @property
    def shown(self) -> str:
        """For messages."""
        user = f"{quote(self.user, safe='')}@" if self.user else ""
        name = f"?replicaSet={self.replica_set}" if self.replica_set else ""
        return f"mongodb://{user}{','.join(self.hosts)}/{self.database}{name}"


@asynccontextmanager
async def open_mongo_store(
    url: str,
    settings: MongoSettings,
    clock: Clock,
    *,
    epoch: Epoch,
    partitions: int,
    waiting: Waiting | None = None,
) -> AsyncGenerator[MongoStore]:
    """The store at a ``mongodb://`` URL, for one event loop.

    Waits until a primary can be reached, for as long as it takes: engines may start in any order. ``waiting`` is told
    what is missing. Raises `StartError` where waiting cannot help: a URL that is none, credentials that are refused,
    another replica set, a server that is not part of one.
    """
    async with _reached(url, settings, waiting) as database:
        calls = Calls(settings.timeout)
        try:
            yield MongoStore(database, calls, clock, epoch=epoch, partitions=partitions)
        finally:
            await calls.close()


@asynccontextmanager
async def open_mongo_epochs(
    url: str, settings: MongoSettings, waiting: Waiting | None = None
) -> AsyncGenerator[Epochs]:
    """What the store has of all epochs. As `open_mongo_store`."""
    async with _reached(url, settings, waiting) as database:
        calls = Calls(settings.timeout)
        try:
            yield Epochs(database, calls)
        finally:
            await calls.close()


async def await_mongo(url: str, settings: MongoSettings, waiting: Waiting) -> None:
    """Until a primary can be reached: for whoever cannot open the store yet, and wants to know what is wrong with it.
    As `open_mongo_store`."""
    async with _reached(url, settings, waiting):
        pass


@asynccontextmanager
async def _reached(url: str, settings: MongoSettings, waiting: Waiting | None) -> AsyncGenerator[Database]:
    location = await asyncio.to_thread(locate, url)
    try:
        client = Client(location.url, settings)
    except (ConfigurationError, ValueError) as error:
        raise StartError(f"setting {SETTING}: {told(error)}") from error
    try:
        database = client.database(location.database)
        await _reach(client, database, location, settings, waiting)
        yield database
    finally:
        await client.close()


def locate(url: str) -> Location:
    """Read a URL. Raises `StartError`. May ask the DNS (``mongodb+srv``)."""
    try:
        parts: dict[str, Any] = dict(parse_uri(url, warn=False))
    except (PyMongoError, ValueError) as error:
        # Not the URL itself: it may hold a password.
        raise StartError(f"setting {SETTING}: not a MongoDB URL: {told(error)}") from error
    if parts["collection"]:
        raise StartError(f"setting {SETTING}: a database's name has no dot in it")
    return Location(
        url=url,
        hosts=[f"{host}:{port}" for host, port in parts["nodelist"]],
        database=parts["database"] or DATABASE,
        replica_set=parts["options"].get("replicaSet") or "",
        user=parts["username"] or "",
        is_srv=url.startswith("mongodb+srv:"),
    )


async def _reach(
    client: Client, database: Database, location: Location, settings: MongoSettings, waiting: Waiting | None
) -> None:
    pause = FIRST_PAUSE
    while True:
        try:
            _check_kind(await client.hello(), location)
            await _prepare(database)
        except PyMongoError as error:
            _raise_if_final(error, location)
            detail = await _diagnosis(location, settings, error)
            if waiting is not None:
                waiting(detail)
        else:
            return
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE)


def _check_kind(hello: dict[str, Any], location: Location) -> None:
    if not hello.get("setName") and hello.get("msg") != "isdbgrid":
        raise StartError(
            f"setting {SETTING}: {location.shown} is a single server; the store needs a replica set "
            "(start mongod with --replSet; one member will do for a trial)"
        )


def _raise_if_final(error: PyMongoError, location: Location) -> None:
    if isinstance(error, ConfigurationError):
        raise StartError(f"setting {SETTING}: {location.shown}: {told(error)}") from error
    if not isinstance(error, OperationFailure):
        return
    if error.code in REFUSED:
        who = f"user {location.user!r}" if location.user else "no user (the URL names none)"
        raise StartError(
            f"setting {SETTING}: {location.shown} refused {who}: {told(error)}; "
            "check name, password and authSource in the URL, and the user's roles"
        ) from error
    if error.code in _OTHER_OPTIONS:
        raise StartError(
            f"setting {SETTING}: {location.shown}: {EVENTS} has other indexes than this version makes: {told(error)}"
        ) from error


async def _prepare(database: Database) -> None:
    """Make collections and indexes, where they are not there yet.

    None is left to be made by the first write, and processes that start together go one after the other as a rule:
    a server run by wine may crash where several connections make the same collection at once.
    """
    clustered = {"key": {"_id": 1}, "unique": True, "name": BY_POSITION}
    options: dict[str, dict[str, Any]] = {
        EVENTS: {"clusteredIndex": clustered},
        STREAMS: {},
        CHECKPOINTS: {},
        FLOORS: {},
    }
    if not options.keys() <= set(await database.list_collection_names()):
        await asyncio.sleep(random.uniform(0, SPREAD_OUT))
    there = set(await database.list_collection_names())
    for name in [name for name in options if name not in there]:
        try:
            await database.create_collection(name, check_exists=False, **options[name])
        except OperationFailure as error:
            if error.code != _EXISTS:
                raise
    await database[EVENTS].create_indexes(list(INDEXES))


async def _diagnosis(location: Location, settings: MongoSettings, error: PyMongoError) -> str:
    """What is missing, host by host. Raises `StartError` where every host that answers belongs to another set."""
    if location.is_srv:
        return f"setting {SETTING}: {location.shown}: {told(error)}"
    probes = await asyncio.gather(*[_probe(host, location, settings) for host in location.hosts])
    names = {name for _, name in probes if name}
    if location.replica_set and names and location.replica_set not in names:
        found = ", ".join(
            f"{host} belongs to {name!r}" for host, (_, name) in zip(location.hosts, probes, strict=True) if name
        )
        raise StartError(
            f"setting {SETTING}: the URL asks for replica set {location.replica_set!r}, but {found}"
        ) from error
    said = "; ".join(f"{host} {what}" for host, (what, _) in zip(location.hosts, probes, strict=True))
    return f"setting {SETTING}: no primary of {location.shown} can be reached: {said}"


async def _probe(host: str, location: Location, settings: MongoSettings) -> tuple[str, str]:
    """What one server is, in words, and the replica set it belongs to."""
    quick = settings.model_copy(update={"timeout": PROBE_TIMEOUT, "selection_timeout": PROBE_TIMEOUT})
    options = _connection_options(location)
    probe = Client(f"mongodb://{host}/{options}", quick, directConnection=True)
    try:
        async with asyncio.timeout(PROBE_TIMEOUT * 2):
            hello = await probe.hello()
    except (PyMongoError, TimeoutError) as error:
        return f"does not answer ({told(error)})", ""
    finally:
        await probe.close()
    name = str(hello.get("setName") or "")
    if hello.get("isWritablePrimary"):
        return "is the primary", name
    if hello.get("secondary"):
        return "is a secondary and knows no primary", name
    if hello.get("isreplicaset"):
        return "is part of a replica set that was never made (rs.initiate)", name
    return "is not ready", name


def _connection_options(location: Location) -> str:
    """The options of the URL that decide how one connects at all."""
    _, _, query = location.url.partition("?")
    kept = [part for part in query.split("&") if part.lower().startswith(("tls", "ssl"))]
    return "?" + "&".join(kept) if kept else ""
