"""Producing: ``POST /v1/streams/{stream}/events`` and ``POST /v1/events``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.bodies import BodyKind, ClientGoneError, ProduceHead, read_body, read_framing, read_head
from gateway.context import GatewayContext
from gateway.ndjson import NdjsonResponse
from gateway.params import Params
from gateway.placement import settle, submit
from gateway.problems import problem_response
from gateway.receipts import ItemProblem, Receipt, ReceiptWriter, encoder, error_of
from shared.errors import CdrsError, ClientError, InvalidParameter, Overloaded, RequestTimeout, Unavailable
from shared.events import Draft, EventBuilder
from shared.validation import check_stream

if TYPE_CHECKING:
    from shared.records import Settlement
    from shared.telemetry import IngestResult

MAX_WAITING_BATCHES = 32
"""Batches that are here and not taken apart yet; a few milliseconds each."""
YIELD_EVERY = 256
"""Items of a batch after which other requests get a turn."""


async def produce_stream(request: Request) -> Response:
    """``POST /v1/streams/{stream}/events``: produce into one stream."""
    return await produce(request, request.path_params["stream"])


async def produce_many(request: Request) -> Response:
    """``POST /v1/events``: produce into many streams; each event names its own in ``cdrsstream``."""
    return await produce(request, None)


async def produce(request: Request, stream: str | None) -> Response:
    """Take what a request brings into one stream, or where None into those that its events name."""
    context = GatewayContext.of(request)
    with context.bodies.share() as take:
        return await _produce(request, context, stream, take)


async def _produce(
    request: Request, context: GatewayContext, stream: str | None, take: Callable[[int], None]
) -> Response:
    started = context.clock.monotonic()
    try:
        intake = await _read(request, context, stream, take)
    except ClientGoneError:
        return Response(status_code=400)  # goes nowhere
    except CdrsError as error:
        return _refused(request, context, error, is_read=False)
    if isinstance(intake, Response):
        return intake
    try:
        response = await _store(context, intake)
    except CdrsError as error:
        response = _refused(request, context, error, is_read=True)
    context.telemetry.ingest_took(context.clock.monotonic() - started)
    return response


def _refused(request: Request, context: GatewayContext, error: CdrsError, *, is_read: bool) -> Response:
    response = refusal(context, error, path=request.url.path)
    may_go_on = is_read or read_framing(request.scope["headers"]).may_be_skipped
    if not may_go_on or isinstance(error, RequestTimeout):
        response.headers["connection"] = "close"
    return response


def refusal(context: GatewayContext, error: CdrsError, *, path: str) -> Response:
    """Count a request that ended in this error, and answer it."""
    result: IngestResult = "refused" if isinstance(error, ClientError) else "failed"
    context.telemetry.ingested(result)
    return problem_response(error, instance=path)


@dataclass(frozen=True, slots=True)
class _Intake:
    """A request that was read to its end."""

    head: ProduceHead
    body: bytes
    builder: EventBuilder


async def _read(
    request: Request, context: GatewayContext, stream: str | None, take: Callable[[int], None]
) -> _Intake | NdjsonResponse:
    """Read a request; NDJSON is read as it is answered."""
    if stream is not None:
        check_stream(stream, writable=True)
    head = read_head(request.scope["headers"])
    settings = context.settings.gateway
    params = Params(request.query_params, known=("receipts",) if head.kind is BodyKind.NDJSON else ())
    builder = EventBuilder(
        stream=stream,
        accepted_ms=context.clock.unix_ms(),
        max_bytes=settings.max_event_bytes,
        spread_of=context.catalog.cached_spread,
        key=head.key,
        idempotency_key=head.idempotency_key,
    )
    is_batch = head.kind is BodyKind.BATCH
    if is_batch:
        check_room(context)
    elif head.kind is not BodyKind.NDJSON:  # whose reading is held up instead
        context.dispatcher.check()
    else:
        return NdjsonResponse(context, builder, head.framing, errors_only=_errors_only(params))
    body = await read_body(
        request.receive,
        head.framing,
        limit=settings.max_batch_bytes if is_batch else settings.max_event_bytes,
        timeout=settings.body_timeout,
        take=take,
        is_batch=is_batch,
    )
    builder.accepted_ms = context.clock.unix_ms()
    return _Intake(head, body, builder)


async def _store(context: GatewayContext, intake: _Intake) -> Response:
    if intake.head.kind is BodyKind.BATCH:
        return await _store_batch(context, intake.builder, intake.body)
    draft = build_one(intake.builder, intake.head, intake.body)
    (settlement,) = await settle(context, [draft], await submit(context, [draft]))
    count_one(context, draft, settlement)
    receipt = ReceiptWriter(context.router.epoch).receipt(draft.id, draft.event.stream, settlement)
    response = _json(receipt, status=200 if receipt.duplicate else 201)
    response.headers["location"] = location_of(draft)
    return response


def build_one(builder: EventBuilder, head: ProduceHead, body: bytes) -> Draft:
    """The event of a request that brings one. Raises a `ClientError`."""
    match head.kind:
        case BodyKind.BINARY:
            return builder.binary(body, attributes=head.attributes, media_type=head.media_type)
        case BodyKind.STRUCTURED:
            return builder.structured(body)
        case _:
            return builder.payload(body)


def count_one(context: GatewayContext, draft: Draft, settlement: Settlement) -> None:
    """Count the one event of a request. Raises the error that it was settled with."""
    if settlement.problem:
        raise error_of(settlement, draft.id)
    context.telemetry.ingested("duplicate" if settlement.duplicate else "stored")


def location_of(draft: Draft) -> str:
    """The address of a stored event."""
    # What the server makes needs no quoting.
    name = draft.id if draft.event.fresh else quote(draft.id, safe="")
    return f"/v1/streams/{draft.event.stream}/events/{name}"


def _errors_only(params: Params) -> bool:
    receipts = params.one("receipts") or "all"
    if receipts not in {"all", "errors"}:
        raise InvalidParameter("'receipts' is all or errors", parameter="receipts")
    return receipts == "errors"


def check_room(context: GatewayContext) -> None:
    """Raises `Overloaded` where a batch, of which nothing has been read yet, would wait too long."""
    context.dispatcher.check()
    _check_crowd(context)


def _check_crowd(context: GatewayContext) -> None:
    if context.builders.waiting >= MAX_WAITING_BATCHES:
        raise Overloaded("too many batches wait for being read", retry_after=1)


async def _store_batch(context: GatewayContext, builder: EventBuilder, body: bytes) -> Response:
    """Store the good items and say what is wrong with the others."""
    _check_crowd(context)
    await context.builders.enter()
    context.dispatcher.check()
    items: list[Draft | CdrsError] = []
    for item in builder.batch(body, max_events=context.settings.gateway.max_batch_events):
        items.append(item)
        if len(items) % YIELD_EVERY == 0:
            await asyncio.sleep(0)
    drafts = [item for item in items if isinstance(item, Draft)]
    settlements: Sequence[Settlement] = ()
    if drafts:
        settlements = await settle(context, drafts, await submit(context, drafts))
    answers = await _answers(context, items, settlements)
    receipts = [answer for answer in answers if isinstance(answer, Receipt)]
    duplicates = sum(receipt.duplicate for receipt in receipts)
    telemetry = context.telemetry
    telemetry.ingested("stored", len(receipts) - duplicates)
    telemetry.ingested("duplicate", duplicates)
    telemetry.ingested("refused", len(items) - len(drafts))
    telemetry.ingested("failed", len(drafts) - len(receipts))
    if drafts and all(isinstance(answer, ItemProblem) and answer.status == Unavailable.status for answer in answers):
        raise Unavailable("no node could store any of it")
    if len(receipts) < len(answers) or 0 < duplicates < len(receipts):
        return _json(answers, status=207)
    return _json(answers, status=200 if duplicates else 201)


async def _answers(
    context: GatewayContext, items: Sequence[Draft | CdrsError], settlements: Sequence[Settlement]
) -> list[Receipt | ItemProblem]:
    writer = ReceiptWriter(context.router.epoch) if settlements else None
    settled = iter(settlements)
    answers: list[Receipt | ItemProblem] = []
    for index, item in enumerate(items):
        if index % YIELD_EVERY == YIELD_EVERY - 1:
            await asyncio.sleep(0)
        if not isinstance(item, Draft):
            answers.append(ItemProblem.of(index, item))
            continue
        settlement = next(settled)
        if settlement.problem or writer is None:
            answers.append(ItemProblem.of(index, error_of(settlement, item.id)))
        else:
            answers.append(writer.receipt(item.id, item.event.stream, settlement))
    return answers


def _json(value: Any, *, status: int) -> Response:
    return Response(encoder.encode(value), status, media_type="application/json", headers={"cache-control": "no-store"})


routes: list[Route] = [
    Route("/v1/streams/{stream}/events", produce_stream, methods=["POST"]),
    Route("/v1/events", produce_many, methods=["POST"]),
]
