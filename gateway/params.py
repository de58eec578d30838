"""Query parameters, read strictly: what an address does not know, or takes once and gets twice, is refused."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import NoReturn

from starlette.datastructures import QueryParams

from shared.errors import InvalidParameter

_PRINTABLE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")


class Params:
    """The query of one request."""

    __slots__ = ("_query",)

    def __init__(self, query: QueryParams, *, known: Collection[str]) -> None:
        """Raises `InvalidParameter` for a name that is not ``known``."""
        for name in query:
            if name not in known:
                refuse_unknown(name, known)
        self._query = query

    def many(self, name: str) -> Sequence[str]:
        """Every value given, in order."""
        return self._query.getlist(name)

    def one(self, name: str) -> str | None:
        """The value, or None where it was not given. Raises `InvalidParameter` where it was given twice."""
        values = self._query.getlist(name)
        if len(values) > 1:
            raise InvalidParameter(f"'{name}' may be given once only", parameter=name)
        return values[0] if values else None

    def integer(self, name: str, default: int, *, least: int, most: int) -> int:
        """A whole number in [least, most]."""
        text = self.one(name)
        if text is None:
            return default
        # isdecimal() alone would take other scripts' digits, and int() signs, spaces and underscores.
        if not (text.isascii() and text.isdecimal() and len(text) <= 12 and least <= int(text) <= most):
            raise InvalidParameter(f"'{name}' is a whole number from {least} to {most}", parameter=name)
        return int(text)

    def flag(self, name: str) -> bool:
        """``true`` or ``false``; false where it was not given."""
        text = self.one(name)
        if text not in (None, "true", "false"):
            raise InvalidParameter(f"'{name}' is true or false", parameter=name)
        return text == "true"


def refuse_unknown(name: str, known: Collection[str], *, what: str = "parameter") -> NoReturn:
    """Raise `InvalidParameter`, naming the name only where it can be nothing but a name."""
    said = f"'{name}' is no {what} of this address" if _PRINTABLE_NAME.fullmatch(name) else f"an unknown {what}"
    choice = ", ".join(sorted(known)) or "none"
    raise InvalidParameter(f"{said}; it takes: {choice}")
