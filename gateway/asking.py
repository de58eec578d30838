"""Questions to the nodes: ask one, and the next in rank when it cannot answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from gateway.routing import NodeHandle
from shared.errors import LinkBroken, Unavailable
from shared.ports import NodeLink

T = TypeVar("T")

ATTEMPTS = 3
"""Nodes that one question tries before it gives up."""
ASK_TIMEOUT = 3.0
"""Seconds one node may take. One that hangs is given up sooner, when the detector notices."""


class Routes(Protocol):
    """`gateway.routing.Router`, as far as a question needs it."""

    def any(self) -> NodeHandle: ...

    def ranked(self, partition: int) -> Sequence[NodeHandle]: ...

    def broken(self, handle: NodeHandle) -> None: ...


async def ask(
    router: Routes,
    question: Callable[[NodeLink], Awaitable[T]],
    *,
    partition: int | None = None,
    timeout: float = ASK_TIMEOUT,
) -> T:
    """Put a question that changes nothing, or may be put twice, to a node: with a ``partition`` to the one that prefers
    it and so knows it best.

    A node whose connection breaks leaves the routing at once, and the next in rank is asked. One that is slow or says
    it is unavailable (it drains, or its log is behind) keeps its place, but the next is asked all the same.
    Raises `Unavailable` where no node could answer; every other error is the answer.
    """
    tried: set[str] = set()
    trouble = Unavailable("no node can be reached", retry_after=1)
    for _ in range(ATTEMPTS):
        handle = _next(router, partition, tried)
        if handle is None:
            break
        tried.add(handle.key)
        try:
            async with handle.attempt(timeout):
                return await question(handle.link)
        except LinkBroken:
            router.broken(handle)
            trouble = Unavailable("the connection to a node broke", retry_after=1)
        except Unavailable as error:
            trouble = error
        except TimeoutError:
            trouble = Unavailable("a node did not answer in time", retry_after=1)
    raise trouble


def _next(router: Routes, partition: int | None, tried: set[str]) -> NodeHandle | None:
    if partition is None and not tried:
        return router.any()
    return next((handle for handle in router.ranked(partition or 0) if handle.key not in tried), None)
