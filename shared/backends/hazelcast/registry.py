"""The registry of the distributed profile: a set and a map in a Hazelcast cluster.

It is a hint and is treated so: Hazelcast is AP, its community edition knows neither TLS nor authentication, and after
the loss of the whole cluster it comes back empty. Nothing in here waits for it longer than the timeout of the settings.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import msgspec

from shared.backends.hazelcast.client import Client
from shared.backends.hazelcast.cluster import parse_cluster
from shared.backends.hazelcast.link import ClusterLink
from shared.cancelling import is_cancelled
from shared.errors import Unavailable
from shared.ports import Beat, Member
from shared.settings import RegistrySettings

BEAT_LIFE: Final = 5.0
"""Seconds after which a heartbeat is gone."""
MAX_REMEMBERED: Final = 64
"""Unreadable entries that are remembered so as to be told of once only."""

T = TypeVar("T")

_logger = logging.getLogger(__name__)
_items = msgspec.json.Encoder(order="sorted")
_member = msgspec.json.Decoder(Member)
_beat = msgspec.json.Decoder(Beat)


class HazelcastRegistry:
    """`NodeRegistry` in a Hazelcast cluster."""

    def __init__(self, link: ClusterLink, settings: RegistrySettings) -> None:
        self._link = link
        self._timeout = settings.timeout
        self._foreign: dict[Member, str] = {}
        """Items whose text is not the one we would have written."""
        self._told: set[str] = set()

    @property
    def detail(self) -> str:
        """What is wrong with the connection, for people; empty while there is one."""
        return self._link.detail

    def on_change(self, call: Callable[[], None]) -> Callable[[], None]:
        """See `ChangeSource.on_change`."""
        return self._link.watch(call)

    async def join(self, member: Member) -> None:
        """See `NodeRegistry.join`."""
        item = item_of(member)
        await self._ask(lambda client: client.members.add(item))

    async def leave(self, member: Member) -> None:
        """See `NodeRegistry.leave`."""
        items = {item_of(member), self._foreign.get(member, "")} - {""}

        async def leave(client: Client) -> None:
            for item in items:
                await client.members.remove(item)
            await client.beats.delete(member.key)

        await self._ask(leave)

    async def beat(self, key: str, beat: Beat) -> Mapping[str, Beat]:
        """See `NodeRegistry.beat`."""
        text = _items.encode(beat).decode()
        await self._ask(lambda client: client.beats.set(key, text, BEAT_LIFE))
        return await self.beats()

    async def members(self) -> Sequence[Member]:
        """See `NodeRegistry.members`."""
        items = await self._ask(lambda client: client.members.get_all())
        found: dict[Member, str] = {}
        foreign: dict[Member, str] = {}
        for item in items:
            member = self._decode(_member, item)
            if member is not None:
                found[member] = item or ""
                if item != item_of(member):
                    foreign[member] = item or ""
        self._foreign = foreign
        return list(found)

    async def beats(self) -> Mapping[str, Beat]:
        """See `NodeRegistry.beats`."""
        entries = await self._ask(lambda client: client.beats.entry_set())
        decoded = {key: self._decode(_beat, text) for key, text in entries if key is not None}
        return {key: beat for key, beat in decoded.items() if beat is not None}

    async def _ask(self, question: Callable[[Client], Awaitable[T]]) -> T:
        client = self._link.client()
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._timeout):
                answer = await question(client)
        except TimeoutError as error:
            client.failed(began)
            raise Unavailable(f"Hazelcast did not answer within {self._timeout} s") from error
        except Exception as error:
            # The client raises what its parts raise, KeyError and struct.error among it. A hint must not do harm.
            client.failed(began)
            raise Unavailable(f"the Hazelcast client failed: {type(error).__name__}: {error}") from error
        except asyncio.CancelledError as error:
            client.failed(began)
            if is_cancelled():  # its caller had the shorter patience
                raise
            raise Unavailable("the Hazelcast client ended the call") from error
        client.answered()
        return answer

    def _decode(self, decoder: msgspec.json.Decoder[T], text: str | None) -> T | None:
        try:
            return decoder.decode(text or "")
        except msgspec.MsgspecError as error:
            reason = "not text" if text is None else str(error)
            if reason not in self._told and len(self._told) < MAX_REMEMBERED:
                self._told.add(reason)
                _logger.warning("an entry of the registry was passed over: %s", reason)
            return None


@asynccontextmanager
async def open_hazelcast_registry(
    url: str, settings: RegistrySettings, *, prefix: str = "cdrs"
) -> AsyncGenerator[HazelcastRegistry]:
    """The registry in the cluster that the URL names, as the set ``<prefix>.members`` and the map
    ``<prefix>.heartbeats``. Comes at once, also when the cluster is away: it is searched for in the background, and
    calls raise `Unavailable` until it is found. Raises `StartError` for a URL that cannot be meant."""
    link = ClusterLink(parse_cluster(url, prefix=prefix))
    task = asyncio.create_task(link.run(), name="registry")
    try:
        yield HazelcastRegistry(link, settings)
    finally:
        task.cancel()
        await asyncio.wait({task})


def item_of(member: Member) -> str:
    """A member as it stands in the set: JSON with sorted keys."""
    return _items.encode(member).decode()
