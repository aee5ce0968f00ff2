"""What the memory of a target holds, and whether an output says the same.

Nothing here uses fastdump: the expected bytes come from the image that the target was filled
with, and ELF cores are parsed by hand from their specification (elf(5)), as a stream.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import subprocess
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, cast

PAGE = 4096
STEP = 4 << 20


class WrongOutput(Exception):
    """An engine failed, or its output is not what the target's memory holds."""


class Truth(Protocol):
    """The bytes of ``[start, end)`` of a target's memory."""

    start: int
    end: int

    def read(self, address: int, length: int) -> bytes: ...

    def is_zero(self, start: int, end: int) -> bool: ...


class FilledTruth:
    """The memory of ``tests/targets/fill.c``: an image, repeated, with runs of zeros."""

    def __init__(self, image: Path, start: int, end: int, run: int, zero_percent: int) -> None:
        self.start, self.end = start, end
        self._image = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
        self._period = os.fstat(self._image).st_size
        self._run = run
        self._zero_percent = zero_percent

    def __del__(self) -> None:
        os.close(self._image)

    def _runs(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """Cut offsets ``[start, end)`` at the runs: start, end, whether it holds zeros."""
        while start < end:
            number = start // self._run
            stop = min(end, (number + 1) * self._run)
            yield start, stop, number * 61 % 100 < self._zero_percent
            start = stop

    def _tile(self, offset: int, length: int) -> bytes:
        parts = []
        while length:
            at = offset % self._period
            part = os.pread(self._image, min(length, self._period - at), at)
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def read(self, address: int, length: int) -> bytes:
        offset = address - self.start
        if not self._zero_percent:
            return self._tile(offset, length)
        runs = self._runs(offset, offset + length)
        return b"".join(bytes(e - s) if zero else self._tile(s, e - s) for s, e, zero in runs)

    def is_zero(self, start: int, end: int) -> bool:
        runs = self._runs(start - self.start, end - self.start)
        return all(zero or not self._tile(s, e - s).strip(b"\0") for s, e, zero in runs)


class PatternTruth:
    """The pattern of ``tests/targets``, all of it."""

    def __init__(self, start: int, end: int, page: Callable[[int, int], bytes]) -> None:
        self.start, self.end = start, end
        self.read = page

    def is_zero(self, start: int, end: int) -> bool:
        return False


class LiveTruth:
    """A range of a process that stands still, as ``/proc/PID/mem`` has it: what dd(1) reads."""

    def __init__(self, pid: int, start: int, end: int) -> None:
        self.start, self.end = start, end
        self._memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        os.close(self._memory)

    def read(self, address: int, length: int) -> bytes:
        return os.pread(self._memory, length, address)

    def is_zero(self, start: int, end: int) -> bool:
        steps = range(start, end, STEP)
        return not any(self.read(at, min(STEP, end - at)).strip(b"\0") for at in steps)


class SparseTruth:
    """The memory of ``tests/targets/sparse.c``: zeros, but for a few pages."""

    def __init__(
        self, start: int, end: int, touched: Sequence[int], page: Callable[[int], bytes]
    ) -> None:
        self.start, self.end = start, end
        self._touched = sorted(touched)
        self._page = page

    def read(self, address: int, length: int) -> bytes:
        out = bytearray(length)
        at = bisect_left(self._touched, address - PAGE + 1)
        for touched in self._touched[at:]:
            if touched >= address + length:
                break
            page, skip = self._page(touched), touched - address
            low, high = max(skip, 0), min(skip + PAGE, length)
            out[low:high] = page[low - skip : high - skip]
        return bytes(out)

    def is_zero(self, start: int, end: int) -> bool:
        at = bisect_left(self._touched, start - PAGE + 1)
        return at == len(self._touched) or self._touched[at] >= end


def check_stream(truth: Truth, start: int, end: int, stream: BinaryIO) -> None:
    """The next bytes of *stream* are those of ``[start, end)``."""
    for address in range(start, end, STEP):
        length = min(STEP, end - address)
        if stream.read(length) != truth.read(address, length):
            raise WrongOutput(f"bytes differ, or end, within {STEP} bytes of {address:#x}")


def check_zeros(truth: Truth, start: int, end: int) -> None:
    if start < end and not truth.is_zero(start, end):
        raise WrongOutput(f"{start:#x} to {end:#x} is left out although it has data")


# --- raw files ----------------------------------------------------------------------------------


def check_raw_file(path: Path, truth: Truth) -> None:
    """The file holds ``[truth.start, truth.end)``; its holes count as the zeros that they are."""
    size = path.stat().st_size
    if size != truth.end - truth.start:
        raise WrongOutput(f"{path.name}: {size} bytes, not {truth.end - truth.start}")
    with path.open("rb", buffering=0) as file:
        at = 0
        for start, end in data_extents(file.fileno(), size):
            check_zeros(truth, truth.start + at, truth.start + start)
            file.seek(start)
            check_stream(truth, truth.start + start, truth.start + end, file)
            at = end
        check_zeros(truth, truth.start + at, truth.end)


def data_extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, at


def raw_name(pid: int, truth: Truth) -> str:
    return f"{pid}_mem_{truth.start:x}.bin"


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[BinaryIO]:
    """What ``lz4 -dc`` makes of a file; it must accept the file to its end."""
    process = subprocess.Popen(
        ["lz4", "-dc", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=STEP
    )
    with process:
        stream = cast(BinaryIO, process.stdout)
        yield stream
        while stream.read(STEP):
            pass
    if process.returncode:
        raise WrongOutput(f"lz4 -dc fails on {path.name}")


def check_raw_lz4(folder: Path, truth: Truth) -> None:
    """The files ``PID_mem_START.bin.lz4``, each a run of memory that has data; the rest is zero."""
    starts = {int(path.name.split("_")[2].split(".")[0], 16): path for path in folder.glob("*.lz4")}
    at = truth.start
    for start in sorted(starts):
        if truth.start <= start < truth.end:
            check_zeros(truth, at, start)
            with unpacked(starts[start]) as stream:
                at = check_to_end(truth, start, stream)
    check_zeros(truth, at, truth.end)


def check_to_end(truth: Truth, address: int, stream: BinaryIO) -> int:
    """All bytes of *stream* are those from *address* on; where they end."""
    while data := stream.read(STEP):
        if data != truth.read(address, len(data)):
            raise WrongOutput(f"bytes differ within {STEP} bytes of {address:#x}")
        address += len(data)
    return address


# --- ELF cores ----------------------------------------------------------------------------------

PT_LOAD = 1
PN_XNUM = 0xFFFF


class Segment(NamedTuple):
    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int


SEGMENT = struct.Struct("<IIQQQQQQ")


class Position:
    """A stream that can be moved forward, by seeking where it can."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.offset = 0

    def read(self, length: int) -> bytes:
        data = self.stream.read(length)
        self.offset += len(data)
        return data

    def move_to(self, offset: int) -> None:
        if offset < self.offset:
            raise WrongOutput("the segments of the core are not in the order of its bytes")
        if self.stream.seekable():
            self.stream.seek(offset)
            self.offset = offset
        while self.offset < offset:
            if not self.read(min(STEP, offset - self.offset)):
                raise WrongOutput("the core is too short")


def check_core(stream: BinaryIO, truth: Truth) -> None:
    """The ELF core holds ``[truth.start, truth.end)``, all of it; what it leaves out is zero."""
    position = Position(stream)
    header = position.read(64)
    if header[:4] != b"\x7fELF":
        raise WrongOutput("not an ELF file")
    (table,) = struct.unpack_from("<Q", header, 32)
    (count,) = struct.unpack_from("<H", header, 56)
    if count == PN_XNUM:
        raise WrongOutput("more segments than a benchmark's target has")
    position.move_to(table)
    entries = SEGMENT.iter_unpack(position.read(count * SEGMENT.size))
    segments = [Segment(*entry) for entry in entries]
    at = truth.start
    for segment in sorted(segments, key=lambda s: s.vaddr):
        start = max(segment.vaddr, at)
        end = min(segment.vaddr + segment.memsz, truth.end)
        if segment.type != PT_LOAD or start >= end:
            continue
        check_zeros(truth, at, start)
        stored = max(start, min(end, segment.vaddr + segment.filesz))
        if stored > start:
            position.move_to(segment.offset + start - segment.vaddr)
            check_stream(truth, start, stored, position.stream)
            position.offset += stored - start
        check_zeros(truth, stored, end)
        at = end
    check_zeros(truth, at, truth.end)


# --- outputs by their format --------------------------------------------------------------------


def check_output(format: str, path: Path, pid: int, truth: Truth) -> None:
    """An output of fastdump, or of another tool that writes the same format, is right."""
    if format == "raw":
        check_raw_file(path / raw_name(pid, truth), truth)
    elif format == "core":
        with path.open("rb") as core:
            check_core(core, truth)
    elif format == "lz4":
        with unpacked(path) as stream:
            check_core(stream, truth)
    elif format == "raw-lz4":
        check_raw_lz4(path, truth)
    else:
        raise ValueError(format)
