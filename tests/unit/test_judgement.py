"""Design rule 3 as pure logic."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from cdrs.judgement import FOREIGN_BASE, UNKNOWN, Judge, Kind, Verdict
from shared.records import Record, identity_of

W = 8


def record(offset: int, name: str, base: int) -> Record:
    identity = identity_of("s", "/test", name)
    return Record(0, offset, 1000 + offset, identity, "s", None, name.encode(), 0, 0, 0, base)


def judged(records: list[Record], *, window: int = W, start: int = 0, whole: bool = True) -> list[Verdict]:
    judge = Judge(window, start=start, whole=whole)
    return judge.judge(records, upto=records[-1].offset + 1 if records else start)


def kinds(records: list[Record]) -> list[Kind]:
    return [verdict.kind for verdict in judged(records)]


def fillers(first: int, count: int) -> list[Record]:
    return [record(offset, f"filler {offset}", offset) for offset in range(first, first + count)]


def test_a_second_copy_within_the_window_is_a_duplicate_of_the_first() -> None:
    verdicts = judged([record(0, "a", 0), record(1, "b", 0), record(2, "a", 0)])
    assert verdicts[2] == Verdict(Kind.DUPLICATE, 0, 1000)


def test_a_chain_of_copies_reaches_further_than_the_window() -> None:
    log = [record(0, "a", 0), *fillers(1, W - 1), record(W, "a", 1), *fillers(W + 1, W - 1), record(2 * W, "a", W)]
    assert judged(log)[-1] == Verdict(Kind.DUPLICATE, 0, 1000)


def test_the_window_is_inclusive_at_its_lower_end() -> None:
    assert kinds([record(0, "a", 0), *fillers(1, W - 1), record(W, "a", 0)])[-1] is Kind.DUPLICATE
    assert kinds([record(0, "a", 0), *fillers(1, W), record(W + 1, "a", 1)])[-1] is Kind.VISIBLE


def test_void_is_decided_by_the_age_of_the_lookup_to_the_record() -> None:
    assert kinds([*fillers(0, W), record(W, "a", 0)])[-1] is Kind.VISIBLE
    assert kinds([*fillers(0, W + 1), record(W + 1, "a", 0)])[-1] is Kind.VOID


def test_a_lookup_in_another_epoch_is_void() -> None:
    assert kinds([record(0, "a", FOREIGN_BASE)]) == [Kind.VOID]


def test_a_void_record_hides_nothing() -> None:
    log = [*fillers(0, W + 1), record(W + 1, "a", 0), record(W + 2, "a", W + 1)]
    assert kinds(log)[-2:] == [Kind.VOID, Kind.VISIBLE]


def test_an_appender_that_was_stopped_between_lookup_and_append_is_void() -> None:
    """Scenario 1: A looks up and stops; the event is stored through B; more than W later A's copy arrives."""
    log = [*fillers(0, 3), record(3, "a", 3), *fillers(4, W + 2), record(W + 6, "a", 3)]
    assert kinds(log)[3] is Kind.VISIBLE
    assert kinds(log)[-1] is Kind.VOID


def test_an_appender_that_was_stopped_for_less_than_the_window_wrote_a_duplicate() -> None:
    log = [*fillers(0, 3), record(3, "a", 3), *fillers(4, W - 3), record(W + 1, "a", 3)]
    assert judged(log)[-1] == Verdict(Kind.DUPLICATE, 3, 1003)


def test_the_lookup_knows_the_visible_one_and_forgets_only_what_the_store_has() -> None:
    judge = Judge(W, start=0, whole=True)
    log = [record(0, "a", 0), record(1, "a", 0), *fillers(2, 3 * W)]
    judge.judge(log, upto=len(log))
    seen = judge.lookup(log[0].identity)
    assert seen is not None
    assert (seen.first, seen.last) == (0, 1)
    judge.forget(checkpoint=1)
    assert judge.lookup(log[0].identity) is not None, "the store does not answer for offset 1"
    judge.forget(checkpoint=2)
    assert judge.lookup(log[0].identity) is None
    judge.forget(checkpoint=len(log))
    assert len(judge) == W


