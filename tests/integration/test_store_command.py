"""`cdrs store plan-shards`: what it prints is the plan of the log as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bson import json_util
from cdrs_process import client, free_port
from kafka_engine import KafkaTopics, kafka_url

from shared.backends.mongo.sharding import shard_plan

PREFIX = "db.adminCommand(EJSON.parse("


def plan(env: dict[str, str], *words: str) -> tuple[int, str, str]:
    done = client(0, "store", "plan-shards", *words, env=env)
    return done.code, done.out, done.err


async def test_the_plan_of_the_log_as_it_is() -> None:
    topics = KafkaTopics(kafka_url())
    env = {
        "CDRS_LOG__URL": topics.url,
        "CDRS_REGISTRY__URL": "hazelcast://127.0.0.1:1/nobody",
        "CDRS_STORE__URL": "mongodb://me:secret@127.0.0.1:1/mine?replicaSet=rs",
        "CDRS_KAFKA__TOPIC": topics.settings().topic,
    }
    code, out, err = plan(env)
    assert (code, out) == (1, "")
    assert f"has no topic {topics.settings().topic}" in err
    try:
        async with topics.open(partitions=5) as log:
            code, out, err = plan(env, "--shard", "a", "--shard", "b")
        assert code == 0, err
        commands = [json.loads(line.removeprefix(PREFIX).removesuffix("))")) for line in out.splitlines()]
        assert [json_util.loads(command) for command in commands] == shard_plan("mine", log.epoch, 5, ["a", "b"])
        assert "secret" not in out + err
    finally:
        await topics.remove()


@pytest.mark.parametrize("known", [True, False])
def test_what_is_missing_is_said_in_one_line(known: bool, tmp_path: Path) -> None:
    port = free_port()
    env = {
        "CDRS_LOG__URL": f"kafka://127.0.0.1:{port}",
        "CDRS_REGISTRY__URL": "hazelcast://127.0.0.1:1/nobody",
        "CDRS_STORE__URL": "mongodb://127.0.0.1:1/",
    }
    code, out, err = plan(env if known else {"CDRS_DATA": str(tmp_path)})
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert (f"setting log.url: Kafka at kafka://127.0.0.1:{port}" if known else "store.url is not set") in err
