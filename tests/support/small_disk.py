"""A file system with little room, and how to fill it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def small_disk(point: Path, *, mebibytes: int) -> Iterator[Path]:
    """A file system of its own in this folder; skips the test where this user may not make one."""
    point.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "cdrs-small", str(point)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a full disk needs the right to mount a tmpfs")
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=True)


def fill(folder: Path) -> Path:
    """Take all room that is left, to the last byte; the file that has it."""
    ballast = folder / "ballast"
    for piece in (b"x" * 65_536, b"x" * 512, b"x"):
        with ballast.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(piece)
    return ballast
