"""Carries out the steps of ops/docker/Dockerfile without Docker, starts the result as Docker would, and tries it.

    python -m ops.docker.check_image [--cache DIR]

A bare Debian of the same release as the base image (debootstrap, kept in the cache) stands in for it, with Debian's own
Python of the same minor version. Every RUN goes through chroot. What comes out runs under the image's user as process 1
of its own process, mount and network name spaces, on a root that nobody can write, without any capability. Needs root.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ops.docker import dockerfile
from ops.docker.dockerfile import Instruction, Stage

PROJECT = Path(__file__).resolve().parents[2]
DOCKERFILE = PROJECT / "ops/docker/Dockerfile"
TOOLS = ("debootstrap", "chroot", "unshare", "nsenter", "mount", "ip", "cp")
PACKAGES = ("python3", "python3-venv", "ca-certificates")
"""What a ``python:…-slim`` image has and a minimal Debian has not."""
OF_THE_MACHINE = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt")
"""Lent to each RUN: how this machine reaches the network."""
LENT_VARIABLES = re.compile(r"(?i)PIP_(CERT|INDEX_URL|EXTRA_INDEX_URL|TRUSTED_HOST|DEFAULT_TIMEOUT)|\w+_proxy")
BASE_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}

INSTALLED = """
import re, sys
from importlib.metadata import distributions, requires
from pathlib import Path
name = lambda text: re.sub(r"[-_.]+", "-", re.match(r"[\\w.-]+", text)[0]).lower()
have = {name(d.metadata["Name"]) for d in distributions()}
need, todo = set(), ["cdrs"]
while todo:
    one = todo.pop()
    if one in need: continue
    need.add(one)
    todo += [name(r) for r in requires(one) or () if "extra ==" not in r and name(r) in have]
print("not needed:", *sorted(have - need))
print("programs:", *sorted(p.name for p in Path(sys.prefix, "bin").iterdir()))
"""
"""What the environment holds that cdrs does not need, directly or through others."""


class CheckError(Exception):
    """A step that did not do what it must."""


@dataclass(slots=True)
class Image:
    """A root folder, and what the Dockerfile says about running it."""

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: dict(BASE_ENVIRONMENT))
    workdir: str = "/"
    user: str = "0:0"
    labels: dict[str, str] = field(default_factory=dict[str, str])
    entrypoint: list[str] = field(default_factory=list[str])
    command: list[str] = field(default_factory=list[str])
    stop_signal: str = "SIGTERM"
    health: list[str] = field(default_factory=list[str])
    health_options: dict[str, str] = field(default_factory=dict[str, str])


def say(text: str) -> None:
    """One line of the report."""
    print(text, flush=True)


def missing() -> str:
    """Why it cannot run here; empty when it can."""
    if os.geteuid() != 0:
        return "only root can make another root folder"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def run(argv: Sequence[str | Path], *, timeout: float, environ: Mapping[str, str] | None = None) -> str:
    """Standard output of a program that must succeed."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, env=environ, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).strip()[-2000:]
        raise CheckError(f"{' '.join(map(str, argv))[:200]}: exit code {done.returncode}\n{said}")
    return done.stdout


# --- building ------------------------------------------------------------------------------------------


