"""The part of the C extension that follows words: thin, typed wrappers over ``csrc/api.h``."""

from __future__ import annotations

import heapq
import itertools
import mmap
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, overload

from fastdump._heap import Segment
from fastdump._native import ffi, lib
from fastdump._strings import default_kernel, kernel_number
from fastdump.region import Range

MOST_MODULES: int = lib.FASTDUMP_MODULES - 1
# By what the owner of a chunk is known, the surest first; numbers as of the C code.
TIERS = ("first word", "any word", "parent", "global", "further")
PARENT: int = lib.FASTDUMP_PARENT
GLOBAL: int = lib.FASTDUMP_GLOBAL
FURTHER: int = lib.FASTDUMP_FURTHER
PAGE_CLASSES = ("other", "zero", "pointers", "text", "high entropy")
SIZE_FIXED: int = lib.FASTDUMP_SIZE_FIXED
SIZE_VAR: int = lib.FASTDUMP_SIZE_VAR
SIZE_TAG: int = lib.FASTDUMP_SIZE_TAG
SIZE_STR: int = lib.FASTDUMP_SIZE_STR
SIZE_LIST: int = lib.FASTDUMP_SIZE_LIST
MOST_CELLS = 1 << 16  # 2 MiB
_CLASS_PAGE = 4096
_HIT = struct.Struct("<5Q")
_CELL = struct.Struct(f"<Q{1 + len(PAGE_CLASSES)}I")
_CAPACITY = 1 << 18
_MOST_PLACES = 1 << 18
_WINDOWS = 3
_BLOCK: int = lib.FASTDUMP_FIND_MOST
# Of the words of a block: where more of them are found, it is read again instead. So what is kept
# of memory is 8% of it at the most; a heap of a service in C++ has 3.4% such words.
_KEPT = 1 / 16


class Hit(NamedTuple):
    """Words that point to one address of a module.

    ``bytes`` is what the chunks take whose first words they are, which are of one size class:
    number n has those of up to 2^n bytes; 0 of words within chunks. ``example`` is the address of
    a word.
    """

    target: int
    size_class: int
    words: int
    bytes: int
    example: int


class Owned(NamedTuple):
    """Chunks that have one owner, by TIERS: how many, bytes, and where one of them is."""

    chunks: Sequence[int]
    bytes: Sequence[int]
    example: Sequence[int]


class Cell(NamedTuple):
    """As many pages of 4 KiB, read one after the other, as each cell has but for the last.

    ``pages``: how many are of each of PAGE_CLASSES; ``address`` is that of the first.
    """

    address: int
    pages: Sequence[int]


