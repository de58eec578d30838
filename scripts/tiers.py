"""Prints, for each tier of tests, what ran and what was skipped, from pytest's JUnit reports; or one line for all."""

from __future__ import annotations

import argparse
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from pathlib import Path


def _cases(folder: Path) -> Iterator[tuple[str, str, str, float]]:
    """Tier, outcome, reason and seconds of each test."""
    for path in sorted(folder.glob("*.xml")):
        for case in ET.parse(path).getroot().iter("testcase"):
            tier = (case.get("classname") or "?").split(".")[1:2] or ["?"]
            outcome, reason = "passed", ""
            for child in case:
                if child.tag in {"failure", "error"}:
                    outcome = "failed"
                elif child.tag == "skipped":
                    outcome, reason = "skipped", child.get("message") or "no reason given"
            yield tier[0], outcome, reason, float(case.get("time") or 0)


def _tell_tiers(folder: Path) -> None:
    seconds: Counter[str] = Counter()
    counts: dict[str, Counter[str]] = {}
    reasons: Counter[str] = Counter()
    for tier, outcome, reason, took in _cases(folder):
        counts.setdefault(tier, Counter())[outcome] += 1
        seconds[tier] += took
        if reason:
            reasons[reason] += 1
    for tier, found in counts.items():
        sys.stdout.write(f"  {tier:<22} {_said(found)}, {seconds[tier]:.0f} s\n")
    for reason, number in reasons.most_common():
        sys.stdout.write(f"  skipped {number}: {reason}\n")


def _said(found: Counter[str]) -> str:
    return ", ".join(f"{number} {outcome}" for outcome, number in sorted(found.items()))


def main() -> None:
    """Read the reports and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--closing", type=int, metavar="SECONDS", help="one line for all, which took so long")
    parser.add_argument("folder", type=Path, help="where the reports are")
    arguments = parser.parse_args()
    if arguments.closing is None:
        _tell_tiers(arguments.folder)
        return
    found = Counter(outcome for _, outcome, _, _ in _cases(arguments.folder))
    sys.stdout.write(f"==== {_said(found) or 'no tests ran'} in {arguments.closing}s ====\n")


if __name__ == "__main__":
    main()
