"""The version of this installation."""

from __future__ import annotations

from importlib import metadata

VERSION = metadata.version("cdrs")
