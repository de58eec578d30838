"""Every setting of cdrs: one tree, each field with unit, default and reason.

Sources, weakest first: a TOML file (``--config`` or ``CDRS_CONFIG``), environment variables (``CDRS_…``, ``__`` nests,
``CDRS_…_FILE`` names a file that holds the value), command-line flags. `cdrs config docs` prints this module.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast, get_args
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from shared.errors import StartError
from shared.urls import split_url


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _seconds(default: float, reason: str, *, ge: float = 0.0, le: float = 86_400.0) -> Any:
    return Field(default, ge=ge, le=le, description=reason, json_schema_extra={"unit": "seconds"})


def _count(default: int, reason: str, *, unit: str = "count", ge: int = 0, le: int = 2**40) -> Any:
    return Field(default, ge=ge, le=le, description=reason, json_schema_extra={"unit": unit})


def _text(default: str, reason: str, *, unit: str = "text") -> Any:
    return Field(default, description=reason, json_schema_extra={"unit": unit})


class LogSettings(_Group):
    """The event log."""

    url: str = _text(
        "",
        "Kafka brokers: kafka://host:port,host:port. Empty: SQLite in the data folder. log.url, registry.url "
        "and store.url are set together.",
        unit="URL",
    )
    partitions: int = _count(
        12,
        "Partitions of a new log. 12 divides among 1, 2, 3, 4, 6 and 12 nodes; constant within an epoch.",
        unit="partitions",
        ge=1,
        le=48,
    )
    append_timeout: float = _seconds(
        3.0,
        "How long an append waits for the log's lock before it is refused as not stored. Shorter than a handoff.",
        ge=0.05,
        le=60,
    )
    read_timeout: float = _seconds(
        3.0, "How long a question to the stored history may take before it is answered with 503.", ge=0.05, le=60
    )
    queue_bytes: int = _count(
        64 * 1024 * 1024, "Events waiting for the log's writer, in bytes, before appends are refused.", unit="bytes"
    )
    poll_interval: float = _seconds(
        0.02,
        "How often a tail looks for records that other processes appended; half as often a second after the last one, "
        "an eighth as often half a minute after it.",
        ge=0.001,
        le=1,
    )


class KafkaSettings(_Group):
    """The event log in Kafka: where the log's URL begins with ``kafka://``."""

    topic: str = _text(
        "cdrs.events", "What the names of our topics begin with; '.', epoch and random bits follow.", unit="name"
    )
    accept_weaker: list[str] = Field(
        default_factory=list,
        description="Properties of the topic that may be weaker than what no loss needs, such as replication.factor "
        "and min.insync.replicas with a single broker.",
        json_schema_extra={"unit": "properties"},
    )
    paranoid: bool = Field(
        default=False,
        description="Brokers write each batch to the disk before they answer (flush.messages=1), so that acknowledged "
        "events survive the loss of power everywhere.",
        json_schema_extra={"unit": "switch"},
    )
    append_timeout: float = _seconds(
        5.0,
        "How long an append may take, new leaders and a new producer included. Half of gateway.produce_timeout, so "
        "that another node can still be tried.",
        ge=0.5,
        le=60,
    )
    request_timeout: float = _seconds(3.0, "One request to one broker, before another one is tried.", ge=0.5, le=60)
    connect_timeout: float = _seconds(
        1.0,
        "To connect to a broker, with TLS and authentication, and for it to say who leads; at most request_timeout. A "
        "broker that stands still is waited for as long, again and again, before a new leader is known. Raise it where "
        "brokers are far away.",
        ge=0.1,
        le=60,
    )
    replace_after: float = _seconds(
        5.0, "A producer or reader that gets nowhere for so long is replaced. Longer than a failover.", ge=0.5, le=60
    )
    compression: Literal["none", "gzip", "lz4", "snappy", "zstd"] = Field(
        default="none",
        description="How batches are packed for the brokers: costs processor time here, saves disk and network there.",
        json_schema_extra={"unit": "codec"},
    )


