"""The table of failpoints follows the product; a step that cannot be reached is told of, and nothing is imported for
those that can."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from failpoints.arming import Failpoints
from failpoints.site.failpoint_hook import STEPS, Place, resolve

ROOT = Path(__file__).resolve().parents[2]
PLACES = [pytest.param(place, id=f"{step}-{place.module}") for step, places in STEPS.items() for place in places]


def python(code: str, points: Failpoints, *, timeout: float = 20) -> subprocess.CompletedProcess[str]:
    """Run this where `sitecustomize` has watched the real table already."""
    env = {**os.environ, **points.env, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.mark.parametrize("place", PLACES)
def test_every_step_has_its_place_in_the_product(place: Place) -> None:
    resolve(import_module(place.module), place.name)


def test_nothing_of_the_product_is_imported_to_watch_it(tmp_path: Path) -> None:
    code = "import sys; print([name for name in ('cdrs', 'gateway', 'shared', 'asyncio') if name in sys.modules])"
    done = python(code, Failpoints(tmp_path))
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


@pytest.mark.parametrize(
    ("module", "name", "said"),
    [
        ("cdrs.lanes", "Batch.answer", "there is no module cdrs.lanes"),
        ("nodes.lane", "Batch.answer", "there is no module nodes.lane"),
        ("cdrs.lane", "Batches.answer", "cdrs.lane has no class Batches"),
        ("cdrs.lane", "Batch.answers", "cdrs.lane has no function Batch.answers"),
        ("cdrs.lane", "Waiting.batch", "cdrs.lane has no function Waiting.batch"),
    ],
)
def test_a_process_ends_where_a_step_has_no_place(tmp_path: Path, module: str, name: str, said: str) -> None:
    watch = f"import failpoint_hook as hook; hook.install({{'step': [hook.Place({module!r}, {name!r})]}}); "
    done = python(watch + "import cdrs.lane; print('on it goes')", Failpoints(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr


def test_only_the_first_that_comes_to_an_armed_step_is_killed(tmp_path: Path) -> None:
    points = Failpoints(tmp_path)
    code = "import cdrs.lane; cdrs.lane.Batch([]).answer(); print('on it goes')"
    points.arm("node-answering")
    first, second = python(code, points), python(code, points)
    assert (first.returncode, first.stdout) == (-9, "")
    assert (second.returncode, second.stdout) == (0, "on it goes\n"), second
    points.wait("node-answering", 1)


def test_a_step_that_nobody_comes_to_is_told_of_and_disarmed(tmp_path: Path) -> None:
    points = Failpoints(tmp_path)
    points.arm("gateway-accepted")
    with pytest.raises(TimeoutError, match="nobody came to the step gateway-accepted within 0"):
        points.wait("gateway-accepted", 0.05)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError):
        points.arm("gateway-acepted")
