"""One Hazelcast client, from its start until it is of no use any more.

What `hazelcast.asyncio` 5.7.0 does that is worked around here:

- It never gives up on a member that accepts connections and does not answer: neither when it connects nor in a call.
  So each client is started through one address under a deadline, never waits for the other members
  (``async_start``), and one that has answered nothing for `SILENCE` is declared lost.
- Its own reconnecting has the same flaw: a client that lost its last connection is replaced at once. The mode that is
  meant for that, OFF, makes its ``shutdown`` wait for itself for ever; ASYNC lets calls fail at once.
- It measures liveness on the wall clock: a jump forward makes it drop every connection, a jump back blinds it for as
  long. The one ends in a replacement too, the other is noticed by `SILENCE`, which is monotonic.
- Why a member refused it is told to its log only.
- It unpickles whatever an item claims to be, and one item that it cannot read fails the whole read. Only text is read.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import warnings
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Final, Protocol, Self, cast
from weakref import WeakSet

from shared.backends.hazelcast.cluster import Cluster, address_text

with warnings.catch_warnings():
    # Its other client, which is not used, imports asyncore.
    warnings.simplefilter("ignore", DeprecationWarning)
    from hazelcast.asyncio import HazelcastClient
    from hazelcast.config import Config, ReconnectMode
    from hazelcast.errors import AuthenticationError
    from hazelcast.lifecycle import LifecycleState
    from hazelcast.serialization.serialization_const import CONSTANT_TYPE_STRING

MEMBERS: Final = "members"
BEATS: Final = "heartbeats"
CONNECT_TIMEOUT: Final = 1.5
"""Seconds for one member to take a new client in; 0.1 s are usual."""
TCP_TIMEOUT: Final = 1.0
CLOSE_TIMEOUT: Final = 1.0
SILENCE: Final = 1.2
"""Seconds without one answered call, while there were calls, after which a client is replaced. It takes two calls, one
after the other, whatever the clock says: where this process itself stood still, one call takes as long as that."""

_logger = logging.getLogger(__name__)
_failures: ContextVar[list[BaseException] | None] = ContextVar("hazelcast_failures", default=None)


class StringSet(Protocol):
    """What is used of ``hazelcast.asyncio``'s set."""

    async def add(self, item: str) -> bool: ...
    async def remove(self, item: str) -> bool: ...
    async def get_all(self) -> Sequence[str | None]: ...
    async def add_listener(
        self,
        include_value: bool,
        item_added_func: Callable[[object], None],
        item_removed_func: Callable[[object], None],
    ) -> str: ...


class StringMap(Protocol):
    """What is used of ``hazelcast.asyncio``'s map."""

    async def set(self, key: str, value: str, ttl: float) -> None: ...
    async def delete(self, key: str) -> None: ...
    async def entry_set(self) -> Sequence[tuple[str | None, str | None]]: ...


class NotTakenInError(Exception):
    """A member did not take the client in; the text says why."""


