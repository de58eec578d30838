"""A gateway on loopback serves no name that somebody may have led to it: the pages of his site would be ours, too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cdrs_process import CdrsProcess

ORDERS = "/v1/streams/orders/events"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def cdrs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CdrsProcess]:
    env = {"CDRS_GATEWAY__PUBLIC_URL": "https://events.example.org:8443"}
    with CdrsProcess(tmp_path_factory.mktemp("hosts"), env=env).start() as process:
        yield process


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "EVIL.example.", "127.0.0.1.evil.example", "a.b"]
)
@pytest.mark.parametrize(
    ("method", "path", "body"), [("POST", ORDERS, b"1"), ("GET", "/v1/streams", b""), ("GET", ORDERS, b"")]
)
def test_other_names_are_refused(cdrs: CdrsProcess, host: str, method: str, path: str, body: bytes) -> None:
    answer = cdrs.request(method, path, body, headers={"Host": host, **(JSON if body else {})})
    assert answer.status == 421
    assert "misdirected-request" in answer.json()["type"]


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:1", "localhost", "LOCALHOST:8080", "[::1]:80", "10.1.2.3", "gateway-1:80", "app.localhost",
     "events.example.org", "Events.Example.Org:443"],
)  # fmt: skip
def test_addresses_names_without_a_dot_and_the_public_one_are_served(cdrs: CdrsProcess, host: str) -> None:
    for _ in range(3):  # the short way takes over
        assert cdrs.request("POST", ORDERS, b"1", headers={"Host": host, **JSON}).status == 201


def test_whoever_lets_other_machines_in_is_called_as_they_like(tmp_path: Path) -> None:
    with CdrsProcess(tmp_path, ["--insecure"]).start() as process:
        assert process.request("POST", ORDERS, b"1", headers={"Host": "evil.example", **JSON}).status == 201
