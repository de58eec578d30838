"""`cdrs up --demo`: plays sample events through the HTTP interface, at a pace that can be watched."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import orjson

from services.cli.client import open_session
from services.cli.feedfile import Mapper, open_feed_file
from services.cli.output import talk
from services.cli.sending import LineSource, Piece, Sender, Source
from shared.errors import CdrsError
from shared.settings import Settings

SAMPLE = Path(__file__).parents[3] / "shared/data/wikipedia-edits-2015-09-12.ndjson.gz"
"""Beside a checkout of the project, where there is one."""
TICK = 0.05
GENERATED_LINES = 40_000


class PacedSource:
    """So many lines a second."""

    def __init__(self, lines: Iterator[tuple[int, bytes]], rate: float) -> None:
        self._lines = lines
        self._rate = rate
        self._owed = 0.0

    async def next(self) -> Piece | None:
        while True:
            if self._owed < 1:
                await asyncio.sleep(TICK)
                self._owed += self._rate * TICK
                continue
            taken = list(islice(self._lines, int(self._owed)))
            self._owed -= int(self._owed)
            if not taken:
                return None
            return Piece(b"\n".join([*(line for _, line in taken), b""]), [number for number, _ in taken])


async def play(settings: Settings, url: str, *, rate: float) -> None:
    """Play the sample once; ``rate`` 0 = as fast as it goes. A failure is told and ends the demo, nothing else."""
    try:
        with _sample(settings) as (name, lines):
            talk.print(f"  demo: playing {name}\n  watch: curl -N '{url}/v1/events?stream=wiki.%3E'\n")
            # Another source with each start: the same edits again would be duplicates, and nothing would move.
            source = f"cdrs-demo:{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"
            mapper = Mapper("channel", source, prefix="wiki.", key_from="page", time_from="time", type="edit")
            events = ((number, mapper.event(number, line)) for number, line in lines)
            feed: Source = PacedSource(events, rate) if rate else LineSource(events)
            async with open_session() as session:
                sender = Sender(session, f"{url}/v1/events")
                await sender.send(feed)
            totals = sender.totals
            talk.print(f"  demo: {totals.stored:,} events stored, {totals.failed:,} failed; it is all there to replay")
    except (CdrsError, ValueError) as error:
        talk.print(f"  demo: ended: {error}")


@contextmanager
def _sample(settings: Settings) -> Generator[tuple[str, Iterator[tuple[int, bytes]]]]:
    path = Path(settings.sample) if settings.sample else SAMPLE
    if settings.sample or path.is_file():
        with open_feed_file(path) as feed:
            yield path.name, feed.numbered()
    else:
        yield "generated edits (no sample file was found; CDRS_SAMPLE names one)", enumerate(generated_lines(), 1)


def generated_lines(count: int = GENERATED_LINES) -> Iterator[bytes]:
    """Edits of the sample's shape: few busy channels, many quiet ones; the same ones each time."""
    dice = random.Random(20150912)
    languages = ("en", "de", "fr", "ja", "vi", "es", "ru", "it", "zh", "pt", "pl", "nl", "sv", "uk", "ar", "fa", "ca")
    weights = [1 / (rank + 1) for rank in range(len(languages))]
    start = datetime(2015, 9, 12, tzinfo=UTC)
    for number in range(count):
        language = dice.choices(languages, weights)[0]
        added, deleted = int(dice.expovariate(0.01)), int(dice.expovariate(0.05))
        yield orjson.dumps(
            {
                "time": (start + timedelta(seconds=number * 2.2)).isoformat(timespec="milliseconds"),
                "channel": f"#{language}.wikipedia",
                "comment": f"edit {number}",
                "isRobot": dice.random() < 0.4,
                "page": f"Page {int(dice.paretovariate(0.6)) % 5000}",
                "user": f"user{dice.randrange(2000)}",
                "delta": added - deleted,
                "added": added,
                "deleted": deleted,
            }
        )
