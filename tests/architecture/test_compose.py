"""compose.yaml says what it must, and the same as the rest of the project. Read, not run: the reference parser has its
own test (test_compose_parser.py), and no Docker engine takes part in any."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from ops.docker import dockerfile
from ops.engines import hazelcast, kafka, mongo
from ops.engines.config import EngineSet
from shared.settings import Settings, load_settings
from shared.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = PROJECT["services"]
OURS = [name for name, service in SERVICES.items() if service["image"].startswith("cdrs:")]
OBSERVABILITY = {"prometheus", "grafana"}
each_service = pytest.mark.parametrize("name", sorted(SERVICES))


def numbered(kind: str) -> list[str]:
    return sorted(name for name in SERVICES if re.fullmatch(rf"{kind}-\d", name))


def seconds(text: str) -> float:
    return dockerfile.seconds(text)


def settings_of(name: str) -> Settings:
    environment = SERVICES[name]["environment"]
    assert all(isinstance(value, str) for value in environment.values()), "YAML must not guess types"
    return load_settings(None, environment, {})


def test_everything_is_there() -> None:
    assert numbered("gateway") == ["gateway-1", "gateway-2"]
    for kind in ("node", "kafka", "hazelcast", "mongo"):
        assert numbered(kind) == [f"{kind}-{number}" for number in (1, 2, 3)]
    others = {name for name in SERVICES if not re.search(r"-\d$", name)}
    assert others == {"haproxy", *OBSERVABILITY}
    assert {name for name, service in SERVICES.items() if "profiles" in service} == OBSERVABILITY
    assert all(SERVICES[name]["profiles"] == ["observability"] for name in OBSERVABILITY)


@each_service
def test_images_are_pinned(name: str) -> None:
    image = SERVICES[name]["image"]
    assert re.search(r":v?\d+\.\d+\.\d+(-[a-z0-9.-]+)?(@sha256:[0-9a-f]{64})?$", image), image
    if name in OURS:
        assert image == f"cdrs:{VERSION}"
        assert SERVICES[name]["pull_policy"] == "build", "a registry's image of that name would be somebody else's"
        assert (ROOT / SERVICES[name]["build"]["dockerfile"]).is_file()


def test_the_same_versions_as_in_the_tests() -> None:
    pins = json.loads((ROOT / "ops/engines/pins.json").read_text(encoding="utf-8"))["maven"]["dependencies"]
    versions = {artifact.split(":")[0]: artifact.rpartition(":")[2] for artifact in pins}
    assert SERVICES["kafka-1"]["image"] == f"apache/kafka:{versions['org.apache.kafka']}"
    assert SERVICES["hazelcast-1"]["image"] == f"hazelcast/hazelcast:{versions['com.hazelcast']}"
    assert SERVICES["mongo-1"]["image"].startswith("mongo:8.0.")


@each_service
def test_only_this_machine_gets_in(name: str) -> None:
    service = SERVICES[name]
    for port in service.get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), port
    assert set(service["networks"]) <= {"edge", "inside"}
    assert "network_mode" not in service
    if re.match(r"kafka|hazelcast|mongo|node", name):
        assert service["networks"] == ["inside"]
        assert "ports" not in service


def test_there_is_no_way_out_of_the_inner_network() -> None:
    assert PROJECT["networks"]["inside"]["internal"] is True


@each_service
def test_least_privilege(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["user"].partition(":")[0] not in {"", "0", "root"}
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "pid", "ipc", "devices"} & service.keys()
    assert all(mount.startswith("/") and "size=" in mount for mount in service["tmpfs"])
    assert not any("docker.sock" in str(volume) for volume in service.get("volumes", []))


@each_service
def test_health_is_asked_for_often_at_first(name: str) -> None:
    health = SERVICES[name]["healthcheck"]
    assert health.keys() == {"test", "interval", "timeout", "start_period", "start_interval", "retries"}
    assert health["test"][0] in {"CMD", "CMD-SHELL"}
    assert seconds(health["start_interval"]) <= 3 < seconds(health["interval"])
    assert seconds(health["timeout"]) <= seconds(health["interval"])


@each_service
def test_starts_wait_for_health(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        assert other in SERVICES
        assert how == {"condition": "service_healthy"}


def test_what_needs_what() -> None:
    engines = {*numbered("kafka"), *numbered("hazelcast"), *numbered("mongo")}
    for node in numbered("node"):
        assert set(SERVICES[node]["depends_on"]) == engines
    for gateway in numbered("gateway"):
        assert {*numbered("node"), *numbered("hazelcast")} == set(SERVICES[gateway]["depends_on"])
    assert list(SERVICES["haproxy"]["depends_on"]) == numbered("gateway")


@each_service
def test_mounts(name: str) -> None:
    """What must survive stands in named volumes; files of the project are there, and cannot be written."""
    for volume in SERVICES[name].get("volumes", []):
        if isinstance(volume, str):
            assert volume.partition(":")[0] in PROJECT["volumes"]
        else:
            assert volume["type"] == "bind"
            assert volume["read_only"] is True
            assert (ROOT / volume["source"]).exists()
    named = [volume for volume in SERVICES[name].get("volumes", []) if isinstance(volume, str)]
    assert bool(named) == bool(re.match(r"kafka|mongo|prometheus|grafana", name)), "who keeps data, and who must not"


def test_there_is_time_for_a_drain() -> None:
    for name in numbered("gateway"):
        gateway = settings_of(name).gateway
        assert gateway.drain_delay >= 2, "HAProxy asks each second and believes the second failure"
        assert gateway.drain_delay + gateway.drain_timeout + 2 < seconds(SERVICES[name]["stop_grace_period"])
    hard_stop = re.search(r"hard-stop-after (\S+)", (ROOT / "ops/haproxy/haproxy.cfg").read_text(encoding="utf-8"))
    assert hard_stop is not None
    assert seconds(hard_stop[1]) < seconds(SERVICES["haproxy"]["stop_grace_period"])
    assert all(seconds(SERVICES[name]["stop_grace_period"]) >= 30 for name in [*numbered("kafka"), *numbered("mongo")])


@pytest.mark.parametrize("name", OURS)
def test_the_settings_of_our_processes_are_settings(name: str) -> None:
    settings = settings_of(name)
    assert settings.is_distributed
    assert settings.insecure
    kafka_hosts = settings.log.url.removeprefix("kafka://").split(",")
    assert kafka_hosts == [f"{broker}:9092" for broker in numbered("kafka")]
    members, _, cluster = settings.registry.url.removeprefix("hazelcast://").partition("/")
    assert members.split(",") == [f"{member}:5701" for member in numbered("hazelcast")]
    configured = yaml.safe_load((ROOT / "ops/docker/hazelcast.yaml").read_text(encoding="utf-8"))["hazelcast"]
    assert cluster == configured["cluster-name"]
    store = urlsplit(settings.store.url)
    assert store.netloc.split(",") == [f"{server}:27017" for server in numbered("mongo")]
    assert store.query == f"replicaSet={SERVICES['mongo-1']['command'][2]}"


@pytest.mark.parametrize("name", OURS)
def test_our_processes_say_where_they_are(name: str) -> None:
    service = SERVICES[name]
    kind, port = ("gateway", "8080") if name.startswith("gateway") else ("node", "7000")
    assert service["command"] == [kind, "--host", "0.0.0.0", "--port", port]
    assert service["healthcheck"]["test"][-1] == f"http://127.0.0.1:{port}/readyz"
    if kind == "node":
        settings = settings_of(name).node
        assert (settings.id, settings.url) == (name, f"http://{name}:{port}")


def test_the_balancer_finds_its_configuration() -> None:
    text = (ROOT / "ops/haproxy/haproxy.cfg").read_text(encoding="utf-8")
    environment = SERVICES["haproxy"]["environment"]
    assert set(re.findall(r"\$\{(\w+)\}", text)) == set(environment)
    assert [environment[f"CDRS_GATEWAY_{number}"] for number in (1, 2)] == ["gateway-1:8080", "gateway-2:8080"]


# --- the engines as scripts/engines has them -----------------------------------------------------------

ENGINES = EngineSet(name="x", folder=Path("/nowhere"), base_port=20_000)
ADDRESSES = {"node.id", "controller.quorum.voters", "listeners", "advertised.listeners", "log.dirs"}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_kafka_is_set_up_as_in_the_tests(number: int) -> None:
    member = ENGINES.members("kafka")[number - 1]
    wanted = dict(line.split("=", 1) for line in kafka.properties(ENGINES, member).splitlines())
    environment = dict(SERVICES[f"kafka-{number}"]["environment"])
    assert environment.pop("CLUSTER_ID")
    assert environment.pop("KAFKA_HEAP_OPTS")
    found = {name.removeprefix("KAFKA_").lower().replace("_", "."): value for name, value in environment.items()}
    assert {k: v for k, v in found.items() if k not in ADDRESSES} == {
        k: v for k, v in wanted.items() if k not in ADDRESSES
    }
    assert found.keys() == wanted.keys()
    assert found["node.id"] == str(number)
    assert found["advertised.listeners"] == f"PLAINTEXT://kafka-{number}:9092"
    assert found["controller.quorum.voters"] == "1@kafka-1:9093,2@kafka-2:9093,3@kafka-3:9093"
    assert f"kafka-{number}:{found['log.dirs']}" in SERVICES[f"kafka-{number}"]["volumes"]


def test_hazelcast_is_set_up_as_in_the_tests() -> None:
    wanted = json.loads(hazelcast.configuration(ENGINES, ENGINES.members("hazelcast")[0]))["hazelcast"]
    found = yaml.safe_load((ROOT / "ops/docker/hazelcast.yaml").read_text(encoding="utf-8"))["hazelcast"]
    assert found["network"]["join"]["tcp-ip"]["member-list"] == [f"{name}:5701" for name in numbered("hazelcast")]
    assert found["network"].pop("rest-api") == {"enabled": True, "endpoint-groups": {"HEALTH_CHECK": {"enabled": True}}}
    assert found["network"]["join"].keys() == wanted["network"]["join"].keys()
    # A container is reached by its network's address, a member of a test by loopback only.
    wanted["properties"].pop("hazelcast.socket.bind.any")
    for part in ("cluster-name", "network"):
        found.pop(part)
        wanted.pop(part)
    assert found == wanted


def test_the_replica_set_is_set_up_as_in_the_tests() -> None:
    wanted = mongo.replica_set(ENGINES)
    script = (ROOT / "ops/docker/replica-set.js").read_text(encoding="utf-8")
    timing = ", ".join(f"{name}: {value}" for name, value in wanted["settings"].items())
    assert f"settings: {{ {timing} }}" in script
    assert SERVICES["mongo-1"]["environment"] == {
        "MAKE_REPLICA_SET": ",".join(f"{name}:27017" for name in numbered("mongo"))
    }
    for name in numbered("mongo"):
        assert SERVICES[name]["command"][:4] == ["mongod", "--replSet", "cdrs", "--bind_ip_all"]


# --- the image -----------------------------------------------------------------------------------------

TEXT = (ROOT / "ops/docker/Dockerfile").read_text(encoding="utf-8")
STAGES = dockerfile.stages(TEXT)


def steps(name: str) -> list[dockerfile.Instruction]:
    return [step for step in STAGES[-1].steps if step.name == name]


def test_the_image_is_built_from_pinned_parts_in_two_stages() -> None:
    assert [stage.name for stage in STAGES] == ["build", "1"]
    assert all(re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", stage.base) for stage in STAGES)
    installs = [step.value for step in STAGES[0].steps if step.name == "RUN" and "pip install" in step.value]
    assert len(installs) == 2
    assert "--require-hashes --only-binary=:all: -r requirements.lock" in installs[0]
    assert "--no-deps --no-index /dist/*.whl" in installs[1]
    assert not any("pip" in step.value for step in steps("RUN"))


def test_the_image_stops_and_tells_its_health_as_the_compose_file_expects() -> None:
    assert steps("STOPSIGNAL")[0].value == "SIGTERM"
    assert steps("ENTRYPOINT")[0].words() == ["cdrs"], "the exec form: a shell would keep the signal to itself"
    assert steps("CMD")[0].words() == ["up"]
    given, test = dockerfile.options(steps("HEALTHCHECK")[0].value)
    assert given.keys() == {"interval", "timeout", "start-period", "start-interval", "retries"}
    assert json.loads(test.removeprefix("CMD ")) == SERVICES["gateway-1"]["healthcheck"]["test"][1:3]
    assert steps("USER")[0].value == SERVICES["gateway-1"]["user"] == "10001:10001"
    assert f"VERSION={VERSION}" in [step.value for step in steps("ARG")]
    labels = {name for step in steps("LABEL") for name, _ in dockerfile.pairs(step)}
    assert {f"org.opencontainers.image.{name}" for name in ("title", "version", "revision", "licenses")} <= labels


def test_the_build_gets_what_it_copies_and_nothing_else() -> None:
    patterns = dockerfile.ignore_patterns((ROOT / ".dockerignore").read_text(encoding="utf-8"))
    copied: set[str] = set()
    for stage in STAGES:
        for step in stage.steps:
            given, rest = dockerfile.options(step.value)
            if step.name == "COPY" and "from" not in given:
                copied |= set(shlex.split(rest)[:-1])
    assert {"requirements.lock", "pyproject.toml", "cdrs", "gateway", "services", "shared"} <= copied
    for source in copied:
        assert (ROOT / source).exists()
        assert not dockerfile.is_ignored(Path(source), patterns)
    for name in (".git/config", ".venv/bin/python", ".cdrs/log.db", ".env", "tests/x.py", "cdrs/__pycache__/a.pyc"):
        assert dockerfile.is_ignored(Path(name), patterns), name
