"""Fixtures of several files."""

from __future__ import annotations

from pathlib import Path

import pytest
from embedded_folder import fill
from following import WAYS


@pytest.fixture
async def filled(tmp_path: Path) -> Path:
    """A folder with a log of 300 events."""
    await fill(tmp_path)
    return tmp_path


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A write path, and the event loop under it."""
    found: tuple[str, str] = request.param
    return found
