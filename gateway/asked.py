"""What a subscription asks for, read from its request: the same for every request that says the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.negotiation import Coding, accepted_coding
from gateway.params import Params
from gateway.selection import read_patterns
from gateway.starts import From, parse_from
from shared.errors import InvalidParameter
from shared.filters import Filter, parse_filter
from shared.sse import DEFAULT_SHAPE, Shape

if TYPE_CHECKING:
    from starlette.requests import Request

    from shared.settings import Settings
    from shared.validation import Pattern

SUBSCRIBE_PARAMETERS = frozenset(
    {"stream", "from", "filter", "format", "named", "stamps", "last_event_id", "compression"}
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A subscription's wishes, checked. Holds nothing of its request, so equal requests may share it."""

    shape: Shape
    filter: Filter | None
    patterns: tuple[Pattern, ...]
    start: From
    cursor: str | None
    """``last_event_id`` of the query; the header field of this name wins."""
    coding: Coding


def read_asked(request: Request, settings: Settings) -> Asked:
    """Read a request for an event stream. Raises a `ClientError` where it is not in order."""
    query = Params(request.query_params, known=SUBSCRIBE_PARAMETERS)
    shape = Shape(_data_only(query.one("format")), query.flag("named"), query.flag("stamps"))
    if shape == DEFAULT_SHAPE:
        shape = DEFAULT_SHAPE  # which is compared by identity
    if shape.data_only and shape.stamps:
        raise InvalidParameter("stamps are part of the CloudEvent; format=data has none", parameter="stamps")
    wanted = parse_filter(query.one("filter") or "[]")
    patterns = read_patterns(request, limit=settings.gateway.max_streams)
    start = parse_from(query.one("from") or "latest")
    cursor = query.one("last_event_id")
    return Asked(shape, wanted, patterns, start, cursor, _coding(request, settings, query.one("compression")))


def _data_only(text: str | None) -> bool:
    if text not in {None, "cloudevent", "data"}:
        raise InvalidParameter("format is 'cloudevent' or 'data'", parameter="format")
    return text == "data"


def _coding(request: Request, settings: Settings, asked: str | None) -> Coding:
    if asked not in {None, "auto", "off"}:
        raise InvalidParameter("compression is 'auto' or 'off'", parameter="compression")
    if asked == "off" or settings.sse.compression == "off":
        return Coding.IDENTITY
    return accepted_coding(request)