class RegistrySettings(_Group):
    """The registry of live processes."""

    url: str = _text(
        "",
        "Hazelcast members: hazelcast://host:port,host:port/cluster-name. Empty: SQLite in the data folder.",
        unit="URL",
    )
    beat_interval: float = _seconds(
        0.3,
        "Between two heartbeats of a process, and between two reads; twice as long once no other has beaten for 10 s.",
        ge=0.05,
        le=10,
    )
    suspect_after: int = _count(3, "Missed beats before a live process is suspected.", unit="beats", ge=1, le=100)
    dead_after: float = _seconds(1.5, "Silence before a process counts as dead and loses its routes.", ge=0.2, le=600)
    timeout: float = _seconds(0.5, "How long one registry call may take; the last picture holds meanwhile.", ge=0.05)


class StoreSettings(_Group):
    """Where history is kept."""

    url: str = _text(
        "", "MongoDB: mongodb://host:port,host:port/?replicaSet=name. Empty: SQLite in the data folder.", unit="URL"
    )


class MongoSettings(_Group):
    """The store of the distributed profile: a MongoDB replica set."""

    driver: Literal["motor", "pymongo"] = Field(
        default="motor",
        description="Client library: Motor, or its successor, PyMongo's own async API. Both pass the same tests.",
        json_schema_extra={"unit": "driver"},
    )
    timeout: float = _seconds(
        5.0, "How long one call may take, retries and an election included (timeoutMS).", ge=0.2, le=60
    )
    selection_timeout: float = _seconds(
        3.0,
        "How long a call waits for a primary; an election takes 2 s with electionTimeoutMillis 2000, else longer.",
        ge=0.1,
        le=60,
    )
    pool: int = _count(16, "Most connections to each server.", unit="connections", ge=2, le=1000)


class PersistSettings(_Group):
    """How nodes carry the log into the store (distributed profile)."""

    batch_records: int = _count(
        4000,
        "Most records in one write to the store. Full batches cost a third less per record than batches of 1,000.",
        unit="records",
        ge=1,
        le=10_000,
    )
    batch_bytes: int = _count(8 * 1024 * 1024, "Most bytes of values in one write.", unit="bytes", ge=1024)
    linger: float = _seconds(
        0.1, "How long records wait for company before a batch that is not full is written.", ge=0, le=10
    )
    takeover: float = _seconds(
        5.0, "A checkpoint that stands still for so long is moved by any node that follows the partition.", ge=0.1
    )
    parallel: int = _count(4, "Partitions written at the same time.", unit="partitions", ge=1, le=48)
    max_lag: int = _count(
        200_000,
        "Records of a partition that the store may lack before nodes refuse handoffs to it with 503.",
        unit="records",
        ge=1000,
    )


class RetentionSettings(_Group):
    """How long events are kept. Without a bound nothing is ever deleted."""

    max_age: float = _seconds(
        0.0, "Events are deleted so long after they were appended. 0: never for their age.", le=3_153_600_000
    )
    max_bytes: int = _count(
        0,
        "The oldest events of all go when log.db, or MongoDB's collection events before it is packed, holds about so "
        "much. 0: never for their size.",
        unit="bytes",
    )
    topic_records: int = _count(
        0,
        "About so many stored records are left in each partition of the Kafka topic (node.window at least); what is "
        "older is in MongoDB alone. 0: as many as MongoDB keeps.",
        unit="records",
    )
    identities: float = _seconds(
        86_400.0,
        "How long the identity of a deleted event is remembered, so that a late copy is known for one.",
        ge=86_400,
        le=3_153_600_000,
    )
    interval: float = _seconds(10.0, "Between two looks for what has expired.", ge=0.05)

    @property
    def is_on(self) -> bool:
        """Whether anything is ever deleted."""
        return self.max_age > 0 or self.max_bytes > 0

    @property
    def trims(self) -> bool:
        """Whether anything is ever deleted of a log that is not the store."""
        return self.is_on or self.topic_records > 0


class DedupeSettings(_Group):
    """Telling events from their copies (distributed profile)."""

    strict: bool = Field(
        default=False,
        description="Refuse events with 503 while the store is away and cannot be asked whether they are copies. Off: "
        "the last records in memory decide, and receipts say so.",
        json_schema_extra={"unit": "switch"},
    )


