"""An ELF core as a source: ``core`` of any producer, and ``.core.lz4`` without unpacking it.

Consistency: that of the core; most producers stop the process while they write it. Page
visibility: the bytes of the PT_LOADs. What one has in memory only (``p_memsz`` over ``p_filesz``)
is a gap: the kernel leaves out what is in the mapped file, and gdb what it may not read. A core
of fastdump says in its manifest what is zero instead.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from fastdump._native import PLAIN, Gap, Slice
from fastdump.dumped import Dumped, uncovered
from fastdump.elf import (
    AT_RANDOM,
    AT_SYSINFO_EHDR,
    PF_R,
    PF_W,
    PF_X,
    Elf,
    MappedFile,
)
from fastdump.elf_header import Segment
from fastdump.errors import FaultError
from fastdump.frames import Frames
from fastdump.gaps import union
from fastdump.labels import label_dumped
from fastdump.manifest import read_manifest
from fastdump.region import Region, ThreadStack, following
from fastdump.storage import TRUNCATED, Storage

_VSYSCALL = 0xFFFFFFFFFF600000
# brk starts up to 1 GiB behind the executable: arch_randomize_brk().
_HEAP_REACH = (1 << 30) + (16 << 20)
_SHARED = ("/SYSV", "/dev/shm/", "/memfd:", "/dev/zero")


class ElfCore(Dumped):
    """An ELF core. It owns *file*, which is :class:`Frames` for a ``.core.lz4``.

    Attributes:
        elf: Its headers and notes.

    Raises:
        CorruptDump: It is no core, or its headers or its manifest make no sense.
    """

    def __init__(self, file: Storage, name: str) -> None:
        self.elf = elf = Elf(file, name)
        frames = file if isinstance(file, Frames) else None
        text = frames.manifest if frames else None
        text = text or elf.manifest_note()
        slices, gaps = _contents(elf.segments, file.size)
        manifest = read_manifest(text) if text else None
        if manifest:
            regions = [recorded.region for recorded in manifest.regions]
            whole = [recorded.whole for recorded in manifest.regions]
            labels = [recorded.label for recorded in manifest.regions]
            gaps = union(manifest.gaps, gaps)
        else:
            regions, labels = _regions(elf), []
            whole = [[] for _ in regions]
        slices = list(_numbered(slices, regions))
        gaps = uncovered(regions, whole, slices, gaps)
        notes = list(elf.lost)
        if frames and frames.index.lost:
            notes.append(f"{frames.index.lost}: what follows byte {file.size:,} of it is lost")
        elif frames and frames.index.rebuilt:
            notes.append(
                "the seek table is missing or broken: the frames were found by walking them"
            )
        format = "lz4" if frames else "core"
        super().__init__(
            name, format, regions, labels, slices, gaps, [file], whole, manifest, notes
        )
        if not manifest:
            stacks = [ThreadStack(t.stack_pointer, t.thread_pointer) for t in elf.threads]
            self._labels = label_dumped(regions, stacks, elf.executable, self._read_header)

    @property
    def process(self) -> dict[str, Any]:
        return (self.manifest.raw.get("process") if self.manifest else None) or self.elf.process

    @property
    def is_cut_off(self) -> bool:
        """Whether its content is known to be less than it was."""
        frames = self.storages[0]
        lost = bool(isinstance(frames, Frames) and frames.index.lost)
        return lost or bool(self.elf.lost) or any(gap.reason == TRUNCATED for gap in self.gaps)

    def _read_header(self, address: int, length: int) -> bytes:
        """As much as there is."""
        with contextlib.suppress(FaultError):
            return self.read(address, length)
        return b""


def _contents(segments: Sequence[Segment], size: int) -> tuple[list[Slice], list[Gap]]:
    """The bytes of the PT_LOADs, and what of them lies behind the end of the file."""
    slices, gaps = [], []
    for s in segments:
        there = min(s.p_filesz, max(size - s.p_offset, 0))
        if there:
            slices.append(Slice(s.p_vaddr, there, s.p_vaddr, PLAIN, 0, s.p_offset))
        if there < s.p_filesz:
            gaps.append(Gap(s.p_vaddr + there, s.p_vaddr + s.p_filesz, TRUNCATED))
    return slices, gaps


def _numbered(slices: Sequence[Slice], regions: Sequence[Region]) -> Iterator[Slice]:
    """The slices within regions, cut at their ends."""
    starts = [region.start for region in regions]
    for s in slices:
        end = s.address + s.length
        for region in following(regions, starts, s.address):
            if region.start >= end:
                break
            start, stop = max(region.start, s.address), min(region.end, end)
            if start < stop:
                yield s.part(start - s.address, stop - start)


def _regions(elf: Elf) -> list[Region]:
    """A region for each PT_LOAD, with what the notes tell of it."""
    mapped = elf.mapped_files
    starts = [entry.start for entry in mapped]
    inodes = {path: n for n, path in enumerate(dict.fromkeys(m.path for m in mapped), 1)}
    regions = []
    for s in elf.segments:
        perms = "".join(
            letter if s.p_flags & flag else "-"
            for flag, letter in ((PF_R, "r"), (PF_W, "w"), (PF_X, "x"))
        )
        entry: MappedFile | None = None
        number = bisect.bisect_right(starts, s.p_vaddr) - 1
        if number >= 0 and s.p_vaddr < mapped[number].end:
            entry = mapped[number]
        path = entry.path if entry else ""
        offset = entry.offset + s.p_vaddr - entry.start if entry else 0
        share = "s" if path.startswith(_SHARED) else "p"
        regions.append(
            Region(s.p_vaddr, s.end, perms + share, offset, "00:00", inodes.get(path, 0), path)
        )
    return _named(elf, regions)


def _named(elf: Elf, regions: list[Region]) -> list[Region]:
    """Names in brackets, as maps has them: the auxiliary vector tells most."""
    auxv = elf.auxv
    random, vdso = auxv.get(AT_RANDOM, 0), auxv.get(AT_SYSINFO_EHDR)
    ends = [mapped.end for mapped in elf.mapped_files if mapped.path == elf.executable]
    heap = _heap(regions, max(ends, default=0))
    found = []
    for number, region in enumerate(regions):
        name = ""
        if region.start <= random < region.end:
            name = "[stack]"
        elif region.start == vdso:
            name = "[vdso]"
        elif region.start == _VSYSCALL:
            name = "[vsyscall]"
        elif number in heap:
            name = "[heap]"
        found.append(region if region.path else region._replace(path=name))
    return found


def _heap(regions: Sequence[Region], end: int) -> range:
    """The regions of brk(2), by where the kernel puts it: near the *end* of the executable.

    What lies right at it is its ``.bss``. What a forked process adds to its heap is one more.
    """
    for number, region in enumerate(regions):
        if region.start < end:
            continue
        if not end or region.has_file or region.start > end + _HEAP_REACH:
            break
        if region.writable and region.start > end:
            stop = number + 1
            while stop < len(regions) and _goes_on(regions[stop - 1], regions[stop]):
                stop += 1
            return range(number, stop)
    return range(0)


def _goes_on(region: Region, behind: Region) -> bool:
    return behind.start == region.end and behind.writable and not behind.has_file
