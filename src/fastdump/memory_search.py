"""Search a place for patterns: a few threads, matches in order; and the Python API of it.

Every place of every pattern is found, overlapping ones too, except those of regular expressions
(``expressions.py``). A match lies within one region and never reaches across a gap; it may reach
into what is known to be zero.
"""

from __future__ import annotations

import heapq
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fastdump import _native
from fastdump._native import (
    PAGE_SIZE,
    ZEROS_BEFORE,
    ZEROS_BEHIND,
    Copier,
    Gap,
    Memory,
    Slice,
    Tally,
)
from fastdump._search import Hit, Needle, Searcher, Tables, Target
from fastdump.addresses import ranges_of, region_name, short_name
from fastdump.crew import usual_threads
from fastdump.errors import EXIT_NOTHING
from fastdump.expressions import LONGEST, Expression, Windows
from fastdump.labels import Label
from fastdump.matches import opened
from fastdump.patterns import Bytes, Pattern, Pointers, of_zeros, parse
from fastdump.place import Place
from fastdump.region import Range, Region
from fastdump.selection import Preset, Rule
from fastdump.source import Source
from fastdump.sweep import LEAST_PIECE, Sweep, missed, sweep

_BLOCK = 1 << 20
_HELD = 64 << 10
_NO_LIMIT = 2**64 - 1


class PatternMatch(NamedTuple):
    """A place of a pattern, which is as it was given."""

    address: int
    length: int
    pattern: str
    region: Region
    label: Label


@dataclass
class SearchReport(Sweep):
    """What a search came to.

    Attributes:
        counts: Matches of each pattern.
    """

    counts: list[int]

    @property
    def matches(self) -> int:
        return sum(self.counts)

    @property
    def exit_code(self) -> int:
        """As grep: 1 if there is nothing; but with a gap, that is not certain."""
        return super().exit_code or (0 if self.matches else EXIT_NOTHING)


def tables_of(place: Place, patterns: Sequence[Pattern], align: int = 1) -> Tables:
    """What C searches for: all but the regular expressions.

    Raises:
        UsageError: There is no region of a name.
    """
    needles, targets = [], []
    for number, pattern in enumerate(patterns):
        if isinstance(pattern, Bytes):
            needles.append(Needle(number, pattern.value, pattern.mask))
        elif isinstance(pattern, Pointers):
            targets += [Target(number, found) for found in _ranges_of(pattern, place)]
    return Tables(needles, targets, align)


def _ranges_of(pattern: Pointers, place: Place) -> list[Range]:
    """A region's name means all of it, anything else without a length that very address."""
    names = {region_name(*both) for both in zip(place.regions, place.labels, strict=True)}
    named = any(pattern.target in (name, short_name(name)) for name in names)
    found = ranges_of(pattern.target, place, None if named else 1)
    if found and found[0].start == 0:
        raise of_zeros(pattern.text)
    return found


def stretches(
    memory: Memory, batches: Iterable[Sequence[Slice] | Gap], tally: Tally, gaps: list[Gap]
) -> Iterator[tuple[int, int, memoryview]]:
    """All of the slices: address, region, and bytes that are valid until the next step.

    They follow one another except across gaps; zeros around them are given as far as a pattern may
    reach. What was read, and what could not be, is added to *tally* and *gaps*.

    Raises:
        MemoryGone: The target exited or called exec.
    """
    copier = Copier(memory, _BLOCK, tally, gaps)
    zeros = memoryview(bytes(LONGEST))
    reached = 0
    for batch in batches:
        if isinstance(batch, Gap):
            gaps.append(batch)
            tally.gap += batch.end - batch.start
            continue
        for s in batch:
            if s.flags & ZEROS_BEFORE and s.address != reached:
                yield s.address - LONGEST, s.region, zeros
            for done in range(0, s.length, _BLOCK):
                part = s.part(done, min(_BLOCK, s.length - done))
                known = len(gaps)
                view, _ = copier.fill([part])
                at = start = part.address
                for gap in [*gaps[known:], Gap(start + part.length, 0, "")]:
                    if at < gap.start:
                        yield at, s.region, view[at - start : gap.start - start]
                        reached = gap.start
                    at = gap.end
            if s.flags & ZEROS_BEHIND and s.address + s.length == reached:
                yield reached, s.region, zeros
                reached += LONGEST


