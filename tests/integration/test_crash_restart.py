"""Everything in one process, killed and started again on its folder ten times while events flow.

Nothing acknowledged is lost, nothing comes twice, subscribers go on from where they were.
"""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import pytest
from cdrs_process import CdrsProcess, client_environment, command
from exactly_once import check_attributes, check_exactly_once
from producers import BatchProducer, Ledger, NdjsonProducer, OnceProducer, Producer
from sample import load_sample
from sse_socket import Block, Subscriber, data_of
from write_paths import portable_slow

pytestmark = pytest.mark.timeout(240)

KILLS = [pytest.param(4, id="four"), pytest.param(10, id="ten", marks=pytest.mark.slow)]


def crash(cdrs: CdrsProcess) -> None:
    cdrs.kill()
    cdrs.start()


@portable_slow
@pytest.mark.parametrize("kills", KILLS)
def test_crashes_lose_nothing_acknowledged(tmp_path: Path, kills: int) -> None:
    with CdrsProcess(tmp_path / "cdrs").start() as cdrs:
        producers: list[Producer] = [
            BatchProducer(cdrs.port, "crash.batch.a"), BatchProducer(cdrs.port, "crash.batch.b"),
            NdjsonProducer(cdrs.port, "crash.lines", pause=0.01), OnceProducer(cdrs.port, "crash.once"),
        ]  # fmt: skip
        with (
            Subscriber(cdrs.port, "crash.>") as everything,
            Subscriber(cdrs.port, ["crash.batch.a", "crash.once"], name="two") as two,
            ExitStack() as stack,
        ):
            for producer in producers:
                stack.enter_context(producer)
            for kill in range(kills):
                seen = len(everything.blocks)
                everything.wait_count(seen + 150 + 37 * kill, 30)
                crash(cdrs)
            seen = len(everything.blocks)
            everything.wait_count(seen + 100, 30)
            ledgers = [p.finish() for p in producers]
            careful, once = ledgers[:3], ledgers[3]
            goal = sum(len(ledger.sent) for ledger in careful)
            last = f'"id":"{max(once.acknowledged, key=lambda i: int(i.rpartition("/")[2]))}"'.encode()
            everything.wait(
                lambda: sum(1 for b in everything.blocks if b'"crash.once"' not in b.data) >= goal
                and any(last in b.data for b in everything.blocks), 30, f"{goal} events of careful producers"
            )  # fmt: skip
            two.wait(
                lambda: sum(1 for b in two.blocks if b'"crash.once"' not in b.data) >= len(careful[0].sent)
                and any(last in b.data for b in two.blocks), 30, "its streams"
            )  # fmt: skip
            everyone = [everything, two]
            with Subscriber(cdrs.port, "crash.>", params={"from": "earliest"}, name="from earliest") as later:
                later.wait_count(len(everything.blocks), 30)
                everyone.append(later)
        for ledger in ledgers:
            print(ledger.stream, len(ledger.sent), "sent", len(ledger.acknowledged), "acknowledged", ledger.answers)
            assert not ledger.contradictions, ledger.contradictions[:3]
        for subscriber in everyone:
            check_streams(subscriber, careful, once)
            assert not [b for b in subscriber.controls if b.event == b"cdrs.gap"], subscriber.summary()
        assert everything.connections > kills // 2, everything.summary()
        check_places(ledgers)
        check_receipts_hold(cdrs, ledgers)


def check_streams(subscriber: Subscriber, careful: list[Ledger], once: Ledger) -> None:
    """Careful producers' streams arrived whole; the other's: all acknowledged, none refused, in order, once."""
    is_two = subscriber.name == "two"
    wanted = {ledger.stream: ledger.sent for ledger in careful if not is_two or ledger.stream == "crash.batch.a"}
    of_once = [b for b in subscriber.blocks if json.loads(b.data)["cdrsstream"] == once.stream]
    chosen = set(map(id, of_once))
    check_exactly_once([b for b in subscriber.blocks if id(b) not in chosen], wanted, subscriber.name)
    check_attributes(subscriber.blocks, source="ledger")
    check_once(of_once, once)


