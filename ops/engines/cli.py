"""The command line: ``scripts/engines``."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ops.engines import control, status
from ops.engines.config import ENGINES, check_set_name, default_cache, default_sets, parse_engines, settings_of
from ops.engines.errors import EngineError
from ops.engines.install import Programs, find_java, find_wine

_ABOUT = """Real engines for development and tests, as processes on loopback: three Kafka brokers, three
Hazelcast members, a three-node MongoDB replica set.

  scripts/engines up                       start them (the first time: download them), wait until they are ready
  eval "$(scripts/engines env)"            point cdrs at them
  scripts/engines kill mongo-primary       SIGKILL; also: kafka-2, kafka-leader, hazelcast (all three)
  scripts/engines start mongo              start again what is down, on its folder
  scripts/engines down --purge             end everything, remove the data
"""
_NOT_READY = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0 done, 1 told why not, 2 wrong usage, 3 (status) not ready, 130 broken off."""
    arguments = _parser().parse_args(argv)
    # A script ends what it runs in the background so; SIGINT does not reach that. Downloads under way end with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        name = check_set_name(arguments.set)
        given: Path = arguments.data or default_sets(os.environ) / name
        arguments.data = given.absolute().resolve()
        arguments.cache = arguments.cache.absolute().resolve()
        return run(arguments)
    except EngineError as error:
        print(f"engines: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("engines: broken off; `scripts/engines down` ends what was started", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"engines: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--set", default="default", metavar="NAME", help="which set; several run side by side")
    common.add_argument("--data", type=Path, metavar="DIR", help="the set's own folder: state.json, data, logs")
    common.add_argument(
        "--cache", type=Path, default=default_cache(os.environ), metavar="DIR", help="downloads (default: %(default)s)"
    )
    parser = argparse.ArgumentParser(
        prog="scripts/engines", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        found = commands.add_parser(name, parents=[common], help=about, description=about)
        found.set_defaults(run=run)
        return found

    up = command("up", _up, "start what does not run and wait until all of it is ready")
    up.add_argument("--base-port", type=int, metavar="N", help="ports are N+1 … N+33 (default: the first free block)")
    up.add_argument("--only", default=",".join(ENGINES), metavar="LIST", help="out of %(default)s")
    up.add_argument("--timeout", type=float, default=120.0, metavar="S", help="seconds to be ready (%(default)s)")
    down = command("down", _down, "end every process of the set")
    keep = down.add_mutually_exclusive_group()
    keep.add_argument("--keep", action="store_true", help="keep the data for the next `up` (the default)")
    keep.add_argument("--purge", action="store_true", help="remove it; processes are then ended with SIGKILL at once")
    shown = command("status", _status, "what runs; exit status 3 when not all is ready")
    shown.add_argument("--json", action="store_true", help="for programs")
    command("env", _env, "print the settings that point cdrs at the set, for a shell's eval")
    command("java", _java, "run a Java program that comes with Kafka, such as the console consumer").add_argument(
        "words", nargs=argparse.REMAINDER, metavar="CLASS [ARGUMENT…]"
    )
    names = "kafka-2, kafka-leader, mongo-primary, or an engine's name for all of its members"
    for name, number, about in (
        ("kill", signal.SIGKILL, "SIGKILL members"),
        ("pause", signal.SIGSTOP, "SIGSTOP members: ports stay open, nobody answers"),
        ("resume", signal.SIGCONT, "let paused members go on"),
    ):
        sub = command(name, _send, about)
        sub.set_defaults(number=number)
        sub.add_argument("names", nargs="+", metavar="MEMBER", help=names)
    command("keep", _keep, "start again each mongod under wine that hangs; `up` runs this beside the set")
    start = command("start", _start, "start members that are down on the folders they had")
    start.add_argument("names", nargs="+", metavar="MEMBER", help=names)
    start.add_argument("--timeout", type=float, default=120.0, metavar="S", help="seconds to be ready (%(default)s)")
    return parser


def _up(given: argparse.Namespace) -> int:
    control.up(
        given.data,
        given.set,
        base_port=given.base_port,
        engines=parse_engines(given.only),
        cache=given.cache,
        timeout=given.timeout,
    )
    return 0


def _down(given: argparse.Namespace) -> int:
    control.down(given.data, purge=given.purge)
    return 0


def _start(given: argparse.Namespace) -> int:
    control.start_members(given.data, given.names, cache=given.cache, timeout=given.timeout)
    return 0


def _keep(given: argparse.Namespace) -> int:
    control.keep(given.data, cache=given.cache)
    return 0


def _send(given: argparse.Namespace) -> int:
    # The names on stdout: a script that asked for mongo-primary learns which one it was.
    print("\n".join(control.send(given.data, given.names, given.number)))
    return 0


def _status(given: argparse.Namespace) -> int:
    state = control.need(given.data)
    # Nothing is started here, so where Java is does not matter.
    programs = Programs(Path(), given.cache / "jars", Path(), find_wine(given.cache))
    lacks = {
        name: status.pending(state, control.engine_of(state, name, programs), name) for name in state.engines.engines
    }
    tree = status.as_tree(state, lacks)
    print(json.dumps(tree, indent=2) if given.json else status.as_text(tree))
    return 0 if tree["ready"] else _NOT_READY


def _env(given: argparse.Namespace) -> int:
    for name, value in settings_of(control.need(given.data).engines).items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def _java(given: argparse.Namespace) -> int:
    quiet = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
    argv = [str(find_java(os.environ)), quiet, "-cp", str(given.cache / "jars" / "*"), *given.words]
    return subprocess.run(argv, check=False).returncode
