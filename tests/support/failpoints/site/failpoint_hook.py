"""Failpoints: a process ends itself by SIGKILL at a named step of the product, once, where a test has armed that step.

No line of the product knows of it. A step is armed by a file of its name in a folder. Whoever reaches the step takes
the file away, which only one process can, leaves ``<step>.hit`` with its pid and the time, and is gone. Modules are
patched when the process itself imports them, so none is imported for this.

A step whose place is no longer there could never be reached, and a test that arms it would show nothing: then the
process does not start, or ends where it imports the module, and says why.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from importlib.machinery import ModuleSpec, PathFinder
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import ModuleType

FOLDER = "FAULT_SUITE_FAILPOINTS"
"""The variable that names the folder of armed steps."""
EXIT_BROKEN = 1
"""A supervisor takes it for a start that failed, and does not try again."""
_COROUTINE = 0x80
"""The flag of ``async def`` in a code object; `inspect` is too much to import for that."""


class Place(NamedTuple):
    """A function of the product, and on which side of it the step is."""

    module: str
    name: str
    """In the module: ``function`` or ``Class.method``."""
    is_after: bool = False
    """When it has returned without an error; else before it begins."""


STEPS: dict[str, tuple[Place, ...]] = {
    # The body was read, its events have left the queue, and no node has been sent anything.
    "gateway-accepted": (Place("gateway.dispatch", "Dispatcher._let_go"),),
    # The node has answered that the events are stored, and nobody was told.
    "gateway-answered": (Place("gateway.dispatch", "Dispatcher.note_settled"),),
    # The identities were looked up and found absent; nothing was written.
    "node-judged": (
        Place("shared.backends.embedded.writer", "Writer._write"),
        Place("shared.backends.kafka.log", "KafkaLog.append"),
    ),
    # The append is durable, and the node has not read it back.
    "node-appended": (
        Place("shared.backends.embedded.plan", "Plan.committed"),
        Place("shared.backends.kafka.log", "KafkaLog.append", is_after=True),
    ),
    # It was read back and every receipt is there; the gateway has not been answered.
    "node-answering": (Place("cdrs.lane", "Batch.answer"),),
    # Read of the log, nothing of it in the store. Embedded: rows written, not committed.
    "persist-read": (
        Place("shared.backends.embedded.writer", "Writer._commit"),
        Place("shared.backends.mongo.store", "MongoStore.persist"),
    ),
    # The store has the batch, its checkpoint is the old one. Embedded: committed, and the node's tail knows nothing.
    "persist-written": (
        Place("shared.backends.embedded.tail", "Watch.committed"),
        Place("shared.backends.mongo.store", "move_checkpoints"),
    ),
    # The store's checkpoint is the new one, and the node has not heard so. Embedded: its lane has not.
    "persist-recorded": (
        Place("cdrs.deciding", "DecidingLane.appended"),
        Place("shared.backends.mongo.store", "move_checkpoints", is_after=True),
    ),
}
"""Step → where it is, in whichever profile."""


def install(steps: Mapping[str, Sequence[Place]] = STEPS) -> None:
    """Have these steps watched in this process; where no folder is named, do nothing."""
    if not os.environ.get(FOLDER):
        return
    watched: dict[str, list[tuple[str, Place]]] = {}
    for step, places in steps.items():
        for place in places:
            watched.setdefault(place.module, []).append((step, place))
    for module in watched:
        if not _exists(module):
            _give_up(f"there is no module {module}")
    sys.meta_path.insert(0, _Finder(watched))


def resolve(module: ModuleType, name: str) -> tuple[Any, str, FunctionType]:
    """What has the function, its name there, and the function. Raises `LookupError` where there is no such one."""
    owner: Any = module
    *classes, last = name.split(".")
    for each in classes:
        owner = vars(owner).get(each)
        if not isinstance(owner, type):
            raise LookupError(f"{module.__name__} has no class {each}")
    function = vars(owner).get(last)
    if not isinstance(function, FunctionType):
        raise LookupError(f"{module.__name__} has no function {name}")
    return owner, last, function


def _exists(module: str) -> bool:
    """By its file alone: to look for a submodule otherwise is to import its package."""
    top, *rest = module.split(".")
    spec = PathFinder.find_spec(top)
    if spec is None or spec.submodule_search_locations is None:
        return False
    return any(os.path.isfile(os.path.join(at, *rest) + ".py") for at in spec.submodule_search_locations)  # noqa: PTH113, PTH118


class _Finder:
    """Finds nothing by itself: it has the others find the modules of the table, and patches what they load."""

    def __init__(self, watched: Mapping[str, Sequence[tuple[str, Place]]]) -> None:
        self._watched = watched

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self._watched:
            return None
        others = sys.meta_path[sys.meta_path.index(self) + 1 :]
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((each for each in found if each is not None), None)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            for step, place in self._watched[name]:
                _patch(module, step, place)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


def _patch(module: ModuleType, step: str, place: Place) -> None:
    try:
        owner, name, function = resolve(module, place.name)
    except LookupError as error:
        _give_up(str(error))
    else:
        setattr(owner, name, _wrapped(function, step, is_after=place.is_after))


def _wrapped(function: FunctionType, step: str, *, is_after: bool) -> Callable[..., Any]:
    def before(*args: Any, **kwargs: Any) -> Any:
        _reach(step)
        return function(*args, **kwargs)

    def after(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        _reach(step)
        return result

    async def before_awaited(*args: Any, **kwargs: Any) -> Any:
        _reach(step)
        return await function(*args, **kwargs)

    async def after_awaited(*args: Any, **kwargs: Any) -> Any:
        result = await function(*args, **kwargs)
        _reach(step)
        return result

    if function.__code__.co_flags & _COROUTINE:
        return after_awaited if is_after else before_awaited
    return after if is_after else before


def _reach(step: str) -> None:
    armed = f"{os.environ[FOLDER]}/{step}"
    claimed = f"{armed}.{os.getpid()}"
    try:
        os.rename(armed, claimed)  # noqa: PTH104
    except FileNotFoundError:
        return
    with open(claimed, "w", encoding="ascii") as mark:  # noqa: PTH123
        mark.write(f"{os.getpid()} {time.monotonic_ns()}")
    os.rename(claimed, f"{armed}.hit")  # noqa: PTH104
    os.kill(os.getpid(), signal.SIGKILL)


def _give_up(why: str) -> None:
    # Not an exception: `site` prints those and goes on, and a product module may be imported within a `try`.
    sys.stderr.write(f"failpoints: {why}; the table of steps must follow the product\n")
    sys.stderr.flush()
    os._exit(EXIT_BROKEN)
