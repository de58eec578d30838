"""The real job's input: 39,244 edits to Wikipedia; where the file is not there, a generated feed of the same shape."""

from __future__ import annotations

import functools
import gzip
import json
import os
import random
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NAME = "wikipedia-edits-2015-09-12.ndjson.gz"
EVENTS = 39_244
_ROOT = Path(__file__).resolve().parents[2]

# How many edits each wiki has in the real file: very uneven.
_COUNTS = {
    "en": 11549, "vi": 9747, "de": 2523, "fr": 2099, "ru": 1386, "it": 1383, "es": 1256, "zh": 1126, "uz": 983,
    "ja": 749, "pl": 565, "ko": 533, "ca": 478, "pt": 472, "nl": 445, "ar": 423, "hu": 289, "uk": 263, "el": 251,
    "he": 246, "sv": 244, "fi": 244, "cs": 222, "fa": 219, "tr": 208, "no": 169, "sr": 168, "hy": 153, "id": 110,
    "da": 96, "ro": 76, "bg": 75, "gl": 65, "ce": 60, "et": 52, "simple": 39, "sk": 33, "la": 33, "be": 33, "nn": 26,
    "eo": 22, "hr": 22, "sl": 21, "lt": 20, "hi": 19, "sh": 14, "eu": 13, "ms": 11, "kk": 9, "war": 1, "min": 1,
}  # fmt: skip
_WORDS = {
    "ru": "правка статьи об истории города", "zh": "维基百科 条目 编辑 历史 地理", "ja": "記事の編集 ページの更新 出典",
    "ko": "문서 편집 역사 지리 분류", "ar": "تعديل مقالة عن تاريخ المدينة", "he": "עריכת ערך על תולדות העיר",
    "fa": "ویرایش مقاله دربارهٔ تاریخ شهر", "el": "επεξεργασία άρθρου για την πόλη", "hy": "հոդվածի խմբագրում",
    "hi": "लेख का संपादन इतिहास", "vi": "sửa đổi bài viết về thành phố", "uk": "редагування статті про місто",
    "en": "edited the article's history \\ \"quoted\" 😀 [[link|text]]",
}  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """Lines as bytes without their line end, in file order."""

    path: Path
    origin: str
    lines: tuple[bytes, ...]

    @functools.cached_property
    def streams(self) -> tuple[str, ...]:
        """The stream of each line."""
        return tuple(stream_of(line) for line in self.lines)

    def of(self, streams: Sequence[str] | None = None) -> dict[str, list[bytes]]:
        """Lines per stream, in file order; all streams, or those named."""
        wanted = None if streams is None else set(streams)
        split: dict[str, list[bytes]] = {}
        for stream, line in zip(self.streams, self.lines, strict=True):
            if wanted is None or stream in wanted:
                split.setdefault(stream, []).append(line)
        return split

    def part(self, events: int, folder: Path) -> Sample:
        """The first so many lines, as a file of their own."""
        path = folder / f"first-{events}.ndjson"
        lines = self.lines[:events]
        path.write_bytes(b"\n".join(lines) + b"\n")
        return Sample(path, f"{self.origin}, the first {events:,} lines", lines)


def stream_of(line: bytes) -> str:
    """``wiki.`` + channel without its ``#``."""
    return "wiki." + re.sub("^#", "", json.loads(line)["channel"])


@functools.cache
def load_sample() -> Sample:
    """`CDRS_SAMPLE`, else the file beside the checkout, else a generated one; ``origin`` says which."""
    named = os.environ.get("CDRS_SAMPLE")
    if named:
        if not Path(named).is_file():
            raise FileNotFoundError(f"CDRS_SAMPLE names {named}, and there is no such file")
        return Sample(Path(named), "CDRS_SAMPLE", _read(Path(named)))
    path = _ROOT.parent / "shared" / "data" / NAME
    if path.is_file():
        return Sample(path, "the file beside the checkout", _read(path))
    path = Path(tempfile.gettempdir()) / f"cdrs-generated-sample-{os.getuid()}.ndjson.gz"
    lines = _generate()
    made = path.with_name(f"{path.name}.{os.getpid()}")
    with gzip.open(made, "wb", compresslevel=1) as file:
        file.write(b"\n".join(lines) + b"\n")
    made.replace(path)  # another run of the tests may be reading it
    return Sample(path, "generated, of the same shape", lines)


def _read(path: Path) -> tuple[bytes, ...]:
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    return tuple(line for line in data.split(b"\n") if line)


def _generate() -> tuple[bytes, ...]:
    """Same channels, sizes and scripts; some lines are equal to earlier ones, and times are not in order."""
    rng = random.Random(20150912)
    order = [wiki for wiki, count in _COUNTS.items() for _ in range(count)]
    rng.shuffle(order)
    made: list[bytes] = []
    for number, wiki in enumerate(order):
        if number > 100 and rng.random() < 0.01:
            twin = made[number - rng.randrange(1, 100)]
            if f'"#{wiki}.wikipedia"'.encode() in twin:
                made.append(twin)
                continue
        words = _WORDS.get(wiki, _WORDS["en"]).split()
        edit = {
            "time": f"2015-09-{rng.randrange(9, 13):02}T{rng.randrange(24):02}:{rng.randrange(60):02}:17.123Z",
            "channel": f"#{wiki}.wikipedia",
            "comment": " ".join(rng.choices(words, k=rng.randrange(1, 14))),
            "cityName": None, "isAnonymous": rng.random() < 0.1, "isRobot": rng.random() < 0.4, "namespace": "Main",
            "page": f"{rng.choice(words)} {rng.randrange(35_000)}", "user": f"{rng.choice(words)}{rng.randrange(900)}",
            "delta": rng.randrange(-900, 900), "added": rng.randrange(900), "deleted": 0, "ratio": 1.50,
        }  # fmt: skip
        made.append(json.dumps(edit, ensure_ascii=False, separators=(",", ":")).encode())
    return tuple(made)
