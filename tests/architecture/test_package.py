"""What is shipped: the wheel's content, the names it takes, the files of the project."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("cdrs", "gateway", "services", "shared")
MOST_LINES = 400
MOST_LINES_OF_A_TEST = 650
LONGER_FILES = {
    "shared/errors.py": "a list: one class for each problem",
    "shared/settings.py": "a list: one field for each setting, and the loader that only this file may hold",
}
"""Files that may be longer, and why."""


def tracked() -> list[str]:
    """Files of the project: those of version control, and new ones that it does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    (built,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(built).namelist())


def test_the_wheel_has_the_four_packages_and_nothing_else(wheel: set[str]) -> None:
    tops = {name.partition("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in wheel if ".dist-info/" not in name} == expected


def test_the_wheel_is_typed_and_brings_the_console_and_the_licence(wheel: set[str]) -> None:
    for package in PACKAGES:
        assert f"{package}/py.typed" in wheel
    assert any(name.startswith("gateway/console/") and name.endswith(".js") for name in wheel)
    assert any(name.startswith("gateway/console/") and name.endswith(".html") for name in wheel)
    assert any(name.endswith("/licenses/LICENSE") for name in wheel)


def test_nobody_else_installs_packages_of_our_names() -> None:
    found = metadata.packages_distributions()
    for package in PACKAGES:
        assert set(found.get(package, ["cdrs"])) == {"cdrs"}


def test_it_cannot_be_uploaded_by_mistake() -> None:
    assert "Private :: Do Not Upload" in metadata.metadata("cdrs").get_all("Classifier", [])


def test_files_stay_short() -> None:
    long: dict[str, int] = {}
    for name in tracked():
        if name.endswith(".py"):
            count = len((ROOT / name).read_text(encoding="utf-8").splitlines())
            if count > (MOST_LINES_OF_A_TEST if name.startswith("tests/") else MOST_LINES):
                long[name] = count
    assert set(long) <= set(LONGER_FILES), long


FORBIDDEN = re.compile(
    r"(?i)"
    # Hosts that packages came from: a lock names packages and hashes, where they are fetched from is the user's affair.
    + "|".join(["pypi" + r"\.org", "python" + "hosted", "test" + r"\.pypi"])
    # Folders of one machine.
    + r"|(?<![\w.$}/])/(?:" + "|".join(["wo" + "rk", "ro" + "ot", "opt/wh" + "eels", "home/[a-z]+"]) + r")/"
)  # fmt: skip


def test_no_file_names_a_package_host_or_a_folder_of_one_machine() -> None:
    found: list[str] = []
    for name in tracked():
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{name}:{number}" for number, line in enumerate(text.splitlines(), 1) if FORBIDDEN.search(line)]
    assert found == []


def test_the_lock_files_pin_every_requirement_by_hash() -> None:
    for name in ("requirements.lock", "requirements-dev.lock"):
        blocks = re.split(r"\n(?=[A-Za-z0-9])", (ROOT / name).read_text(encoding="utf-8"))
        for block in blocks:
            assert re.match(r"[A-Za-z0-9._-]+==", block), block[:80]
            assert "--hash=sha256:" in block, block[:80]


def test_the_lock_files_have_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = project["dependency-groups"]
    wanted = {
        "requirements.lock": [*project["project"]["dependencies"], *groups["build"]],
        "requirements-dev.lock": [
            *project["project"]["dependencies"],
            *groups["build"],
            *groups["test"],
            *groups["lint"],
        ],
    }
    for name, requirements in wanted.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        for requirement in requirements:
            package = re.match(r"[A-Za-z0-9._-]+", requirement)
            assert package is not None
            assert re.search(rf"(?mi)^{re.escape(package[0])}==", text), f"{name} lacks {requirement}: make it anew"
