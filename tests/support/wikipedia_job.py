"""The job that tests give to a running system: a day of edits to 51 wikis, published by the CLI, and what must hold
afterwards."""

from __future__ import annotations

import json
import subprocess

from cdrs_process import Door, Finished, client_environment, command
from sample import Sample
from sse_socket import Subscriber

PUB = ["--stream-from", "channel", "--prefix", "wiki.", "--key-from", "page", "--time-from", "time"]
THREE = ["wiki.vi.wikipedia", "wiki.fr.wikipedia", "wiki.war.wikipedia"]
DEADLINE = 90.0


def start_pub(port: int, sample: Sample) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*command(), "pub", "--json", "--file", str(sample.path), *PUB], env=client_environment(port),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def cuts(total: int, times: int = 10) -> list[int]:
    return [total * i // (times + 1) for i in range(1, times + 1)]


def check_again(again: Finished, total: int) -> None:
    """The second run found everything stored: all duplicates, none new."""
    assert again.code == 0, again.text
    summary = json.loads(again.out)["summary"]
    assert {k: summary[k] for k in ("lines", "stored", "duplicates", "failed")} == {
        "lines": total, "stored": 0, "duplicates": total, "failed": 0
    }  # fmt: skip


def publish_marker(cdrs: Door) -> dict[str, str]:
    """An event behind everything else in each stream that is waited for, so that silence before it is proof."""
    marked = {}
    for stream in ("wiki.marker", "wiki.en.wikipedia", THREE[0]):
        answer = cdrs.publish(stream, b'"marker"', ce_id=f"marker-{stream}", ce_source="marker", ce_type="marker",
                              ce_specversion="1.0")  # fmt: skip
        assert answer.status == 201, answer
        marked[stream] = f"marker-{stream}"
    return marked


def wait_for_marker(subscriber: Subscriber, event_id: str) -> None:
    wait = f'"{event_id}"'.encode()
    subscriber.wait(lambda: any(wait in b.data for b in subscriber.blocks[-4:]), 20, event_id)


def check_kept(cdrs: Door, everything: dict[str, list[bytes]]) -> None:
    """History agrees: the number of events of each stream, and one page read over plain HTTP."""
    after, kept = "", {}
    while True:
        answer = cdrs.request("GET", f"/v1/streams?limit=1000&after={after}", headers={"accept": "application/json"})
        assert answer.status == 200, answer
        streams = answer.json()["streams"]
        kept.update({s.get("stream") or s.get("name"): s["events"] for s in streams})
        after = streams[-1].get("stream") or streams[-1].get("name") if streams else ""
        if len(streams) < 1000:
            break
    extra = {"wiki.marker": 1, "wiki.en.wikipedia": 1, THREE[0]: 1}
    for stream, lines in everything.items():
        assert kept[stream] == len(lines) + extra.get(stream, 0), stream
    page = cdrs.request(
        "GET", "/v1/streams/wiki.fr.wikipedia/events?from=earliest&limit=50", headers={"accept": "application/json"}
    ).json()
    wanted = [json.loads(line) for line in everything["wiki.fr.wikipedia"][:50]]
    assert [e["event"]["data"] for e in page["events"]] == wanted
