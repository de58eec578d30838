"""Where partitions begin: what retention has deleted, and what the log had deleted before it was stored."""

from __future__ import annotations

from collections.abc import Sequence

from shared.backends.mongo import queries
from shared.backends.mongo.documents import Document, partition_of_key
from shared.backends.mongo.driver import Calls, Database, fetch
from shared.backends.mongo.ranges import Range, joined


class Floors:
    """The documents of ``floors``. A floor never goes back, so a known one spares reading below it."""

    def __init__(self, database: Database, calls: Calls, keys: Sequence[bytes]) -> None:
        self._database = database
        self._calls = calls
        self._keys = keys
        self.known = [0] * len(keys)
        """Per partition a floor that it has, or once had."""

    async def read(self, *partitions: int) -> dict[int, Document]:
        """What there is of these partitions, or of all. Raises `Unavailable`."""
        query = queries.floors_of([self._keys[partition] for partition in partitions] or self._keys)
        found = await self._calls.read(lambda: fetch(self._database, query))
        documents = {partition_of_key(document["_id"]): document for document in found}
        for partition, document in documents.items():
            self.learn(partition, int(document.get("next", 0)))
        return documents

    def learn(self, partition: int, floor: int) -> None:
        """The floor is there now, on a majority."""
        self.known[partition] = max(self.known[partition], floor)

    async def all(self) -> dict[int, int]:
        """All floors, as they are now. Raises `Unavailable`."""
        await self.read()
        return dict(enumerate(self.known))

    async def deleted(self, partition: int) -> list[Range]:
        """What of a partition was deleted on purpose, ascending, as it is now. Raises `Unavailable`."""
        holes: Sequence[Sequence[int]] = (await self.read(partition)).get(partition, {}).get("holes", ())
        return joined(sorted([(0, self.known[partition]), *[(int(start), int(stop)) for start, stop in holes]]))