class NodeSettings(_Group):
    """A CDRS node."""

    id: str = _text("", "The node's name in the registry. Empty: made from host name and port.")
    zone: str = _text("", "Failure zone, shown in the registry.")
    capacity: float = Field(
        default=0.0,
        ge=0,
        le=1024,
        description="Routing weight. 0: the CPUs this process may use.",
        json_schema_extra={"unit": "CPUs"},
    )
    host: str = _text("127.0.0.1", "Where the node listens for gateways.", unit="address")
    port: int = _count(0, "Its port; 0 takes a free one.", unit="port", le=65_535)
    url: str = _text(
        "",
        "How gateways reach it, such as http://node-1:7000: needed where it listens on every address (0.0.0.0). "
        "Empty: from host and port.",
        unit="URL",
    )
    ring_records: int = _count(
        8192,
        "Records kept in memory per partition for feeds, and for history until the store has it.",
        unit="records",
        ge=16,
    )
    ring_bytes: int = _count(4 * 1024 * 1024, "Bytes of the same, per partition; whichever comes first.", unit="bytes")
    window: int = _count(
        32_768,
        "Judgement window W (docs/architecture.md): how far a look-up and its append may lie apart.",
        unit="records",
        ge=16,
    )
    max_waiting_bytes: int = _count(
        64 * 1024 * 1024, "Events waiting for the log, in bytes, before handoffs are refused.", unit="bytes"
    )
    dead_letters: int = _count(
        50,
        "Dead letters a second that a node writes about records which are not ours, and ten times as many at once; one "
        "counts again for every 64 KiB. More are only counted, so that a flood of them does not become one of ours.",
        unit="letters/s",
        le=100_000,
    )


class GatewaySettings(_Group):
    """The gateway: what clients see."""

    host: str = _text("127.0.0.1", "Where the gateway listens.", unit="address")
    port: int = _count(8080, "Its port; 0 takes a free one.", unit="port", le=65_535)
    workers: int = _count(
        1,
        "Gateway processes that share the port, each with subscribers and a feed of its own, as one process uses one "
        "core. 0: one for each CPU.",
        unit="processes",
        le=256,
    )
    public_url: str = _text(
        "",
        "How clients reach it, as https://name, for the banner and documents; and the one name with a dot by which "
        "they may call a gateway that listens on loopback. Empty: from host and port.",
    )
    max_event_bytes: int = _count(1024 * 1024, "Largest event, as it came in.", unit="bytes", ge=1024, le=1024 * 1024)
    max_batch_events: int = _count(10_000, "Most events in one JSON batch.", unit="events", ge=1)
    max_batch_bytes: int = _count(16 * 1024 * 1024, "Largest JSON batch.", unit="bytes", ge=1024)
    max_header_bytes: int = _count(16 * 1024, "All request headers together.", unit="bytes", ge=1024)
    max_headers: int = _count(100, "Request header fields.", unit="fields", ge=8)
    max_streams: int = _count(100, "Streams and patterns in one subscription.", unit="streams", ge=1)
    header_timeout: float = _seconds(5.0, "From connect, or the last answer's next byte, to the end of the headers.")
    body_timeout: float = _seconds(30.0, "Without a byte of a request body before the request is given up.")
    produce_timeout: float = _seconds(10.0, "From accepting an event to 503 or 504.", ge=0.1, le=600)
    max_wait: float = _seconds(
        2.0,
        "Events that would wait longer for their turn, at the pace of the last second, are refused with 503 at once: "
        "well below produce_timeout, or all would be answered too late.",
        ge=0.05,
    )
    handoff_timeout: float = _seconds(
        4.0,
        "One attempt at one node. Longer than the log's append timeout, so that its answer is heard: with Kafka, "
        "unless set, kafka.append_timeout x 1.2 + 0.4 s. A node that dies or hangs ends the attempt much sooner.",
        ge=0.1,
    )
    handoff_events: int = _count(2048, "Most events in one handoff.", unit="events", ge=1)
    handoff_bytes: int = _count(4 * 1024 * 1024, "Most bytes in one handoff.", unit="bytes", ge=1024)
    max_waiting_bytes: int = _count(
        64 * 1024 * 1024, "Events waiting for their receipts, in bytes, before producers get 503.", unit="bytes"
    )
    cors_origins: list[str] = Field(
        default_factory=list,
        description="Origins that browsers may call from besides the gateway's own.",
        json_schema_extra={"unit": "origins"},
    )
    drain_timeout: float = _seconds(
        4.0,
        "From the end of drain_delay to the exit; clean endings are spread over half of it. At most 4.3 s where "
        "cdrs up or --workers runs several processes: what is left then is killed.",
    )
    drain_delay: float = _seconds(
        0.0, "How long producers are still served after /readyz says 503: a balancer's check interval x fall."
    )


