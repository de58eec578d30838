"""The image's own steps, its start, its health check and its stop, without Docker: in a bare Debian root."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ops.docker.check_image import missing

ROOT = Path(__file__).resolve().parents[2]
SHOWN = (
    "healthy after",
    "process 1, user 10001, no capability, no new privileges",
    "the root folder is read-only",
    "an event went in and came out",
    "nothing is installed that cdrs does not need, and nothing that builds",
    "SIGTERM: exit code 0",
)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_image_is_built_starts_and_stops() -> None:
    if reason := missing():
        pytest.skip(f"the image cannot be tried here: {reason}")
    done = subprocess.run(
        [sys.executable, "-m", "ops.docker.check_image"],
        cwd=ROOT, capture_output=True, text=True, timeout=1100, check=False,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for line in SHOWN:
        assert f"ok  {line}" in done.stdout
