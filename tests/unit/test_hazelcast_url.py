"""``hazelcast://host:port,host:port/cluster-name``."""

from __future__ import annotations

import pytest

from shared.backends.hazelcast.cluster import parse_cluster
from shared.errors import StartError


@pytest.mark.parametrize(
    ("url", "name", "members"),
    [
        ("hazelcast://h:1/c", "c", (("h", 1),)),
        ("hazelcast://h1:1,h2:2,h1:1/my-cluster", "my-cluster", (("h1", 1), ("h2", 2))),
        ("hazelcast://h", "dev", (("h", 5701),)),
        ("hazelcast://h/", "dev", (("h", 5701),)),
        ("hazelcast://[::1]:7,[fe80::1],10.0.0.1:9/c", "c", (("::1", 7), ("fe80::1", 5701), ("10.0.0.1", 9))),
    ],
)
def test_what_can_be_meant(url: str, name: str, members: tuple[tuple[str, int], ...]) -> None:
    cluster = parse_cluster(url)
    assert (cluster.name, cluster.members, cluster.prefix) == (name, members, "cdrs")
    assert parse_cluster(str(cluster)) == cluster


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h:1/c",
        "redis://h:1/c",
        "hazelcast://",
        "hazelcast:///c",
        "hazelcast://h:1,/c",
        "hazelcast://h:0/c",
        "hazelcast://h:65536/c",
        "hazelcast://h:x/c",
        "hazelcast://h:/c",
        "hazelcast://h:1:2/c",
        "hazelcast://h:²/c",
        "hazelcast://::1/c",
        "hazelcast://[::1/c",
        "hazelcast://h h:1/c",
        "hazelcast://h:1/c/d",
        "hazelcast://h:1/c?x=1",
        "hazelcast://h:1/" + "c" * 129,
    ],
)
def test_what_cannot_be_meant_names_the_setting(url: str) -> None:
    with pytest.raises(StartError, match=r"registry\.url"):
        parse_cluster(url)


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(StartError) as caught:
        parse_cluster("hazelcast://user:secret@h:1/c")
    assert "secret" not in str(caught.value)
