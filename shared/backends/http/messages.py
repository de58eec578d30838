"""What gateways and nodes say to each other over HTTP: paths, request bodies, limits. Encoded by `shared.wire`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from shared.position import Epoch
from shared.records import NewEvent, PageQuery, Settlement
from shared.wire import WireError

PREFIX = "/internal/v1"
HANDOFF = f"{PREFIX}/handoff"
HANDOFFS = f"{PREFIX}/handoffs"
FEED = f"{PREFIX}/feed"
CALL = f"{PREFIX}/call/"

MAX_HANDOFF = 32 * 1024 * 1024
"""Largest handoff, or handoffs of several partitions together, in bytes."""
MAX_CALL = 256 * 1024
"""Largest question to history, in bytes."""


class HandoffRequest(msgspec.Struct, frozen=True, array_like=True):
    """Body of a handoff; answered with a list of `Settlement`."""

    epoch: Epoch
    partition: int
    events: list[NewEvent]
    timeout: float
    """How long the node may take, in seconds."""


class HandoffsRequest(msgspec.Struct, frozen=True, array_like=True):
    """Handoffs of several partitions in one request; answered with a frame of `HandoffAnswer` for each, as soon as it
    is settled, so that none waits for another."""

    epoch: Epoch
    handoffs: list[tuple[int, list[NewEvent]]]
    """Partition and events."""
    timeout: float
    """How long the node may take, in seconds."""


class HandoffAnswer(msgspec.Struct, frozen=True, array_like=True):
    """How one of the handoffs ended."""

    index: int
    """Its place in the request."""
    settlements: list[Settlement]
    error: WireError | None = None
    """What there is instead of settlements."""


class FeedRequest(msgspec.Struct, frozen=True, array_like=True):
    """Body that opens a feed; answered with `FeedBatch` frames for as long as both sides live."""

    epoch: Epoch
    positions: dict[int, int]


ARGUMENTS: Mapping[str, Any] = {
    "info": tuple[()],
    "ends": tuple[()],
    "starts": tuple[()],
    "page": tuple[PageQuery],
    "find": tuple[str, str, str | None],
    "offset_at": tuple[int],
    "append_time": tuple[int, int],
    "streams": tuple[str, int],
    "stream": tuple[str],
    "create_stream": tuple[str, int],
}
"""Methods of `shared.ports.History` → their arguments as one array, keyword-only ones last."""
