"""A gateway that has just been started serves those who come back from its own memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from cdrs_process import CdrsProcess
from sse_socket import Subscriber
from write_paths import portable_slow


def questions(cdrs: CdrsProcess) -> float:
    lines = cdrs.request("GET", "/metrics").body.decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("cdrs_history_questions_total "))


@portable_slow
@pytest.mark.parametrize("warm", [64, 0])
def test_after_a_restart_who_comes_back_is_served_from_memory(tmp_path: Path, warm: int) -> None:
    with CdrsProcess(tmp_path, env={"CDRS_SSE__WARM_RECORDS": str(warm)}).start() as cdrs:
        with Subscriber(cdrs.port, "warm.>") as before:
            for number in range(100):
                assert cdrs.publish(f"warm.s{number % 5}", b"%d" % number).status == 201
            before.wait_count(100, 10)
        cdrs.stop()
        cdrs.start()
        place = before.blocks[39].id.decode()
        with Subscriber(cdrs.port, "warm.>", params={"last_event_id": place}) as after:
            after.wait_count(60, 10)
            assert cdrs.publish("warm.s0", b"100").status == 201
            after.wait_count(61, 10)
        missed = sorted(block.data for block in before.blocks[40:])
        assert sorted(block.data for block in after.blocks[:60]) == missed, "streams may interleave otherwise"
        assert (questions(cdrs) == 0) is bool(warm)
