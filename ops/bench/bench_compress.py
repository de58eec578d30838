"""Libraries that deflate, on frames of orders and of real edits: the table in docs/performance.md.

As a view's window does it (`gateway.compression`): a sync flush behind each event, a full one each hundred. Warm is one
event straight after another; cold is with the processor's caches emptied before each. ISA-L and zlib-ng are measured
where they can be imported (``pip install isal zlib-ng`` into the environment that runs this).
"""

from __future__ import annotations

import base64
import importlib
import json
import random
import statistics
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from report import Result
from sample import load_sample, stream_of

RUNS = 3
EVENTS = 1_000
COLD = 200
"""Events of the cold measurement: emptying the caches takes a hundred times as long as deflating."""
BOUNDARY = 100
MEMORY_LEVEL = 5
CACHES = bytearray(64 << 20)
LIBRARIES = (("zlib", "zlib", (1, 4, 6)), ("ISA-L", "isal.isal_zlib", (1,)), ("zlib-ng", "zlib_ng.zlib_ng", (1, 4)))
BASELINE = "zlib 4"
_WORDS = ("alpha", "amsterdam", "buy", "closed", "delta", "filled", "limit", "london", "open", "paris", "sell", "tokyo")


def run(runs: int) -> Result:
    rows: list[list[str]] = []
    found: dict[str, list[tuple[float, ...]]] = {}
    texts = {"orders": orders(), "edits": edits()}
    known, missing = libraries()
    for number in range(runs):
        for name, made in known:
            one = (spent(made, texts["orders"]), spent(made, texts["orders"][:COLD], cold=True),
                   *(size(made, frames) for frames in texts.values()))  # fmt: skip
            found.setdefault(name, []).append(one)
            rows.append([str(number + 1), name, *(f"{value:.1f}" for value in one)])
    middle = {name: [statistics.median(each) for each in zip(*of, strict=True)] for name, of in found.items()}
    mean = {what: round(statistics.mean(map(len, frames))) for what, frames in texts.items()}
    names = ("us warm", "us cold", f"bytes of {mean['orders']}", f"bytes of {mean['edits']}")
    text = {name: f"{name}: {of[0]:.1f} us warm, {of[1]:.0f} cold, {of[2]:.0f} bytes" for name, of in middle.items()}
    return Result(
        ["run", "library, level", *names], rows,
        "; ".join(line for name, line in text.items() if name != BASELINE),
        f"{text[BASELINE]}: what the gateway uses",
        "the standard library's, unless another one is both faster and as small",
        [f"{EVENTS} frames of orders, {mean['orders']} bytes on average, and as many of edits, {mean['edits']} bytes",
         f"edits: {load_sample().origin}; zlib is {zlib.ZLIB_RUNTIME_VERSION}", *missing],
        figures={name: dict(zip(names, of, strict=True)) for name, of in middle.items()},
    )  # fmt: skip


Made = Callable[[], Any]
"""Makes a compressor, like `zlib.compressobj`."""


def libraries() -> tuple[list[tuple[str, Made]], list[str]]:
    """Those that are here, by name and level, and what to say of the others."""
    known: list[tuple[str, Made]] = []
    missing: list[str] = []
    for name, module, levels in LIBRARIES:
        try:
            library = importlib.import_module(module)
        except ImportError:
            missing.append(f"{name} is not measured: {module} cannot be imported")
            continue
        known += [(f"{name} {level}", _maker(library, level)) for level in levels]
    return known, missing


def _maker(library: Any, level: int) -> Made:
    return lambda: library.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, MEMORY_LEVEL)


def deflated(made: Made, frames: Sequence[bytes], *, cold: bool = False) -> Iterator[tuple[float, int]]:
    """Seconds of CPU and bytes of each event but the first hundred, which fill the window."""
    compressor, crc = made(), 0
    for number, frame in enumerate(frames):
        if number % BOUNDARY == 0 and number:
            compressor.flush(zlib.Z_FULL_FLUSH)
        if cold and number >= BOUNDARY:
            crc = zlib.crc32(CACHES, crc)
            for at in range(0, len(CACHES), 4096):
                CACHES[at] = crc & 1
        began = time.thread_time()
        data = compressor.compress(frame) + compressor.flush(zlib.Z_SYNC_FLUSH)
        if number >= BOUNDARY:
            yield time.thread_time() - began, len(data)


def spent(made: Made, frames: Sequence[bytes], *, cold: bool = False) -> float:
    """Median microseconds of an event."""
    return statistics.median(seconds for seconds, _ in deflated(made, frames, cold=cold)) * 1e6


def size(made: Made, frames: Sequence[bytes]) -> float:
    return statistics.mean(length for _, length in deflated(made, frames))


def alone() -> float:
    """Microseconds of an event, warm, of what the gateway uses."""
    return spent(_maker(zlib, 4), orders())


def framed(number: int, stream: str, data: bytes) -> bytes:
    """As the gateway writes an event: a cursor and a UUID of version 7, whose ends are never the same."""
    chance = random.Random(number)
    cursor = base64.urlsafe_b64encode(b"\x01\x01!\x0bn\xb9\x01" + number.to_bytes(2, "big") + chance.randbytes(4))
    name = f"01a2286d-{0x918B + number // 3:04x}-7{chance.getrandbits(12):03x}-9{chance.getrandbits(12):03x}"
    head = f'{{"specversion":"1.0","id":"{name}-{chance.getrandbits(48):012x}","source":"/v1/streams/{stream}",'
    text = f'{head}"type":"event","cdrsstream":"{stream}","data":'
    return b"id: " + cursor.rstrip(b"=") + b"\ndata: " + text.encode() + data + b"}\n\n"


def order(number: int, chance: random.Random) -> bytes:
    """222 bytes of JSON, about a third of it never the same."""
    known = {
        "n": number, "user": chance.randrange(10**6), "symbol": chance.choice(_WORDS).upper(),
        "price": round(chance.uniform(1, 1000), 2), "quantity": chance.randrange(1000), "side": chance.choice(_WORDS),
        "status": chance.choice(_WORDS), "note": "",
    }  # fmt: skip
    text = json.dumps(known, separators=(",", ":"))
    known["note"] = " ".join(chance.choice(_WORDS) for _ in range(40))[: 222 - len(text)]
    return json.dumps(known, separators=(",", ":")).encode()


def orders() -> list[bytes]:
    chance = random.Random(1)
    return [framed(number, "orders.eu", order(number, chance)) for number in range(EVENTS)]


def edits() -> list[bytes]:
    """Of the sample."""
    return [framed(number, stream_of(line), line) for number, line in enumerate(load_sample().lines[:EVENTS])]
