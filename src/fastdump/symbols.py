"""Symbols of ELF files: which function or variable an address lies in."""

from __future__ import annotations

import bisect
import contextlib
import functools
import io
import os
import struct
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

from fastdump._native import PAGE_SIZE
from fastdump.elf_header import MAGIC, MOST_HEADER, PT_LOAD, PT_NOTE, ElfHeader, Segment

_SYMBOL = {64: struct.Struct("<IBBHQQ"), 32: struct.Struct("<IIIBBH")}  # Elf64_Sym, Elf32_Sym
_OBJECT, _FUNC, _GNU_IFUNC = 1, 2, 10
_GLOBAL = 1
# What no file of use has more of; a file may say anything.
_MOST_BYTES = 256 << 20
_MOST_NOTES = 1 << 20
_MOST_NAME = 1 << 16
_MOST_ID = 64  # bytes: as of elfutils
_MOST_FOUND = 1 << 10
# Bytes of a file that are looked at, so often, before its tables are read: 1 ms a MiB, where
# pyelftools takes 60 ms to import and to read a small file.
_MOST_PLAIN = 8 << 20
_MOST_LOOKS = 16
_WIDE_LITTLE = b"\2\1"  # ELFCLASS64, ELFDATA2LSB
_PACKED = ".gnu_debugdata"


class Symbol(NamedTuple):
    """Where a function or variable lies; its name is at an offset of the string table."""

    value: int
    size: int
    name: int


class _Table(NamedTuple):
    """Symbols as of a file of an ELF class, 32 or 64, and where their names begin in all."""

    elfclass: int
    content: bytes
    base: int


class BuildId(NamedTuple):
    """The note with the build id: where it is mapped, before relocation, its bytes, and the id."""

    vaddr: int
    note: bytes
    id: str