class SseSettings(_Group):
    """Server-sent events."""

    heartbeat: float = _seconds(
        15.0, "Idle time before a cursor block is sent. Below every usual proxy timeout.", ge=0.1
    )
    retry: float = _seconds(
        1.5, "Middle of the jittered reconnect delay told to clients (half to one and a half).", ge=0
    )
    ring_records: int = _count(
        8192, "Records a gateway keeps per partition for resuming readers.", unit="records", ge=16
    )
    ring_bytes: int = _count(4 * 1024 * 1024, "Bytes of the same, per partition; whichever comes first.", unit="bytes")
    warm_records: int = _count(
        1024,
        "Records per partition that a gateway fetches as it starts, so that whoever comes back after a restart need "
        "not be served from the store. At most ring_records.",
        unit="records",
    )
    backlog_bytes: int = _count(
        1024 * 1024, "Frames kept for readers who are behind before they read history instead.", unit="bytes", ge=4096
    )
    write_bytes: int = _count(64 * 1024, "Largest single write to a subscriber.", unit="bytes", ge=4096)
    stall_timeout: float = _seconds(
        30.0, "A socket that takes no byte for so long is cut; its cursor resumes it.", ge=1
    )
    write_path: Literal["auto", "fast", "portable"] = Field(
        default="auto",
        description="How bytes reach subscribers: fast = straight into the connection, nothing runs per subscriber; "
        "portable = through the ASGI server, a few tasks each. auto is fast wherever the server allows it.",
        json_schema_extra={"unit": "path"},
    )
    compression: Literal["auto", "off"] = Field(
        default="auto",
        description="auto = gzip for clients that accept it, in views with enough readers; each event is deflated "
        "once for all of them, where there is one a second at least. off = never.",
        json_schema_extra={"unit": "coding"},
    )
    compression_readers: int = _count(
        8, "Readers from which on a view's next ones are answered in gzip.", unit="readers", ge=1
    )
    compression_windows: int = _count(
        64, "Views that are deflated at the same time; each costs 144 KiB.", unit="views", ge=0
    )
    max_age: float = _seconds(3600.0, "A stream is rotated after this time (plus up to a tenth), with a bye.", ge=1)
    max_subscribers: int = _count(
        18_000,
        "Open streams of a process; newer ones are sent away in band. Fewer where it may have too few descriptors.",
        unit="streams",
        ge=1,
    )


class Settings(BaseSettings):
    """Everything."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    data: Path = Field(
        Path(".cdrs"),
        description="Folder of the embedded profile: log.db and registry.db.",
        json_schema_extra={"unit": "folder"},
    )
    insecure: bool = Field(
        False,
        description="Allow binds beyond loopback although there is no access control yet.",
        json_schema_extra={"unit": "switch"},
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level that is written to stderr.", json_schema_extra={"unit": "level"}
    )
    sample: str = _text("", "File with sample events for the demo. Empty: looked for, else generated.", unit="file")
    log: LogSettings = LogSettings()
    kafka: KafkaSettings = KafkaSettings()
    registry: RegistrySettings = RegistrySettings()
    store: StoreSettings = StoreSettings()
    mongo: MongoSettings = MongoSettings()
    persist: PersistSettings = PersistSettings()
    dedupe: DedupeSettings = DedupeSettings()
    retention: RetentionSettings = RetentionSettings()
    node: NodeSettings = NodeSettings()
    gateway: GatewaySettings = GatewaySettings()
    sse: SseSettings = SseSettings()

    @property
    def is_distributed(self) -> bool:
        """Whether log, registry and store are servers; else they are files in ``data``. Raises `StartError` for a
        mixture, of which nothing good can come: an embedded log decides identity by itself, one in Kafka cannot."""
        urls = {"log.url": self.log.url, "registry.url": self.registry.url, "store.url": self.store.url}
        missing = [name for name, url in urls.items() if not url]
        if missing and len(missing) < len(urls):
            named = ", ".join(name for name in urls if name not in missing)
            variables = ", ".join(setting_fields()[name].env for name in missing)
            raise StartError(
                f"{named} set, but not {' and '.join(missing)} ({variables}): set log.url, registry.url and store.url "
                "for Kafka, Hazelcast and MongoDB, or none of them for files in the data folder"
            )
        return not missing

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is passed in: `load_settings` merges the sources itself, so that it knows where each value is from,
        and a bare ``Settings()`` is the same everywhere."""
        return (init_settings,)


