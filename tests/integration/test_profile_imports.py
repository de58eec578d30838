"""Each profile loads the clients it needs, and not those of the other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FILES = {"apsw"}
SERVERS = {"aiokafka", "hazelcast", "motor", "pymongo"}

PROGRAM = """
import asyncio, sys
from pathlib import Path
from services import launcher, gateway_role, node_role
from shared.backplane import open_ports, open_registry
from shared.clock import SystemClock
from shared.settings import load_settings

async def main():
    settings = load_settings(None, {}, {"data": sys.argv[1]} | dict(pair.split("=", 1) for pair in sys.argv[2:]))
    if settings.is_distributed:
        async with open_registry(settings):
            try:
                async with asyncio.timeout(1), open_ports(settings, SystemClock()):
                    pass
            except TimeoutError:
                pass
    else:
        async with open_ports(settings, SystemClock()):
            pass

asyncio.run(main())
print(*sys.modules)
"""


def loaded(folder: Path, *settings: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), *settings], capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stdout.split())


@pytest.mark.timeout(90)
def test_no_profile_loads_the_clients_of_the_other(tmp_path: Path) -> None:
    files = loaded(tmp_path)
    assert files >= FILES
    assert not files & SERVERS
    urls = ["log.url=kafka://127.0.0.1:1", "registry.url=hazelcast://127.0.0.1:1", "store.url=mongodb://127.0.0.1:1"]
    servers = loaded(tmp_path, *urls)
    assert servers >= {"aiokafka", "hazelcast"}
    assert not servers & FILES
