"""A browser's reading of an event stream (WHATWG HTML 9.2.6), written from the standard; shares no code with cdrs."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass
class Dispatched:
    name: str
    data: str
    last_id: str


class SpecParser:
    def __init__(self) -> None:
        self.events: list[Dispatched] = []
        self.last_id = ""
        self.retry: int | None = None
        self._text = b""
        self._data: list[str] = []
        self._name = ""
        self._id_buffer = ""

    def feed(self, chunk: bytes) -> list[Dispatched]:
        before = len(self.events)
        self._text += chunk
        *lines, self._text = re.split(rb"\r\n|\n|\r", self._text)
        for line in lines:
            self._line(line.decode())
        return self.events[before:]

    def _line(self, line: str) -> None:
        if not line:
            self._dispatch()
            return
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._name = value
        elif field == "id" and "\0" not in value:
            self._id_buffer = value
        elif field == "retry" and value.isascii() and value.isdigit():
            self.retry = int(value)

    def _dispatch(self) -> None:
        self.last_id = self._id_buffer
        if self._data:
            self.events.append(Dispatched(self._name or "message", "\n".join(self._data), self.last_id))
        self._data, self._name = [], ""
