"""Kafka: three processes, each broker and controller (KRaft)."""

from __future__ import annotations

import base64
import subprocess
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ops.engines import kafka_wire
from ops.engines.config import SIZE, EngineSet, Member
from ops.engines.errors import EngineError
from ops.engines.processes import Launch, Running

_JVM = ("-Xms256m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_LOGGING = (
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka=info",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
)
_FORMAT_TIMEOUT = 60.0


def new_cluster_id() -> str:
    """As Kafka makes them: 16 random bytes in base64url. One that starts with '-' would look like an option."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return text


def properties(engines: EngineSet, member: Member) -> str:
    """The broker's configuration file. The time-outs are short so that a dead broker is missed within seconds; the rest
    is what a log that loses nothing needs: three copies, two before an answer, no topic made by a slip of the pen."""
    voters = ",".join(f"{number}@127.0.0.1:{engines.controller_port(number)}" for number in range(1, SIZE + 1))
    values = {
        "process.roles": "broker,controller",
        "node.id": member.number,
        "controller.quorum.voters": voters,
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://127.0.0.1:{member.port},"
        f"CONTROLLER://127.0.0.1:{engines.controller_port(member.number)}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{member.port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": member.folder / "data",
        "default.replication.factor": SIZE,
        "offsets.topic.replication.factor": SIZE,
        "transaction.state.log.replication.factor": SIZE,
        "share.coordinator.state.topic.replication.factor": SIZE,
        "min.insync.replicas": 2,
        "auto.create.topics.enable": "false",
        "broker.session.timeout.ms": 3000,
        "broker.heartbeat.interval.ms": 500,
        "replica.lag.time.max.ms": 5000,
        "controller.quorum.election.timeout.ms": 500,
        "controller.quorum.fetch.timeout.ms": 1000,
        "group.initial.rebalance.delay.ms": 0,
    }
    return "".join(f"{key}={value}\n" for key, value in values.items())


@dataclass(frozen=True, slots=True)
class Kafka:
    """How to start the brokers of a set and how to tell that they are ready."""

    engines: EngineSet
    java: Path
    jars: Path
    cluster_id: str

    def prepare(self, members: Sequence[Member]) -> None:
        """Write the configurations; format the folders that never were."""
        formatting: list[tuple[Member, subprocess.Popen[str]]] = []
        for member in members:
            file = member.folder / "broker.properties"
            file.write_text(properties(self.engines, member), encoding="utf-8")
            if (member.folder / "data" / "meta.properties").exists():
                continue
            argv: list[str | Path] = [
                self.java,
                "-Xshare:auto",
                "-XX:TieredStopAtLevel=1",
                *_LOGGING[:1],
                "-cp",
                self.jars / "*",
            ]
            argv += ["kafka.tools.StorageTool", "format", "-t", self.cluster_id, "-c", file]
            process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            formatting.append((member, process))
        try:
            for member, process in formatting:
                output, _ = process.communicate(timeout=_FORMAT_TIMEOUT)
                if process.returncode:
                    raise EngineError(f"the folder of {member.name} could not be formatted: {output.strip()[-500:]}")
        finally:
            for _, process in formatting:
                process.kill()

    def launch(self, member: Member) -> Launch:
        """The broker's command."""
        jars, file = self.jars / "*", member.folder / "broker.properties"
        return Launch((self.java, *_JVM, *_LOGGING, "-cp", jars, "kafka.Kafka", file))

    def pending(self, running: Sequence[Running]) -> str:
        """What is not ready yet; empty when every broker knows all running ones as alive, so that a topic with as many
        copies can be made through any of them."""
        wanted = {each.member.number for each in running}
        for each in running:
            try:
                seen = kafka_wire.metadata(each.member.port)
            except OSError as error:
                return f"{each.member.name} does not answer ({error or type(error).__name__})"
            if missing := sorted(wanted - seen.brokers):
                return f"{each.member.name} does not know {', '.join(f'kafka-{number}' for number in missing)} yet"
            if seen.controller < 0 and len(running) > 1:
                return f"{each.member.name} knows no controller yet"
        return ""


def leader(running: Sequence[Running]) -> str:
    """The broker that leads the most partitions of ordinary topics."""
    for each in running:
        try:
            counts: Counter[int] = Counter(kafka_wire.metadata(each.member.port).leaders)
        except OSError:
            continue
        if counts:
            return f"kafka-{min(counts, key=lambda number: (-counts[number], number))}"
    raise EngineError("no broker leads a partition: there is no topic yet, or no broker answers")
