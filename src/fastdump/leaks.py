"""Leaks: the live chunks of glibc's malloc that nothing in the program leads to any more.

Roots are those of LeakSanitizer, and more: the registers of all threads, their stacks from the
stack pointer up with all thread-local storage, the data of modules, and all other private memory
that is no chunk of malloc. A word that points anywhere into a chunk keeps it. So what is told to be
leaked is leaked, unless the program hides its pointers (tags, XOR, the kernel, files); and what is
leaked may be kept by a word that only looks like a pointer, or that nobody will read again.

Memory: the walk's bits and as many again, 3.1% of a heap of small chunks; whatever the order of
pointers, no list is as long as the heap.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fastdump._heap import Segment
from fastdump._native import PAGE_SIZE, Gap
from fastdump._reach import LEAKED, PENDING, Leaked, LeakGroup, Reach
from fastdump._words import ModuleRange
from fastdump.allocators import allocators, is_narrow
from fastdump.core_source import ElfCore
from fastdump.errors import UsageError
from fastdump.gaps import Gaps, merged
from fastdump.labels import Kind, Label
from fastdump.ledger import STACKS
from fastdump.live_source import LiveSource
from fastdump.malloc_glibc import GlibcHeap, walk_glibc
from fastdump.modules import Modules
from fastdump.pointers import Pointers
from fastdump.region import Range, Region
from fastdump.snapshot import NONE
from fastdump.source import NOT_IN_DUMP, Chunk, Source, Zeros
from fastdump.vtables import Vtables

_WINDOW = 1 << 20
_GRAIN = 16 << 10  # what is read around one chunk: a power of 2
_LZ4_COST = 4 << 20  # what it takes to read that of an LZ4 core: a frame
_FEW = 256  # chunks that are always read one by one rather than by a sweep
_MOST_TARGETS = 2048  # that are looked at for types
_RED_ZONE = 128  # below the stack pointer: System V ABI for x86-64, 3.2.2
_Feed = Callable[[Segment, int, int, Any], None]


@dataclass
class Count:
    """Chunks, and their bytes with headers."""

    chunks: int = 0
    bytes: int = 0


@dataclass
class LeakRow:
    """Leaked chunks of one size, type and module. Bytes.

    Attributes:
        size: Of each, header included; 0: several sizes.
        type: Whose vtable their first word is; empty if it is none.
        module: What their first word points into, else most of their words; empty: none.
        direct: No other leaked chunk points to these.
        indirect: One does.
        example: The address of one, a direct one if there is one.
    """

    size: int
    language: str
    type: str
    module: str
    example: int
    direct: Count = field(default_factory=Count)
    indirect: Count = field(default_factory=Count)

    @property
    def bytes(self) -> int:
        return self.direct.bytes + self.indirect.bytes

    @property
    def chunks(self) -> int:
        return self.direct.chunks + self.indirect.chunks


@dataclass
class Leaks(Gaps):
    """What leaked, and what did not.

    Attributes:
        pause: How a process was stopped for it: ``fork``, ``freeze`` or ``none``; of a dump empty.
        live: All chunks in use: ``reachable``, ``direct`` and ``indirect`` ones.
        roots: Bytes whose words were taken for pointers.
        rows: The leaked chunks, those with the most bytes first.
        problems: Why the figures may be wrong: sentences. Empty: they are exact.
        notes: Why types may lack their names: sentences.
    """

    name: str
    pause: str
    live: Count
    direct: Count
    indirect: Count
    roots: int
    rows: list[LeakRow]
    problems: list[str]
    notes: list[str]
    gaps: list[Gap]
    swap_asked: bool = False

    @property
    def reachable(self) -> Count:
        return Count(
            self.live.chunks - self.direct.chunks - self.indirect.chunks,
            self.live.bytes - self.direct.bytes - self.indirect.bytes,
        )

    def to_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "version": 1,
            "source": self.name,
            "pause": self.pause,
            "exact": not self.problems,
            "live": asdict(self.live),
            "reachable": asdict(self.reachable),
            "direct": asdict(self.direct),
            "indirect": asdict(self.indirect),
            "roots": self.roots,
            "leaks": [asdict(row) for row in self.rows],
            "problems": self.problems,
            "notes": self.notes,
            "gaps": [gap._asdict() for gap in self.gaps],
        }


def leaks(source: Source, *, debuginfod: bool = False) -> Leaks:
    """What of the heap of a source no root leads to.

    Args:
        debuginfod: As of :class:`fastdump.pointers.Pointers`.

    Raises:
        UsageError: It has no heap of glibc's malloc.
        SourceGone: The target exited or called exec.
    """
    modules = Modules(source)
    heap = walk_glibc(source)
    if heap is None:
        found = allocators(source, Pointers(source))
        if is_narrow(source):
            found.append("pointers of 32 bits")
        raise UsageError(
            f"{source.name} has no heap of glibc's malloc"
            + (f", but uses {' and '.join(found)}" if found else ""),
            "fastdump why tells of other memory"
            if isinstance(source, LiveSource)
            else "it is found by the data of libc, which dumps of the formats core and lz4 have",
        )
    return _Hunt(source, modules, heap, debuginfod).result()


class _Hunt:
    def __init__(
        self, source: Source, modules: Modules, heap: GlibcHeap, debuginfod: bool = False
    ) -> None:
        self._source, self._modules, self._heap = source, modules, heap
        self._segments = heap.segments
        self._pointers = Pointers(source, debuginfod)
        self._gaps: list[Gap] = []
        self._roots = 0
        self._problems = list(heap.problems)
        memory, slices = source.direct()
        if isinstance(source, LiveSource) and (
            not source.process.is_copy or any(found.swapped for found in source.residency)
        ):
            slices = []  # more is read than the walk has read: of a copy it does no harm
        held = sum(segment.next - segment.start for segment in self._segments)
        cost = PAGE_SIZE if slices else _LZ4_COST if source.format == "lz4" else _GRAIN
        self._few = max(held // cost, _FEW)
        self._reach = Reach(self._segments, 2 * self._few, memory, slices)

    def result(self) -> Leaks:
        self._feed_roots()
        self._follow()
        groups = self._leaked()
        direct = Count(sum(g.direct for g in groups), sum(g.direct_bytes for g in groups))
        indirect = Count(sum(g.indirect for g in groups), sum(g.indirect_bytes for g in groups))
        heap = self._heap
        assert self._reach.marked + direct.chunks + indirect.chunks == heap.live
        if self._gaps:
            self._problems.append("memory could not be read, and what only that points to is told")
        snapshot = self._source.snapshot if isinstance(self._source, LiveSource) else None
        if snapshot and snapshot.is_over:
            self._problems.append("the freeze ended before all was read")
        pause = snapshot.pause.kind if snapshot else NONE
        rows = self._rows(groups)
        return Leaks(
            name=self._source.name,
            pause=pause if isinstance(self._source, LiveSource) else "",
            live=Count(heap.live, heap.live_bytes),
            direct=direct,
            indirect=indirect,
            roots=self._roots,
            rows=rows,
            problems=self._problems,
            notes=self._pointers.problems,
            gaps=merged(sorted(set(self._gaps))),  # memory is read more than once
        )

    # --- roots ---------------------------------------------------------------------------

    def _threads(self) -> tuple[list[int], list[bytes]]:
        """The stack pointers of the threads, and what is in their registers."""
        stacks: list[int] = []
        registers: list[bytes] = []
        if isinstance(self._source, LiveSource):
            snapshot = self._source.snapshot
            for thread in snapshot.threads if snapshot else []:
                registers += thread.regsets.values()
                stacks.append(thread.stack_pointer)
        elif isinstance(self._source, ElfCore):
            registers = self._source.elf.registers
            stacks = [thread.stack_pointer for thread in self._source.elf.threads]
        unknown = stacks.count(0)
        if not registers:
            self._problems.append(
                "there are no registers: a chunk that only a register points to counts as leaked, "
                "and stacks keep what they point to anywhere"
            )
        elif unknown:
            self._problems.append(f"{unknown} threads wait in the kernel: they have no registers")
        return [stack for stack in stacks if stack], registers

    def _feed_roots(self) -> None:
        if isinstance(self._source, LiveSource) and not self._source.snapshot:
            self._problems.append("the process was not stopped: pointers may have moved meanwhile")
        for allocator in allocators(self._source, self._pointers):
            self._problems.append(
                f"{allocator} is in use: its memory keeps what it points to, also where it is free"
            )
        stacks, registers = self._threads()
        for words in registers:
            self._reach.root(words)
        for region, where in self._root_ranges(stacks):
            for part in self._source.walk([where]):
                if isinstance(part, Chunk):
                    self._reach.root(part.data)
                    self._roots += len(part.data)
                elif isinstance(part, Gap) and not self._is_as_in_file(region, part):
                    self._gaps.append(part)

    def _is_as_in_file(self, region: Region, gap: Gap) -> bool:
        """Whether a core left out a page because its file has it: no pointer to a chunk."""
        return region.has_file and gap.reason == NOT_IN_DUMP and isinstance(self._source, ElfCore)

    def _root_ranges(self, stacks: Sequence[int]) -> Iterator[tuple[Region, Range]]:
        taken = self._heap.taken()
        ends = [found.end for found in taken]
        # A stack that lies in a chunk, as of a coroutine, says nothing of what is around it.
        stacks = sorted(stack for stack in stacks if not self._heap.segment_at(stack))
        for region, label in zip(self._source.regions, self._source.labels, strict=True):
            if not _may_hold_pointers(region, label):
                continue
            at = region.start
            lowest = bisect.bisect_left(stacks, region.start)
            if label.kind in STACKS and lowest < len(stacks) and stacks[lowest] < region.end:
                at = max(at, (stacks[lowest] - _RED_ZONE) // 8 * 8)
            for number in range(bisect.bisect_right(ends, at), len(taken)):
                if taken[number].start >= region.end:
                    break
                if at < taken[number].start:
                    yield region, Range(at, taken[number].start)
                at = taken[number].end
            if at < region.end:
                yield region, Range(at, region.end)

    # --- chunks --------------------------------------------------------------------------

    def _read(self, segment: Segment, where: Range, feed: _Feed) -> None:
        for part in self._source.walk([where]):
            if isinstance(part, Chunk):
                feed(segment, part.address, len(part.data), part.data)
                continue
            if not isinstance(part, Zeros):
                self._gaps.append(part)
            feed(segment, part.start, part.end - part.start, None)

    def _follow(self) -> None:
        """Read what is marked until all of it is.

        Few chunks one by one, many in a sweep over all memory; in turns, as pointers may be such
        that the one or the other gets on slowly.
        """
        reach = self._reach
        while reach.pending:
            budget = self._few
            while 0 < reach.pending <= self._few and budget > 0:
                budget -= reach.chase(self._few, budget)
                todo = reach.take_todo()
                if not todo:
                    break
                budget -= len(todo)
                for chunk in todo:
                    self._read_around(chunk)
            reach.sweep(True)
            self._read_all(PENDING, reach.feed)
            reach.sweep(False)

    def _read_around(self, chunk: int) -> None:
        segment = self._heap.segment_at(chunk)
        assert segment
        where = self._reach.window(segment, chunk, _GRAIN)
        if where:
            self._read(segment, where, self._reach.feed)

    def _read_all(self, what: int, feed: _Feed) -> None:
        for segment in self._segments:
            chunk = self._reach.next(segment, segment.start, what)
            while chunk:
                where = self._reach.window(segment, chunk, _WINDOW, what)
                assert where
                self._read(segment, where, feed)
                # A window ends 8 bytes into the next chunk.
                chunk = self._reach.next(segment, where.end // 16 * 16, what)

    def _leaked(self) -> list[LeakGroup]:
        leaked = Leaked(self._reach, self._modules.ranges or [ModuleRange(0, 1, 1)])
        self._read_all(LEAKED, leaked.point)
        self._read_all(LEAKED, leaked.group)
        return leaked.groups

    # --- rows ----------------------------------------------------------------------------

    def _rows(self, groups: Sequence[LeakGroup]) -> list[LeakRow]:
        vtables = Vtables(self._source, self._modules.ranges, self._pointers)
        sizes: Counter[int] = Counter()
        for group in groups:
            sizes[group.target] += group.direct_bytes + group.indirect_bytes
        sizes.pop(0, None)
        types = {target: vtables.type_of(target) for target, _ in sizes.most_common(_MOST_TARGETS)}
        rows: dict[tuple[int, str, str, str], LeakRow] = {}
        for group in sorted(groups, key=lambda g: (not g.direct, g.example)):
            language, name = types.get(group.target) or ("", "")
            key = group.size, language, name, self._modules.paths[group.module]
            row = rows.setdefault(key, LeakRow(*key, group.example))
            row.direct.chunks += group.direct
            row.direct.bytes += group.direct_bytes
            row.indirect.chunks += group.indirect
            row.indirect.bytes += group.indirect_bytes
        return sorted(rows.values(), key=lambda row: (-row.bytes, row.example))


def _may_hold_pointers(region: Region, label: Label) -> bool:
    """Private memory, but code, and files that are only read and no module."""
    if not region.readable or not region.private or label.kind in (Kind.KERNEL, Kind.DEVICE):
        return False
    return region.writable or not (region.has_file and (not label.module or region.perms[2] == "x"))
