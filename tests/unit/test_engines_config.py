"""What scripts/engines does without starting one: ports, configurations, two small wire clients, process identity."""

from __future__ import annotations

import json
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL

import pytest

from ops.engines import hazelcast, kafka, kafka_wire, mongo, mongo_wire, wine
from ops.engines.config import (
    PORTS_PER_SET,
    EngineSet,
    check_base_port,
    check_set_name,
    choose_base_port,
    default_cache,
    parse_engines,
    settings_of,
)
from ops.engines.errors import EngineError
from ops.engines.install import java_version, pins, project, wrong_files
from ops.engines.processes import Process, Running
from ops.engines.state import State, load

SET = EngineSet(name="one", folder=Path("/sets/one"), base_port=20_000)


def test_ports_of_neighbouring_sets_never_meet() -> None:
    other = replace(SET, base_port=SET.base_port + PORTS_PER_SET)
    assert len(SET.ports()) == len(set(SET.ports())) == 12
    assert not set(SET.ports()) & set(other.ports())
    assert choose_base_port([20_000, 20_050], [20_000, 20_030, 20_040, 20_100]) == 20_100
    with pytest.raises(EngineError, match="--base-port"):
        choose_base_port([20_000], [20_000])


def test_settings_point_at_every_member() -> None:
    assert settings_of(SET) == {
        "CDRS_LOG__URL": "kafka://127.0.0.1:20001,127.0.0.1:20002,127.0.0.1:20003",
        "CDRS_REGISTRY__URL": "hazelcast://127.0.0.1:20021,127.0.0.1:20022,127.0.0.1:20023/cdrs-one",
        "CDRS_STORE__URL": "mongodb://127.0.0.1:20031,127.0.0.1:20032,127.0.0.1:20033/?replicaSet=cdrs-one",
    }
    assert list(settings_of(replace(SET, engines=("kafka",)))) == ["CDRS_LOG__URL"]


def test_kafka_configuration() -> None:
    lines = dict(line.split("=", 1) for line in kafka.properties(SET, SET.member("kafka-2")).splitlines())
    assert lines["node.id"] == "2"
    assert lines["controller.quorum.voters"] == "1@127.0.0.1:20011,2@127.0.0.1:20012,3@127.0.0.1:20013"
    assert lines["listeners"] == "PLAINTEXT://127.0.0.1:20002,CONTROLLER://127.0.0.1:20012"
    assert (lines["default.replication.factor"], lines["min.insync.replicas"]) == ("3", "2")
    assert not any(kafka.new_cluster_id().startswith("-") for _ in range(500))


def test_hazelcast_configuration_joins_its_own_members_only() -> None:
    tree = json.loads(hazelcast.configuration(SET, SET.member("hazelcast-3")))["hazelcast"]
    assert tree["cluster-name"] == "cdrs-one"
    assert tree["network"]["port"] == {"port": 20_023, "auto-increment": False}
    assert tree["network"]["join"]["tcp-ip"]["member-list"] == ["127.0.0.1:20021", "127.0.0.1:20022", "127.0.0.1:20023"]


def test_hazelcast_counts_only_what_was_said_since_the_start(tmp_path: Path) -> None:
    engines = replace(SET, folder=tmp_path)
    member = engines.member("hazelcast-1")
    member.folder.mkdir()
    old = b"Members {size:3, ver:3} [\n"
    member.log_file.write_bytes(old + b"...\n")
    driver, running = hazelcast.Hazelcast(engines, Path(), Path()), [Running(member, Process(1, 1), len(old))]
    assert driver.pending(running) == "hazelcast-1 sees 0 of 1 members"
    with member.log_file.open("ab") as log:
        log.write(b"Members {size:2, ver:2} [\nMembers {size:1, ver:3} [\n")
    assert driver.pending(running) == ""


def test_mongo_command_line() -> None:
    words = mongo.options(SET, SET.member("mongo-1"), dbpath=wine.windows_path(Path("/a b/c")))
    assert words[words.index("--dbpath") + 1] == "Z:\\a b\\c"
    assert words[words.index("--bind_ip") + 1] == "127.0.0.1"
    assert [each["_id"] for each in mongo.replica_set(SET)["members"]] == [0, 1, 2]


def test_bson_there_and_back() -> None:
    document = {
        "n": 1,
        "big": -(2**40),
        "f": 0.5,
        "t": "ä",
        "yes": True,
        "none": None,
        "list": [1, {"a": []}],
        "in": {},
    }
    assert mongo_wire.decode(mongo_wire.encode(document)) == document
    # {"hello": "world"} of the BSON specification
    assert mongo_wire.encode({"hello": "world"}) == b"\x16\0\0\0\x02hello\0\x06\0\0\0world\0\0"
    with pytest.raises(TypeError):
        mongo_wire.encode({"when": object()})


