"""A place: what is searched of a source, as regions and the slices that hold data.

Consistency and page visibility are those of the source. A plain file is read as it is now; its
holes are not read.
"""

from __future__ import annotations

import bisect
import errno
import io
import itertools
import os
import select
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
    Tally,
)
from fastdump._strings import HEAD, Found, Giant, Scanner
from fastdump.errors import SourceGone, UsageError, input_failed, not_opened
from fastdump.labels import Kind, Label
from fastdump.region import Region, following
from fastdump.storage import LocalFile, Storage, part_of
from fastdump.url import local_path

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
        storages: What the ``file`` of a slice is a number of; empty for a process.
        survey: Of the process; None of anything else.
        tally, gaps: What is accounted for before the search.
        biases: For each region, what is added to its addresses where they are printed.
    """

    def __init__(
        self,
        name: str,
        memory: Memory,
        regions: Sequence[Region],
        labels: Sequence[Label],
        runs: Sequence[Sequence[Slice]],
        storages: Sequence[Storage] = (),
    ) -> None:
        self.name, self.memory, self.storages = name, memory, storages
        self.regions, self.labels = regions, labels
        self.slices = [
            s._replace(offset=s.address, region=number)
            for number, found in enumerate(runs)
            for s in found
        ]
        self._starts = [s.address for s in self.slices]
        self.selected = sum(s.length for s in self.slices)
        self.survey: Survey | None = None
        self.tally, self.gaps = Tally(), list[Gap]()
        self.biases: Sequence[int] | None = None

    def close(self) -> None:
        """Let go of what it holds open; what it is part of is its owner's."""

    def check(self) -> None:
        """Raise SourceGone if what was read may not have been the target."""

    def gone(self) -> SourceGone:
        """The error for memory that is no more."""
        raise AssertionError("a file is not gone")

    def print_file_offsets(self) -> None:
        """Let addresses be printed as offsets in the file of each slice."""
        self.regions = [self.regions[s.region] for s in self.slices]
        self.labels = [self.labels[s.region] for s in self.slices]
        self.biases = [(s.file_offset - s.address) % 2**64 for s in self.slices]
        self.slices = [s._replace(region=number) for number, s in enumerate(self.slices)]

    def printed(self, address: int, region: int) -> int:
        """An address as it is printed."""
        return (address + (self.biases[region] if self.biases else 0)) % 2**64

    def batches(self, slices: Sequence[Slice]) -> Iterator[Sequence[Slice] | Gap]:
        """The same slices as the native code can read them, each batch until the next step."""
        if not self.storages:
            yield slices
            return
        for number, found in itertools.groupby(slices, key=lambda s: s.file):
            yield from self.storages[number].batches(list(found))

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
                slices.append(part_of(s, done, cut))
                slices.append(part_of(s, cut, s.length, AGAIN | TAIL))
                yield Piece(slices, start, s.address + cut)
                slices = [part_of(s, cut - PAGE_SIZE, cut, AGAIN)]
                start, done, room = s.address + cut, cut, next(sizes)
            slices.append(part_of(s, done, s.length))
            # Whole pages, as the kernels take whole blocks; a slice of a core may end anywhere.
            room = (room - (s.length - done)) // PAGE_SIZE * PAGE_SIZE
            if room <= 0:
                yield Piece(slices, start, _NO_LIMIT)
                slices, start, room = [], 0, next(sizes)
        if slices:
            yield Piece(slices, start, _NO_LIMIT)

    def sample(self, length: int, every: int) -> Iterator[Piece]:
        """Of all slices one after the other, one in *every* pieces of *length* bytes.

        *length* is whole pages. A piece ends with its slice: of small ones it may have less.
        """
        position = 0
        for s in self.slices:
            for start in range(-position % (length * every), s.length, length * every):
                end = min(start + length, s.length)
                slices = [part_of(s, start, end)]
                if start:
                    slices.insert(0, part_of(s, start - PAGE_SIZE, start, AGAIN))
                if end < s.length:
                    slices.append(part_of(s, end, s.length, AGAIN | TAIL))
                yield Piece(slices, s.address + start, s.address + end)
            position += -(-s.length // PAGE_SIZE) * PAGE_SIZE

    def slices_in(self, start: int, end: int) -> list[Slice]:
        """Those that hold some of a range."""
        found = following(self.slices, self._starts, start)
        until = itertools.takewhile(lambda s: s.address < end, found)
        return [s for s in until if s.address + s.length > start]

    def read(self, copier: Copier, address: int, length: int) -> Iterator[tuple[int, memoryview]]:
        """The bytes of a range with their addresses, a buffer at a time, valid until the next step.

        What no slice holds is left out, and what is lost.

        Raises:
            SourceGone: The target exited or called exec.
        """
        end = address + length
        for s in following(self.slices, self._starts, address):
            if s.address >= end:
                return
            first = max(s.address, address // PAGE_SIZE * PAGE_SIZE)
            last = min(s.address + s.length, -(-end // PAGE_SIZE) * PAGE_SIZE)
            while first < last:
                part = s.part(first - s.address, min(last - first, copier.size))
                for batch in self.batches([part]):
                    if isinstance(batch, Gap):
                        continue
                    try:
                        view, _ = copier.fill(batch)
                    except _native.MemoryGone:
                        raise self.gone() from None
                    at = batch[0].address
                    yield max(address, at), view[max(address - at, 0) : max(end - at, 0)]
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
        found = bytearray()
        for at, view in self.read(copier, start, end - start):
            if at > start + len(found):  # something is lost between
                if at > address:
                    break
                start, found = at, bytearray()
            found += view
        return start, bytes(found)


def with_zeros(runs: Sequence[Slice], whole: Slice, gaps: Container[int]) -> Iterator[Slice]:
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


def joined(slices: Iterable[Slice]) -> list[Slice]:
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


class Surveyed(Place):
    """What a survey selected of a live process; it owns the survey, not the process.

    Raises:
        SourceGone: The target exited or called exec.
    """

    def __init__(self, survey: Survey) -> None:
        try:
            # The little that is absent of a dense target is skipped as it is met.
            runs = survey.slices if survey.is_dense else survey.runs()
            survey.count_all_but(s for found in runs for s in found)
        except _native.MemoryGone:
            raise survey.process.gone() from None
        edges = {edge for gap in survey.gaps for edge in (gap.start, gap.end)}
        runs = [
            joined(
                run
                for whole in slices
                for run in with_zeros(
                    [r for r in found if whole.address <= r.address < whole.address + whole.length],
                    whole,
                    edges,
                )
            )
            for slices, found in zip(survey.slices, runs, strict=True)
        ]
        process = survey.process
        super().__init__(str(process.pid), process.memory, survey.regions, survey.labels, runs)
        self._process, self.survey = process, survey
        self.selected, self.tally, self.gaps = survey.selected, survey.tally, survey.gaps

    def close(self) -> None:
        assert self.survey
        self.survey.close()

    def check(self) -> None:
        self._process.check()

    def gone(self) -> SourceGone:
        return self._process.gone()


class WholeFile(Place):
    """All of a file, read as it is; addresses are offsets. It owns *file*.

    Args:
        data: Where it is not known to be zero.
    """

    def __init__(self, name: str, file: Storage, data: Iterable[tuple[int, int]]) -> None:
        region = Region(0, file.size, "r--s", 0, "00:00", 0, name)
        whole = Slice(0, file.size, 0, PLAIN, 0, 0)
        slices = list(
            with_zeros([whole.part(start, end - start) for start, end in data], whole, ())
        )
        self._file = file
        super().__init__(name, Memory.of_files(), [region], [Label(Kind.FILE)], [slices], [file])

    @classmethod
    def of(cls, path: str, fd: int) -> WholeFile:
        """A regular file; it owns the descriptor."""
        file = LocalFile(fd)
        return cls(path, file, data_of(fd, file.size))

    def close(self) -> None:
        self._file.close()


def data_of(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a file holds data, in whole pages but for its end; lseek(2), SEEK_DATA.

    Less than a page at its end counts as data: what holes leave out is at least a page.
    """
    # tmpfs looks at every page for a hole, 5 ms a GiB: not where none can be.
    if _native.is_shared_memory(fd) and os.fstat(fd).st_blocks * 512 >= size > 0:
        yield 0, size
        return
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA) // PAGE_SIZE * PAGE_SIZE
            end = -(-os.lseek(fd, start, os.SEEK_HOLE) // PAGE_SIZE) * PAGE_SIZE
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole to the end
                return
            start, end = at, size  # a file system that cannot tell
        yield max(start, at), size if size - end < PAGE_SIZE else end
        at = max(end, at + 1)


def open_file(path: str, flags: int = 0) -> int:
    """A descriptor of a file to read, opened with *flags* of open(2).

    Raises:
        UsageError, NotPermitted: It cannot be read, or is a folder.
    """
    try:
        fd = os.open(local_path(path), os.O_RDONLY | os.O_CLOEXEC | flags)
    except OSError as error:
        raise not_opened(path, error, "name a pid or a file") from None
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise UsageError(f"{path} is a folder", "name its files")
    return fd


def tells_its_size(fd: int) -> bool:
    """Whether it is a regular file of as many bytes as it says; in /proc and /sys none is."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        return False
    try:
        last = os.pread(fd, 1, max(found.st_size - 1, 0))
    except OSError:  # a bad sector; but of no size, /proc/PID/mem
        return found.st_size > 0
    return bool(last) == (found.st_size > 0)


def open_regular(path: str) -> WholeFile:
    """A file that can be read again, at any place.

    Raises:
        UsageError: It cannot be read, or is a folder, or does not tell its size, as pipes do not.
    """
    fd = open_file(path, os.O_NONBLOCK)
    if not tells_its_size(fd):
        os.close(fd)
        raise UsageError(
            f"{path} is no regular file of a known size", "save what it gives to a file first"
        )
    return WholeFile.of(path, fd)


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
        """Search it to its end.

        Raises:
            CorruptDump: It cannot be read on; what came before has been searched.
        """
        buffer = memoryview(bytearray(_STREAM_SIZE))
        while True:
            filled, failed = self._fill(buffer)
            self._view = buffer[:filled]
            last = filled < len(buffer)
            yield from scanner.feed(self._view, self._start, last)
            if failed:
                raise input_failed(self.name, failed)
            if last:
                return
            self._hold(min(scanner.open_giants(), default=_NO_LIMIT))

    def _fill(self, buffer: memoryview) -> tuple[int, OSError | None]:
        """The bytes that were read; fewer than *buffer* has room for at the end, or at an error."""
        filled = 0
        while filled < len(buffer):
            try:
                count = self._pipe.readinto(buffer[filled:])
            except OSError as error:
                return filled, error
            if count is None:  # it does not block, and has nothing yet
                select.select([self._pipe], [], [])
                continue
            if not count:
                break
            filled += count
        return filled, None

    def _hold(self, start: int) -> None:
        """Keep what strings that go on have from *start* on; and what may yet be too long."""
        end = self._start + len(self._view)
        self._held += self._view
        self._start = end
        keep = min(max(end - start, HEAD), self._most)
        del self._held[: max(len(self._held) - keep, 0)]
        self._view = memoryview(b"")

    def read(self, copier: Copier, address: int, length: int) -> Iterator[tuple[int, memoryview]]:
        """The last *most* bytes, and the ones being searched."""
        held = self._start - len(self._held)
        if held > address:
            self.gaps.append(Gap(address, held, "string too long for a pipe"))
        end = address + length
        kept = memoryview(bytes(self._held[max(address - held, 0) : max(end - held, 0)]))
        yield max(address, held), kept
        at = max(address, self._start)
        yield at, self._view[at - self._start : max(end - self._start, 0)]
