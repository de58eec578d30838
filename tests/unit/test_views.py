"""What a view keeps for whom, and what it costs to say where a reader stands."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway import places
from gateway.gzip_body import Place
from gateway.places import Places
from gateway.subscriber import Subscriber
from gateway.views import Selection, View
from shared.sse import DEFAULT_SHAPE

ORDERS = Selection(("orders",), (), None, DEFAULT_SHAPE, (0,), False)


def view_of(frames: int) -> View:
    view = View(ORDERS)
    for number in range(frames):
        view.append(b"frame %d" % number, b"cursor")
    return view


def reader() -> Subscriber:
    return Subscriber(cast("Any", SimpleNamespace(ready=True)), b"", remote="", now=0.0, expires=1e12)


def test_frames_are_kept_for_who_joins_during_a_sweep() -> None:
    view, late = view_of(10), reader()
    low = view.begin_sweep()
    view.add(late, 3, cast("Any", None), 0.0)
    view.trim(low, max_bytes=1 << 20)
    assert (view.first, view.frames(3, 1)) == (3, [b"frame 3"])
    late.seq = 10
    view.trim(view.begin_sweep(), max_bytes=1 << 20)
    assert view.first == view.end == 10


class Counted:
    """How many frames have been counted on the way to a place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.frames = 0
        counted = self

        class CountedPlace(Place):
            def after(self, data: bytes) -> Place:
                counted.frames += 1
                return CountedPlace(*super().after(data))

        monkeypatch.setattr(places, "Place", CountedPlace)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def zipped(view: View) -> View:
    view.window = cast("Any", SimpleNamespace(places=Places(), forget=lambda *_: None))
    return view


def test_a_place_is_counted_once_for_all_who_stand_there(counted: Counted) -> None:
    view = zipped(view_of(1000))
    whole = Place(0, 0).after(b"".join(view.frames(0, 1 << 20)))
    assert {view.place(1000) for _ in range(100)} == {whole}
    assert counted.frames == 1000
    view.append(b"one more", b"cursor")
    assert view.place(1001) == whole.after(b"one more")
    assert counted.frames == 1001
    assert view.place(500) == Place(0, 0).after(b"".join(view.frames(0, 1 << 20)[:500]))
    view.begin_sweep()
    view.trim(900, max_bytes=1 << 20)
    assert view.place(1001) == whole.after(b"one more")
    view.begin_sweep()
    view.trim(1001, max_bytes=1 << 20)
    assert view.place(1001) == whole.after(b"one more"), "also once what it was counted from is forgotten"


def test_a_place_below_the_furthest_one_is_not_counted_again(counted: Counted) -> None:
    """Readers in gzip who resume stand anywhere, and each of their private chunks asks for their place."""
    view = zipped(view_of(1250))
    text = view.frames(0, 1 << 20)
    for events in range(100):
        for seq in (0, 1, 600, 1200, 1250 + events, 1249):
            assert view.place(seq) == Place(0, 0).after(b"".join(text[:seq]))
        text.append(b"event %d" % events)
        view.append(text[-1], b"cursor")
    assert counted.frames == 1349, "each frame once"


def test_who_lacks_frames_that_are_gone_holds_none_of_the_others() -> None:
    view, slow = view_of(0), reader()
    view.add(slow, 0, cast("Any", None), 0.0)
    view.hold("early", 0)
    for number in range(20):
        view.append(b"x" * 100, b"cursor %d" % number)
    low = view.begin_sweep()
    view.hold("later", 18)
    view.trim(min(low, slow.seq), max_bytes=1000)
    assert view.first == 18, "what is held further on, and nothing for those who have to read history"
    view.release("later")
    view.trim(view.begin_sweep(), max_bytes=1000)
    assert view.first == view.end == 20
    view.append(b"one more", b"cursor")
    view.trim(view.begin_sweep(), max_bytes=1000)
    assert view.first == view.end == 21, "a place that is held and gone does not count"
