"""Loaded by every Python process that the fault suite starts (through PYTHONPATH), and by no other. No line of the
product knows of it. SIGUSR2 stalls the event loop as a call that blocks would; SIGUSR1 writes to stderr what every task
waits for, which tells where a process hangs. Failpoints are watched where their folder is named and theirs is on the
path, too: Python loads one `sitecustomize` only."""

import asyncio
import os
import signal
import sys
import time

if os.environ.get("FAULT_SUITE_FAILPOINTS"):
    import failpoint_hook

    failpoint_hook.install()

if os.environ.get("FAULT_SUITE_STALL"):

    def _stall(_number: int, _frame: object) -> None:
        time.sleep(float(os.environ["FAULT_SUITE_STALL"]))

    def _tell(_number: int, _frame: object) -> None:
        for task in sorted(asyncio.all_tasks(), key=lambda each: each.get_name()):
            print(f"--- {task!r}", file=sys.stderr)
            task.print_stack(limit=4, file=sys.stderr)
            awaited = task.get_coro()
            while awaited is not None:
                frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None)
                if frame is not None:
                    print(f"    {frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}", file=sys.stderr)
                awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None)
        sys.stderr.flush()

    signal.signal(signal.SIGUSR2, _stall)
    signal.signal(signal.SIGUSR1, _tell)
