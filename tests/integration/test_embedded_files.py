"""``log.db`` as a file: opening it, sharing it, and losing processes around it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import apsw
import pytest
from embedded_folder import QUICK, opened
from log_process import PARTITIONS, ROOT, event_name, line_of, program, running
from new_events import event, events, read, same

from shared.backends.embedded import database, schema
from shared.backends.embedded.registry import open_registry
from shared.errors import StartError, Unavailable
from shared.records import PageQuery
from shared.settings import LogSettings, RegistrySettings


async def refusal(folder: Path) -> str:
    with pytest.raises(StartError) as caught:
        async with opened(folder):
            pass
    return str(caught.value)


class TestOpening:
    async def test_the_folder_is_made_for_its_owner_only(self, tmp_path: Path) -> None:
        folder = tmp_path / "deep" / "data"
        async with opened(folder):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert (folder / "log.db").exists()

    async def test_another_process_makes_it_between_two_looks_at_it(self, tmp_path: Path) -> None:
        """Found under load: whose the file is was read before the other's commit, what is in it after."""
        path = tmp_path / "log.db"

        class Late(database.Database):
            asked = 0

            def made_meanwhile(self) -> None:
                self.asked += 1
                if self.asked == 2:
                    other = apsw.Connection(str(path))
                    other.execute(f"PRAGMA application_id={schema.APPLICATION_ID}; PRAGMA user_version=1")
                    other.execute("CREATE TABLE meanwhile(x)")
                    other.close()

            def ask(self, *arguments):
                self.made_meanwhile()
                return super().ask(*arguments)

            def setting(self, *arguments):
                self.made_meanwhile()
                return super().setting(*arguments)

        db = Late(str(path))
        try:
            assert database._check_owner(db, path, 1)
        finally:
            db.close()

    async def test_closing_leaves_one_file(self, filled: Path) -> None:
        assert [path.name for path in filled.iterdir()] == ["log.db"]

    async def test_the_file_says_whose_it_is(self, filled: Path) -> None:
        db = apsw.Connection(str(filled / "log.db"))
        assert db.pragma("application_id") == schema.APPLICATION_ID
        assert db.pragma("user_version") == schema.LOG_FORMAT
        assert db.pragma("journal_mode") == "wal"
        db.close()

    async def test_a_files_partitions_win_over_the_setting(self, filled: Path) -> None:
        async with opened(filled, LogSettings(partitions=7)) as (log, _):
            assert log.partitions == PARTITIONS

    @pytest.mark.parametrize("content", [b"this is not a database at all, but a text", b"\x00" * 5000, b"x"])
    async def test_something_else_is_refused_and_left_alone(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "log.db").write_bytes(content)
        message = await refusal(tmp_path)
        assert "log.db" in message
        assert "move it away" in message
        assert (tmp_path / "log.db").read_bytes() == content

    async def test_an_empty_file_is_a_new_log(self, tmp_path: Path) -> None:
        (tmp_path / "log.db").touch()
        async with opened(tmp_path) as (log, _):
            assert (await log.ends())[0] == 0

    @pytest.mark.parametrize("application_id", [0, 0x1234])
    async def test_another_applications_database_is_refused(self, tmp_path: Path, application_id: int) -> None:
        db = apsw.Connection(str(tmp_path / "log.db"))
        db.execute("CREATE TABLE theirs(a)")
        db.pragma("application_id", application_id)
        db.close()
        message = await refusal(tmp_path)
        assert "another application" in message
        assert "--data" in message

    async def test_a_newer_format_is_refused(self, filled: Path) -> None:
        db = apsw.Connection(str(filled / "log.db"))
        db.pragma("user_version", schema.LOG_FORMAT + 1)
        db.close()
        message = await refusal(filled)
        assert f"format {schema.LOG_FORMAT + 1}" in message
        assert "upgrade" in message

    async def test_a_file_of_the_first_format_is_upgraded(self, filled: Path) -> None:
        db = apsw.Connection(str(filled / "log.db"))
        for table in ("floors", "shadows", "epochs", "holes"):
            db.execute(f"DROP TABLE {table}")
        db.pragma("user_version", 1)
        db.close()
        async with opened(filled) as (log, store), opened(filled) as (other, _):
            assert sum((await log.ends()).values()) == sum((await other.ends()).values()) == 300
            assert set((await store.starts()).values()) == {0}
            assert same((await read(log, 0))[:20], events(0, 20))

    @pytest.mark.parametrize("damage", ["cut", "schema", "leaf", "meta"])
    async def test_a_damaged_file_is_refused(self, filled: Path, damage: str) -> None:
        path = filled / "log.db"
        content = bytearray(path.read_bytes())
        if damage == "cut":
            del content[len(content) // 2 :]
        elif damage == "schema":
            content[100:400] = b"\xff" * 300
        elif damage == "leaf":
            content[-4096:-3000] = b"\xee" * 1096
        path.write_bytes(content)
        if damage == "meta":
            db = apsw.Connection(str(path))
            db.execute("DELETE FROM meta")
            db.close()
        message = await refusal(filled)
        assert "not an intact database" in message
        assert "backup" in message

    async def test_a_folder_in_its_place_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "log.db").mkdir()
        assert "is a folder" in await refusal(tmp_path)

    async def test_a_file_in_the_folders_place_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "data").touch()
        assert "--data" in await refusal(tmp_path / "data")
        assert "--data" in await refusal(tmp_path / "data" / "deeper")

    @pytest.mark.parametrize("read_only", ["folder", "file", "nothing-to-read"])
    async def test_without_permission_it_is_refused(self, filled: Path, read_only: str) -> None:
        filled.chmod(0o555 if read_only == "folder" else 0o777)
        (filled / "log.db").chmod({"folder": 0o666, "file": 0o444, "nothing-to-read": 0o000}[read_only])
        script = """
            import asyncio, os, sys
            from pathlib import Path
            from shared.backends.embedded.log import open_log
            from shared.clock import SystemClock
            from shared.errors import StartError
            from shared.settings import LogSettings
            async def main():
                async with open_log(Path(sys.argv[1]), LogSettings(), SystemClock()): pass
            if os.getuid() == 0:
                os.setgroups([]); os.setgid(65534); os.setuid(65534)
            try: asyncio.run(main())
            except StartError as error: print("refused:", error)
        """
        for parent in filled.parents:
            if parent.is_relative_to(filled.parents[2]):
                parent.chmod(0o755)
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", textwrap.dedent(script), str(filled)],
            env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.stdout.startswith("refused:"), done.stderr
        assert "--data" in done.stdout
        filled.chmod(0o700)

    async def test_processes_that_open_a_new_folder_at_once_agree(self, tmp_path: Path) -> None:
        for attempt in range(3):
            with (
                program("open", tmp_path / str(attempt)) as a,
                program("open", tmp_path / str(attempt)) as b,
                program("open", tmp_path / str(attempt)) as c,
            ):
                lines = await asyncio.gather(*[line_of(process) for process in (a, b, c)])
                assert len(set(lines)) == 1
                assert lines[0].endswith(f" {PARTITIONS}")

    async def test_a_process_that_died_while_it_wrote_leaves_an_intact_log(self, filled: Path) -> None:
        async with running("hold", filled / "log.db"):
            pass
        assert (filled / "log.db-wal").exists()
        async with opened(filled) as (log, _):
            assert sum((await log.ends()).values()) == 300


