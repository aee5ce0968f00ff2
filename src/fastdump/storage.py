"""Where the bytes of a dump lie, read by offset: a file, or LZ4 frames in one (``frames.py``).

The native code reads plain files itself. What must be made first, such as what a frame
holds, is handed to it a part at a time; so no dump is ever unpacked as a whole.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fastdump._native import (
    AGAIN,
    OURS,
    PLAIN,
    ZEROS_BEFORE,
    ZEROS_BEHIND,
    Gap,
    Slice,
    address_of,
)

PART_SIZE = 1 << 20
TRUNCATED = "the dump is cut off"


class Lost(NamedTuple):
    """Bytes that should be there, and why they are not."""

    length: int
    reason: str


class Storage(ABC):
    """Bytes by offset, from 0 to ``size``. Threads may share it.

    Attributes:
        size: Bytes.
    """

    size: int

    @abstractmethod
    def parts(self, offset: int, length: int) -> Iterator[bytes | memoryview | Lost]:
        """All of a range, in order: together exactly *length* bytes."""

    def batches(self, slices: Sequence[Slice]) -> Iterator[Sequence[Slice] | Gap]:
        """The same slices for the native code, each batch valid until the next step."""
        for s in slices:
            yield from _ours(s, self.parts(s.file_offset, s.length))

    @abstractmethod
    def close(self) -> None:
        """Let go of what it holds open."""

    @property
    def stored(self) -> int:
        """Bytes that it takes where it lies."""
        return self.size

    def mapped(self, offset: int, length: int) -> memoryview | None:
        """A range where it lies, without a copy; None where that cannot be."""
        return None

    def read(self, offset: int, length: int) -> bytes:
        """As much of a range as there is before something is lost."""
        found = itertools.takewhile(
            lambda part: not isinstance(part, Lost), self.parts(offset, length)
        )
        return b"".join(part for part in found if not isinstance(part, Lost))


def part_of(s: Slice, start: int, end: int, flags: int = 0) -> Slice:
    """A part of a slice: what lies before and behind it holds for its ends only."""
    flags |= s.flags
    if start > 0:
        flags &= ~ZEROS_BEFORE
    if end < s.length:
        flags &= ~ZEROS_BEHIND
    return s.part(start, end - start)._replace(flags=flags)


def _ours(s: Slice, parts: Iterator[bytes | memoryview | Lost]) -> Iterator[Sequence[Slice] | Gap]:
    """A slice whose bytes are handed over; all but the end of a run are whole blocks of 64."""
    done = 0
    rest = b""
    for part in itertools.chain(parts, [Lost(0, "")]):
        if isinstance(part, Lost):
            data: bytes | memoryview = rest
            whole, rest = len(rest), b""
        else:
            data = rest + bytes(part) if rest else part
            whole = len(data) & ~63
            rest = bytes(data[whole:])
        if whole:
            found = part_of(s, done, done + whole, PLAIN | OURS)
            yield [found._replace(file=-1, file_offset=address_of(data))]
            done += whole
        if isinstance(part, Lost) and part.length:
            if not s.flags & AGAIN:  # the piece that it belongs to accounts for it
                at = s.address + done
                yield Gap(at, at + part.length, part.reason)
            done += part.length


class Folder(ABC):
    """A folder of files, which are opened when they are read."""

    @abstractmethod
    def files(self) -> dict[str, int]:
        """Its plain files, by name: their sizes in bytes."""

    @abstractmethod
    def file(self, name: str) -> Storage:
        """One of them."""

    @abstractmethod
    def data(self, name: str, size: int) -> Iterator[tuple[int, int]]:
        """Where the first *size* bytes of one are not known to be zero."""


class LocalFile(Storage):
    """A file; it owns the descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.size = os.fstat(fd).st_size

    @property
    def stored(self) -> int:
        return os.fstat(self.fd).st_blocks * 512  # a core has holes

    def parts(self, offset: int, length: int) -> Iterator[bytes | memoryview | Lost]:
        end = offset + length
        while offset < end:
            if offset >= self.size:  # also what pread(2) could not be asked for
                yield Lost(end - offset, TRUNCATED)
                return
            try:
                part = os.pread(self.fd, min(end - offset, PART_SIZE), offset)
            except OSError as error:
                yield Lost(end - offset, os.strerror(error.errno or 0))
                return
            if not part:
                yield Lost(end - offset, TRUNCATED)
                return
            yield part
            offset += len(part)

    def mapped(self, offset: int, length: int) -> memoryview | None:
        if offset + length > os.fstat(self.fd).st_size:
            return None
        before = offset % mmap.ALLOCATIONGRANULARITY
        area = mmap.mmap(self.fd, before + length, prot=mmap.PROT_READ, offset=offset - before)
        return memoryview(area)[before:]

    def batches(self, slices: Sequence[Slice]) -> Iterator[Sequence[Slice] | Gap]:
        yield [s._replace(file=self.fd, flags=s.flags | PLAIN) for s in slices]

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class NamedFile(Storage):
    """A file that is open only while it is read: a folder may have a hundred thousand of them."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.size = os.stat(path).st_size

    @contextlib.contextmanager
    def _opened(self) -> Iterator[LocalFile]:
        file = LocalFile(os.open(self._path, os.O_RDONLY | os.O_CLOEXEC))
        try:
            yield file
        finally:
            file.close()

    @property
    def stored(self) -> int:
        return os.stat(self._path).st_blocks * 512

    def parts(self, offset: int, length: int) -> Iterator[bytes | memoryview | Lost]:
        try:
            with self._opened() as file:
                yield from file.parts(offset, length)
        except OSError as error:
            yield Lost(length, os.strerror(error.errno or 0))

    def batches(self, slices: Sequence[Slice]) -> Iterator[Sequence[Slice] | Gap]:
        try:
            with self._opened() as file:
                yield from file.batches(slices)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            for s in slices:
                if not s.flags & AGAIN:
                    yield Gap(s.address, s.address + s.length, reason)

    def mapped(self, offset: int, length: int) -> memoryview | None:
        with self._opened() as file:
            return file.mapped(offset, length)

    def close(self) -> None:
        """It is not open."""