class _TidyClient(HazelcastClient):
    """Closes every connection that it opened. By itself it forgets one that is not yet taken in: its socket stays open
    as long as the member likes."""

    def __init__(self, configuration: Config) -> None:
        super().__init__(configuration)  # pyright: ignore[reportUnknownMemberType]
        self._opened: WeakSet[Any] = WeakSet()
        reactor: Any = self._reactor
        connect = reactor.connection_factory

        def connect_and_remember(*arguments: Any) -> Any:
            connection = connect(*arguments)
            self._opened.add(connection)
            return connection

        reactor.connection_factory = connect_and_remember

    async def start(self) -> None:
        # create_and_start would leave a half-started client behind when it is cancelled.
        await self._start()  # type: ignore[no-untyped-call]

    async def end(self) -> None:
        """Bounded, idempotent."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self.shutdown()
                for connection in list(self._opened):
                    if connection._connect_task is not None:
                        connection._connect_task.cancel()
                    await connection.close_connection("the client ends", None)
        except Exception as error:  # noqa: BLE001 - whatever its parts raise; it is given up either way
            _logger.debug("a Hazelcast client did not end well: %r", error)


class Client:
    """A started client."""

    def __init__(self, client: _TidyClient, members: StringSet, beats: StringMap, lost: asyncio.Event) -> None:
        self.members = members
        self.beats = beats
        self.lost = lost
        """Set when it is of no use any more."""
        self.patience = SILENCE
        """Seconds of silence that it is granted."""
        self.was_heard = False
        """Whether any call was ever answered."""
        self._client = client
        self._silent_since: float | None = None
        self._failures = 0
        """Calls in a row, one after the other, that were not answered."""
        self._failed_at = float("-inf")

    @classmethod
    async def start(cls, cluster: Cluster, member: tuple[str, int], changed: Callable[[], None]) -> Self:
        """Start a client through this member. ``changed`` is called whenever the set has changed, as far as the
        member's events arrive. Raises `NotTakenInError`."""
        _take_over_log()
        lost = asyncio.Event()
        client = _TidyClient(_configuration(cluster.name, member, lost))
        failures: list[BaseException] = []
        token = _failures.set(failures)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await client.start()
                members = cast(StringSet, _text_only(await client.get_set(f"{cluster.prefix}.{MEMBERS}")))
                beats = cast(StringMap, _text_only(await client.get_map(f"{cluster.prefix}.{BEATS}")))
                await members.add_listener(False, lambda _: changed(), lambda _: changed())
                await cast(Any, client)._internal_cluster_service.wait_initial_member_list_fetched()
        except TimeoutError as error:
            await client.end()
            raise NotTakenInError("accepts connections but does not answer") from error
        except Exception as error:
            await client.end()
            raise NotTakenInError(_reason(cluster.name, failures[-1] if failures else error)) from error
        except BaseException:
            await client.end()
            raise
        finally:
            _failures.reset(token)
        return cls(client, members, beats, lost)

    def answered(self) -> None:
        """A call was answered."""
        self.was_heard = True
        self.patience = SILENCE
        self._silent_since = None
        self._failures = 0

    def failed(self, since: float) -> None:
        """A call that began at ``since`` (the loop's clock) was not answered, or with an error."""
        now = asyncio.get_running_loop().time()
        if self._silent_since is None:
            self._silent_since = since
        if since >= self._failed_at:
            self._failures += 1
            self._failed_at = now
        if self._failures >= 2 and now - self._silent_since >= self.patience:
            self.lost.set()

    def fellows(self) -> frozenset[object]:
        """The members of the cluster that it is in, as it was told last. No member is in two clusters at a time."""
        return frozenset(each.uuid for each in cast(Any, self._client).cluster_service.get_members())

    async def close(self) -> None:
        """End it. Bounded, idempotent."""
        await self._client.end()


async def why_unreachable(member: tuple[str, int]) -> str:
    """Why no TCP connection can be made to this address; empty if one can."""
    try:
        async with asyncio.timeout(TCP_TIMEOUT):
            _, writer = await asyncio.open_connection(*member)
            writer.close()
            await writer.wait_closed()
    except TimeoutError:
        return f"no connection within {TCP_TIMEOUT:.0f} s"
    except socket.gaierror as error:
        return error.strerror or "name not known"
    except OSError as error:
        return os.strerror(error.errno) if error.errno else str(error)
    return ""


def _configuration(cluster_name: str, member: tuple[str, int], lost: asyncio.Event) -> Config:
    def on_state(state: str) -> None:
        if state in {LifecycleState.DISCONNECTED, LifecycleState.SHUTTING_DOWN, LifecycleState.SHUTDOWN}:
            lost.set()

    config = Config()  # type: ignore[no-untyped-call]
    config.cluster_name = cluster_name
    config.cluster_members = [address_text(member)]
    config.async_start = True
    config.reconnect_mode = ReconnectMode.ASYNC
    config.cluster_connect_timeout = 0
    config.connection_timeout = TCP_TIMEOUT
    config.heartbeat_interval = 1
    config.heartbeat_timeout = 5
    config.invocation_timeout = 2
    config.invocation_retry_pause = 0.1
    # Members wait for their backups themselves: one listener less that can hang.
    config.backup_ack_to_client_enabled = False
    config.lifecycle_listeners = [on_state]
    return config


def _text_only(proxy: Any) -> Any:
    read = proxy._to_object

    def guarded(data: Any) -> Any:
        return read(data) if data is not None and data.get_type() == CONSTANT_TYPE_STRING else None

    proxy._to_object = guarded
    return proxy


def _reason(cluster_name: str, error: BaseException) -> str:
    if isinstance(error, AuthenticationError):
        return f"refuses: its cluster has another name than {cluster_name!r}"
    return f"is no Hazelcast member, or not ready yet ({type(error).__name__}: {error})"


class _ClientLog(logging.Handler):
    """Takes what the client says: for the reason of a failed start, else for debugging. It would say each failed
    attempt aloud, with a traceback."""

    def emit(self, record: logging.LogRecord) -> None:
        failures = _failures.get()
        error = record.exc_info[1] if record.exc_info else None
        if failures is not None and error is not None:
            failures.append(error)
        _logger.debug("client: %s", record.getMessage())


def _take_over_log() -> None:
    theirs = logging.getLogger("hazelcast")
    if not any(isinstance(handler, _ClientLog) for handler in theirs.handlers):
        theirs.addHandler(_ClientLog())
        theirs.propagate = False
        theirs.setLevel(logging.WARNING)
