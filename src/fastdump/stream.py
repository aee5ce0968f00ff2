"""Sequential writing: to a pipe as it comes, to a file by O_DIRECT where it can be had.

By O_DIRECT the same disk takes up to twice as much, and the host's page cache is not filled with
the dump (measured in benchmarks/). See open(2), "O_DIRECT".
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os

from fastdump._native import BLOCK_SIZE, PAGE_SIZE

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
