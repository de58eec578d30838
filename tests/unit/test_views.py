"""What a view keeps for whom, and what it costs to say where a reader stands."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.gzip_body import Place
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


def test_a_place_is_counted_once_for_all_who_stand_there(monkeypatch: pytest.MonkeyPatch) -> None:
    view, counted, plain = view_of(1000), 0, Place.after

    def after(self: Place, data: bytes) -> Place:
        nonlocal counted
        counted += 1
        return plain(self, data)

    monkeypatch.setattr(Place, "after", after)
    view.window = cast("Any", SimpleNamespace(origin=Place(0, 0), forget=lambda *_: None))
    whole = plain(Place(0, 0), b"".join(view.frames(0, 1 << 20)))
    assert {view.place(1000) for _ in range(100)} == {whole}
    assert counted == 1000
    view.append(b"one more", b"cursor")
    assert view.place(1001) == plain(whole, b"one more")
    assert counted == 1001
    assert view.place(500) == plain(Place(0, 0), b"".join(view.frames(0, 1 << 20)[:500]))
    view.begin_sweep()
    view.trim(900, max_bytes=1 << 20)
    assert view.place(1001) == plain(whole, b"one more")
    view.begin_sweep()
    view.trim(1001, max_bytes=1 << 20)
    assert view.place(1001) == plain(whole, b"one more"), "also once what it was counted from is forgotten"
