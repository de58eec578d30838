"""Wine: runs the packaged mongod.exe where no mongod of the system's own is found."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ops.engines.errors import EngineError

_PROGRAMS = ("/usr/lib/wine/wine64", "wine64", "wine", "wine64-stable", "wine-stable")
_SERVERS = ("/usr/lib/wine/wineserver64", "/usr/lib/wine/wineserver", "wineserver", "wineserver-stable")
_BOOT_TIMEOUT = 120.0
_SERVER_TIMEOUT = 10.0
_DRIVE_C = "drive_c"

PREFIX = "WINEPREFIX"
"""Environment variable of everything that runs in a prefix, its server included."""


@dataclass(frozen=True, slots=True)
class Wine:
    """Wine. A program runs in a prefix (registry and drive C), and all that run in one share a server process, which
    holds their sockets: so each member has a prefix of its own, and one that hangs takes no other with it."""

    program: Path
    server: Path
    template: Path
    """A prefix made once per cache, which takes ten seconds."""

    def environment(self, prefix: Path) -> Mapping[str, str]:
        """Variables for whatever runs in the prefix."""
        return {
            PREFIX: str(prefix),
            "WINEARCH": "win64",
            "WINEDEBUG": "-all",
            "WINELOADER": str(self.program),
            "WINESERVER": str(self.server),
            # Neither .NET nor a browser is wanted, and without a display nobody could be asked. The C++ runtime is the
            # one beside the program (`install`).
            "WINEDLLOVERRIDES": "mscoree,mshtml=;msvcp140,vcruntime140,vcruntime140_1=n",
            "DISPLAY": "",
        }

    def make_template(self) -> None:
        """Make the prefix that all sets copy, unless it is there."""
        if self.template.is_dir():
            return
        new = self.template.with_name(self.template.name + ".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        environment = {**os.environ, **self.environment(new)}
        try:
            subprocess.run(
                [self.program, "wineboot", "-i"],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_BOOT_TIMEOUT,
                check=True,
            )
            # It writes its registry to disk when the last program of the prefix has gone.
            subprocess.run([self.server, "-w"], env=environment, timeout=_BOOT_TIMEOUT, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            raise EngineError(f"wine could not make its prefix: {error}") from error
        finally:
            self.end(new)
        new.rename(self.template)

    def prepare(self, prefix: Path) -> None:
        """Make a prefix: its own registry, and so its own server; drive C, 700 MB of libraries that are only read, is
        the template's."""
        if not prefix.is_dir():
            new = prefix.with_name(prefix.name + ".new")
            shutil.rmtree(new, ignore_errors=True)
            shutil.copytree(self.template, new, symlinks=True, ignore=shutil.ignore_patterns(_DRIVE_C))
            (new / _DRIVE_C).symlink_to(self.template / _DRIVE_C)
            new.rename(prefix)

    def end(self, prefix: Path) -> None:
        """End everything that runs in the prefix; harmless when nothing does."""
        environment = {**os.environ, **self.environment(prefix)}
        for option in ("-k", "-w"):
            try:
                subprocess.run(
                    [self.server, option],
                    env=environment,
                    capture_output=True,
                    timeout=_SERVER_TIMEOUT,
                    check=False,  # not 0 when nothing runs
                )
            except (OSError, subprocess.TimeoutExpired):
                return  # what is left is found by its mark


def find(template: Path) -> Wine | None:
    """Wine on this system; None when it is not installed."""
    program, server = _first(_PROGRAMS), _first(_SERVERS)
    return Wine(program, server, template) if program and server else None


def windows_path(path: Path) -> str:
    """An absolute path as programs under wine see it: drive Z is the root folder."""
    return "Z:" + str(path).replace("/", "\\")


def _first(names: tuple[str, ...]) -> Path | None:
    return next((Path(found) for name in names if (found := shutil.which(name))), None)
