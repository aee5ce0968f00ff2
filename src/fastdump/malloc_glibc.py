"""glibc's malloc from outside: its arenas, and which chunks of them are live; without symbols.

Source: glibc's malloc/malloc.c and malloc/arena.c, 2.28 to 2.43, 64 bits, little endian. The layout
of ``struct malloc_state`` is the same in all of these but for fastbins, which 2.43 has not; chunks
are those of all. Whether it was
understood is checked against the allocator's own totals (``system_mem``, ``mmapped_mem``).

Consistency: that of the source. Of a process that runs, arenas may change under the walk; then the
check fails, and says so.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import re
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fastdump._heap import (
    HEADER,
    LIST_BLOCK,
    BrokenChunk,
    Followed,
    FreeLists,
    MappedChunks,
    Segment,
    self_pointers,
)
from fastdump._native import PAGE_SIZE, Gap
from fastdump.errors import FaultError
from fastdump.labels import Kind
from fastdump.region import Range, Region
from fastdump.source import CHUNK_SIZE, Chunk, Source, Zeros


class State(NamedTuple):
    """A layout of struct malloc_state, and what goes with it.

    mutex, flags, have_fastchunks, fastbinsY[10], top, last_remainder, bins[254], binmap[4], next,
    next_free, attached_threads, system_mem, max_system_mem.

    ``bins``: their offset; ``fast``: which fields are fastbins; ``uncounted``: bytes of a mapped
    chunk that its size leaves out; ``unit``: of malloc's count of mapped bytes.
    """

    layout: struct.Struct
    bins: int
    fast: slice
    uncounted: int
    unit: int


STATES = (
    State(struct.Struct("<3I4x10QQQ254Q4IQQQQQ"), 112, slice(3, 13), 0, PAGE_SIZE),
    # Since 2.43: no fastbins; and a realloc of a mapped chunk adds 16 to that count, for good.
    State(struct.Struct("<I4xQQ254Q4IQQQQQ"), 24, slice(0), HEADER, 16),
)
_TOP, _NEXT, _SYSTEM_MEM, _MAX_SYSTEM_MEM = -265, -5, -2, -1  # fields, from the end
_LEAST_EMPTY = 16  # bins of an arena, of 127; the largest ones hardly ever hold a chunk
_MOST_ARENAS = 1 << 16
# HEAP_MAX_SIZE; with huge pages (glibc.malloc.hugetlb) 4 of them.
_HEAP_SIZES = (64 << 20, 8 << 20, 4 << 30)
_HEAP_INFO = struct.Struct("<QQQQ")  # ar_ptr, prev, size, mprotect_size
_HEAP_INFO_SIZES = (0x20, 0x30)  # 2.35 added a member, and padding
_MOST_STRAYS, _MOST_ALONE = 3, 64
# tcache_perthread_struct by the size of its chunk: bins, and what a count is. The first 64 bins
# have chunks of 32 bytes, 48 and so on.
_CACHES = {0x250: (64, "B"), 0x290: (64, "H"), 0x300: (76, "H"), 0x310: (76, "H")}
_CACHES_2_42 = (0x300, 0x310)  # their counts say how many more there may be
_MOST_CACHED = 0xFFFF  # chunks of one bin: what a count can be
_MODULES = re.compile(r"/libc[.-][^/]*$")


@dataclass
class Arena:
    """One arena. Bytes.

    ``own``: what the allocator needs itself: ``heap_info``, ``malloc_state``, fenceposts.
    """

    address: int
    state: State
    system_mem: int
    top: int
    fast: Sequence[int]
    segments: list[Segment] = field(default_factory=list)
    heaps: list[Range] = field(default_factory=list)
    own: int = 0

    def own_ranges(self) -> Iterator[Range]:
        """Where that lies: of a walk that broke, not what is behind it."""
        for limits, segment in zip(self.heaps, self.segments, strict=True):
            yield Range(limits.start, segment.start)
            if limits.end - segment.next < PAGE_SIZE:
                yield Range(segment.next, limits.end)


@dataclass
class GlibcHeap:
    """What glibc's malloc holds. Bytes, with headers.

    Attributes:
        segments: Of all arenas, and each mapped chunk as one; in address order.
        live_bytes: In use by the program, mapped chunks included.
        cached, fast: Freed, but kept for a thread, or in fastbins.
        top: The unused end of each arena.
        free: In bins.
        problems: Why the figures may be wrong: sentences. Empty if all checks hold.
    """

    arenas: list[Arena]
    mapped: list[Range]
    segments: list[Segment] = field(default_factory=list)
    live: int = 0
    live_bytes: int = 0
    cached: int = 0
    cached_bytes: int = 0
    fast: int = 0
    fast_bytes: int = 0
    free: int = 0
    free_bytes: int = 0
    top_bytes: int = 0
    own_bytes: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def system_bytes(self) -> int:
        """What it has from the kernel for its arenas, by its own account."""
        return sum(arena.system_mem for arena in self.arenas)

    @property
    def mapped_bytes(self) -> int:
        return sum(end - start for start, end in self.mapped)

    def segment_at(self, address: int) -> Segment | None:
        """The segment that holds an address."""
        number = bisect.bisect_right(self._starts, address) - 1
        if number >= 0 and address < self.segments[number].next:
            return self.segments[number]
        return None

    def segments_in(self, start: int, end: int) -> Iterator[Segment]:
        """The segments that reach into a range."""
        first = max(bisect.bisect_right(self._starts, start) - 1, 0)
        for number in range(first, len(self.segments)):
            segment = self.segments[number]
            if segment.start >= end:
                break
            if segment.end > start:
                yield segment

    def chunk_at(self, address: int) -> tuple[int, int, bool] | None:
        """Start and end of the chunk that holds an address, and whether it is free."""
        segment = self.segment_at(address)
        return segment.chunk_at(address) if segment else None

    def taken(self) -> list[Range]:
        """What is malloc's, in address order: its own data, and all chunks."""
        found = [
            Range(arena.address, arena.address + arena.state.layout.size) for arena in self.arenas
        ]
        for arena in self.arenas:
            parts = zip(arena.heaps, arena.segments, strict=True)
            # The header behind the last chunk begins with the end of what that one holds.
            found += [Range(h.start, min(s.next + HEADER, h.end)) for h, s in parts]
        return sorted([*found, *self.mapped])

    def index(self) -> None:
        """Make :meth:`chunk_at` know the segments: of those that overlap, the first."""
        found = [s for arena in self.arenas for s in arena.segments]
        found += [Segment(start, end, single=True) for start, end in self.mapped]
        self.segments = []
        for segment in sorted(found, key=lambda segment: segment.start):
            if self.segments and segment.start < self.segments[-1].end:
                self.problems.append(f"the heap at {segment.start:#x} lies in another one")
            else:
                self.segments.append(segment)
        self._starts = [segment.start for segment in self.segments]


