from __future__ import annotations

import orjson
import pytest

from shared.errors import InvalidFilter, PatternTooComplex
from shared.filters import Filter, parse_filter

EDIT = {"type": "edit", "source": "/wiki", "id": "1", "subject": "Talk:Oslo", "priority": 3, "minor": True}


def parsed(terms: object) -> Filter:
    found = parse_filter(orjson.dumps(terms).decode())
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("terms", "holds"),
    [
        ([{"exact": {"type": "edit"}}], True),
        ([{"exact": {"type": "Edit"}}], False),
        ([{"exact": {"type": "edit", "id": "2"}}], False),
        ([{"prefix": {"subject": "Talk:"}}], True),
        ([{"suffix": {"subject": "Oslo"}}], True),
        ([{"suffix": {"subject": "Bergen"}}], False),
        ([{"exact": {"unset": "x"}}], False),
        ([{"not": {"exact": {"unset": "x"}}}], True),
        ([{"any": [{"exact": {"id": "9"}}, {"prefix": {"source": "/w"}}]}], True),
        ([{"exact": {"type": "edit"}}, {"not": {"prefix": {"subject": "Talk:"}}}], False),
        ([{"exact": {"priority": "3"}}], True),
        ([{"exact": {"minor": "true"}}], True),
    ],
)
def test_dialects(terms: object, holds: bool) -> None:
    assert parsed(terms).matches(EDIT) is holds


def test_an_empty_filter_is_none() -> None:
    assert parse_filter("[]") is None


def test_equal_filters_share_a_view() -> None:
    one = parse_filter('[{"exact":{"b":"2","a":"1"}}]')
    other = parse_filter(' [ {"exact": {"a": "1", "b": "2"}} ] ')
    assert one == other
    assert hash(one) == hash(other)


def test_what_must_be_equal_can_be_indexed() -> None:
    assert parsed([{"exact": {"type": "edit"}}]).required() == [("type", "edit")]
    assert parsed([{"exact": {"type": "edit", "id": "1"}}]).required() == [("id", "1"), ("type", "edit")]
    two = [{"exact": {"type": "edit"}}, {"prefix": {"source": "/a"}}, {"exact": {"id": "1"}}]
    assert parsed(two).required() == [("type", "edit"), ("id", "1")]
    for none in ({"prefix": {"type": "edit"}}, {"not": {"exact": {"type": "a"}}}, {"any": [{"exact": {"id": "1"}}]}):
        assert parsed([none]).required() == []


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "{}", '{"$where":"1"}', "[1]", '[{"$gt":{"a":"b"}}]', '[{"exact":{"a":1}}]', '[{"exact":{}}]',
        '[{"exact":{"A":"b"}}]', '[{"exact":{"data":"b"}}]', '[{"exact":{"a.b":"c"}}]', '[{"prefix":{"a":""}}]',
        '[{"any":[]}]', '[{"any":{}}]', '[{"not":[]}]', '[{"exact":{"a":"b"},"not":{}}]', '[{"all":[]}]',
    ],
)  # fmt: skip
def test_b29_refused(text: str) -> None:
    with pytest.raises(InvalidFilter):
        parse_filter(text)


def test_b30_too_complex() -> None:
    deep: object = {"exact": {"a": "b"}}
    for _ in range(6):
        deep = {"not": deep}
    for terms in ([{"exact": {"a": "b"}}] * 33, [deep], [{"exact": {"a": "x" * 5000}}]):
        with pytest.raises(PatternTooComplex):
            parsed(terms)
