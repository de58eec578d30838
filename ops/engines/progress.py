"""Says on stderr what is going on: one line that renews itself each second on a terminal, a few lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Generator
from types import TracebackType

_ELSEWHERE = 15.0


class Progress:
    """Shows tasks that run side by side. Use as a context manager around them."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        """Set when the whole is broken off: tasks look at it and end."""
        self._tasks: dict[str, Callable[[], str]] = {}
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._terminal = sys.stderr.isatty()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def say(self, text: str) -> None:
        """A line that stays."""
        with self._lock:
            print(("\r\x1b[K" if self._terminal else "") + text, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def task(self, name: str, measure: Callable[[], str]) -> Generator[None]:
        """Show a task while it runs: its name, its time, and what ``measure`` says of how far it is."""
        began = time.monotonic()
        if not self._terminal:
            self.say(f"{name} …")

        def show() -> str:
            return f"{name} {time.monotonic() - began:.0f} s {measure()}".rstrip()

        with self._lock:
            self._tasks[name] = show
        try:
            yield
        finally:
            with self._lock:
                del self._tasks[name]
        self.say(f"{name}: done in {time.monotonic() - began:.1f} s")

    def _run(self) -> None:
        while not self._done.wait(1.0 if self._terminal else _ELSEWHERE):
            with self._lock:
                line = " · ".join(show() for show in self._tasks.values())
                if line and self._terminal:
                    print(f"\r\x1b[K{line[:150]}", end="", file=sys.stderr, flush=True)
                elif line:
                    print(line, file=sys.stderr, flush=True)
