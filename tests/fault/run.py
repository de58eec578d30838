"""The fault suite's command line; ``scripts/faults`` starts it."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT)]

from cdrs_process import WRITE_PATHS  # noqa: E402
from faults.nemesis import FAULTS  # noqa: E402
from faults.suite import Progress, Run, run, steps, table, write_summary  # noqa: E402
from faults.systems import CannotRun, Distributed, System  # noqa: E402

PROFILES = ("embedded", "distributed")
SIMULATED = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 every rule held, 1 one was broken, 2 wrong usage, 3 this machine cannot run it, 130 broken off."""
    parser = _parser()
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # children are ended then, too
    try:
        if options.simulate:
            return _simulate(options)
        return _inject(parser, options)
    except KeyboardInterrupt:
        print("faults: broken off; every process that was started has been ended", file=sys.stderr)
        return 130
    except CannotRun as reason:
        print(f"faults: {reason}", file=sys.stderr)
        return 3


def _parser() -> argparse.ArgumentParser:
    known = "\n".join(f"  {name:<5}{fault.about} ({', '.join(fault.profiles)})" for name, fault in FAULTS.items())
    parser = argparse.ArgumentParser(
        prog="scripts/faults",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Hurt real processes under load and judge what came of it from histories alone; or run seeded\n"
        "schedules of the same product code on model engines and virtual time (--simulate).",
        epilog=f"faults:\n{known}",
    )
    parser.add_argument("--seed", type=_seed, metavar="N", help="what is drawn from it: order, targets, durations; "
                        "default: from the clock. With --simulate: run this very schedule")  # fmt: skip
    parser.add_argument("--faults", type=_names, metavar="F1,F7", help="default: all of the profile")
    parser.add_argument("--seconds", type=_seconds, metavar="S", help="how long to hurt (default: each fault once), "
                        f"or to simulate (default {SIMULATED:g})")  # fmt: skip
    parser.add_argument("--profile", choices=PROFILES, default="embedded", help="default: %(default)s")
    parser.add_argument("--write-path", choices=WRITE_PATHS, default=WRITE_PATHS[0],
                        help="how gateways put streams to subscribers (default: %(default)s)")  # fmt: skip
    parser.add_argument("--simulate", action="store_true", help="schedules in the simulation instead of processes")
    parser.add_argument("--set", default="faults", metavar="NAME", help="set of engines for the distributed profile; "
                        "its servers are killed (default: %(default)s)")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="where histories go (default: fault-runs/…)")
    return parser


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 12:
        raise argparse.ArgumentTypeError(f"a seed is a whole number from 0 to 999999999999, not {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"seconds are a number above 0, at most 86400, not {text!r}")
    return seconds


def _names(text: str) -> list[str]:
    names = [name.strip().upper() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in FAULTS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown) or 'list'}; known are {', '.join(FAULTS)}")
    return list(dict.fromkeys(names))


def _chosen(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[str]:
    fitting = [name for name, fault in FAULTS.items() if options.profile in fault.profiles]
    if options.faults is None:
        return fitting
    wrong = [name for name in options.faults if name not in fitting]
    if wrong:
        parser.error(f"{', '.join(wrong)} cannot happen on the {options.profile} profile; there are "
                     f"{', '.join(fitting)}")  # fmt: skip
    return list(options.faults)


def _inject(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    names = _chosen(parser, options)
    if options.profile == "distributed" and options.set == "default":
        parser.error("the set 'default' is for everybody; give a set of its own: its servers are killed")
    seed = int(time.time()) % 10**6 if options.seed is None else options.seed
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder = (options.out or ROOT / "fault-runs" / f"{stamp}-{options.profile}-seed{seed}").absolute()
    if folder.exists() and any(folder.iterdir()):
        parser.error(f"{folder} is not empty")
    path, own_clock = options.write_path, "F36" in names
    system = (
        Distributed(folder / "system", options.set, write_path=path, own_clock=own_clock)
        if options.profile == "distributed"
        else System(folder / "system", write_path=path, own_clock=own_clock)
    )
    progress = Progress()
    try:
        outcome = run(system, names=names, seed=seed, seconds=options.seconds or 0.0, folder=folder, tell=progress)
    finally:
        progress.end()
    write_summary(outcome, folder, system)
    return _report(outcome, folder, options)


def _report(outcome: Run, folder: Path, options: argparse.Namespace) -> int:
    print(table(outcome))
    print()
    print(f"profile {options.profile}, write path {options.write_path}, seed {outcome.seed}, "
          f"{len(outcome.figures)} faults in {outcome.seconds:.0f} s, "
          f"{outcome.connections} connections of subscribers")  # fmt: skip
    for line in steps(outcome):
        print(line)
    for name, reason in outcome.skipped.items():
        print(f"not injected: {name}: {reason}")
    print(outcome.verdict)
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    print(f"histories: {shown}")
    if not outcome.verdict.ok:
        which = f" --faults {','.join(options.faults)}" if options.faults else ""
        print(f"again: scripts/faults --profile {options.profile} --write-path {options.write_path} "
              f"--seed {outcome.seed}{which}")  # fmt: skip
    if outcome.is_broken_off:
        return 130
    return 0 if outcome.verdict.ok else 1


def _simulate(options: argparse.Namespace) -> int:
    if os.environ.get("PYTHONHASHSEED") != "0":
        print("faults: PYTHONHASHSEED is not 0; a seed may run otherwise in another process", file=sys.stderr)
    from simulation.many import schedules  # noqa: PLC0415
    from simulation.world import run_seed  # noqa: PLC0415

    if options.seed is not None and options.seconds is None:
        outcome = run_seed(options.seed, keep_trace=True)
        print("\n".join(outcome.lines))
        print(f"seed {options.seed}: {outcome.seconds:.3f} virtual seconds, trace {outcome.fingerprint}")
        print(outcome.verdict)
        return 0 if outcome.verdict.ok else 1
    progress, began, wanted = Progress(), time.monotonic(), options.seconds or SIMULATED
    first = options.seed if options.seed is not None else int(time.time()) % 10**6 * 1000
    count, failed, events, cpu = 0, 0, 0, 0.0
    try:
        for done in schedules(first, wanted):
            count, events, cpu = count + 1, events + done.events, cpu + done.cpu
            if not done.ok:
                failed += 1
                progress.end()
                print(f"scripts/faults --simulate --seed {done.seed}: {done.verdict}")
            if count % 20 == 0:
                share = min((time.monotonic() - began) / wanted, 1.0)
                progress(share, f"{count:,} schedules, {failed} failed")
    finally:
        progress.end()
    spent = time.monotonic() - began
    print(json.dumps({
        "first": first, "schedules": count, "failed": failed, "events": events, "seconds": round(spent, 1),
        "schedules_a_minute": round(60 * count / spent), "cpu_ms_a_schedule": round(1000 * cpu / max(count, 1), 1),
    }))  # fmt: skip
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
