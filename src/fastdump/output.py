"""Outputs: files that have their name only once they are whole.

A file is written as ``NAME.part`` (mode 0600, O_EXCL, O_NOFOLLOW), synced, and renamed.
Data goes out by O_DIRECT where the file system has it: the same disk takes up to twice as much
that way, and the host's page cache is not filled with the dump (measured in benchmarks/).
Elsewhere it is buffered, and dropped from the page cache after the sync.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from fastdump import _native
from fastdump._native import PAGE_SIZE
from fastdump.errors import OutputFailed, output_failed

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

# A hole spares the disk a write, but costs one more: of O_DIRECT each is a round trip.
_HOLE_DIRECT = 64 << 10

# syncfs(2) waits for everybody's data on that file system, fsync(2) for a journal commit a file.
_MANY_FILES = 256


def part_name(path: Path) -> Path:
    """The name that *path* has until it is whole."""
    return path.with_name(path.name + ".part")


def check_free(path: Path, force: bool) -> None:
    """Raise OutputFailed if *path* exists (and *force* is not given), or a ``.part`` of it."""
    if force:
        return
    if os.path.lexists(path):
        raise OutputFailed(f"{path} exists", "--force replaces it")
    if os.path.lexists(part_name(path)):
        raise OutputFailed(
            f"{part_name(path)} exists: another dump runs, or was killed",
            "--force replaces it",
        )


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sync_name(path: Path) -> None:
    """Make a rename durable: fsync(2) of the folder."""
    with _opened(str(path.parent)) as folder:
        os.fsync(folder)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def set_direct(fd: int, on: bool) -> bool:
    """Switch O_DIRECT on or off; whether it is on now."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    with contextlib.suppress(OSError):  # EINVAL: not on this file system
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)


def hole_size(fd: int) -> int:
    """The shortest run of zeros, in bytes, that is left unwritten in a file."""
    return _HOLE_DIRECT if set_direct(fd, True) else PAGE_SIZE


class Output(Protocol):
    """Where a stream goes: a :class:`PartFile` or :class:`StandardOutput`."""

    def stream(self) -> Stream: ...
    def commit(self) -> None: ...
    def keep(self) -> str: ...
    def abort(self) -> None: ...


class StandardOutput:
    """The pipe or file that the shell gave us: what is written cannot be taken back."""

    def stream(self) -> Stream:
        return Stream(1)

    def commit(self) -> None:
        """Nothing: it has no name."""

    def keep(self) -> str:
        return "the output"

    def abort(self) -> None:
        """Nothing can be taken back."""


class PartFile:
    """One output file: ``NAME.part`` until :meth:`commit`.

    Raises:
        OutputFailed: It exists, or cannot be written.
    """

    def __init__(self, path: Path, force: bool = False) -> None:
        check_free(path, force)
        self.path = path
        self.part = part_name(path)
        self._force = force
        try:
            if force:
                _remove(self.part)
            self.fd = os.open(self.part, _NEW, 0o600)
        except OSError as error:
            raise output_failed(str(self.part), error) from None

    def stream(self) -> Stream:
        """Write it front to back."""
        return Stream(self.fd, direct=True)

    def write_at(self, data: bytes, offset: int) -> None:
        """Write all of *data* at *offset*."""
        view = memoryview(data)
        while view:
            count = os.pwrite(self.fd, view, offset)
            view, offset = view[count:], offset + count

    def keep(self) -> str:
        """Leave it under its ``.part`` name, durable: the name."""
        self.sync()
        self.close()
        return str(self.part)

    def sync(self) -> None:
        """fsync(2), and give the page cache back."""
        try:
            os.fsync(self.fd)
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise output_failed(str(self.part), error) from None

    def commit(self) -> None:
        """Make the file durable, and give it its name."""
        self.sync()
        self.close()
        try:
            if self._force:
                if self.path.is_dir() and not self.path.is_symlink():
                    _remove(self.path)
                self.part.rename(self.path)
            else:
                _rename_new(self.part, self.path)
            _sync_name(self.path)
        except OSError as error:
            raise output_failed(str(self.path), error) from None

    def abort(self) -> None:
        """Leave nothing."""
        self.close()
        with contextlib.suppress(OSError):
            _remove(self.part)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _rename_new(part: Path, path: Path) -> None:
    """Rename a file, but never over another: rename(2) would replace it."""
    try:
        os.link(part, path, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        part.rename(path)
    else:
        part.unlink()


class PartFolder:
    """One output folder: ``NAME.part`` until :meth:`commit`."""

    def __init__(self, path: Path, force: bool = False) -> None:
        check_free(path, force)
        self.path = path
        self.part = part_name(path)
        self._force = force
        try:
            if force:
                _remove(self.part)
            self.part.mkdir(mode=0o700)
        except OSError as error:
            raise output_failed(str(self.part), error) from None

    def open(self, name: str) -> int:
        """A descriptor for writing *name*, which is created at the first call."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self.part / name, flags, 0o600)

    def has(self, name: str) -> bool:
        """Whether *name* was written; it may not be, where the target went away."""
        return (self.part / name).exists()

    def keep(self) -> str:
        """Leave it under its ``.part`` name, durable: the name."""
        self._sync()
        return str(self.part)

    def commit(self) -> int:
        """Make the folder durable, and give it its name; the bytes it takes on the disk."""
        self._sync()
        size = sum(entry.stat().st_blocks * 512 for entry in os.scandir(self.part))
        try:
            if self._force:
                _remove(self.path)
            elif os.path.lexists(self.path):  # rename(2) replaces an empty folder
                raise FileExistsError(17, os.strerror(17))
            self.part.rename(self.path)
            _sync_name(self.path)
        except OSError as error:
            raise output_failed(str(self.path), error) from None
        return size

    def _sync(self) -> None:
        """Write everything to the disk, and give the page cache back."""
        paths = [entry.path for entry in os.scandir(self.part)]
        try:
            if len(paths) > _MANY_FILES:
                with _opened(str(self.part)) as folder:
                    _native.syncfs(folder)
            for path in paths:
                with _opened(path) as fd:
                    if len(paths) <= _MANY_FILES:
                        os.fsync(fd)
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            with _opened(str(self.part)) as folder:
                os.fsync(folder)
        except OSError as error:
            raise output_failed(str(self.part), error) from None

    def abort(self) -> None:
        """Leave nothing."""
        with contextlib.suppress(OSError):
            _remove(self.part)


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
        self._block = memoryview(mmap.mmap(-1, _native.BLOCK_SIZE)) if direct else None
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