def test_bson_steps_over_what_it_does_not_know() -> None:
    unread = b"\x07id\0" + bytes(12) + b"\x11ts\0" + bytes(8) + b"\x05bin\0\x02\0\0\0\0xy" + b"\x10after\0\x07\0\0\0"
    assert mongo_wire.decode(struct.pack("<i", len(unread) + 5) + unread + b"\0")["after"] == 7
    with pytest.raises(ValueError, match="0x42"):
        mongo_wire.decode(b"\x0a\0\0\0\x42x\0\0\0\0")


def _text(value: str) -> bytes:
    return struct.pack(">h", len(value)) + value.encode()


def test_kafka_metadata() -> None:
    body = struct.pack(">ii", 1, 2)
    for number in (1, 3):
        body += struct.pack(">i", number) + _text("127.0.0.1") + struct.pack(">ih", 20_000 + number, -1)
    body += struct.pack(">i", 3) + struct.pack(">i", 2)
    for name, internal, leaders in (("orders", 0, (3, -1, 3)), ("__consumer_offsets", 1, (1,))):
        body += struct.pack(">h", 0) + _text(name) + struct.pack(">bi", internal, len(leaders))
        for partition, leader in enumerate(leaders):
            body += struct.pack(">hiiiiii", 0, partition, leader, 2, 1, 3, 1) + struct.pack(">i", 3)
    assert kafka_wire.parse(body) == kafka_wire.Metadata(frozenset({1, 3}), 3, (3, 3))
    for end in range(8, len(body)):
        with pytest.raises(struct.error):
            kafka_wire.parse(body[:end])


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('java version "1.8.0_402"', 8),
        ('openjdk version "25" 2025-09-16', 25),
        ("sh: java: not found", 0),
    ],
)
def test_java_version(text: str, version: int) -> None:
    assert java_version(text) == version


def test_only_pinned_files_count_as_installed(tmp_path: Path) -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert wrong_files(tmp_path / "none", {"a.jar": empty}) == ["a.jar is missing"]
    (tmp_path / "a.jar").touch()
    assert wrong_files(tmp_path, {"a.jar": empty}) == []
    (tmp_path / "b.jar").touch()
    assert wrong_files(tmp_path, {"a.jar": empty}) == ["b.jar is not pinned"]
    (tmp_path / "a.jar").write_text("changed")
    assert wrong_files(tmp_path, {"a.jar": empty, "b.jar": empty}) == ["a.jar has another SHA-256"]


def test_pins_are_exact() -> None:
    maven, runtime = pins()["maven"], pins()["runtime"]
    hashes = [pins()["mongod"]["sha256"], runtime["sha256"], *maven["jars"].values(), *runtime["libraries"].values()]
    assert all(len(each) == 64 for each in hashes)
    text = project(maven["dependencies"], maven["alone"])
    assert "<version>4.3.1</version>" in text
    assert text.count("<exclusion>") == 1
    assert "://" not in text, "where packages come from is for each machine's own configuration to say"


@pytest.mark.parametrize("name", ["", "-a", "A", "a/b", "..", "a" * 33, "a b"])
def test_set_names_that_are_refused(name: str) -> None:
    with pytest.raises(EngineError):
        check_set_name(name)


def test_arguments_that_are_refused() -> None:
    for port in (0, 1023, 32_740, 70_000):
        with pytest.raises(EngineError, match="1024"):
            check_base_port(port)
    assert parse_engines("mongo, kafka") == ("kafka", "mongo")
    for text in ("", ",", "kafka,redis"):
        with pytest.raises(EngineError, match="--only"):
            parse_engines(text)
    with pytest.raises(EngineError, match="kafka-1, kafka-2, kafka-3, hazelcast-1"):
        SET.member("kafka-4")


def test_cache_folder() -> None:
    assert default_cache({"HOME": "/h"}) == Path("/h/.cache/cdrs-engines")
    assert default_cache({"HOME": "/h", "XDG_CACHE_HOME": "/c"}) == Path("/c/cdrs-engines")
    assert default_cache({"HOME": "/h", "XDG_CACHE_HOME": "relative"}) == Path("/h/.cache/cdrs-engines")


def test_a_process_that_only_has_the_same_number_is_left_alone() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            process = Process.of(child.pid)
            assert process is not None
            recycled = replace(process, started=process.started - 1)
            assert not recycled.is_alive()
            assert not recycled.send(SIGKILL)
            assert recycled.wait(0.0), "it has ended, for all we know"
            assert process.is_alive()
            assert not process.wait(0.0)
            assert process.send(SIGKILL)
            assert process.wait(5.0)
            assert not process.is_alive(), "an unburied process is no process"
        finally:
            child.kill()


def test_state_survives_and_another_boot_does_not_mistake_it(tmp_path: Path) -> None:
    engines = replace(SET, folder=tmp_path, engines=("hazelcast",))
    state = State(engines, "id")
    state.running["hazelcast-2"] = Running(engines.member("hazelcast-2"), Process(1, 2), 3)
    state.save()
    assert load(tmp_path) == state
    tree = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps(tree | {"boot": "another"}))
    again = load(tmp_path)
    assert again is not None
    assert again.running == {}
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(EngineError, match=r"state\.json"):
        load(tmp_path)
    assert load(tmp_path / "none") is None
