"""Settings: sources and their order, errors that name the place, and the reference that is made from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.cli.config import settings_markdown, shown
from services.cli.up import child_environ
from shared.backends.http.link import ANSWER_SHARE
from shared.errors import StartError
from shared.settings import Settings, load_settings, resolve_settings, setting_fields

ROOT = Path(__file__).resolve().parents[2]


def test_a_bare_settings_object_does_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDRS_GATEWAY__PORT", "1234")
    assert Settings().gateway.port == 8080


def test_file_is_weaker_than_environment_is_weaker_than_flags(tmp_path: Path) -> None:
    config = tmp_path / "cdrs.toml"
    config.write_text('log_level = "debug"\n[gateway]\nport = 1\nhost = "127.0.0.1"\nmax_streams = 7\n')
    environ = {"CDRS_GATEWAY__PORT": "2", "CDRS_GATEWAY__MAX_STREAMS": "8"}
    loaded = resolve_settings(config, environ, {"gateway.port": 3, "data": None})
    assert loaded.settings.gateway.port == 3
    assert loaded.settings.gateway.max_streams == 8
    assert loaded.settings.log_level == "debug"
    assert loaded.settings.sse == Settings().sse
    assert loaded.origins["gateway.port"] == "command line"
    assert loaded.origins["gateway.max_streams"] == "CDRS_GATEWAY__MAX_STREAMS"
    assert loaded.origins["log_level"] == f"file {config}"
    assert loaded.origins["data"] == "default"


def test_the_settings_file_is_found_by_its_variable(tmp_path: Path) -> None:
    config = tmp_path / "cdrs.toml"
    config.write_text("[gateway]\nport = 99\n")
    assert load_settings(None, {"CDRS_CONFIG": str(config)}, {}).gateway.port == 99


def test_a_variable_may_name_a_file_with_the_value(tmp_path: Path) -> None:
    secret = tmp_path / "id"
    secret.write_text("node-7\n")
    assert load_settings(None, {"CDRS_NODE__ID_FILE": str(secret)}, {}).node.id == "node-7"
    with pytest.raises(StartError, match="CDRS_NODE__ID_FILE"):
        load_settings(None, {"CDRS_NODE__ID_FILE": str(tmp_path / "none")}, {})
    with pytest.raises(StartError, match="both CDRS_NODE__ID and CDRS_NODE__ID_FILE"):
        load_settings(None, {"CDRS_NODE__ID_FILE": str(secret), "CDRS_NODE__ID": "x"}, {})


@pytest.mark.parametrize("text", ["https://a.example, https://b.example", '["https://a.example","https://b.example"]'])
def test_lists_are_json_or_separated_by_commas(text: str) -> None:
    origins = load_settings(None, {"CDRS_GATEWAY__CORS_ORIGINS": text}, {}).gateway.cors_origins
    assert origins == ["https://a.example", "https://b.example"]


def test_variables_of_clients_and_of_others_are_no_business_of_the_settings() -> None:
    assert load_settings(None, {"CDRS_URL": "http://x", "PATH": "/bin", "CDRSX": "1"}, {}) == Settings()
    assert load_settings(None, {"CDRS_SAMPLE": "edits.gz"}, {}).sample == "edits.gz"


@pytest.mark.parametrize(
    ("environ", "parts"),
    [
        ({"CDRS_GATEWAY__PORT": "70000"}, ["gateway.port", "CDRS_GATEWAY__PORT", "0 to 65535"]),
        ({"CDRS_GATEWAY__PORT": "http"}, ["gateway.port", "CDRS_GATEWAY__PORT", "0 to 65535"]),
        ({"CDRS_LOG_LEVEL": "loud"}, ["log_level", "CDRS_LOG_LEVEL", "debug or info or warning or error"]),
        ({"CDRS_INSECURE": "perhaps"}, ["insecure", "true or false"]),
        ({"CDRS_SSE__HEARTBEAT": "nan"}, ["sse.heartbeat", "CDRS_SSE__HEARTBEAT"]),
        ({"CDRS_GATEWAY__CORS_ORIGINS": "[1"}, ["gateway.cors_origins", "JSON"]),
        ({"CDRS_GATEWAY__PROT": "1"}, ["CDRS_GATEWAY__PROT", "did you mean 'CDRS_GATEWAY__PORT'"]),
        ({"CDRS_ULR": "http://x"}, ["CDRS_ULR", "did you mean 'CDRS_URL'"]),
    ],
)
def test_errors_name_setting_source_and_range(environ: dict[str, str], parts: list[str]) -> None:
    with pytest.raises(StartError) as caught:
        load_settings(None, environ, {})
    for part in parts:
        assert part in str(caught.value)


def test_every_wrong_value_is_named_at_once() -> None:
    with pytest.raises(StartError) as caught:
        load_settings(None, {"CDRS_GATEWAY__PORT": "-1", "CDRS_LOG__PARTITIONS": "0"}, {})
    assert "gateway.port" in str(caught.value)
    assert "log.partitions" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[gateway]\nprot = 1\n", ["gateway.prot", "did you mean 'gateway.port'"]),
        ("[gatway]\nport = 1\n", ["gatway"]),
        ("gateway = 3\n", ["[gateway]"]),
        ("[gateway]\nport = 99999\n", ["gateway.port", "cdrs.toml", "0 to 65535"]),
        ("[gateway\n", ["not TOML"]),
    ],
)
def test_errors_in_the_file_are_named(tmp_path: Path, text: str, parts: list[str]) -> None:
    config = tmp_path / "cdrs.toml"
    config.write_text(text)
    with pytest.raises(StartError) as caught:
        load_settings(config, {}, {})
    for part in parts:
        assert part in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"none\.toml"):
        load_settings(tmp_path / "none.toml", {}, {})


def test_a_childs_environment_gives_it_the_same_settings(tmp_path: Path) -> None:
    secret = tmp_path / "port"
    secret.write_text("5")
    environ = {"CDRS_GATEWAY__PORT_FILE": str(secret), "CDRS_LOG_LEVEL": "warning"}
    flags = {"gateway.port": 0, "data": tmp_path, "insecure": True, "gateway.host": None}
    assert load_settings(None, child_environ(environ, flags, None), {}) == load_settings(None, environ, flags)


def test_each_setting_has_unit_and_reason() -> None:
    for field in setting_fields().values():
        assert field.unit, field.path
        assert field.reason.endswith((".", ")")), field.path


def test_the_reference_in_docs_is_the_one_the_command_prints() -> None:
    document = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    assert document == settings_markdown(), "run: cdrs config docs > docs/settings.md"


URLS = {
    "CDRS_LOG__URL": "kafka://k:9092",
    "CDRS_REGISTRY__URL": "hazelcast://h:5701/dev",
    "CDRS_STORE__URL": "mongodb://m:27017/?replicaSet=rs",
}


def test_the_urls_of_all_three_engines_or_none_of_them() -> None:
    assert not load_settings(None, {}, {}).is_distributed
    assert load_settings(None, URLS, {}).is_distributed
    for kept, url in URLS.items():
        with pytest.raises(StartError) as error:
            load_settings(None, {kept: url}, {})
        assert all(name in str(error.value) for name in URLS if name != kept)
        without = {name: other for name, other in URLS.items() if name != kept}
        with pytest.raises(StartError, match=rf"but not [a-z]+\.url \({kept}\)"):
            load_settings(None, without, {})


def test_passwords_are_not_shown() -> None:
    assert shown("mongodb://me:secret@m:27017/?replicaSet=rs") == "mongodb://me:***@m:27017/?replicaSet=rs"
    assert shown("kafka://k:9092,l:9092") == "kafka://k:9092,l:9092"


def test_a_gateway_waits_longer_than_an_append_may_take() -> None:
    assert Settings().gateway.handoff_timeout * ANSWER_SHARE > Settings().log.append_timeout
    urls = {"CDRS_LOG__URL": "kafka://k:1", "CDRS_REGISTRY__URL": "hazelcast://h:1", "CDRS_STORE__URL": "mongodb://m:1"}
    for seconds in ("0.5", "5", "60"):
        loaded = resolve_settings(None, {**urls, "CDRS_KAFKA__APPEND_TIMEOUT": seconds}, {})
        assert loaded.settings.gateway.handoff_timeout * ANSWER_SHARE > float(seconds)
        assert loaded.origins["gateway.handoff_timeout"] == "made from kafka.append_timeout"
    for brokers in ("k:1", "k:1,[::1]:2"):
        url = f"kafka://{brokers}?tls=true&append_timeout=20"
        both = {**urls, "CDRS_KAFKA__APPEND_TIMEOUT": "1", "CDRS_LOG__URL": url}
        assert load_settings(None, both, {}).gateway.handoff_timeout * ANSWER_SHARE > 20, "the URL's word wins"
    default = load_settings(None, urls, {})
    for url in ("kafka://k:1?append_timeout=soon", "kafka://k:1?append_timeout=1e9", "kafka://[k?append_timeout=9"):
        wrong = load_settings(None, {**urls, "CDRS_LOG__URL": url}, {})
        assert wrong.gateway.handoff_timeout == default.gateway.handoff_timeout, "told by whoever opens the log"
    assert default.gateway.handoff_timeout < default.gateway.produce_timeout, "another node can still be tried"
    assert load_settings(None, {**urls, "CDRS_GATEWAY__HANDOFF_TIMEOUT": "2"}, {}).gateway.handoff_timeout == 2
