"""One open subscription, as the hub sees it: a cursor into shared frames and something that takes bytes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from gateway.gzip_body import HEADER, GzipBody, stored
from gateway.sockets import NO_SOCKET

if TYPE_CHECKING:
    from gateway.views import Joined, View

PLAIN, FRAMED, STORED, DEFLATED = 0, 1, 2, 4
"""The forms of what a view gives out, as bits: FRAMED as chunks of an HTTP/1.1 body; STORED and DEFLATED (one of them)
as blocks of a gzip member, with the text as it is or from the compressor that the view's readers share."""


class Writer(Protocol):
    """The way to one client. It holds at most one write that the client has not taken; that is its whole buffer.

    One that is still `ready` after a write (the kernel took it all) gets the next one with the next sweep; one that is
    not calls `Hub.service` when it is again.
    """

    ready: bool
    """Whether `write` may be called: the last write has left for the socket."""

    def write(self, chunk: bytes, /) -> None:
        """Send bytes. Only when ``ready``."""
        ...

    def lag(self) -> None:
        """The frames this client needs next are gone from the view: read history instead."""
        ...

    def finish(self, blocks: bytes) -> None:
        """Send last blocks (`Subscriber.last`), if the client still takes any, and end cleanly. Only once the
        subscriber is in no view."""
        ...


class Subscriber:
    """Fixed memory, whatever happens: no queue, no task, no timer of its own."""

    __slots__ = ("cursor", "expires", "form", "gzip", "live", "remote", "seq", "socket", "view", "writer", "wrote")

    def __init__(
        self,
        writer: Writer,
        cursor: bytes,
        *,
        remote: str,
        now: float,
        expires: float,
        framed: bool = False,
        gzip: bool = False,
    ) -> None:
        """``framed``: the writer wants its bytes as chunks of an HTTP/1.1 body. ``gzip``: in a gzip member."""
        self.writer = writer
        self.form = (FRAMED if framed else PLAIN) | (STORED if gzip else PLAIN)
        """How it gets the frames of its view just now."""
        self.gzip = GzipBody() if gzip else None
        self.socket = NO_SOCKET
        """Descriptor to which bytes may go past the writer. The writer sets it while it is ready and nothing waits in
        it, so it is that of an open connection, and of this one."""
        self.cursor = cursor
        """Text of the cursor of what was last written."""
        self.remote = remote
        """Address of the client, for operators."""
        self.view: View | None = None
        """The view it stands in; None while it reads history on its own."""
        self.seq = 0
        """Number of the next frame of the view."""
        self.live = False
        """False while history is still being read up to the place where it joined."""
        self.wrote = now
        """Monotonic time of the last write."""
        self.expires = expires
        """Monotonic time at which the stream is rotated."""

    @property
    def ready(self) -> bool:
        """Whether `write` may be called."""
        return self.socket >= 0 or self.writer.ready

    def write(self, chunk: bytes) -> None:
        """Send bytes. Only when ``ready``.

        One call into the kernel, where there is a socket. The transport on the way there does the same, but it is the
        larger part of what a delivery touches in memory, and of a crowd nothing stays in the cache.
        """
        if self.socket >= 0:
            try:
                sent = os.write(self.socket, chunk)
            except OSError:  # nothing was sent: the kernel has no room, or the transport will find the same error
                sent = 0
            if sent == len(chunk):
                return
            chunk = chunk[sent:]
        self.writer.write(chunk)

    def give(self, joined: Joined, now: float) -> None:
        """Send what its view has joined for its place. Only when ``ready``."""
        self.seq, self.cursor, self.wrote = joined.next_seq, joined.cursor, now
        self.write(joined.chunk)

    def first(self, blocks: bytes) -> bytes:
        """The first bytes of its answer, in the answer's coding."""
        return self.coded(blocks) if self.gzip is None else HEADER + self.coded(blocks)

    def coded(self, blocks: bytes) -> bytes:
        """Bytes for this one alone, in the answer's coding."""
        if self.gzip is None:
            return blocks
        if self.view is None:
            self.gzip.add(blocks)
        else:
            self.view.interrupt(self, blocks)
        return stored(blocks)

    def last(self, blocks: bytes) -> bytes:
        """The last bytes of its answer, in the answer's coding. Only once it is in no view."""
        return blocks if self.gzip is None else self.coded(blocks) + self.gzip.trailer()
