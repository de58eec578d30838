"""Each question to MongoDB is answered by its index, and would reach only the shards that hold what it asks for.

No router can be run here, so the second half is judged from the filters and the shard keys, not tried.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from mongo_adapter import DATABASE, DRIVERS, empty, open_store, plain_client
from new_events import event

from shared.backends.mongo import queries
from shared.backends.mongo.documents import SHARD_KEYS, partition_key
from shared.backends.mongo.opening import INDEXES
from shared.backends.mongo.queries import MOST_NAMES, Query
from shared.backends.mongo.sharding import is_targeted
from shared.position import Epoch
from shared.records import FeedBatch, Record, identity_of, identity_prefix

EPOCH = Epoch.create()
KEYS = [partition_key(EPOCH, partition) for partition in range(3)]
IDENTITIES = [identity_of(f"s{n % 7}", "/tests", str(n)) for n in range(0, 4000, 40)]
MANY = [f"s{n}" for n in range(MOST_NAMES + 1)]


def pages() -> Iterator[tuple[str, Query]]:
    for streams in (None, ["s1"], ["s1", "s5", "nobody"], MANY):
        for backwards in (False, True):
            name = f"page of {len(streams) if streams else 'all'} streams{', backwards' if backwards else ''}"
            yield name, queries.records_between(KEYS[0], 100, 1900, streams=streams, backwards=backwards, limit=50)


QUESTIONS: dict[str, Query] = {
    **dict(pages()),
    "positions": queries.positions_between(KEYS[0], 0, 500),
    "look-up": queries.by_identities([KEYS[0]], IDENTITIES),
    "look-up of a spread stream": queries.by_identities(KEYS[:2], IDENTITIES),
    "find with source": queries.by_prefix(KEYS, IDENTITIES[1], limit=len(KEYS)),
    "find without": queries.by_prefix(KEYS, identity_prefix("s5", "40"), limit=10),
    "start by time": queries.first_since(KEYS[0], 1_700_000_001_500),
    "append time": queries.last_within(KEYS[0], 300, 1500),
    "what may go": queries.oldest(KEYS[0], 300, 4000, limit=500),
    "what leaves a shadow": queries.events_within(KEYS[0], 300, 800),
    "what leaves none": queries.nameless_within(KEYS[0], 300, 800),
    "shadows": queries.shadows(KEYS[0], 0, 300, limit=20),
    "checkpoints": queries.checkpoints_of(KEYS),
    "floors": queries.floors_of(KEYS),
    "streams": queries.streams_after("s2", limit=3),
    "stream": queries.streams_named(["s2"]),
    "spreads": queries.spreads_of(["s2", "nobody"]),
}


@pytest.fixture(scope="module")
def _filled() -> None:
    empty()
    asyncio.run(fill())
    plain_client()[DATABASE].floors.insert_one({"_id": KEYS[0], "next": 0})


async def fill() -> None:
    async with open_store(EPOCH, driver=DRIVERS[0]) as store:
        for partition in (0, 1):
            records = [one(partition, offset) for offset in range(partition, 4000, 2)]
            for at in range(0, 4000, 1000):
                own = [record for record in records if at <= record.offset < at + 1000]
                await store.persist(FeedBatch(partition, at, at + 1000, own))


def one(partition: int, offset: int) -> Record:
    e = event(str(offset), stream=f"s{offset % 7}")
    return Record(partition, offset, 1_700_000_000_000 + offset, e.identity, e.stream, None, e.value, e.data_at, 1, 0)


def explained(query: Query) -> dict[str, Any]:
    command: dict[str, Any] = {"find": query.collection, "filter": query.filter, **query.options()}
    if "sort" in command:
        command["sort"] = dict(command["sort"])
    database = plain_client()[DATABASE]
    return database.command({"explain": command, "verbosity": "executionStats"})


def stages(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in [plan.get("inputStage"), *plan.get("inputStages", [])]:
        if below:
            yield from stages(below)


@pytest.mark.usefixtures("_filled")
@pytest.mark.parametrize("name", QUESTIONS)
def test_its_index_answers_it(name: str) -> None:
    query = QUESTIONS[name]
    told = explained(query)
    found = list(stages(told["queryPlanner"]["winningPlan"]))
    kinds = {stage["stage"] for stage in found}
    assert not kinds & {"COLLSCAN", "SORT"}, kinds
    used = {stage["indexName"] for stage in found if "indexName" in stage}
    is_clustered = any(kind.startswith(("CLUSTERED_IXSCAN", "EXPRESS_CLUSTERED")) for kind in kinds)
    assert used == {query.hint} or (is_clustered and query.hint == queries.BY_POSITION)


@pytest.mark.usefixtures("_filled")
@pytest.mark.parametrize("name", [name for name, query in QUESTIONS.items() if query.limit != 0])
def test_it_reads_little_more_than_it_gives(name: str) -> None:
    query = QUESTIONS[name]
    stats = explained(query)["executionStats"]
    # Half of the offsets are stubs here, and a page of many streams reads the partition.
    assert stats["totalDocsExamined"] <= 4 * max(stats["nReturned"], 1)
    assert stats["nReturned"] <= query.limit


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_router_would_send_it_where_its_documents_are(name: str) -> None:
    query = QUESTIONS[name]
    assert is_targeted(query.collection, query.filter)


def test_no_question_is_left_out() -> None:
    makers = {
        name
        for name, maker in inspect.getmembers(queries, inspect.isfunction)
        if maker.__module__ == queries.__name__ and not name.startswith("_")
    }
    source = inspect.getsource(inspect.getmodule(test_no_question_is_left_out))  # type: ignore[arg-type]
    assert {name for name in makers if f"queries.{name}(" not in source} == set()


def test_a_whole_index_and_the_unique_one_begin_with_the_shard_key() -> None:
    documents = [index.document for index in INDEXES]
    leading = [next(iter(document["key"])) for document in documents]
    assert set(leading) == set(SHARD_KEYS["events"])
    assert any("partialFilterExpression" not in document for document in documents)
    assert all(next(iter(d["key"])) == "p" for d in documents if d.get("unique"))
