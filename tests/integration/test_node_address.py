"""A node as in a container: it listens on every address, says under which one it is reached, and is asked how it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cdrs_process import CdrsProcess, free_port, request

HEALTHCHECK = Path(__file__).resolve().parents[2] / "ops/docker/healthcheck.py"
pytestmark = pytest.mark.timeout(180)


def healthy(port: int) -> tuple[int, str]:
    argv = [sys.executable, str(HEALTHCHECK), f"http://127.0.0.1:{port}/readyz"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout


def test_a_gateway_reaches_a_node_under_the_address_it_gives(tmp_path: Path) -> None:
    port = free_port()
    given = f"http://localhost:{port}"
    node = CdrsProcess(
        tmp_path / "node", ["--host", "0.0.0.0", "--insecure"], port, {"CDRS_NODE__URL": given}, role="node"
    )
    gateway = CdrsProcess(tmp_path / "gateway", ["--data", str(node.data)], role="gateway")
    try:
        assert healthy(port)[0] == 1, "nobody listens yet"
        node.start()
        gateway.start()
        assert [item["url"] for item in gateway.nodes()] == [given]
        assert gateway.publish("orders", b'{"n":1}').status == 201
        for process in (node, gateway):
            code, said = healthy(process.port)
            assert code == 0, said
        metrics = request(port, "GET", "/metrics").body.decode()
        assert "cdrs_log_append_duration_seconds_count 1.0" in metrics
        node.stop()
        code, said = healthy(port)
        assert code == 1, said
    finally:
        gateway.stop()
        node.stop()


def test_a_node_without_a_usable_address_does_not_start(tmp_path: Path) -> None:
    node = CdrsProcess(tmp_path, [], free_port(), {"CDRS_NODE__URL": "node-1:7000"}, role="node").start(wait=False)
    try:
        assert node.wait(60) == 1
        assert "node.url = 'node-1:7000'" in node.stderr()
    finally:
        node.stop()
