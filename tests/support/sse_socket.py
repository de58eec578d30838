"""A subscriber of its own: plain sockets, an own HTTP/1.1 reader and an own parser of server-sent events.

It shares no line with the product, so it can judge it. It is as strict as the strictest browser: the id of a block
counts only when the block is dispatched (it has a ``data`` line), and an unfinished block is forgotten at a cut.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote, urlencode

_DATA_HEAD = re.compile(rb'\{(?:"(?:[^"\\]|\\.)*":(?:"(?:[^"\\]|\\.)*"|[-+.0-9A-Za-z]+),)*?"data":')


class Block(NamedTuple):
    """One dispatched block of an event stream."""

    id: bytes
    """The last event id at its dispatch."""
    event: bytes
    data: bytes
    at: float
    """Monotonic seconds of the read that completed it."""

    @property
    def is_control(self) -> bool:
        return self.event.startswith(b"cdrs.")


def data_of(cloudevent: bytes) -> bytes:
    """The ``data`` member of a CloudEvent's JSON text, cut out by position, never parsed and written again."""
    match = _DATA_HEAD.match(cloudevent)
    if match is None or not cloudevent.endswith(b"}"):
        raise AssertionError(f"no data in {cloudevent[:200]!r}")
    return cloudevent[match.end() : -1]


class EventStreamParser:
    """The WHATWG parser of ``text/event-stream``, sans I/O."""

    def __init__(self, last_id: bytes = b"") -> None:
        self.retry_ms: int | None = None
        self._buffer = b""
        self._started = False
        self._id = last_id
        self._event = b""
        self._data: list[bytes] = []

    def feed(self, received: bytes, at: float = 0.0) -> list[Block]:
        buffer = self._buffer + received
        if not self._started:
            if len(buffer) < 3 and b"\xef\xbb\xbf".startswith(buffer):
                self._buffer = buffer
                return []
            buffer = buffer.removeprefix(b"\xef\xbb\xbf")
            self._started = True
        if b"\r" in buffer:
            keep = buffer.endswith(b"\r")  # its LF may still come
            if keep:
                buffer = buffer[:-1]
            buffer = buffer.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            lines = buffer.split(b"\n")
            self._buffer = lines.pop() + (b"\r" if keep else b"")
        else:
            lines = buffer.split(b"\n")
            self._buffer = lines.pop()
        blocks: list[Block] = []
        for line in lines:
            if line:
                self._field(line)
            else:
                if self._data:
                    blocks.append(Block(self._id, self._event, b"\n".join(self._data), at))
                    self._data = []
                self._event = b""
        return blocks

    def _field(self, line: bytes) -> None:
        name, colon, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if name == b"data":
            self._data.append(value)
        elif name == b"id":
            if b"\0" not in value:
                self._id = value
        elif name == b"event":
            self._event = value
        elif name == b"retry" and value.isdigit():
            self.retry_ms = int(value)
        elif name and name != b"retry":
            raise AssertionError(f"a field no server should send: {line[:80]!r} ({colon!r})")


class BodyReader:
    """Reads one HTTP/1.1 response: the head, then the body, chunked or until the end. Sans I/O."""

    def __init__(self) -> None:
        self.status = 0
        self.reason = ""
        self.headers: dict[str, str] = {}
        self.complete = False
        self._buffer = bytearray()
        self._chunked = False
        self._left = 0  # of the current chunk, with its CRLF
        self._length: int | None = None

    def feed(self, received: bytes) -> bytes:
        """Take bytes, give bytes of the body."""
        self._buffer += received
        if not self.status and not self._head():
            return b""
        return self._chunks() if self._chunked else self._plain()

    def _head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        first, *fields = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        version, status, self.reason = [*first.split(" ", 2), ""][:3]
        if not version.startswith("HTTP/1."):
            raise AssertionError(f"not HTTP/1: {first!r}")
        for field in fields:
            name, _, value = field.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        self.status = int(status)
        self._chunked = self.headers.get("transfer-encoding", "").lower() == "chunked"
        if not self._chunked and "content-length" in self.headers:
            self._length = int(self.headers["content-length"])
            self.complete = self._length == 0
        return True

    def _plain(self) -> bytes:
        body = bytes(self._buffer)
        self._buffer.clear()
        if self._length is not None:
            self._length -= len(body)
            self.complete = self._length <= 0
        return body

    def _chunks(self) -> bytes:
        buffer, parts = self._buffer, []
        at = 0
        while not self.complete:
            if self._left:
                take = min(self._left, len(buffer) - at)
                if not take:
                    break
                wanted = max(0, min(take, self._left - 2))  # the last two are its CRLF
                if wanted:
                    parts.append(bytes(buffer[at : at + wanted]))
                at += take
                self._left -= take
                continue
            end = buffer.find(b"\r\n", at)
            if end < 0:
                break
            size = int(bytes(buffer[at:end]).split(b";")[0], 16)
            at = end + 2
            if size == 0:
                self.complete = True
            self._left = size + 2
        del buffer[:at]
        return b"".join(parts)


