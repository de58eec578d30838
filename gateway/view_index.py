"""From an event to the views it belongs to: the cost grows with the views that get it, not with all there are.

Views stand in buckets, one for each stream name and each pattern that somebody asked for. A stream's buckets are found
by its name and by a walk through the patterns' tokens, and remembered; in a bucket, views without filter stand together
by what their frames look like, and those that need an attribute to have some value stand under that value.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import orjson

from gateway.views import Selection, View
from shared.validation import SERVER_PREFIX

if TYPE_CHECKING:
    from shared.filters import Filter
    from shared.sse import Shape

Kind = tuple[bool, "Shape"]
"""(Ids are the vector, shape): views of one kind share their frames."""


def kind_of(view: View) -> Kind:
    """What this view's frames look like."""
    return view.selection.vector, view.selection.shape


class Bucket:
    """The views that asked for one stream, or for one pattern."""

    __slots__ = ("filtered", "plain")

    def __init__(self) -> None:
        self.plain: dict[Kind, dict[View, None]] = {}
        """Those without filter: they get every event."""
        self.filtered: FilteredViews | None = None
        """The others, where there are any."""

    @property
    def is_empty(self) -> bool:
        """Whether nobody asked for it any more."""
        return not self.plain and self.filtered is None

    def add(self, view: View) -> None:
        """Put a view in its place."""
        if view.selection.filter is None:
            self.plain.setdefault(kind_of(view), {})[view] = None
            return
        if self.filtered is None:
            self.filtered = FilteredViews()
        self.filtered.add(view, view.selection.filter)

    def discard(self, view: View) -> None:
        """Take it out. It must be there."""
        if view.selection.filter is None:
            views = self.plain[kind_of(view)]
            del views[view]
            if not views:
                del self.plain[kind_of(view)]
            return
        assert self.filtered is not None
        self.filtered.discard(view)
        if not self.filtered.places:
            self.filtered = None


class FilteredViews:
    """The views of a bucket that do not get every event."""

    __slots__ = ("_equal", "_others", "places")

    def __init__(self) -> None:
        self.places: dict[View, tuple[str, str] | None] = {}
        """Each view, and the attribute and value under which it stands."""
        self._equal: dict[str, dict[str, dict[View, None]]] = {}
        """Attribute → value → views that need it."""
        self._others: dict[View, None] = {}
        """Those that need no value: they must be asked each time."""

    def add(self, view: View, wanted: Filter) -> None:
        """Put a view in its place: of several values that it needs, under the one that fewest others stand under."""
        place = min(wanted.required(), key=self._standing_under, default=None)
        self.places[view] = place
        if place is None:
            self._others[view] = None
        else:
            self._equal.setdefault(place[0], {}).setdefault(place[1], {})[view] = None

    def _standing_under(self, pair: tuple[str, str]) -> int:
        return len(self._equal.get(pair[0], {}).get(pair[1], ()))

    def discard(self, view: View) -> None:
        """Take it out. It must be there."""
        place = self.places.pop(view)
        if place is None:
            del self._others[view]
            return
        name, value = place
        values = self._equal[name]
        del values[value][view]
        if not values[value]:
            del values[value]
            if not values:
                del self._equal[name]

    def candidates(self, attributes: Mapping[str, object]) -> Iterable[View]:
        """The views whose filter may let these through, and no other that needs another value."""
        if not self._equal:
            return self._others
        found = [self._others]
        for name, values in self._equal.items():
            value = attributes.get(name)
            if value is not None:
                found.append(values.get(value if isinstance(value, str) else orjson.dumps(value).decode(), {}))
        return chain.from_iterable(found)


def plain_of(buckets: Sequence[Bucket]) -> Mapping[Kind, Collection[View]]:
    """The views that get every event of a stream with these buckets, each once. To be used up before views change."""
    if len(buckets) == 1:
        return buckets[0].plain
    found: dict[Kind, dict[View, None]] = {}
    for bucket in buckets:
        for kind, views in bucket.plain.items():
            found.setdefault(kind, {}).update(views)
    return found


def candidates_of(attributes: Mapping[str, object], buckets: Sequence[Bucket]) -> Iterable[View]:
    """The views with filters that have to be asked about an event (`passes`), each once."""
    filtered = [bucket.filtered for bucket in buckets if bucket.filtered is not None]
    if len(filtered) == 1:
        return filtered[0].candidates(attributes)
    return dict.fromkeys(chain.from_iterable([each.candidates(attributes) for each in filtered]))


def passes(view: View, attributes: Mapping[str, object]) -> bool:
    """Whether a view's filter lets an event through."""
    return view.selection.filter is None or view.selection.filter.matches(attributes)


class _Token:
    """A place in the tree of patterns: the tokens so far."""

    __slots__ = ("here", "next", "rest")

    def __init__(self) -> None:
        self.next: dict[str, _Token] = {}
        self.here: Bucket | None = None
        """Of the pattern that ends here."""
        self.rest: Bucket | None = None
        """Of the pattern that goes on with ``>``."""

    @property
    def is_empty(self) -> bool:
        return not self.next and self.here is None and self.rest is None


