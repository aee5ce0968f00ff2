"""ELF cores: the layout, the notes, and the writers of ``--format core``.

A core is written front to back, so that it can be a stream: ELF header, program headers, notes,
the bytes of the PT_LOADs, and last what is known only at the end, the manifest. It is a
note in a section, because the place of the section headers (``e_shoff``) is known from the
start, while the size of a segment would have to be.

Sources: the System V ABI's ELF chapters ("Object Files", "Program Loading"), core(5),
Linux fs/binfmt_elf.c, and what gdb, lldb and elfutils read of a core.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from fastdump._native import BLOCK_SIZE, PAGE_SIZE, Copier, Slice
from fastdump.elf import (
    EM_AARCH64,
    EM_X86_64,
    NOTE_OWNER,
    NT_AUXV,
    NT_FASTDUMP_MANIFEST,
    NT_FILE,
    NT_PRFPREG,
    NT_PRPSINFO,
    NT_PRSTATUS,
    NT_SIGINFO,
    PF_R,
    PF_W,
    PF_X,
    PN_XNUM,
    PRPSINFO,
    SHT_NOTE,
)
from fastdump.elf_header import ET_CORE, PT_LOAD, PT_NOTE, Segment
from fastdump.errors import UsageError
from fastdump.output import Output, PartFile
from fastdump.process import LiveProcess
from fastdump.region import Region
from fastdump.snapshot import Registers
from fastdump.stream import Block, Blocks, hole_size, one_at_a_time, set_direct
from fastdump.survey import Survey, pieces_of, shares
from fastdump.text import encoded

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_NHDR = struct.Struct("<III")

_MACHINES = {"x86_64": EM_X86_64, "aarch64": EM_AARCH64}
_SHT_NULL, _SHT_STRTAB = 0, 3
_SECTION_NAMES = b"\0.note.fastdump\0.shstrtab\0note0\0"


class CoreLayout(NamedTuple):
    """Where everything lies in a core.

    ``header``: the bytes before the first PT_LOAD's, whole pages. ``slices``: what is copied, at
    ascending offsets from there to ``end`` without a hole.
    """

    header: bytes
    slices: list[Slice]
    end: int
    segments: int
    notes_size: int

    def tail(self, manifest: dict[str, object]) -> bytes:
        """What follows at ``end``: the section headers and the manifest."""
        desc = json.dumps(manifest, separators=(",", ":")).encode("ascii")
        own = note(NOTE_OWNER, NT_FASTDUMP_MANIFEST, desc)
        names_at = self.end + 4 * _SHDR.size
        note_at = -(-(names_at + len(_SECTION_NAMES)) // 4) * 4
        # Section header 0 holds the number of program headers where e_phnum cannot.
        sections = _SHDR.pack(0, _SHT_NULL, 0, 0, 0, 0, 0, self._extended_phnum, 0, 0)
        sections += _SHDR.pack(1, SHT_NOTE, 0, 0, note_at, len(own), 0, 0, 4, 0)
        sections += _SHDR.pack(16, _SHT_STRTAB, 0, 0, names_at, len(_SECTION_NAMES), 0, 0, 1, 0)
        # PT_NOTE again, as gcore has it: eu-readelf -n looks at sections where there are any.
        notes_at = _EHDR.size + (self.segments + 1) * _PHDR.size
        sections += _SHDR.pack(26, SHT_NOTE, 0, 0, notes_at, self.notes_size, 0, 0, 4, 0)
        return sections + _SECTION_NAMES.ljust(note_at - names_at, b"\0") + own

    @property
    def _extended_phnum(self) -> int:
        count = self.segments + 1
        return count if count >= PN_XNUM else 0


def machine_of(name: str) -> int:
    """``e_machine`` of what uname(2) calls a machine.

    Raises:
        UsageError: There are no cores for it.
    """
    if name not in _MACHINES:
        raise UsageError(f"no ELF core for {name}", "use --format raw")
    return _MACHINES[name]


def layout_of(survey: Survey) -> CoreLayout:
    """The layout of the core of *survey*; absent runs are split off."""
    machine = machine_of(platform.machine())
    process = survey.process
    notes = [
        _prpsinfo(process),
        *_thread_notes(survey.threads, process),
        note("CORE", NT_AUXV, process.auxv()),
        note("CORE", NT_FILE, mapped_files_note(survey.regions, process.exe)),
    ]
    return lay_out(machine, survey.regions, survey.runs(), b"".join(notes))


def lay_out(
    machine: int, regions: Sequence[Region], runs: Sequence[Sequence[Slice]], notes: bytes
) -> CoreLayout:
    """Decide the place of everything in a core.

    Args:
        machine: ``e_machine``.
        runs: For each region the slices that hold data.
        notes: What the PT_NOTE has.
    """
    plain: list[tuple[int, int, int, Slice | None]] = []  # p_flags, start, end, its bytes
    for region, found in zip(regions, runs, strict=True):
        flags = sum(
            flag for flag, letter in ((PF_R, "r"), (PF_W, "w"), (PF_X, "x"))
            if letter in region.perms
        )  # fmt: skip
        at = region.start
        for run in found:
            if at < run.address:
                plain.append((flags, at, run.address, None))
            at = run.address + run.length
            plain.append((flags, run.address, at, run))
        if at < region.end:
            plain.append((flags, at, region.end, None))
    header_size = _EHDR.size + (len(plain) + 1) * _PHDR.size + len(notes)
    offset = start = -(-header_size // PAGE_SIZE) * PAGE_SIZE
    segments: list[Segment] = []
    slices: list[Slice] = []
    for flags, vaddr, end, slice_ in plain:
        segments.append(Segment(flags, offset, vaddr, end - vaddr if slice_ else 0, end - vaddr))
        if slice_:
            slices.append(slice_._replace(offset=offset))
            offset += end - vaddr
    header = _header(machine, segments, notes, offset).ljust(start, b"\0")
    return CoreLayout(header, slices, offset, len(segments), len(notes))


def _header(machine: int, segments: Sequence[Segment], notes: bytes, end: int) -> bytes:
    phnum = len(segments) + 1
    notes_at = _EHDR.size + phnum * _PHDR.size
    # ELFCLASS64, ELFDATA2LSB, EV_CURRENT, ELFOSABI_NONE
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    parts = [
        _EHDR.pack(
            ident, ET_CORE, machine, 1, 0, _EHDR.size, end, 0, _EHDR.size,
            _PHDR.size, min(phnum, PN_XNUM), _SHDR.size, 4, 2,
        ),
        _PHDR.pack(PT_NOTE, PF_R, notes_at, 0, 0, len(notes), 0, 4),
    ]  # fmt: skip
    parts += [
        _PHDR.pack(PT_LOAD, s.p_flags, s.p_offset, s.p_vaddr, 0, s.p_filesz, s.p_memsz, PAGE_SIZE)
        for s in segments
    ]
    return b"".join([*parts, notes])


def note(owner: str, note_type: int, desc: bytes) -> bytes:
    """One note, padded."""
    name = owner.encode() + b"\0"
    head = _NHDR.pack(len(name), len(desc), note_type)
    return head + name + bytes(-len(name) % 4) + desc + bytes(-len(desc) % 4)


# struct elf_prstatus of linux/elfcore.h without pr_reg and pr_fpvalid: si_signo, si_code, si_errno,
# cursig, sigpend, sighold, pid, ppid, pgrp, sid, and four times.
_PRSTATUS = struct.Struct("<3ihxxQQ4i64x")
_CORE_NOTES = {NT_PRSTATUS, NT_PRFPREG, NT_SIGINFO}


def _thread_notes(threads: Sequence[Registers], process: LiveProcess) -> Iterator[bytes]:
    """NT_PRSTATUS of each thread, and right behind it its other registers: as gcore has them.

    No signal is told: a thread that was stopped to be dumped has none.
    """
    stat = process.stat_fields()
    ppid, pgrp, sid = (int(field) for field in stat[1:4])
    for thread in threads:
        for kind, content in thread.regsets.items():
            if kind == NT_PRSTATUS:
                head = _PRSTATUS.pack(0, 0, 0, 0, 0, thread.blocked, thread.tid, ppid, pgrp, sid)
                has_floats = struct.pack("<i4x", NT_PRFPREG in thread.regsets)
                content = head + content + has_floats
            yield note("CORE" if kind in _CORE_NOTES else "LINUX", kind, content)


def _prpsinfo(process: LiveProcess) -> bytes:
    """NT_PRPSINFO of a live process, from proc_pid_stat(5)."""
    stat, status = process.stat_fields(), process.status()
    return prpsinfo_note(
        {
            **process.identity,
            "state": stat[0],
            "nice": stat[16],
            "flag": stat[6],
            "pgrp": stat[2],
            "sid": stat[3],
            "uid": status["Uid"].split()[0],
            "gid": status["Gid"].split()[0],
        }
    )


def prpsinfo_note(process: dict[str, Any]) -> bytes:
    """``struct elf_prpsinfo`` of linux/elfcore.h, from what a manifest has of a process."""
    state = str(process.get("state", "R"))

    def number(key: str) -> int:
        return int(process.get(key, 0))

    desc = PRPSINFO.pack(
        max("RSDTZW".find(state), 0),
        state.encode(),
        state == "Z",
        number("nice"),
        number("flag"),
        number("uid"),
        number("gid"),
        number("pid"),
        number("ppid"),
        number("pgrp"),
        number("sid"),
        encoded(str(process.get("comm", "")))[:15],
        encoded(" ".join(process.get("cmdline", ())))[:79],
    )
    return note("CORE", NT_PRPSINFO, desc)


def mapped_files_note(regions: Sequence[Region], exe: str) -> bytes:
    """NT_FILE, as fill_files_note() of Linux fs/binfmt_elf.c; lldb takes entry 0 as the program."""
    mapped = [r for r in regions if r.has_file]
    mapped.sort(key=lambda r: r.path != exe)
    words = [len(mapped), PAGE_SIZE]
    for r in mapped:
        words += (r.start, r.end, r.offset // PAGE_SIZE)
    names = b"".join(encoded(r.path) + b"\0" for r in mapped)
    return struct.pack(f"<{len(words)}Q", *words) + names


class CoreFile:
    """Writes ``--format core`` to a file, sparse."""

    buffer_size = BLOCK_SIZE

    def __init__(self, output: PartFile) -> None:
        self._output = output
        self._blocks = Blocks() if one_at_a_time(output.fd) else None

    @property
    def most_threads(self) -> int | None:
        return Blocks.threads if self._blocks else None

    @property
    def emit(self) -> Callable[[Block], None] | None:
        return self._emit if self._blocks else None

    def begin(self, survey: Survey, threads: int) -> Iterator[list[Slice]]:
        self._layout = layout_of(survey)
        survey.count_all_but(self._layout.slices)
        os.ftruncate(self._output.fd, self._layout.end)
        self._output.write_at(self._layout.header, 0)
        os.fsync(self._output.fd)  # through the page cache, while the data may go past it
        self._hole = hole_size(self._output.fd)
        if self._blocks:
            return pieces_of(self._layout.slices, itertools.repeat(Blocks.size))
        return pieces_of(self._layout.slices, shares(survey.to_copy, threads))

    def work(self, copier: Copier, piece: list[Slice]) -> Block | None:
        if self._blocks:
            return self._blocks.fill(copier, piece)
        copier.write(piece, self._output.fd, self._hole)
        return None

    def _emit(self, block: Block) -> None:
        assert self._blocks
        self._blocks.write(block, self._output.fd, self._hole)

    def finish(self, manifest: dict[str, object]) -> int:
        self._write_tail(manifest)
        return self._output.commit()

    def keep(self, manifest: dict[str, object]) -> str:
        self._write_tail(manifest)
        return self._output.keep()

    def abort(self) -> None:
        self._output.abort()

    def _write_tail(self, manifest: dict[str, object]) -> None:
        set_direct(self._output.fd, False)
        self._output.write_at(self._layout.tail(manifest), self._layout.end)


class CoreStream:
    """Writes ``--format core`` to a pipe or a URL."""

    buffer_size = BLOCK_SIZE
    most_threads = None

    def __init__(self, output: Output) -> None:
        self._output = output

    def begin(self, survey: Survey, threads: int) -> Iterator[list[Slice]]:
        self._layout = layout_of(survey)
        survey.count_all_but(self._layout.slices)
        self._stream = self._output.stream()
        self._stream.write(self._layout.header)
        return pieces_of(self._layout.slices, itertools.repeat(self.buffer_size))

    def work(self, copier: Copier, piece: list[Slice]) -> bytes:
        return bytes(copier.fill(piece)[0])

    def emit(self, result: bytes) -> None:
        self._stream.write(result)

    def finish(self, manifest: dict[str, object]) -> int:
        self._stream.write(self._layout.tail(manifest))
        self._stream.flush()
        self._output.commit()
        return self._stream.length

    def keep(self, manifest: dict[str, object]) -> str:
        return self._output.keep()

    def abort(self) -> None:
        self._output.abort()
