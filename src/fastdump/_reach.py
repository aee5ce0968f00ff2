"""The part of the C extension that marks what is reachable: typed wrappers over ``csrc/api.h``."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any, NamedTuple

from fastdump._heap import HEADER, Segment
from fastdump._native import Memory, Slice, _c_slices, ffi, lib
from fastdump._words import ModuleRange, set_windows
from fastdump.region import Range

PENDING: int = lib.FASTDUMP_PENDING
LEAKED: int = lib.FASTDUMP_LEAKED
_CAPACITY = 1 << 15  # groups: 2.3 MiB


class LeakGroup(NamedTuple):
    """Leaked chunks of ``size`` bytes, headers included, with the same module and first word.

    ``target``: that word, if it points into the module; 0: none, or several. ``size`` is 0 for
    several. ``example``: the address of what is in one of them, in a direct one if there is one.
    """

    target: int
    size: int
    module: int
    direct: int
    direct_bytes: int
    indirect: int
    indirect_bytes: int
    example: int


class Reach:
    """Marks the chunks that roots lead to, with two bits for each 16 bytes; see ``csrc/reach.c``.

    Args:
        segments: In address order.
        todo: So many chunks that are to be read are remembered by their address.
        slices: What of *memory* can be read without a walk.
    """

    def __init__(
        self, segments: Sequence[Segment], todo: int, memory: Memory, slices: Sequence[Slice]
    ) -> None:
        self._memory, self._slices = memory, _c_slices(slices)
        self.c = c = ffi.new("struct fastdump_reach *")
        self._array = ffi.new("struct fastdump_segment *[]", [s.c for s in segments] or [ffi.NULL])
        c.heap = {"segments": self._array, "count": len(segments)}
        set_windows(c.windows, (Range(s.start, s.next + HEADER) for s in segments))
        self._todo = ffi.new("uint64_t[]", todo)
        c.todo, c.todo_capacity = self._todo, todo
        lengths = [1 if s.single else (s.next - s.start) // 1024 + 1 for s in segments]
        # Not ffi.new(): pages that no chunk begins in cost nothing.
        self._bits = [mmap.mmap(-1, 8 * sum(lengths) or 1) for _ in range(2)]
        marked, pending = (ffi.cast("uint64_t *", ffi.from_buffer(bits)) for bits in self._bits)
        for segment, length in zip(segments, lengths, strict=True):
            segment.c.marked, segment.c.pending = marked, pending
            marked += length
            pending += length
        self._range = ffi.new("struct fastdump_range *")

    @property
    def marked(self) -> int:
        """The chunks that a root leads to, so far."""
        return int(self.c.marked)

    @property
    def pending(self) -> int:
        """How many of them are to be read."""
        return int(self.c.pending)

    def root(self, data: Any) -> None:
        """Mark what *data*, whole words, points to."""
        view = ffi.from_buffer(data)
        lib.fastdump_reach_root(self.c, view, len(view))

    def chase(self, most: int, limit: int) -> int:
        """Read what is to be read page by page; how many pages it tried: see ``csrc/api.h``."""
        args = self._memory._target, self._slices, len(self._slices), most, limit
        return int(lib.fastdump_reach_chase(self.c, *args))

    def take_todo(self) -> list[int]:
        """The addresses of some that are to be read, or were: in order, and only once."""
        found = sorted(self._todo[0 : self.c.todo_used])
        self.c.todo_used = 0
        return found

    def sweep(self, sweeping: bool) -> None:
        """Whether all that are to be read and lie further on will be, without a list of them."""
        self.c.sweeping = sweeping

    def next(self, segment: Segment, start: int, what: int = PENDING) -> int:
        """The first chunk from *start* on that is PENDING or LEAKED; 0 if there is none."""
        return int(lib.fastdump_reach_next(segment.c, start, what))

    def window(
        self, segment: Segment, chunk: int, length: int, what: int = PENDING
    ) -> Range | None:
        """What is to be read with *chunk*, and is to be fed next: see ``csrc/api.h``.

        None if *chunk* is not PENDING, or LEAKED, any more.
        """
        if not lib.fastdump_reach_window(self.c, segment.c, chunk, length, what, self._range):
            return None
        return Range(self._range.start, self._range.end)

    def feed(self, segment: Segment, address: int, length: int, data: Any = None) -> None:
        """Mark what the pending chunks in this memory point to.

        Args:
            data: None: it is zero, or cannot be had.
        """
        view = ffi.NULL if data is None else ffi.from_buffer(data)
        lib.fastdump_reach_feed(self.c, segment.c, view, length, address)


class Leaked:
    """What of the chunks of *reach* no root leads to, when nothing is pending any more.

    Args:
        ranges: Of all modules, in address order.
    """

    def __init__(self, reach: Reach, ranges: Sequence[ModuleRange]) -> None:
        self._reach = reach
        self._c = c = ffi.new("struct fastdump_leaks *")
        c.reach = reach.c
        set_windows(c.windows, (Range(r.start, r.end) for r in ranges))
        self._ranges = ffi.new("struct fastdump_module_range[]", [(*r, 0) for r in ranges])
        c.ranges, c.range_count = self._ranges, len(ranges)
        self._groups = ffi.new("struct fastdump_leak_group[]", _CAPACITY)
        c.groups, c.capacity = self._groups, _CAPACITY

    def point(self, segment: Segment, address: int, length: int, data: Any = None) -> None:
        """Remember which leaked chunks those in this memory point to; as :meth:`Reach.feed`."""
        view = ffi.NULL if data is None else ffi.from_buffer(data)
        lib.fastdump_leaks_point(self._c, segment.c, view, length, address)

    def group(self, segment: Segment, address: int, length: int, data: Any = None) -> None:
        """Enter the leaked chunks in this memory, all of which was pointed from before."""
        view = ffi.NULL if data is None else ffi.from_buffer(data)
        lib.fastdump_leaks_group(self._c, segment.c, view, length, address)

    @property
    def groups(self) -> list[LeakGroup]:
        """All of them."""
        return [
            LeakGroup(
                g.target,
                g.size,
                g.module,
                g.direct,
                g.direct_bytes,
                g.indirect,
                g.indirect_bytes,
                g.example,
            )
            for g in self._groups
            if g.used
        ]
