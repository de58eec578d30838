"""How ``log.db`` is written and followed: time, groups, queues, full disks, memory."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from embedded_folder import opened
from log_process import PARTITIONS, ROOT, running
from new_events import event, events, read, same

from shared.backends.embedded import tail, writer
from shared.clock import SystemClock
from shared.errors import OutcomeUnknown, Overloaded, Unavailable
from shared.settings import LogSettings


class FixedClock(SystemClock):
    """A wall clock that is set by hand."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms

    def unix_ms(self) -> int:
        return self.now_ms


class TestWriting:
    async def test_append_times_do_not_follow_a_clock_that_is_set_back(self, tmp_path: Path) -> None:
        clock = FixedClock(1_000_000)
        async with opened(tmp_path, clock=clock) as (log, store):
            await log.append(0, events(0, 1), base=0)
            clock.now_ms = 500_000
            await log.append(0, events(1, 2), base=0)
            await log.append(1, events(2, 3), base=0)
        async with opened(tmp_path, clock=clock) as (log, store):
            await log.append(0, events(3, 4), base=0)
            assert [record.append_ms for record in await read(log, 0)] == [1_000_000] * 3
            assert [record.append_ms for record in await read(log, 1)] == [500_000]
            clock.now_ms = 2_000_000
            await log.append(0, events(4, 5), base=0)
            assert (await store.offset_at(1_000_001))[0] == 3

    async def test_appends_that_wait_share_a_commit(self, tmp_path: Path) -> None:
        async with opened(tmp_path) as (log, _):
            commits = 0
            settle = log._settle

            def counted(committed: writer.Committed) -> None:
                nonlocal commits
                commits += bool(committed.batches)
                settle(committed)

            log._writer._on_commit = counted  # type: ignore[union-attr]
            await asyncio.gather(*[log.append(n % 3, events(n * 10, n * 10 + 10), base=0) for n in range(200)])
            assert commits < 50

    @pytest.mark.parametrize("each", [1, 6, 7, 30])
    async def test_few_rows_and_many_are_written_alike(self, tmp_path: Path, each: int) -> None:
        """As values up to 20 of a table, beyond as JSON; all partitions together."""
        given = {partition: events(100 * partition, 100 * partition + each) for partition in range(PARTITIONS)}
        async with opened(tmp_path) as (log, _):
            told: list[object] = []
            for again in range(2):
                log.append_all([(partition, batch, told.append) for partition, batch in given.items()])
                async with asyncio.timeout(10):
                    while len(told) < PARTITIONS * (again + 1):
                        await asyncio.sleep(0.001)
            first, second = told[:PARTITIONS], told[PARTITIONS:]
            assert first == [[None] * each] * PARTITIONS
            assert all(entry.same_body for answer in second for entry in answer)  # type: ignore[attr-defined]
        async with opened(tmp_path) as (log, store):
            for partition, batch in given.items():
                assert same(await read(log, partition), batch)
            assert sum(stream.events for stream in await store.streams(after="", limit=100)) == each * PARTITIONS

    async def test_a_full_queue_refuses_at_once(self, filled: Path) -> None:
        settings = LogSettings(append_timeout=0.3, queue_bytes=100_000)
        async with opened(filled, settings) as (log, _), running("hold", filled / "log.db"):
            outcomes = await asyncio.gather(
                *[log.append(0, [event(f"big{n}", data=b"1" * 30_000)], base=0) for n in range(6)],
                return_exceptions=True,
            )
            assert [type(outcome) for outcome in outcomes] == [Unavailable] * 3 + [Overloaded] * 3

    async def test_the_queue_is_emptied_by_answers(self, tmp_path: Path) -> None:
        async with opened(tmp_path, LogSettings(queue_bytes=3000)) as (log, _):
            for number in range(20):
                await log.append(0, [event(str(number), data=b"1" * 2000)], base=0)

    async def test_one_larger_than_the_queue_is_taken_alone(self, tmp_path: Path) -> None:
        async with opened(tmp_path, LogSettings(queue_bytes=1000)) as (log, _):
            assert await log.append(0, [event("a", data=b"1" * 5000)], base=0) == [None]

    async def test_withdrawn_while_waiting_for_the_lock(self, filled: Path) -> None:
        async with opened(filled, LogSettings(append_timeout=5)) as (log, _):
            async with running("hold", filled / "log.db"):
                waiting = asyncio.create_task(log.append(0, events(900, 901), base=0))
                await asyncio.sleep(0.1)
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
            assert await log.append(0, events(901, 902), base=0) == [None]
            assert sum((await log.ends()).values()) == 301

    async def test_a_full_disk_stores_nothing_and_heals(self, filled: Path) -> None:
        async with opened(filled) as (log, _):
            db = log._writer._db  # type: ignore[union-attr]
            before = await log.ends()
            pages = db.pragma("page_count")
            db.pragma("max_page_count", pages)
            with pytest.raises(Unavailable, match="full"):
                await log.append(0, [event("big", data=b"1" * 500_000)], base=0)
            assert await log.ends() == before
            db.pragma("max_page_count", 2**31)
            assert await log.append(0, [event("big", data=b"1" * 500_000)], base=0) == [None]
            assert (await log.ends())[0] == before[0] + 1

    async def test_a_bad_event_harms_nobody_else(self, tmp_path: Path) -> None:
        async with opened(tmp_path) as (log, _):
            await log.append(0, events(0, 1), base=0)
            outcomes = await asyncio.gather(
                log.append(0, events(1, 3), base=0),
                log.append(1, [event("bad", key="\ud800")], base=0),
                log.append(2, events(3, 5), base=0),
                return_exceptions=True,
            )
            assert outcomes[0] == outcomes[2] == [None, None]
            assert type(outcomes[1]).__name__ == "InternalError"
            assert await log.ends() == {0: 3, 1: 0, 2: 2}

    async def test_a_failed_commit_has_an_unknown_outcome(self, tmp_path: Path) -> None:
        """A file-size limit of the process makes the commit's write fail."""
        script = """
            import asyncio, resource, sys
            from pathlib import Path
            from new_events import event
            from shared.backends.embedded.log import open_log
            from shared.clock import SystemClock
            from shared.settings import LogSettings
            async def main():
                async with open_log(Path(sys.argv[1]), LogSettings(partitions=1), SystemClock()) as (log, _):
                    await log.append(0, [event("a")], base=0)
                    size = (Path(sys.argv[1]) / "log.db-wal").stat().st_size
                    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10_000, resource.RLIM_INFINITY))
                    try: await log.append(0, [event("b", data=b"1" * 100_000)], base=0)
                    except Exception as error: print(type(error).__name__)
                    print(await log.ends())
                    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                    print(await log.append(0, [event("b", data=b"1" * 100_000)], base=0))
            asyncio.run(main())
        """
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'support'}"},
            capture_output=True,
            text=True,
            timeout=30,
        )
        problem, ends, again = done.stdout.splitlines()
        assert problem in {OutcomeUnknown.__name__, Unavailable.__name__}, done.stderr
        assert ends == "{0: 1}"
        assert again == "[None]"

    async def test_the_wal_file_is_written_back(self, tmp_path: Path) -> None:
        async with opened(tmp_path) as (log, _):
            for number in range(40):
                await log.append(0, [event(f"{number}-{n}", data=b"1" * 20_000) for n in range(40)], base=0)
            size = (tmp_path / "log.db-wal").stat().st_size
            assert size < 3 * writer.CHECKPOINT_PAGES * 4096
            assert (await log.ends())[0] == 1600

    async def test_what_waits_is_written_before_closing(self, tmp_path: Path) -> None:
        async with opened(tmp_path) as (log, _):
            waiting = [asyncio.create_task(log.append(0, events(n, n + 1), base=0)) for n in range(20)]
            await asyncio.sleep(0)
        outcomes = await asyncio.gather(*waiting)
        assert outcomes == [[None]] * 20
        with pytest.raises(Unavailable):
            await log.append(0, events(50, 51), base=0)


