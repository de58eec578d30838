"""A process loads only what it needs: seen from outside, by the compiled modules that are mapped into it."""

from __future__ import annotations

from pathlib import Path

from cdrs_process import CdrsProcess, wait_until


def mapped(pid: int) -> set[str]:
    """Packages of which a process has compiled modules in memory."""
    found: set[str] = set()
    for line in (Path("/proc") / str(pid) / "maps").read_text().splitlines():
        parts = Path(line.split(maxsplit=5)[-1]).parts
        if "site-packages" in parts:
            found.add(parts[parts.index("site-packages") + 1])
    return found


def test_supervisor_and_node_and_gateway(tmp_path: Path) -> None:
    with CdrsProcess(tmp_path, ["--nodes", "1"]).start() as cdrs:
        wait_until(lambda: "Ctrl+C" in cdrs.output(), 10, "the banner")
        supervisor, node, gateway = mapped(cdrs.pid), mapped(cdrs.pids("node")[0]), mapped(cdrs.pids("gateway")[0])
    assert "uvloop" in supervisor & node & gateway, "this does not see what it should"
    assert not supervisor & {"aiohttp", "apsw", "httptools", "msgspec"}, "it only starts others"
    assert "aiohttp" not in node, "a node calls nobody over HTTP"
    assert "apsw" in node
    assert "aiohttp" in gateway, "it reaches its nodes over HTTP"


def test_one_process_with_and_without_the_demo(tmp_path: Path) -> None:
    with CdrsProcess(tmp_path / "plain").start() as cdrs:
        wait_until(lambda: "Ctrl+C" in cdrs.output(), 10, "the banner")
        assert cdrs.publish("lean.a", b"1").status == 201
        assert "aiohttp" not in mapped(cdrs.pid), "its node is within it"
    with CdrsProcess(tmp_path / "demo", ["--demo", "--demo-rate", "50"]).start() as cdrs:
        wait_until(lambda: "demo: playing" in cdrs.output(), 20, "the demo")
        assert "aiohttp" in mapped(cdrs.pid)