class ExpressionSearcher:
    """Regular expressions and, beside them, other patterns: one thread, front to back.

    What an expression finds depends on what it found before, so the work is not shared out.
    """

    def __init__(
        self, tables: Tables, expressions: Iterable[tuple[int, Expression]], align: int = 1
    ) -> None:
        self._windows = Windows(expressions)
        self._searcher = Searcher(tables)
        self._align = align
        self._waiting: list[Hit] = []  # a heap
        self._next = self._region = 0
        self.tally, self.gaps, self.written = Tally(), list[Gap](), 0
        self.out_size, self.kernel = self._searcher.out_size, self._searcher.kernel

    def scan(
        self,
        memory: Memory,
        batches: Iterable[Sequence[Slice] | Gap],
        start: int = 0,
        end: int = _NO_LIMIT,
    ) -> Iterator[list[Hit]]:
        """As :meth:`Searcher.scan`, but all of the slices at once."""
        for address, region, data in stretches(memory, batches, self.tally, self.gaps):
            yield self._feed(address, region, data)
        yield self._end()

    def _feed(self, address: int, region: int, data: bytes | memoryview) -> list[Hit]:
        """More bytes; the matches that are certain by now."""
        found = []
        if (address, region) != (self._next, self._region):
            found = self._end()
            self._windows.begin(address)
        self._next, self._region = address + len(data), region
        self._take(self._windows.feed(data))
        for hits in self._searcher.feed(data, address, region, False):
            self._wait(hits)
        return found + self._before(self._next - LONGEST)

    def _end(self) -> list[Hit]:
        """The memory ends here."""
        self._take(self._windows.feed(b"", last=True))
        for hits in self._searcher.feed(b"", self._next, self._region, True):
            self._wait(hits)
        return self._before(_NO_LIMIT)

    def _take(self, found: Iterable[tuple[int, int, int]]) -> None:
        self._wait(
            Hit(address, number, self._region, length)
            for address, number, length in found
            if address % self._align == 0
        )

    def _wait(self, hits: Iterable[Hit]) -> None:
        for hit in hits:
            heapq.heappush(self._waiting, hit)

    def _before(self, address: int) -> list[Hit]:
        found = []
        while self._waiting and self._waiting[0].address < address:
            found.append(heapq.heappop(self._waiting))
        return found


def search_place(
    place: Place,
    patterns: Sequence[Pattern],
    handle: Callable[[list[Hit]], None] | None = None,
    *,
    align: int = 1,
    threads: int | None = None,
) -> SearchReport:
    """Search a place.

    Args:
        handle: Called with matches, in the order of addresses and, at the same address, of
            patterns; never by two threads at the same time. It may raise :class:`Enough`.
            None to count only.
        align: Only addresses that are multiples of it.

    Raises:
        SourceGone: The target exited or called exec.
        UsageError: There is no region of a name.
    """
    tables = tables_of(place, patterns, align)
    expressions = _expressions(patterns)
    counts = [0] * len(patterns)

    def count(hits: list[Hit]) -> None:
        for hit in hits:
            counts[hit.number] += 1
        if handle:
            handle(hits)

    if expressions:
        scanner = ExpressionSearcher(tables, expressions, align)
        swept = sweep(place, [scanner], count, sizes=itertools.repeat(_NO_LIMIT))
    else:
        searchers = [
            Searcher(tables, with_hits=handle is not None)
            for _ in range(threads or usual_threads())
        ]
        swept = sweep(place, searchers, handle)
        for searcher in searchers:
            for number, found in enumerate(searcher.counts):
                counts[number] += found
    return SearchReport(**vars(swept), counts=counts)


def _expressions(patterns: Sequence[Pattern]) -> list[tuple[int, Expression]]:
    return [(n, pattern) for n, pattern in enumerate(patterns) if isinstance(pattern, Expression)]


