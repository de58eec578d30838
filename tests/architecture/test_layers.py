"""Imports go one way, and each third-party package stays behind its fence. Read from the source, nothing is run."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("cdrs", "gateway", "services", "shared")

MAY_IMPORT = {
    "shared": {"shared"},
    "cdrs": {"cdrs", "shared"},
    "gateway": {"gateway", "shared"},
    "services": set(PACKAGES),
}

FENCES = {
    "anyio": ("gateway/",),
    "aiokafka": ("shared/backends/kafka/",),
    "kafka": ("shared/backends/kafka/",),
    "bson": ("shared/backends/mongo/",),
    "hazelcast": ("shared/backends/hazelcast/",),
    "motor": ("shared/backends/mongo/",),
    "pymongo": ("shared/backends/mongo/",),
    "aiohttp": ("shared/backends/http/", "services/cli/"),
    "apsw": ("shared/backends/embedded/",),
    "httptools": ("gateway/protocol.py",),
    "prometheus_client": ("shared/telemetry.py",),
    "pydantic": ("shared/settings.py",),
    "pydantic_settings": ("shared/settings.py",),
    "rich": ("services/cli/",),
    "sse_starlette": ("gateway/",),
    "starlette": ("gateway/", "cdrs/", "services/"),
    "typer": ("services/cli/",),
    "uvicorn": (
        "shared/embedded_server.py",
        "gateway/server.py",
        "gateway/protocol.py",
        "gateway/watched.py",
        "cdrs/server.py",
        "services/",
    ),
    "uvloop": ("services/",),
}
"""Package → where it may be imported. What is not listed here may not be imported anywhere but is free where it is."""

FREE = {"msgspec", "orjson"}


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Full names of everything a module imports, late and type-only imports included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module


def breaches(name: str, imported: Iterator[str]) -> list[str]:
    """What a module, named by its path, must not import."""
    own = name.partition("/")[0]
    found: list[str] = []
    for module in imported:
        top = module.partition(".")[0]
        is_ours = top in PACKAGES
        if (is_ours and top not in MAY_IMPORT[own]) or (top in FENCES and not name.startswith(FENCES[top])):
            found.append(module)
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_its_place_allows(path: Path) -> None:
    assert breaches(path.relative_to(ROOT).as_posix(), imports(path)) == []


def test_every_third_party_package_is_fenced_or_free() -> None:
    known = {*PACKAGES, *FENCES, *FREE, *sys.stdlib_module_names}
    strangers = {module.partition(".")[0] for path in sources() for module in imports(path)} - known
    assert not strangers


def test_only_the_backplane_knows_the_adapters_of_a_profile() -> None:
    users = [
        path.relative_to(ROOT).as_posix()
        for path in sources()
        if any(name.startswith("shared.backends.embedded") for name in imports(path))
    ]
    outside = [user for user in users if not user.startswith("shared/backends/embedded/")]
    assert outside == ["shared/backplane.py"]


def test_the_check_itself_sees_a_breach() -> None:
    assert breaches("shared/x.py", iter(["gateway.hub", "json"])) == ["gateway.hub"]
    assert breaches("gateway/x.py", iter(["cdrs.node", "shared.ports"])) == ["cdrs.node"]
    assert breaches("cdrs/x.py", iter(["gateway.hub"])) == ["gateway.hub"]
    assert breaches("shared/ports.py", iter(["apsw", "starlette.types"])) == ["apsw", "starlette.types"]
    assert breaches("services/x.py", iter(["cdrs.node", "gateway.hub", "uvicorn"])) == []
