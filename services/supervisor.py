"""Gateway and node processes, kept alive. The supervisor serves nothing itself."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from services.doors import Door
from services.process import EXIT_START_ERROR, OnReady
from shared.errors import StartError
from shared.settings import Settings

FIRST_RESTART = 1.0
"""Seconds before a dead child is started again; doubles with each death up to `LAST_RESTART`."""
LAST_RESTART = 30.0
HEALTHY_AFTER = 60.0
"""Seconds of life after which a child's earlier deaths are forgotten."""
START_TIMEOUT = 30.0
EXIT_WITHIN = 4.8
"""Seconds from the signal (and ``gateway.drain_delay``) to the end of the last child; what is left then is killed."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Child:
    """One process of ours: what it is, and how it fares."""

    name: str
    command: Sequence[str]
    environ: dict[str, str]
    door: Door | None = None
    """Sockets of ours that it inherits."""
    process: Process | None = None
    url: str = ""
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def passed(self) -> Sequence[int]:
        """Descriptors that it inherits."""
        return () if self.door is None else self.door.descriptors

    def close_door(self) -> None:
        """Let go of its sockets: once it has done so too, whoever connects is refused."""
        if self.door is not None:
            self.door.close()

    def signal(self, number: int) -> None:
        """Send a signal, if it runs."""
        if self.process is not None and self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)


def restart_delay(deaths: int) -> float:
    """Seconds to wait before the next start, after this many deaths in a row."""
    return min(FIRST_RESTART * 2.0 ** min(deaths - 1, 30), LAST_RESTART)


class Supervisor:
    """Starts the children, restarts the dead, and ends them in order: the gateways drain first, then the nodes.

    The gateways' listening sockets are the supervisor's, and each gateway inherits its own: while a dead one is
    replaced, those who connect wait in the backlog. Refused, some would never try again: a browser's `EventSource` may
    give up for good on a refused reconnect (WHATWG HTML, 9.2.3), and Firefox does for another origin's.
    """

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        *,
        doors: Sequence[Door],
        nodes: int,
        restart: bool,
    ) -> None:
        """``doors``: one for each gateway. They are closed with the first signal."""
        self._restart = restart
        self._may_wait = settings.is_distributed  # servers may come later than we do
        self._draining = False
        self._delay = settings.gateway.drain_delay
        self._gateway_drain = min(settings.gateway.drain_timeout + 0.3, EXIT_WITHIN - 0.5)
        base = dict(environ)
        prefix = settings.node.id or "node"
        self.gateways = [_gateway(base, door, doors, n) for n, door in enumerate(doors, 1)]
        self.nodes = [_node({**base, "CDRS_NODE__ID": f"{prefix}-{n}"}, n) for n in range(1, nodes + 1)]

    @property
    def children(self) -> Sequence[Child]:
        """All of them, nodes first: the order of starting."""
        return [*self.nodes, *self.gateways]

    async def run(self, stop: asyncio.Event, on_ready: OnReady) -> None:
        """Until ``stop`` is set; ``on_ready`` gets the gateways' URL once every child serves, and is cancelled with the
        first signal. Raises `StartError` where a child cannot start for the first time."""
        async with asyncio.TaskGroup() as tasks:
            keepers = {child.name: tasks.create_task(self._keep(child), name=child.name) for child in self.children}
            starting = tasks.create_task(self._announce(on_ready), name="starting")
            await stop.wait()
            self._draining = True
            for gateway in self.gateways:
                gateway.close_door()  # the gateway has its own hold of it, until it has drained
            starting.cancel()
            await self._end(keepers)

    async def _announce(self, on_ready: OnReady) -> None:
        while not await self._all_ready():
            late = ", ".join(child.name for child in self.children if not child.ready.is_set())
            if not self._may_wait:
                raise StartError(f"not ready after {START_TIMEOUT:.0f} s: {late}; see the messages above")
            logger.warning("not ready yet: %s; see the messages above", late)
        await on_ready(self.gateways[0].url)

    async def _all_ready(self) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(START_TIMEOUT):
                for child in self.children:
                    await child.ready.wait()
                return True
        return False

    async def _end(self, keepers: Mapping[str, asyncio.Task[None]]) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._delay + EXIT_WITHIN
        gateways = [keepers[child.name] for child in self.gateways]
        nodes = [keepers[child.name] for child in self.nodes]
        # Those that wait for their restart have nothing to end; the others see the signal.
        for child in self.children:
            if child.process is None:
                keepers[child.name].cancel()
        for child in self.gateways:
            child.signal(signal.SIGTERM)
        await asyncio.wait(gateways, timeout=self._delay + self._gateway_drain)
        for child in self.nodes:
            child.signal(signal.SIGTERM)
        await asyncio.wait([*gateways, *nodes], timeout=max(0.1, deadline - loop.time()))
        for child in self.children:
            child.signal(signal.SIGKILL)

    async def _keep(self, child: Child) -> None:
        deaths = 0
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            code: int | str
            try:
                code = await self._live(child)
            except OSError as error:  # no memory, or no process to be had: the others live on meanwhile
                if not child.ready.is_set():
                    raise StartError(f"{child.name} could not start: {error}") from error
                code = str(error)
            if self._draining:
                return
            if code == EXIT_START_ERROR and not child.ready.is_set():
                raise StartError(f"{child.name} could not start")
            if not self._restart:
                logger.error("child died", extra={"child": child.name, "exit": code, "restart": "never"})
                child.close_door()  # nobody will come to answer
                return
            deaths = 1 if loop.time() - started >= HEALTHY_AFTER else deaths + 1
            delay = restart_delay(deaths)
            logger.error("child died", extra={"child": child.name, "exit": code, "restart": f"{delay:.0f}s"})
            await asyncio.sleep(delay * random.uniform(1.0, 1.1))

    async def _live(self, child: Child) -> int:
        """Start it, read what it says, wait for its end; kill it where this task is cancelled."""
        # Its own session: Ctrl+C in the terminal reaches the supervisor alone, which ends the children in order.
        # Its standard input is a pipe that nobody writes to: it ends when the supervisor ends, however that happens.
        process = await asyncio.create_subprocess_exec(
            *child.command, stdin=PIPE, stdout=PIPE, env=child.environ, start_new_session=True, pass_fds=child.passed
        )
        child.process = process
        try:
            assert process.stdout is not None
            async for line in process.stdout:
                self._hear(child, line)
            return await process.wait()
        finally:
            child.process = None
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

    def _hear(self, child: Child, line: bytes) -> None:
        with suppress(ValueError, KeyError, TypeError):
            child.url = str(json.loads(line)["ready"])
            child.ready.set()


def _gateway(environ: Mapping[str, str], door: Door, doors: Sequence[Door], number: int) -> Child:
    name = "gateway" if len(doors) == 1 else f"gateway-{number}"
    flags = ["--listen-fd", str(door.common.fileno())]
    if door.own is not None:
        siblings = [each.own_url for each in doors if each is not door]
        flags += ["--own-fd", str(door.own.fileno()), "--siblings", ",".join(siblings)]
    return Child(name, _command("gateway", name, flags), _without_node(environ), door)


def _node(environ: dict[str, str], number: int) -> Child:
    name = f"node-{number}"
    environ.pop("CDRS_NODE__URL", None)  # one address cannot be that of several nodes
    return Child(name, _command("node", name), environ)


def _without_node(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in {"CDRS_NODE__ID", "CDRS_NODE__URL"}}


def _command(role: str, name: str, flags: Sequence[str] = ()) -> list[str]:
    return [sys.executable, "-m", "services.cli.main", role, "--supervised", name, *flags]


def announce_ready(url: str) -> None:
    """A supervised process tells its supervisor, on standard output, that it serves."""
    with suppress(OSError):
        os.write(sys.stdout.fileno(), json.dumps({"ready": url}).encode() + b"\n")
