"""The client library: Motor, or PyMongo's own async API. Only this module knows which of the two it talks to, and only
it turns their errors into ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, cast

import bson
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient, ReadPreference
from pymongo.errors import (
    ConfigurationError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
)
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from shared.backends.mongo.documents import Document
from shared.backends.mongo.queries import Query
from shared.errors import OutcomeUnknown, ServerError, Unavailable
from shared.settings import MongoSettings

T = TypeVar("T")

_decode = cast("Callable[[bytes], list[Document]]", bson.decode_all)  # pyright: ignore[reportUnknownMemberType]

GRACE = 1.0
"""What a call may take beyond the driver's own deadline before we stop waiting for the driver, in seconds."""
HEARTBEAT = 2.0
"""A member that does not answer is noticed within twice this time, in seconds."""
MOST_TEXT = 300
REFUSED = frozenset({13, 18, 8000})
"""Unauthorized, AuthenticationFailed, and what Atlas says instead."""


class Cursor(Protocol):
    """What both drivers' cursors can do."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def to_list(self, length: int | None = None) -> list[Document]: ...
    async def close(self) -> None: ...


class Collection(Protocol):
    """What both drivers' collections can do, as far as the store needs it."""

    def find(self, wanted: Mapping[str, Any], /, **options: Any) -> Cursor: ...
    def find_raw_batches(self, wanted: Mapping[str, Any], /, **options: Any) -> Cursor: ...
    async def insert_many(self, documents: Sequence[Document], *, ordered: bool) -> Any: ...
    async def bulk_write(self, requests: Sequence[Any], *, ordered: bool) -> Any: ...
    async def create_indexes(self, indexes: Sequence[Any]) -> Any: ...


class Database(Protocol):
    """What both drivers' databases can do, as far as the store needs it."""

    def __getitem__(self, name: str) -> Collection: ...
    async def command(self, command: str | Mapping[str, Any], **options: Any) -> Document: ...
    async def create_collection(self, name: str, **options: Any) -> Any: ...
    async def list_collection_names(self) -> list[str]: ...


class Client:
    """A client of one event loop. Every read is from the primary with majority concern, every write goes to a majority
    and its journals, whatever the URL says."""

    def __init__(self, url: str, settings: MongoSettings, **options: Any) -> None:
        kind: Any = AsyncIOMotorClient if settings.driver == "motor" else AsyncMongoClient
        timeout_ms = round(settings.timeout * 1000)
        self._client: Any = kind(
            url,
            appname="cdrs",
            timeoutMS=timeout_ms,
            waitQueueTimeoutMS=timeout_ms,
            serverSelectionTimeoutMS=round(min(settings.selection_timeout, settings.timeout) * 1000),
            connectTimeoutMS=round(HEARTBEAT * 1000),
            heartbeatFrequencyMS=round(HEARTBEAT * 1000),
            maxPoolSize=settings.pool,
            retryReads=True,
            retryWrites=True,
            # Before the fix of CVE-2025-14847 servers leak memory through zlib; in a local network it gains little.
            compressors=[],
            **options,
        )

    def database(self, name: str) -> Database:
        """A database under the concerns that the store needs."""
        found = self._client.get_database(
            name,
            read_preference=ReadPreference.PRIMARY,
            read_concern=ReadConcern("majority"),
            write_concern=WriteConcern("majority", j=True),
        )
        return cast(Database, found)

    async def hello(self) -> Document:
        """What the primary (with ``directConnection``: the server) says of itself."""
        return cast(Document, await self._client.admin.command("hello"))

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        closing = self._client.close()  # Motor's returns nothing to wait for
        if closing is not None:
            await closing


class Calls:
    """Runs driver calls, each in a task of its own.

    A cancelled caller does not cancel the call: the drivers would close its connection, and in a storm of clients that
    leave, each would cost a new one (PYTHON-4745). Every call has a deadline, so what runs on without a caller ends.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout + GRACE
        self._running: set[asyncio.Task[Any]] = set()
        self._is_closed = False

    @property
    def running(self) -> int:
        """Calls that have not ended."""
        return len(self._running)

    async def read(self, call: Callable[[], Awaitable[T]]) -> T:
        """A call that changes nothing. Raises `Unavailable`."""
        return await self._run(call, lambda error: Unavailable(_told(error), retry_after=1.0))

    async def write(self, call: Callable[[], Awaitable[T]]) -> T:
        """A call that changes something. Raises `Unavailable` where it certainly did not, else `OutcomeUnknown`."""
        return await self._run(call, _write_error)

    async def close(self) -> None:
        """Let what runs come to its end, which its deadline bounds."""
        self._is_closed = True
        if self._running:
            await asyncio.wait(tuple(self._running), timeout=self._timeout)
        for task in tuple(self._running):
            task.cancel()

    async def _run(
        self, call: Callable[[], Awaitable[T]], error_of: Callable[[PyMongoError | TimeoutError], ServerError]
    ) -> T:
        if self._is_closed:
            raise Unavailable("the store is closed")
        task = asyncio.create_task(self._bounded(call))
        self._running.add(task)
        task.add_done_callback(self._ended)
        try:
            return await asyncio.shield(task)
        except (PyMongoError, TimeoutError) as error:
            raise error_of(error) from error
        except asyncio.CancelledError:
            if task.cancelled():  # by `close`: whether it was done is as unknown as behind a deadline
                raise error_of(TimeoutError("the store was closed meanwhile")) from None
            raise

    async def _bounded(self, call: Callable[[], Awaitable[T]]) -> T:
        async with asyncio.timeout(self._timeout):
            return await call()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may have left; then nobody else looks at it


async def all_of(*calls: Awaitable[T]) -> list[T]:
    """Wait for all of them, whatever becomes of some; then raise the first error there was."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return cast("list[T]", results)


async def fetch(database: Database, query: Query) -> list[Document]:
    """Everything a query finds; for those that find a bounded number of small documents."""
    cursor = database[query.collection].find(query.filter, **query.options())
    return await cursor.to_list(None)


async def fetch_until(
    database: Database, query: Query, enough: Callable[[Sequence[Document]], bool], *, batch: int
) -> None:
    """Give what a query finds to ``enough``, as it comes over the wire (at most 16 MiB at a time), until that returns
    True or there is no more."""
    cursor = database[query.collection].find_raw_batches(query.filter, batch_size=batch, **query.options())
    try:
        async for raw in cursor:
            if enough(_decode(raw)):
                return
    finally:
        await cursor.close()


def is_duplicate(error: Mapping[str, Any]) -> bool:
    """Whether a write error says that a unique key was taken."""
    return error.get("code") == 11_000


def is_same_position(error: Mapping[str, Any]) -> bool:
    """Whether the key that was taken is the position, not the identity."""
    return "_id" in (error.get("keyPattern") or {"_id": 1})


def told(error: BaseException) -> str:
    """A driver's error in one line, without the description of the whole cluster that it appends."""
    text = str(error).partition(", Timeout: ")[0].partition(", full error: ")[0].partition(" (configured timeouts")[0]
    return " ".join(text.split())[:MOST_TEXT] or type(error).__name__


def _told(error: BaseException) -> str:
    return f"the store does not answer: {told(error)}"


def _write_error(error: PyMongoError | TimeoutError) -> ServerError:
    never_sent = isinstance(error, ServerSelectionTimeoutError | WaitQueueTimeoutError | ConfigurationError)
    refused = isinstance(error, OperationFailure) and error.code in REFUSED
    if never_sent or refused:
        return Unavailable(_told(error), retry_after=1.0)
    return OutcomeUnknown(_told(error), retry_after=1.0)
