"""Settings of the distributed profile that cannot be right: `cdrs` ends with one line that names the setting and what
was tried. On real engines; whatever could still come up is waited for instead (`test_start_order`)."""

from __future__ import annotations

import os
import secrets
import subprocess
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
from cdrs_process import CdrsProcess, command, environment, free_port, wait_until
from engine_set import engine_urls
from pymongo import MongoClient

LOG, REGISTRY, STORE = "CDRS_LOG__URL", "CDRS_REGISTRY__URL", "CDRS_STORE__URL"
NOWHERE = {
    LOG: "kafka://127.0.0.1:1",
    REGISTRY: "hazelcast://127.0.0.1:1/nobody",
    STORE: "mongodb://127.0.0.1:1/?replicaSet=nobody",
}


def ends(folder: Path, role: str, env: dict[str, str]) -> str:
    """What the last line says after "cdrs: ", and that it is all that matters."""
    argv = [*command(), role, "--port", "0", "--data", str(folder)]
    done = subprocess.run(argv, env=environment(env), capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr
    *_, last = done.stderr.splitlines()
    assert last.startswith("cdrs: "), done.stderr
    return last.removeprefix("cdrs: ")


@pytest.mark.parametrize("role", ["node", "up"])
@pytest.mark.parametrize(
    ("variable", "url", "said"),
    [
        (LOG, "http://x:1", "setting log.url"),
        (LOG, "kafka://me:secret@x:y", "setting log.url"),
        (REGISTRY, "redis://x:1", "setting registry.url"),
        (STORE, "mongodb://me:secret@x:99999/", "setting store.url"),
        (STORE, "", "store.url (CDRS_STORE__URL)"),
    ],
)
def test_a_url_that_is_none(tmp_path: Path, role: str, variable: str, url: str, said: str) -> None:
    assert said in ends(tmp_path, role, {**NOWHERE, variable: url})


@pytest.fixture
def engines() -> dict[str, str]:
    urls = engine_urls()
    store = urlunsplit(urlsplit(urls[STORE])._replace(path=f"/cdrs_wrong_{os.getpid()}"))
    # Kafka is asked, and refuses or is not reached, before anything is made there; the name is for the case it is not.
    return {**urls, STORE: store, "CDRS_KAFKA__TOPIC": f"cdrs-test.{secrets.token_hex(4)}"}


def with_user(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://stranger:secret@{rest}"


def hosts(url: str) -> list[str]:
    return urlsplit(url).netloc.split(",")


def test_a_store_that_refuses_the_credentials(tmp_path: Path, engines: dict[str, str]) -> None:
    # The log is not there, and is no reason to keep this to oneself.
    told = ends(tmp_path, "node", {**engines, LOG: NOWHERE[LOG], STORE: with_user(engines[STORE])})
    assert told.startswith("setting store.url: ")
    assert "'stranger'" in told
    assert hosts(engines[STORE])[0] in told


def test_another_replica_set(tmp_path: Path, engines: dict[str, str]) -> None:
    store = engines[STORE].partition("?")[0] + "?replicaSet=nobody"
    told = ends(tmp_path, "up", {**engines, LOG: NOWHERE[LOG], STORE: store})
    assert told.startswith("setting store.url: ")
    assert "'nobody'" in told
    assert all(host in told for host in hosts(engines[STORE]))


def test_credentials_where_kafka_takes_none(tmp_path: Path, engines: dict[str, str]) -> None:
    told = ends(tmp_path, "node", {**engines, LOG: with_user(engines[LOG]), STORE: NOWHERE[STORE]})
    assert told.startswith("setting log.url: ")
    assert "'stranger'" in told
    assert any(host in told for host in hosts(engines[LOG]))


def test_another_cluster_name_is_told_and_nobody_ends(tmp_path: Path, engines: dict[str, str]) -> None:
    """The registry is a hint: a node that does not find it serves, and says what it tried."""
    cluster = engines[REGISTRY].rpartition("/")[0] + "/nobody"
    env = {**engines, REGISTRY: cluster, LOG: f"kafka://127.0.0.1:{free_port()}"}
    try:
        with CdrsProcess(tmp_path, env=env).start(wait=False) as cdrs:

            def registry() -> str:
                try:
                    return str(cdrs.request("GET", "/readyz?verbose").json()["checks"]["registry"]["detail"])
                except OSError:
                    return ""

            wait_until(lambda: "its cluster has another name than 'nobody'" in registry(), 30, cdrs.output, every=0.1)
            assert registry().startswith("setting registry.url: ")
            assert all(host in registry() for host in hosts(engines[REGISTRY]))
            assert cdrs.request("GET", "/livez").status == 200
    finally:
        with MongoClient[dict[str, object]](engines[STORE]) as mongo:
            mongo.drop_database(urlsplit(engines[STORE]).path.removeprefix("/"))
