"""A place: what is searched, a process or a file, as regions and the slices that hold data.

Consistency and page visibility are those of the process (``process.py``): it runs on, and no
page is touched that it has not touched. A file is read as it is now; its holes are not read.
"""

from __future__ import annotations

import bisect
import errno
import io
import itertools
import os
import stat
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fastdump import _native
from fastdump._native import (
    AGAIN,
    PAGE_SIZE,
    PLAIN,
    TAIL,
    ZEROS_BEFORE,
    ZEROS_BEHIND,
    Copier,
    Gap,
    Memory,
    Slice,
)
from fastdump._strings import HEAD, Found, Giant, Scanner
from fastdump.errors import SourceGone, UsageError
from fastdump.labels import Kind, Label
from fastdump.region import Region

if TYPE_CHECKING:
    from fastdump.survey import Survey

_NO_LIMIT = 2**64 - 1
_STREAM_SIZE = 1 << 20


class Piece(NamedTuple):
    """What one thread searches at a time.

    A string is found by the piece in whose ``[start, end)`` it becomes long enough: so the
    first slice may begin a page before, and the last may go on as far as a string does.
    """

    slices: list[Slice]
    start: int
    end: int


class Place:
    """Regions, labels, and the slices of each; offsets of slices are addresses.

    Attributes:
        memory: Whose addresses they are.
        name: As the user called it.
        selected: Bytes that were asked for.
        survey: Of the process; None of a file.

    Args:
        file: Descriptor of a file that it owns: it may have no slice (empty, or all a hole).
    """

    def __init__(
        self,
        name: str,
        memory: Memory,
        regions: Sequence[Region],
        labels: Sequence[Label],
        runs: Sequence[Sequence[Slice]],
        survey: Survey | None = None,
        file: int = -1,
    ) -> None:
        self.name, self.memory, self.survey = name, memory, survey
        self._file = file
        self.regions, self.labels = regions, labels
        self.slices = [
            s._replace(offset=s.address, region=number)
            for number, found in enumerate(runs)
            for s in found
        ]
        self._starts = [s.address for s in self.slices]
        self.selected = survey.selected if survey else sum(s.length for s in self.slices)

    def close(self) -> None:
        """Close the files that it owns; the process is its owner's."""
        if self.survey:
            self.survey.close()
        if self._file >= 0:
            fd, self._file = self._file, -1
            os.close(fd)

    def check(self) -> None:
        """Raise SourceGone if what was read may not have been the target."""
        if self.survey:
            self.survey.process.check()

    def gone(self) -> SourceGone:
        """The error for memory that is no more."""
        assert self.survey
        return self.survey.process.gone()

    def region_name(self, number: int) -> str:
        """What people call a region: its path, else its label."""
        region, label = self.regions[number], self.labels[number]
        if region.path:
            return region.path
        return f".bss of {label.module}" if label.module else label.kind.value

    def pieces(self, sizes: Iterator[int]) -> Iterator[Piece]:
        """All slices in address order, cut to pieces of *sizes* bytes (whole pages)."""
        slices: list[Slice] = []
        start, room = 0, next(sizes)
        for s in self.slices:
            done = 0
            while s.length - done > room:
                cut = done + room
                slices.append(_cut(s, done, cut))
                slices.append(_cut(s, cut, s.length, AGAIN | TAIL))
                yield Piece(slices, start, s.address + cut)
                slices = [_cut(s, cut - PAGE_SIZE, cut, AGAIN)]
                start, done, room = s.address + cut, cut, next(sizes)
            slices.append(_cut(s, done, s.length))
            room -= s.length - done
            if room <= 0:
                yield Piece(slices, start, _NO_LIMIT)
                slices, start, room = [], 0, next(sizes)
        if slices:
            yield Piece(slices, start, _NO_LIMIT)

    def read(self, copier: Copier, address: int, length: int) -> Iterator[memoryview]:
        """The bytes of a range, a buffer at a time, valid until the next step.

        What no slice holds is left out: it is absent.

        Raises:
            SourceGone: The target exited or called exec.
        """
        end = address + length
        number = max(bisect.bisect_right(self._starts, address) - 1, 0)
        for s in itertools.islice(self.slices, number, None):
            if s.address >= end:
                return
            first = max(s.address, address // PAGE_SIZE * PAGE_SIZE)
            last = min(s.address + s.length, -(-end // PAGE_SIZE) * PAGE_SIZE)
            while first < last:
                part = s.part(first - s.address, min(last - first, copier.size))
                try:
                    view, _ = copier.fill([part])
                except _native.MemoryGone:
                    raise self.gone() from None
                yield view[max(address - first, 0) : min(end - first, part.length)]
                first += part.length

    def around(self, copier: Copier, address: int, length: int, context: int) -> tuple[int, bytes]:
        """A range and *context* bytes before and behind it, as far as there is data: its start too.

        Raises:
            SourceGone: The target exited or called exec.
        """
        number = bisect.bisect_right(self._starts, address) - 1
        s = self.slices[number]
        start = max(address - context, s.address)
        end = min(address + length + context, s.address + s.length)
        return start, b"".join(map(bytes, self.read(copier, start, end - start)))


def _cut(s: Slice, start: int, end: int, flags: int = 0) -> Slice:
    """A part of a slice: what lies before and behind it holds for its ends only."""
    flags |= s.flags
    if start > 0:
        flags &= ~ZEROS_BEFORE
    if end < s.length:
        flags &= ~ZEROS_BEHIND
    return s.part(start, end - start)._replace(flags=flags)


def _with_zeros(runs: Sequence[Slice], whole: Slice, gaps: Container[int]) -> Iterator[Slice]:
    """The *runs* of data of a slice, told what lies around them: zeros, unless it is a gap.

    Args:
        gaps: Addresses at which one begins or ends.
    """
    for run in runs:
        end, flags = run.address + run.length, run.flags
        if run.address > whole.address and run.address not in gaps:
            flags |= ZEROS_BEFORE
        if end < whole.address + whole.length and end not in gaps:
            flags |= ZEROS_BEHIND
        yield run._replace(flags=flags)


def _joined(slices: Iterable[Slice]) -> list[Slice]:
    """Slices of a region that touch as one."""
    around = ZEROS_BEFORE | ZEROS_BEHIND
    found: list[Slice] = []
    for s in slices:
        last = found[-1] if found else None
        if last and s == last.part(last.length, s.length)._replace(
            flags=last.flags & ~around | s.flags & around
        ):
            flags = last.flags & ~ZEROS_BEHIND | s.flags & ZEROS_BEHIND
            found[-1] = last._replace(length=last.length + s.length, flags=flags)
        else:
            found.append(s)
    return found


def place_of(survey: Survey) -> Place:
    """What a survey selected of a live process.

    Raises:
        SourceGone: The target exited or called exec.
    """
    try:
        runs = survey.runs()
        survey.count_all_but(s for found in runs for s in found)
    except _native.MemoryGone:
        raise survey.process.gone() from None
    name = str(survey.process.pid)
    edges = {edge for gap in survey.gaps for edge in (gap.start, gap.end)}
    runs = [
        _joined(
            run
            for whole in slices
            for run in _with_zeros(
                [r for r in found if whole.address <= r.address < whole.address + whole.length],
                whole,
                edges,
            )
        )
        for slices, found in zip(survey.slices, runs, strict=True)
    ]
    return Place(name, survey.process.memory, survey.regions, survey.labels, runs, survey)


def place_of_file(path: str, fd: int) -> Place:
    """All of a regular file, read as it is; addresses are offsets. It owns *fd*."""
    found = os.fstat(fd)
    dev = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
    region = Region(0, found.st_size, "r--s", 0, dev, found.st_ino, path)
    whole = Slice(0, found.st_size, 0, PLAIN, fd, 0)
    runs = [whole.part(start, end - start) for start, end in _data_of(fd, found.st_size)]
    slices = list(_with_zeros(runs, whole, ()))
    return Place(path, Memory.of_files(), [region], [Label(Kind.FILE)], [slices], file=fd)


def _data_of(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a file holds data, in whole pages but for its end; lseek(2), SEEK_DATA."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA) // PAGE_SIZE * PAGE_SIZE
            end = -(-os.lseek(fd, start, os.SEEK_HOLE) // PAGE_SIZE) * PAGE_SIZE
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole to the end
                return
            start, end = at, size  # a file system that cannot tell
        yield max(start, at), min(end, size)
        at = max(end, at + 1)


def open_file(path: str) -> int:
    """A descriptor of a file to read.

    Raises:
        UsageError: It cannot be read, or is a folder.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {os.strerror(error.errno or 0)}", "name a pid or a file"
        ) from None
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise UsageError(f"{path} is a folder", "name its files")
    return fd


class Stream(Place):
    """What cannot be read twice, such as a pipe: front to back, by one thread.

    Args:
        most: Bytes of one string that are kept at the most while it goes on.
        file: Unbuffered.
    """

    def __init__(self, name: str, most: int, file: io.RawIOBase) -> None:
        region = Region(0, _NO_LIMIT, "r--s", 0, "00:00", 0, name)
        super().__init__(name, Memory.of_files(), [region], [Label(Kind.FILE)], [])
        self._most, self._pipe = most, file
        self._view = memoryview(b"")
        self._start = 0  # of the view
        self._held = bytearray()  # what lies before the view
        self.gaps: list[Gap] = []  # of strings that were longer than that

    def found(self, scanner: Scanner) -> Iterator[Found | Giant]:
        """Search it to its end."""
        buffer = memoryview(bytearray(_STREAM_SIZE))
        while True:
            filled = 0
            while filled < len(buffer) and (count := self._pipe.readinto(buffer[filled:])):
                filled += count
            self._view = buffer[:filled]
            last = filled < len(buffer)
            yield from scanner.feed(self._view, self._start, last)
            if last:
                return
            self._hold(min(scanner.open_giants(), default=_NO_LIMIT))

    def _hold(self, start: int) -> None:
        """Keep what strings that go on have from *start* on; and what may yet be too long."""
        end = self._start + len(self._view)
        self._held += self._view
        self._start = end
        keep = min(max(end - start, HEAD), self._most)
        del self._held[: max(len(self._held) - keep, 0)]
        self._view = memoryview(b"")

    def read(self, copier: Copier, address: int, length: int) -> Iterator[memoryview]:
        """The last *most* bytes, and the ones being searched."""
        held = self._start - len(self._held)
        if held > address:
            self.gaps.append(Gap(address, held, "string too long for a pipe"))
        end = address + length
        yield memoryview(bytes(self._held[max(address - held, 0) : max(end - held, 0)]))
        yield self._view[max(address - self._start, 0) : max(end - self._start, 0)]
