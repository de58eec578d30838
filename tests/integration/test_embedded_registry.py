"""``registry.db`` as a file: a hint that may be lost."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import apsw
import orjson
import pytest

from shared.backends.embedded.database import Database
from shared.backends.embedded.registry import EmbeddedRegistry, open_registry
from shared.errors import StartError, Unavailable
from shared.ports import Beat, Member
from shared.settings import RegistrySettings


class TestRegistryFile:
    SETTINGS = RegistrySettings(timeout=0.4)
    ME = Member("n1", "i1", "node", "http://127.0.0.1:1", "0.1.0", "", 2.0)
    BEAT = Beat(1, "live", 0.1, 5, 0, 0.5, 0, 0, 3)

    async def test_an_items_text(self, tmp_path: Path) -> None:
        async with open_registry(tmp_path, self.SETTINGS) as registry:
            await registry.join(self.ME)
            db = apsw.Connection(str(tmp_path / "registry.db"))
            item = db.execute("SELECT item FROM members").get
            db.close()
        assert list(orjson.loads(item)) == ["capacity", "id", "incarnation", "role", "url", "version", "zone"]

    async def test_it_is_made_anew_where_it_is_damaged(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "registry.db").write_bytes(b"this is not a database" * 300)
        async with open_registry(tmp_path, self.SETTINGS) as registry:
            await registry.join(self.ME)
            assert list(await registry.members()) == [self.ME]
        assert "begins anew" in caplog.text
        assert (tmp_path / "registry.damaged").exists()

    @pytest.mark.parametrize("application_id", [0, 7])
    async def test_another_applications_file_is_refused(self, tmp_path: Path, application_id: int) -> None:
        db = apsw.Connection(str(tmp_path / "registry.db"))
        db.execute("CREATE TABLE theirs(a)")
        db.pragma("application_id", application_id)
        db.close()
        with pytest.raises(StartError, match="another application"):
            async with open_registry(tmp_path, self.SETTINGS):
                pass

    async def test_processes_follow_when_it_is_deleted(self, tmp_path: Path) -> None:
        async with open_registry(tmp_path, self.SETTINGS) as one, open_registry(tmp_path, self.SETTINGS) as two:
            await one.join(self.ME)
            for path in tmp_path.glob("registry.db*"):
                path.unlink()
            assert list(await two.members()) == []
            await two.join(self.ME)
            assert list(await one.members()) == [self.ME]

    async def test_a_stopped_process_that_holds_it_makes_it_unavailable(self, tmp_path: Path) -> None:
        async with open_registry(tmp_path, self.SETTINGS) as registry:
            await registry.join(self.ME)
            other = apsw.Connection(str(tmp_path / "registry.db"))
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(Unavailable):
                await registry.beat(self.ME.key, self.BEAT)
            assert list(await registry.members()) == [self.ME]
            other.execute("ROLLBACK")
            other.close()
            await registry.beat(self.ME.key, self.BEAT)
            assert dict(await registry.beats()) == {self.ME.key: self.BEAT}

    async def test_of_calls_that_go_together_each_has_its_own_answer(self, tmp_path: Path) -> None:
        async with open_registry(tmp_path, self.SETTINGS) as registry:

            def fail(_: Database) -> None:
                raise apsw.FullError("full")

            joined, failed, beats = await asyncio.gather(
                registry.join(self.ME), registry._ask(fail), registry.beat(self.ME.key, self.BEAT),
                return_exceptions=True,
            )  # fmt: skip
            assert joined is None
            assert isinstance(failed, Unavailable)
            assert beats == {self.ME.key: self.BEAT}

    async def test_what_nobody_waits_for_any_more_is_not_asked(self, tmp_path: Path) -> None:
        async with open_registry(tmp_path, self.SETTINGS) as registry:
            go_on, asked = threading.Event(), list[str]()
            held = asyncio.create_task(registry._ask(lambda _: go_on.wait(10)))
            await asyncio.sleep(0)
            late = [asyncio.create_task(registry._ask(lambda _, name=name: asked.append(name))) for name in "abc"]
            await asyncio.sleep(0)
            late[1].cancel()
            await asyncio.sleep(0)
            go_on.set()
            await asyncio.gather(held, *late, return_exceptions=True)
            assert asked == ["a", "c"]

    async def test_a_closed_one_says_so_at_once(self, tmp_path: Path) -> None:
        registry = EmbeddedRegistry(tmp_path / "registry.db", RegistrySettings(timeout=60))
        await registry.open()
        await registry.close()
        async with asyncio.timeout(5):
            with pytest.raises(Unavailable, match="closed"):
                await registry.members()

    async def test_a_beat_from_before_a_reboot_has_expired(self, tmp_path: Path) -> None:
        now = 1_000_000.0
        registry = EmbeddedRegistry(tmp_path / "registry.db", self.SETTINGS, now=lambda: now)
        await registry.open()
        await registry.beat("old/i1", self.BEAT)
        now = 50.0
        assert dict(await registry.beats()) == {}
        await registry.beat("new/i1", self.BEAT)
        assert set(await registry.beats()) == {"new/i1"}
        now = 54.9
        assert set(await registry.beats()) == {"new/i1"}
        now = 55.0
        assert dict(await registry.beats()) == {}
        await registry.close()

    async def test_an_unreadable_entry_is_passed_over(self, tmp_path: Path) -> None:
        async with open_registry(tmp_path, self.SETTINGS) as registry:
            await registry.join(self.ME)
            await registry.beat(self.ME.key, self.BEAT)
            db = apsw.Connection(str(tmp_path / "registry.db"))
            db.execute("INSERT INTO members VALUES ('{\"id\":1}'), ('nonsense')")
            db.execute("INSERT INTO beats VALUES ('x/y', 'nonsense', ?)", (time.monotonic(),))
            db.close()
            assert list(await registry.members()) == [self.ME]
            assert dict(await registry.beats()) == {self.ME.key: self.BEAT}