class Reader:
    """Reads matches again, and what lies around them: some pages at a time, so that matches near
    one another are cheap.

    What no slice holds is known to be zero, as far as a match goes; context ends there.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._copier = Copier(place.memory)
        self._start, self._held = 0, memoryview(b"")

    def around(self, hit: Hit, before: int, behind: int) -> tuple[int, bytes]:
        """The bytes of a match, and as many before and behind it: their address too.

        Raises:
            SourceGone: The target exited or called exec.
        """
        start, end = hit.address, hit.address + hit.length
        around = self._place.slices_in(start, max(end, start + 1))
        first = max(start - before, min(start, around[0].address))
        last = min(end + behind, max(end, around[-1].address + around[-1].length))
        found = bytearray(last - first)
        for s in around:
            at, stop = max(first, s.address), min(last, s.address + s.length)
            found[at - first : stop - first] = self._read(s, at, stop)
        return first, bytes(found)

    def _read(self, s: Slice, start: int, end: int) -> bytes:
        if start < self._start or end > self._start + len(self._held):
            at = max(s.address, start // PAGE_SIZE * PAGE_SIZE)
            wanted = max(_HELD, -(-(end - at) // PAGE_SIZE) * PAGE_SIZE)
            length = min(wanted, s.address + s.length - at)
            held = bytearray(length)
            for batch in self._place.batches([s.part(at - s.address, length)]):
                if isinstance(batch, Gap):
                    continue
                try:
                    view, _ = self._copier.fill(batch)
                except _native.MemoryGone:
                    raise self._place.gone() from None
                to = batch[0].address - at
                held[to : to + len(view)] = view
            self._start, self._held = at, memoryview(held)
        return bytes(self._held[start - self._start : end - self._start])


def search(
    source: int | str | os.PathLike[str] | Source | Place,
    patterns: Sequence[str | bytes | Pattern],
    *,
    ignore_case: bool = False,
    align: int = 1,
    rules: Sequence[Rule] = (),
    preset: Preset = Preset.DATA,
    with_libraries: bool = False,
    swap: bool | None = None,
) -> Iterator[PatternMatch]:
    """Every place of every pattern in *source*, in address order.

    Args:
        source: A pid, the path of a core, a dump or any other file, or one that is open.
        patterns: As on the command line; bytes stand for themselves.
        ignore_case: ASCII letters of text in both cases.
        align: Only addresses that are multiples of it.
        rules, preset, with_libraries, swap: What is searched of a process: see :class:`Survey`.

    Raises:
        SourceGone: The target exited or called exec.
        NotPermitted: The kernel does not let us read it.
        UsageError: There is no such file, or a pattern makes no sense.

    Warns:
        IncompleteWarning: When all was searched, of memory that could not be read.

    >>> for match in fastdump.search(pid, ["u64:0xdeadbeef", "hex:ca fe ?? 01"]):  # doctest: +SKIP
    ...     print(f"{match.address:x}", match.pattern)
    """
    wanted = [_pattern(pattern, ignore_case) for pattern in patterns]
    with opened(
        source, rules=rules, preset=preset, with_libraries=with_libraries, swap=swap
    ) as place:
        tables = tables_of(place, wanted, align)
        expressions = _expressions(wanted)
        scanner: Searcher | ExpressionSearcher = (
            ExpressionSearcher(tables, expressions, align) if expressions else Searcher(tables)
        )
        size = _NO_LIMIT if expressions else LEAST_PIECE
        try:
            for piece in place.pieces(itertools.repeat(size)):
                for hits in scanner.scan(
                    place.memory, place.batches(piece.slices), piece.start, piece.end
                ):
                    for hit in hits:
                        yield PatternMatch(
                            hit.address,
                            hit.length,
                            wanted[hit.number].text,
                            place.regions[hit.region],
                            place.labels[hit.region],
                        )
            place.check()
        except _native.MemoryGone:
            raise place.gone() from None
        missed(place, [scanner]).warn()


def _pattern(pattern: str | bytes | Pattern, ignore_case: bool) -> Pattern:
    if isinstance(pattern, bytes):
        return parse(f"hex:{pattern.hex()}")
    return parse(pattern, ignore_case) if isinstance(pattern, str) else pattern
