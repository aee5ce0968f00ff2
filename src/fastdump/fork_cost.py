"""What a copy by fork would cost: memory while it is there, and the time that the target stops.

The copy shares all pages with the target until one of them is written: by the target, since the
copy never runs. How fast it writes is told by a sample of its pages, read twice; the process runs
on, and no page is touched that it has not touched.
"""

from __future__ import annotations

import math
import time
from typing import NamedTuple

from fastdump._native import PAGE_SIZE, Copier, MemoryGone, Slice
from fastdump.headroom import headroom
from fastdump.process import LiveProcess

_SAMPLES = 512
_INTERVAL = 0.05  # seconds between the two readings
# Bytes a second: what a dump does at least, LZ4 and a disk included.
_DUMP_SPEED = 400e6
# Measured: seconds for a byte of 4 KiB pages. Huge pages take a quarter.
_FORK_TIME = 0.012 / (1 << 30)
_RESERVE = 64 << 20


class ForkCost(NamedTuple):
    """Estimates. Bytes: ``memory`` at the end of the dump, of ``free`` ones. ``seconds``: the pause
    at most."""

    memory: int
    free: int
    seconds: float

    @property
    def fits(self) -> bool:
        """Whether the host and the target's memory cgroup have room for it."""
        return self.memory + _RESERVE < self.free


def fork_cost(process: LiveProcess) -> ForkCost:
    """Estimate it from the page tables and a sample of pages.

    Raises:
        SourceGone: The target exited or called exec.
    """
    regions = [r for r in process.regions() if r.private and r.writable and r.end < 1 << 63]
    resident = sum(held.present for held in process.residency(regions))
    slices = [Slice(r.start, r.length, 0) for r in regions]
    copier = Copier(process.memory, PAGE_SIZE)
    try:
        pages = _spread(process, slices)
        before = [bytes(copier.fill([page])[0]) for page in pages]
        time.sleep(_INTERVAL)
        written = sum(
            copier.fill([page])[0] != was for page, was in zip(pages, before, strict=True)
        )
    except MemoryGone:
        raise process.gone() from None
    share = 0.0
    if written:
        rate = -math.log(1 - min(written / len(pages), 0.999)) / _INTERVAL  # of each page
        share = -math.expm1(-rate * resident / _DUMP_SPEED)
    tables = process.growth().pte
    return ForkCost(
        memory=int(resident * share) + tables,
        free=headroom(process.tid),
        seconds=resident * _FORK_TIME,
    )


def _spread(process: LiveProcess, slices: list[Slice]) -> list[Slice]:
    """Pages, evenly spread over what holds data."""
    runs = process.memory.runs(slices, PAGE_SIZE, 1 << 12)
    step = max(sum(run.end - run.start for run in runs) // _SAMPLES // PAGE_SIZE, 1) * PAGE_SIZE
    found: list[Slice] = []
    skip = step // 2 // PAGE_SIZE * PAGE_SIZE
    for run in runs:
        at = run.start + skip
        while at < run.end:
            found.append(Slice(at, PAGE_SIZE, 0))
            at += step
        skip = at - run.end
    return found
