"""The ledger: every resident byte in exactly one bucket. Of a dump: every byte that it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastdump._heap import Segment
from fastdump.dumped import Dumped
from fastdump.labels import Kind, Label
from fastdump.live_source import LiveSource
from fastdump.malloc_glibc import GlibcHeap
from fastdump.region import Region
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
    """Entered when memory has been read, and the walk of the heap is finished.

    Args:
        heap: Whose chunks are told apart; None: no allocator is known.
    """

    def __init__(self, heap: GlibcHeap | None) -> None:
        self._heap = heap
        self._arenas = {r.start for arena in heap.arenas for r in arena.heaps} if heap else set()
        self._totals = dict.fromkeys(BUCKETS, 0)
        self._open: tuple[Segment, int, int] | None = None  # read of a segment so far
        self._read: dict[int, int] = {}  # of each region: bytes read,
        self._chunks: dict[int, int] = {}  # and those of them in chunks

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
            self._chunks[number] = self._chunks.get(number, 0) + last - max(start, first)

    def _close(self) -> None:
        """Enter the chunks of what was read of a segment without a break."""
        if self._open:
            segment, first, last = self._open
            whole = (first, last) == (segment.start, segment.next)
            found = segment.total() if whole or segment.single else segment.tally(first, last)
            self._totals[LIVE] += last - first if segment.single else found.live_bytes
            self._totals[FREE] += found.free_bytes
        self._open = None

    def buckets(
        self, source: Source, objects: Mapping[int, int], *, stacks_in_heap: bool = False
    ) -> list[Bucket]:
        """All of them.

        Args:
            objects: For each region the objects of Python in it.
            stacks_in_heap: The heap has the stacks of threads in it, as that of Go.
        """
        self._close()
        present = resident(source)
        totals = dict(self._totals)
        for number, (region, label) in enumerate(zip(source.regions, source.labels, strict=True)):
            chunks = self._chunks.get(number, 0)
            found = present[number]
            if label.kind not in STACKS and not region.has_file:  # of a file, others may be too
                found = self._read.get(number, found)
            bucket = self._bucket(region, label, objects.get(number, 0))
            if stacks_in_heap and label.kind is Kind.THREAD_STACK:
                bucket = UNKNOWN
            totals[bucket] += found - chunks
        return [Bucket(name, totals[name]) for name in BUCKETS]

    def _bucket(self, region: Region, label: Label, objects: int) -> str:
        """What a region is but for its chunks."""
        if region.start in self._arenas or (label.kind is Kind.HEAP and self._heap):
            return OWN
        if label.kind in STACKS:
            return STACK
        if label.module:
            return MODULE if region.writable else FILE
        if label.kind is Kind.SHARED or (label.kind is Kind.FILE and not region.private):
            return SHARED
        if label.kind in (Kind.FILE, Kind.KERNEL, Kind.DEVICE):
            return FILE
        return PYTHON if objects << 20 > _OBJECTS * region.length else UNKNOWN


def resident(source: Source) -> Sequence[int]:
    """For each region what is in RAM; of a dump what it has."""
    if isinstance(source, LiveSource):
        return source.resident
    assert isinstance(source, Dumped)
    return source.known()[0]
