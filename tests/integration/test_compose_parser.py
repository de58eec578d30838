"""compose.yaml as Docker Compose itself would read it: compose-go, the specification's reference parser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHECK = ROOT / "ops/docker/composecheck"
USUAL = "/usr/local/go/bin/go"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def composecheck(tmp_path_factory: pytest.TempPathFactory) -> Path:
    go = shutil.which("go") or shutil.which(USUAL)
    if go is None:
        pytest.skip("there is no Go here to build the reference parser with")
    environment = {**os.environ, "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local"}
    fetched = subprocess.run(
        [go, "mod", "download"], cwd=CHECK, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    if fetched.returncode:
        reason = fetched.stderr.strip().splitlines()[-1:] or ["no reason given"]
        pytest.skip(f"the reference parser's modules cannot be fetched: {reason[0][:200]}")
    program = tmp_path_factory.mktemp("composecheck") / "composecheck"
    argv = [go, "build", "-o", str(program), "."]
    subprocess.run(argv, cwd=CHECK, env=environment, check=True, timeout=300)
    return program


def read(composecheck: Path, file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([composecheck, file], capture_output=True, text=True, timeout=60, check=False, env={})


@pytest.fixture(scope="module")
def project(composecheck: Path) -> dict[str, Any]:
    done = read(composecheck, ROOT / "compose.yaml")
    assert done.returncode == 0, done.stderr
    tree: dict[str, Any] = json.loads(done.stdout)
    return tree


def test_the_reference_parser_takes_the_file(project: dict[str, Any]) -> None:
    written = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    assert project["name"] == "cdrs"
    assert project["services"].keys() == written["services"].keys()
    assert len(project["services"]) == 17
    assert project["networks"]["inside"]["internal"] is True
    assert project["volumes"].keys() == written["volumes"].keys()


def test_it_understands_what_the_other_tests_read(project: dict[str, Any]) -> None:
    """Those read the YAML themselves; this is what Compose makes of it."""
    for name, service in project["services"].items():
        assert service["read_only"] is True, name
        assert service["user"]
        assert service["cap_drop"] == ["ALL"]
        assert service["stop_grace_period"].endswith("s")
        assert {"test", "interval", "timeout", "start_period", "start_interval"} <= service["healthcheck"].keys()
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", []))
        assert all(other["condition"] == "service_healthy" for other in service.get("depends_on", {}).values())
        assert all(
            volume["type"] == "volume" or (volume["type"] == "bind" and volume["read_only"])
            for volume in service.get("volumes", [])
        )
    published = {port["published"] for service in project["services"].values() for port in service.get("ports", [])}
    assert published == {"8080", "8404", "9090", "3000"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("read_only: true", "readonly: true"),
        ("start_interval: 1s", "start_interval: often"),
        ("mongo-1: *healthy", "mongo-9: *healthy"),
        ("networks: [inside]", "networks: [outside]"),
        ('"kafka-1:/var/lib/kafka/data"', '"kafka-9:/var/lib/kafka/data"'),
    ],
)
def test_it_refuses_what_compose_would(composecheck: Path, tmp_path: Path, before: str, after: str) -> None:
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    assert before in text
    (tmp_path / "compose.yaml").write_text(text.replace(before, after, 1))
    assert read(composecheck, tmp_path / "compose.yaml").returncode == 1
