"""Sequential writing: to a pipe as it comes, to a file by O_DIRECT where it can be had.

By O_DIRECT the same disk takes up to twice as much, and the host's page cache is not filled with
the dump (measured in benchmarks/). See open(2), "O_DIRECT".
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from fastdump._native import (
    BLOCK_SIZE,
    PAGE_SIZE,
    Buffer,
    Copier,
    Slice,
    aligned_buffer,
    write_sparse,
)

# A hole spares the disk a write, but costs one more: of O_DIRECT each is a round trip.
_HOLE_DIRECT = 64 << 10


def set_direct(fd: int, on: bool) -> bool:
    """Switch O_DIRECT on or off; whether it is on now."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    with contextlib.suppress(OSError):  # EINVAL: not on this file system
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)


def hole_size(fd: int) -> int:
    """The shortest run of zeros, in bytes, that is left unwritten in a file."""
    return _HOLE_DIRECT if set_direct(fd, True) else PAGE_SIZE


def one_at_a_time(fd: int) -> bool:
    """Whether one thread should write, while the others read.

    On a disk writes into one file wait for one another (the inode's lock), and each time that
    lock changes hands the disk is idle: with one writer dumps ran a fifth faster.
    Memory (tmpfs) takes writes from all threads; its device is no block device.
    """
    return os.major(os.fstat(fd).st_dev) != 0


class Block(NamedTuple):
    """The first *length* bytes of a buffer, and their offset in a file."""

    buffer: Buffer
    length: int
    offset: int


class Blocks:
    """Blocks that many threads fill, and one at a time writes.

    As many buffers come to be as blocks are under way: a crew bounds that.
    """

    size = 2 << 20  # a huge page
    threads = 2  # one reads ahead; more would only push blocks out of the cache unwritten

    def __init__(self) -> None:
        self._free: list[Buffer] = []

    def fill(self, copier: Copier, slices: Sequence[Slice]) -> Block:
        """The bytes of *slices*, which follow one another in offset."""
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = aligned_buffer(self.size)
        view, _ = copier.fill(slices, buffer)
        return Block(buffer, len(view), slices[0].offset)

    def write(self, block: Block, fd: int, hole: int) -> None:
        """Write a block at its offset; its buffer is free again."""
        write_sparse(fd, block.buffer, block.length, block.offset, hole)
        self._free.append(block.buffer)


class Sink(Protocol):
    """What is written front to back: a :class:`Stream`, or an upload. ``length``: bytes so far."""

    length: int

    def write(self, data: bytes | memoryview) -> None: ...
    def flush(self) -> None: ...


class Stream:
    """A sequential writer of a file or a pipe.

    Args:
        direct: The descriptor is of a new file of ours: try O_DIRECT, in aligned blocks.
            (Never on a descriptor that we share: the flag is the open file's, and gives
            a pipe another meaning.)
    """

    def __init__(self, fd: int, direct: bool = False) -> None:
        self.fd = fd
        self.length = 0
        direct = direct and set_direct(fd, True)
        self._block = memoryview(mmap.mmap(-1, BLOCK_SIZE)) if direct else None
        self._filled = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append *data*.

        Raises:
            OSError: As write(2) gives it.
        """
        self.length += len(data)
        view = memoryview(data)
        if not self._block:
            self._write_all(view)
            return
        while view:
            count = min(len(view), len(self._block) - self._filled)
            self._block[self._filled : self._filled + count] = view[:count]
            self._filled += count
            view = view[count:]
            if self._filled == len(self._block):
                self._filled = 0
                self._write_all(self._block)

    def flush(self) -> None:
        """Write what is left. O_DIRECT takes no piece of a block, so it ends here."""
        if self._block:
            set_direct(self.fd, False)
            block, self._block = self._block, None
            self._write_all(block[: self._filled])

    def _write_all(self, view: memoryview) -> None:
        while view:
            view = view[os.write(self.fd, view) :]
