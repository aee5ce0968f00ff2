"""The part of the C extension that knows chunks: thin, typed wrappers over ``csrc/api.h``."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from fastdump._native import PAGE_SIZE, Memory, Slice, _c_slices, ffi, lib, zeroed
from fastdump.region import Range

HEADER: int = lib.FASTDUMP_CHUNK_HEADER
LIST_BLOCK: int = lib.FASTDUMP_LIST_BLOCK
_BATCH = 1024
_WINDOWS = 3
_ANY = (1 << 64) - 1
# There is room for one that each thread has (tcache) in so many bytes.
_CACHE_EACH = 4096
_LEAST_CACHES, _MOST_CACHES = 64, 1 << 16
_SPAN = 16 * 64  # bytes of memory that 64 bits stand for


class Tallied(NamedTuple):
    """Chunks, and bytes with their headers."""

    live: int
    live_bytes: int
    free: int
    free_bytes: int


class BrokenChunk(ValueError):
    """There is no chunk at ``address``, where one must be."""

    def __init__(self, address: int) -> None:
        super().__init__(f"no chunk at {address:#x}")
        self.address = address


class Segment:
    """Memory that an allocator has cut into chunks without a hole: which there are, which are free.

    Args:
        start: Of the first chunk; *end* of the last one at the latest.
        single: It is one chunk, and live.
    """

    def __init__(self, start: int, end: int, *, single: bool = False) -> None:
        assert start < end
        self.start, self.end, self.single = start, end, single
        self.c = ffi.new("struct fastdump_segment *")
        self.c.start, self.c.end = start, end
        self.c.next = end if single else start
        if not single:
            # Not ffi.new(): pages that no chunk begins in cost nothing.
            self._bits = [zeroed(((end - start) // _SPAN + 1) * 8) for _ in range(2)]
            begins, free = (ffi.cast("uint64_t *", ffi.from_buffer(b)) for b in self._bits)
            self.c.begins, self.c.free = begins, free
            self._sizes = ffi.new("struct fastdump_size_class[]", lib.FASTDUMP_SIZE_CLASSES)
            self.c.sizes = self._sizes
            capacity = min(max((end - start) // _CACHE_EACH, _LEAST_CACHES), _MOST_CACHES)
            self._caches = ffi.new("uint64_t[]", capacity)
            self.c.caches, self.c.caches_capacity = self._caches, capacity

    @property
    def next(self) -> int:
        """The header to be read next, or the end of the last chunk."""
        return int(self.c.next)

    @property
    def ended(self) -> bool:
        """Whether its end was reached, or what is no chunk."""
        return bool(self.c.walked)

    @property
    def broken(self) -> bool:
        """Whether there is no chunk at :attr:`next`, where one must be."""
        return bool(self.c.walked < 0)

    @property
    def last(self) -> int:
        """The last chunk, 0 if there is none."""
        return int(self.c.last)

    @property
    def caches(self) -> list[int]:
        """The chunks that may be what malloc keeps for a thread (tcache_perthread_struct)."""
        return list(self.c.caches[0 : self.c.caches_found])

    @property
    def lacks_caches(self) -> bool:
        """Whether there was no room for more of them."""
        return bool(self.c.caches_found and self.c.caches_found == self.c.caches_capacity)

    def feed(self, address: int, data: Any) -> bool:
        """Walk the chunks whose headers lie in *data*; whether that was the last of them.

        Raises:
            BrokenChunk: What must be a header is none.
        """
        view = ffi.from_buffer(data)
        result = lib.fastdump_segment_walk(self.c, view, len(view), address)
        if result < 0:
            raise BrokenChunk(self.next)
        return bool(result)

    def rank(self) -> int:
        """Number its chunks, all of which were walked; how many there are."""
        if not self.single:
            length = (self.next - self.start) // _SPAN + 1
            self._ranks = zeroed(2 * length)
            self.c.ranks_within = ffi.cast("uint16_t *", ffi.from_buffer(self._ranks))
            self._groups = ffi.new("uint64_t[]", length // lib.FASTDUMP_RANKS + 1)
            self.c.ranks = self._groups
        return int(lib.fastdump_segment_rank(self.c))

    def release(self, chunk: int) -> None:
        """*chunk* is free, though its neighbours do not know."""
        lib.fastdump_segment_release(self.c, chunk)

    def chunk_at(self, address: int) -> tuple[int, int, bool] | None:
        """Start and end of the chunk that holds an address, and whether it is free."""
        if not self.start <= address < self.next:
            return None
        end, free = ffi.new("uint64_t *"), ffi.new("int32_t *")
        chunk = lib.fastdump_segment_chunk(self.c, address, end, free)
        return (int(chunk), int(end[0]), bool(free[0])) if chunk else None

    def total(self) -> Tallied:
        """All of its chunks so far."""
        live = self.sizes
        free = self.c.free_chunks, self.c.free_bytes
        return Tallied(sum(s.chunks for s in live), sum(s.bytes for s in live), *map(int, free))

    @property
    def sizes(self) -> list[SizeClass]:
        """Its live chunks so far."""
        if self.single:
            length = self.end - self.start
            return [SizeClass(1 << (length - 1).bit_length(), 1, length)]
        return sizes_in(self._sizes)

    def tally(self, start: int, end: int) -> Tallied:
        """The chunks and their bytes within a range of the segment."""
        found = ffi.new("struct fastdump_chunk_tally *")
        lib.fastdump_segment_tally(self.c, start, end, found)
        return Tallied(found.live, found.live_bytes, found.free, found.free_bytes)


class SizeClass(NamedTuple):
    """Live chunks of more than half of ``size`` bytes, header included, and at most ``size``."""

    size: int
    chunks: int
    bytes: int

    @property
    def title(self) -> str:
        return f"{self.size // 2 + 1} to {self.size} bytes"


def sizes_in(classes: Any) -> list[SizeClass]:
    """Those of an array of all size classes that have chunks."""
    found = enumerate(classes[0 : lib.FASTDUMP_SIZE_CLASSES])
    return [SizeClass(1 << n, each.chunks, each.bytes) for n, each in found if each.chunks]


def joined(classes: Iterable[Iterable[SizeClass]]) -> list[SizeClass]:
    """Chunks of several owners, or segments, by their size, the smallest first."""
    found: dict[int, SizeClass] = {}
    for size, chunks, length in itertools.chain(*classes):
        _, more, longer = found.get(size, (size, 0, 0))
        found[size] = SizeClass(size, chunks + more, length + longer)
    return sorted(found.values())


class Heap:
    """Segments, for C; each chunk may have an owner.

    Args:
        segments: In address order.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = segments
        self._array = ffi.new("struct fastdump_segment *[]", [s.c for s in segments] or [ffi.NULL])
        self.c = {"segments": self._array, "count": len(segments)}
        self._owners = zeroed(1)

    def make_owners(self) -> None:
        """The segments were walked: none of their chunks has an owner."""
        counts = [segment.rank() for segment in self.segments]
        self._owners = zeroed(sum(counts))
        at = ffi.cast("unsigned char *", ffi.from_buffer(self._owners))
        for segment, count in zip(self.segments, counts, strict=True):
            segment.c.owners = at
            at += count


