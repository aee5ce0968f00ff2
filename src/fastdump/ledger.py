"""The ledger: every resident byte in exactly one bucket. Of a dump: every byte that it has."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from fastdump._heap import Segment
from fastdump.dumped import Dumped
from fastdump.labels import Kind, Label
from fastdump.live_source import LiveSource
from fastdump.malloc_glibc import GlibcHeap
from fastdump.region import Range, Region, following
from fastdump.source import Source

LIVE = "live heap chunks"
FREE = "free, held by malloc"
OWN = "malloc's own data"
STACK = "stacks"
PYTHON = "Python arenas"
UNKNOWN = "anonymous, unknown"
MODULE = "data of modules"
FILE = "files and code"
SHARED = "shared memory"
BUCKETS = (LIVE, FREE, OWN, STACK, PYTHON, UNKNOWN, MODULE, FILE, SHARED)

STACKS = (Kind.STACK, Kind.THREAD_STACK)
_OBJECTS = 16  # of Python on a MiB: what has as many is an arena of Python's allocator


@dataclass
class Bucket:
    """One line. Bytes."""

    name: str
    bytes: int


class Ledger:
    """Entered when memory has been read.

    Args:
        heap: Whose chunks are told apart, walked to the end; None: no allocator is known.
    """

    def __init__(self, heap: GlibcHeap | None) -> None:
        self._heap = heap
        arenas = heap.arenas if heap else []
        self._arenas = {r.start for arena in arenas for r in arena.heaps}
        self._own = sorted(own for arena in arenas for own in arena.own_ranges())
        self._own_starts = [own.start for own in self._own]
        self._totals = dict.fromkeys(BUCKETS, 0)
        self._open: tuple[Segment, int, int] | None = None  # read of a segment so far
        self._read: dict[int, int] = {}  # of each region: bytes read,
        self._known: dict[int, int] = {}  # and those of them that malloc is known to have

    def enter(self, number: int, start: int, end: int) -> None:
        """A range of region *number* was read: it is resident."""
        self._read[number] = self._read.get(number, 0) + end - start
        for segment in self._heap.segments_in(start, end) if self._heap else ():
            first, last = max(start, segment.start), min(end, segment.next)
            if first >= last:  # the walk did not come so far
                continue
            if self._open and self._open[0] is segment and self._open[2] == first:
                first = self._open[1]
            else:
                self._close()
            self._open = segment, first, last
            self._know(number, last - max(start, first))
        for own in following(self._own, self._own_starts, start):
            if own.start >= end:
                break
            length = max(min(end, own.end) - max(start, own.start), 0)
            self._totals[OWN] += length
            self._know(number, length)

    def _know(self, number: int, length: int) -> None:
        self._known[number] = self._known.get(number, 0) + length

    def _close(self) -> None:
        """Enter the chunks of what was read of a segment without a break."""
        if self._open:
            segment, first, last = self._open
            if segment.single:
                live, free = last - first, 0
            else:
                live, free = _bytes_within(segment, first, last)
            self._totals[LIVE] += live
            self._totals[FREE] += free
        self._open = None

    def buckets(
        self,
        source: Source,
        objects: Mapping[int, int],
        cut: Collection[int] = (),
        *,
        stacks_in_heap: bool = False,
    ) -> list[Bucket]:
        """All of them.

        Args:
            objects: For each region the objects of Python in it.
            cut: The regions of which a part was left out, or could not be read.
            stacks_in_heap: The heap has the stacks of threads in it, as that of Go.
        """
        self._close()
        present = resident(source)
        totals = dict(self._totals)
        for number, (region, label) in enumerate(zip(source.regions, source.labels, strict=True)):
            found = present[number]
            if label.kind not in STACKS and not region.has_file:  # of a file, others may be too
                read = self._read.get(number, found)
                found = max(found, read) if number in cut else read
            bucket = self._bucket(region, label, objects.get(number, 0))
            if stacks_in_heap and label.kind is Kind.THREAD_STACK:
                bucket = UNKNOWN
            totals[bucket] += found - self._known.get(number, 0)
        return [Bucket(name, totals[name]) for name in BUCKETS]

    def _bucket(self, region: Region, label: Label, objects: int) -> str:
        """What a region is but for what malloc is known to have of it."""
        if region.start in self._arenas or (label.kind is Kind.HEAP and self._heap):
            return UNKNOWN  # it was not walked, or not read
        if label.kind in STACKS:
            return STACK
        if label.module:
            return MODULE if region.writable else FILE
        if label.kind is Kind.SHARED or (label.kind is Kind.FILE and not region.private):
            return SHARED
        if label.kind in (Kind.FILE, Kind.KERNEL, Kind.DEVICE):
            return FILE
        return PYTHON if objects << 20 > _OBJECTS * region.length else UNKNOWN


def _bytes_within(segment: Segment, first: int, last: int) -> tuple[int, int]:
    """Live and free bytes of a range: counted, or what lies outside of it taken from all."""
    outside = Range(segment.start, first), Range(last, segment.next)
    if sum(end - start for start, end in outside) > last - first:
        found = segment.tally(first, last)
        return found.live_bytes, found.free_bytes
    total, *rest = segment.total(), *(segment.tally(*r) for r in outside if r.start < r.end)
    live = total.live_bytes - sum(each.live_bytes for each in rest)
    return live, total.free_bytes - sum(each.free_bytes for each in rest)


def resident(source: Source) -> Sequence[int]:
    """For each region what is in RAM; of a dump what it has."""
    if isinstance(source, LiveSource):
        return source.resident
    assert isinstance(source, Dumped)
    return source.known()[0]
