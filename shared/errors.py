"""The one tree of errors.

::

    CdrsError
    ├── ClientError                     the request is wrong; repeating it cannot help
    │   ├── InvalidRequest   (400)      MalformedJson, TooDeep, InvalidStream, InvalidCursor, …
    │   ├── NotFound         (404)      UnknownStream, UnknownEvent, UnknownNode, UnknownPath
    │   ├── Conflict         (409)      StreamConflict, AmbiguousEvent
    │   └── …                           MethodNotAllowed, NotAcceptable, RequestTimeout, Gone, …
    ├── ServerError                     the request is fine; a retry can help
    │   ├── Unavailable      (503)      nothing was stored
    │   ├── Overloaded       (503)      nothing was stored; queues are full (DiskFull: the log's disk is;
    │   │                             LogAway: its servers take nothing)
    │   ├── OutcomeUnknown   (504)      may have been stored; retry with the same id
    │   └── InternalError    (500)
    └── StartError                      a process cannot start; the message says what to do

Each class knows its HTTP status, the name of its problem type (RFC 9457, served at ``/problems/<name>``), its
title and whether a retry of the very same request can help. A class's docstring is the text of its problem page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar


class CdrsError(Exception):
    """Something went wrong inside cdrs."""

    status: ClassVar[int] = 500
    problem: ClassVar[str] = ""
    title: ClassVar[str] = ""
    retry: ClassVar[bool] = False
    """Whether repeating the very same request can succeed."""

    def __init__(self, detail: str = "", *, retry_after: float | None = None, **members: Any) -> None:
        super().__init__(detail or self.title)
        self.detail = detail
        self.retry_after = retry_after
        """Seconds after which a retry makes sense; sent as ``Retry-After``."""
        self.members: Mapping[str, Any] = members
        """Extension members of the problem document; never raw input."""


class ClientError(CdrsError):
    """The request is wrong as it stands."""

    status = 400


class ServerError(CdrsError):
    """The request is fine; the system could not serve it."""

    status = 503
    retry = True


class StartError(CdrsError):
    """A process cannot start. The message names what was found and what to do about it."""


# --- 400: the request itself ---------------------------------------------------------------------


class InvalidRequest(ClientError):
    """The request does not follow HTTP or this API in a way that no more specific problem describes."""

    problem = "invalid-request"
    title = "The request is not valid"


class MalformedJson(InvalidRequest):
    """The body, or one line of it, is not JSON as RFC 8259 defines it: not UTF-8, cut short, a byte order mark alone,
    a lone surrogate, or a literal such as NaN."""

    problem = "malformed-json"
    title = "Not valid JSON"


class TooDeep(InvalidRequest):
    """Arrays and objects are nested deeper than the limit (32 levels)."""

    problem = "too-deep"
    title = "JSON is nested too deeply"


class DuplicateKey(InvalidRequest):
    """The envelope of a CloudEvent names the same member twice, so its meaning is not defined."""

    problem = "duplicate-key"
    title = "A member occurs twice"


class TooManyFields(InvalidRequest):
    """The envelope of a CloudEvent has more members than the limit (64)."""

    problem = "too-many-fields"
    title = "Too many members"


class FieldTooLong(InvalidRequest):
    """A member name or an attribute value of the envelope is longer than its limit."""

    problem = "field-too-long"
    title = "A field is too long"


class InvalidEvent(InvalidRequest):
    """A CloudEvent lacks a required attribute or carries one of the wrong type (CloudEvents 1.0, section 3)."""

    problem = "invalid-event"
    title = "Not a valid CloudEvent"


class InvalidAttribute(InvalidEvent):
    """An attribute name or value breaks the rules of CloudEvents 1.0: names are lower-case letters and digits,
    values are strings without control characters, booleans or 32-bit integers."""

    problem = "invalid-attribute"
    title = "An attribute is not valid"


class InvalidId(InvalidEvent):
    """The event's id is empty, longer than 128 bytes, starts with '#', or holds control or format characters."""

    problem = "invalid-id"
    title = "The event id is not valid"


class InvalidType(InvalidEvent):
    """The event's type is empty, too long, holds control or format characters, or starts with the server's own
    prefix 'cdrs.'."""

    problem = "invalid-type"
    title = "The event type is not valid"


class InvalidSource(InvalidEvent):
    """The event's source is not a non-empty URI-reference within its limit."""

    problem = "invalid-source"
    title = "The event source is not valid"


