"""The client commands as a user runs them, against a running `cdrs up`: data on stdout, talk on stderr, exit codes."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from cdrs_process import CdrsProcess, Finished, client, client_environment, command, free_port, wait_until
from write_paths import each_path


@pytest.fixture(scope="module")
def cdrs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CdrsProcess]:
    with CdrsProcess(tmp_path_factory.mktemp("cli")).start() as running:
        yield running


@pytest.fixture(scope="module")
def streaming(write_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CdrsProcess]:
    """One for those who follow streams."""
    with CdrsProcess(tmp_path_factory.mktemp(write_path)).start() as running:
        yield running


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def received(cdrs: CdrsProcess, stream: str, *, count: int) -> list[Any]:
    """What a stream holds, once it is so many events."""

    def page() -> list[Any]:
        path = f"/v1/streams/{stream}/events?from=earliest&limit=1000"
        answer = cdrs.request("GET", path, headers={"accept": "application/json"})
        assert answer.status == 200, answer
        return [item["event"] for item in answer.json()["events"]]

    return list(wait_until(lambda: events if len(events := page()) >= count else [], 10, f"{count} events"))


class Running:
    """A client command that goes on, with its output in files."""

    def __init__(
        self,
        folder: Path,
        port: int,
        *args: str,
        stdin: int = subprocess.DEVNULL,
        env: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.out_path, self.err_path = folder / "out", folder / "err"
        with self.out_path.open("wb") as out, self.err_path.open("wb") as err:
            self.process = subprocess.Popen(
                [*command(), *args], env=client_environment(port, env), stdin=stdin, stdout=out, stderr=err
            )

    @property
    def out(self) -> str:
        return self.out_path.read_text()

    @property
    def err(self) -> str:
        return self.err_path.read_text()

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(10)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(10)


# --- pub STREAM -----------------------------------------------------------------------------------


def test_payloads_are_json_where_they_parse_and_text_else(cdrs: CdrsProcess) -> None:
    done = client(cdrs.port, "pub", "cli.args", '{"a": 1.0}', "plain text", "7", "--type", "t", "--key", "k", "--json")
    assert done.code == 0, done.text
    assert [receipt["duplicate"] for receipt in lines(done.out)] == [False] * 3
    got = received(cdrs, "cli.args", count=3)
    assert [event["data"] for event in got] == [{"a": 1.0}, "plain text", 7]
    assert [event.get("datacontenttype") for event in got][1] == "text/plain"
    assert {event["type"] for event in got} == {"t"}
    assert {event["partitionkey"] for event in got} == {"k"}


def test_without_json_the_answer_is_for_people_and_on_stderr(cdrs: CdrsProcess) -> None:
    done = client(cdrs.port, "pub", "cli.people", "1", "--count", "3")
    assert done.code == 0
    assert done.out == ""
    assert "3 stored" in done.err


def test_an_id_makes_a_repeat_a_duplicate_and_another_body_a_failure(cdrs: CdrsProcess) -> None:
    assert client(cdrs.port, "pub", "cli.ids", "1", "--id", "x").code == 0
    again = client(cdrs.port, "pub", "cli.ids", "1", "--id", "x", "--json")
    assert again.code == 0
    assert lines(again.out)[0]["duplicate"] is True
    other = client(cdrs.port, "pub", "cli.ids", "2", "--id", "x")
    assert other.code == 1
    assert "line 1:" in other.err


def test_standard_input_is_sent_line_by_line_while_it_is_open(cdrs: CdrsProcess, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*command(), "pub", "cli.stdin", "-", "--json"], env=client_environment(cdrs.port),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b'{"n":1}\n\nplain\n')
        process.stdin.flush()
        assert [event["data"] for event in received(cdrs, "cli.stdin", count=2)] == [{"n": 1}, "plain"]
        assert json.loads(process.stdout.readline())["offset"]
        process.stdin.write(b'{"specversion":"1.0","id":"mine","source":"/s","type":"t","data":3}\nno end')
        process.stdin.flush()
        process.communicate(timeout=10)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()
    events = received(cdrs, "cli.stdin", count=4)
    assert events[2]["id"] == "mine"
    assert events[3]["data"] == "no end"


@pytest.mark.parametrize(
    "args",
    [
        ["pub"],
        ["pub", "a", "1", "2", "--id", "x"],
        ["pub", "a", "--prefix", "x"],
        ["pub", "--file", "x"],
        ["pub", "--file", "x", "--stream-from", "f", "--attr", "nonsense"],
        ["sub"],
        ["sub", "a", "--count", "0"],
        ["nodes", "--nonsense"],
        ["nonsense"],
        ["up", "--nodes", "-1"],
    ],
)
def test_wrong_usage_is_2(args: list[str]) -> None:
    done = client(1, *args)
    assert done.code == 2, done.text
    assert done.out == ""
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "args", [["sub", "a..b"], ["sub", "a", "--from", "never"], ["sub", "a", "--filter", "{"], ["pub", "a..b", "1"]]
)
def test_a_refusal_is_told_and_is_1(cdrs: CdrsProcess, args: list[str]) -> None:
    done = client(cdrs.port, *args)
    assert done.code == 1, done.text
    assert done.err.startswith("cdrs: ")
    assert "Traceback" not in done.err


@pytest.mark.parametrize("args", [["sub", "a"], ["nodes"], ["streams"]])
def test_nobody_there_says_what_to_do(args: list[str]) -> None:
    done = client(free_port(), *args)
    assert done.code == 1
    assert "cdrs up" in done.err
    assert "--url" in done.err
    assert "Traceback" not in done.err


# --- pub --file -----------------------------------------------------------------------------------


def feed(count: int, *, start: int = 0) -> list[bytes]:
    return [
        b'{"time":"2015-09-12T00:46:58.771Z","channel":"#c%d.wiki","page":"P\xc3\xa4 %d","n":%d,"x":1.50}'
        % (n % 5, n % 17, n)
        for n in range(start, start + count)
    ]


def pub_file(cdrs: CdrsProcess, path: Path, prefix: str, *more: str) -> Finished:
    return client(
        cdrs.port, "pub", "--file", str(path), "--stream-from", "channel", "--prefix", prefix, "--key-from", "page",
        "--time-from", "time", "--attr", "number=n", "--type", "edit", "--json", *more,
    )  # fmt: skip


def test_a_file_goes_in_once_however_often_it_is_sent(cdrs: CdrsProcess, tmp_path: Path) -> None:
    path = tmp_path / "edits.ndjson.gz"
    content = feed(3000)
    path.write_bytes(gzip.compress(b"\n".join(content)))
    first, second = (pub_file(cdrs, path, "file.") for _ in range(2))
    assert (first.code, second.code) == (0, 0), first.text + second.text
    summary = lines(first.out)[0]["summary"]
    assert (summary["lines"], summary["stored"], summary["duplicates"], summary["failed"]) == (3000, 3000, 0, 0)
    summary = lines(second.out)[0]["summary"]
    assert (summary["lines"], summary["stored"], summary["duplicates"], summary["failed"]) == (3000, 0, 3000, 0)
    got = client(cdrs.port, "sub", "file.>", "--from", "earliest", "--json", "--count", "3000", timeout=30)
    events: dict[str, list[bytes]] = {}
    for line in got.out.encode().splitlines():
        events.setdefault(json.loads(line)["cdrsstream"], []).append(line)
    for channel in range(5):
        mine = [line for line in content if b'"#c%d.wiki"' % channel in line]
        of_channel = events[f"file.c{channel}.wiki"]
        assert [event.partition(b',"data":')[2] for event in of_channel] == [line + b"}" for line in mine]
        head = json.loads(of_channel[0])
        assert (head["type"], head["number"], head["time"]) == ("edit", channel, "2015-09-12T00:46:58.771Z")
        assert head["partitionkey"] == json.loads(mine[0])["page"]


def test_unusable_lines_are_named_and_the_others_stored(cdrs: CdrsProcess, tmp_path: Path) -> None:
    path = tmp_path / "mixed"
    path.write_bytes(b"\n".join([*feed(2), b"{", b'{"page":"no channel"}', b"", *feed(2, start=5)]))
    done = pub_file(cdrs, path, "mixed.")
    assert done.code == 1
    summary = lines(done.out)[0]["summary"]
    assert (summary["lines"], summary["stored"], summary["failed"]) == (6, 4, 2)
    assert "line 3:" in done.err
    assert "line 4:" in done.err


def test_a_missing_file_is_a_clear_error(cdrs: CdrsProcess, tmp_path: Path) -> None:
    done = pub_file(cdrs, tmp_path / "none", "none.")
    assert done.code == 1
    assert "cannot be read" in done.err


def test_a_restart_of_the_server_costs_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    """The server is killed while a file is being sent, and started again: the command goes on by itself."""
    path = tmp_path / "edits"
    content = feed(40_000)
    path.write_bytes(b"\n".join(content))
    with CdrsProcess(tmp_path / "server").start() as server:
        with Running(
            tmp_path / "pub", server.port, "pub", "--file", str(path), "--stream-from", "channel", "--json"
        ) as pub:
            wait_until(lambda: stored(server) > 2000, 20, "some events")
            server.kill()
            server.start()
            assert pub.process.wait(60) == 0, pub.err
            summary = lines(pub.out)[0]["summary"]
        assert summary["lines"] == len(content)
        assert summary["stored"] + summary["duplicates"] == len(content)
        assert summary["failed"] == 0
        assert stored(server) == len(content)


def stored(cdrs: CdrsProcess) -> int:
    answer = cdrs.request("GET", "/v1/streams?limit=1000")
    return sum(stream["events"] for stream in answer.json()["streams"])


def test_interrupted_pub_is_130_and_goes_on_when_run_again(tmp_path: Path) -> None:
    path = tmp_path / "edits"
    path.write_bytes(b"\n".join(feed(40_000)))
    args = ("pub", "--file", str(path), "--stream-from", "channel", "--json")
    with CdrsProcess(tmp_path / "server").start() as server:
        with Running(tmp_path / "pub", server.port, *args) as pub:
            wait_until(lambda: stored(server) > 100, 20, "some events")
            assert pub.interrupt() == 130
            assert "Traceback" not in pub.err
            assert "again" in pub.err
        again = client(server.port, *args)
        assert again.code == 0, again.text
        assert stored(server) == 40_000


# --- sub ------------------------------------------------------------------------------------------


def test_sub_filters_counts_and_shows_events_to_people(streaming: CdrsProcess) -> None:
    for kind, payload in (("a", b"1"), ("b", b'"\\u001b[31mred"')):
        headers = {"ce-specversion": "1.0", "ce-id": kind, "ce-source": "/s", "ce-type": kind}
        streaming.publish("cli.sub", payload, **headers)
    only = client(
        streaming.port, "sub", "cli.sub", "--from", "earliest", "--json", "--count", "1", "--filter",
        '[{"exact":{"type":"b"}}]',
    )  # fmt: skip
    assert lines(only.out)[0]["type"] == "b"
    shown = client(streaming.port, "sub", "cli.sub", "--from", "earliest", "--count", "2")
    assert shown.out.splitlines()[0].split() == ["cli.sub", "a", "1"]
    assert "\x1b" not in shown.out


def test_sub_ends_after_its_duration(streaming: CdrsProcess) -> None:
    done = client(streaming.port, "sub", "cli.nothing.here", "--duration", "0.5")
    assert (done.code, done.out) == (0, "")


def test_interrupted_sub_is_130(streaming: CdrsProcess, tmp_path: Path) -> None:
    with Running(tmp_path, streaming.port, "sub", ">") as sub:
        wait_until(lambda: "caught-up" in sub.err, 10, "the subscription")
        assert sub.interrupt() == 130
        assert "Traceback" not in sub.err


@each_path
def test_sub_bridges_a_crash_without_a_hole_or_a_repeat(tmp_path: Path) -> None:
    with (
        CdrsProcess(tmp_path / "server").start() as server,
        Running(tmp_path / "sub", server.port, "sub", "bridge.>", "--json", "--count", "60") as sub,
    ):
        wait_until(lambda: "caught-up" in sub.err, 10, "the subscription")
        for number in range(60):
            if number in {20, 40}:
                server.kill()
                server.start()
            assert server.publish(f"bridge.s{number % 3}", b"%d" % number).status == 201
        assert sub.process.wait(30) == 0, sub.err
        got = [event["data"] for event in lines(sub.out)]
    assert sorted(got) == list(range(60))
    for rest in range(3):
        assert [n for n in got if n % 3 == rest] == list(range(rest, 60, 3))


def test_a_closed_pipe_ends_sub_quietly(streaming: CdrsProcess) -> None:
    client(streaming.port, "pub", "cli.pipe", "1", "--count", "500")
    process = subprocess.Popen(
        [*command(), "sub", "cli.pipe", "--from", "earliest", "--json"], env=client_environment(streaming.port),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    with process.stderr:
        client(streaming.port, "pub", "cli.pipe", "1", "--count", "500")
        assert process.wait(10) == 1
        assert b"Traceback" not in process.stderr.read()


# --- nodes, streams, config -----------------------------------------------------------------------


def test_nodes_as_json_and_as_a_table(cdrs: CdrsProcess) -> None:
    wait_until(lambda: len(nodes(cdrs)) == 2, 10, "both members")
    assert {node["role"] for node in nodes(cdrs)} == {"gateway", "node"}
    table = client(cdrs.port, "nodes")
    assert table.code == 0
    assert "gateway" in table.out
    assert "live" in table.out


def nodes(cdrs: CdrsProcess) -> list[Any]:
    return list(lines(client(cdrs.port, "nodes", "--json").out)[0]["nodes"])


def test_nodes_can_be_watched(cdrs: CdrsProcess, tmp_path: Path) -> None:
    with Running(tmp_path, cdrs.port, "nodes", "--watch", "--json") as watching:
        wait_until(lambda: len(watching.out.splitlines()) >= 2, 10, "the picture and a change")
        assert "nodes" in json.loads(watching.out.splitlines()[0])
        assert watching.interrupt() == 130


def test_nodes_can_be_watched_as_a_table(cdrs: CdrsProcess, tmp_path: Path) -> None:
    with Running(tmp_path, cdrs.port, "nodes", "--watch", env={"FORCE_COLOR": "1"}) as watching:  # as on a terminal
        wait_until(lambda: watching.out.count("gateway") >= 4, 10, lambda: watching.out + watching.err)
        assert watching.process.poll() is None, watching.err
        assert watching.interrupt() == 130


def test_streams_are_listed_by_pattern(cdrs: CdrsProcess) -> None:
    for name in ("list.a", "list.b", "list.c.d"):
        assert [cdrs.publish(name, b"1").status for _ in range(2)] == [201, 201]
    found = lines(client(cdrs.port, "streams", "list.*", "--json").out)
    assert [(stream["name"], stream["events"]) for stream in found] == [("list.a", 2), ("list.b", 2)]
    assert "list.c.d" in client(cdrs.port, "streams", "list.>").out
    assert len(lines(client(cdrs.port, "streams", "list.>", "--limit", "2", "--json").out)) == 2


def test_config_shows_values_and_where_they_are_from(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[sse]\nheartbeat = 7.5\n")
    done = client(1, "config", "show", "--json", "--config", str(config), env={"CDRS_LOG_LEVEL": "warning"})
    shown = lines(done.out)[0]
    assert shown["sse.heartbeat"] == {"value": 7.5, "origin": f"file {config}", "unit": "seconds"}
    assert shown["log_level"]["origin"] == "CDRS_LOG_LEVEL"
    assert shown["gateway.port"]["origin"] == "default"
    assert client(1, "config", "show").code == 0


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"CDRS_GATEWAY__PORT": "99999"}, "0 to 65535"),
        ({"CDRS_GATEWAY__HOST": "0.0.0.0"}, "--insecure"),
        ({"CDRS_NONSENSE": "1"}, "CDRS_NONSENSE"),
        ({f"CDRS_{name}__URL": "http://x" for name in ("LOG", "REGISTRY", "STORE")}, "log.url"),
    ],
)
@pytest.mark.parametrize("args", [["config", "check"], ["up"]])
def test_wrong_settings_are_told_before_anything_starts(
    tmp_path: Path, env: dict[str, str], said: str, args: list[str]
) -> None:
    done = client(1, *args, env={"CDRS_DATA": str(tmp_path / "data"), **env})
    assert done.code == 1
    assert said in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "data").exists()


def test_version_and_help() -> None:
    assert client(1, "--version").out.startswith("cdrs 0.")
    shown = client(1, "--help").out
    for name in ("up", "gateway", "node", "pub", "sub", "nodes", "streams", "config"):
        assert name in shown


# --- demo -----------------------------------------------------------------------------------------


def test_demo_plays_the_sample_and_goes_on_serving(tmp_path: Path) -> None:
    sample = tmp_path / "sample.ndjson"
    sample.write_bytes(b"\n".join(feed(300)))
    args = ["--demo", "--demo-rate", "1000"]
    with CdrsProcess(tmp_path / "server", args, env={"CDRS_SAMPLE": str(sample)}).start() as server:
        wait_until(lambda: "300 events stored" in server.stderr(), 20, "the end of the demo")
        assert stored(server) == 300
        assert server.publish("after.demo", b"1").status == 201


def test_demo_without_a_sample_says_so(tmp_path: Path) -> None:
    with CdrsProcess(tmp_path, ["--demo"], env={"CDRS_SAMPLE": str(tmp_path / "none")}).start() as server:
        wait_until(lambda: "demo: ended" in server.stderr(), 10, "the demo's complaint")
        assert server.is_ready()


def test_progress_is_for_terminals_only(cdrs: CdrsProcess, tmp_path: Path) -> None:
    """With stderr on a terminal a bar is drawn; NO_COLOR keeps colours out of it."""
    path = tmp_path / "edits"
    path.write_bytes(b"\n".join(feed(2000)))
    leader, follower = os.openpty()
    process = subprocess.Popen(
        [*command(), "pub", "--file", str(path), "--stream-from", "channel"],
        env={**client_environment(cdrs.port), "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=follower,
    )
    os.close(follower)
    drawn = b""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            chunk = os.read(leader, 65_536)
        except OSError:
            break
        if not chunk:
            break
        drawn += chunk
    os.close(leader)
    assert process.wait(10) == 0
    assert b"events/s" in drawn
    assert b"\x1b[3" not in drawn
