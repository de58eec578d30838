"""Which representation a client asked for (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from enum import Enum

from starlette.requests import Request

from shared.errors import NotAcceptable

JSON_TYPES = ("application/json", "application/cloudevents+json")
STREAM_TYPE = "text/event-stream"


def prefers_json(request: Request, *, event_stream_default: bool) -> bool:
    """True: answer JSON; False: answer an event stream. The default serves a missing ``Accept`` and ties.

    Raises `NotAcceptable` if neither is admitted.
    """
    header = ",".join(request.headers.getlist("accept"))
    if not header.strip():
        return not event_stream_default
    ranges = _ranges(header)
    as_json = max(_quality(ranges, media) for media in JSON_TYPES)
    as_stream = _quality(ranges, STREAM_TYPE)
    if as_json <= 0 and as_stream <= 0:
        raise NotAcceptable(f"this address answers {JSON_TYPES[0]} or {STREAM_TYPE}")
    if as_json == as_stream:
        return not event_stream_default
    return as_json > as_stream


class Coding(Enum):
    """Content codings that a client takes."""

    IDENTITY = "identity"
    """No other, or rather than another."""
    GZIP = "gzip"
    """And not identity."""
    EITHER = "either"


def accepted_coding(request: Request) -> Coding:
    """By ``Accept-Encoding`` (RFC 9110, section 12.5.3). A client that says nothing may not know gzip."""
    ranges = _ranges(",".join(request.headers.getlist("accept-encoding")))
    qualities = dict(reversed(ranges))
    others = qualities.get("*", 0.0)
    gzip = qualities.get("gzip", qualities.get("x-gzip", others))
    identity = qualities.get("identity", others if "*" in qualities and not others else None)
    if gzip <= 0:
        return Coding.IDENTITY
    if identity is None:
        return Coding.EITHER
    if identity <= 0:
        return Coding.GZIP
    return Coding.EITHER if gzip >= identity else Coding.IDENTITY


def accepts_html(request: Request) -> bool:
    """Whether the client names HTML itself, as browsers do when a person looks."""
    return any(media == "text/html" and q > 0 for media, q in _ranges(request.headers.get("accept", "")))


def _ranges(header: str) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for part in header.split(",")[:32]:
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        found.append((media, quality))
    return found


def _quality(ranges: list[tuple[str, float]], media: str) -> float:
    """The quality given by the most specific range that covers the type."""
    family = media.split("/", maxsplit=1)[0] + "/*"
    for candidate in (media, family, "*/*"):
        matching = [quality for name, quality in ranges if name == candidate]
        if matching:
            return max(matching)
    return 0.0
