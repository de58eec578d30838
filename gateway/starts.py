"""Where a reader starts: from what it asks for to an offset for each partition it reads.

Used by subscriptions and by pages. A subscription is told by ``cdrs.gap`` what its cursor cannot have; a page
(``strict``) gets 400 or 410 for a cursor that is wrong or of another epoch.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from gateway.asking import ask
from gateway.gaps import Gap
from gateway.times import parse_duration, parse_rfc3339
from shared.errors import Gone, InvalidCursor, InvalidFrom, Unavailable
from shared.events import attributes_of
from shared.position import Cursor, CursorWriter
from shared.records import PageQuery

if TYPE_CHECKING:
    from gateway.context import GatewayContext
    from gateway.views import Selection

MAX_LAST = 10_000
"""Largest N of ``from=-N``."""
CATCH_UP_TIMEOUT = 5.0
"""Seconds a subscription waits for this gateway's feed to reach where the client already was."""
LOOK_BACK = 5.0
"""Seconds in which ``from=-N`` looks back for events that a filter lets through; older ones are not found then."""
_BACK_RECORDS = 512
_BACK_BYTES = 256 * 1024
_POLL = 0.01

_LAST = re.compile(r"-([0-9]{1,6})")
_CURSOR = re.compile(r"A[A-Za-z0-9_-]{14,}")
_HINT = "from is latest, earliest, -N, an RFC 3339 time, a duration such as -5m, or a cursor"


@dataclass(frozen=True, slots=True)
class From:
    """What ``from`` said."""

    kind: Literal["latest", "earliest", "last", "since", "ago", "cursor"]
    number: int = 0
    """last: how many; since: milliseconds since 1970; ago: milliseconds."""
    cursor: str = ""


def parse_from(text: str) -> From:
    """Read ``from``. Raises `InvalidFrom`. A cursor is recognised by its form here, and read by `resolve_start`."""
    if text in ("latest", "earliest"):
        return From("latest" if text == "latest" else "earliest")
    if match := _LAST.fullmatch(text):
        count = int(match[1])
        if not 1 <= count <= MAX_LAST:
            raise InvalidFrom(f"-N takes an N from 1 to {MAX_LAST}", limit=MAX_LAST)
        return From("last", count)
    try:
        if text.startswith("-"):
            return From("ago", parse_duration(text[1:]))
        if text[:4].isdecimal():
            # A '+' that was not encoded arrives as a space; there is only one thing it can have meant.
            time = text[:19] + text[19:].replace(" ", "+")
            return From("since", parse_rfc3339(time))
    except ValueError:
        raise InvalidFrom(_HINT) from None
    if _CURSOR.fullmatch(text):
        return From("cursor", cursor=text)
    raise InvalidFrom(_HINT)


@dataclass(frozen=True, slots=True)
class Start:
    """Where reading starts."""

    next: Mapping[int, int]
    """Partition → first offset to read, for every partition of the selection."""
    gaps: tuple[Gap, ...] = ()


async def resolve_start(
    context: GatewayContext, selection: Selection, asked: From, cursor_text: str | None = None, *, strict: bool = False
) -> Start:
    """Turn what was asked into offsets. ``cursor_text`` (``Last-Event-ID``) wins over ``asked``.

    Not ``strict`` (subscriptions): nothing about a cursor is an error, and the answer never lies beyond this gateway's
    feed, so that history and live meet. ``strict`` (pages): raises `InvalidCursor` and `Gone`.
    Raises `InvalidFrom` for -N over more than one stream, `Unavailable` where no node answers.
    """
    if not strict:
        start = start_now(context, selection, asked, cursor_text)
        if start is not None:
            return start
    placing = _Placing(context, selection, strict=strict)
    if cursor_text or asked.kind == "cursor":
        start = await placing.cursor(cursor_text or asked.cursor)
    elif asked.kind == "latest":
        start = Start(await placing.latest())
    elif asked.kind == "earliest":
        start = Start(await placing.earliest())
    elif asked.kind == "last":
        start = Start(await placing.last(asked.number))
    else:
        moment = asked.number if asked.kind == "since" else context.clock.unix_ms() - asked.number
        start = Start(await placing.since(moment))
    if not strict:
        await placing.fed(start.next)
    return start


