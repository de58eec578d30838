"""The network of a simulated world: what `gateway` and `cdrs` say to each other, late, lost, twice or cut off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from cdrs.node import Node
from shared.direct import HandedOver
from shared.errors import CdrsError, LinkBroken
from shared.ports import Member
from shared.position import Epoch
from shared.records import FeedBatch, NewEvent, NodeInfo, Settlement

if TYPE_CHECKING:
    from simulation.world import GatewayProcess, NodeProcess

T = TypeVar("T")
QUESTIONS = frozenset({
    "ends", "starts", "page", "find", "offset_at", "append_time", "streams", "stream", "create_stream",
})  # fmt: skip


class Link:
    """Gateway → node over a network that loses, delays, repeats and cuts. The work goes on in the node whatever
    becomes of the question."""

    def __init__(self, gateway: GatewayProcess, member: Member) -> None:
        self._world = gateway.world
        self._gateway = gateway
        self._member = member

    async def _pass(self) -> NodeProcess:
        """One message to the node."""
        world = self._world
        await self._gateway.call(world.weather.delay())
        process = world.node(self._member)
        while (self._gateway.id, self._member.id) in world.cut:
            await world.cut_changed.wait()
            raise LinkBroken("the connection timed out")
        if process is None:
            raise LinkBroken("connection refused")
        if world.weather.hits(world.weather.lost):
            raise LinkBroken("connection reset")
        return process

    async def _ask(self, question: Callable[[Node], Coroutine[Any, Any, T]], *, repeatable: bool = False) -> T:
        process = await self._pass()
        weather = self._world.weather

        async def serve() -> T:
            await process.call(0)
            answer = await question(process.node)
            await process.call(weather.delay())
            return answer

        work = process.spawn(serve())
        if repeatable and weather.hits(weather.twice):
            process.spawn(serve())
        died = process.spawn(process.died.wait())
        try:
            await asyncio.wait((work, died), return_when=asyncio.FIRST_COMPLETED)
        finally:
            died.cancel()
        if not work.done() or work.cancelled():
            raise LinkBroken("connection reset")
        if weather.hits(weather.lost):
            raise LinkBroken("connection reset")
        if (self._gateway.id, self._member.id) in self._world.cut:
            await self._world.cut_changed.wait()
            raise LinkBroken("the connection timed out")
        await self._gateway.call(0)
        return work.result()

    async def append(
        self, epoch: Epoch, partition: int, events: Sequence[NewEvent], *, timeout: float
    ) -> Sequence[Settlement]:
        return await self._ask(lambda node: node.append(epoch, partition, events, timeout=timeout), repeatable=True)

    commits_together = False

    def hand_over(self, epoch: Epoch, handoffs: Sequence[HandedOver], *, timeout: float) -> None:
        """One message with all of them; each is answered by a message of its own."""
        self._gateway.spawn(self._hand_over(epoch, dict(enumerate(handoffs)), timeout))

    async def _hand_over(self, epoch: Epoch, waiting: dict[int, HandedOver], timeout: float) -> None:
        failure: CdrsError = LinkBroken("connection reset")
        try:
            async with asyncio.timeout(timeout):
                await self._exchange(epoch, waiting, timeout)
        except CdrsError as error:
            failure = error
        except TimeoutError:
            pass
        finally:
            if not self._gateway.is_dead:
                for _, _, answered in waiting.values():
                    answered(failure)

    async def _exchange(self, epoch: Epoch, waiting: dict[int, HandedOver], timeout: float) -> None:
        process, world = await self._pass(), self._world
        answers: asyncio.Queue[tuple[int, Sequence[Settlement] | CdrsError]] = asyncio.Queue()

        async def serve(told: asyncio.Queue[tuple[int, Sequence[Settlement] | CdrsError]]) -> None:
            await process.call(0)
            node_side: asyncio.Queue[tuple[int, Sequence[Settlement] | CdrsError]] = asyncio.Queue()
            handoffs = [
                (partition, events, lambda outcome, index=index: node_side.put_nowait((index, outcome)))
                for index, (partition, events, _) in handed
            ]
            process.node.hand_over(epoch, handoffs, timeout=timeout)
            for _ in handoffs:
                answer = await node_side.get()
                await process.call(world.weather.delay())
                told.put_nowait(answer)

        handed = list(waiting.items())
        process.spawn(serve(answers))
        if world.weather.hits(world.weather.twice):
            process.spawn(serve(asyncio.Queue()))
        died = process.spawn(process.died.wait())
        try:
            while waiting:
                arrival = self._gateway.spawn(answers.get())
                await asyncio.wait((arrival, died), return_when=asyncio.FIRST_COMPLETED)
                if not arrival.done():
                    arrival.cancel()
                    raise LinkBroken("connection reset")
                if world.weather.hits(world.weather.lost):
                    raise LinkBroken("connection reset")
                if (self._gateway.id, self._member.id) in world.cut:
                    await world.cut_changed.wait()
                    raise LinkBroken("the connection timed out")
                await self._gateway.call(0)
                index, outcome = arrival.result()
                waiting.pop(index)[2](outcome)
        finally:
            died.cancel()

    @asynccontextmanager
    async def feed(self, epoch: Epoch, positions: Mapping[int, int]) -> AsyncGenerator[AsyncGenerator[FeedBatch]]:
        process = await self._pass()
        queue: asyncio.Queue[FeedBatch | CdrsError] = asyncio.Queue(4)

        async def pump() -> None:
            try:
                async with process.node.feed(epoch, positions) as batches:
                    async for batch in batches:
                        weather = self._world.weather
                        await process.call(weather.delay() + weather.behind * weather.random.random())
                        await queue.put(batch)
            except CdrsError as error:
                await queue.put(error)

        work = process.spawn(pump())
        died = process.spawn(process.died.wait())
        try:
            yield self._batches(queue, died)
        finally:
            work.cancel()
            died.cancel()

    async def _batches(
        self, queue: asyncio.Queue[FeedBatch | CdrsError], died: asyncio.Task[Any]
    ) -> AsyncGenerator[FeedBatch]:
        world = self._world
        while True:
            if queue.empty():
                arrival = world.loop.create_task(queue.get())
                try:
                    await asyncio.wait((arrival, died), return_when=asyncio.FIRST_COMPLETED)
                    if not arrival.done():
                        raise LinkBroken("connection reset")
                    batch = arrival.result()
                finally:
                    arrival.cancel()
            else:
                batch = queue.get_nowait()
            await self._gateway.call(0)
            if (self._gateway.id, self._member.id) in world.cut:
                await world.cut_changed.wait()
                raise LinkBroken("the connection timed out")
            if world.weather.hits(world.weather.lost):
                raise LinkBroken("connection reset")
            if isinstance(batch, CdrsError):
                raise batch
            yield batch

    async def info(self) -> NodeInfo:
        return await self._ask(lambda node: node.info())

    async def close(self) -> None:
        return None

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        """Every other question of `shared.ports.History`; nothing of what only a node in the same process has."""
        if name not in QUESTIONS:
            raise AttributeError(name)
        return lambda *args, **kwargs: self._ask(lambda node: getattr(node, name)(*args, **kwargs))
