"""From what a request names to what has to be read for it."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request

from gateway.context import GatewayContext
from gateway.views import Selection
from shared.errors import InvalidParameter, TooManyStreams
from shared.filters import Filter
from shared.partitioning import partitions_of_stream
from shared.sse import Shape
from shared.validation import Pattern, check_stream


def read_patterns(request: Request, *, limit: int) -> tuple[Pattern, ...]:
    """The streams and patterns a request names, in its path or as ``stream`` parameters.

    Raises `InvalidStream`, `InvalidPattern`, `TooManyStreams`, `InvalidParameter`.
    """
    texts = list(dict.fromkeys(request.query_params.getlist("stream")))
    if "stream" in request.path_params:
        if texts:
            raise InvalidParameter("the stream stands in the path already", parameter="stream")
        return (Pattern.parse(check_stream(request.path_params["stream"])),)
    if not texts:
        raise InvalidParameter("name at least one stream or pattern: ?stream=…", parameter="stream")
    if len(texts) > limit:
        raise TooManyStreams(f"at most {limit} streams in one subscription", limit=limit)
    return tuple(Pattern.parse(text) for text in texts)


async def select(
    context: GatewayContext, patterns: tuple[Pattern, ...], *, wanted: Filter | None, shape: Shape
) -> Selection:
    """Which partitions to read and which kind of id to give. Raises `Unavailable` where no node answers.

    A stream that does not exist yet may be born with any spread, so it is looked for everywhere.
    """
    spreads = {
        pattern.text: await context.catalog.existing_spread(pattern.text) for pattern in patterns if pattern.is_exact
    }
    return _selection(context, patterns, spreads, wanted, shape)


def select_now(
    context: GatewayContext, patterns: tuple[Pattern, ...], *, wanted: Filter | None, shape: Shape
) -> Selection | None:
    """The same, if every stream is known to exist already; None where a node has to be asked."""
    spreads: dict[str, int | None] = {}
    for pattern in patterns:
        if pattern.is_exact:
            spread = spreads[pattern.text] = context.catalog.known_spread(pattern.text)
            if spread is None:
                return None
    return _selection(context, patterns, spreads, wanted, shape)


def _selection(
    context: GatewayContext,
    patterns: tuple[Pattern, ...],
    spreads: Mapping[str, int | None],
    wanted: Filter | None,
    shape: Shape,
) -> Selection:
    count = context.router.partitions
    wild = sorted([pattern.text for pattern in patterns if not pattern.is_exact])
    partitions: set[int] = set(range(count)) if wild else set()
    for stream, spread in spreads.items():
        partitions.update(partitions_of_stream(stream, partitions=count, spread=spread or count))
    is_settled = not wild and None not in spreads.values()
    return Selection(
        streams=tuple(sorted(spreads)),
        patterns=tuple(wild),
        filter=wanted,
        shape=shape,
        partitions=tuple(sorted(partitions)),
        vector=not (is_settled and len(partitions) == 1),
    )
