"""Labels: what each region is, and which module it belongs to.

The one place where the ELF headers of mapped files are read. A file is opened through
``map_files`` or the target's root, so the headers are those of the file really mapped.
Only the ELF header and the program headers are read, once a file. A file that is broken or
hostile is labelled "file", with a note.
"""

from __future__ import annotations

import bisect
import io
import os
from collections.abc import Callable, Sequence
from enum import Enum
from typing import BinaryIO, NamedTuple

from fastdump._native import PAGE_SIZE
from fastdump.elf_header import (
    ET_DYN,
    ET_EXEC,
    MAGIC,
    MOST_HEADER,
    PT_LOAD,
    ElfHeader,
    Segment,
)
from fastdump.process import LiveProcess
from fastdump.region import Range, Region, ThreadStack


class Kind(str, Enum):
    """What a region is. The value is the name users see."""

    HEAP = "heap"
    STACK = "stack"
    THREAD_STACK = "thread stack"
    ANONYMOUS = "anonymous"
    EXECUTABLE = "executable"
    LIBRARY = "library"
    FILE = "file"
    SHARED = "shared memory"
    DEVICE = "device"
    KERNEL = "kernel page"


class Label(NamedTuple):
    """What a region is.

    ``module`` is the path of the ELF file it belongs to, its anonymous ``.bss`` tail
    included; ``lost`` says that this file has no copy on a disk that a debugger could open.
    """

    kind: Kind
    module: str = ""
    note: str = ""
    lost: bool = False


class _Module(NamedTuple):
    """An ELF file that can be loaded: ET_EXEC or ET_DYN."""

    loads: tuple[Segment, ...]
    executable: bool
    lost: bool


class _NotAModule(Exception):
    """No ELF file, or not one that can be loaded. The text is the note, if any."""


_KERNEL_PAGES = {"[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]", "[vectors]", "[sigpage]"}
_KERNEL_PAGES |= {"[uprobes]", "[timens]"}
_SHARED_PATHS = ("/memfd:", "/dev/shm/", "/SYSV")
_NO_DEVICES = ("/dev/zero", "/dev/shm/", "/dev/hugepages")
# Behind struct pthread: thread-local storage (aarch64), keys of musl; not an arena of Python.
_MOST_BEHIND = 64 << 10
_MAX_PROGRAM_HEADERS = 1024  # a linked file has about a dozen


def label_regions(process: LiveProcess, regions: Sequence[Region]) -> list[Label]:
    """The label of each region, in the same order. Never fails for what a file holds."""
    executable = _file_id(f"/proc/{process.tid}/exe")
    return _label_all(
        regions,
        process.thread_stacks(),
        lambda region: _inspect(process, region, regions, executable),
    )


def label_dumped(
    regions: Sequence[Region],
    stacks: Sequence[ThreadStack],
    executable: str,
    read: Callable[[int, int], bytes],
) -> list[Label]:
    """The label of each region of a core, whose modules are known by what memory has of them.

    Args:
        executable: Its path.
        read: Address and length → bytes, fewer or none where they are not in the core.
    """
    files: dict[tuple[str, int, str], list[Region]] = {}
    for region in regions:
        if region.has_file:
            files.setdefault(region.file_key, []).append(region)

    def inspect(region: Region) -> _Module | _NotAModule:
        mapped = files[region.file_key]
        is_executable = region.path == executable
        header = b""
        if mapped[0].offset == 0:
            header = read(mapped[0].start, PAGE_SIZE)
        if not header:  # left to the file: code is mapped executable
            if is_executable or any(r.perms[2] == "x" for r in mapped):
                return _Module((), is_executable, False)
            return _NotAModule("its ELF header, if it has one, is not in the dump")
        try:
            loads = _load_segments(io.BytesIO(header), len(header))
        except _NotAModule as note:
            return note
        return _Module(loads, is_executable, False)

    return _label_all(regions, stacks, inspect)


def _label_all(
    regions: Sequence[Region],
    stacks: Sequence[ThreadStack],
    inspect: Callable[[Region], _Module | _NotAModule],
) -> list[Label]:
    modules: dict[tuple[str, int, str], _Module | _NotAModule] = {}
    rest = _behind_stacks(stacks, regions)
    labels: list[Label] = []
    tail: tuple[Range, Label] | None = None  # the .bss of the module seen last
    for index, region in enumerate(regions):
        label = _by_name(region)
        if label is None and not region.has_file:
            label = _anonymous(region, tail, rest.get(index))
        elif label is None:
            found = modules.get(region.file_key)
            if found is None:
                found = modules[region.file_key] = inspect(region)
            if isinstance(found, _Module):
                kind = Kind.EXECUTABLE if found.executable else Kind.LIBRARY
                label = Label(kind, region.path, lost=found.lost)
                bss = _bss(region, found)
                if bss:
                    tail = (bss, label)
            else:
                shared = not region.private and region.path.startswith(_SHARED_PATHS)
                label = Label(Kind.SHARED if shared else Kind.FILE, note=str(found))
        labels.append(label)
    return labels