class TestSeveralProcesses:
    async def test_two_writers_interleave(self, tmp_path: Path) -> None:
        async with opened(tmp_path, LogSettings(partitions=PARTITIONS)) as (log, _):
            with program("write", tmp_path, "a", "600") as a, program("write", tmp_path, "b", "600") as b:
                codes = await asyncio.gather(*[asyncio.to_thread(process.wait, 60) for process in (a, b)])
            assert codes == [0, 0]
            values: list[bytes] = []
            for partition in range(PARTITIONS):
                records = await read(log, partition)
                assert [record.offset for record in records] == list(range(len(records)))
                values += [record.value for record in records]
            wanted = [event(event_name(prefix, n)).value for prefix in "ab" for n in range(600)]
            assert Counter(values) == Counter(wanted)
            for prefix in "ab":
                for partition in range(PARTITIONS):
                    mine = [event(event_name(prefix, n)) for n in range(600) if n // 5 % PARTITIONS == partition]
                    own = {one.value for one in mine}
                    assert same([r for r in await read(log, partition) if r.value in own], mine)

    async def test_a_tail_sees_another_processes_appends(self, tmp_path: Path) -> None:
        async with opened(tmp_path) as (log, _):
            following = log.tail(dict.fromkeys(range(PARTITIONS), 0))
            seen: list[bytes] = []
            async with running("write", tmp_path, "a", "60", "1"), asyncio.timeout(20):
                while len(seen) < 60:
                    for batch in await following.poll(max_records=100, timeout=5):
                        seen += [record.value for record in batch.records]
            assert Counter(seen) == Counter(event(event_name("a", n)).value for n in range(60))

    async def test_an_unchanged_file_is_not_read(self, filled: Path) -> None:
        async with opened(filled) as (log, _):
            following = log.tail(await log.ends())
            await following.poll(max_records=1, timeout=0)
            questions = 0
            pool = log._pool
            ask = pool.ask

            async def counted(question):
                nonlocal questions
                questions += 1
                return await ask(question)

            pool.ask = counted  # type: ignore[method-assign]
            assert list(await following.poll(max_records=1, timeout=0.3)) == []
            assert questions == 0

    async def test_a_stopped_writer_blocks_appends_only_until_their_deadline(self, filled: Path) -> None:
        async with opened(filled) as (log, store):
            before = await log.ends()
            async with running("hold", filled / "log.db") as holder:
                holder.send_signal(signal.SIGSTOP)
                begun = time.monotonic()
                outcomes = await asyncio.gather(
                    *[log.append(n % PARTITIONS, events(1000 + n, 1001 + n), base=0) for n in range(6)],
                    store.create_stream("new", spread=1),
                    return_exceptions=True,
                )
                assert time.monotonic() - begun >= QUICK.append_timeout
                assert all(isinstance(outcome, Unavailable) for outcome in outcomes), outcomes
                assert all("busy" in outcome.detail for outcome in outcomes if isinstance(outcome, Unavailable))
                # reading goes on
                assert await log.ends() == before
                assert same(await read(log, 0), [one for n in range(0, 300, 60) for one in events(n, n + 20)])
                assert len((await store.page(PageQuery(0, 0, 10, 10, 10**6))).records) == 10
                waiting = asyncio.create_task(log.append(0, events(2000, 2001), base=0))
                await asyncio.sleep(0.05)
            assert await waiting == [None]
            assert await log.append(0, events(1000, 1010), base=0) == [None] * 10
            assert sum((await log.ends()).values()) == 311
            assert await store.stream("new") is None

    async def test_a_stopped_writer_may_run_again(self, filled: Path) -> None:
        with program("write", filled, "a", "0", "1") as process:
            await line_of(process)
            async with opened(filled) as (log, _):
                for number in range(5):
                    await line_of(process)
                    process.send_signal(signal.SIGSTOP)
                    with contextlib.suppress(Unavailable):
                        await log.append(0, events(3000 + number, 3001 + number), base=0)
                    process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()
                for number in range(5):
                    await log.append(0, events(3000 + number, 3001 + number), base=0)
                values = [record.value for partition in range(PARTITIONS) for record in await read(log, partition)]
                assert len(values) == len(set(values))
                assert {one.value for one in events(3000, 3005)} <= set(values)

    async def test_what_a_killed_process_acknowledged_is_there(self, tmp_path: Path) -> None:
        acknowledged: dict[str, int] = {}
        async with opened(tmp_path) as (log, _):
            for attempt in range(10):
                prefix = f"run{attempt}"
                with program("write", tmp_path, prefix, "0", str(1 + attempt * 3)) as process:
                    await line_of(process)
                    for _ in range(3 + attempt):
                        acknowledged[prefix] = int(await line_of(process))
                    process.kill()
                    process.wait()
                    assert process.stdout is not None
                    rest = [line for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
                    acknowledged[prefix] = max([acknowledged[prefix], *map(int, rest)])
            values: list[bytes] = []
            for partition in range(PARTITIONS):
                records = await read(log, partition)
                assert [record.offset for record in records] == list(range(len(records)))
                values += [record.value for record in records]
            assert len(values) == len(set(values))
            stored = set(values)
            for prefix, count in acknowledged.items():
                lost = [n for n in range(count) if event(event_name(prefix, n)).value not in stored]
                assert lost == [], prefix

    async def test_the_other_process_may_come_and_go(self, filled: Path) -> None:
        """The last one to close removes the -wal file: nobody may be mistaken for the last."""
        async with opened(filled) as (log, _):
            for attempt in range(3):
                async with opened(filled) as (other, _):
                    await other.append(0, events(5000 + attempt, 5001 + attempt), base=0)
                await log.append(0, events(6000 + attempt, 6001 + attempt), base=0)
            assert sum((await log.ends()).values()) == 306


async def test_nothing_is_left_behind(tmp_path: Path) -> None:
    async with opened(tmp_path) as (log, _), open_registry(tmp_path, RegistrySettings()) as registry:
        await log.append(0, events(0, 10), base=0)
        await read(log, 0)
        await registry.members()
        assert open_files(tmp_path)
    gc.collect()
    assert open_files(tmp_path) == []


def open_files(folder: Path) -> list[str]:
    found: list[str] = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(link.readlink()))
    return [name for name in found if name.startswith(str(folder))]
