"""What the bench harness reads of perf and py-spy, and what it keeps of a run."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "ops" / "bench"
MODULES = ("instructions", "report", "sampling")


@pytest.fixture
def bench() -> Iterator[dict[str, Any]]:
    """Modules of the harness, which are found by their plain names there."""
    sys.path.insert(0, str(BENCH))
    try:
        yield {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(BENCH))
        for name in MODULES:
            sys.modules.pop(name, None)


# --- instructions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("<not supported>,,instructions:u,0,100.00,,\n", None),
        ("<not counted>,,instructions:u,0,0.00,,\n", None),
        ("2481957,,instructions:u,1203113,100.00,1.02,insn per cycle\n", 2_481_957.0),
        ("1000,,cpu_atom/instructions/u,90,40.00,,\n2000,,cpu_core/instructions/u,80,60.00,,\n", 3_000.0),
        ("<not counted>,,cpu_atom/instructions/u,0,0.00,,\n2000,,cpu_core/instructions/u,80,100.00,,\n", 2_000.0),
        ("\n# started on a Sunday, instructions\n\n77,,instructions:u,5,100.00,,\n", 77.0),
        ("12,,page-faults,5,100.00,,\n", None),
        ("Error: No permission to enable instructions:u event.\n", None),
        ("", None),
    ],
)
def test_counts_are_read_from_what_perf_says(bench: dict[str, Any], text: str, count: float | None) -> None:
    assert bench["instructions"].parsed(text) == count


PERF = """#!{python}
import signal, sys
def end(*_):
    sys.stderr.write({line!r})
    sys.exit(0)
signal.signal(signal.SIGINT, end)
if "--" in sys.argv:
    end()
