"""What server processes do alike: capacity, log lines, ports, restarts; without starting any."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from pathlib import Path

import pytest

from services.listening import (
    is_loopback,
    listening,
    port_owner,
    require_gateway,
    require_loopback,
    require_url,
    url_of,
)
from services.process import LineFormatter, RepeatFilter, usable_cpus
from services.roles import member_of
from services.supervisor import Child, Supervisor, restart_delay
from shared.errors import StartError
from shared.settings import GatewaySettings, NodeSettings, Settings


@pytest.mark.parametrize(
    ("file", "text", "most"),
    [("cpu.max", "50000 100000\n", 0.5), ("cpu.max", "max 100000\n", None), ("none", "", None)],
)
def test_cpus_are_cut_by_the_cgroups_quota(tmp_path: Path, file: str, text: str, most: float | None) -> None:
    (tmp_path / file).write_text(text)
    assert usable_cpus(tmp_path) == (most or len(os.sched_getaffinity(0)))


def test_what_a_library_says_again_and_again_is_said_three_times_in_ten_seconds() -> None:
    now = 0.0
    keeps = RepeatFilter(lambda: now)

    def entry(name: str, text: str, *values: object) -> logging.LogRecord:
        return logging.makeLogRecord({"name": name, "msg": text, "args": values})

    def shown(name: str, text: str) -> list[bool]:
        return [keeps.filter(entry(name, text, number)) for number in range(5)]

    assert shown("aiokafka", "Unable connect to node with id %s") == [True, True, True, False, False]
    assert shown("aiokafka.conn", "Unable connect to node with id %s") == [True, True, True, False, False]
    assert all(shown("gateway.routing", "lost the link to %s"))
    now = 10.1
    again = entry("aiokafka", "Unable connect to node with id %s", 1)
    assert keeps.filter(again)
    assert LineFormatter().format(again).endswith("aiokafka Unable connect to node with id 1 more=2")


def test_cpus_by_a_quota_of_cgroup_v1(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("25000")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000")
    assert usable_cpus(tmp_path) == 0.25


def test_restarts_wait_1_s_doubling_to_30() -> None:
    assert [restart_delay(deaths) for deaths in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]
    assert restart_delay(100_000) == 30


async def test_a_child_that_cannot_be_started_again_for_a_while_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory has run out, for example, and the kernel has ended one of them for it."""
    monkeypatch.setattr("services.supervisor.FIRST_RESTART", 0.0)
    supervisor = Supervisor(Settings(), {}, doors=[], nodes=1, restart=True)
    lives = 0
    third = asyncio.Event()

    async def live(child: Child) -> int:
        nonlocal lives
        lives += 1
        if lives == 2:
            raise OSError(errno.EAGAIN, "no process to be had")
        if lives == 3:
            third.set()
            await asyncio.get_running_loop().create_future()
        child.ready.set()
        return -9

    monkeypatch.setattr(supervisor, "_live", live)
    keeping = asyncio.ensure_future(supervisor._keep(supervisor.nodes[0]))  # pyright: ignore[reportPrivateUsage]
    async with asyncio.timeout(10):
        await third.wait()
    assert not keeping.done()
    keeping.cancel()


def test_a_log_entry_is_one_line() -> None:
    record = logging.makeLogRecord(
        {"name": "a.b", "levelno": 20, "levelname": "INFO", "msg": "two\nlines", "created": 1.25, "msecs": 250.0}
    )
    record.node, record.text = "n-1", 'has "space'
    line = LineFormatter("gateway").format(record)
    assert line == "1970-01-01T00:00:01.250Z info a.b two\\nlines node=n-1 text='has \"space' process=gateway"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_nothing(host: str) -> None:
    assert is_loopback(host)
    require_loopback(host, insecure=False, setting="gateway.host")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_any_other_bind_needs_a_loud_word(host: str) -> None:
    with pytest.raises(StartError, match="--insecure"):
        require_loopback(host, insecure=False, setting="gateway.host")
    require_loopback(host, insecure=True, setting="gateway.host")


@pytest.mark.parametrize("url", ["", "http://node-1:7000", "http://10.0.0.7:7000/", "http://[::1]:7000"])
def test_an_address_of_a_node(url: str) -> None:
    require_url(url, setting="node.url")


@pytest.mark.parametrize(
    "url",
    [
        "node-1:7000",
        "http://node-1",
        "https://node-1:7000",
        "http://:7000",
        "http://a:99999",
        "http://a:7000/x",
        "http://[::1",
    ],
)
def test_what_is_no_address_of_a_node(url: str) -> None:
    with pytest.raises(StartError, match=r"node\.url .*http://host:port"):
        require_url(url, setting="node.url")


@pytest.mark.parametrize(
    "url", ["", "https://events.example.org", "http://[::1]:8080/", "https://a.b:8443/under/a/path"]
)
def test_a_public_address(url: str) -> None:
    require_gateway(Settings(gateway=GatewaySettings(public_url=url)))


@pytest.mark.parametrize(
    "url", ["events.example.org", "a:8080", "ftp://a", "https://", "http://[::1", "http://a:99999"]
)
def test_what_is_no_public_address(url: str) -> None:
    with pytest.raises(StartError, match=r"gateway\.public_url .*https://name"):
        require_gateway(Settings(gateway=GatewaySettings(public_url=url)))


def test_a_node_says_where_others_reach_it() -> None:
    with listening("127.0.0.1", 0, flag="--port") as server:
        settings = Settings(node=NodeSettings(url="http://node-1:7000/"))
        assert member_of(settings, "node", server, incarnation="i").url == "http://node-1:7000"
        assert member_of(settings, "gateway", server, incarnation="i").url == url_of(server)
        assert member_of(Settings(), "node", server, incarnation="i").url == url_of(server)


def test_a_taken_port_is_named_with_its_owner() -> None:
    with listening("127.0.0.1", 0, flag="--port") as server:
        port = server.getsockname()[1]
        assert url_of(server) == f"http://127.0.0.1:{port}"
        assert f"(pid {os.getpid()})" in port_owner(port)
        with pytest.raises(StartError) as caught, listening("127.0.0.1", port, flag="--port"):
            pass
        for part in (str(port), "--port", f"pid {os.getpid()}"):
            assert part in str(caught.value)


def test_an_unknown_host_is_a_clear_error() -> None:
    with pytest.raises(StartError, match="cannot be resolved"), listening("no.such.host.invalid", 0, flag="--port"):
        pass


def test_ipv6_urls_have_brackets() -> None:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
    with listening("::1", 0, flag="--port") as server:
        assert url_of(server) == f"http://[::1]:{server.getsockname()[1]}"
