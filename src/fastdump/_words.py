"""The part of the C extension that follows words: thin, typed wrappers over ``csrc/api.h``."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, overload

from fastdump._heap import Heap, SizeClass, joined, set_windows, sizes_in
from fastdump._native import (
    _GAP_CAPACITY,
    Gap,
    Memory,
    Slice,
    _c_slices,
    _check,
    _take_gaps,
    aligned_buffer,
    ffi,
    lib,
    zeroed,
)
from fastdump._objects import TypeCounter
from fastdump._strings import CHUNK_SIZE, _cast, default_kernel, kernel_number
from fastdump.region import Range, Region

MOST_MODULES: int = lib.FASTDUMP_MODULES - 1
# By what the owner of a chunk is known, the surest first; numbers as of the C code.
TIERS = ("first word", "any word", "parent", "global", "further")
PARENT: int = lib.FASTDUMP_PARENT
GLOBAL: int = lib.FASTDUMP_GLOBAL
FURTHER: int = lib.FASTDUMP_FURTHER
PAGE_CLASSES = ("other", "zero", "pointers", "text", "high entropy")
MOST_CELLS = 1 << 16  # 2 MiB
_MOST_BLOCK: int = lib.FASTDUMP_BLOCK_MOST
_CLASS_PAGE: int = lib.FASTDUMP_CLASS_PAGE
_HIT = struct.Struct("<5Q")
_CELL = struct.Struct(f"<Q{1 + len(PAGE_CLASSES)}I")
_CAPACITY = 1 << 18
_MOST_KEPT, _MOST_BLOCKS = 1 << 18, 1 << 12  # before they are taken
assert _MOST_KEPT >= 2 * (_MOST_BLOCK // 8) + lib.FASTDUMP_FIND_SLACK, "room for any block"
_MOST_TODO = 1 << 20
_MOST_SAMPLED, _SAMPLE = 64 << 20, 1 << 20  # bytes: of all, and one after the other


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


class _Kept:
    """Blocks and their words: C fills it, then goes through it, and drops words as it does."""

    def __init__(self) -> None:
        # Not ffi.new(): what is not filled costs nothing.
        self._blocks = zeroed(_MOST_BLOCKS * ffi.sizeof("struct fastdump_block"))
        self._words = zeroed(_MOST_KEPT * 8)
        self.c = ffi.new("struct fastdump_kept *")
        self.c.blocks = ffi.cast("struct fastdump_block *", ffi.from_buffer(self._blocks))
        self.c.words = ffi.cast("uint64_t *", ffi.from_buffer(self._words))

    def rewind(self) -> Any:
        self.c.block = self.c.word = self.c.used = 0
        return self.c

    def runs(self) -> Iterator[Range]:
        """What its blocks hold: those that join are one."""
        block = ffi.new("uint64_t *")
        while block[0] < self.c.count:
            run = lib.fastdump_kept_run(self.c, block)
            yield Range(run.start, run.end)


def _is_dense_at(block: Any, address: int) -> bool:
    return bool(block.count == lib.FASTDUMP_TOO_MANY and block.address == address)


class Words:
    """What the words of memory point to; see ``csrc/words.c`` and ``csrc/owners.c``.

    Memory is entered once, in address order; then its words are counted, and followed as often as
    need be. What is kept of it for that is 6% at the most: blocks where more than 1 of 16 words
    point to modules or chunks are read again.

    Args:
        ranges: Of all modules, in address order.
        heap: Its segments are walked as their memory is entered.
        read: The memory of a range, as it was entered.
        kernel: As of ``fastdump._strings.kernels``.
        classify: See what pages hold: for :attr:`cells` and :attr:`pages`, which else are empty.
    """

    def __init__(
        self,
        ranges: Sequence[ModuleRange],
        heap: Heap,
        read: Callable[[Range], Iterable[tuple[int, Any]]],
        kernel: str = "",
        *,
        classify: bool = True,
    ) -> None:
        self._words = words = ffi.new("struct fastdump_words *")
        words.kernel = kernel_number(kernel or default_kernel())
        self._heap = heap
        self._keep: list[Any] = []
        self._read = read
        # Addresses of more bits, which are not kept, a program has only if it asks for them.
        most = 1 << lib.FASTDUMP_ADDRESS_BITS
        modules = [Range(r.start, r.end) for r in ranges if r.end <= most]
        segments = [Range(s.start, s.end) for s in heap.segments if s.end <= most]
        set_windows(words.windows, modules + segments)
        set_windows(words.module_windows, modules)
        set_windows(words.heap_windows, segments)
        words.ranges = self._own("struct fastdump_module_range[]", [(*r, 0) for r in ranges])
        words.range_count = len(ranges)
        words.heap = heap.c
        # Not ffi.new(): pages without a hit cost nothing.
        self._hits = zeroed(_CAPACITY * _HIT.size)
        words.hits = ffi.cast("struct fastdump_pointed *", ffi.from_buffer(self._hits))
        words.slots = self._own("uint32_t[]", _CAPACITY)
        words.capacity = _CAPACITY
        self._cells = zeroed(MOST_CELLS * _CELL.size)
        words.cells = ffi.cast("struct fastdump_cell *", ffi.from_buffer(self._cells))
        words.cell_capacity, words.cell_pages = MOST_CELLS if classify else 0, 1
        words.owned = self._own("struct fastdump_owned[]", MOST_MODULES + 1)
        self._buffer = aligned_buffer(CHUNK_SIZE)
        words.buffer, words.size = _cast("unsigned char *", self._buffer), CHUNK_SIZE
        words.kept_capacity, words.blocks_capacity = _MOST_KEPT, _MOST_BLOCKS
        self._todo = zeroed(_MOST_TODO * 8)
        words.todo = ffi.cast("uint64_t *", ffi.from_buffer(self._todo))
        words.todo_capacity = _MOST_TODO
        self._c_gaps = ffi.new("struct fastdump_gap[]", _GAP_CAPACITY)
        self._kept: list[_Kept] = []
        self._make_room()

    def _own(self, kind: str, content: Any) -> Any:
        self._keep.append(ffi.new(kind, content))
        return self._keep[-1]

    def feed_types(self, types: TypeCounter | None) -> None:
        """Feed *types* what is entered, too."""
        self._types = types
        self._words.types = types._c if types else ffi.NULL

    def enter(self, address: int, data: Any) -> None:
        """What *data*, whole words, holds."""
        view = ffi.from_buffer(data)
        done = 0
        while True:
            done += lib.fastdump_words_bytes(
                self._words, view + done, len(view) - done, address + done
            )
            if done == len(view):
                return
            self._take()

    def enter_slices(self, memory: Memory, slices: Sequence[Slice]) -> list[Gap]:
        """What slices hold; returns what could not be read.

        Raises:
            MemoryGone: The target exited or called exec.
        """
        c_slices = _c_slices(s._replace(offset=s.address) for s in slices)
        cursor = ffi.new("struct fastdump_cursor *")
        tally = ffi.new("struct fastdump_tally *")
        gaps: list[Gap] = []
        done = 0
        while not done:
            done = _check(
                lib.fastdump_words_slices(
                    memory._target,
                    c_slices,
                    len(slices),
                    self._words,
                    _GAP_CAPACITY,
                    cursor,
                    self._c_gaps,
                    tally,
                )
            )
            gaps += _take_gaps(cursor, self._c_gaps)
            if not done:
                self._take()
        return gaps

    def _make_room(self) -> None:
        words, self._room = self._words, _Kept()
        c = self._room.c
        words.blocks, words.kept = c.blocks, c.words
        words.blocks_used = words.kept_used = 0

    def _take(self) -> None:
        """Keep what C has found; there is room again."""
        if self._words.blocks_used:
            self._room.c.count = self._words.blocks_used
            self._kept.append(self._room)
            self._make_room()

    def _runs(self) -> Iterator[Range]:
        """All that was entered, in its order: what joins is one."""
        self._take()
        start = end = 0
        for run in itertools.chain.from_iterable(kept.runs() for kept in self._kept):
            if run.start != end:
                if end:
                    yield Range(start, end)
                start = run.start
            end = run.end
        if end:
            yield Range(start, end)

    def entered(self, regions: Sequence[Region]) -> Iterator[tuple[int, Range]]:
        """The same, of each region, whose number comes first."""
        number = 0
        for start, end in self._runs():
            while start < end:
                while regions[number].end <= start:
                    number += 1
                stop = min(end, regions[number].end)
                yield number, Range(start, stop)
                start = stop

    def _dense(self, where: Range) -> Iterator[Any]:
        """The words of a range that is read for them."""
        self._take()
        c = self._room.c
        for address, data in self._read(where):
            view = ffi.from_buffer(data)
            for at in range(0, len(view), _MOST_BLOCK):
                length = min(_MOST_BLOCK, len(view) - at)
                args = self._words, view + at, length, address + at
                lib.fastdump_words_find(*args, c.words, c.blocks)
                c.count = 1
                yield self._room.rewind()

    def _replay(self) -> Iterator[Any]:
        """All that was entered; who takes it goes on until a block has no words."""
        self._take()
        for kept in self._kept:
            c = kept.rewind()
            yield c
            while c.block < c.count:
                start = end = c.blocks[c.block].address
                while c.block < c.count and _is_dense_at(c.blocks[c.block], end):
                    end += c.blocks[c.block].length
                    c.block += 1
                yield from self._dense(Range(start, end))
                yield c

    def count(self) -> None:
        """Count the words that were entered; chunks get the owner that these give them."""
        self._heap.make_owners()
        for kept in self._replay():
            lib.fastdump_words_count(self._words, kept)
        lib.fastdump_words_settle(self._words)

    def follow(self, tier: int) -> int:
        """Give chunks the owner of the chunk that points to them; how many got one."""
        news = sum(lib.fastdump_words_follow(self._words, k, 0, tier) for k in self._replay())
        lib.fastdump_words_settle(self._words)
        return int(news)

    def chase(self, memory: Memory, slices: Sequence[Slice], most: int) -> int:
        """After ``follow(FURTHER)``: follow what that found further back, from chunk to chunk.

        Args:
            memory: What of it *slices* say is read, chunk by chunk: *most* chunks.

        Returns:
            How many chunks got an owner.
        """
        args = memory._target, _c_slices(slices), len(slices), most
        news = lib.fastdump_words_chase(self._words, *args)
        self._words.todo_used = 0  # the rest is found when all is gone through again
        return int(news)

    def follow_data(self, where: Range, module: int) -> int:
        """Give chunks to a module whose data, *where*, points to them; how many got one."""
        return sum(
            lib.fastdump_words_follow(self._words, kept, module, GLOBAL)
            for kept in self._dense(where)
        )

    def holders(self, data: Iterable[tuple[Range, int]]) -> list[list[int]]:
        """For each module how many pointers to its chunks lie with which module; of a sample.

        Args:
            data: Of modules, each with its number: there all pointers count.
        """
        counts = ffi.new("uint64_t[]", (MOST_MODULES + 1) ** 2)
        parts = (
            (Range(at, min(at + _SAMPLE, run.end)), 0)
            for run in self._runs()
            for at in range(run.start, run.end, _SAMPLE)
        )
        sample = itertools.islice(parts, 0, None, self.sampled)
        for where, module in itertools.chain(sample, data):
            for kept in self._dense(where):
                lib.fastdump_words_holders(self._words, kept, module, counts)
        width = MOST_MODULES + 1
        return [list(counts[at : at + width]) for at in range(0, len(counts), width)]

    @property
    def sampled(self) -> int:
        """One MiB in so many :meth:`holders` looks at."""
        return sum(run.end - run.start for run in self._runs()) // _MOST_SAMPLED + 1

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
    def sizes(self) -> list[list[SizeClass]]:
        """The live chunks by the number of the module that owns them, 0 being none, and by size."""
        owned = [sizes_in(each.sizes) for each in self._words.owned[0 : MOST_MODULES + 1]]
        rest = {each.size: each for each in joined(s.sizes for s in self._heap.segments)}
        for size, chunks, length in joined(owned):
            rest[size] = SizeClass(size, rest[size].chunks - chunks, rest[size].bytes - length)
        return [[each for each in rest.values() if each.chunks], *owned[1:]]

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