_PASSWORD = re.compile(r"(://[^/@:]*):[^/]*@")


def without_password(url: str) -> str:
    """A URL as people may see it."""
    return _PASSWORD.sub(r"\1:***@", url)


# --- loading --------------------------------------------------------------------------------------

ENV_PREFIX = "CDRS_"
HANDOFF_TIMEOUT = "gateway.handoff_timeout"
HANDOFF_SHARE = 1.2
HANDOFF_MARGIN = 0.4
"""The node gets nine tenths of a handoff's timeout: with these, more than its append may take, whatever that is."""
CLIENT_VARIABLES = frozenset({"CDRS_URL", "CDRS_CONFIG"})
"""Variables that are no settings: where clients find the gateway, and the settings file."""


@dataclass(frozen=True, slots=True)
class SettingField:
    """One setting, as documented."""

    path: str
    """Name with dots, as in TOML: ``gateway.port``."""
    unit: str
    default: Any
    allowed: str
    """The values it takes, in words; empty where any of its type will do."""
    reason: str

    @property
    def env(self) -> str:
        """Its environment variable: ``CDRS_GATEWAY__PORT``."""
        return ENV_PREFIX + self.path.replace(".", "__").upper()


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Settings, and for each of them where its value is from."""

    settings: Settings
    origins: Mapping[str, str]
    """Dotted name → default, file, environment variable or command line."""

    def value(self, path: str) -> Any:
        """One value by its dotted name."""
        found: Any = self.settings
        for part in path.split("."):
            found = getattr(found, part)
        return found


@cache
def setting_fields() -> Mapping[str, SettingField]:
    """Every setting by its dotted name, in order of definition."""
    return {field.path: field for field in _walk(Settings, "")}


def load_settings(config: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any]) -> Settings:
    """Merge TOML file, environment and flags (in rising order) into settings. ``overrides`` maps dotted names to values
    from the command line; None means not given. Raises `StartError` that names setting, source and allowed range."""
    return resolve_settings(config, environ, overrides).settings


def resolve_settings(config: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any]) -> LoadedSettings:
    """`load_settings`, and where each value is from."""
    if config is None and environ.get("CDRS_CONFIG"):
        config = Path(environ["CDRS_CONFIG"])
    given: dict[str, tuple[Any, str]] = {}
    for source in (_from_file(config), _from_environment(environ), _from_flags(overrides)):
        given.update(source)
    tree: dict[str, Any] = {}
    for path, (value, _) in given.items():
        *groups, name = path.split(".")
        level = tree
        for group in groups:
            level = level.setdefault(group, {})
        level[name] = value
    try:
        settings = Settings(**tree)
    except ValidationError as error:
        raise StartError("\n".join(_explain(error, given))) from error
    origins = {path: given[path][1] if path in given else "default" for path in setting_fields()}
    # A mixture of profiles is refused here, before anything is opened.
    if settings.is_distributed and HANDOFF_TIMEOUT not in given:
        settings = _with_longer_handoffs(settings)
        origins[HANDOFF_TIMEOUT] = "made from kafka.append_timeout"
    return LoadedSettings(settings, origins)


def _with_longer_handoffs(settings: Settings) -> Settings:
    """An append to Kafka may take longer than one to a file; the gateway must not give up before the node knows."""
    timeout = _append_timeout(settings) * HANDOFF_SHARE + HANDOFF_MARGIN
    gateway = settings.gateway.model_copy(update={"handoff_timeout": round(timeout, 3)})
    return settings.model_copy(update={"gateway": gateway})


def _append_timeout(settings: Settings) -> float:
    """Kafka's. The brokers' URL may give it as well, and wins; what is wrong with a URL is said where it is opened."""
    own = settings.kafka.append_timeout
    try:
        given = dict(parse_qsl(split_url(settings.log.url).query)).get("append_timeout", own)
        return KafkaSettings.model_validate({"append_timeout": given}).append_timeout
    except ValueError:
        return own


def _walk(model: type[BaseModel], prefix: str) -> Iterator[SettingField]:
    for name, info in model.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _walk(annotation, f"{prefix}{name}.")
            continue
        extra = cast("dict[str, Any]", info.json_schema_extra or {})
        default = info.get_default(call_default_factory=True)
        yield SettingField(prefix + name, str(extra.get("unit", "")), default, _allowed(info), info.description or "")


def _allowed(info: FieldInfo) -> str:
    low = next((rule.ge for rule in info.metadata if hasattr(rule, "ge")), None)
    high = next((rule.le for rule in info.metadata if hasattr(rule, "le")), None)
    if low is not None:
        return f"{low} or more" if high is None else f"{low} to {high}"
    if info.annotation is bool:
        return "true or false"
    choices = get_args(info.annotation)
    return " or ".join(map(str, choices)) if choices and all(isinstance(choice, str) for choice in choices) else ""


def _from_file(config: Path | None) -> Iterator[tuple[str, tuple[Any, str]]]:
    if config is None:
        return
    try:
        tree = tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise StartError(f"the settings file {config} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StartError(f"the settings file {config} is not TOML: {error}") from error
    yield from _flatten(tree, "", f"file {config}")


def _flatten(tree: Mapping[str, Any], prefix: str, source: str) -> Iterator[tuple[str, tuple[Any, str]]]:
    groups = {path.rpartition(".")[0] for path in setting_fields()}
    for name, value in tree.items():
        path = prefix + name
        if path in setting_fields():
            yield path, (value, source)
        elif path not in groups:
            raise StartError(f"{source}: there is no setting {path!r}{_nearest(path, list(setting_fields()))}")
        elif isinstance(value, dict):
            yield from _flatten(cast("dict[str, Any]", value), path + ".", source)
        else:
            raise StartError(f"{source}: {path!r} is a group of settings; write a table [{path}]")


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, tuple[Any, str]]]:
    known = {field.env: field for field in setting_fields().values()}
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX) or name in CLIENT_VARIABLES:
            continue
        if name in known:
            yield known[name].path, (_parse(known[name], environ[name]), name)
        elif name.removesuffix("_FILE") in known:
            field = known[name.removesuffix("_FILE")]
            if field.env in environ:
                raise StartError(f"both {field.env} and {name} are set; keep one")
            yield field.path, (_parse(field, _read_value(name, environ[name])), name)
        else:
            candidates = [*known, *CLIENT_VARIABLES]
            raise StartError(f"the environment variable {name} is no setting{_nearest(name, candidates)}")


def _read_value(name: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"{name} names a file that cannot be read: {error}") from error


def _parse(field: SettingField, text: str) -> Any:
    if not isinstance(field.default, list):
        return text
    if text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except ValueError as error:
            raise StartError(f"setting {field.path} (from {field.env}): not a JSON array: {error}") from error
    return [part.strip() for part in text.split(",") if part.strip()]


def _from_flags(overrides: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, str]]]:
    for path, value in overrides.items():
        if path not in setting_fields():
            raise StartError(f"there is no setting {path!r}{_nearest(path, list(setting_fields()))}")
        if value is not None:
            yield path, (value, "command line")


def _nearest(name: str, candidates: list[str]) -> str:
    close = difflib.get_close_matches(name, candidates, n=1)
    return f"; did you mean {close[0]!r}?" if close else "; `cdrs config docs` lists them"


def _explain(error: ValidationError, given: Mapping[str, tuple[Any, str]]) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        path = ".".join(str(part) for part in problem["loc"] if isinstance(part, str))
        field = setting_fields().get(path)
        value, source = given.get(path, (problem.get("input"), "default"))
        shown = repr(str(value))[:80]
        allowed = f"; allowed: {field.allowed}" if field and field.allowed else ""
        unit = f" ({field.unit})" if field and field.unit else ""
        yield f"setting {path}, from {source}: {shown} is not valid: {problem['msg'].lower()}{allowed}{unit}"
