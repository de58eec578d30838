"""The way of one subscriber from any place in history to its live view, the same on both write paths."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from gateway.replay import Replay
from shared.position import Cursor
from shared.sse import control_block, cursor_block

if TYPE_CHECKING:
    from gateway.context import GatewayContext
    from gateway.subscriber import Subscriber
    from gateway.views import Selection

CAUGHT_UP = control_block("cdrs.caught-up")


async def catch_up(
    context: GatewayContext, subscriber: Subscriber, selection: Selection, *, resuming: bool, told_gap: bool = False
) -> AsyncGenerator[bytes]:
    """Blocks to write, from the subscriber's cursor on. When it ends, the subscriber is live.

    ``resuming``: it has been here before, with or without a gap. Raises `ServerError` where no node answers.
    """
    known = Cursor.decode(subscriber.cursor.decode()).next
    start = {partition: known[partition] for partition in selection.partitions}
    replay = Replay(context.hub, context.history, selection=selection, subscriber=subscriber, start=start)
    async for chunk in replay.chunks():
        yield chunk
    if resuming:
        context.telemetry.resumed("gap" if told_gap else "history" if replay.asked_nodes else "ring")
    told, subscriber.cursor = subscriber.cursor, replay.joined_at()
    progress = cursor_block(subscriber.cursor) if subscriber.cursor != told else b""
    yield progress + CAUGHT_UP