def walk_glibc(source: Source) -> GlibcHeap | None:
    """Find and walk glibc's malloc in a source; None if it is not there, or not in use.

    Raises:
        SourceGone: The target exited or called exec.
    """
    walk = GlibcWalk(source)
    return walk.finish() if walk.heap else None


class GlibcWalk:
    """The walk of a source, whose segments may be fed by who reads all memory anyway.

    Attributes:
        heap: None if glibc's malloc is not there, or not in use; known at first are its arenas and
            where segments begin and end, chunks and all that is counted when it is finished.
        unread: Its data may lie in memory that cannot be read, if there is no heap.

    Raises:
        SourceGone: The target exited or called exec.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._problems: list[str] = []
        self._starts = [region.start for region in source.regions]
        self._heaps: set[int] = set()  # of all arenas so far
        self.heap: GlibcHeap | None = None
        self.unread = False
        found = self._find_main()
        if found is None:
            return
        arenas, data = found
        self._state = arenas[0].state
        self._param = _find_param(data, self._brk(), arenas[0].top, self._state.unit)
        self._lay_out_main(arenas[0], self._param)
        for arena in arenas[1:]:
            self._lay_out(arena)
        heaps = sorted(range_ for arena in arenas for range_ in arena.heaps)
        mapped = self._without_strays(list(self._mapped(heaps)), self._param)
        self.heap = GlibcHeap(arenas, mapped, problems=self._problems)
        self.heap.index()

    def finish(self) -> GlibcHeap:
        """Walk what is left; count and check all of it."""
        heap = self.heap
        assert heap
        for arena in heap.arenas:
            for limits, segment in zip(arena.heaps, arena.segments, strict=True):
                self._walk(segment, limits.end)
            arena.own = sum(end - start for start, end in arena.own_ranges())
        self._count(heap)
        self._check(heap, self._param)
        return heap

    def _brk(self) -> Range:
        """From the start of the heap to its end: what a forked process adds is a region more."""
        both = zip(self._source.regions, self._source.labels, strict=True)
        heap = [region for region, label in both if label.kind is Kind.HEAP]
        return Range(heap[0].start, heap[-1].end) if heap else Range(0, 0)

    # --- arenas --------------------------------------------------------------------------

    def _find_main(self) -> tuple[list[Arena], bytes] | None:
        """All arenas, main_arena first, and the writable data that it lies in."""
        for address, data in self._candidates():
            pairs = set(self_pointers(data, address, -16))
            pairs &= {at - 8 for at in self_pointers(data, address, -24)}
            votes = Counter(at - 16 * number for at in pairs for number in range(127))
            for bins, empty in votes.most_common():
                if empty < _LEAST_EMPTY:
                    break
                for state in STATES:
                    if arenas := self._ring(bins - state.bins, state):
                        return arenas, data
        return None

    def _candidates(self) -> Iterator[tuple[int, bytes]]:
        """The writable data of libc; else of the executable, which may be linked with it."""
        both = list(zip(self._source.regions, self._source.labels, strict=True))
        libc = [r for r, x in both if r.writable and _MODULES.search(x.module)]
        program = [r for r, x in both if r.writable and x.kind is Kind.EXECUTABLE]
        for region in [*libc, *program]:
            for part in self._source.walk([Range(region.start, region.end)]):
                if isinstance(part, Chunk):
                    yield part.address, bytes(part.data)
                self.unread |= isinstance(part, Gap)

    def _ring(self, main: int, state: State) -> list[Arena]:
        """The arenas that ``next`` leads to from main_arena, if it is that."""
        arenas: list[Arena] = []
        seen: set[int] = set()
        at = main
        while at and at not in seen:
            seen.add(at)
            try:
                fields = state.layout.unpack(self._source.read(at, state.layout.size))
            except FaultError:
                return []
            system_mem, most = fields[_SYSTEM_MEM], fields[_MAX_SYSTEM_MEM]
            if (system_mem % PAGE_SIZE and at != main) or system_mem > most or fields[0] > 2:
                return []
            arenas.append(Arena(at, state, system_mem, fields[_TOP], fields[state.fast]))
            at = fields[_NEXT]
            if at % 8 or len(arenas) > _MOST_ARENAS:
                return []
        return arenas if at == main and arenas[0].system_mem else []

    def _lay_out_main(self, arena: Arena, param: _Param | None) -> None:
        brk = self._brk()
        start = param.sbrk_base if param else brk.start
        try:
            end = arena.top + (self._word(arena.top + 8) & ~7)
            # The top may reach from one region of the heap into the next.
            mapped: list[Range | Region] = [brk, *self._source.regions]
            region = next(r for r in mapped if r.start <= arena.top < end <= r.end)
        except (FaultError, StopIteration):
            self._problems.append(f"the end of the main arena, {arena.top:#x}, makes no sense")
            return
        if region is brk:
            heaps = [Range(start, end)]
        else:  # sbrk(2) failed once, or always: the rest is mapped
            heaps = [Range(start, brk.end)] if brk.end else []
            heaps.append(Range(region.start, end))
        for heap in heaps:
            first = -(-heap.start // 16) * 16
            if first < heap.end:
                arena.heaps.append(heap)
                arena.segments.append(Segment(first, heap.end))
            else:
                self._problems.append(f"the main arena from {heap.start:#x} makes no sense")

    def _word(self, address: int) -> int:
        return int.from_bytes(self._source.read(address, 8), "little")

    def _lay_out(self, arena: Arena) -> None:
        """The heaps of a thread's arena: ``heap_info`` lies at a multiple of their size."""
        try:
            for size in _HEAP_SIZES:
                base = arena.top // size * size
                if self._heap_info(base)[0] == arena.address:
                    break
            else:
                raise FaultError(arena.top, 0, "no heap_info")
            header = next(n for n in _HEAP_INFO_SIZES if (arena.address - n) % size == 0)
            while base:
                ar_ptr, previous, length, _ = self._heap_info(base)
                first = base + header
                if first == arena.address:
                    first += -(-arena.state.layout.size // 16) * 16
                known = base in self._heaps or not self._is_mapped(base + length - 1)
                if ar_ptr != arena.address or known or not first < base + length <= base + size:
                    raise FaultError(base, 0, "no heap_info")
                self._heaps.add(base)
                arena.heaps.append(Range(base, base + length))
                arena.segments.append(Segment(first, base + length))
                base = previous
        except (FaultError, StopIteration):
            self._problems.append(f"the heaps of the arena at {arena.address:#x} were not found")
        arena.heaps.reverse()
        arena.segments.reverse()

    def _is_mapped(self, address: int) -> bool:
        regions = self._source.regions
        number = bisect.bisect_right(self._starts, address) - 1
        return number >= 0 and address < regions[number].end

    def _heap_info(self, address: int) -> tuple[int, int, int, int]:
        fields: tuple[int, int, int, int] = _HEAP_INFO.unpack(
            self._source.read(address, _HEAP_INFO.size)
        )
        return fields

    # --- chunks --------------------------------------------------------------------------

    def _walk(self, segment: Segment, end: int) -> None:
        """From where it stands."""
        broken = segment.broken
        if not segment.ended:
            for part in self._needed(segment.next, end, segment):
                if segment.next + HEADER > part.end:
                    continue
                broken = not isinstance(part, Chunk)
                if isinstance(part, Chunk):
                    with contextlib.suppress(BrokenChunk):
                        segment.feed(part.address, part.data)
                    broken = segment.broken
                if broken or segment.ended:
                    break
        if broken:
            self._problems.append(f"malloc has no chunk at {segment.next:#x}, where one must be")

    def _needed(
        self, start: int, end: int, chunks: Segment | MappedChunks
    ) -> Iterator[Chunk | Zeros | Gap]:
        """The parts of a range, without what lies far within a large chunk."""
        while start < end:
            for part in self._source.walk([Range(start, end)]):
                yield part
                start = part.end
                if chunks.next > start + CHUNK_SIZE:
                    start = chunks.next // PAGE_SIZE * PAGE_SIZE
                    break

    def _mapped(self, heaps: Sequence[Range]) -> Iterator[Range]:
        """The chunks that are mappings of their own."""
        taken = {heap.start for heap in heaps}
        for region, label in zip(self._source.regions, self._source.labels, strict=True):
            if not region.writable or not region.private or region.start in taken:
                continue
            # The kernel joins mappings that touch: one may have the label of a stack.
            if label.kind not in (Kind.ANONYMOUS, Kind.THREAD_STACK):
                continue
            chunks = MappedChunks(region.end, self._state.uncounted)
            for part in self._needed(region.start, region.end, chunks):
                if isinstance(part, Chunk):
                    yield from chunks.feed(part.address, part.data)

    def _without_strays(self, mapped: list[Range], param: _Param | None) -> list[Range]:
        """Other memory may look like a mapped chunk: malloc's totals tell which are too many.

        Only what touches neither another one nor an end of its region may be that.
        """
        if not param or not 0 < len(mapped) - param.n_mmaps <= _MOST_STRAYS:
            return mapped
        starts, ends = (
            {r.start for r in self._source.regions},
            {r.end for r in self._source.regions},
        )
        starts |= {each.end for each in mapped}
        ends |= {each.start for each in mapped}
        alone = [each for each in mapped if each.start not in starts and each.end not in ends]
        total = sum(end - start for start, end in mapped)
        for strays in itertools.combinations(alone[:_MOST_ALONE], len(mapped) - param.n_mmaps):
            if param.fits(total - sum(end - start for start, end in strays)):
                return [each for each in mapped if each not in strays]
        return mapped

    def _count(self, heap: GlibcHeap) -> None:
        lists = FreeLists(heap.segments, *self._source.direct(), self._read_link)
        for arena in heap.arenas:
            for first in arena.fast:
                found = lists.follow(first)
                heap.fast += found.chunks
                heap.fast_bytes += found.bytes
                if not found.whole:
                    self._problems.append(f"the fastbin with {first:#x} is broken")
        for arena in heap.arenas:
            for segment in arena.segments:
                for chunk in segment.caches:
                    self._release_cache(heap, lists, chunk)
                if segment.lacks_caches:
                    self._problems.append(
                        f"of the threads whose caches lie at {segment.start:#x} only "
                        f"{len(segment.caches):,} were looked at: what the others keep, though it "
                        "is free, counts as live"
                    )
        tops = 0
        for arena in heap.arenas:
            heap.own_bytes += arena.own
            for segment in arena.segments:
                if segment.last == arena.top:
                    heap.top_bytes += segment.next - segment.last
                    segment.release(segment.last)
                    tops += 1
                total = segment.total()
                heap.live += total.live
                heap.live_bytes += total.live_bytes
                heap.free += total.free
                heap.free_bytes += total.free_bytes
        heap.live += len(heap.mapped)
        heap.live_bytes += heap.mapped_bytes
        heap.free -= heap.cached + heap.fast + tops
        heap.free_bytes -= heap.cached_bytes + heap.fast_bytes + heap.top_bytes

    def _release_cache(self, heap: GlibcHeap, lists: FreeLists, chunk: int) -> None:
        found = heap.chunk_at(chunk)
        size = found[1] - found[0] if found else 0
        if not found or found[2] or size not in _CACHES:
            return
        bins, count_layout = _CACHES[size]
        # The last word of what a program has of a chunk lies in the next one.
        try:
            raw = self._source.read(chunk + HEADER, size - 8)
        except FaultError:
            return  # a chunk of that size whose end cannot be read
        layout = struct.Struct(f"<{bins}{count_layout}")
        counts = layout.unpack_from(raw)
        entries = struct.unpack_from(f"<{bins}Q", raw, layout.size)

        def follow(number: int, *, release: bool) -> Followed:
            count = counts[number]
            return lists.follow(
                entries[number],
                header=HEADER,
                size=32 + 16 * number if number < 64 else 0,
                most=_MOST_CACHED - count if size in _CACHES_2_42 else count,
                release=release,
            )

        lengths = []
        for number in range(bins):
            each = follow(number, release=False)
            if not each.whole:
                return  # it is something else
            lengths.append(each.chunks)
        if size in _CACHES_2_42:
            if len({count + length for count, length in zip(counts, lengths, strict=True)}) != 1:
                return
        elif counts != tuple(lengths):
            return
        for number in range(bins):
            each = follow(number, release=True)
            heap.cached += each.chunks
            heap.cached_bytes += each.bytes

    def _read_link(self, place: int) -> bytes:
        """The link of a free chunk, and what lies behind it in its block."""
        buffer = bytearray(LIST_BLOCK - place % LIST_BLOCK)
        with contextlib.suppress(FaultError):
            length = self._source.read_into(place, buffer)
            if length >= 8:
                return bytes(buffer[:length])
        return b"\xff" * 8  # no chunk begins there

    # --- checks --------------------------------------------------------------------------

    def _check(self, heap: GlibcHeap, param: _Param | None) -> None:
        for arena in heap.arenas:
            got = sum(end - start for start, end in arena.heaps)
            if got != arena.system_mem:
                self._problems.append(
                    f"the arena at {arena.address:#x} says that it has {arena.system_mem} bytes, "
                    f"found were {got}"
                )
            if arena.segments and arena.segments[-1].last != arena.top:
                self._problems.append(f"the walk of the arena at {arena.address:#x} missed its end")
        if param is None:
            self._problems.append("malloc's count of mapped chunks was not found")
        elif param.n_mmaps != len(heap.mapped) or not param.fits(heap.mapped_bytes):
            self._problems.append(
                f"malloc says that it has mapped {param.n_mmaps} chunks of {param.mmapped_mem} "
                f"bytes, found were {len(heap.mapped)} of {heap.mapped_bytes}"
            )


@dataclass
class _Param:
    """What is of use of ``struct malloc_par``, in the names of malloc.c."""

    n_mmaps: int
    mmapped_mem: int
    sbrk_base: int
    unit: int

    def fits(self, mapped: int) -> bool:
        """Whether that may be the bytes of all mapped chunks."""
        return mapped == self.mmapped_mem or (self.unit < PAGE_SIZE and mapped < self.mmapped_mem)


def _find_param(data: bytes, brk: Range, top: int, unit: int) -> _Param | None:
    """``mp_``, which lies in the same data as main_arena: known by sbrk_base and what is by it."""
    usable = len(data) // 8 * 8
    words = memoryview(data)[:usable].cast("Q")
    for number in range(6, len(words)):
        if not brk.start <= words[number] < max(brk.end, 1) or brk.start <= top < words[number]:
            continue
        mmapped, most = words[number - 2], words[number - 1]
        if mmapped > most or mmapped % unit or most % unit:
            continue
        for behind in (36, 32):  # since 2.35 with hp_flags before, and padding
            n_mmaps, n_max, most_n, fixed = struct.unpack_from("<4i", data, number * 8 - behind)
            if n_max == 65536 and 0 <= n_mmaps <= most_n and fixed in (0, 1):
                return _Param(n_mmaps, mmapped, words[number], unit)
    return None
