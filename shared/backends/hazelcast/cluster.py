"""Which cluster the registry's URL names. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from shared.errors import StartError

SCHEME: Final = "hazelcast://"
DEFAULT_PORT: Final = 5701
DEFAULT_NAME: Final = "dev"
"""What Hazelcast itself calls a cluster that was given no name."""
SETTING: Final = "setting registry.url"
"""How messages name the setting."""

_HOST = re.compile(r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster's name and the members that are asked first; the others are learned from them."""

    name: str
    members: tuple[tuple[str, int], ...]
    """Host and port."""
    prefix: str
    """First part of the names of the set (``.members``) and of the map (``.heartbeats``)."""

    def __str__(self) -> str:
        return f"{SCHEME}{','.join(map(address_text, self.members))}/{self.name}"


def address_text(member: tuple[str, int]) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    host, port = member
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_cluster(url: str, *, prefix: str = "cdrs") -> Cluster:
    """Read ``hazelcast://host:port,host:port/cluster-name``. Raises `StartError`, which never repeats a password."""
    if not url.startswith(SCHEME):
        raise StartError(f"{SETTING} must start with {SCHEME}")
    hosts, _, name = url.removeprefix(SCHEME).partition("/")
    if "@" in hosts:
        raise StartError(f"{SETTING} takes no user and password: Hazelcast has them in its Enterprise edition only")
    name = name or DEFAULT_NAME
    if not _NAME.fullmatch(name):
        raise StartError(f"{SETTING}: {name!r} is no cluster name; expected {SCHEME}host:port,host:port/cluster-name")
    return Cluster(name, tuple(dict.fromkeys(_member(text) for text in hosts.split(","))), prefix)


def _member(text: str) -> tuple[str, int]:
    found = _HOST.match(text)
    host, rest = (found.group(), text[found.end() :]) if found else ("", text)
    port = rest.removeprefix(":") if rest else str(DEFAULT_PORT)
    is_port = port != rest and port.isascii() and port.isdigit() and 0 < int(port) < 65_536
    if not host or not is_port:
        raise StartError(f"{SETTING}: {text!r} is no host:port; expected {SCHEME}host:port,host:port/cluster-name")
    return host.strip("[]"), int(port)
