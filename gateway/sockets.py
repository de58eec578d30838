"""What the kernel keeps of a connection, and for how long: looked at and bounded."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from contextlib import suppress
from functools import cache

SEND_BUFFER = 80 * 1024
"""What the kernel may hold for one subscriber, in bytes: it would let the buffer of a stalled one grow to megabytes. It
counts twice as much, for its bookkeeping; with a write of `sse.write_bytes` that is 224 KiB for one who never reads."""
ANSWER_SEND_BUFFER = 32 * 1024
"""The same for every other answer, and on the portable path, where such a client also holds a write before the
transport, and a task."""
USUAL = 40 * 1024
"""What it may receive, twice as well: what a new connection begins with. Left to itself, the kernel would be ready to
take more and more from a client that sends without end, before that shows not to read. With 32 KiB, a sender on this
machine, whose segments have 64, waits 0.2 s for room now and then."""
NARROW = 4 * 1024
"""The same for a client that sends on and does not read. What it was ready to take comes besides, up to 80 KiB."""
NARROW_SENDING = 8 * 1024
"""What it then takes of the answers. What it has taken already comes besides."""
NO_SOCKET = -1
"""No descriptor."""
SO_BUF_LOCK = 72
SO_RCVBUF_LOCK = 2
"""Of Linux 5.14: the buffer is of a set size. Python has no names for them."""


def plain_socket(transport: asyncio.Transport) -> int:
    """The descriptor to which a transport's bytes could as well be written, where it changes nothing about them."""
    sock = transport.get_extra_info("socket")
    return NO_SOCKET if sock is None or transport.get_extra_info("sslcontext") is not None else int(sock.fileno())


def outstanding(transport: asyncio.Transport) -> int:
    """Bytes that have not reached the client: ours, and what the kernel holds unacknowledged."""
    return transport.get_write_buffer_size() + _queued(transport, termios.TIOCOUTQ)


def unread(transport: asyncio.Transport) -> int:
    """Bytes that the client has sent and that were not read."""
    return _queued(transport, termios.FIONREAD)


def _queued(transport: asyncio.Transport, request: int) -> int:
    """Bytes in one of the kernel's two queues; 0 where the client has gone already."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with suppress(OSError, ValueError):
            return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), request, b"\0\0\0\0"))[0])
    return 0


def set_kernel_timeout(transport: asyncio.Transport, seconds: float) -> None:
    """How long the kernel waits for a client that has vanished; 0: as long as it retransmits."""
    sock = transport.get_extra_info("socket")
    with suppress(OSError, ValueError):  # the client may have gone already
        if sock is not None and sock.family in {socket.AF_INET, socket.AF_INET6}:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(seconds * 1000))


def bound_socket(transport: asyncio.Transport | None, stall_timeout: float, *, send_buffer: int = SEND_BUFFER) -> None:
    """Bound what the kernel keeps for a client that does not read, and how long it waits for one that has vanished."""
    sock = transport.get_extra_info("socket") if transport is not None else None
    if transport is None or sock is None:
        return
    bound_sending(transport, send_buffer)
    with suppress(OSError, ValueError):
        if sock.family in {socket.AF_INET, socket.AF_INET6}:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            set_kernel_timeout(transport, stall_timeout)


def bound_sending(transport: asyncio.Transport, size: int) -> None:
    """How much the kernel keeps of what is written; what it has already is kept."""
    _set_buffer(transport, socket.SO_SNDBUF, size)


@cache
def may_grow_again() -> bool:
    """Whether the kernel lets go of a bound that was set."""
    with suppress(OSError), socket.socket() as sock:
        sock.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK)
        return True
    return False


def bound_receiving(transport: asyncio.Transport, size: int) -> None:
    """How much the kernel keeps of what the client sends, besides what it was ready to take before."""
    _set_buffer(transport, socket.SO_RCVBUF, size)


def _set_buffer(transport: asyncio.Transport, which: int, size: int) -> None:
    sock = transport.get_extra_info("socket")
    with suppress(OSError, ValueError):  # the client may have gone already
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, which, size)


def widen_receiving(transport: asyncio.Transport) -> None:
    """It may be as much as the client is fast, from `USUAL` on."""
    sock = transport.get_extra_info("socket")
    with suppress(OSError, ValueError):  # an older kernel leaves it at this
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, USUAL)
            locks = sock.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK)
            sock.setsockopt(socket.SOL_SOCKET, SO_BUF_LOCK, locks & ~SO_RCVBUF_LOCK)