def base_root(cache: Path, image: str) -> Path:
    """A Debian that stands in for ``python:3.N.M-slim-RELEASE``, with ``python`` of that 3.N."""
    match = re.fullmatch(r"python:(3\.\d+)\.\d+-slim-(\w+)", image)
    if match is None:
        raise CheckError(f"{image}: only python:3.N.M-slim-RELEASE can be stood in for")
    minor, release = match.groups()
    root = cache / release
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "complete").exists():
            say(f"debootstrap {release}: once, about a minute")
            shutil.rmtree(root, ignore_errors=True)
            run(["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", release, root], timeout=900)
            (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
            (root / "complete").touch()
    version = run(["chroot", root, "python", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], timeout=20)
    if version.strip() != minor:
        raise CheckError(f"{release} has Python {version.strip()}, not {minor} as {image}")
    return root


def build(work: Path, cache: Path) -> Image:
    """Every step of every stage; the last stage's image."""
    built: dict[str, Image] = {}
    image = Image(work)
    for stage in dockerfile.stages(DOCKERFILE.read_text(encoding="utf-8")):
        image = Image(work / f"stage-{stage.name}")
        run(["cp", "-a", "--reflink=auto", base_root(cache, stage.base), image.root], timeout=300)
        _carry_out(stage, image, built)
        built[stage.name] = image
    return image


def _carry_out(stage: Stage, image: Image, built: Mapping[str, Image]) -> None:
    arguments: dict[str, str] = {}
    for step in stage.steps:
        began = time.monotonic()
        value = dockerfile.expand(step.value, {**arguments, **image.environment})
        if step.name == "RUN":
            _run_in(image, step, arguments)
        elif step.name == "COPY":
            _copy(image, value, built)
        else:
            _note(image, Instruction(step.name, value, step.line), arguments)
        if step.name in {"RUN", "COPY"}:
            say(f"  {stage.name:<6} {step.name:<4} {value[:90]}  ({time.monotonic() - began:.1f} s)")


def _note(image: Image, step: Instruction, arguments: dict[str, str]) -> None:
    """An instruction that only says how the image is to be run."""
    match step.name:
        case "ARG":
            arguments.update(dockerfile.pairs(step))
        case "ENV":
            image.environment.update(dockerfile.pairs(step))
        case "LABEL":
            image.labels.update(dockerfile.pairs(step))
        case "WORKDIR":
            image.workdir = step.value
            (image.root / step.value.lstrip("/")).mkdir(parents=True, exist_ok=True)
        case "USER":
            image.user = step.value
        case "STOPSIGNAL":
            image.stop_signal = step.value
        case "HEALTHCHECK":
            image.health_options, rest = dockerfile.options(step.value)
            image.health = Instruction("CMD", rest.removeprefix("CMD").strip(), step.line).words()
        case "ENTRYPOINT":
            image.entrypoint = step.words()
        case "CMD":
            image.command = step.words()
        case _:
            pass


def _run_in(image: Image, step: Instruction, arguments: Mapping[str, str]) -> None:
    lent = {name: value for name, value in os.environ.items() if LENT_VARIABLES.fullmatch(name)}
    script = ['mount -t proc proc "$0/proc"']
    for file in filter(os.path.exists, OF_THE_MACHINE):
        inside = image.root / file.lstrip("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.touch()
        script.append(f'mount --bind {file} "$0{file}"')
    script.append('root="$0"; exec chroot "$root" env -i --chdir="$@"')
    variables = {**lent, **arguments, **image.environment}
    inner = [image.workdir, *(f"{name}={value}" for name, value in variables.items()), *step.words()]
    outer = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", "\n".join(script)]
    run([*outer, image.root, *inner], timeout=900)


def _copy(image: Image, value: str, built: Mapping[str, Image]) -> None:
    options, rest = dockerfile.options(value)
    *sources, target = rest.split()
    inside = Path(image.workdir, target)
    into_folder = target.endswith("/") or len(sources) > 1
    from_stage = "from" in options
    source_root = built[options["from"]].root if from_stage else PROJECT
    skip = _nothing if from_stage else _ignored()
    for source in sources:
        found = source_root / source.lstrip("/")
        here = image.root / str(inside).lstrip("/")
        if found.is_dir():
            shutil.copytree(found, here, symlinks=True, dirs_exist_ok=True, ignore=skip)
            continue
        if skip(str(found.parent), [found.name]):
            raise CheckError(f".dockerignore keeps {source} out of the build")
        here = here / found.name if into_folder else here
        here.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(found, here)


def _nothing(_folder: str, _names: list[str]) -> set[str]:
    return set()


def _ignored() -> Callable[[str, list[str]], set[str]]:
    patterns = dockerfile.ignore_patterns((PROJECT / ".dockerignore").read_text(encoding="utf-8"))

    def skip(folder: str, names: list[str]) -> set[str]:
        here = Path(folder).relative_to(PROJECT)
        return {name for name in names if dockerfile.is_ignored(here / name, patterns)}

    return skip


# --- running -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Container:
    """What runs."""

    image: Image
    process: subprocess.Popen[bytes]
    pid: int
    log: Path

    def inside(self, *command: str, timeout: float = 60.0, user: str | None = None) -> subprocess.CompletedProcess[str]:
        """As ``docker exec``."""
        uid, _, gid = (user or self.image.user).partition(":")
        argv = ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--net", "--root", "-S", uid, "-G", gid]
        argv += ["env", "-i", *_variables(self.image), *command]
        return subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)


def _variables(image: Image) -> list[str]:
    return [f"{name}={value}" for name, value in image.environment.items()]


@contextmanager
def started(image: Image, log: Path) -> Generator[Container]:
    """Start it as ``docker run --read-only --tmpfs /tmp --tmpfs DATA --cap-drop ALL --network none``."""
    uid, _, gid = image.user.partition(":")
    script = f"""
        ip link set lo up
        mount --bind "$0" "$0"
        mount -o remount,bind,ro "$0"
        mount -t proc proc "$0/proc"
        mount -t tmpfs -o size=16m,mode=1777 tmpfs "$0/tmp"
        mount -t tmpfs -o size=64m,mode=0755,uid={uid},gid={gid} tmpfs "$0{image.environment["CDRS_DATA"]}"
        root="$0"
        exec chroot "$root" setpriv --reuid {uid} --regid {gid} --clear-groups --no-new-privs \\
            --inh-caps=-all --bounding-set=-all env -i --chdir={image.workdir} "$@"
    """
    outer = ["unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child", "sh", "-ec", script]
    argv = [*outer, str(image.root), *_variables(image), *image.entrypoint, *image.command]
    with log.open("wb") as output:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield Container(image, process, _child_of(process), log)
    finally:
        process.kill()
        process.wait(10)


def _child_of(process: subprocess.Popen[bytes]) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until = time.monotonic() + 10
    while time.monotonic() < until and process.poll() is None:
        if found := children.read_text().split():
            return int(found[0])
        time.sleep(0.01)
    raise CheckError("it did not start")


def try_it(container: Container) -> None:
    """Health, identity, one event in and out, the root folder, and the stop."""
    waited = _healthy(container)
    say(f"ok  healthy after {waited:.1f} s: {' '.join(container.image.health)}")

    status = Path(f"/proc/{container.pid}/status").read_text(encoding="ascii")
    facts = dict(re.findall(r"(?m)^(Uid|CapEff|CapBnd|NoNewPrivs|NSpid):\s+(.+)$", status))
    uid = container.image.user.partition(":")[0]
    _must(set(facts["Uid"].split()) == {uid} and uid != "0", f"it runs as {facts['Uid']}")
    _must(int(facts["CapEff"], 16) == int(facts["CapBnd"], 16) == 0 and facts["NoNewPrivs"] == "1", f"{facts}")
    _must(facts["NSpid"].split()[-1] == "1", f"it is not process 1: {facts['NSpid']}")
    say(f"ok  process 1, user {uid}, no capability, no new privileges")

    written = container.inside("touch", "/opt/cdrs/x", user="0:0")
    _must("Read-only file system" in written.stderr, f"the root can be written: {written.stderr}")
    say("ok  the root folder is read-only, even for root")

    sent = container.inside("cdrs", "pub", "orders", '{"n":1}')
    _must(sent.returncode == 0, f"pub: {sent.stderr}")
    got = container.inside("cdrs", "sub", "orders", "--from", "earliest", "--count", "1", "--json")
    _must(got.returncode == 0 and json.loads(got.stdout)["data"] == {"n": 1}, f"sub: {got.stdout}{got.stderr}")
    say("ok  an event went in and came out")

    unused = container.inside("python", "-c", INSTALLED).stdout
    _must(bool(re.search(r"(?m)^not needed:$", unused)), unused)
    _must(not re.search(r"(?m)^programs:.* (pip|hatchling)", unused), unused)
    compilers = [name for name in ("cc", "gcc", "make") if container.inside("which", name).returncode == 0]
    _must(not compilers, f"there are {compilers}")
    say("ok  nothing is installed that cdrs does not need, and nothing that builds")

    began = time.monotonic()
    os.kill(container.pid, signal.Signals[container.image.stop_signal])
    code = container.process.wait(20)
    _must(code == 0, f"exit code {code} after {container.image.stop_signal}\n{container.log.read_text()[-2000:]}")
    say(f"ok  {container.image.stop_signal}: exit code 0 after {time.monotonic() - began:.1f} s")


def _healthy(container: Container) -> float:
    options = container.image.health_options
    began, said = time.monotonic(), ""
    while (waited := time.monotonic() - began) < dockerfile.seconds(options["start-period"]):
        if container.process.poll() is not None:
            raise CheckError(f"it ended: {container.log.read_text()[-2000:]}")
        try:
            asked = container.inside(*container.image.health, timeout=dockerfile.seconds(options["timeout"]))
        except subprocess.TimeoutExpired:  # as Docker: a check that failed
            said = f"no answer within {options['timeout']}"
            continue
        if asked.returncode == 0:
            return waited
        said = asked.stdout + asked.stderr
        time.sleep(dockerfile.seconds(options["start-interval"]))
    raise CheckError(f"never healthy: {said}\n{container.log.read_text()[-2000:]}")


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise CheckError(otherwise)


def main() -> int:
    """The command."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    cache = home / "cdrs-image"
    parser.add_argument("--cache", type=Path, default=cache, help="the bare Debian (default: %(default)s)")
    given = parser.parse_args()
    if reason := missing():
        say(f"cannot run here: {reason}")
        return 2
    with tempfile.TemporaryDirectory(prefix="cdrs-image-") as folder:
        work = Path(folder)
        work.chmod(0o755)
        try:
            image = build(work, given.cache)
            with started(image, work / "log") as container:
                try_it(container)
        except (CheckError, subprocess.TimeoutExpired) as error:
            say(f"FAILED: {error}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
