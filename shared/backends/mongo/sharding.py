"""How the store would be spread over a sharded cluster. Pure; no I/O.

``events`` is cut by partition, as the log is: every query names its partitions, so that a router sends it to their
shards only, and all but the search for one event by its id go to one. A partition never spans two shards. That key is
also what lets MongoDB keep identities unique where judgement makes them so: within a partition (a sharded collection's
unique indexes must begin with its shard key).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, cast

from bson import json_util

from shared.backends.mongo.documents import EVENTS, SHARD_KEYS, STREAMS, Document, partition_key
from shared.position import Epoch

_BOUNDING: Final = frozenset({"$in", "$eq", "$gt", "$gte", "$lt", "$lte"})


def shard_plan(database: str, epoch: Epoch, partitions: int, shards: Sequence[str] = ()) -> list[Document]:
    """The commands for a router's ``admin`` database, in order. With names of shards, also the moves that deal the
    partitions out to them; else that is left to the balancer. To be run on empty or filled collections that a node has
    opened once, so that the indexes are there; again for each new epoch (what is done already does no harm)."""
    events, streams = f"{database}.{EVENTS}", f"{database}.{STREAMS}"
    plan: list[Document] = [
        {"enableSharding": database},
        {"shardCollection": events, "key": dict(SHARD_KEYS[EVENTS])},
        {"shardCollection": streams, "key": dict(SHARD_KEYS[STREAMS])},
    ]
    keys = [partition_key(epoch, partition) for partition in range(partitions)]
    plan += [{"split": events, "middle": {"p": key}} for key in keys]
    if shards:
        plan += [
            {"moveChunk": events, "find": {"p": key}, "to": shards[number % len(shards)]}
            for number, key in enumerate(keys)
        ]
    return plan


def as_shell(plan: Sequence[Document]) -> Iterator[str]:
    """The commands as lines for ``mongosh``."""
    for command in plan:
        text = json_util.dumps(command, json_options=json_util.CANONICAL_JSON_OPTIONS)
        yield f"db.adminCommand(EJSON.parse({json.dumps(text)}))"


def is_targeted(collection: str, wanted: Mapping[str, object]) -> bool:
    """Whether a router sends a query with this filter only to the shards that hold what it asks for: its filter says
    something about the first field of the shard key that bounds it."""
    key = SHARD_KEYS.get(collection)
    if key is None:
        return True  # not sharded: all of it is on one shard
    condition = wanted.get(next(iter(key)))
    if isinstance(condition, dict):
        return not _BOUNDING.isdisjoint(cast(Document, condition))
    return condition is not None
