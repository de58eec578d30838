"""A gateway or a node dies at a named step on the way of an event: between two steps that nothing else can tell apart.

Each time the producer sends the same ids again, at the other gateway and at the one that came back: one copy is stored
and shown, every receipt names its place, the order of the stream holds, and it goes on.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from cdrs_process import wait_until
from engine_place import own_place
from failpoints.world import WITHIN, Story, World
from pymongo import MongoClient

from shared.backends.mongo.documents import position_key

pytestmark = pytest.mark.timeout(120)

SIZES = pytest.mark.parametrize("size", [1, 3], ids=["one", "batch"])
_numbers = itertools.count()


@dataclass
class Profile:
    """The processes, and MongoDB where they use it."""

    world: World
    mongo: MongoClient[dict[str, Any]] | None = None
    database: str = ""

    def story(self) -> Story:
        return Story(self.world, f"points.s{next(_numbers)}")

    def check_store(self, stream: str, ids: Sequence[str], last: int) -> None:
        """What nodes carried into MongoDB is whole as well, up to the partition's checkpoint, and each event is there
        once. The node that takes over may wait some seconds before it does."""
        if self.mongo is None:
            return
        store = self.mongo[self.database]

        def checkpoint(partition: bytes) -> int:
            found = store["checkpoints"].find_one({"_id": partition})
            return 0 if found is None else int(found["next"])

        def documents() -> list[dict[str, Any]]:
            return list(store["events"].find({"s": stream}).sort("_id"))

        wait_until(documents, WITHIN, f"anything of {stream} in the store", every=0.1)
        partition: bytes = documents()[0]["p"]
        wait_until(lambda: checkpoint(partition) > last, WITHIN, f"the checkpoint to pass {last}", every=0.1)
        assert [json.loads(each["v"])["id"] for each in documents()] == list(ids)
        end = checkpoint(partition)
        query = {"p": partition, "_id": {"$lt": position_key(partition, end)}}
        assert store["events"].count_documents(query) == end, "an offset below the checkpoint has no document"


@pytest.fixture(scope="module", params=["embedded", pytest.param("engines", marks=pytest.mark.slow)])
def profile(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, write_path: str
) -> Iterator[Profile]:
    folder = tmp_path_factory.mktemp(request.param)
    with ExitStack() as stack:
        if request.param == "embedded":
            yield Profile(stack.enter_context(World(folder, {})))
            return
        place = stack.enter_context(own_place())
        mongo: MongoClient[dict[str, Any]] = stack.enter_context(MongoClient(place.env["CDRS_STORE__URL"]))
        yield Profile(stack.enter_context(World(folder, place.env)), mongo, place.database)


@SIZES
def test_f1_the_gateway_dies_before_a_node_has_the_events(profile: Profile, size: int) -> None:
    with profile.story() as story:
        first, other = story.world.gateways
        story.send(first, 3)
        victim, ids, answer = story.die("gateway-accepted", size)
        assert (victim, answer) == (first, None)
        assert story.stored(other, ids) == []
        assert story.repeat(other, ids) == [False] * size
        goes_on(profile, story, ids)


@SIZES
def test_f2_the_gateway_dies_with_the_answer_of_the_node(profile: Profile, size: int) -> None:
    with profile.story() as story:
        first, other = story.world.gateways
        story.send(first, 3)
        victim, ids, answer = story.die("gateway-answered", size)
        assert (victim, answer) == (first, None)
        assert story.stored(other, ids) == ids
        assert story.repeat(other, ids) == [True] * size
        goes_on(profile, story, ids)


def test_a_node_dies_between_judging_and_appending(profile: Profile) -> None:
    assert a_node_dies(profile, "node-judged", 3) == [False] * 3, "the other node stored them"


def test_a_node_dies_between_appending_and_reading_back(profile: Profile) -> None:
    assert a_node_dies(profile, "node-appended", 3) == [True] * 3, "the other node found them"


def test_a_node_dies_between_reading_back_and_answering(profile: Profile) -> None:
    assert a_node_dies(profile, "node-answering", 1) == [True], "the other node found it"


def test_f7_a_node_dies_between_reading_and_persisting(profile: Profile) -> None:
    answer = a_node_dies(profile, "persist-read", 3)
    if profile.mongo is None:
        assert answer == [False] * 3, "the transaction was rolled back, and the other node stored them"


def test_f8_a_node_dies_between_persisting_and_moving_the_checkpoint(profile: Profile) -> None:
    answer = a_node_dies(profile, "persist-written", 3)
    if profile.mongo is None:
        assert answer == [True] * 3, "the transaction stands, and the other node found them"


def test_a_node_dies_after_moving_the_checkpoint(profile: Profile) -> None:
    answer = a_node_dies(profile, "persist-recorded", 3)
    if profile.mongo is None:
        assert answer == [True] * 3, "the other node found them"


def a_node_dies(profile: Profile, step: str, size: int) -> list[bool]:
    """New events are on their way when a node dies at this step: which of them were answered as duplicates. Everything
    goes on after that."""
    with profile.story() as story:
        story.send(story.world.gateways[0], 3)
        victim, ids, answer = story.die(step, size)
        assert victim in story.world.nodes
        assert answer is not None
        goes_on(profile, story, ids)
    return answer


def goes_on(profile: Profile, story: Story, ids: Sequence[str]) -> None:
    """The producer goes on while the victim is down, and sends the same ids once more when it is back."""
    first, other = story.world.gateways
    assert story.send(other, 2) == [False] * 2
    assert story.repeat(other, ids) == [True] * len(ids)
    story.world.mend()
    assert story.repeat(first, ids) == [True] * len(ids)
    assert story.send(first, 1) == [False]
    story.check()
    profile.check_store(story.stream, story.sent, int(story.receipts[story.sent[-1]]["offset"]))