class TestMemory:
    async def test_a_tail_that_keeps_up_reads_no_file(self, tmp_path: Path) -> None:
        async with opened(tmp_path) as (log, _):
            following = log.tail({0: 0})
            await following.poll(max_records=1, timeout=0)
            log._watch._interval = 1000.0

            async def fail(question: object) -> None:
                raise AssertionError("the file was asked")

            log._pool.ask = fail  # type: ignore[method-assign,assignment]
            for number in range(0, 10_000, 100):
                await log.append(0, events(number, number + 100), base=0)
                (batch,) = await following.poll(max_records=1000, timeout=0)
                assert same(batch.records, events(number, number + 100))

    async def test_a_look_that_is_cancelled_is_taken_again(self, tmp_path: Path) -> None:
        async with opened(tmp_path) as (log, _), opened(tmp_path) as (other, _):
            following = log.tail({0: 0})
            await following.poll(max_records=1, timeout=0)
            await other.append(0, events(0, 1), base=0)
            reached = asyncio.Event()
            ask = log._pool.ask

            async def hang(question: object) -> None:
                reached.set()
                await asyncio.Event().wait()

            log._pool.ask = hang  # type: ignore[method-assign,assignment]
            waiting = asyncio.create_task(following.poll(max_records=1, timeout=30))
            async with asyncio.timeout(20):
                await reached.wait()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            log._pool.ask = ask  # type: ignore[method-assign]
            (batch,) = await following.poll(max_records=1, timeout=20)
            assert same(batch.records, events(0, 1))

    async def test_recent_records_are_bounded(self, tmp_path: Path) -> None:
        async with opened(tmp_path) as (log, _):
            for number in range(30):
                sent = [event(f"{number}-{n}", data=b"1" * 10_000) for n in range(50)]
                await log.append(0, sent, base=0)
            recent = log._watch.recent[0]
            kept = recent.read(recent.start, 10**6)
            assert kept is not None
            assert sum(len(record.value) for record in kept) <= 2 * tail.RECENT_BYTES + 50 * 11_000
            assert recent.next == 1500


async def test_after_a_long_time_alone_others_are_still_seen_and_own_commits_do_not_count_as_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "LONE_AFTER", 0.2)
    monkeypatch.setattr(tail, "QUIET_AFTER", 0.1)
    async with opened(tmp_path) as (one, _), opened(tmp_path) as (other, _):
        reader, watch = one.tail({0: 0}), one._watch

        async def next_identity() -> bytes:
            (batch,) = await reader.poll(max_records=10, timeout=10)
            return batch.records[0].identity

        for number in range(10):
            await one.append(0, [event(f"own{number}")], base=0)
            assert await next_identity() == event(f"own{number}").identity
            await asyncio.sleep(0.03)
        assert watch._pause() == 8 * watch._interval
        await other.append(0, [event("foreign")], base=0)
        assert await next_identity() == event("foreign").identity
        assert watch._pause() < 8 * watch._interval
