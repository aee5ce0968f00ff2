"""Vtables: which type an address in a module stands for, by the target's own memory.

C++: the word before a vtable leads to its ``type_info``, which has the mangled name, in stripped
programs too (Itanium C++ ABI, "Virtual Table Layout", "Run-Time Type Information"); without one
(``-fno-rtti``), or in a dump that lacks its text, the vtable's own symbol has the name. Rust: a
vtable begins with drop, size and align; the name is that of its functions, so it needs ``.symtab``.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import re
import struct
from collections.abc import Sequence
from typing import NamedTuple

from fastdump._native import PAGE_SIZE
from fastdump._words import ModuleRange
from fastdump.demangling import demangled_rust, demangled_type
from fastdump.errors import FaultError
from fastdump.pointers import Pointers
from fastdump.region import Range
from fastdump.source import Source

_MANGLED = re.compile(rb"\*?([0-9A-Z][0-9A-Za-z_.$]*)\0")
_MOST_NAME = 4096
_VTABLE, _POINT = "_ZTV", 16  # the prefix of its symbol; where in it objects point to
# Of libstdc++ and of libc++; the first argument is the type, or a pointer to it.
_CONTROL_BLOCK = re.compile(
    r"std::(?:_Sp_counted_(?:ptr_inplace|ptr|deleter)|__\w+::__shared_ptr_(?:emplace|pointer))<"
)
_DROP = re.compile(r"core::ptr::(?:real_)?drop_in_place<(.*)>")
_METHOD = re.compile(r"<(.+) as (.+)>::")
_MOST_ALIGN = 1 << 16
_MOST_SIZE = 1 << 32
_MOST_PAGES = 4096  # that are kept


class TypeName(NamedTuple):
    """A type that objects have: ``language`` is ``C++`` or ``Rust``."""

    language: str
    name: str

    @property
    def own(self) -> bool:
        """Whether it is of the program, not of its language."""
        return not self.name.startswith(("std::", "__"))


class _Pages:
    """What a source has, a page at a time: dozens of vtables lie in each.

    What is lacking of a page the source is asked for.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._page = functools.lru_cache(_MOST_PAGES)(self._read_page)

    def _read_page(self, start: int) -> bytes:
        buffer = bytearray(PAGE_SIZE)
        try:
            return bytes(buffer[: self._source.read_into(start, buffer)])
        except FaultError:
            return b""

    def read(self, address: int, length: int) -> bytes:
        """As of :class:`Source`."""
        at = address % PAGE_SIZE
        found = self._page(address - at)[at : at + length]
        return found if len(found) == length else self._source.read(address, length)

    def text(self, address: int) -> bytes:
        """What lies there: some thousand bytes, or fewer if a zero or a gap is among them."""
        at = address % PAGE_SIZE
        found = self._page(address - at)[at:]
        if b"\0" in found:
            return found
        buffer = bytearray(_MOST_NAME)
        return bytes(buffer[: self._source.read_into(address, buffer)])


class Vtables:
    """Names of vtables; of a few targets, not of all, and of memory as it is when first looked at.

    Args:
        ranges: Of the modules, in address order.
    """

    def __init__(self, source: Source, ranges: Sequence[ModuleRange], pointers: Pointers) -> None:
        self._pages, self._ranges, self._pointers = _Pages(source), ranges, pointers
        self._starts = [found.start for found in ranges]
        self._code = [Range(r.start, r.end) for r in source.regions if r.perms[2] == "x"]

    def type_of(self, target: int) -> TypeName | None:
        """The type whose objects point to *target*: None if it is no vtable, or no primary one."""
        try:
            return self._cpp(target) or self._rust(target)
        except FaultError:
            return None

    def _in_module(self, address: int) -> bool:
        number = bisect.bisect_right(self._starts, address) - 1
        return number >= 0 and address < self._ranges[number].end

    def _is_code(self, address: int) -> bool:
        number = bisect.bisect_right(self._code, (address, 1 << 64)) - 1
        return number >= 0 and address < self._code[number].end

    def _cpp(self, target: int) -> TypeName | None:
        if target % 8:
            return None
        offset_to_top, type_info, first = struct.unpack("<qQQ", self._pages.read(target - 16, 24))
        if offset_to_top or not (type_info or first) or (first and not self._in_module(first)):
            return None
        name = self._mangled(target, type_info, first)
        return TypeName("C++", _without_block(demangled_type(name))) if name else None

    def _mangled(self, target: int, type_info: int, first: int) -> str:
        if type_info:
            if type_info % 8 or not self._in_module(type_info):
                return ""
            kind, name = struct.unpack("<QQ", self._pages.read(type_info, 16))
            if not self._in_module(kind) or not self._in_module(name):
                return ""
            with contextlib.suppress(FaultError):  # a dump may lack the text
                found = _MANGLED.match(self._pages.text(name))
                return found[1].decode() if found else ""
        elif not self._is_code(first):  # tables of CPython's methods begin with their names
            return ""
        return self._pointers.prefixed_symbol(target, _POINT, _VTABLE).removeprefix(_VTABLE)

    def _rust(self, target: int) -> TypeName | None:
        if target % 8:
            return None
        drop, size, align, method = struct.unpack("<4Q", self._pages.read(target, 32))
        if size >= _MOST_SIZE or not 0 < align <= _MOST_ALIGN or align & (align - 1):
            return None
        if size % align or not self._in_module(drop or method):
            return None
        for address, pattern in ((drop, _DROP), (method, _METHOD)):
            symbol = self._pointers.symbol_at(address) if address else None
            if symbol and symbol[1] == 0 and (found := pattern.search(demangled_rust(symbol[0]))):
                return TypeName("Rust", found[1])
        return None


def _without_block(name: str) -> str:
    """Of what std::shared_ptr keeps beside an object, or with it, the object's own type."""
    found = _CONTROL_BLOCK.match(name)
    if not found:
        return name
    depth, at = 0, found.end()
    for end in range(at, len(name)):
        depth += (name[end] in "<(") - (name[end] in ">)")
        if depth < 0 or (depth == 0 and name[end] == ","):
            return f"{name[at:end].rstrip('* ')} of a std::shared_ptr"
    return name