class _Tables:
    """What pyelftools finds in a file; nothing where that is broken or hostile.

    Attributes:
        names: Of all tables.
    """

    def __init__(self, file: BinaryIO, segments: Iterable[Segment]) -> None:
        self.build_id: BuildId | None = None
        self.is_stripped = True
        self.tables: list[_Table] = []
        self.names = b""
        try:
            self._read(file, segments)
        except Exception:  # untrusted bytes in a foreign parser
            self.build_id, self.tables = None, []

    def _read(self, file: BinaryIO, segments: Iterable[Segment]) -> None:
        from elftools.elf.elffile import ELFFile  # 35 ms to import

        elf: Any = ELFFile(file)
        for segment in segments:
            self.build_id = self.build_id or _build_id_of(elf, segment)
        self._enter(elf)
        whole = elf.get_section_by_name(".symtab")
        packed = elf.get_section_by_name(_PACKED)
        self.is_stripped = not (whole or packed)
        if packed and not whole:
            import lzma  # 1 ms

            unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MOST_BYTES)
            content = unpacker.decompress(_content(file, packed), _MOST_BYTES)
            self._enter(ELFFile(io.BytesIO(content)))

    def _enter(self, elf: Any) -> None:
        """One table of symbols, as it is in the file: there may be millions."""
        section = elf.get_section_by_name(".symtab") or elf.get_section_by_name(".dynsym")
        if not section or not elf.little_endian:
            return
        size = _SYMBOL[elf.elfclass].size
        content = _content(elf.stream, section)
        content = content[: len(content) // size * size]
        self.tables.append(_Table(elf.elfclass, content, len(self.names)))
        self.names += _content(elf.stream, elf.get_section(section["sh_link"]))


class Symbols:
    """The functions and variables of an ELF file: of ``.symtab``, else of ``.dynsym`` and of the
    table of functions that distributions pack into ``.gnu_debugdata`` (MiniDebugInfo).

    Empty where the file is broken or hostile: it never fails for what a file holds. The tables of a
    small file are not read where its bytes are enough: what is nowhere in it is in no table.

    Args:
        file: It may be closed afterwards.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._plain, self._looks = file, b"", 0
        self._segments: list[tuple[int, Segment]] = []
        with contextlib.suppress(OSError):  # of a disk
            self._look(file)
        if not self._plain:
            _ = self._tables  # while the file is open

    def _look(self, file: BinaryIO) -> None:
        size = file.seek(0, io.SEEK_END)
        self._segments = _segments_of(file, size)
        if size > _MOST_PLAIN:
            return
        file.seek(0)
        self._plain = file.read(size)
        self._file = io.BytesIO(self._plain)
        if self._plain[4:6] == _WIDE_LITTLE and os.fsencode(_PACKED) not in self._plain:
            self._looks = _MOST_LOOKS

    @functools.cached_property
    def _tables(self) -> _Tables:
        notes = [s for p_type, s in self._segments if p_type == PT_NOTE]
        tables = _Tables(self._file, [s for s in notes if s.p_filesz <= _MOST_NOTES])
        self._file, self._plain, self._looks = io.BytesIO(), b"", 0
        return tables

    @property
    def build_id(self) -> BuildId | None:
        """None if it has none."""
        return self._tables.build_id

    @property
    def is_stripped(self) -> bool:
        """Whether it has exported symbols only."""
        return self._tables.is_stripped

    def _lacks(self, *parts: bytes) -> bool:
        """Whether the bytes of the file tell that no symbol has all of these."""
        if not self._looks:
            return False
        self._looks -= 1
        return any(part not in self._plain for part in parts)

    def _all(self) -> Iterator[tuple[Symbol, bool]]:
        """Those of all tables, and whether they are global; several may be one thing."""
        for elfclass, content, base in self._tables.tables:
            for fields in _SYMBOL[elfclass].iter_unpack(content):
                if elfclass == 64:
                    name, info, _, index, value, size = fields
                else:
                    name, value, size, info, _, index = fields
                if index and size and info & 15 in (_OBJECT, _FUNC, _GNU_IFUNC):
                    yield Symbol(value, size, base + name), info >> 4 == _GLOBAL

    @functools.cached_property
    def _symbols(self) -> list[Symbol]:
        """In order of their values."""
        names = self._tables.names
        best: dict[int, tuple[tuple[bool, int, bool], Symbol]] = {}
        for symbol, is_global in self._all():
            value, size, name = symbol
            # Of several names for one thing the one that programs use: malloc, not __libc_malloc.
            rank = is_global, size, names[name : name + 1] != b"_"
            if value not in best or rank > best[value][0]:
                best[value] = rank, symbol
        return sorted(symbol for _, symbol in best.values())

    @functools.cached_property
    def _values(self) -> list[int]:
        return [symbol.value for symbol in self._symbols]

    def bias_of(self, start: int, offset: int) -> int | None:
        """What is added to each address of the file where *offset* of it is mapped at *start*."""
        for p_type, s in self._segments:
            first = s.p_offset // PAGE_SIZE * PAGE_SIZE
            if p_type == PT_LOAD and first <= offset < s.p_offset + max(s.p_filesz, 1):
                return start - (offset - s.p_offset) - s.p_vaddr
        return None

    def at(self, vaddr: int) -> tuple[str, int] | None:
        """The symbol that holds an address of the file, and the offset in it."""
        number = bisect.bisect_right(self._values, vaddr) - 1
        if number < 0:
            return None
        symbol = self._symbols[number]
        if vaddr - symbol.value >= symbol.size:
            return None
        names = self._tables.names
        end = names.find(b"\0", symbol.name, symbol.name + _MOST_NAME)
        if end < 0:
            return None
        name = names[symbol.name : end].partition(b"@")[0]  # without its version
        return os.fsdecode(name), vaddr - symbol.value

    def prefixed(self, vaddr: int, offset: int, prefix: str) -> str:
        """The symbol that holds an address, *offset* bytes behind its begin, if it begins so."""
        value = (vaddr - offset) % (1 << 64)
        if self._lacks(os.fsencode(prefix), value.to_bytes(8, "little")):
            return ""
        name, at = self.at(vaddr) or ("", 0)
        return name if at == offset and name.startswith(prefix) else ""

    def defines(self, name: str) -> bool:
        """Whether a function or variable has that name."""
        wanted, at = os.fsencode(name) + b"\0", -1
        if self._lacks(wanted):
            return False
        offsets: set[int] = set()  # a linker lets a name begin within a longer one
        while (at := self._tables.names.find(wanted, at + 1)) >= 0 and len(offsets) < _MOST_FOUND:
            offsets.add(at)
        return bool(offsets) and any(symbol.name in offsets for symbol, _ in self._all())


def _content(file: BinaryIO, section: Any) -> bytes:
    """The bytes of a section, as far as the file has them."""
    if section["sh_size"] > _MOST_BYTES:
        raise ValueError(f"a section of {section['sh_size']} bytes")
    file.seek(section["sh_offset"])
    return file.read(section["sh_size"])


def _segments_of(file: BinaryIO, size: int) -> list[tuple[int, Segment]]:
    """Each ``p_type`` with the rest."""
    file.seek(0)
    raw = file.read(MOST_HEADER)
    try:
        header = ElfHeader(raw)
    except ValueError:
        return []
    if not raw.startswith(MAGIC) or header.e_phoff >= size:
        return []
    file.seek(header.e_phoff)
    return list(header.program_headers(file.read(header.e_phnum * header.phdr_size)))


def _build_id_of(elf: Any, segment: Segment) -> BuildId | None:
    from elftools.elf.notes import iter_notes  # as above

    file: BinaryIO = elf.stream
    for note in iter_notes(elf, segment.p_offset, segment.p_filesz):
        if note["n_type"] == "NT_GNU_BUILD_ID" and 0 < note["n_descsz"] <= _MOST_ID:
            file.seek(note["n_offset"])
            vaddr = segment.p_vaddr + note["n_offset"] - segment.p_offset
            return BuildId(vaddr, file.read(note["n_size"]), note["n_desc"])
    return None