class InvalidTime(InvalidEvent):
    """The event's time is not an RFC 3339 timestamp."""

    problem = "invalid-time"
    title = "The event time is not valid"


class ReservedField(InvalidEvent):
    """The event sets an attribute or header that only the server may set (names that start with 'cdrs')."""

    problem = "reserved-field"
    title = "The field belongs to the server"


class EmptyBatch(InvalidRequest):
    """A batch or a body has no event in it."""

    problem = "empty-batch"
    title = "Nothing to store"


class InvalidStream(InvalidRequest):
    """A stream name is 1 to 16 tokens of letters, digits, '_' and '-' (64 at most each), joined by dots, at most
    200 bytes long, and its first token is not 'cdrs' where a client writes."""

    problem = "invalid-stream"
    title = "The stream name is not valid"


class InvalidPattern(InvalidRequest):
    """A stream pattern is a stream name in which '*' stands for one token and a last '>' for the rest."""

    problem = "invalid-pattern"
    title = "The stream pattern is not valid"


class TooManyStreams(InvalidRequest):
    """One subscription names more streams or patterns than the limit."""

    problem = "too-many-streams"
    title = "Too many streams in one request"


class InvalidKey(InvalidRequest):
    """The ordering key is empty, not text, or longer than 256 bytes."""

    problem = "invalid-key"
    title = "The ordering key is not valid"


class NotNormalized(InvalidRequest):
    """The ordering key is not in Unicode normalisation form C: two keys that look equal would be two keys."""

    problem = "not-normalized"
    title = "The text is not normalised"


class InvalidIdempotencyKey(InvalidRequest):
    """Idempotency-Key is not a quoted string of 1 to 128 printable ASCII characters (RFC 9651 string)."""

    problem = "invalid-idempotency-key"
    title = "The Idempotency-Key is not valid"


class InvalidFilter(InvalidRequest):
    """The filter is not a JSON array of the CloudEvents subscription dialects exact, prefix, suffix, any and not
    over attribute names and string values."""

    problem = "invalid-filter"
    title = "The filter is not valid"


class PatternTooComplex(InvalidRequest):
    """A filter has more terms, deeper nesting or longer values than the limit."""

    problem = "pattern-too-complex"
    title = "The filter is too complex"


class InvalidFrom(InvalidRequest):
    """The start of a subscription is none of latest, earliest, -N, an RFC 3339 time, a duration such as -5m, or a
    cursor."""

    problem = "invalid-from"
    title = "The start is not valid"


class InvalidCursor(InvalidRequest):
    """The cursor was not made by this system, was cut or altered, or is longer than 1 KiB."""

    problem = "invalid-cursor"
    title = "The cursor is not valid"


class InvalidParameter(InvalidRequest):
    """A query parameter is unknown, occurs twice, or has a value outside its range."""

    problem = "invalid-parameter"
    title = "A parameter is not valid"


# --- other 4xx ------------------------------------------------------------------------------------


class NotFound(ClientError):
    """There is nothing under this address."""

    status = 404
    problem = "not-found"
    title = "Not found"


class UnknownStream(NotFound):
    """No event was ever stored in this stream and nobody created it."""

    problem = "unknown-stream"
    title = "The stream does not exist"


class UnknownEvent(NotFound):
    """The stream holds no event with this id (and source, where one was given)."""

    problem = "unknown-event"
    title = "The event does not exist"


class UnknownNode(NotFound):
    """No process with this id stands in the registry."""

    problem = "unknown-node"
    title = "The node does not exist"


class MethodNotAllowed(ClientError):
    """The address exists but does not take this method; ``Allow`` lists those it takes."""

    status = 405
    problem = "method-not-allowed"
    title = "The method is not allowed"


class NotAcceptable(ClientError):
    """The ``Accept`` header admits neither of the forms this address can answer in."""

    status = 406
    problem = "not-acceptable"
    title = "No acceptable representation"


class RequestTimeout(ClientError):
    """The client stopped sending: 5 s for the headers, 30 s without a byte of the body."""

    status = 408
    problem = "request-timeout"
    title = "The request took too long to arrive"
    retry = True


class Conflict(ClientError):
    """The request contradicts the state of what it names."""

    status = 409
    problem = "conflict"
    title = "Conflict"


class StreamConflict(Conflict):
    """The stream exists with another spread; a spread is constant within an epoch."""

    problem = "stream-conflict"
    title = "The stream exists with other settings"


