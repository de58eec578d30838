"""Prints, per tier of tests, what ran, what was skipped and why, from pytest's JUnit report."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections import Counter


def main(path: str) -> None:
    """Read the report and print the table."""
    seconds: Counter[str] = Counter()
    counts: dict[str, Counter[str]] = {}
    reasons: Counter[str] = Counter()
    for case in ET.parse(path).getroot().iter("testcase"):
        tier = (case.get("classname") or "?").split(".")[1:2] or ["?"]
        outcome = "passed"
        for child in case:
            if child.tag in {"failure", "error"}:
                outcome = "failed"
            elif child.tag == "skipped":
                outcome = "skipped"
                reasons[child.get("message") or "no reason given"] += 1
        counts.setdefault(tier[0], Counter())[outcome] += 1
        seconds[tier[0]] += float(case.get("time") or 0)
    for tier, found in counts.items():
        said = ", ".join(f"{number} {outcome}" for outcome, number in sorted(found.items()))
        sys.stdout.write(f"  {tier:<22} {said}, {seconds[tier]:.0f} s\n")
    for reason, number in reasons.most_common():
        sys.stdout.write(f"  skipped {number}: {reason}\n")


if __name__ == "__main__":
    main(sys.argv[1])
