"""Regions: the lines of ``/proc/PID/maps``, see proc_pid_maps(5)."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")
_DELETED = " (deleted)"


class Range(NamedTuple):
    """Half-open ``[start, end)`` of addresses."""

    start: int
    end: int


class ThreadStack(NamedTuple):
    """Addresses of a thread: one in its stack, and where it keeps what is its own.

    ``own`` is in the C library's ``struct pthread``, on top of the stack; 0 if it is not known.
    """

    pointer: int
    own: int


def following(items: Sequence[Item], starts: Sequence[int], address: int) -> Iterator[Item]:
    """The items from the one that *address* lies in, or behind, on.

    Args:
        items: In address order, without overlap; ``starts`` has their addresses.
    """
    for number in range(max(bisect.bisect_right(starts, address) - 1, 0), len(items)):
        yield items[number]


class Region(NamedTuple):
    """One line of ``/proc/PID/maps``; the fields are named as in proc_pid_maps(5).

    ``path`` is the text behind the inode: a file, a name in brackets, or empty. Bytes that
    are no UTF-8 are kept as surrogates (``encode("utf-8", "surrogateescape")`` gives
    them back), and the kernel's ``\\012`` is a newline again. It is untrusted text.
    """

    start: int
    end: int
    perms: str
    offset: int
    dev: str
    inode: int
    path: str

    @property
    def length(self) -> int:
        """Bytes."""
        return self.end - self.start

    @property
    def readable(self) -> bool:
        return self.perms[0] == "r"

    @property
    def writable(self) -> bool:
        return self.perms[1] == "w"

    @property
    def private(self) -> bool:
        return self.perms[3] == "p"

    @property
    def file_key(self) -> tuple[str, int, str]:
        """The same for each mapping of one file: subvolumes of btrfs share a device and inodes."""
        return self.dev, self.inode, self.path

    @property
    def has_file(self) -> bool:
        """A file lies behind it: on a disk, in memory (memfd, shared memory) or deleted."""
        return self.inode != 0

    @property
    def deleted(self) -> bool:
        """The kernel says that the file has no name any more.

        A file that is really called so looks the same; only its link count tells.
        """
        return self.has_file and self.path.endswith(_DELETED)


def parse_maps(text: str) -> list[Region]:
    """Parse ``/proc/PID/maps``, read with ``errors="surrogateescape"``.

    The kernel escapes the newline of a path as ``\\012`` and nothing else (``seq_path``),
    so that a file whose name holds these four characters cannot be told apart.

    Raises:
        ValueError: A line has not the form of proc_pid_maps(5).
    """
    regions = []
    for line in text.split("\n"):
        if not line:
            continue
        # Split at spaces only: a path may hold any other white space, Unicode's included.
        fields = line.split(" ", 5)
        if len(fields) < 5:
            raise ValueError(f"not a line of /proc/PID/maps: {line!r}")
        start, _, end = fields[0].partition("-")
        path = fields[5].lstrip(" ") if len(fields) > 5 else ""
        if "\\012" in path:
            path = path.replace("\\012", "\n")
        regions.append(
            Region(
                int(start, 16),
                int(end, 16),
                fields[1],
                int(fields[2], 16),
                fields[3],
                int(fields[4]),
                path,
            )
        )
    return regions
