"""What every server process does alike: event loop, signals, logging, and ending with its parent."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

import uvloop

from shared.descriptors import raise_limit
from shared.errors import StartError

EXIT_START_ERROR = 1
EXIT_INTERRUPTED = 130

SWITCH_INTERVAL = 0.0005
"""Seconds. SQLite releases the interpreter lock around each of its calls, and its worker thread must then win it back
from a busy event loop. With Python's default of 5 ms every one of those calls could cost 5 ms, and a commit makes
several; half a millisecond keeps an append near the price of its fsync and costs the loop under 1 %."""

logger = logging.getLogger(__name__)

WARM_UP = 5.0
"""Seconds after the start in which everything that lives as long as the process has been made."""

Main = Callable[[asyncio.Event], Awaitable[None]]
"""A role: runs until the event is set, then drains and returns."""
OnReady = Callable[[str], Awaitable[None]]
"""Gets the URL of what was started, once it serves; cancelled with the first signal."""


def run_server(main: Main, *, log_level: str, supervised: str | None = None) -> int:
    """Run a role to its end and return the exit code: 0 after a drain, 1 where it could not start.

    The first SIGINT or SIGTERM starts the drain, a second one ends the process at once with 130. ``supervised`` is the
    name a supervisor gave to this process: it then also drains when its standard input ends (that is its supervisor's
    death, whatever killed it), and its log lines carry the name.
    """
    configure_logging(log_level, process=supervised or "")
    sys.setswitchinterval(SWITCH_INTERVAL)
    raise_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_run(main, supervised=supervised is not None))
        except BaseExceptionGroup as group:
            return _report(_first_start_error(group) or group)
        except StartError as error:
            return _report(error)
    logger.info("stopped")
    return 0


async def _run(main: Main, *, supervised: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stop.is_set():
            sys.stderr.flush()
            os._exit(EXIT_INTERRUPTED)
        logger.info("draining", extra={"signal": signal.Signals(number).name})
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    if supervised:
        stdin = sys.stdin.fileno()
        os.set_blocking(stdin, False)
        loop.add_reader(stdin, _on_parent_input, stdin, stop)
    warming = loop.call_later(WARM_UP, _freeze)
    try:
        await main(stop)
    finally:
        warming.cancel()


def _freeze() -> None:
    """Modules, classes and settings stay: the collector need not walk them each time it looks for cycles. It does not
    look for some before that either: a walk over everything would stop the loop for 50 ms, to find a few dozen."""
    gc.freeze()


def _on_parent_input(stdin: int, stop: asyncio.Event) -> None:
    with suppress(BlockingIOError):
        if os.read(stdin, 4096):
            return
        asyncio.get_running_loop().remove_reader(stdin)
        if not stop.is_set():
            logger.warning("the supervisor is gone; draining")
            stop.set()


def _first_start_error(group: BaseExceptionGroup[BaseException]) -> StartError | None:
    for error in group.exceptions:
        if isinstance(error, StartError):
            return error
        if isinstance(error, BaseExceptionGroup):
            found = _first_start_error(cast("BaseExceptionGroup[BaseException]", error))
            if found is not None:
                return found
    return None


def _report(error: BaseException) -> int:
    if isinstance(error, StartError):
        sys.stderr.write(f"cdrs: {error}\n")
    else:
        logger.critical("the process failed", exc_info=error)
    return EXIT_START_ERROR


# --- logging --------------------------------------------------------------------------------------

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class LineFormatter(logging.Formatter):
    """``time level logger message key=value …``: one line per entry; a traceback follows it, indented."""

    def __init__(self, process: str = "") -> None:
        super().__init__()
        self._suffix = f" process={process}" if process else ""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.gmtime(record.created)
        stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', moment)}.{int(record.msecs):03d}Z"
        message = record.getMessage().replace("\r", "\\r").replace("\n", "\\n")
        pairs = "".join(f" {k}={_value(v)}" for k, v in vars(record).items() if k not in _STANDARD)
        line = f"{stamp} {record.levelname.lower()} {record.name} {message}{pairs}{self._suffix}"
        if record.exc_info:
            line += "\n    " + self.formatException(record.exc_info).replace("\n", "\n    ")
        return line


def _value(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return repr(text) if not text or any(c.isspace() or c in "\"'" for c in text) else text


_CHATTY = ("asyncio", "aiokafka", "aiohttp.access", "sse_starlette", "uvicorn")
"""These tell of each connection; among that our own entries would drown."""
_REPEATING = "aiokafka"
"""It says each attempt aloud: some hundred lines a second while a broker is away."""
_SHOWN = 3
_PERIOD = 10.0
_REMEMBERED = 1000


class RepeatFilter(logging.Filter):
    """Of what a library says again and again, so many entries of one text in so many seconds; the first one behind them
    tells by ``more`` how many were left out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._said: dict[tuple[str, str], tuple[float, int]] = {}
        """Logger and text → since when, and how often."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] != _REPEATING:
            return True
        key, now = (record.name, str(record.msg)), self._clock()
        since, count = self._said.get(key, (now, 0))
        if now - since > _PERIOD:
            if count > _SHOWN:
                record.more = count - _SHOWN
            since, count = now, 0
        if len(self._said) >= _REMEMBERED:
            self._said.clear()
        self._said[key] = since, count + 1
        return count < _SHOWN


def configure_logging(level: str, *, process: str = "") -> None:
    """Send all logging of this process to stderr, one line per entry; ``process`` tells several apart."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(process))
    handler.addFilter(RepeatFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(max(root.level, logging.WARNING))


# --- capacity -------------------------------------------------------------------------------------


def usable_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """CPUs this process may use: its affinity, cut by the quota of its cgroup (v2, else v1)."""
    cpus = float(len(os.sched_getaffinity(0)))
    with suppress(OSError, ValueError):
        quota, period = (cgroup / "cpu.max").read_text().split()
        return cpus if quota == "max" else min(cpus, int(quota) / int(period))
    with suppress(OSError, ValueError):
        quota_us = int((cgroup / "cpu/cpu.cfs_quota_us").read_text())
        period_us = int((cgroup / "cpu/cpu.cfs_period_us").read_text())
        return cpus if quota_us <= 0 else min(cpus, quota_us / period_us)
    return cpus