def start_now(context: GatewayContext, selection: Selection, asked: From, cursor_text: str | None) -> Start | None:
    """`resolve_start` of a subscription for the usual two, of which nobody has to be asked: from here on, and from a
    cursor of this epoch that names all that is read and lies within the gateway's memory. None for all else."""
    hub = context.hub
    if not hub.started:
        return None
    fed = hub.vector.next
    if not cursor_text and asked.kind == "latest":
        return Start({partition: fed.get(partition, 0) for partition in selection.partitions})
    if not cursor_text and asked.kind != "cursor":
        return None
    try:
        cursor = _decoded(cursor_text or asked.cursor)
    except InvalidCursor:
        return None
    named, rings = cursor.next, hub.rings
    if cursor.epoch != context.router.epoch:
        return None
    for partition in selection.partitions:
        offset = named.get(partition)
        if offset is None or offset > fed.get(partition, -1) or not rings[partition].covers(offset):
            return None
    return Start({partition: named[partition] for partition in selection.partitions})


_decoded = lru_cache(maxsize=1024)(Cursor.decode)
"""After a failure many come back from the same few places. What it gives is never changed."""


class _Placing:
    """One reader being placed."""

    def __init__(self, context: GatewayContext, selection: Selection, *, strict: bool) -> None:
        self._context = context
        self._selection = selection
        self._strict = strict

    def _of_selection(self, offsets: Mapping[int, int]) -> dict[int, int]:
        return {partition: offsets.get(partition, 0) for partition in self._selection.partitions}

    async def ends(self) -> dict[int, int]:
        """What the log itself says."""
        return self._of_selection(await ask(self._context.router, lambda link: link.ends()))

    async def earliest(self) -> dict[int, int]:
        """The oldest kept."""
        return self._of_selection(await ask(self._context.router, lambda link: link.starts()))

    async def latest(self) -> dict[int, int]:
        """Subscriptions start where the feed is, which costs nothing; a page has to know the log's own end."""
        return await self.ends() if self._strict else self._of_selection(self._context.hub.vector.next)

    async def since(self, append_ms: int) -> dict[int, int]:
        """The first records not appended earlier."""
        return self._of_selection(await ask(self._context.router, lambda link: link.offset_at(max(append_ms, 0))))

    async def fed(self, start: Mapping[int, int]) -> None:
        """Wait until this gateway's feed has come to the start. A client that was cut from a quicker gateway, or read
        its own receipt, can be ahead by some milliseconds."""
        vector = self._context.hub.vector
        for _ in range(round(CATCH_UP_TIMEOUT / _POLL)):
            if all(vector.next.get(partition, 0) >= offset for partition, offset in start.items()):
                return
            await asyncio.sleep(_POLL)
        raise Unavailable("the gateway is behind the log", retry_after=1)

    # --- the last N -------------------------------------------------------------------------------

    async def last(self, count: int) -> dict[int, int]:
        """The last ``count`` records of one stream that the selection lets through, or those of them that are found
        within `LOOK_BACK`."""
        selection = self._selection
        if selection.patterns or len(selection.streams) != 1:
            raise InvalidFrom("-N needs exactly one stream, without wildcards")
        start = await self.ends()
        found: list[tuple[int, int, int]] = []
        clock, left = self._context.clock, len(start)
        end = clock.monotonic() + LOOK_BACK
        for partition, stop in start.items():
            now = clock.monotonic()
            found += await self._last_of(partition, stop, count, deadline=now + (end - now) / left)
            left -= 1
        # What one partition holds of the last N overall is its own tail, so its smallest chosen offset is its start.
        for _, partition, offset in sorted(found, reverse=True)[:count]:
            start[partition] = offset
        return start

    async def _last_of(self, partition: int, stop: int, count: int, *, deadline: float) -> list[tuple[int, int, int]]:
        """(append time, partition, offset) of its last matching records, newest first."""
        wanted = self._selection.filter
        found: list[tuple[int, int, int]] = []
        while stop > 0 and len(found) < count:
            limit = _BACK_RECORDS if wanted else min(count - len(found), _BACK_RECORDS)
            page = await self._context.history.page(
                PageQuery(partition, 0, stop, limit, _BACK_BYTES, list(self._selection.streams), backwards=True)
            )
            found += (
                (record.append_ms, partition, record.offset)
                for record in page.records
                if wanted is None or wanted.matches(attributes_of(record))
            )
            if page.next >= stop:  # the node that answered has nothing to say about this range
                raise Unavailable("the node is behind the log", retry_after=1)
            stop = page.next
            if wanted and self._context.clock.monotonic() >= deadline:
                break
        return found[:count]

    # --- cursors ----------------------------------------------------------------------------------

    async def cursor(self, text: str) -> Start:
        """Where a cursor points, as far as that is still there."""
        try:
            cursor = _decoded(text)
        except InvalidCursor:
            if self._strict:
                raise
            start = await self.latest()
            return Start(start, (Gap("cursor-invalid", self._text(start)),))
        if cursor.epoch == self._context.router.epoch:
            return await self._continued(cursor.next)
        stops = self._context.router.former(cursor.epoch)
        if stops is not None:
            return await self._carried_over(cursor.next, stops)
        if self._strict:
            raise Gone("the cursor belongs to another incarnation of the log; start again, e.g. from=earliest")
        start = await self.earliest()
        return Start(start, (Gap("epoch", self._text(start)),))

    async def _carried_over(self, named: Mapping[int, int], stops: Mapping[int, int]) -> Start:
        """A cursor of a former epoch is right up to where that stands in this one. What came behind it then is lost."""
        beyond = {p: offset for p, offset in named.items() if offset > stops.get(p, 0)}
        if beyond and self._strict:
            raise Gone("what the cursor points to was lost with an earlier incarnation of the log; start again")
        start = await self._continued({p: min(offset, stops.get(p, 0)) for p, offset in named.items()})
        lost = [
            Gap("epoch", self._text({p: start.next[p]}), p, offset) for p, offset in beyond.items() if p in start.next
        ]
        return Start(start.next, (*lost, *start.gaps))

    async def _continued(self, named: Mapping[int, int]) -> Start:
        # A log that was made anew may have fewer partitions.
        named = {partition: at for partition, at in named.items() if partition < self._context.router.partitions}
        start = {partition: named[partition] for partition in self._selection.partitions if partition in named}
        gaps = [*await self._not_beyond_the_end(start), *await self._not_below_the_start(start)]
        missing = [partition for partition in self._selection.partitions if partition not in named]
        if missing:
            nothing_named = not start
            at = await self._same_time(named)
            start.update({partition: at[partition] for partition in missing})
            if nothing_named:
                gaps.append(Gap("not-in-cursor", self._text(start)))
        return Start(dict(sorted(start.items())), tuple(gaps))

    async def _not_beyond_the_end(self, start: dict[int, int]) -> list[Gap]:
        feed = self._context.hub.vector.next if self._context.hub.started else {}
        ahead = [partition for partition, offset in start.items() if offset > feed.get(partition, -1)]
        if not ahead:
            return []
        ends = await self.ends()
        ahead = [partition for partition in ahead if start[partition] > ends[partition]]
        if ahead and self._strict:
            raise Gone("the cursor points beyond the end of the log; start again, e.g. from=latest")
        gaps: list[Gap] = []
        for partition in ahead:
            resumes = self._text({partition: ends[partition]})
            gaps.append(Gap("cursor-future", resumes, partition, start[partition], ends[partition]))
            start[partition] = ends[partition]
        return gaps

    async def _not_below_the_start(self, start: dict[int, int]) -> list[Gap]:
        rings = self._context.hub.rings
        old = [p for p, offset in start.items() if p not in rings or not rings[p].covers(offset)]
        if not old:
            return []
        kept = await self.earliest()
        gaps: list[Gap] = []
        for partition in old:
            if start[partition] < kept[partition]:
                resumes = self._text({partition: kept[partition]})
                gaps.append(Gap("retention", resumes, partition, start[partition], kept[partition]))
                start[partition] = kept[partition]
        return gaps

    async def _same_time(self, named: Mapping[int, int]) -> dict[int, int]:
        """Where partitions start that a cursor does not name: at the earliest append time of those it does. Rather a
        few events twice (of streams the client had not asked for) than one too few."""
        times: list[int] = []
        for partition, offset in named.items():
            before = await self._append_time(partition, offset - 1) if offset > 0 else None
            time = before if before is not None else await self._append_time(partition, offset)
            if time is not None:
                times.append(time)
        return await self.since(min(times)) if times else await self.earliest()

    async def _append_time(self, partition: int, offset: int) -> int | None:
        return await ask(self._context.router, lambda link: link.append_time(partition, offset), partition=partition)

    def _text(self, vector: Mapping[int, int]) -> str:
        return CursorWriter(self._context.router.epoch, vector).text()