def check_once(blocks: list[Block], once: Ledger) -> None:
    numbers = [json.loads(data_of(b.data))["n"] for b in blocks]
    assert numbers == sorted(set(numbers)), "out of order, or twice"
    ids = {f"{once.stream}/{n}" for n in numbers}
    assert not set(once.acknowledged) - ids, "acknowledged and lost"
    assert not once.refused & ids, "refused with 503 and yet stored"
    assert all(data_of(b.data) == once.sent[n - 1] for b, n in zip(blocks, numbers, strict=True))


def check_places(ledgers: list[Ledger]) -> None:
    """No two events share a place."""
    places = [place for ledger in ledgers for place in ledger.acknowledged.values()]
    assert len(places) == len(set(places))


def check_receipts_hold(cdrs: CdrsProcess, ledgers: list[Ledger]) -> None:
    """Each fiftieth acknowledged event can be read by its id."""
    for ledger in ledgers:
        for event_id in list(ledger.acknowledged)[::50]:
            answer = cdrs.request("GET", f"/v1/streams/{ledger.stream}/events/{quote(event_id, safe='')}")
            assert answer.status == 200, (event_id, answer)
            number = int(event_id.rpartition("/")[2])
            assert ledger.sent[number - 1] in answer.body, (event_id, answer.body)


@portable_slow
@pytest.mark.parametrize("kills", KILLS)
def test_pub_run_again_after_each_crash_completes_the_file(tmp_path: Path, kills: int) -> None:
    """A third of the sample by `cdrs pub`; when it gives up because the server is away, it is simply run again."""
    sample = load_sample().part(13_000, tmp_path)
    total = len(sample.lines)
    due = [total * i // (kills + 1) for i in range(1, kills + 1)]
    run = [*command(), "pub", "--file", str(sample.path), "--stream-from", "channel", "--prefix", "wiki.",
           "--key-from", "page", "--time-from", "time"]  # fmt: skip
    with (
        CdrsProcess(tmp_path / "cdrs").start() as cdrs,
        Subscriber(cdrs.port, "wiki.>") as everything,
        Subscriber(cdrs.port, "wiki.en.wikipedia", cut_at=[500, 1000, 1500]) as english,
    ):
        runs, killed = 0, 0
        while True:
            runs += 1
            assert runs < 3 * kills, "pub never ends"
            with subprocess.Popen(run, env=client_environment(cdrs.port), stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as pub:  # fmt: skip
                try:
                    while pub.poll() is None:
                        if killed < kills and len(everything.blocks) >= due[killed]:
                            crash(cdrs)
                            killed += 1
                        try:
                            pub.wait(0.01)
                        except subprocess.TimeoutExpired:
                            continue
                    assert pub.stdout is not None
                    said = pub.stdout.read().decode()
                finally:
                    pub.kill()
            assert pub.returncode in {0, 1}, said
            if pub.returncode == 0 and killed == kills:
                break  # a run that ended before its kill came is repeated: it adds nothing, and is killed in its turn
        print(f"{runs} runs of pub, {killed} kills")
        everything.wait_count(total, 60)
        english.wait_count(len(sample.of(["wiki.en.wikipedia"])["wiki.en.wikipedia"]), 60)
        # Behind a last event everything that will ever come has come.
        assert cdrs.publish("wiki.en.wikipedia", b'"last"').status == 201
        for subscriber in (everything, english):
            subscriber.wait(lambda s=subscriber: s.blocks[-1].data.endswith(b'"data":"last"}'), 20, "the last event")
        check_exactly_once(everything.blocks[:-1], sample.of(), "everything")
        check_exactly_once(english.blocks[:-1], sample.of(["wiki.en.wikipedia"]), "english")
