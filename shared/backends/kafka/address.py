"""``kafka://`` URLs: where the brokers are and how to talk to them. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote

from shared.errors import StartError
from shared.settings import KafkaSettings
from shared.urls import split_url

DEFAULT_PORT: Final = 9092
SETTING: Final = "log.url"
"""The setting that holds the URL, as messages name it."""

_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)")
_CONNECTION_OPTIONS: Final = ("tls", "cafile", "sasl")
_LIST_OPTIONS: Final = ("accept_weaker",)
_MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


@dataclass(frozen=True, slots=True)
class KafkaAddress:
    """Brokers to begin with, and credentials."""

    hosts: Sequence[str]
    """``host:port`` each; the others are learned from these."""
    username: str = ""
    password: str = field(default="", repr=False)
    mechanism: str = ""
    """SASL mechanism; empty: no credentials."""
    tls: bool = False
    cafile: str = ""
    """Certificates to trust; empty: the system's."""

    @property
    def protocol(self) -> str:
        """Kafka's name for this combination."""
        return ("SASL_" if self.mechanism else "") + ("SSL" if self.tls else "PLAINTEXT")

    def __str__(self) -> str:
        """For people; without credentials."""
        return "kafka://" + ",".join(self.hosts)


def parse_kafka_url(url: str, settings: KafkaSettings) -> tuple[KafkaAddress, KafkaSettings]:
    """``kafka://[user:password@]host[:port][,host[:port]…][/][?option=value&…]``.

    Options: ``tls=true``, ``cafile=PATH``, ``sasl=MECHANISM`` (SCRAM-SHA-512 where there is a user), and every setting
    of the group ``kafka``, which then wins over the setting. Raises `StartError` that names what is wrong with it.
    """
    if not url.lower().startswith("kafka://"):
        raise _wrong("it must begin with kafka://")
    try:
        parts = split_url(url)
    except ValueError as error:
        raise _wrong(str(error)) from error
    if parts.path not in {"", "/"} or parts.fragment:
        raise _wrong("nothing but ?options may follow the brokers")
    userinfo, _, netloc = parts.netloc.rpartition("@")
    username, _, password = userinfo.partition(":")
    options = _options(parts)
    connection = {name: options.pop(name) for name in _CONNECTION_OPTIONS if name in options}
    address = KafkaAddress(
        _hosts(netloc),
        unquote(username),
        unquote(password),
        _mechanism(connection.get("sasl", ""), username),
        _switch("tls", connection.get("tls", "false")),
        connection.get("cafile", ""),
    )
    return address, _merge(settings, options)


def _hosts(netloc: str) -> Sequence[str]:
    hosts: list[str] = []
    for part in netloc.split(","):
        host, colon, port = part.rpartition(":") if re.search(r":\d*$", part) else (part, "", "")
        if not _HOST.fullmatch(host) or (colon and not port):
            raise _wrong(f"{part!r} is not host:port; several brokers are joined by commas")
        number = int(port or DEFAULT_PORT)
        if not 0 < number < 65_536:
            raise _wrong(f"port {number} is out of range")
        hosts.append(f"{host}:{number}")
    return tuple(hosts)


def _options(parts: SplitResult) -> dict[str, str]:
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise _wrong("options are name=value, joined by '&'") from error
    allowed = (*_CONNECTION_OPTIONS, *KafkaSettings.model_fields)
    options: dict[str, str] = {}
    for name, value in pairs:
        if name not in allowed:
            raise _wrong(f"there is no option {name[:40]!r}; there are {', '.join(allowed)}")
        if name in options:
            raise _wrong(f"option {name} is given twice")
        options[name] = value
    return options


def _mechanism(given: str, username: str) -> str:
    mechanism = given or ("SCRAM-SHA-512" if username else "")
    if mechanism and mechanism not in _MECHANISMS:
        raise _wrong(f"sasl is one of {', '.join(_MECHANISMS)}")
    if mechanism and not username:
        raise _wrong("sasl needs a user: kafka://user:password@…")
    return mechanism


def _switch(name: str, text: str) -> bool:
    if text not in {"true", "false"}:
        raise _wrong(f"{name} is true or false")
    return text == "true"


def _merge(settings: KafkaSettings, options: dict[str, str]) -> KafkaSettings:
    if not options:
        return settings
    given = {name: _split(value) if name in _LIST_OPTIONS else value for name, value in options.items()}
    try:
        return KafkaSettings.model_validate({**settings.model_dump(), **given})
    except ValueError as error:  # what pydantic raises is one, and the name of the option stands in it
        raise _wrong(f"of its options {', '.join(given)}: {error}") from error


def _split(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _wrong(what: str) -> StartError:
    return StartError(f"setting {SETTING}: the URL of the brokers is not valid: {what}")
