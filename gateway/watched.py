"""uvicorn's HTTP/1.1 protocol, where it is known whether the client takes what it is answered, and where little is kept
for one that does not: of the answer, of what it sends meanwhile, and by the kernel."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import ClassVar

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway import ahead
from gateway.sockets import (
    ANSWER_SEND_BUFFER,
    NARROW,
    NARROW_SENDING,
    USUAL,
    bound_receiving,
    bound_sending,
    may_grow_again,
    outstanding,
    set_kernel_timeout,
    unread,
    widen_receiving,
)
from gateway.stalls import StallWatch

WRITE_BUFFER = 8 * 1024
"""Bytes of answers that wait before the kernel's buffer, besides one write, until whoever answers has to wait."""

LARGE = 16 * 1024
"""Bytes of a body from which on it is a large one, and received as fast as it comes."""

UNTAKEN = 16 * 1024
"""Bytes of answers that the client has not taken, from which on it may be one that does not read."""


class Flow(FlowControl):
    """An application that waits for its client makes uvicorn read on. Not while requests wait for their answers."""

    must_wait = False

    def resume_reading(self) -> None:
        if not self.must_wait:
            super().resume_reading()


class WatchedProtocol(HttpToolsProtocol):
    """One client's connection."""

    flow: Flow
    stalls: ClassVar[StallWatch | None] = None
    """What cuts clients that take nothing; None: nothing does."""

    _is_streaming = False
    """The answer under way is written in pieces."""
    _is_narrow = False
    """The kernel receives little."""
    _is_sending_narrow = False
    """It takes few of the answers."""
    _is_wide = False
    """It receives as much as the client can send."""
    _body_bytes = 0
    """What has come of the body of the request that comes."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = Flow(transport)  # pyright: ignore[reportIncompatibleVariableOverride]
        transport.set_write_buffer_limits(WRITE_BUFFER)
        if may_grow_again():
            bound_receiving(transport, USUAL)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.stalls is not None:
            self.stalls.add(self)
        self._look_behind()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.stalls is not None:
            self.stalls.discard(self)
        if not self._is_streaming:
            self._widen_if_taken()

    def _narrow(self) -> None:
        if not self._is_narrow:
            self._is_narrow, self._is_wide = True, False
            bound_receiving(self.transport, NARROW)

    def _narrow_sending(self) -> None:
        if not self._is_sending_narrow:
            self._is_sending_narrow = True
            bound_sending(self.transport, NARROW_SENDING)

    def _widen_sending(self) -> None:
        if self._is_sending_narrow:
            self._is_sending_narrow = False
            bound_sending(self.transport, ANSWER_SEND_BUFFER)

    def _widen_if_taken(self) -> None:
        """Let it send as fast as it likes again, unless it is ahead of its answers."""
        if self._is_narrow and not self.flow.write_paused and not self._behind_bytes():
            self._is_narrow = False
            bound_receiving(self.transport, USUAL)
            self._widen_sending()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._body_bytes = 0

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes >= LARGE and not self._is_wide:
            self._is_narrow, self._is_wide = False, True
            widen_receiving(self.transport)
            self._widen_sending()
        super().on_body(body)

    def _unwatch(self) -> None:
        if self.stalls is not None:
            self.stalls.forget(self)

    # --- answers in pieces -----------------------------------------------------------------------

    def read_no_more(self) -> None:
        """Until the answer under way is complete: what the client sends meanwhile stays with the kernel, or with it."""
        self.flow.must_wait = True
        self.flow.pause_reading()
        self._narrow()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._widen_if_taken()

    @contextmanager
    def streaming(self) -> Generator[None]:
        """An answer is written in pieces: one that the client has not taken is all that is kept of it."""
        self._is_streaming = True
        self._widen_sending()
        self._set_write_buffer(0)
        self._look_behind()
        try:
            yield
        finally:
            self._is_streaming = False
            self._set_write_buffer(WRITE_BUFFER)

    def _set_write_buffer(self, size: int) -> None:
        with suppress(RuntimeError):  # it is closed already
            self.transport.set_write_buffer_limits(size)

    @property
    def is_taken(self) -> bool:
        """Whether the client takes what is written, so that more may follow."""
        return not self.flow.write_paused

    async def taken(self) -> None:
        """Wait for that, or for the connection's end. The stall watch bounds it."""
        await self.flow.drain()

    # --- a client that takes nothing -------------------------------------------------------------

    def _behind_bytes(self) -> int:
        """What is kept of what came behind the request that is being answered."""
        return 0

    def _look_behind(self) -> None:
        """After the client has stopped reading, or sent more. One that is far ahead of answers of which the kernel
        holds some may not be reading: that shows only once it holds many, and would hold as much of what was sent."""
        behind = self._behind_bytes()
        if not self.flow.write_paused:
            if behind > ahead.UNREAD and self.outstanding() > UNTAKEN:
                self._narrow()
                if not self._is_streaming:
                    self._narrow_sending()
            return
        if self._is_streaming and behind + unread(self.transport) > ahead.UNREAD:
            self.cut()
        elif behind or self._is_streaming:
            self._narrow()

    def outstanding(self) -> int:
        """Bytes that have not reached the client: ours, and what the kernel holds unacknowledged."""
        return outstanding(self.transport)

    def set_kernel_timeout(self, seconds: float) -> None:
        """See `gateway.sockets`."""
        set_kernel_timeout(self.transport, seconds)

    def cut(self) -> None:
        """End it without a word."""
        self.transport.abort()
