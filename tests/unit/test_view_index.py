"""The cost of an event grows with the views that get it: told by counting what is looked at, not by time."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from sample_records import record

from gateway.view_index import FilteredViews, PatternTree, ViewIndex, candidates_of, passes, plain_of
from gateway.views import Selection, View
from shared.events import attributes_of
from shared.filters import Filter, parse_filter
from shared.sse import DEFAULT_SHAPE, Shape
from shared.validation import Pattern


def selection(
    *streams: str, patterns: Sequence[str] = (), wanted: str = "[]", vector: bool = False, shape: Shape = DEFAULT_SHAPE
) -> Selection:
    return Selection(tuple(sorted(streams)), tuple(sorted(patterns)), parse_filter(wanted), shape, (0,), vector)


def exact(**attributes: str) -> str:
    return json.dumps([{"exact": {name: value}} for name, value in attributes.items()])


def given(index: ViewIndex, stream: str, **attributes: str) -> list[View]:
    """The views that an event gets into, as the hub asks for them."""
    found, buckets = attributes_of(record(1, stream=stream, **attributes)), index.buckets(stream)
    plain = [view for views in plain_of(buckets).values() for view in views]
    return plain + [view for view in candidates_of(found, buckets) if passes(view, found)]


class Counting:
    """Counts the calls of what an event might cost: filters, buckets asked, tokens and buckets of patterns met."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: Counter[str] = Counter()
        watched = ((Filter, "matches"), (PatternTree, "matching"), (FilteredViews, "candidates"), (Pattern, "matches"))
        for owner, name in watched:
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name), f"{owner.__name__}.{name}"))

    def _counted(self, function, what):  # type: ignore[no-untyped-def]
        def counted(*args):  # type: ignore[no-untyped-def]
            self.calls[what] += 1
            return function(*args)

        return counted


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(monkeypatch)


def crowd() -> ViewIndex:
    """One broadcast, 10,000 private streams, 1,000 patterns and 1,000 equality filters."""
    index = ViewIndex()
    index.get(selection("all"))
    for n in range(10_000):
        index.get(selection(f"private.{n}"))
    for n in range(1_000):
        index.get(selection(patterns=[f"tenant.t{n}.>"], vector=True))
        index.get(selection("tagged", wanted=exact(source=f"/s/{n}", type="edit")))
    return index


def test_an_event_looks_at_nothing_that_does_not_get_it(counting: Counting) -> None:
    index = crowd()
    assert len(index) == 12_001
    for stream, attributes, views, filters in (
        ("all", {}, 1, 0),
        ("private.77", {}, 1, 0),
        ("tenant.t500.orders.new", {}, 1, 0),
        ("nobody.asked", {}, 0, 0),
        ("tagged", {"source": "/s/9", "type": "edit"}, 1, 1),
        ("tagged", {"source": "/s/none", "type": "edit"}, 0, 0),
    ):
        counting.calls.clear()
        for _ in range(3):
            assert len(given(index, stream, **attributes)) == views, stream
        assert counting.calls["Filter.matches"] == 3 * filters, stream
        assert counting.calls["Pattern.matches"] == 0, "each pattern was asked"
        assert counting.calls["PatternTree.matching"] <= 1, "found once, then remembered"


def test_the_walk_through_patterns_meets_only_those_that_begin_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = PatternTree()
    for n in range(1_000):
        tree.make(f"tenant.t{n}.>")
        tree.make(f"*.t{n}.*.end")
    looked = 0

    class Watched(dict):  # type: ignore[type-arg]
        def get(self, key: object, default: object = None) -> object:
            nonlocal looked
            looked += 1
            return super().get(key, default)

    def watch(token: object) -> None:
        for child in token.next.values():  # type: ignore[attr-defined]
            watch(child)
        token.next = Watched(token.next)  # type: ignore[attr-defined]

    watch(tree._root)
    assert len(tree.matching("tenant.t7.a.end")) == 2
    assert looked <= 2 * 2 * 4, "two look-ups for each place, two places at most for each token"


def test_who_comes_and_goes_does_not_make_the_others_be_found_again(counting: Counting) -> None:
    """33 connects a second, each with a stream of its own, must not cost what is remembered of all other streams."""
    index = crowd()
    for n in range(100):
        given(index, f"tenant.t{n}.x")
    counting.calls.clear()
    for n in range(100):
        view = index.get(selection(f"new.{n}"))
        also = index.get(selection("all", wanted=exact(subject=str(n))))
        known = index.get(selection(patterns=["tenant.t1.>"], wanted='[{"prefix":{"type":"e"}}]'))
        given(index, f"tenant.t{n}.x")
        for each in (view, also, known):
            index.discard(each)
    assert counting.calls["PatternTree.matching"] == 0


def test_a_view_gets_an_event_once_whatever_leads_to_it() -> None:
    index = ViewIndex()
    twice = index.get(selection("a.b", "a.c", patterns=["a.*", "a.>", "*.b"], vector=True))
    other = index.get(selection("a.b"))
    picky = index.get(selection("a.b", patterns=["a.>"], wanted='[{"exact":{"type":"t"}}]', vector=True))
    assert Counter(given(index, "a.b", type="t")) == Counter([twice, other, picky])
    assert Counter(given(index, "a.b", type="u")) == Counter([twice, other])
    for view in (twice, other, picky):
        index.discard(view)
        index.discard(view)
    assert not index.buckets("a.b")
    assert len(index) == 0
    assert index._patterns._root.is_empty, "branches that lead nowhere are kept"


def test_the_index_agrees_with_asking_every_view() -> None:
    dice = random.Random(20150912)
    tokens, index, kept = ["a", "b", "cdrs"], ViewIndex(), {}
    filters = ["[]", '[{"exact":{"type":"t1"}}]', '[{"exact":{"type":"t2"}},{"prefix":{"source":"/"}}]',
               '[{"not":{"exact":{"type":"t1"}}}]', '[{"exact":{"missing":"x"}}]']  # fmt: skip

    def name(wild: bool) -> str:
        parts = [dice.choice([*tokens, "*"] if wild else tokens) for _ in range(dice.randint(1, 3))]
        if wild and dice.random() < 0.4:
            parts.append(">")
        return ".".join(parts) if not wild or set(parts) & {"*", ">"} else ".".join([*parts, "*"])

    for _ in range(1_000):
        if kept and dice.random() < 0.45:
            chosen = dice.choice(list(kept))
            index.discard(kept.pop(chosen))
        else:
            streams = {name(wild=False) for _ in range(dice.randint(0, 2))}
            patterns = {name(wild=True) for _ in range(dice.randint(0 if streams else 1, 2))}
            chosen = selection(*streams, patterns=sorted(patterns), wanted=dice.choice(filters), vector=True)
            kept[chosen] = index.get(chosen)
        stream, kind = name(wild=False), dice.choice(["t1", "t2", "t3"])
        wanted = [view for sel, view in kept.items() if sel.matches_stream(stream)
                  and (sel.filter is None or sel.filter.matches({"type": kind, "source": "/x"}))]  # fmt: skip
        assert Counter(given(index, stream, type=kind, source="/x")) == Counter(wanted)
