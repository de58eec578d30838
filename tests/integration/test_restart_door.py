"""`cdrs up --nodes N`: while a dead gateway is replaced its port stays open, and whoever connects is served then."""

from __future__ import annotations

import http.client
import os
import signal
import socket
from pathlib import Path

import pytest
from cdrs_process import CdrsProcess, command_line, wait_until
from knocker import Knocker

from services.listening import adopted, listening
from shared.errors import StartError

pytestmark = pytest.mark.timeout(120)


def kill_gateway(cdrs: CdrsProcess) -> int:
    """SIGKILL it, and wait until it is gone: nothing that comes now reaches the old one."""
    victim = cdrs.pids("gateway")[0]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in cdrs.pids("gateway"), 5, "its end", every=0.001)
    return victim


def test_a_post_sent_while_the_gateway_is_dead_is_stored(tmp_path: Path) -> None:
    with CdrsProcess(tmp_path, ["--nodes", "1"]).start() as cdrs:
        assert cdrs.publish("door.a", b"1").status == 201
        with Knocker(cdrs.port) as knocker:
            for number in (2, 3):
                before = knocker.connected
                kill_gateway(cdrs)
                assert not cdrs.pids("gateway"), "it was replaced too soon for this test to mean anything"
                connection = http.client.HTTPConnection("127.0.0.1", cdrs.port, timeout=60)
                try:
                    connection.request("POST", "/v1/streams/door.a/events", b"%d" % number,
                                       {"content-type": "application/json"})  # fmt: skip
                    answer = connection.getresponse()
                    assert answer.status == 201, answer.read()
                    answer.read()
                finally:
                    connection.close()
                wait_until(lambda n=before: knocker.connected > n + 10, 10, "more connections")
        assert not knocker.failures


def test_a_port_that_was_chosen_freely_stays_the_same(tmp_path: Path) -> None:
    with CdrsProcess(tmp_path, ["--nodes", "1"], port=0).start(wait=False) as cdrs:
        line = wait_until(lambda: [x for x in cdrs.stderr().splitlines() if "console" in x], 30, "the banner")[0]
        cdrs.port = int(line.split(":")[2].partition("/")[0])
        kill_gateway(cdrs)
        assert cdrs.publish("door.a", b"1").status == 201


def test_without_restarts_a_dead_gateways_door_is_closed(tmp_path: Path) -> None:
    with CdrsProcess(tmp_path, ["--nodes", "1", "--no-restart"]).start() as cdrs:
        kill_gateway(cdrs)
        wait_until(lambda: is_refused(cdrs.port), 10, "a refusal")


def test_the_door_is_closed_at_the_end_of_the_drain(tmp_path: Path) -> None:
    """Nobody is left waiting in a backlog that no process will look at."""
    with CdrsProcess(tmp_path, ["--nodes", "1"]).start() as cdrs:
        node = cdrs.pids("node")[0]
        assert "--listen-fd" in command_line(cdrs.pids("gateway")[0])
        os.kill(node, signal.SIGSTOP)  # the supervisor waits for it
        cdrs.signal(signal.SIGTERM)
        wait_until(lambda: not cdrs.pids("gateway"), 10, "the gateway's end")
        assert is_refused(cdrs.port)
        assert cdrs.pids("node") == [node]
        os.kill(node, signal.SIGCONT)
        assert cdrs.wait(10) == 0


def is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionError as error:  # reset: the door was closed between the handshake and its acceptance
        return isinstance(error, ConnectionRefusedError)
    return False


def test_a_socket_of_the_parent_is_adopted() -> None:
    with listening("127.0.0.1", 0, flag="--port") as parents, adopted(os.dup(parents.fileno())) as ours:
        assert ours.getsockname() == parents.getsockname()
        assert not ours.get_inheritable()
        assert not ours.getblocking()


def test_anything_else_is_a_clear_error(tmp_path: Path) -> None:
    with socket.socket() as silent:
        descriptor = os.dup(silent.fileno())
    with pytest.raises(StartError, match="does not listen"), adopted(descriptor):
        pass
    with (tmp_path / "file").open("w") as file, pytest.raises(StartError, match="no socket"), adopted(file.fileno()):
        pass
    with pytest.raises(StartError, match="no socket"), adopted(987):
        pass
