"""What the two roles of a process share. Each role is in a module of its own: `services.node_role` and
`services.gateway_role`, so that a process imports only what it is."""

from __future__ import annotations

import secrets
import socket
from asyncio import Task, TaskGroup
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from services.listening import url_of
from services.process import usable_cpus
from shared.ports import STARTING, Member
from shared.settings import Settings
from shared.version import VERSION

READY_TIMEOUT = 20.0
"""Seconds for a role to come up before the process gives up."""


@dataclass(slots=True)
class Background:
    """The tasks of a role, cancelled together when it has drained."""

    group: TaskGroup
    tasks: list[Task[None]] = field(default_factory=list[Task[None]])

    def start(self, work: Coroutine[Any, Any, None], name: str) -> Task[None]:
        """Run until cancelled; its failure ends the process."""
        task = self.group.create_task(work, name=name)
        self.tasks.append(task)
        return task

    def cancel(self) -> None:
        """End them all, newest first."""
        for task in reversed(self.tasks):
            task.cancel()


def new_incarnation() -> str:
    """What tells one life of a process from the next: 8 random hex digits."""
    return secrets.token_hex(4)


def member_of(settings: Settings, role: str, listener: socket.socket, *, incarnation: str) -> Member:
    """The registry's item for a role of this process."""
    port = listener.getsockname()[1]
    is_node = role in {"node", STARTING}
    own = settings.node.id if is_node else ""
    given = settings.node.url if is_node else ""
    return Member(
        id=own or f"{socket.gethostname()}-{port}",
        incarnation=incarnation,
        role=role,
        url=given.rstrip("/") or url_of(listener),
        version=VERSION,
        zone=settings.node.zone,
        capacity=settings.node.capacity or usable_cpus(),
    )