class Cells(Sequence[Cell]):
    """As they are in C: most who ask why do not look at them."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __len__(self) -> int:
        return len(self._content) // _CELL.size

    @overload
    def __getitem__(self, number: int) -> Cell: ...

    @overload
    def __getitem__(self, number: slice) -> list[Cell]: ...

    def __getitem__(self, number: int | slice) -> Cell | list[Cell]:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        address, _, *pages = _CELL.unpack_from(self._content, range(len(self))[number] * _CELL.size)
        return Cell(address, pages)


class ModuleRange(NamedTuple):
    """A mapped range of module number ``module``, 1 to MOST_MODULES."""

    start: int
    end: int
    module: int


class Heap:
    """Segments, for C; each chunk may have an owner.

    Args:
        segments: In address order.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = segments
        self._array = ffi.new("struct fastdump_segment *[]", [s.c for s in segments] or [ffi.NULL])
        lengths = [1 if s.single else (s.end - s.start) // 32 + 1 for s in segments]
        self._owners = mmap.mmap(-1, sum(lengths) or 1)
        at = ffi.cast("unsigned char *", ffi.from_buffer(self._owners))
        for segment, length in zip(segments, lengths, strict=True):
            segment.c.owners = at
            at += length
        self.c = {"segments": self._array, "count": len(segments)}

    def is_owned(self, segment: Segment) -> bool:
        """Whether a segment may have chunks with an owner: of a single one it is known."""
        return not segment.single or bool(segment.c.owners[0])


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


class _Block(NamedTuple):
    """The words that were found in a range; None: so many that it is read again."""

    where: Range
    words: bytes | None
    indexes: bytes


class Words:
    """What the words of memory point to; see ``csrc/words.c``.

    Memory is entered once, in address order; then its words are counted, and followed as often as
    need be.

    Args:
        ranges: Of all modules, in address order.
        heap: Whose chunks need not be known before words are counted.
        read: The memory of a range, as it was entered.
        kernel: As of ``fastdump._strings.kernels``.
    """

    def __init__(
        self,
        ranges: Sequence[ModuleRange],
        heap: Heap,
        read: Callable[[Range], Iterable[tuple[int, Any]]],
        kernel: str = "",
    ) -> None:
        self._words = words = ffi.new("struct fastdump_words *")
        words.kernel = kernel_number(kernel or default_kernel())
        self._keep: list[Any] = [heap]
        self._read = read
        self._blocks: list[_Block] = []
        modules = [Range(r.start, r.end) for r in ranges]
        segments = [Range(s.start, s.end) for s in heap.segments]
        set_windows(words.windows, modules + segments)
        set_windows(words.module_windows, modules)
        set_windows(words.heap_windows, segments)
        words.ranges = self._own("struct fastdump_module_range[]", [(*r, 0) for r in ranges])
        words.range_count = len(ranges)
        words.heap = heap.c
        # Not ffi.new(): pages without a hit cost nothing.
        self._hits = mmap.mmap(-1, _CAPACITY * _HIT.size)
        words.hits = ffi.cast("struct fastdump_pointed *", ffi.from_buffer(self._hits))
        words.slots = self._own("uint32_t[]", _CAPACITY)
        words.capacity = _CAPACITY
        self._cells = mmap.mmap(-1, MOST_CELLS * _CELL.size)
        words.cells = ffi.cast("struct fastdump_cell *", ffi.from_buffer(self._cells))
        words.cell_capacity, words.cell_pages = MOST_CELLS, 1
        words.owned = self._own("struct fastdump_owned[]", MOST_MODULES + 1)
        self._room = _BLOCK // 8 + lib.FASTDUMP_FIND_SLACK
        self._found = self._own("uint64_t[]", self._room)
        self._indexes = self._own("uint16_t[]", self._room)

    def _own(self, kind: str, content: Any) -> Any:
        self._keep.append(ffi.new(kind, content))
        return self._keep[-1]

    def enter(self, address: int, data: Any) -> None:
        """What *data* holds: the classes of its pages, and which of its words count."""
        view = ffi.from_buffer(data)
        for at in range(0, len(view), _BLOCK):
            length = min(_BLOCK, len(view) - at)
            where = Range(address + at, address + at + length)
            most = int(length // 8 * _KEPT)
            room = most + lib.FASTDUMP_FIND_SLACK
            count = lib.fastdump_words_enter(
                self._words, view + at, length, where.start, room, self._found, self._indexes
            )
            found = bytes(ffi.buffer(self._found, count * 8)) if count <= most else None
            indexes = bytes(ffi.buffer(self._indexes, count * 2)) if count <= most else b""
            self._blocks.append(_Block(where, found, indexes))

    def _pointing(self, where: Range) -> Iterator[tuple[Any, Any, int, int]]:
        """The words of a range that count, as C has them: words, indexes, how many, address."""
        for address, data in self._read(where):
            view = ffi.from_buffer(data)
            for at in range(0, len(view), _BLOCK):
                length = min(_BLOCK, len(view) - at)
                count = lib.fastdump_words_find(
                    self._words, view + at, length, self._room, self._found, self._indexes
                )
                yield self._found, self._indexes, count, address + at

    def _entered(self) -> Iterator[tuple[Any, Any, int, int]]:
        for where, words, indexes in self._blocks:
            if words is None:
                yield from self._pointing(where)
            elif words:
                found = ffi.from_buffer("uint64_t[]", words)
                yield found, ffi.from_buffer("uint16_t[]", indexes), len(found), where.start

    def count(self) -> None:
        """Count the words that were entered; chunks get the owner that these give them."""
        for found, indexes, count, address in self._entered():
            lib.fastdump_words_count(self._words, found, indexes, count, address)
        lib.fastdump_words_settle(self._words)

    def follow(self, tier: int) -> int:
        """Give chunks the owner of the chunk that points to them; how many got one."""
        news = self._follow(self._entered(), 0, tier)
        lib.fastdump_words_settle(self._words)
        return news

    def follow_data(self, where: Range, module: int) -> int:
        """Give chunks to a module whose data, *where*, points to them; how many got one."""
        return self._follow(self._pointing(where), module, GLOBAL)

    def _follow(self, words: Iterator[tuple[Any, Any, int, int]], module: int, tier: int) -> int:
        return sum(
            lib.fastdump_words_follow(self._words, found, indexes, count, address, module, tier)
            for found, indexes, count, address in words
        )

    @property
    def hits(self) -> list[Hit]:
        """All targets, those with the most bytes first."""
        used = memoryview(self._hits)[: self._words.used * _HIT.size]
        found = [Hit(*fields) for fields in _HIT.iter_unpack(used)]
        return sorted(found, key=lambda hit: (-hit.bytes, -hit.words, hit.target))

    @property
    def owned(self) -> list[Owned]:
        """For each module, 0 being none."""
        return [
            Owned(list(each.count), list(each.bytes), list(each.example))
            for each in self._words.owned[0 : MOST_MODULES + 1]
        ]

    @property
    def cells(self) -> Cells:
        """What was entered, in its order; at most MOST_CELLS, however much it was."""
        return Cells(self._cells[: self._words.cell_count * _CELL.size])

    @property
    def pages(self) -> Sequence[int]:
        """How many pages of 4 KiB are of each of PAGE_CLASSES."""
        return list(self._words.pages)

    @property
    def cell_size(self) -> int:
        """Bytes of a cell that is full."""
        return int(self._words.cell_pages) * _CLASS_PAGE

    @property
    def stale(self) -> int:
        """Words in free chunks, which did not count."""
        return int(self._words.stale)

    @property
    def lost(self) -> int:
        """Words whose target had no room in the table."""
        return int(self._words.lost)


class ObjectCount(NamedTuple):
    """Objects of one type of CPython; ``items`` of all of them, see ``csrc/api.h``."""

    objects: int
    items: int


class TypeCounter:
    """Counts the objects of CPython types in what it is fed.

    Args:
        types: Address → SIZE_FIXED, or how their items are counted.
        str_sizes: Of the smallest ASCII string, and of another one.
        keep: Remember where they are: the first 262,144.
        kernel: As of ``fastdump._strings.kernels``.
    """

    def __init__(
        self,
        types: Mapping[int, int],
        heap: Heap,
        str_sizes: tuple[int, int] = (0, 0),
        *,
        keep: bool = False,
        kernel: str = "",
    ) -> None:
        self._c = c = ffi.new("struct fastdump_types *")
        c.kernel = kernel_number(kernel or default_kernel())
        self._heap = heap
        c.heap = heap.c
        set_windows(c.windows, (Range(t, t + 1) for t in types))
        capacity = 1 << (2 * len(types) + 1).bit_length()
        self._types = ffi.new("struct fastdump_type[]", capacity)
        c.types, c.capacity = self._types, capacity
        c.str_ascii, c.str_wide = str_sizes
        if keep:
            self._places = ffi.new("uint64_t[]", _MOST_PLACES)
            c.places, c.places_capacity = self._places, _MOST_PLACES
        for address, sizing in types.items():
            at = lib.fastdump_type_home(c, address)
            self._types[at].address, self._types[at].sizing = address, sizing

    def feed(self, address: int, data: Any) -> None:
        """Count the objects whose headers lie in *data*."""
        view = ffi.from_buffer(data)
        lib.fastdump_types_feed(self._c, view, len(view), address)

    @property
    def counts(self) -> dict[int, ObjectCount]:
        """By the address of their type."""
        return {t.address: ObjectCount(t.count, t.items) for t in self._types if t.address}

    @property
    def total(self) -> int:
        """All objects so far."""
        return sum(found.objects for found in self.counts.values())

    @property
    def places(self) -> list[int]:
        """Where they are."""
        return list(self._c.places[0 : self._c.places_found]) if self._c.places else []
