"""Fixtures of several files."""

from __future__ import annotations

from pathlib import Path

import pytest
from embedded_folder import fill


@pytest.fixture
async def filled(tmp_path: Path) -> Path:
    """A folder with a log of 300 events."""
    await fill(tmp_path)
    return tmp_path


@pytest.fixture(scope="module", params=["uvloop", pytest.param("asyncio", marks=pytest.mark.slow)])
def loop(request: pytest.FixtureRequest) -> str:
    """The event loop under a server in a thread."""
    name: str = request.param
    return name
