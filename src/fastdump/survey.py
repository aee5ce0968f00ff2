"""A survey: everything known of a target before the first byte is read.

Regions, labels, what is selected of each and why, what the page tables hold. It touches no page of
the target.
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
from collections.abc import Iterable, Iterator, Sequence

from fastdump import _native
from fastdump._native import MODIFIED, Copier, Gap, Residency, Slice, Tally
from fastdump.headroom import headroom
from fastdump.labels import Kind, Label, label_regions
from fastdump.process import LiveProcess
from fastdump.region import Region
from fastdump.selection import Choice, Part, Preset, Rule, select, slices_of
from fastdump.snapshot import Registers

# One call into C: long enough that Python costs nothing, short enough to share out and to stop.
_MOST_PIECE = 64 << 20
_LEAST_PIECE = 4 << 20

# Absent runs this long get a PT_LOAD without bytes; shorter ones are zeros, which cost LZ4
# 1 byte in 255 and a sparse file nothing. Gaps and what is left to the mapped file get one too,
# however short: they are no zeros.
_MIN_GAP = 256 << 10
# Runs are joined further where a scattered target would need more: with a usual number of regions
# the PT_LOADs then stay below PN_XNUM, which some readers do not know.
_MAX_RUNS = 16 << 10


class Survey:
    """What is to be read of *process*, and how.

    Attributes:
        regions, labels, choices: One of each a region, in address order.
        slices: What is selected of each region; offsets are those in the region.
        swapped: Bytes of the selection that are swapped out.
        read_swapped: Whether they are read.
        headroom: Free bytes of the host and of the target's cgroup; None if nothing is swapped.
        tally, gaps, to_copy: What is accounted for without copying, and the bytes that are
            left to copy; see :meth:`count_all_but`.

    Args:
        swap: Read swapped memory: True, False, or None for "if the headroom allows it".
        threads: Their registers, for a core; none if the process was not stopped.

    Raises:
        SourceGone: The target exited or called exec.
    """

    def __init__(
        self,
        process: LiveProcess,
        preset: Preset,
        rules: Sequence[Rule] = (),
        *,
        with_libraries: bool = False,
        swap: bool | None = None,
        threads: Sequence[Registers] = (),
    ) -> None:
        self.process, self.threads = process, threads
        self.preset, self.rules, self.with_libraries = preset, tuple(rules), with_libraries
        self.swap_asked = swap is not None
        self.regions = process.regions()
        self.labels = label_regions(process, self.regions)
        self.choices = select(self.regions, self.labels, preset, rules, with_libraries)
        self.tally = Tally()
        self.gaps: list[Gap] = []
        self.to_copy = 0
        self._files: dict[tuple[str, int, str], int] = {}
        files = [
            self._file_of(region, label, choice)
            for region, label, choice in zip(self.regions, self.labels, self.choices, strict=True)
        ]
        self.swapped = sum(
            _native.swapped_of_file(file, region.offset, region.length)
            for region, choice, file in zip(self.regions, self.choices, files, strict=True)
            if file is not None and file >= 0 and choice.part is Part.WHOLE
        )
        if process.is_swapped:  # else the page tables need not be asked
            self.swapped += sum(
                r.swapped for r, c in zip(self.residency, self.choices, strict=True) if c.included
            )
        self.headroom = headroom(process.tid) if self.swapped else None
        self.read_swapped = bool(swap)
        if swap is None:
            self.read_swapped = self.headroom is None or self.headroom > self.swapped
        userfault = process.userfault_ranges()
        self.slices = [
            slices_of(
                region,
                choice,
                file,
                swapped=self.read_swapped,
                userfault=region.start in userfault,
                origin=region.start in process.origins,
            )
            for region, choice, file in zip(self.regions, self.choices, files, strict=True)
        ]
        self.selected = sum(s.length for slices in self.slices for s in slices)

    def close(self) -> None:
        """Close the mapped files that it opened."""
        for fd in self._files.values():
            if fd >= 0:
                os.close(fd)
        self._files.clear()

    def _file_of(self, region: Region, label: Label, choice: Choice) -> int | None:
        """The file that has what is absent of a region; None if it cannot be opened."""
        if not choice.included or not region.has_file or label.kind is Kind.ANONYMOUS:
            return -1
        if region.file_key not in self._files:
            if not self._files:
                _raise_descriptor_limit()
            fd = -1
            with contextlib.suppress(OSError):
                fd = self.process.open_mapped(region)
            self._files[region.file_key] = fd
        fd = self._files[region.file_key]
        return fd if fd >= 0 else None

    @functools.cached_property
    def residency(self) -> list[Residency]:
        """What the page tables hold of each region when it is first asked for."""
        return self.process.residency(self.regions)

    @property
    def present(self) -> int:
        """Bytes of the included regions that are in RAM, the zero page left out."""
        return sum(
            r.present for r, c in zip(self.residency, self.choices, strict=True) if c.included
        )

    @property
    def is_dense(self) -> bool:
        """Whether next to all of the selection is in RAM, as VmRSS alone tells at once."""
        others = sum(r.length for r in self.regions if r.end < 1 << 63) - self.selected
        return self.process.growth().rss - others > self.selected // 8 * 7

    def runs(self) -> list[list[Slice]]:
        """The slices that hold data, for each region, in address order.

        Short absent runs are inside; longer ones, gaps and unmodified pages only where there would
        be too many slices. All of a slice is read, as an unmodified page is not zero.
        """
        flat = [s for slices in self.slices for s in slices]
        runs = iter(self.process.memory.runs(flat, _MIN_GAP, _MAX_RUNS))
        run = next(runs, None)
        result = []
        for slices in self.slices:
            found = []
            for s in slices:
                while run and s.address <= run.start < s.address + s.length:
                    part = s.part(run.start - s.address, run.end - run.start)
                    found.append(part._replace(flags=part.flags & ~MODIFIED))
                    run = next(runs, None)
            result.append(found)
        assert run is None, "a run outside of the selection"
        return result

    def count_all_but(self, copied: Iterable[Slice]) -> None:
        """Account for the rest of the selection, which is not copied: it holds no data."""
        copied = iter(copied)
        run = next(copied, None)
        rest: list[Slice] = []
        for slices in self.slices:
            for s in slices:
                done = 0
                while run and s.address <= run.address < s.address + s.length:
                    rest.append(s.part(done, run.address - s.address - done))
                    done = run.address + run.length - s.address
                    run = next(copied, None)
                rest.append(s.part(done, s.length - done))
        counter = Copier(self.process.memory, size=_native.PAGE_SIZE)
        counter.count([s for s in rest if s.length])
        self.tally, self.gaps = counter.tally, counter.gaps
        self.to_copy = self.selected - self.tally.accounted


def pieces_of(slices: Iterable[Slice], sizes: Iterator[int]) -> Iterator[list[Slice]]:
    """Cut and gather *slices* into lists of *sizes* bytes, the last one shorter."""
    piece: list[Slice] = []
    room = next(sizes)
    for s in slices:
        done = 0
        while done < s.length:
            part = s.part(done, min(room, s.length - done))
            piece.append(part)
            done += part.length
            room -= part.length
            if not room:
                yield piece
                piece, room = [], next(sizes)
    if piece:
        yield piece


def shares(length: int, threads: int) -> Iterator[int]:
    """Sizes of pieces of *length* bytes: ever smaller, so that all threads end together."""
    while True:
        share = length // (threads * 4) & ~(_native.BLOCK_SIZE - 1)
        size = min(max(share, _LEAST_PIECE), _MOST_PIECE)
        length -= size
        yield size


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
