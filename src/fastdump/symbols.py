"""Symbols of ELF files: which function or variable an address lies in."""

from __future__ import annotations

import bisect
import functools
import io
import lzma
import os
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from fastdump._native import PAGE_SIZE

_SYMBOL = {64: struct.Struct("<IBBHQQ"), 32: struct.Struct("<IIIBBH")}  # Elf64_Sym, Elf32_Sym
_OBJECT, _FUNC, _GNU_IFUNC = 1, 2, 10
_GLOBAL = 1
# What no file of use has more of; a file may say anything.
_MOST_BYTES = 256 << 20
_MOST_NOTES = 1 << 20
_MOST_NAME = 1 << 16
_MOST_ID = 64  # bytes: as of elfutils
_MOST_FOUND = 1 << 10


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


class Symbols:
    """The functions and variables of an ELF file: of ``.symtab``, else of ``.dynsym`` and of the
    table of functions that distributions pack into ``.gnu_debugdata`` (MiniDebugInfo).

    Empty where the file is broken or hostile: it never fails for what a file holds.

    Attributes:
        build_id: None if it has none.
        is_stripped: Whether it has exported symbols only.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.build_id: BuildId | None = None
        self.is_stripped = True
        self._loads: list[tuple[int, int, int]] = []
        self._tables: list[_Table] = []
        self._strings = b""
        try:
            self._read(file)
        except Exception:  # untrusted bytes in a foreign parser
            self._tables = []

    def _read(self, file: BinaryIO) -> None:
        from elftools.elf.elffile import ELFFile  # 35 ms to import

        elf: Any = ELFFile(file)
        for segment in elf.iter_segments():
            if segment["p_type"] == "PT_LOAD":
                self._loads.append((segment["p_offset"], segment["p_vaddr"], segment["p_filesz"]))
            elif segment["p_type"] == "PT_NOTE" and segment["p_filesz"] <= _MOST_NOTES:
                self.build_id = self.build_id or _build_id_of(file, segment)
        self._enter(elf)
        whole = elf.get_section_by_name(".symtab")
        packed = elf.get_section_by_name(".gnu_debugdata")
        self.is_stripped = not (whole or packed)
        if packed and not whole:
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
        self._tables.append(_Table(elf.elfclass, content, len(self._strings)))
        self._strings += _content(elf.stream, elf.get_section(section["sh_link"]))

    def _all(self) -> Iterator[tuple[Symbol, bool]]:
        """Those of all tables, and whether they are global; several may be one thing."""
        for elfclass, content, base in self._tables:
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
        best: dict[int, tuple[tuple[bool, int, bool], Symbol]] = {}
        for symbol, is_global in self._all():
            value, size, name = symbol
            # Of several names for one thing the one that programs use: malloc, not __libc_malloc.
            rank = is_global, size, self._strings[name : name + 1] != b"_"
            if value not in best or rank > best[value][0]:
                best[value] = rank, symbol
        return sorted(symbol for _, symbol in best.values())

    @functools.cached_property
    def _values(self) -> list[int]:
        return [symbol.value for symbol in self._symbols]

    def bias_of(self, start: int, offset: int) -> int | None:
        """What is added to each address of the file where *offset* of it is mapped at *start*."""
        for p_offset, p_vaddr, p_filesz in self._loads:
            if p_offset // PAGE_SIZE * PAGE_SIZE <= offset < p_offset + max(p_filesz, 1):
                return start - (offset - p_offset) - p_vaddr
        return None

    def at(self, vaddr: int) -> tuple[str, int] | None:
        """The symbol that holds an address of the file, and the offset in it."""
        number = bisect.bisect_right(self._values, vaddr) - 1
        if number < 0:
            return None
        symbol = self._symbols[number]
        if vaddr - symbol.value >= symbol.size:
            return None
        end = self._strings.find(b"\0", symbol.name, symbol.name + _MOST_NAME)
        if end < 0:
            return None
        name = self._strings[symbol.name : end].partition(b"@")[0]  # without its version
        return os.fsdecode(name), vaddr - symbol.value

    def defines(self, name: str) -> bool:
        """Whether a function or variable has that name."""
        wanted, at = os.fsencode(name) + b"\0", -1
        offsets: set[int] = set()  # a linker lets a name begin within a longer one
        while (at := self._strings.find(wanted, at + 1)) >= 0 and len(offsets) < _MOST_FOUND:
            offsets.add(at)
        return bool(offsets) and any(symbol.name in offsets for symbol, _ in self._all())


def _content(file: BinaryIO, section: Any) -> bytes:
    """The bytes of a section, as far as the file has them."""
    if section["sh_size"] > _MOST_BYTES:
        raise ValueError(f"a section of {section['sh_size']} bytes")
    file.seek(section["sh_offset"])
    return file.read(section["sh_size"])


def _build_id_of(file: BinaryIO, segment: Any) -> BuildId | None:
    for note in segment.iter_notes():
        if note["n_type"] == "NT_GNU_BUILD_ID" and 0 < note["n_descsz"] <= _MOST_ID:
            file.seek(note["n_offset"])
            vaddr = segment["p_vaddr"] + note["n_offset"] - segment["p_offset"]
            return BuildId(vaddr, file.read(note["n_size"]), note["n_desc"])
    return None
