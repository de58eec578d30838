"""The sockets of gateways under a supervisor: the port that all of them share, and one more for each alone."""

from __future__ import annotations

import socket
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from gateway.siblings import Siblings
from services.listening import adopted, listening, listening_together, url_of
from services.process import usable_cpus
from shared.settings import GatewaySettings


@dataclass(frozen=True, slots=True)
class Door:
    """Where clients reach one gateway."""

    common: socket.socket
    """Its share of the port that all gateways listen on."""
    own: socket.socket | None = None
    """A loopback port of its own, where there are several: who asks there asks this one."""

    @property
    def descriptors(self) -> Sequence[int]:
        """What a child inherits."""
        return [each.fileno() for each in (self.common, self.own) if each is not None]

    @property
    def own_url(self) -> str:
        """Address of its own port; empty where there is none."""
        return "" if self.own is None else url_of(self.own)

    def close(self) -> None:
        """Idempotent."""
        for each in (self.common, self.own):
            if each is not None:
                each.close()


@dataclass(frozen=True, slots=True)
class Inherited:
    """What a gateway was given by its supervisor."""

    name: str
    """The process's."""
    common: int
    """Descriptor of its share of the port."""
    own: int | None = None
    """Descriptor of the port that is its alone, where there are several."""
    siblings: Sequence[str] = ()
    """Addresses of the others' own ports."""

    @property
    def sibling_gateways(self) -> Siblings | None:
        """The others; None where it is alone."""
        return Siblings(self.name, self.siblings) if self.siblings else None

    @contextmanager
    def door(self) -> Generator[Door]:
        """Its sockets. Raises `StartError` where a descriptor is none."""
        with ExitStack() as stack:
            own = None if self.own is None else stack.enter_context(adopted(self.own))
            yield Door(stack.enter_context(adopted(self.common)), own)


def gateway_count(settings: GatewaySettings) -> int:
    """How many gateway processes are asked for."""
    return settings.workers or max(1, round(usable_cpus()))


@contextmanager
def gateway_doors(settings: GatewaySettings) -> Generator[Sequence[Door]]:
    """Doors for as many gateways as are asked for. Raises `StartError` where the port is taken."""
    count = gateway_count(settings)
    with ExitStack() as stack:
        common = stack.enter_context(listening_together(settings.host, settings.port, count, flag="--port"))
        if count == 1:
            yield [Door(common[0])]
        else:
            yield [Door(each, stack.enter_context(listening("127.0.0.1", 0, flag="--port"))) for each in common]
