"""A plan: what a dump would read and write, estimated from a small sample."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fastdump import _native
from fastdump._native import Copier, Slice
from fastdump.frames import Compressor
from fastdump.survey import Survey
from fastdump.url import is_url, local_path

_SAMPLES = 64
_SAMPLE_SIZE = 256 << 10


@dataclass(frozen=True)
class Plan:
    """What a dump would do. Bytes and seconds; ``size`` and ``seconds`` are estimates.

    ``seconds`` leaves the disk out: nothing is written to measure it. ``free`` is None for
    standard output and URLs.
    """

    selected: int
    present: int
    zero: int
    swapped: int
    read_swapped: bool
    headroom: int | None
    sampled: int
    ratio: float
    size: int
    seconds: float
    threads: int
    free: int | None

    @property
    def fits(self) -> bool:
        """Whether the disk has room for it."""
        return self.free is None or self.size < self.free

    def as_dict(self) -> dict[str, object]:
        """For ``--json``."""
        return {**asdict(self), "fits": self.fits}


def make_plan(survey: Survey, format: str, output: str, threads: int, level: int) -> Plan:
    """Read and compress some 64 samples of 256 KiB, spread evenly, and nothing else.

    Raises:
        SourceGone: The target exited or called exec.
    """
    try:
        return _make_plan(survey, format, output, threads, level)
    except _native.MemoryGone:
        raise survey.process.gone() from None


def _make_plan(survey: Survey, format: str, output: str, threads: int, level: int) -> Plan:
    runs = [s for found in survey.runs() for s in found]
    compressed = format in ("lz4", "raw-lz4")
    copier = Copier(survey.process.memory, _SAMPLE_SIZE)
    compressor = Compressor(level)
    size = 0
    begun = time.perf_counter()
    for sample in samples(runs, _SAMPLES, _SAMPLE_SIZE):
        content, _ = copier.fill([sample])
        if compressed:
            size += len(compressor.frame(content))
    elapsed = time.perf_counter() - begun
    sampled = copier.tally.read + copier.tally.file + copier.tally.zero
    chosen = [r for r, c in zip(survey.residency, survey.choices, strict=True) if c.included]
    zero = sum(r.zero for r in chosen)
    read = sum(s.length for s in runs)
    ratio = sampled / size if size else 1.0
    return Plan(
        selected=survey.selected,
        present=survey.present,
        zero=zero,
        swapped=survey.swapped,
        read_swapped=survey.read_swapped,
        headroom=survey.headroom,
        sampled=sampled,
        ratio=round(ratio, 2),
        size=0 if format == "null" else int(read / ratio),
        seconds=round(elapsed * read / sampled / threads, 2) if sampled else 0.0,
        threads=threads,
        free=None if output in ("-", "") or is_url(output) else _free(Path(local_path(output))),
    )


def samples(runs: Sequence[Slice], count: int, length: int) -> list[Slice]:
    """Some *count* pieces of *length* bytes, evenly spread over the bytes of *runs*."""
    total = sum(s.length for s in runs)
    step = max(total // count, length)
    found, passed, due = [], 0, 0
    for s in runs:
        while due < passed + s.length:
            done = (due - passed) // length * length
            found.append(s.part(done, min(length, s.length - done)))
            due += step
        passed += s.length
    return found


def _free(path: Path) -> int:
    """Bytes free for us where *path* would be."""
    folder = path.absolute().parent
    while not os.path.exists(folder):  # Path.exists() raises where it may not look
        folder = folder.parent
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize
