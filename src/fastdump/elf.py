"""The headers and notes of an ELF core of any producer, checked before they are believed.

Sources: the System V ABI's ELF chapters, core(5), Linux fs/binfmt_elf.c (fill_files_note),
include/uapi/linux/elfcore.h (prstatus, prpsinfo), auxvec.h.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from fastdump.elf_header import (
    ET_CORE,
    MAGIC,
    MOST_HEADER,
    PT_LOAD,
    PT_NOTE,
    ElfHeader,
    Segment,
)
from fastdump.errors import CorruptDump
from fastdump.storage import Storage
from fastdump.text import decoded

PF_X, PF_W, PF_R = 1, 2, 4
PN_XNUM = 0xFFFF
SHT_NOTE = 7
NT_PRSTATUS, NT_PRFPREG, NT_PRPSINFO, NT_AUXV = 1, 2, 3, 6
NT_FILE, NT_SIGINFO = 0x46494C45, 0x53494749
NT_X86_XSTATE = 0x202
# Not 1: elfutils shows the type alone, and 1 is NT_PRSTATUS.
NT_FASTDUMP_MANIFEST = 0x4644
NOTE_OWNER = "FASTDUMP"

EM_X86_64, EM_AARCH64 = 62, 183
AT_NULL, AT_ENTRY, AT_RANDOM, AT_SYSINFO_EHDR = 0, 9, 25, 33
# struct elf_prpsinfo of 64 bits: state, its letter, zombie, nice, flag, uid, gid, pid, ppid, pgrp,
# sid, name, arguments.
PRPSINFO = struct.Struct("<BcBb4xQIIiiii16s80s")
_PR_REG = 112  # its offset in struct elf_prstatus
_STACK_POINTERS = {EM_X86_64: _PR_REG + 19 * 8, EM_AARCH64: _PR_REG + 31 * 8}
_FS_BASE = _PR_REG + 21 * 8
_MOST_NOTES = 1 << 18
_MOST_NOTE_BYTES = 128 << 20
_MOST_SEGMENTS = 1 << 20
_MOST_MAPPED = 1 << 19
_MOST_AUXV = 1 << 14  # bytes


class Note(NamedTuple):
    """One note; the fields are named as in the ELF specification."""

    name: str
    type: int
    desc: bytes


class Thread(NamedTuple):
    """What NT_PRSTATUS tells; the pointers are 0 where they are not known."""

    signal: int
    tid: int
    stack_pointer: int
    thread_pointer: int


class MappedFile(NamedTuple):
    """One entry of NT_FILE; ``offset`` in bytes."""

    start: int
    end: int
    offset: int
    path: str


class Elf:
    """The headers of an ELF core, 32 or 64 bit, either byte order.

    Attributes:
        machine: ``e_machine``.
        segments: The PT_LOADs, in address order and cut where one overlaps the one before.
        notes: Of the PT_NOTEs.
        lost: What could not be read of the headers; lines of text.

    Raises:
        CorruptDump: It is no ELF core, or its headers make no sense.
    """

    def __init__(self, file: Storage, name: str) -> None:
        self._file, self._name = file, name
        self.lost: list[str] = []
        raw = file.read(0, MOST_HEADER)
        if not raw.startswith(MAGIC):
            raise CorruptDump(f"{name} is no ELF file")
        try:
            header = self._header = ElfHeader(raw)
        except ValueError as error:
            raise CorruptDump(f"{name} is a broken ELF file: {error}") from None
        if header.e_type != ET_CORE:
            raise CorruptDump(f"{name} is an ELF file, but no core", "name a core, or a pid")
        self.machine, self.wide, self._order = header.e_machine, header.wide, header.order
        e_phoff, e_phnum = header.e_phoff, header.e_phnum
        if e_phnum == PN_XNUM:
            e_phnum = self._extended_phnum(e_phoff)
        headers = list(self._program_headers(e_phoff, e_phnum))
        self.notes = list(
            self._notes((s.p_offset, s.p_filesz) for p_type, s in headers if p_type == PT_NOTE)
        )
        self.segments = list(self._in_order(s for p_type, s in headers if p_type == PT_LOAD))

    def _extended_phnum(self, e_phoff: int) -> int:
        """``sh_info`` of section header 0; of a core without its end, where its notes begin."""
        size = 64 if self.wide else 40
        e_shoff = self._header.e_shoff
        raw = self._file.read(e_shoff, size) if e_shoff else b""
        if len(raw) == size:
            return int(struct.unpack_from(self._order + "I", raw, 44 if self.wide else 28)[0])
        stride = self._header.phdr_size
        first = self._file.read(e_phoff, stride)
        if len(first) == stride:
            ((p_type, segment),) = self._header.program_headers(first)
            if p_type == PT_NOTE and segment.p_offset > e_phoff:
                self.lost.append("the section headers are cut off: so are those of segments, maybe")
                return (segment.p_offset - e_phoff) // stride
        raise CorruptDump(f"{self._name} is cut off, and with it the number of its segments")

    def _program_headers(self, e_phoff: int, count: int) -> Iterator[tuple[int, Segment]]:
        if count > _MOST_SEGMENTS:
            raise CorruptDump(f"{self._name} says that it has {count:,} segments")
        stride = self._header.phdr_size
        raw = self._file.read(e_phoff, count * stride)
        if len(raw) < count * stride:
            self.lost.append(f"of {count} program headers {len(raw) // stride} are there")
        return self._header.program_headers(raw)

    def _in_order(self, segments: Iterator[Segment]) -> Iterator[Segment]:
        """By address; where two overlap, the one that begins first has the bytes."""
        end = overlaps = 0
        for s in sorted(segments, key=lambda s: s.p_vaddr):
            if s.end >= 1 << 64:
                raise CorruptDump(f"{self._name} has a segment beyond the end of all addresses")
            if s.p_vaddr < end:
                overlaps += 1
                cut = min(end, s.end) - s.p_vaddr
                filesz = max(s.p_filesz - cut, 0)
                s = s._replace(
                    p_vaddr=s.p_vaddr + cut,
                    p_offset=s.p_offset + cut,
                    p_filesz=filesz,
                    p_memsz=max(s.p_memsz - cut, filesz, 0),
                )
            if s.end > s.p_vaddr:
                yield s
                end = s.end
        if overlaps:
            self.lost.append(f"{overlaps:,} segments overlap others, and are cut")

    def _notes(self, places: Iterable[tuple[int, int]]) -> Iterator[Note]:
        """The notes at offsets of some lengths, which may well be those of others again."""
        left, room = _MOST_NOTES, _MOST_NOTE_BYTES
        for offset, size in places:
            raw = self._file.read(offset, min(size, room))
            room -= len(raw)
            at = 0
            while at + 12 <= len(raw) and left:
                namesz, descsz, n_type = struct.unpack_from(self._order + "III", raw, at)
                desc_at = at + 12 + -(-namesz // 4) * 4
                if desc_at + descsz > len(raw):
                    break
                name = raw[at + 12 : at + 12 + namesz].rstrip(b"\0").decode("ascii", "replace")
                yield Note(name, n_type, raw[desc_at : desc_at + descsz])
                left -= 1
                at = desc_at + -(-descsz // 4) * 4
            if at < len(raw) - 3 or len(raw) < size:
                self.lost.append("the notes are cut off, broken, or too many")
                return

    def notes_of(self, type: int) -> list[bytes]:
        """The descriptors of the notes of one type."""
        return [n.desc for n in self.notes if n.type == type and n.name in ("CORE", "LINUX")]

    def manifest_note(self) -> bytes | None:
        """What ``.note.fastdump`` holds; None without it."""
        size = 64 if self.wide else 40
        header = self._header
        if not self.wide or not 0 < header.e_shnum <= 16 or header.e_shentsize != size:
            return None
        raw = self._file.read(header.e_shoff, header.e_shnum * size)
        if len(raw) < header.e_shnum * size:
            self.lost.append("the section headers are cut off, and with them a manifest, maybe")
        for section in struct.iter_unpack(self._order + "IIQQQQIIQQ", raw[: len(raw) // 64 * 64]):
            if section[1] == SHT_NOTE:
                offset = section[4]
                self._check_manifest(offset)
                for note in self._notes([(offset, section[5])]):
                    if note.name == NOTE_OWNER and note.type == NT_FASTDUMP_MANIFEST:
                        return note.desc
        return None

    def _check_manifest(self, offset: int) -> None:
        """Raise CorruptDump if the note there is too long a manifest: gaps would be zeros."""
        head = self._file.read(offset, 20)
        own = struct.pack(self._order + "I8s", NT_FASTDUMP_MANIFEST, NOTE_OWNER.encode())
        if head[8:] == own:
            (descsz,) = struct.unpack_from(self._order + "I", head, 4)
            if _MOST_NOTE_BYTES - 24 < descsz <= self._file.size - offset:
                raise CorruptDump("the manifest is too long to be one")

    def words(self, raw: bytes) -> tuple[int, ...]:
        """As many words of the process as there are."""
        size, letter = (8, "Q") if self.wide else (4, "I")
        count = len(raw) // size
        return struct.unpack(f"{self._order}{count}{letter}", raw[: count * size])

    @property
    def is_native(self) -> bool:
        """Whether it is of the kind that fastdump writes."""
        return self.wide and self._order == "<"

    @functools.cached_property
    def auxv(self) -> dict[int, int]:
        """AT_* → value: getauxval(3)."""
        found = {}
        for raw in self.notes_of(NT_AUXV):
            words = self.words(raw[:_MOST_AUXV])
            for key, value in zip(words[::2], words[1::2], strict=False):
                if key == AT_NULL:
                    break
                found[key] = value
        return found

    @functools.cached_property
    def mapped_files(self) -> list[MappedFile]:
        """What NT_FILE has."""
        found = []
        entry = struct.Struct(self._order + ("QQQ" if self.wide else "III"))
        word = entry.size // 3
        for raw in self.notes_of(NT_FILE)[:1]:
            count, page = self.words(raw[: 2 * word].ljust(2 * word, b"\0"))
            names_at = 2 * word + count * entry.size
            if count > _MOST_MAPPED or names_at > len(raw):
                self.lost.append("the names of mapped files (NT_FILE) are broken")
                break
            names = raw[names_at:].split(b"\0", count)
            entries = entry.iter_unpack(raw[2 * word : names_at])
            for (start, end, offset), name in zip(entries, names, strict=False):
                if start < end and offset * page + end - start <= 1 << 64:
                    found.append(MappedFile(start, end, offset * page, decoded(name)))
        return sorted(found)

    @property
    def executable(self) -> str:
        """The path of the file that AT_ENTRY lies in; empty if it is not known."""
        entry = self.auxv.get(AT_ENTRY, 0)
        return next((m.path for m in self.mapped_files if m.start <= entry < m.end), "")

    @property
    def process(self) -> dict[str, object]:
        """What NT_PRPSINFO tells, under the names that a manifest has; empty without it."""
        for raw in self.notes_of(NT_PRPSINFO):
            if self.wide and self._order == "<" and len(raw) == PRPSINFO.size:
                fields = PRPSINFO.unpack(raw)
                comm, args = (decoded(text.partition(b"\0")[0]) for text in fields[11:])
                names = ("uid", "gid", "pid", "ppid")
                return {**dict(zip(names, fields[5:9], strict=True)), "comm": comm, "args": args}
        return {}

    @property
    def threads(self) -> list[Thread]:
        """Of each NT_PRSTATUS, in the order of the core: the one that was signalled first."""
        stack_at = _STACK_POINTERS.get(self.machine, 0) if self.wide else 0
        found = []
        for raw in self.notes_of(NT_PRSTATUS):
            if len(raw) >= max(stack_at + 8, 36):
                (signal,) = struct.unpack_from(self._order + "H", raw, 12)
                (tid,) = struct.unpack_from(self._order + "i", raw, 32 if self.wide else 24)
                (stack,) = struct.unpack_from(self._order + "Q", raw, stack_at)
                own = 0
                if self.wide and self.machine == EM_X86_64 and len(raw) >= _FS_BASE + 8:
                    (own,) = struct.unpack_from(self._order + "Q", raw, _FS_BASE)
                found.append(Thread(signal, tid, stack if stack_at else 0, own))
        return found

    @property
    def registers(self) -> list[bytes]:
        """What the registers of all threads hold, the vector registers too; 64 bit only."""
        general = [raw[_PR_REG:] for raw in self.notes_of(NT_PRSTATUS)]
        return [*general, *self.notes_of(NT_PRFPREG), *self.notes_of(NT_X86_XSTATE)]