def test_the_index_is_complete_until_it_forgets_or_if_it_began_late() -> None:
    judge = Judge(W, start=0, whole=True)
    log = fillers(0, 3 * W)
    judge.judge(log[: W + 1], upto=W + 1)
    judge.forget(checkpoint=0)
    assert judge.is_complete
    judge.judge(log[W + 1 :], upto=len(log))
    judge.forget(checkpoint=0)
    assert judge.is_complete, "nothing is in the store, so nothing was forgotten"
    judge.forget(checkpoint=1)
    assert not judge.is_complete
    assert not Judge(W, start=0).is_complete
    assert not Judge(W, start=5, whole=True).is_complete


def test_a_judge_that_began_late_says_where_it_does_not_know_the_original() -> None:
    log = [record(0, "a", 0), *fillers(1, 3), record(4, "a", 3), *fillers(5, W - 1), record(W + 4, "a", 5)]
    late = judged(log[2:], start=2, whole=False)
    assert late[-1] == Verdict(Kind.DUPLICATE, UNKNOWN, 1004)


offsets_apart = st.integers(0, 2 * W)


@dataclass
class Appender:
    """Looks up honestly at one moment, and appends at another, or never."""

    name: str
    base: int = -1

    def look_up(self, log: list[Record]) -> None:
        verdicts = judged(log)
        identity = identity_of("s", "/test", self.name)
        known = any(r.identity == identity and v.kind is Kind.VISIBLE for r, v in zip(log, verdicts, strict=True))
        self.base = -1 if known else len(log)

    def append(self, log: list[Record]) -> None:
        if self.base >= 0:
            log.append(record(len(log), self.name, self.base))


steps = st.lists(
    st.tuples(st.sampled_from(["look up", "append", "fill"]), st.integers(0, 5), st.integers(1, 2 * W)), max_size=60
)


def history(script: list[tuple[str, int, int]]) -> list[Record]:
    """Six appenders of three identities; each may be stopped anywhere, and may append again without a new look-up."""
    log: list[Record] = []
    appenders = [Appender(f"id {i % 3}") for i in range(6)]
    for step, who, count in script:
        if step == "fill":
            log += fillers(len(log), count)
        elif step == "look up":
            appenders[who].look_up(log)
        else:
            appenders[who].append(log)
    return log


@given(steps)
@settings(max_examples=300, deadline=None)
def test_no_identity_is_ever_visible_twice(script: list[tuple[str, int, int]]) -> None:
    log = history(script)
    seen = [r.identity for r, v in zip(log, judged(log), strict=True) if v.kind is Kind.VISIBLE]
    assert len(seen) == len(set(seen))


@given(steps)
@settings(max_examples=200, deadline=None)
def test_a_duplicate_is_answered_with_the_visible_one(script: list[tuple[str, int, int]]) -> None:
    log = history(script)
    verdicts = judged(log)
    for entry, verdict in zip(log, verdicts, strict=True):
        if verdict.kind is Kind.DUPLICATE:
            assert verdicts[verdict.first].kind is Kind.VISIBLE
            assert log[verdict.first].identity == entry.identity
            assert log[verdict.first].append_ms == verdict.append_ms


anything = st.lists(st.tuples(st.sampled_from("abc"), st.integers(-1, 3 * W)), max_size=80)


@given(anything, st.integers(0, 80), st.lists(st.integers(1, 10), max_size=20))
@settings(max_examples=300, deadline=None)
def test_judgement_is_a_pure_function_of_the_log(script: list[tuple[str, int]], start: int, cuts: list[int]) -> None:
    """Also of a log that no honest appender wrote: however it is cut into batches, wherever the reading starts, and
    whatever was forgotten in between, the verdicts are those of the whole, from W behind the start on."""
    log = [record(o, name, FOREIGN_BASE if age < 0 else max(o - age, 0)) for o, (name, age) in enumerate(script)]
    whole = judged(log)
    assert judged(log[: len(log) // 2]) == whole[: len(log) // 2]

    start = min(start, len(log))
    judge = Judge(W, start=start)
    verdicts: list[Verdict] = []
    at = start
    for cut in [*cuts, len(log)]:
        end = min(at + cut, len(log))
        verdicts += judge.judge(log[at:end], upto=end)
        judge.forget(checkpoint=end)
        at = end
    for late, exact in zip(verdicts[W:], whole[start + W :], strict=True):
        assert late.kind is exact.kind
        assert late.kind is Kind.VOID or late.first in (exact.first, UNKNOWN)