class Followed(NamedTuple):
    """Chunks of a list of free ones, and their bytes; ``whole``: it ended as it should."""

    chunks: int
    bytes: int
    whole: bool


class FreeLists:
    """Follows lists of free chunks in memory of any size; see ``csrc/api.h``.

    Args:
        segments: Walked, in address order.
        memory: What of it *slices* say is read without *read*.
        read: A word at least, and LIST_BLOCK bytes at the most, of what lies at an address.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        memory: Memory,
        slices: Sequence[Slice],
        read: Callable[[int], bytes],
    ) -> None:
        self._memory, self._slices, self._read = memory, _c_slices(slices), read
        self._heap = Heap(segments)
        self._c = ffi.new("struct fastdump_free_list *")
        self._c.heap = self._heap.c

    def follow(
        self, entry: int, *, header: int = 0, size: int = 0, most: int = _ANY, release: bool = True
    ) -> Followed:
        """Follow a list to its end.

        Args:
            header: What lies between a chunk and where its entry points: fastbins link chunks,
                tcache what the program has of them.
            size: Of each chunk; 0: any.
            most: So many chunks.
            release: They are free, though their neighbours do not know.
        """
        c = self._c
        c.entry, c.header, c.size, c.most, c.release = entry, header, size, most, release
        c.chunks = c.bytes = c.seen = 0
        args = c, self._memory._target, self._slices, len(self._slices)
        while not (result := lib.fastdump_free_list_follow(*args)):
            content = self._read(c.link)
            ffi.memmove(c.content, content, len(content))
            c.block = {"start": c.link, "end": c.link + len(content)}
        return Followed(c.chunks, c.bytes, result > 0)


class MappedChunks:
    """The chunks that malloc has mapped each by itself, in one region that ends at *limit*.

    Args:
        uncounted: Bytes of each that its size leaves out.
    """

    def __init__(self, limit: int, uncounted: int) -> None:
        self._limit, self._uncounted = limit, uncounted
        self._next = ffi.new("uint64_t *")
        self._found = ffi.new("struct fastdump_range[]", _BATCH)

    @property
    def next(self) -> int:
        """Where the next one may lie."""
        return int(self._next[0])

    def feed(self, address: int, data: Any) -> Iterator[Range]:
        """Those whose headers lie in *data*; all from :attr:`next` on must be fed, in order."""
        view = ffi.from_buffer(data)
        args = view, len(view), address, self._limit, self._uncounted, PAGE_SIZE, _BATCH
        count = _BATCH
        while count == _BATCH:
            count = lib.fastdump_mapped_chunks(*args, self._next, self._found)
            yield from [Range(r.start, r.end) for r in self._found[0:count]]


def self_pointers(data: Any, address: int, delta: int, most: int = 1 << 16) -> list[int]:
    """Where the words of *data*, which lies at *address*, hold their own address plus *delta*."""
    view = ffi.from_buffer(data)
    found = ffi.new("uint64_t[]", most)
    count = lib.fastdump_self_pointers(view, len(view), address, delta, most, found)
    return list(found[0:count])


def windows_of(ranges: Iterable[Range]) -> list[Range]:
    """At most three ranges that hold all of *ranges*: cut where the gaps are widest."""
    found: list[Range] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1].end:
            found[-1] = Range(found[-1].start, max(end, found[-1].end))
        else:
            found.append(Range(start, end))
    if not found:
        return []
    gaps = range(1, len(found))
    widest = heapq.nlargest(_WINDOWS - 1, gaps, lambda n: found[n].start - found[n - 1].end)
    cuts = [0, *sorted(widest), len(found)]
    return [Range(found[a].start, found[b - 1].end) for a, b in itertools.pairwise(cuts)]


def set_windows(windows: Any, ranges: Iterable[Range]) -> None:
    """Those of *ranges*, for C."""
    for number, window in enumerate(windows_of(ranges)):
        windows[number] = tuple(window)