class Subscriber:
    """Follows an event stream in a thread of its own and resumes with the last id it saw, for ever, until closed.

    ``blocks`` are the data blocks in the order of arrival over all connections, ``controls`` the ``cdrs.*`` ones.
    """

    def __init__(
        self,
        port: int,
        streams: str | Sequence[str],
        *,
        host: str = "127.0.0.1",
        params: Mapping[str, str] | None = None,
        cut_at: Iterable[int] = (),
        retry_seconds: float | None = 0.05,
        name: str = "",
        on_block: Callable[[Block], None] | None = None,
    ) -> None:
        wanted = [streams] if isinstance(streams, str) else list(streams)
        query = urlencode([("stream", s) for s in wanted] + list((params or {}).items()), quote_via=quote)
        self.path = f"/v1/events?{query}"
        self.name = name or ",".join(wanted)
        self.blocks: list[Block] = []
        self.controls: list[Block] = []
        self.last_id = b""
        self.resumed_with: list[bytes] = []
        self.ends: list[str] = []
        self.statuses: list[int] = []
        self.headers: dict[str, str] = {}
        self.error: BaseException | None = None
        self._address = (host, port)
        self._cut_at = sorted(cut_at)
        self._retry = retry_seconds
        self._on_block = on_block
        self._changed = threading.Condition()
        self._stop = False
        self._stopped = threading.Event()
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name=f"sse {self.name}", daemon=True)

    def start(self, timeout: float = 15.0) -> Subscriber:
        """Connect and wait for the first cursor block, so that nothing sent afterwards can be missed."""
        self._thread.start()
        self.wait(lambda: bool(self.last_id), timeout, "its first cursor block")
        return self

    def __enter__(self) -> Subscriber:
        return self if self._thread.is_alive() else self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def connections(self) -> int:
        return len(self.statuses)

    def cut(self) -> None:
        """Break the connection now; it resumes by itself."""
        sock = self._socket
        if sock is not None:
            _reset(sock)

    def close(self) -> None:
        self._stop = True
        self._stopped.set()
        self.cut()
        if self._thread.ident is not None:
            self._thread.join(10)

    def wait(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        """Wait until ``condition`` holds; it is looked at after each read."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not condition():
                if self.error is not None:
                    raise AssertionError(f"subscriber {self.name} failed: {self.error!r}") from self.error
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"subscriber {self.name} waited {timeout:g} s for {what}: {self.summary()}")
                self._changed.wait(min(left, 0.5))

    def wait_count(self, count: int, timeout: float) -> None:
        """Wait until so many data blocks have arrived."""
        self.wait(lambda: len(self.blocks) >= count, timeout, f"{count} events")

    def summary(self) -> str:
        controls = [(b.event.decode(), b.data[:200].decode()) for b in self.controls if b.event != b"cdrs.cursor"]
        return (
            f"{len(self.blocks)} events, {self.connections} connections, statuses {sorted(set(self.statuses))}, "
            f"ends {self.ends[-12:]}, controls {controls[-6:]}, last id {self.last_id!r}"
        )

    def _run(self) -> None:
        try:
            while not self._stop:
                end = self._connection()
                with self._changed:
                    if not (end.startswith("refused") and self.ends and self.ends[-1] == end):
                        self.ends.append(end)
                    self._changed.notify_all()
                if not self._stop:
                    self._stopped.wait(self._retry if self._retry is not None else 0.5)
        except BaseException as error:  # handed to whoever waits
            with self._changed:
                self.error = error
                self._changed.notify_all()

    def _connection(self) -> str:
        try:
            sock = socket.create_connection(self._address, timeout=5)
        except OSError as error:
            return f"refused {type(error).__name__}"
        self._socket = sock
        with sock:
            if self._stop:
                return "closed"
            sock.settimeout(60)
            try:
                sock.sendall(self._request())
                return self._read(sock)
            except (OSError, ValueError) as error:  # ValueError: closed from another thread
                return f"broken {type(error).__name__}"
            finally:
                self._socket = None

    def _request(self) -> bytes:
        lines = [
            f"GET {self.path} HTTP/1.1",
            f"Host: {self._address[0]}:{self._address[1]}",
            "Accept: text/event-stream",
            "Cache-Control: no-store",
        ]
        if self.last_id:
            self.resumed_with.append(self.last_id)
            lines.append(f"Last-Event-ID: {self.last_id.decode()}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def _read(self, sock: socket.socket) -> str:
        body, parser = BodyReader(), EventStreamParser(self.last_id)
        told = False
        while True:
            received = sock.recv(262_144)
            at = time.monotonic()
            if not received:
                return "cut"
            text = body.feed(received)
            if body.status and not told:
                told = True
                self.headers = dict(body.headers)
                self.statuses.append(body.status)
            if told and body.status != 200:
                if body.status < 500:
                    raise AssertionError(f"{self.name}: status {body.status}: {text[:300]!r}")
                return f"status {body.status}"
            if text and not self._take(parser.feed(text, at)):
                _reset(sock)
                return "cut on purpose"
            if body.complete:
                return "clean"

    def _take(self, blocks: list[Block]) -> bool:
        """Record blocks; False where a cut on purpose falls between them: what follows was never seen."""
        whole = True
        with self._changed:
            for block in blocks:
                self.last_id = block.id
                if block.is_control:
                    self.controls.append(block)
                    continue
                self.blocks.append(block)
                if self._on_block is not None:
                    self._on_block(block)
                if self._cut_at and len(self.blocks) >= self._cut_at[0]:
                    self._cut_at.pop(0)
                    whole = False
                    break
            self._changed.notify_all()
        return whole


def _reset(sock: socket.socket) -> None:
    """End a connection at once, with RST, from any thread."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
