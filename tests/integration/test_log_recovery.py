"""`cdrs log recover`: from a damaged or replaced ``log.db`` to a new epoch, with old cursors, copies and readers."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest
from cdrs_process import CdrsProcess, client, wait_until
from embedded_folder import opened
from new_events import event, events, read
from sse_socket import Subscriber, data_of
from write_paths import each_path

from shared.backends.embedded.marks import Mark, check_mark, marked, read_mark, write_mark
from shared.backends.embedded.recovery import check_log, recover_log
from shared.backends.embedded.salvage import Salvage
from shared.errors import StartError
from shared.partitioning import partition_of
from shared.position import Cursor, Epoch
from shared.records import Expiry, FormerEpoch, PageQuery, Record, former_prefix
from shared.recovered import Findings, Recovery

pytestmark = pytest.mark.timeout(120)

BIG = 2**30
PAGE = 4096


async def fill(folder: Path, count: int = 1200) -> tuple[Epoch, dict[int, list[Record]]]:
    """A log of rows large and small, with a mark; what is in it."""
    rng = random.Random(5)
    async with opened(folder) as (log, _), marked(folder, log):
        number = 0
        while number < count:
            run = min(rng.choice((1, 3, 40, 100)), count - number)
            data = b"%d" % (10 ** rng.choice((1, 50, 2000)))
            sent = [event(str(number + i), stream=f"s{i % 3}", data=data) for i in range(run)]
            await log.append(number % 3, sent, base=0)
            number += run
        return log.epoch, {partition: await read(log, partition) for partition in range(3)}


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut":
        del content[len(content) * 2 // 3 :]
    elif how == "pages":
        for page in random.Random(3).sample(range(10, len(content) // PAGE), 12):
            content[page * PAGE : (page + 1) * PAGE] = random.Random(page).randbytes(PAGE)
    elif how == "flip":
        at = content.index(b"cdrsstream", len(content) // 2)
        content[at - 5] ^= 0x10
    elif how == "head":
        content[:100] = bytes(100)
    path.write_bytes(content)
    if how == "meta":
        db = apsw.Connection(str(path))
        db.execute("DELETE FROM meta")
        db.close()


def everything(partition: int, **more: Any) -> PageQuery:
    return PageQuery(partition, 0, BIG, 10_000, BIG, **more)


def lost_of(done: Recovery, partition: int) -> list[tuple[int, int]]:
    return [(start, stop) for p, start, stop in done.findings.lost if p == partition]


@pytest.mark.parametrize("how", ["cut", "pages", "flip", "meta", "head"])
async def test_of_a_damaged_log_everything_is_there_or_told(tmp_path: Path, how: str) -> None:
    former, records = await fill(tmp_path)
    damage(tmp_path / "log.db", how)
    before = (tmp_path / "log.db").read_bytes()
    done = recover_log(tmp_path)
    assert done.kept_as is not None
    assert done.kept_as.read_bytes() == before
    assert done.epoch == Epoch(2, done.epoch.random if done.epoch else 0)
    async with opened(tmp_path) as (log, store), marked(tmp_path, log):
        assert log.epoch == done.epoch
        assert log.partitions == 3
        ends = await log.ends()
        assert {each.epoch: each.stops for each in log.former} == {former: ends}
        for partition, were in records.items():
            page = await store.page(everything(partition))
            kept = {record.offset: record for record in were}
            assert all(kept[record.offset] == record for record in page.records)
            offsets = [record.offset for record in page.records]
            missing = [offset for start, stop in page.missing for offset in range(start, stop)]
            assert sorted([*offsets, *missing]) == list(range(ends[partition]))
            assert page.missing == lost_of(done, partition)
            back = await store.page(everything(partition, backwards=True))
            assert (back.records, back.missing) == (page.records[::-1], page.missing)
            streams = await store.page(everything(partition, streams=["s1"]))
            assert streams.records == [record for record in page.records if record.stream == "s1"]
            assert streams.missing == page.missing
            beyond = [stop for p, _, stop in done.beyond if p == partition]
            assert beyond == ([len(were)] if ends[partition] < len(were) else [])
        if how in {"meta", "flip"}:
            assert ends == {p: len(were) for p, were in records.items()}
        if how == "head":
            assert set(ends.values()) == {0}
        else:
            assert sum(ends.values()) > 100
        await goes_on(log, store, records)
        assert sum(info.events for info in await store.streams(after="", limit=100)) == sum(
            [len((await store.page(everything(partition))).records) for partition in range(3)]
        )
    assert check_log(tmp_path).findings.damage == ""


async def goes_on(log: Any, store: Any, records: dict[int, list[Record]]) -> None:
    """What is there is known; what was lost may come again; times lead to where they did."""
    for partition, were in records.items():
        page = await store.page(everything(partition))
        there = {record.offset for record in page.records}
        end = (await log.ends())[partition]
        for record in random.Random(1).sample(were, 5):
            sent = event(json.loads(record.value)["id"], stream=record.stream, data=b'"other"')
            (answer,) = await log.append(partition, [sent], base=0)
            if record.offset in there:
                assert (answer.offset, answer.same_body) == (record.offset, False)
                at = (await store.offset_at(record.append_ms))[partition]
                assert at <= record.offset
            else:
                assert answer is None
        assert (await log.ends())[partition] >= end
        assert [r.offset for r in await read(log, partition, start=end)] == list(
            range(end, (await log.ends())[partition])
        )


def change(folder: Path, statement: str) -> None:
    """One table as a torn copy may have it, each sound in itself."""
    db = apsw.Connection(str(folder / "log.db"))
    db.execute(statement)
    assert db.changes()
    db.close()


LAST = "(SELECT max(place) FROM batches WHERE place < 2 << 44)"


@pytest.mark.parametrize(
    "statement",
    [
        f"DELETE FROM batches WHERE place = {LAST}",
        f"DELETE FROM identities WHERE place >= {LAST} AND place < 2 << 44",
        f"DELETE FROM stream_batches WHERE place = {LAST}",
        "DELETE FROM stream_ends WHERE partition = 1",
    ],
)
async def test_tables_that_disagree_are_made_anew_of_the_events(tmp_path: Path, statement: str) -> None:
    """One is older than the others: what is appended would clash with what stands there, or not be known again."""
    _, records = await fill(tmp_path, 300)
    assert check_log(tmp_path).findings.is_sound
    change(tmp_path, statement)
    assert not check_log(tmp_path).findings.is_sound
    assert recover_log(tmp_path).kept_as is not None
    async with opened(tmp_path) as (log, store), marked(tmp_path, log):
        end = (await log.ends())[1]
        for record in records[1]:
            sent = event(json.loads(record.value)["id"], stream=record.stream, data=b'"other"')
            (answer,) = await log.append(1, [sent], base=0)
            assert (answer is None) == (record.offset >= end)
        assert (await log.ends())[1] == len(records[1])
        assert sum(info.events for info in await store.streams(after="", limit=100)) == 300
    assert check_log(tmp_path).findings.is_sound


async def test_identities_of_an_earlier_version_are_no_damage(tmp_path: Path) -> None:
    uuid7 = "01936f2a-8c4e-7a10-9b3c-5d6e7f809102"
    new = event(uuid7, source="/new")
    former = msgspec.structs.replace(event(uuid7), identity=former_prefix("orders", uuid7) + event(uuid7).identity[12:])
    async with opened(tmp_path) as (log, _), marked(tmp_path, log):
        await log.append(0, [former, new], base=0)
    assert check_log(tmp_path).findings.is_sound
    change(tmp_path, "DELETE FROM stream_ends")
    assert recover_log(tmp_path).kept_as is not None
    async with opened(tmp_path) as (log, _), marked(tmp_path, log):
        assert [record.identity for record in await read(log, 0)] == [former.identity, new.identity]


async def test_what_is_lost_beside_what_was_lost_before_is_one_hole(tmp_path: Path) -> None:
    _, records = await fill(tmp_path, 300)
    db = apsw.Connection(str(tmp_path / "log.db"))
    places = [place for (place,) in db.execute("SELECT place FROM batches WHERE place < 1 << 44 ORDER BY place")]
    db.close()
    assert len(places) > 5
    for lost in places[2], places[3]:
        change(tmp_path, f"DELETE FROM batches WHERE place = {lost}")
        recover_log(tmp_path)
        assert check_log(tmp_path).findings.is_sound
    assert check_log(tmp_path).findings.holes == [(0, places[2], places[4])]
    change(tmp_path, f"DELETE FROM batches WHERE place >= {places[1]} AND place < 1 << 44")
    recover_log(tmp_path)
    assert check_log(tmp_path).findings.holes == []
    async with opened(tmp_path) as (log, store), marked(tmp_path, log):
        await log.append(0, [event(f"new-{number}") for number in range(len(records[0]))], base=0)
        assert (await store.page(everything(0))).missing == []


async def test_a_log_that_grows_while_it_is_checked_is_as_it_should_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(tmp_path, 300)
    async with opened(tmp_path) as (log, _):
        inspect, loop = Salvage.inspect, asyncio.get_running_loop()

        async def grow() -> None:
            await log.append(0, events(1000, 1050), base=0)
            write_mark(tmp_path, Mark(log.epoch, list((await log.ends()).values())))

        def slow(salvage: Salvage) -> Findings:
            asyncio.run_coroutine_threadsafe(grow(), loop).result()
            return inspect(salvage)

        monkeypatch.setattr(Salvage, "inspect", slow)
        done = await asyncio.to_thread(check_log, tmp_path)
    assert done.findings.is_sound
    assert not done.beyond


async def test_the_number_of_partitions_is_not_made_up(tmp_path: Path) -> None:
    """Neither the file nor the mark says it: most streams would be looked for elsewhere."""
    async with opened(tmp_path) as (log, _):
        for stream in map(str, range(20)):
            home = partition_of(stream, None, "", partitions=log.partitions)
            await log.append(home, [event("1", stream=stream)], base=0)
        partitions = log.partitions
    damage(tmp_path / "log.db", "meta")
    with pytest.raises(StartError, match=r"set log\.partitions"):
        recover_log(tmp_path, partitions + 1)
    assert recover_log(tmp_path, partitions).findings.events == 20


async def test_a_copy_of_an_older_epoch_is_told(tmp_path: Path) -> None:
    await fill(tmp_path, 30)
    shutil.copy(tmp_path / "log.db", tmp_path / "copy")
    recover_log(tmp_path)
    shutil.copy(tmp_path / "copy", tmp_path / "log.db")
    with pytest.raises(StartError, match="was served from here"):
        check_log(tmp_path)


async def test_a_sound_log_becomes_a_new_epoch_where_it_stands(tmp_path: Path) -> None:
    first, records = await fill(tmp_path, 300)
    async with opened(tmp_path) as (_, store):
        while await store.expire(Expiry(1, records[0][20].append_ms, 0, BIG)):
            pass
        floors = await store.starts()
    done, again = recover_log(tmp_path), recover_log(tmp_path)
    assert (done.kept_as, again.kept_as, again.findings.lost) == (None, None, [])
    assert done.findings.is_sound
    async with opened(tmp_path) as (log, store), marked(tmp_path, log):
        ends = {p: len(were) for p, were in records.items()}
        assert log.epoch == again.epoch == Epoch(3, log.epoch.random)
        assert {each.epoch: each.stops for each in log.former} == {first: ends, done.epoch: ends}
        assert await store.starts() == floors
        page = await store.page(everything(0))
        assert page.records == [record for record in records[0] if record.offset >= floors[0]]
        (known,) = await log.append(0, [event("0", stream="s0", data=b"?")], base=0)
        assert known is not None


async def test_what_outlives_deleted_events_is_saved_too(tmp_path: Path) -> None:
    async with opened(tmp_path) as (log, store), marked(tmp_path, log):
        await log.append(0, events(0, 100), base=0)
        while await store.expire(Expiry(1, 2**60, 0, BIG)):
            pass
        await log.append(0, events(100, 200), base=0)
    damage(tmp_path / "log.db", "meta")
    recover_log(tmp_path)
    async with opened(tmp_path) as (log, store):
        answers = await log.append(0, [event("7"), event("150"), event("new")], base=0)
        assert [answer and answer.offset for answer in answers] == [7, 150, None]
        page = await store.page(everything(0))
        assert (page.deleted, page.missing, len(page.records)) == ([(0, 100)], [], 101)


async def test_it_is_refused_while_somebody_serves_it(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="there is no log"):
        recover_log(tmp_path)
    async with opened(tmp_path) as (log, _):
        await log.append(0, events(0, 10), base=0)
        done = client(0, "log", "check", "--data", str(tmp_path))
        assert (done.code, "10 events" in done.text, "nothing is wrong" in done.text) == (0, True, True)
        done = client(0, "log", "recover", "--data", str(tmp_path))
        assert (done.code, "is in use" in done.text) == (1, True)
        assert (await log.ends())[0] == 10


def test_what_a_mark_says(tmp_path: Path) -> None:
    epoch, other = Epoch(2, 7), Epoch(3, 9)

    def refused(mark: Mark | None, ends: list[int], *, former: Epoch | None = None, is_now: Epoch = epoch) -> bool:
        before = [] if former is None else [FormerEpoch(former, {})]
        try:
            check_mark(tmp_path, mark, is_now, before, dict(enumerate(ends)))
        except StartError:
            return True
        return False

    assert not refused(None, [5, 5])
    assert not refused(Mark(epoch, [5, 5]), [5, 6])
    assert refused(Mark(epoch, [5, 6]), [9, 5])
    assert refused(Mark(other, [1, 1]), [9, 9])
    assert not refused(Mark(other, [1, 1]), [0, 0]), "the old file was moved away"
    assert not refused(Mark(Epoch(2, 8), [9, 9]), [1, 1]), "another log was made here"
    assert not refused(Mark(epoch, [9, 9]), [1, 1], former=epoch, is_now=other)
    write_mark(tmp_path, Mark(epoch, [5]))
    assert read_mark(tmp_path) == Mark(epoch, [5])
    (tmp_path / "log.mark").write_bytes(b"\x00")
    assert read_mark(tmp_path) is None


def post(cdrs: CdrsProcess, first: int, stop: int) -> list[dict[str, Any]]:
    lines = b"".join(b"%d\n" % number for number in range(first, stop))
    headers = {"content-type": "application/x-ndjson", "idempotency-key": f'"{first}-{stop}"'}
    answer = cdrs.request("POST", "/v1/streams/orders/events", lines, headers=headers)
    return [json.loads(line) for line in answer.body.splitlines()[:-1]]


def numbers(reader: Subscriber) -> list[int]:
    return [int(data_of(block.data)) for block in reader.blocks]


@each_path
@pytest.mark.slow
def test_an_older_copy_is_refused_and_served_in_a_new_epoch(tmp_path: Path) -> None:
    cdrs = CdrsProcess(tmp_path / "cdrs", env={"CDRS_LOG__PARTITIONS": "2"})
    copy = tmp_path / "copy.db"
    with cdrs.start():
        kept = post(cdrs, 0, 100)
        cdrs.stop()
        shutil.copy(cdrs.data / "log.db", copy)
        cdrs.start()
        lost = post(cdrs, 100, 150)
        assert [receipt["offset"] for receipt in lost] == [str(offset) for offset in range(100, 150)]
        wait_until(lambda: sum(read_mark(cdrs.data).ends) == 150, 10, "the mark")
        cdrs.kill()
        for file in cdrs.data.glob("log.db*"):
            file.unlink()
        shutil.copy(copy, cdrs.data / "log.db")
        cdrs.start(wait=False)
        assert cdrs.wait(20) == 1
        assert "but 150 offsets were there" in cdrs.stderr()
        assert "cdrs log recover" in cdrs.stderr()
        done = client(0, "log", "check", "--data", str(cdrs.data))
        assert (done.code, "but 150 offsets were there" in done.text) == (1, True)
        done = client(0, "log", "recover", "--data", str(cdrs.data))
        assert (done.code, "is of epoch 2-" in done.text) == (0, True)
        cdrs.start()
        new = post(cdrs, 200, 210)
        assert [receipt["offset"] for receipt in new] == [str(offset) for offset in range(100, 110)]
        old = Cursor.decode(kept[0]["cursor"]).epoch
        assert (str(old), new[0]["epoch"][:2]) == (kept[0]["epoch"], "2-")
        # Copies of what is there, and of what was lost.
        assert [receipt["duplicate"] for receipt in post(cdrs, 0, 100)] == [True] * 100
        assert [receipt["duplicate"] for receipt in post(cdrs, 100, 150)] == [False] * 50
        tail = [*range(200, 210), *range(100, 150)]
        with Subscriber(cdrs.port, "orders", params={"from": kept[59]["cursor"]}) as reader:
            reader.wait_count(100, 20)
            assert numbers(reader) == [*range(60, 100), *tail]
            assert not [block for block in reader.controls if block.event == b"cdrs.gap"]
        with Subscriber(cdrs.port, "orders", params={"from": lost[29]["cursor"]}) as reader:
            reader.wait_count(60, 20)
            assert numbers(reader) == tail
            (told,) = [json.loads(block.data) for block in reader.controls if block.event == b"cdrs.gap"]
            assert (told["reason"], told["from"], told["to"], told["lost"]) == ("epoch", "130", None, None)
        path = f"/v1/streams/orders/events?from={lost[29]['cursor']}"
        assert cdrs.request("GET", path, headers={"accept": "application/json"}).status == 410


@each_path
@pytest.mark.slow
def test_a_gateway_that_lives_on_begins_anew_with_the_new_epoch(tmp_path: Path) -> None:
    env = {"CDRS_LOG__PARTITIONS": "2", "CDRS_GATEWAY__DRAIN_TIMEOUT": "1"}
    node = CdrsProcess(tmp_path / "one", role="node", env={**env, "CDRS_DATA": str(tmp_path / "one" / "data")})
    gateway = CdrsProcess(tmp_path / "two", role="gateway", args=["--data", str(node.data)], env=env)
    with node.start(), gateway.start():
        post(gateway, 0, 50)
        with Subscriber(gateway.port, "orders", params={"from": "earliest"}) as reader:
            reader.wait_count(50, 20)
            node.stop()
            assert client(0, "log", "recover", "--data", str(node.data)).code == 0
            node.start()
            assert gateway.wait(30) == 1
            assert "the gateway has to begin anew" in gateway.stderr()
            gateway.start()
            post(gateway, 100, 110)
            reader.wait_count(60, 20)
            assert numbers(reader) == [*range(50), *range(100, 110)]
            assert not [block for block in reader.controls if block.event == b"cdrs.gap"]
            assert [json.loads(b.data)["reason"] for b in reader.controls if b.event == b"cdrs.bye"][-1:] == ["drain"]
