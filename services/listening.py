"""Listening sockets: bound before anything else is opened, so that a taken port or a forbidden bind fails at once."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from shared.errors import StartError
from shared.settings import Settings

BACKLOG = 4096
"""Connections that wait for being taken; the kernel's own bound may be lower."""


def require_loopback(host: str, *, insecure: bool, setting: str) -> None:
    """Refuse any bind beyond this machine while there is no access control, unless the operator insists."""
    if insecure or is_loopback(host):
        return
    raise StartError(
        f"{setting} = {host!r} would let other machines in, and there is no access control yet: anyone who reaches the "
        "port could read and write every stream. Bind to 127.0.0.1, or give --insecure if the network is trusted"
    )


def require_url(url: str, *, setting: str) -> None:
    """Refuse an address under which nobody could reach us. Raises `StartError`."""
    if not url:
        return
    with suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme == "http" and parts.hostname and parts.port and not (parts.path.strip("/") or parts.query):
            return
    raise StartError(f"{setting} = {url!r} is no address of a node; write it as http://host:port")


def require_gateway(settings: Settings) -> None:
    """Refuse a bind as `require_loopback` does, and a public address that is none. Raises `StartError`."""
    require_loopback(settings.gateway.host, insecure=settings.insecure, setting="gateway.host")
    url = settings.gateway.public_url
    if url and not name_in(url):
        raise StartError(f"gateway.public_url = {url!r} is no address; write it as https://name or https://name:port")


def name_in(url: str) -> str:
    """The host of a URL over HTTP; empty where it is none."""
    with suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme in {"http", "https"} and (parts.port is None or parts.port):
            return parts.hostname or ""
    return ""


def is_loopback(host: str) -> bool:
    """Whether the address is reached from this machine only."""
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


@contextmanager
def listening(host: str, port: int, *, flag: str) -> Generator[socket.socket]:
    """A listening TCP socket. Raises `StartError` naming the port, who has it, and the ``flag`` that chooses another.

    It listens from the start: two processes may *bind* one port with SO_REUSEADDR, only one can listen. Clients that
    come before the server is ready wait in the backlog.
    """
    with listening_together(host, port, 1, flag=flag) as servers:
        yield servers[0]


@contextmanager
def listening_together(host: str, port: int, count: int, *, flag: str) -> Generator[Sequence[socket.socket]]:
    """So many sockets that listen on one port, for as many processes: the kernel spreads those who connect over them
    (SO_REUSEPORT, by their address), and who was given to one waits for that one. Raises `StartError` as `listening`.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise StartError(
            f"the address {host!r} cannot be resolved: {error.strerror}; choose another by --host"
        ) from error
    with ExitStack() as stack:
        servers: list[socket.socket] = []
        for number in range(count):
            server = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Connections inherit it; answers come in pieces.
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                if number:
                    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                server.bind(address)
                if count > 1:
                    # The first one was bound without it, and so only where nobody else listens: another command of
                    # this user on the same port would share it silently.
                    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                server.listen(BACKLOG)
            except OSError as error:
                raise StartError(_explain(error, host, port, flag)) from error
            server.setblocking(False)
            address = server.getsockname()  # port 0: the others take the port that the first one was given
            servers.append(server)
        yield servers


@contextmanager
def adopted(descriptor: int) -> Generator[socket.socket]:
    """A listening socket that the parent process made and passed on. Raises `StartError` where it is none.

    The parent keeps it open: what connects while this process is dead waits for the next one.
    """
    try:
        server = socket.socket(fileno=descriptor)
    except OSError as error:
        raise StartError(f"descriptor {descriptor} is no socket: {error.strerror}") from error
    with server:
        if not server.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise StartError(f"descriptor {descriptor} is a socket that does not listen")
        server.set_inheritable(False)
        server.setblocking(False)
        yield server


def url_of(server: socket.socket) -> str:
    """``http://host:port`` of a listening socket, as this machine reaches it."""
    host, port = server.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:  # noqa: S104 -- compared, not bound
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _explain(error: OSError, host: str, port: int, flag: str) -> str:
    if error.errno == errno.EADDRINUSE:
        owner = port_owner(port)
        by = f" by {owner}" if owner else ""
        return f"port {port} on {host} is taken{by}; choose another with {flag} ({flag} 0 takes a free one)"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} needs privileges; choose one above 1023 with {flag}"
    return f"cannot listen on {host} port {port}: {error.strerror}"


def port_owner(port: int) -> str:
    """The process that listens on a TCP port, as ``name (pid n)``; empty where it cannot be told."""
    inodes = _listening_inodes(port)
    if not inodes:
        return ""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                if str(descriptor.readlink()) in inodes:
                    name = (process / "comm").read_text().strip()
                    return f"{name} (pid {process.name})"
    return ""


def _listening_inodes(port: int) -> set[str]:
    inodes: set[str] = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    return inodes
