"""Processes that outlive the one that started them, told apart from later ones that got the same number."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ops.engines.config import Member
from ops.engines.errors import EngineError

MARK = "ENGINES_SET_FOLDER"
"""Environment variable of everything a set starts, and of what that starts in turn: `down` searches for it at last."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What to run."""

    argv: tuple[str | Path, ...]
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Process:
    """A process that cannot be mistaken for another: its number, and when it began (clock ticks since the boot)."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that has this number now; None when there is none, or only the remains of one that has ended."""
        fields = _stat(pid)
        return cls(pid, int(fields[19])) if fields and fields[0] not in {"Z", "X"} else None

    def is_alive(self) -> bool:
        """It still runs, or is stopped by a signal."""
        return Process.of(self.pid) == self

    def is_paused(self) -> bool:
        """It is stopped by a signal."""
        fields = _stat(self.pid)
        return bool(fields) and fields[0] == "T" and self.is_alive()

    def cpu_seconds(self) -> float:
        """Processor time it has used so far."""
        fields = _stat(self.pid)
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0

    def memory(self) -> int:
        """Resident bytes."""
        fields = _stat(self.pid)
        return int(fields[21]) * os.sysconf("SC_PAGE_SIZE") if fields else 0

    def send(self, number: signal.Signals) -> bool:
        """Send a signal to this very process; False when it is gone."""
        with contextlib.suppress(ProcessLookupError), self._handle() as handle:
            signal.pidfd_send_signal(handle, number)
            return True
        return False

    def wait(self, timeout: float) -> bool:
        """Wait until it has ended; False when it has not in time."""
        with contextlib.suppress(ProcessLookupError), self._handle() as handle:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            return bool(poll.poll(max(timeout, 0) * 1000))
        return True

    @contextlib.contextmanager
    def _handle(self) -> Generator[int]:
        handle = os.pidfd_open(self.pid)
        try:
            # Looked at after the handle was taken: if it is the right one now, the handle is the right one for ever.
            if not self.is_alive():
                raise ProcessLookupError(self.pid)
            yield handle
        finally:
            os.close(handle)


@dataclass(frozen=True, slots=True)
class Running:
    """A member and its process."""

    member: Member
    process: Process
    log_from: int
    """Where its log file stood when this process was started."""


def start(launch: Launch, member: Member, mark: Path) -> Running:
    """Start a member, detached: own session, no input, output appended to its log file."""
    environment = {**os.environ, **launch.environment, MARK: str(mark)}
    with member.log_file.open("ab") as log:
        log_from = log.seek(0, os.SEEK_END)
        try:
            child = subprocess.Popen(
                [str(part) for part in launch.argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=member.folder,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise EngineError(f"{member.name} could not be started: {error}") from error
    process = Process.of(child.pid)
    if process is None:
        raise EngineError(f"{member.name} ended at once: {tail(member.log_file, log_from)}")
    # It is to outlive this program; nobody here will wait for it through the standard library.
    child.returncode = 0
    return Running(member, process, log_from)


def stop(processes: Sequence[Process], grace: float) -> None:
    """SIGTERM to all, then, after ``grace`` seconds, SIGKILL to those that are left; ended when this returns."""
    if grace > 0:
        for process in processes:
            process.send(signal.SIGTERM)
            process.send(signal.SIGCONT)  # a paused one hears nothing else
        wait_all(processes, grace)
    for process in processes:
        process.send(signal.SIGKILL)
    if left := wait_all(processes, 10.0):
        raise EngineError(f"these did not end on SIGKILL: {', '.join(str(process.pid) for process in left)}")


def wait_all(processes: Sequence[Process], timeout: float) -> list[Process]:
    """Wait until all have ended; those that have not in time."""
    deadline = time.monotonic() + timeout
    return [process for process in processes if not process.wait(deadline - time.monotonic())]


def marked(variable: str, folder: Path) -> list[Process]:
    """Every process of this user that has this folder in that environment variable: what was started with it, directly
    or not."""
    wanted = f"{variable}={folder}".encode()
    found: list[Process] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        process = Process.of(int(entry.name))
        with contextlib.suppress(OSError):
            if process and wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(process)
    return found


def boot_id() -> str:
    """What changes when the machine starts anew, which is when process numbers and start times lose their meaning."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def tail(file: Path, start_at: int = 0, lines: int = 12) -> str:
    """The last lines of a log file."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(start_at, stream.seek(0, os.SEEK_END) - 16_384))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.strip().splitlines()[-lines:])


def _stat(pid: int) -> list[str]:
    """/proc/PID/stat from its third field (state) on; the second may hold blanks and brackets."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text[text.rindex(")") + 2 :].split()
