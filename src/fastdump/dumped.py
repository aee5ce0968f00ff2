"""Dumps as sources: what every kind of dump has, once it is known where its bytes lie.

Consistency: that of the dump. Page visibility: what the dump says of memory that it has no bytes
of. It is zero where the dump covers it (``fastdump dump`` writes down what), else it is a gap.
"""

from __future__ import annotations

import bisect
import errno
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from fastdump._native import PLAIN, Gap, Memory, Slice
from fastdump.gaps import merged
from fastdump.labels import Label
from fastdump.manifest import Manifest
from fastdump.place import Place, joined, with_zeros
from fastdump.region import Range, Region, following
from fastdump.selection import Part, Preset, Rule, select
from fastdump.source import NOT_IN_DUMP, NOT_MAPPED, Chunk, Source, Zeros
from fastdump.storage import LocalFile, Lost, Storage


class Extent(NamedTuple):
    """A part of a region: its bytes (``slice``), or why there are none (``gap``), or zeros."""

    start: int
    end: int
    slice: Slice | None = None
    gap: Gap | None = None


class Dumped(Source):
    """A dump, opened for reading.

    Attributes:
        storages: Where its bytes lie; the ``file`` of a slice is a number of one.
        manifest: Of ``fastdump dump``; None if another program made the dump.
        whole: For each region the ranges that it covers: what has no bytes there is zero.
        notes: What a reader should know of it: lines of text.

    Args:
        slices: Its bytes, in address order, without overlap, within the regions.
        gaps: What it has no bytes of, and why, likewise. What lies between is zero.
    """

    def __init__(
        self,
        name: str,
        format: str,
        regions: Sequence[Region],
        labels: Sequence[Label],
        slices: Sequence[Slice],
        gaps: Sequence[Gap],
        storages: Sequence[Storage],
        whole: Sequence[Sequence[Range]],
        manifest: Manifest | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.name, self.format = name, format
        self._regions, self._labels = regions, labels
        self.gaps, self.storages, self.whole = gaps, storages, whole
        self.manifest, self.notes = manifest, notes
        self._starts = [region.start for region in regions]
        self._extents = list(_extents(slices, gaps))
        self._extent_starts = [extent.start for extent in self._extents]

    @property
    def regions(self) -> Sequence[Region]:
        return self._regions

    @property
    def labels(self) -> Sequence[Label]:
        return self._labels

    @property
    def slices(self) -> list[Slice]:
        """Its bytes, in address order."""
        return [extent.slice for extent in self._extents if extent.slice]

    @property
    @abstractmethod
    def process(self) -> dict[str, Any]:
        """Whose memory it is, as a manifest says it: ``pid``, ``comm`` ...; what is known."""

    def close(self) -> None:
        for storage in self.storages:
            storage.close()

    def extents(self, start: int, end: int) -> Iterator[Extent]:
        """All of a range that lies in one region, in order."""
        for extent in following(self._extents, self._extent_starts, start):
            if extent.start >= end:
                break
            if extent.end <= start:
                continue
            if start < extent.start:
                yield Extent(start, extent.start)
            first, last = max(start, extent.start), min(end, extent.end)
            part, gap = extent.slice, extent.gap
            yield Extent(
                first,
                last,
                part and part.part(first - extent.start, last - first),
                gap and gap._replace(start=first, end=last),
            )
            start = last
        if start < end:
            yield Extent(start, end)

    def known(self) -> tuple[list[int], list[int]]:
        """For each region the bytes that the dump has, and those that are known to be zero."""
        data = [0] * len(self._regions)
        zeros = [region.length for region in self._regions]
        for extent in self._extents:
            number = max(bisect.bisect_right(self._starts, extent.start) - 1, 0)
            while number < len(self._regions) and self._regions[number].start < extent.end:
                region = self._regions[number]
                length = max(min(extent.end, region.end) - max(extent.start, region.start), 0)
                zeros[number] -= length
                data[number] += length if extent.slice else 0
                number += 1
        return data, zeros

    def addresses(self, storage: int, start: int, end: int) -> Iterator[Range]:
        """The addresses whose bytes lie at ``[start, end)`` of a storage, in order."""
        for extent in self._extents:
            s = extent.slice
            if s and s.file == storage:
                first, last = max(start, s.file_offset), min(end, s.file_offset + s.length)
                if first < last:
                    bias = s.address - s.file_offset
                    yield Range(first + bias, last + bias)

    def walk(self, ranges: Iterable[Range]) -> Iterator[Chunk | Zeros | Gap]:
        for at, end in ranges:
            for region in following(self._regions, self._starts, at):
                if max(at, region.start) >= end:
                    break
                if region.end <= at:
                    continue
                if at < region.start:
                    yield Gap(at, region.start, NOT_MAPPED, errno.EFAULT)
                    at = region.start
                stop = min(region.end, end)
                for extent in self.extents(at, stop):
                    yield from self._walk_extent(extent)
                at = stop
            if at < end:
                yield Gap(at, end, NOT_MAPPED, errno.EFAULT)

    def direct(self) -> tuple[Memory, Sequence[Slice]]:
        file = self.storages[0] if self.storages else None
        if not isinstance(file, LocalFile):
            return super().direct()
        return Memory.of_files(), [s._replace(file=file.fd, flags=PLAIN) for s in self.slices]

    def mapped(self, start: int, end: int) -> memoryview | None:
        number = max(bisect.bisect_right(self._extent_starts, start) - 1, 0)
        for extent in self._extents[number : number + 1]:
            s = extent.slice
            if s and extent.start <= start < end <= extent.end:
                offset = s.file_offset + start - extent.start
                return self.storages[s.file].mapped(offset, end - start)
        return None

    def _walk_extent(self, extent: Extent) -> Iterator[Chunk | Zeros | Gap]:
        if extent.gap:
            yield extent.gap
        elif extent.slice is None:
            yield Zeros(extent.start, extent.end)
        else:
            at, s = extent.start, extent.slice
            for part in self.storages[s.file].parts(s.file_offset, s.length):
                if isinstance(part, Lost):
                    yield Gap(at, at + part.length, part.reason)
                    at += part.length
                else:
                    yield Chunk(at, memoryview(part))
                    at += len(part)

    def place(
        self,
        *,
        preset: Preset = Preset.DATA,
        rules: Sequence[Rule] = (),
        with_libraries: bool = False,
        swap: bool | None = None,
    ) -> Place:
        choices = select(self._regions, self._labels, preset, rules, with_libraries)
        runs, gaps, selected, absent = [], [], 0, 0
        for region, choice in zip(self._regions, choices, strict=True):
            found: list[Slice] = []
            if choice.included and choice.part is Part.WHOLE:
                for start, end in choice.ranges or (Range(region.start, region.end),):
                    extents = list(self.extents(start, end))
                    slices = [e.slice for e in extents if e.slice]
                    lost = [e.gap for e in extents if e.gap]
                    edges = {edge for gap in lost for edge in (gap.start, gap.end)}
                    found += joined(with_zeros(slices, Slice(start, end - start, 0), edges))
                    gaps += lost
                    selected += end - start
                    absent += sum(e.end - e.start for e in extents if not e.slice and not e.gap)
            runs.append(found)
        place = Place(self.name, Memory.of_files(), self._regions, self._labels, runs)
        place.storages = self.storages
        place.selected = selected
        place.gaps = merged(gaps)
        place.tally.absent = absent
        place.tally.gap = sum(gap.end - gap.start for gap in gaps)
        return place


def _extents(slices: Sequence[Slice], gaps: Sequence[Gap]) -> Iterator[Extent]:
    """Slices and gaps in one order; a gap hides what a slice has there (zeros, in a core)."""
    hidden = iter(gaps)
    gap = next(hidden, None)
    at = 0
    for s in slices:
        end = s.address + s.length
        at = max(at, s.address)
        while gap and gap.start < end:
            if at < gap.start:
                yield Extent(at, gap.start, s.part(at - s.address, gap.start - at))
            yield Extent(gap.start, gap.end, gap=gap)
            at = max(at, gap.end)
            gap = next(hidden, None)
        if at < end:
            yield Extent(at, end, s.part(at - s.address, end - at))
            at = end
    while gap:
        yield Extent(gap.start, gap.end, gap=gap)
        gap = next(hidden, None)


def uncovered(
    regions: Sequence[Region],
    whole: Sequence[Sequence[Range]],
    slices: Sequence[Slice],
    gaps: Sequence[Gap],
) -> list[Gap]:
    """The gaps of a dump, those that it does not tell of too: what it neither has nor covers.

    Args:
        whole: For each region the ranges that the dump covers.
    """
    taken = sorted(
        [
            *((s.address, s.address + s.length) for s in slices),
            *(gap[:2] for gap in gaps),
            *(tuple(found) for ranges in whole for found in ranges),
        ]
    )
    found = []
    at = 0
    ranges = iter(taken)
    taken_range = next(ranges, None)
    for region in regions:
        at = max(at, region.start)
        while taken_range and taken_range[0] < region.end:
            if at < taken_range[0]:
                found.append(Gap(at, taken_range[0], NOT_IN_DUMP))
            at = max(at, taken_range[1])
            if taken_range[1] > region.end:
                break
            taken_range = next(ranges, None)
        if at < region.end:
            found.append(Gap(at, region.end, NOT_IN_DUMP))
            at = region.end
    return sorted([*gaps, *found])