class PatternTree:
    """The buckets of patterns with wildcards."""

    def __init__(self) -> None:
        self._root = _Token()

    def bucket(self, pattern: str) -> Bucket | None:
        """That of a pattern; None where there is none."""
        at = self._root
        tokens, is_open = _tokens(pattern)
        for token in tokens:
            found = at.next.get(token)
            if found is None:
                return None
            at = found
        return at.rest if is_open else at.here

    def make(self, pattern: str) -> Bucket:
        """An empty one for a pattern that has none."""
        at = self._root
        tokens, is_open = _tokens(pattern)
        for token in tokens:
            at = at.next.setdefault(token, _Token())
        bucket = Bucket()
        if is_open:
            at.rest = bucket
        else:
            at.here = bucket
        return bucket

    def discard(self, pattern: str) -> None:
        """Forget a pattern's bucket, and the branch that led to nothing else."""
        tokens, is_open = _tokens(pattern)
        path = [self._root]
        for token in tokens:
            path.append(path[-1].next[token])
        if is_open:
            path[-1].rest = None
        else:
            path[-1].here = None
        for token in reversed(tokens):
            if not path.pop().is_empty:
                break
            del path[-1].next[token]

    def matching(self, stream: str) -> Sequence[Bucket]:
        """The buckets of all patterns that cover a stream. The work grows with the stream's tokens and with the
        patterns that begin as it does."""
        found: list[Bucket] = []
        level = [self._root]
        tokens = stream.split(".")
        if tokens[0] == SERVER_PREFIX:  # for which no wildcard stands (`shared.validation.Pattern`)
            del tokens[0]
            level = [to for to in (self._root.next.get(SERVER_PREFIX),) if to is not None]
        for token in tokens:
            found += [at.rest for at in level if at.rest is not None]
            level = [to for at in level for to in (at.next.get(token), at.next.get("*")) if to is not None]
            if not level:
                return found
        found += [at.here for at in level if at.here is not None]
        return found


def _tokens(pattern: str) -> tuple[list[str], bool]:
    """A pattern's tokens but a last ``>``, and whether there was one."""
    tokens = pattern.split(".")
    return (tokens[:-1], True) if tokens[-1] == ">" else (tokens, False)


class ViewIndex:
    """All views, and from a stream's name to its buckets."""

    MAX_CACHED = 65_536

    def __init__(self) -> None:
        self._views: dict[Selection, View] = {}
        self._exact: dict[str, Bucket] = {}
        self._patterns = PatternTree()
        self._cache: dict[str, Sequence[Bucket]] = {}

    def __len__(self) -> int:
        return len(self._views)

    def holds(self, view: View) -> bool:
        """Whether somebody subscribes to it."""
        return self._views.get(view.selection) is view

    def reading(self, partition: int) -> list[View]:
        """The views whose selection reads a partition."""
        return [view for selection, view in self._views.items() if partition in selection.partitions]

    def readers(self, selection: Selection) -> int:
        """How many subscribe to a selection."""
        view = self._views.get(selection)
        return 0 if view is None else len(view.subscribers)

    def get(self, selection: Selection) -> View:
        """The view of a selection, made if there is none."""
        view = self._views.get(selection)
        if view is None:
            view = self._views[selection] = View(selection)
            for stream in selection.streams:
                bucket = self._exact.get(stream)
                if bucket is None:
                    bucket = self._exact[stream] = Bucket()
                    self._cache.pop(stream, None)
                bucket.add(view)
            for pattern in selection.patterns:
                bucket = self._patterns.bucket(pattern)
                if bucket is None:
                    bucket = self._patterns.make(pattern)
                    self._cache.clear()
                bucket.add(view)
        return view

    def discard(self, view: View) -> None:
        """Forget a view that nobody subscribes to any more."""
        if self._views.pop(view.selection, None) is None:
            return
        for stream in view.selection.streams:
            bucket = self._exact[stream]
            bucket.discard(view)
            if bucket.is_empty:
                del self._exact[stream]
                self._cache.pop(stream, None)
        for pattern in view.selection.patterns:
            found = self._patterns.bucket(pattern)
            assert found is not None
            found.discard(view)
            if found.is_empty:
                self._patterns.discard(pattern)
                self._cache.clear()

    def buckets(self, stream: str) -> Sequence[Bucket]:
        """Where the views stand that a stream's events can belong to. A view may stand in more than one of them."""
        found = self._cache.get(stream)
        if found is None:
            if len(self._cache) >= self.MAX_CACHED:
                self._cache.clear()
            exact = self._exact.get(stream)
            found = [*([] if exact is None else [exact]), *self._patterns.matching(stream)]
            self._cache[stream] = found
        return found
