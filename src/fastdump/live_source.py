"""A live process as a source; its consistency and page visibility are those of ``process.py``."""

from __future__ import annotations

import bisect
import contextlib
import errno
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from fastdump import _native
from fastdump._native import PAGE_SIZE, Copier, Gap, Memory, Residency, Slice
from fastdump.labels import Label
from fastdump.place import Surveyed
from fastdump.process import LiveProcess
from fastdump.region import Range, Region, following
from fastdump.selection import Preset, Rule
from fastdump.snapshot import Snapshot
from fastdump.source import CHUNK_SIZE, NOT_MAPPED, Chunk, Sink, Source, Zeros
from fastdump.survey import Survey

# Page tables are asked for so much at a time: a result of bounded size.
_WINDOW = 1 << 30
# One call into C: short enough to be interrupted.
_MOST_PIECE = 64 << 20
_ALL = (1 << 64) - 1
# What reads a part of a slice: whole pages.
_Read = Callable[[Slice], Iterator["Chunk | Zeros | Gap"]]


class LiveSource(Source):
    """The memory of a process; it owns *process*. Regions are those of the moment it was opened.

    Swapped pages are read, as by :class:`Survey`, while there is room for them.

    Attributes:
        snapshot: The pause that *process* is of; None if it was not stopped.
    """

    format = "process"

    def __init__(self, process: LiveProcess, snapshot: Snapshot | None = None) -> None:
        self.process, self.snapshot = process, snapshot
        self.name = str(process.pid)
        self._survey: Survey | None = None

    @property
    def _all(self) -> Survey:
        """Of everything that can be read."""
        if self._survey is None:
            self._survey = Survey(self.process, Preset.ALL)
            _ = self._survey.residency  # that of this moment
            self._starts = [region.start for region in self._survey.regions]
        return self._survey

    @property
    def regions(self) -> Sequence[Region]:
        return self._all.regions

    @property
    def labels(self) -> Sequence[Label]:
        return self._all.labels

    @property
    def residency(self) -> Sequence[Residency]:
        """What the page tables held of each region when it was opened."""
        return self._all.residency

    @functools.cached_property
    def resident(self) -> Sequence[int]:
        """The bytes of each region that were in the target's RAM then."""
        return self.process.resident(self.regions, self.residency)

    def close(self) -> None:
        if self._survey:
            self._survey.close()
        self.process.__exit__()

    def place(
        self,
        *,
        preset: Preset = Preset.DATA,
        rules: Sequence[Rule] = (),
        with_libraries: bool = False,
        swap: bool | None = None,
    ) -> Surveyed:
        survey = Survey(self.process, preset, rules, with_libraries=with_libraries, swap=swap)
        try:
            return Surveyed(survey)
        except BaseException:
            survey.close()
            raise

    def direct(self) -> tuple[Memory, Sequence[Slice]]:
        return self.process.memory, [Slice(0, _ALL, 0, _native.MEM_ONLY)]

    def read_into(self, address: int, buffer: Any) -> int:
        if self._is_present(address, len(memoryview(buffer).cast("B"))):
            return self.process.read_into(address, buffer, _native.MEM_ONLY)
        return super().read_into(address, buffer)

    def read(self, address: int, length: int) -> bytes:
        if self._is_present(address, length):
            buffer = bytearray(length)
            if self.process.read_into(address, buffer, _native.MEM_ONLY) == length:
                return bytes(buffer)
        return super().read(address, length)

    def _is_present(self, start: int, length: int) -> bool:
        """Whether a range may be read without a walk: all of it is in the target's RAM."""
        end = start + length
        survey = self._all
        number = bisect.bisect_right(self._starts, start) - 1
        if (
            not length
            or number < 0
            or survey.regions[number].end < end
            or not survey.slices[number]
        ):
            return False
        first, last = start // PAGE_SIZE * PAGE_SIZE, -(-end // PAGE_SIZE) * PAGE_SIZE
        try:
            (found,) = self.process.memory.residency([Range(first, last)])
        except _native.MemoryGone:
            raise self.process.gone() from None
        return length > 0 and found.present == last - first

    def walk(self, ranges: Iterable[Range]) -> Iterator[Chunk | Zeros | Gap]:
        with self._told():
            for start, end in ranges:
                yield from self._walk(start, end, self._parts)

    def pour(self, where: Range, sink: Sink) -> Iterator[Gap]:
        if where.start % PAGE_SIZE or where.end % PAGE_SIZE:
            yield from super().pour(where, sink)
            return

        def poured(whole: Slice) -> Iterator[Gap]:
            for at in range(0, whole.length, _MOST_PIECE):
                part = whole.part(at, min(whole.length - at, _MOST_PIECE))
                yield from sink.enter_slices(self.process.memory, [part])

        with self._told():
            for part in self._walk(where.start, where.end, poured):
                if isinstance(part, Gap):
                    yield part

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Tell of a target that is gone, at the latest at the end."""
        try:
            yield
            self.process.check()
        except _native.MemoryGone:
            raise self.process.gone() from None

    def _walk(self, at: int, end: int, read: _Read) -> Iterator[Chunk | Zeros | Gap]:
        survey = self._all
        numbers = range(len(survey.regions))
        for number in following(numbers, self._starts, at):
            region, slices = survey.regions[number], survey.slices[number]
            if max(at, region.start) >= end:
                break
            if region.end <= at:
                continue
            if at < region.start:
                yield Gap(at, region.start, NOT_MAPPED, errno.EFAULT)
                at = region.start
            stop = min(region.end, end)
            if not slices:
                yield Gap(at, stop, survey.choices[number].reason)
            for s in slices:  # --all: one, the whole region
                while at < stop:
                    window = min(stop, (at // _WINDOW + 1) * _WINDOW)
                    yield from self._walk_slice(s, at, window, read)
                    at = window
            at = stop
        if at < end:
            yield Gap(at, end, NOT_MAPPED, errno.EFAULT)

    def _walk_slice(
        self, s: Slice, at: int, end: int, read: _Read
    ) -> Iterator[Chunk | Zeros | Gap]:
        """A range within a slice: whole pages are asked for, and cut."""
        first = at // PAGE_SIZE * PAGE_SIZE
        last = -(-end // PAGE_SIZE) * PAGE_SIZE
        for part in read(s.part(first - s.address, last - first)):
            if isinstance(part, Chunk):
                head = max(at - part.address, 0)
                yield Chunk(part.address + head, part.data[head : end - part.address])
            else:
                yield part._replace(start=max(part.start, at), end=min(part.end, end))

    def _parts(self, whole: Slice) -> Iterator[Chunk | Zeros | Gap]:
        at, end = whole.address, whole.address + whole.length
        runs = self.process.memory.runs([whole], PAGE_SIZE, whole.length // PAGE_SIZE)
        for run in [*runs, Range(end, end)]:
            if at < run.start:
                copier = self._copier
                copier.gaps.clear()
                copier.count([whole.part(at - whole.address, run.start - at)])
                yield from _with_gaps(at, run.start, copier.gaps)
            if run.start < run.end:
                yield from self._chunks(whole.part(run.start - whole.address, run.end - run.start))
            at = run.end

    @functools.cached_property
    def _copier(self) -> Copier:
        return Copier(self.process.memory, CHUNK_SIZE)

    def _chunks(self, run: Slice) -> Iterator[Chunk | Gap]:
        """The bytes of a run, and what cannot be read of it."""
        copier = self._copier
        for at in range(0, run.length, copier.size):
            part = run.part(at, min(run.length - at, copier.size))
            copier.gaps.clear()
            view, _ = copier.fill([part])
            base = part.address
            for found in _with_gaps(base, base + part.length, copier.gaps):
                if isinstance(found, Zeros):
                    yield Chunk(found.start, view[found.start - base : found.end - base])
                else:
                    yield found


def _with_gaps(at: int, end: int, gaps: Iterable[Gap]) -> Iterator[Zeros | Gap]:
    """The gaps of a range, and what lies between."""
    for gap in list(gaps):
        if at < gap.start:
            yield Zeros(at, gap.start)
        yield gap
        at = gap.end
    if at < end:
        yield Zeros(at, end)
