"""Processes that start before their servers: they answer, say what is missing, and end when told to."""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from cdrs_process import CdrsProcess, free_port, wait_until
from engine_set import VARIABLES, engine_urls
from kafka_engine import KafkaTopics
from pymongo import MongoClient
from tcp_forward import forwarding

ENGINES = {"kafka": "log", "hazelcast": "registry", "mongo": "store"}
"""Engine → the check that it stands behind."""
ORDERS = list(itertools.permutations(ENGINES))
ALWAYS = ORDERS[3]
"""The others are tried among the slow tests."""


def nowhere() -> dict[str, str]:
    """Settings of the distributed profile, with nobody there."""
    return {
        "CDRS_LOG__URL": f"kafka://127.0.0.1:{free_port()}",
        "CDRS_REGISTRY__URL": f"hazelcast://127.0.0.1:{free_port()}/nobody",
        "CDRS_STORE__URL": f"mongodb://127.0.0.1:{free_port()}/?replicaSet=nobody",
    }


@pytest.mark.parametrize("args", [[], ["--nodes", "1"]], ids=["one-process", "supervised"])
def test_a_start_without_servers(tmp_path: Path, args: list[str]) -> None:
    env = nowhere()
    with CdrsProcess(tmp_path, args, env=env).start(wait=False) as cdrs:

        def lives() -> bool:
            try:
                return cdrs.request("GET", "/livez", timeout=5).status == 200
            except OSError:
                return False

        wait_until(lives, 20, lambda: f"/livez\n{cdrs.output()}")
        wait_until(
            lambda: all(url.partition("://")[2].partition("/")[0] in cdrs.stderr() for url in list(env.values())[:2]),
            20,
            lambda: f"the addresses in the log\n{cdrs.output()}",
        )
        answer = cdrs.request("GET", "/readyz?verbose")
        assert answer.status == 503
        checks = answer.json()["checks"]
        assert not checks["log"]["ok"]
        assert not checks["registry"]["ok"]
        if not args:  # the node is this very process
            assert env["CDRS_LOG__URL"].partition("://")[2] in checks["log"]["detail"]
            assert not checks["store"]["ok"]
        cdrs.signal(signal.SIGTERM)
        assert cdrs.wait(20) == 0


def checks(cdrs: CdrsProcess) -> dict[str, Any]:
    answer = cdrs.request("GET", "/readyz?verbose", timeout=10)
    found: dict[str, Any] = answer.json()["checks"]
    return {"": answer.status, **found}


def answers(cdrs: CdrsProcess) -> Callable[[], bool]:
    def lives() -> bool:
        try:
            return cdrs.request("GET", "/livez", timeout=5).status == 200
        except OSError:
            return False

    return lives


@pytest.fixture
async def doors() -> Any:
    """Engine → a port that leads to it once it is opened, and the settings that name these ports."""
    urls = {engine: urlsplit(engine_urls()[VARIABLES[engine]]) for engine in ENGINES}
    ports = {engine: free_port() for engine in ENGINES}
    topics = KafkaTopics(urlunsplit(urls["kafka"]))
    database = f"cdrs_order_{os.getpid()}_{secrets.token_hex(3)}"
    moved = {engine: url._replace(netloc=f"127.0.0.1:{ports[engine]}") for engine, url in urls.items()}
    moved["mongo"] = moved["mongo"]._replace(path=f"/{database}")
    env = {VARIABLES[engine]: urlunsplit(url) for engine, url in moved.items()}
    yield urls, ports, env | {"CDRS_KAFKA__TOPIC": topics.settings().topic, "CDRS_LOG__PARTITIONS": "2"}
    await topics.remove()
    with MongoClient[dict[str, object]](urlunsplit(urls["mongo"])) as mongo:
        mongo.drop_database(database)


CASES = [
    pytest.param(
        order, args, id=f"{'-'.join(order)}-{name}", marks=[] if order == ALWAYS and args else [pytest.mark.slow]
    )
    for order in ORDERS
    for name, args in (("one-process", []), ("supervised", ["--nodes", "1"]))
]


@pytest.mark.parametrize(("order", "args"), CASES)
async def test_engines_come_one_by_one_in_any_order(
    tmp_path: Path, doors: Any, order: Sequence[str], args: list[str]
) -> None:
    urls, ports, env = doors

    async def until(condition: Callable[[], Any], what: str) -> None:
        def so_far() -> str:
            return f"{what}\n{checks(cdrs)}\n{cdrs.output()}"

        await asyncio.to_thread(wait_until, condition, 40, so_far, every=0.1)

    def names(missing: Sequence[str]) -> bool:
        """Whether exactly these are told to be missing, each with what was tried. A gateway knows what a node in
        another process waits for from the registry, and without that only that there is no node."""
        found = checks(cdrs)
        if found[""] != 503:
            return False
        for engine, check in ENGINES.items():
            told = found.get(check, {"ok": True, "detail": ""})
            if args and check != "registry" and "hazelcast" in missing:
                continue
            if engine in missing and (told["ok"] or f"127.0.0.1:{ports[engine]}" not in told["detail"]):
                return False
            if engine not in missing and check != "log" and not told["ok"]:
                return False
        return True

    with CdrsProcess(tmp_path, args, env=env).start(wait=False) as cdrs:
        await until(answers(cdrs), "/livez")
        async with AsyncExitStack() as stack:
            for came, engine in enumerate(order):
                missing = order[came:]
                await until(lambda missing=missing: names(missing), f"/readyz to name {missing}")
                assert answers(cdrs)()
                await stack.enter_async_context(forwarding(ports[engine], urls[engine].netloc.split(",")[0]))
            await until(lambda: checks(cdrs)[""] == 200, "/readyz to say 200")
            posted = await asyncio.to_thread(cdrs.publish, "orders", b"1")
            assert posted.status == 201, posted
            await asyncio.to_thread(cdrs.stop)


@pytest.mark.parametrize(
    "args",
    [pytest.param([], id="one-process"), pytest.param(["--nodes", "1"], id="supervised", marks=pytest.mark.slow)],
)
def test_servers_that_take_connections_and_say_nothing_are_named(tmp_path: Path, args: list[str]) -> None:
    with ExitStack() as stack:
        ports = {}
        for engine in ENGINES:
            silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            ports[engine] = silent.getsockname()[1]
        env = {
            "CDRS_LOG__URL": f"kafka://127.0.0.1:{ports['kafka']}",
            "CDRS_REGISTRY__URL": f"hazelcast://127.0.0.1:{ports['hazelcast']}/nobody",
            "CDRS_STORE__URL": f"mongodb://127.0.0.1:{ports['mongo']}/?replicaSet=nobody",
        }
        cdrs = stack.enter_context(CdrsProcess(tmp_path, args, env=env).start(wait=False))
        wait_until(answers(cdrs), 20, lambda: f"/livez\n{cdrs.output()}")

        def named() -> bool:
            if args:  # the node's own log; its gateway cannot hear of it
                return all(f"127.0.0.1:{port}" in cdrs.stderr() for port in ports.values())
            found = checks(cdrs)
            return all(
                not found[check]["ok"] and f"127.0.0.1:{ports[engine]}" in found[check]["detail"]
                for engine, check in ENGINES.items()
            )

        wait_until(named, 30, lambda: f"all three by their names\n{checks(cdrs)}\n{cdrs.output()}", every=0.1)
        cdrs.signal(signal.SIGTERM)
        assert cdrs.wait(20) == 0
