"""Hazelcast: three members of one cluster."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ops.engines.config import EngineSet, Member
from ops.engines.processes import Launch, Running

_MEMBERS = re.compile(rb"Members \{size:(\d+)")
_JVM = (
    "-Xms64m",
    "-Xmx128m",
    "-XX:+UseSerialGC",
    # Not of use in the long run, but it halves the processor time of a start.
    "-XX:TieredStopAtLevel=1",
    "--add-modules=java.se",
    "--add-exports=java.base/jdk.internal.ref=ALL-UNNAMED",
    "--add-opens=java.base/java.lang=ALL-UNNAMED",
    "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
    "--add-opens=java.management/sun.management=ALL-UNNAMED",
    "--add-opens=jdk.management/com.sun.management.internal=ALL-UNNAMED",
)


def configuration(engines: EngineSet, member: Member) -> str:
    """The member's configuration file. It is YAML by being JSON: nothing here needs more."""
    tree = {
        "hazelcast": {
            "cluster-name": engines.cluster,
            "properties": {
                "hazelcast.phone.home.enabled": "false",
                # Without it the port is open on every interface, whatever `interfaces` says.
                "hazelcast.socket.bind.any": "false",
                # With 3 s two members that were busy with removing a stopped third missed each other too, now and
                # then, and that split lasted for as long as the third stood still.
                "hazelcast.max.no.heartbeat.seconds": "6",
                "hazelcast.heartbeat.interval.seconds": "1",
                # More than there are connections between members: the thread of the one to a member that stands still
                # is busy all the time, and whoever shares it may be missed as well (hazelcast#26473).
                "hazelcast.io.output.thread.count": "8",
                "hazelcast.merge.first.run.delay.seconds": "5",
                "hazelcast.merge.next.run.delay.seconds": "5",
            },
            "network": {
                "port": {"port": member.port, "auto-increment": False},
                "interfaces": {"enabled": True, "interfaces": ["127.0.0.1"]},
                "join": {
                    "auto-detection": {"enabled": False},
                    "multicast": {"enabled": False},
                    "tcp-ip": {
                        "enabled": True,
                        "member-list": [f"127.0.0.1:{each.port}" for each in engines.members("hazelcast")],
                    },
                },
            },
            "set": {"cdrs*": {"backup-count": 2}},
            # A beat waits for no backup: one stopped member would hold up every writer.
            "map": {"cdrs*": {"backup-count": 0, "async-backup-count": 2, "time-to-live-seconds": 5}},
        }
    }
    return json.dumps(tree, indent=2) + "\n"


@dataclass(frozen=True, slots=True)
class Hazelcast:
    """How to start the members of a set and how to tell that they found each other."""

    engines: EngineSet
    java: Path
    jars: Path

    def prepare(self, members: Sequence[Member]) -> None:
        """Write the configurations."""
        for member in members:
            (member.folder / "hazelcast.yaml").write_text(configuration(self.engines, member), encoding="utf-8")

    def launch(self, member: Member) -> Launch:
        """The member's command. Of the jars it needs its own only."""
        configured = f"-Dhazelcast.config={member.folder / 'hazelcast.yaml'}"
        (jar,) = self.jars.glob("hazelcast-*.jar")
        starter = "com.hazelcast.core.server.HazelcastMemberStarter"
        return Launch((self.java, *_JVM, configured, "-cp", jar, starter))

    def pending(self, running: Sequence[Running]) -> str:
        """What is not ready yet; empty when each running member last said that the cluster has so many members."""
        for each in running:
            with each.member.log_file.open("rb") as file:
                file.seek(each.log_from)
                sizes = _MEMBERS.findall(file.read())
            size = int(sizes[-1]) if sizes else 0
            if size != len(running):
                return f"{each.member.name} sees {size} of {len(running)} members"
        return ""