def _by_name(region: Region) -> Label | None:
    path = region.path
    if path.startswith("["):
        if path == "[heap]":
            return Label(Kind.HEAP)
        if path == "[stack]":
            return Label(Kind.STACK)
        if path.startswith("[stack:"):  # Linux 3.4 to 4.4
            return Label(Kind.THREAD_STACK)
        if path in _KERNEL_PAGES:
            return Label(Kind.KERNEL)
        if path.startswith("[anon_shmem:"):
            return Label(Kind.SHARED)
        return None
    if path.startswith("/dev/") and not path.startswith(_NO_DEVICES):
        return Label(Kind.DEVICE)
    if path.startswith(("anon_inode:", "socket:", "/dmabuf:")):
        return Label(Kind.DEVICE)
    if path.startswith(("/dev/zero", "/anon_hugepage")):
        return Label(Kind.ANONYMOUS if region.private else Kind.SHARED)
    return None


def _anonymous(region: Region, tail: tuple[Range, Label] | None, rest: int | None) -> Label:
    """*rest*: bytes behind the stack of a thread in it, if there is one."""
    if tail and region.start < tail[0].end and region.start >= tail[0].start:
        if region.end <= tail[0].end:
            return tail[1]
        # The kernel joined another mapping to it; what is not .bss must not get lost.
        length = tail[0].end - region.start
        note = f"its first {length} bytes are the .bss of {tail[1].module}"
        return Label(Kind.ANONYMOUS, note=note)
    if not region.private:
        return Label(Kind.SHARED)
    if rest is None:
        return Label(Kind.ANONYMOUS)
    if rest <= _MOST_BEHIND:
        return Label(Kind.THREAD_STACK)
    # Joined by the kernel, as before Linux 6.7 a stack and what was mapped before it; or the
    # program has stacks in memory of its own.
    return Label(Kind.ANONYMOUS, note="the stack of a thread lies in it")


def _behind_stacks(stacks: Sequence[ThreadStack], regions: Sequence[Region]) -> dict[int, int]:
    """The bytes behind the last stack in each region that has one, by its index; 0 if not known."""
    starts = [region.start for region in regions]
    found: dict[int, int] = {}
    for pointer, own in stacks:
        index = bisect.bisect_right(starts, pointer) - 1
        if index >= 0 and pointer < regions[index].end and regions[index].writable:
            rest = regions[index].end - own if pointer <= own < regions[index].end else 0
            found[index] = min((r for r in (rest, found.get(index)) if r), default=0)
    return found


def _file_id(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _inspect(
    process: LiveProcess,
    region: Region,
    regions: Sequence[Region],
    executable: tuple[int, int] | None,
) -> _Module | _NotAModule:
    """Read the headers of the file that *region* maps."""
    try:
        with os.fdopen(process.open_mapped(region), "rb") as file:
            found = os.fstat(file.fileno())
            loads = _load_segments(file, found.st_size)
    except _NotAModule as note:
        return note
    except OSError as error:  # also of a read: of a failing disk, or of what a device maps
        # Nothing but its mappings is left to go by: code is mapped executable.
        reason = f"the file cannot be read: {error.strerror}"
        if any(r.perms[2] == "x" for r in regions if r.file_key == region.file_key):
            return _Module((), region.path == process.exe, True)
        return _NotAModule(reason)
    is_executable = (found.st_dev, found.st_ino) == executable
    return _Module(loads, is_executable, lost=found.st_nlink == 0)


def _load_segments(file: BinaryIO, size: int) -> tuple[Segment, ...]:
    """The PT_LOADs of an ELF file."""
    raw = file.read(MOST_HEADER)
    if not raw.startswith(MAGIC):
        raise _NotAModule
    try:
        header = ElfHeader(raw)
    except ValueError as error:
        raise _NotAModule(f"broken ELF file: {error}") from None
    if header.e_type not in (ET_EXEC, ET_DYN):
        raise _NotAModule(f"ELF file of type {header.e_type}")
    length = header.e_phnum * header.phdr_size
    if header.e_phnum > _MAX_PROGRAM_HEADERS or header.e_phoff + length > size:
        raise _NotAModule("broken ELF file: program headers out of bounds")
    file.seek(header.e_phoff)
    raw = file.read(length)
    if len(raw) < length:  # it shrinks meanwhile
        raise _NotAModule("broken ELF file: program headers cut off")
    loads = [segment for p_type, segment in header.program_headers(raw) if p_type == PT_LOAD]
    if not loads:
        raise _NotAModule("ELF file without a PT_LOAD")
    return tuple(loads)


def _bss(region: Region, module: _Module) -> Range | None:
    """The whole pages of zero-initialised memory behind the PT_LOAD that *region* maps.

    The loader maps ``[p_vaddr + p_filesz, p_vaddr + p_memsz)`` anonymously from the next
    page boundary on: ELF specification, "Program Loading".
    """
    for load in module.loads:
        first = load.p_offset // PAGE_SIZE * PAGE_SIZE
        if not first <= region.offset < max(load.p_offset + load.p_filesz, first + 1):
            continue
        bias = region.start - (region.offset - load.p_offset) - load.p_vaddr
        start = _page_up(bias + load.p_vaddr + load.p_filesz)
        end = _page_up(bias + load.p_vaddr + load.p_memsz)
        if start < end and start >= region.end:
            return Range(start, end)
    return None


def _page_up(address: int) -> int:
    return -(-address // PAGE_SIZE) * PAGE_SIZE
