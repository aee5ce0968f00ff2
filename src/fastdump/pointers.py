"""Pointers: what an address of a source leads to, in words."""

from __future__ import annotations

import bisect
import contextlib
import io
import os
import stat
from typing import TYPE_CHECKING

from fastdump._native import PAGE_SIZE
from fastdump.addresses import region_name, short_name
from fastdump.demangling import demangled
from fastdump.errors import FaultError
from fastdump.live_source import LiveSource
from fastdump.region import Region
from fastdump.source import Source
from fastdump.symbols import Symbols
from fastdump.text import encoded, printable

if TYPE_CHECKING:
    from fastdump.debuginfod import Debuginfod

# e_shoff, and e_shentsize to e_shstrndx, of Elf64_Ehdr (elf(5)): what they tell of is not mapped.
_SECTION_HEADERS = ((40, 8), (58, 6))


class Pointers:
    """Names of addresses: a symbol of a module, or an offset in a region.

    The file of a module is opened when an address in it is first met: of a live process the very
    file that is mapped; of a dump the file of that path on this host, if it has the build id that
    the dump has in its memory.

    Args:
        debuginfod: Fetch the debug files of stripped modules, and of those whose file this host
            lacks, by the build id.
    """

    def __init__(self, source: Source, debuginfod: bool = False) -> None:
        self._debuginfod: Debuginfod | None = None
        if debuginfod:
            from fastdump.debuginfod import Debuginfod  # 9 ms: subprocess

            self._debuginfod = Debuginfod()
        self._source = source
        self._live = source.process if isinstance(source, LiveSource) else None
        self._starts = [region.start for region in source.regions]
        self._names = list(map(region_name, source.regions, source.labels))
        self._first: dict[str, int] = {}  # of each name: the start of its first region
        for region, name in zip(source.regions, self._names, strict=True):
            self._first.setdefault(name, region.start)
        self._modules: dict[str, tuple[Symbols, int] | None] = {}

    @property
    def problems(self) -> list[str]:
        """Why names may be lacking: sentences."""
        return self._debuginfod.problems if self._debuginfod else []

    def name_of(self, address: int) -> str:
        """What *address* leads to, fit for a terminal; empty if no region has it."""
        number = bisect.bisect_right(self._starts, address) - 1
        if number < 0 or address >= self._source.regions[number].end:
            return ""
        name, label = self._names[number], self._source.labels[number]
        if not name:
            start = self._starts[number]
            return f"{label.kind.value} {start:x}{_plus(address - start)}"
        if label.module and (found := self._symbol(name, address)):
            symbol, offset = found
            return f"{printable(short_name(name))}:{printable(demangled(symbol))}{_plus(offset)}"
        return f"{printable(short_name(name))}{_plus(address - self._first[name])}"

    def symbol_at(self, address: int) -> tuple[str, int] | None:
        """The symbol of a module that holds *address*, as its file has it, and the offset in it."""
        found = self._module_at(address)
        return found[0].at(address - found[1]) if found else None

    def prefixed_symbol(self, address: int, offset: int, prefix: str) -> str:
        """The same, if its name begins so, and *offset* is the one in it; else nothing.

        That there is none is often told without reading all symbols of the module.
        """
        found = self._module_at(address)
        return found[0].prefixed(address - found[1], offset, prefix) if found else ""

    def _module_at(self, address: int) -> tuple[Symbols, int] | None:
        number = bisect.bisect_right(self._starts, address) - 1
        if number < 0 or address >= self._source.regions[number].end:
            return None
        return self._module(self._names[number]) if self._source.labels[number].module else None

    def symbols_of(self, address: int) -> Symbols | None:
        """The symbols of the module that an address lies in, if its file can be had."""
        number = bisect.bisect_right(self._starts, address) - 1
        module = self._module(self._names[number])
        return module[0] if module else None

    def constant(self, address: int, most: int) -> bytes:
        """1 to *most* bytes at *address*: what a dump lacks of a module, as most lack what is only
        read, its file has.

        Raises:
            FaultError: There is no byte at *address*; says why.
            SourceGone: The target exited or called exec.
        """
        buffer = bytearray(most)
        try:
            return bytes(buffer[: self._source.read_into(address, buffer)])
        except FaultError:
            if found := self._in_file(address, most):
                return found
            raise

    def _in_file(self, address: int, most: int) -> bytes:
        number = bisect.bisect_right(self._starts, address) - 1
        if self._live or not self._module_at(address):
            return b""
        region = self._source.regions[number]
        if region.writable or not region.has_file:
            return b""
        try:
            fd = _open_by_path(region.path)
        except OSError:
            return b""
        with os.fdopen(fd, "rb", buffering=0) as file, contextlib.suppress(OSError):
            file.seek(region.offset + address - region.start)
            return file.read(min(most, region.end - address))
        return b""

    def _symbol(self, name: str, address: int) -> tuple[str, int] | None:
        module = self._module(name)
        if not module:
            return None
        symbols, bias = module
        return symbols.at(address - bias)

    def _module(self, name: str) -> tuple[Symbols, int] | None:
        if name not in self._modules:
            self._modules[name] = self._load(name)
        return self._modules[name]

    def _load(self, name: str) -> tuple[Symbols, int] | None:
        """The symbols of a module and where it is loaded, if its file can be had."""
        regions = zip(self._source.regions, self._names, strict=True)
        region = next((r for r, n in regions if n == name and r.has_file), None)
        if not region:
            return None
        found = self._of_file(region)
        if not self._debuginfod or (found and not found[0].is_stripped):
            return found
        known = found if found and found[0].build_id else self._of_memory(region)
        build_id = known[0].build_id if known else None
        if known and build_id and (fetched := self._debuginfod.symbols(name, build_id.id)):
            return fetched, known[1]
        return found

    def _of_file(self, region: Region) -> tuple[Symbols, int] | None:
        try:
            fd = self._live.open_mapped(region) if self._live else _open_by_path(region.path)
        except OSError:
            return None
        with os.fdopen(fd, "rb") as file:
            symbols = Symbols(file)
        bias = symbols.bias_of(region.start, region.offset)
        if bias is None or not (self._live or self._is_same_build(symbols, bias)):
            return None
        return symbols, bias

    def _of_memory(self, region: Region) -> tuple[Symbols, int] | None:
        """By the headers of a module, which a dump may have: no symbols, but the build id."""
        memory = bytearray(PAGE_SIZE)
        try:
            length = self._source.read_into(region.start, memory)
        except FaultError:
            return None
        for at, size in _SECTION_HEADERS:
            memory[at : at + size] = bytes(size)
        symbols = Symbols(io.BytesIO(memory[:length]))
        bias = symbols.bias_of(region.start, region.offset)
        return None if bias is None else (symbols, bias)

    def _is_same_build(self, symbols: Symbols, bias: int) -> bool:
        if not symbols.build_id:
            return False
        vaddr, note, _ = symbols.build_id
        try:
            return self._source.read(bias + vaddr, len(note)) == note
        except FaultError:
            return False


def _plus(offset: int) -> str:
    return f"+{offset:#x}" if offset else ""


def _open_by_path(path: str) -> int:
    """A descriptor of a regular file: a path from a dump may be anything."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW
    fd = os.open(encoded(path), flags)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError("not a regular file")
    return fd
