"""Filters over CloudEvents attributes, in the dialects of the CloudEvents Subscriptions draft.

A filter is a JSON array; every element must hold::

    [{"exact": {"type": "edit"}}, {"not": {"prefix": {"subject": "Talk:"}}}, {"any": [{…}, {…}]}]

Only attributes are looked at, never data, so delivery parses no payload. Matching is linear in the filter's size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import orjson

from shared.errors import InvalidFilter, PatternTooComplex

MAX_TEXT = 4096
"""Longest filter parameter, in characters after URL decoding."""
MAX_TERMS = 32
MAX_DEPTH = 4
_ATTRIBUTE = re.compile(r"[a-z0-9]{1,64}")

Attributes = Mapping[str, Any]


class Filter:
    """One compiled filter. Equal filters are equal objects, whatever white space or order of members they came in."""

    __slots__ = ("_terms", "text")

    def __init__(self, terms: Sequence[Mapping[str, Any]]) -> None:
        self._terms = [_compile(term) for term in terms]
        self.text = orjson.dumps(terms, option=orjson.OPT_SORT_KEYS).decode()
        """The canonical form."""

    def matches(self, attributes: Attributes) -> bool:
        """Whether every term holds. An attribute that is not set makes exact, prefix and suffix false."""
        return all(term(attributes) for term in self._terms)

    def required(self) -> Sequence[tuple[str, str]]:
        """(attribute, value) pairs that whatever matches must have, so that a filter can be found by one of them."""
        terms: list[dict[str, Any]] = orjson.loads(self.text)
        return [pair for term in terms for pair in term.get("exact", {}).items()]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Filter) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)


def parse_filter(text: str) -> Filter | None:
    """Compile the ``filter`` parameter; None for an empty array. Raises `InvalidFilter` or `PatternTooComplex`."""
    if len(text) > MAX_TEXT:
        raise PatternTooComplex(f"a filter has at most {MAX_TEXT} characters", limit=MAX_TEXT)
    try:
        terms = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidFilter("filter is not valid JSON") from error
    if not isinstance(terms, list):
        raise InvalidFilter("filter is a JSON array of terms")
    if _count(terms, 1) > MAX_TERMS:
        raise PatternTooComplex(f"a filter has at most {MAX_TERMS} terms", limit=MAX_TERMS)
    return Filter(cast("list[Mapping[str, Any]]", terms)) if terms else None


def _count(terms: Any, depth: int) -> int:
    if depth > MAX_DEPTH:
        raise PatternTooComplex(f"filter terms nest at most {MAX_DEPTH} deep", limit=MAX_DEPTH)
    total = 0
    for term in terms:
        members = cast("dict[str, Any]", term) if isinstance(term, dict) else {}
        if len(members) != 1:
            raise InvalidFilter("a term is an object with one member: exact, prefix, suffix, any or not")
        dialect, value = next(iter(members.items()))
        if dialect == "any":
            if not isinstance(value, list) or not value:
                raise InvalidFilter("'any' takes a non-empty array of terms")
            total += _count(value, depth + 1)
        elif dialect == "not":
            total += _count([value], depth + 1)
        elif dialect in {"exact", "prefix", "suffix"}:
            total += _check_pairs(dialect, value)
        else:
            raise InvalidFilter("the dialects are exact, prefix, suffix, any and not")
    return total


def _check_pairs(dialect: str, value: Any) -> int:
    pairs = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    if not pairs:
        raise InvalidFilter(f"'{dialect}' takes an object of attribute names and strings")
    for name, wanted in pairs.items():
        if _ATTRIBUTE.fullmatch(name) is None or name == "data":
            raise InvalidFilter("attribute names are lower-case letters and digits; data cannot be filtered on")
        if not isinstance(wanted, str) or (dialect != "exact" and not wanted):
            raise InvalidFilter(f"'{dialect}' compares with a{' non-empty' if dialect != 'exact' else ''} string")
    return len(pairs)


class _Pairs:
    __slots__ = ("_dialect", "_pairs")

    def __init__(self, dialect: str, pairs: Mapping[str, str]) -> None:
        self._dialect = dialect
        self._pairs = tuple(pairs.items())

    def __call__(self, attributes: Attributes) -> bool:
        for name, wanted in self._pairs:
            value = attributes.get(name)
            if value is None:
                return False
            text = value if isinstance(value, str) else orjson.dumps(value).decode()
            if self._dialect == "exact":
                if text != wanted:
                    return False
            elif self._dialect == "prefix":
                if not text.startswith(wanted):
                    return False
            elif not text.endswith(wanted):
                return False
        return True


class _Any:
    __slots__ = ("_terms",)

    def __init__(self, terms: Sequence[Mapping[str, Any]]) -> None:
        self._terms = [_compile(term) for term in terms]

    def __call__(self, attributes: Attributes) -> bool:
        return any(term(attributes) for term in self._terms)


class _Not:
    __slots__ = ("_term",)

    def __init__(self, term: Mapping[str, Any]) -> None:
        self._term = _compile(term)

    def __call__(self, attributes: Attributes) -> bool:
        return not self._term(attributes)


def _compile(term: Mapping[str, Any]) -> _Pairs | _Any | _Not:
    dialect, value = next(iter(term.items()))
    if dialect == "any":
        return _Any(value)
    if dialect == "not":
        return _Not(value)
    return _Pairs(dialect, value)