open({begun!r}, "w").close()
signal.pause()
"""


@pytest.mark.parametrize(
    ("line", "count"),
    [("4200,,instructions:u,5,100.00,,\n", 4_200.0), ("<not supported>,,instructions:u,0,100.00,,\n", None)],
)
def test_a_process_is_counted_where_the_machine_can(
    bench: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, count: float | None
) -> None:
    perf, begun = tmp_path / "perf", tmp_path / "begun"
    perf.write_text(PERF.format(python=sys.executable, line=line, begun=str(begun)))
    perf.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    module = bench["instructions"]

    def has_begun(process: subprocess.Popen[str]) -> None:
        while not begun.exists():
            assert process.poll() is None

    monkeypatch.setattr(module, "_wait_until_it_counts", has_begun)
    with module.counting([os.getpid()]) as counted:
        assert counted.value is None
    assert counted.value == count
    assert module.is_supported() is (count is not None)
    assert module.note() == (module.MISSING if count is None else module.COUNTED)
    assert module.column() == ([] if count is None else ["instructions/delivery"])


def test_without_perf_nothing_is_counted(
    bench: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with bench["instructions"].counting([os.getpid()]) as counted:
        pass
    assert counted.value is None


def test_instructions_of_a_delivery_are_the_median_of_all_runs_or_nothing(bench: dict[str, Any]) -> None:
    module = bench["instructions"]
    runs = [{"instructions": 100.0 * n, "deliveries": 10} for n in (1, 2, 9)]
    assert module.middle(runs) == 20.0
    assert module.middle([*runs, {"instructions": None, "deliveries": 10}]) is None


# --- profiles ------------------------------------------------------------------------------------

COLLAPSED = f"""process 7:"python cdrs up";main (services/cli/main.py:3);Hub.sweep (gateway/hub.py:40) 6
process 7:"python cdrs up";main (services/cli/main.py:3);Hub.sweep (gateway/hub.py:44) 2
main (services/cli/main.py:3);run (asyncio/runners.py:9);f;poll ({BENCH.parents[1]}/venv/site-packages/a/b.py:1) 1
_bootstrap (threading.py:1);_worker (concurrent/futures/thread.py:81) 900
nothing
"""


def test_a_profile_names_functions_by_their_own_time_and_with_what_they_called(bench: dict[str, Any]) -> None:
    module = bench["sampling"]
    assert module.table("s2") == ""
    module.begin()
    module._found.update(module.stacks(COLLAPSED))
    title, samples, _, own_head, *rest = module.table("s2").splitlines()
    assert title == "s2"
    assert samples.startswith("9 samples")
    own, total = rest[: rest.index("")], rest[rest.index("") + 2 :]
    assert own_head.split() == ["self", "function"]
    assert own == ["  88.9%  Hub.sweep (gateway/hub.py)", "  11.1%  poll (a/b.py)"]
    assert total[0] == " 100.0%  main (services/cli/main.py)"
    assert "  11.1%  f" in total


def test_a_function_is_named_without_folders_of_the_machine(bench: dict[str, Any]) -> None:
    name = bench["sampling"].function
    assert name("f (/usr/lib/python3.11/asyncio/runners.py:190)") == "f (asyncio/runners.py)"
    assert name(f"g ({BENCH}/machine.py:3)") == "g (ops/bench/machine.py)"
    assert name("[unknown]") == "[unknown]"


def test_a_server_is_sampled_while_it_is_used(
    bench: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = tmp_path / "py-spy"
    spy.write_text(
        f"#!{sys.executable}\nimport signal, sys\n"
        "def end(*_):\n"
        "    open(sys.argv[sys.argv.index('--output') + 1], 'w').write('f (a.py:1) 5\\n')\n"
        "    sys.exit(0)\n"
        f"signal.signal(signal.SIGINT, end)\nopen({str(tmp_path / 'begun')!r}, 'w').close()\nsignal.pause()\n"
    )
    spy.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    module = bench["sampling"]
    with module.sampled(os.getpid()):  # not asked for
        assert not (tmp_path / "begun").exists()
    module.begin()
    with module.sampled(os.getpid()):
        while not (tmp_path / "begun").exists():
            signal.sigtimedwait([], 0.01)
    assert module._found == {("f (a.py)",): 5}


# --- what is kept --------------------------------------------------------------------------------


def test_a_run_is_kept_with_its_rows_beside_runs_that_had_none(
    bench: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = bench["report"]
    monkeypatch.setattr(report, "KEPT", tmp_path)
    old = [{"date": "2026-01-01", "commit": "abc", "figures": {"cdrs": {"us": 1.5}}}]
    path = tmp_path / "s2.json"
    path.write_text(json.dumps(old, indent=1) + "\n")
    assert report.last("s2") == old[0]
    result = report.Result(
        ["run", "server [1]", "p99 ms"], [["1", "F", "2"], ["1", "cdrs, x", "3"]], "figure", "baseline", "target",
        figures={"cdrs": {"us": 1.23456}, "F": {}}, saturated=["cdrs"],
    )  # fmt: skip
    monkeypatch.setattr(report, "commit", lambda: "def")
    report.keep("s2", "a test", result)
    kept = json.loads(path.read_text())
    assert kept[0] == old[0]
    assert kept[1].items() >= {"commit": "def", "figures": {"cdrs": {"us": 1.235}}, "saturated": ["cdrs"]}.items()
    assert kept[1]["columns"] == ["run", "server [1]", "p99 ms"]
    assert kept[1]["rows"] == [["1", "F", "2"], ["1", "cdrs, x", "3"]]
    text = path.read_text()
    assert text.startswith(json.dumps(old, indent=1)[:-2]), "what was there is written as it was"
    assert '   ["1", "cdrs, x", "3"]\n' in text
    assert path.with_suffix(".png").exists()


def test_a_benchmark_that_cannot_tell_says_nothing_of_saturation(bench: dict[str, Any]) -> None:
    report = bench["report"]
    result = report.Result(["a"], [["b"]], "", "", "", figures={"cdrs": {"x": 1.0}})
    assert "saturated" not in report.kept(result)
