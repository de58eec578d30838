"""`scripts/faults` as people use it: what it refuses and how, a run in the simulation, a run on real processes."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from failpoints.arming import Failpoints
from faults import nemesis
from faults.checker import check
from faults.history import Actor, read_folder
from faults.nemesis import FAULTS, Scene

ROOT = Path(__file__).resolve().parents[2]
RUN = [sys.executable, str(ROOT / "tests/fault/run.py")]


def faults(*words: str, timeout: float = 110) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONHASHSEED": "0"}
    return subprocess.run([*RUN, *words], capture_output=True, text=True, timeout=timeout, env=env, check=False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seed", "x"], "a seed is a whole number from 0 to 999999999999, not 'x'"),
        (["--seed", "-1"], "expected one argument|a seed is a whole number"),
        (["--faults", "F1,F99"], "unknown F99; known are F1, F2, F3"),
        (["--faults", ","], "unknown list; known are F1"),
        (["--faults", "F14"], "F14 cannot happen on the embedded profile; there are F1, F2, F3"),
        (["--profile", "cloud"], "invalid choice: 'cloud'"),
        (["--write-path", "auto"], "invalid choice: 'auto'"),
        (["--seconds", "0"], "seconds are a number above 0"),
        (["--seconds", "soon"], "seconds are a number above 0"),
        (["--profile", "distributed", "--set", "default"], "the set 'default' is for everybody"),
        (["--out", str(ROOT)], "is not empty"),
    ],
)
def test_what_it_does_not_know_is_refused_in_words(words: list[str], said: str) -> None:
    done = faults(*words)
    assert done.returncode == 2, done
    assert re.search(said, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_set_of_engines_it_says_what_to_start(tmp_path: Path) -> None:
    done = faults("--profile", "distributed", "--set", "nobody-made-this", "--out", str(tmp_path / "out"))
    assert done.returncode == 3, done
    assert "scripts/engines up --set nobody-made-this" in done.stderr, done.stderr


def test_help_lists_every_fault() -> None:
    done = faults("--help")
    assert done.returncode == 0
    assert all(f"{name:<5}{fault.about}" in done.stdout for name, fault in FAULTS.items())


def test_a_seed_is_simulated_with_its_trace() -> None:
    done = faults("--simulate", "--seed", "11")
    assert done.returncode == 0, done
    assert re.search(r"seed 11: [0-9.]+ virtual seconds, trace [0-9a-f]{32}", done.stdout), done.stdout[-500:]
    assert faults("--simulate", "--seed", "11").stdout == done.stdout


def test_seconds_are_simulated_from_a_seed_on() -> None:
    done = faults("--simulate", "--seed", "500", "--seconds", "2")
    assert done.returncode == 0, done
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["first"] == 500
    assert summary["schedules"] > 0
    assert summary["failed"] == 0


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_each_fault_of_the_embedded_profile_breaks_no_rule(tmp_path: Path, write_path: str) -> None:
    done = faults("--seed", "20", "--write-path", write_path, "--out", str(tmp_path / "out"), timeout=380)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "no rule broken" in done.stdout


def test_no_rule_is_broken_and_the_histories_say_so_again(tmp_path: Path, write_path: str) -> None:
    out = tmp_path / "out"
    done = faults("--seed", "21", "--faults", "F7,F37", "--write-path", write_path, "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    summary = json.loads((out / "verdict.json").read_text())
    assert summary["ok"], summary
    assert summary["write_path"] == write_path
    assert sorted(figure["name"] for figure in summary["figures"]) == ["F37", "F7"]
    (step,) = summary["steps"]["F7"]
    assert f"F7 killed at: {step} (1)" in done.stdout
    again = check(read_folder(out))
    assert again.ok, str(again)
    assert (again.acknowledged, again.seen) == (summary["acknowledged"], summary["seen"])
    assert again.acknowledged > 100


def test_where_nobody_comes_to_a_step_it_is_said_and_any_moment_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nemesis, "REACHED_WITHIN", 0.05)
    with subprocess.Popen(["sleep", "60"]) as victim:
        system = SimpleNamespace(
            failpoints=Failpoints(tmp_path), pid=lambda _: victim.pid, processes=lambda: {"gateway": victim.pid}
        )
        scene = Scene(cast("Any", system), random.Random(1), Actor("nemesis"), cast("Any", None), (), (), name="F2")
        scene.decks["F2"] = ["gateway-answered"]
        FAULTS["F2"].inject(scene)
        assert victim.wait(10) == -signal.SIGKILL
    (record,) = scene.history.records
    assert (record["target"], record["step"]) == ("gateway", "any moment, as nobody came to gateway-answered")
    assert list(tmp_path.iterdir()) == [], "the step is still armed"


def test_each_moment_comes_once_before_one_comes_again() -> None:
    scene = Scene(cast("Any", None), random.Random(1), Actor("nemesis"), cast("Any", None), (), (), name="F8")
    drawn = [scene.draw("a", "b", "c") for _ in range(6)]
    assert [sorted(drawn[:3]), sorted(drawn[3:])] == [["a", "b", "c"]] * 2


@pytest.mark.slow
def test_ctrl_c_ends_it_with_everything_it_started(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*RUN, "--seed", "22", "--faults", "F37", "--seconds", "300", "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        line = ""
        while "F37" not in line:
            line = process.stderr.readline()
            assert line, "it ended by itself"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 130, (out, err)
    assert "Traceback" not in err
    assert not _left_over(str(tmp_path)), "processes are left"


def _left_over(folder: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                where = str((entry / "cwd").readlink())
            except OSError:
                continue
            if folder in where and "services" in line:
                found.append(line)
    return found