class AmbiguousEvent(Conflict):
    """Several sources used this id in the stream; say which with ``?source=``."""

    problem = "ambiguous-event"
    title = "The id is ambiguous"


class Gone(ClientError):
    """What the cursor points to is no longer kept, or belongs to another incarnation of the log."""

    status = 410
    problem = "gone"
    title = "No longer kept"


class PayloadTooLarge(ClientError):
    """The body or one event in it is larger than the limit (1 MiB an event)."""

    status = 413
    problem = "payload-too-large"
    title = "Too large"


class BatchTooLarge(PayloadTooLarge):
    """A batch has more events, or more bytes in all, than the limit."""

    problem = "batch-too-large"
    title = "The batch is too large"


class UriTooLong(ClientError):
    """The request target is longer than the limit."""

    status = 414
    problem = "uri-too-long"
    title = "The address is too long"


class UnsupportedMediaType(ClientError):
    """The Content-Type is missing or is none that this address takes, or its charset is not UTF-8."""

    status = 415
    problem = "unsupported-media-type"
    title = "The content type is not supported"


class UnsupportedEncoding(ClientError):
    """Request bodies are taken without Content-Encoding only."""

    status = 415
    problem = "unsupported-encoding"
    title = "The content encoding is not supported"


class MisdirectedRequest(ClientError):
    """The Host field names another host than a gateway that only this machine reaches (RFC 9110, 15.5.20)."""

    status = 421
    problem = "misdirected-request"
    title = "The request is for another host"


class IdempotencyMismatch(ClientError):
    """An event with the same stream, source and id, but with another body or ordering key, is already stored."""

    status = 422
    problem = "idempotency-mismatch"
    title = "The id was used for another event"


class HeadersTooLarge(ClientError):
    """The request has more than 100 header fields or more than 16 KiB of them."""

    status = 431
    problem = "headers-too-large"
    title = "The headers are too large"


# --- 5xx ------------------------------------------------------------------------------------------


class InternalError(ServerError):
    """A defect of the server. Repeat the request with the same ids; events without ids of their own may double."""

    status = 500
    problem = "internal"
    title = "Internal error"


class Unavailable(ServerError):
    """What is needed to store or read is not there right now. Nothing of the request was stored."""

    problem = "unavailable"
    title = "Not available right now"


class Overloaded(Unavailable):
    """A queue is full. Nothing of the request was stored."""

    problem = "overloaded"
    title = "Too busy right now"


class DiskFull(Overloaded):
    """The log's disk is full. Nothing of the request was stored; reading goes on."""

    problem = "disk-full"
    title = "No room to store events"


class LogAway(Overloaded):
    """The log's servers have taken nothing for a while. Nothing of the request was stored; reading goes on."""

    problem = "log-away"
    title = "The log takes nothing right now"


class OutcomeUnknown(ServerError):
    """The deadline passed while the events were on their way into the log: they may or may not be stored. Repeat the
    request with the same ids; whatever was stored is answered as a duplicate."""

    status = 504
    problem = "outcome-unknown"
    title = "It is not known whether the events were stored"


# --- between our own processes --------------------------------------------------------------------


class StaleEpoch(Unavailable):
    """Between our processes: the other side works on another incarnation of the log. Producers get `unavailable`."""

    problem = "stale-epoch"
    title = "Another epoch"


class StaleStream(Unavailable):
    """Between our processes: events were routed by other settings of the stream than the stored ones. Producers get
    `unavailable`."""

    problem = "stale-stream"
    title = "Other stream settings"


class LinkBroken(Unavailable):
    """Between our processes: a connection broke, and what was under way has an unknown outcome. Producers get
    `unavailable` or `outcome-unknown`."""

    problem = "link-broken"
    title = "The connection to a node broke"


def all_errors() -> Iterator[type[CdrsError]]:
    """Every class of the tree that has a problem type of its own, in order of definition."""
    pending: list[type[CdrsError]] = [CdrsError]
    seen: dict[str, type[CdrsError]] = {}
    while pending:
        cls = pending.pop(0)
        pending.extend(cls.__subclasses__())
        if cls.problem and cls.__module__ == __name__:
            seen.setdefault(cls.__name__, cls)
    yield from seen.values()


BY_PROBLEM: Mapping[str, type[CdrsError]] = {cls.problem: cls for cls in all_errors()}
"""Problem name → class, for errors that arrive from another process."""
