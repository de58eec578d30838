"""A progress bar on stderr, where that is a terminal."""

from __future__ import annotations

import time
from types import TracebackType

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from services.cli.output import talk

EVERY_LINES = 256
"""Lines between two updates: an update costs as much as several lines."""


class SendProgress:
    """How far a file has been sent. Progress is told in bytes of the file on disk, the rate in lines."""

    def __init__(self, name: str, size: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[rate]:,.0f} events/s"),
            TimeRemainingColumn(),
            console=talk,
            disable=not talk.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task(name, total=size or None, rate=0.0)
        self._started = time.monotonic()
        self._ended: float | None = None

    def __enter__(self) -> SendProgress:
        self._progress.start()
        self._started = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = time.monotonic()
        self._progress.stop()

    @property
    def seconds(self) -> float:
        """From start to end, or to now."""
        return (self._ended or time.monotonic()) - self._started

    def sent(self, lines: int, read_bytes: int) -> None:
        """So many lines are on their way; so many bytes of the file were read."""
        if lines % EVERY_LINES == 0:
            rate = lines / max(self.seconds, 0.001)
            self._progress.update(self._task, completed=read_bytes, rate=rate)
