"""Uses of a link to a node that end when the node leaves the routing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, Self

from shared.errors import LinkBroken

if TYPE_CHECKING:
    from gateway.routing import NodeHandle


class Losable(Protocol):
    """Something under way at a node."""

    def lose(self) -> None:
        """The node is out of routing: give it up."""
        ...


class Attempt:
    """See `NodeHandle.attempt`. Costs one timer."""

    __slots__ = ("_attempts", "_handle", "_scope")

    def __init__(self, handle: NodeHandle, attempts: set[asyncio.Timeout], timeout: float) -> None:
        self._handle = handle
        self._attempts = attempts
        self._scope = asyncio.timeout(timeout)

    async def __aenter__(self) -> Self:
        if self._handle.gone:
            raise LinkBroken("the node is gone")
        await self._scope.__aenter__()
        self._attempts.add(self._scope)
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._attempts.discard(self._scope)
        try:
            await self._scope.__aexit__(type(error) if error is not None else None, error, None)
        except TimeoutError as late:
            if self._handle.gone:
                raise LinkBroken("the node is gone") from late
            raise
