"""The ELF header and the program headers of a file, checked before they are believed.

Not by pyelftools: it takes 30 ms to import, and 20 µs for a program header, of which a core may
have 100,000. Source: the System V ABI's ELF chapters.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

ET_EXEC, ET_DYN, ET_CORE = 2, 3, 4
PT_LOAD, PT_NOTE = 1, 4
MAGIC = b"\x7fELF"
MOST_HEADER = 64  # bytes


class Segment(NamedTuple):
    """What a program header says; the fields are named as in the ELF specification."""

    p_flags: int
    p_offset: int
    p_vaddr: int
    p_filesz: int
    p_memsz: int

    @property
    def end(self) -> int:
        return self.p_vaddr + max(self.p_memsz, self.p_filesz)


class ElfHeader:
    """32 or 64 bit, either byte order; fields are named as in the ELF specification.

    Args:
        raw: The first MOST_HEADER bytes of the file, or all that there are, from MAGIC on.

    Attributes:
        order: Of bytes, as :mod:`struct` has it.
        wide: 64 bit.
        phdr_size: Bytes of a program header.

    Raises:
        ValueError: It is broken; says how.
    """

    def __init__(self, raw: bytes) -> None:
        ident = raw[4:6].ljust(2, b"\0")
        if ident[0] not in (1, 2) or ident[1] not in (1, 2):
            raise ValueError(f"class {ident[0]}, data {ident[1]}")
        self.order = "<" if ident[1] == 1 else ">"
        self.wide = ident[0] == 2
        layout = struct.Struct(self.order + ("HHIQQQIHHHHHH" if self.wide else "HHIIIIIHHHHHH"))
        if len(raw) < 16 + layout.size:
            raise ValueError("cut off within its header")
        fields = layout.unpack_from(raw, 16)
        self.e_type, self.e_machine, _, _, self.e_phoff, self.e_shoff = fields[:6]
        e_phentsize, self.e_phnum, self.e_shentsize, self.e_shnum = fields[8:12]
        self._phdr = struct.Struct(self.order + ("IIQQQQQQ" if self.wide else "IIIIIIII"))
        self.phdr_size = self._phdr.size
        if self.e_phnum and e_phentsize != self.phdr_size:
            raise ValueError(f"program headers of {e_phentsize} bytes")

    def program_headers(self, raw: bytes) -> Iterator[tuple[int, Segment]]:
        """Each ``p_type`` with the rest, of those program headers that *raw* has whole."""
        for fields in self._phdr.iter_unpack(raw[: len(raw) // self.phdr_size * self.phdr_size]):
            if self.wide:
                p_type, p_flags, p_offset, p_vaddr, _, p_filesz, p_memsz, _ = fields
            else:
                p_type, p_offset, p_vaddr, _, p_filesz, p_memsz, p_flags, _ = fields
            yield p_type, Segment(p_flags, p_offset, p_vaddr, p_filesz, p_memsz)
