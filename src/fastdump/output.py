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
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from fastdump import _native
from fastdump._native import PAGE_SIZE
from fastdump.errors import OutputFailed, UsageError, output_failed

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

# A hole spares the disk a write, but costs one more: of O_DIRECT each is a round trip.
_HOLE_DIRECT = 64 << 10

# syncfs(2) waits for everybody's data on that file system, fsync(2) for a journal commit a file.
_MANY_FILES = 256


def part_name(path: Path) -> Path:
    """The name that *path* has until it is whole."""
    return path.with_name(path.name + ".part")


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold signals back, so that what is created inside is also remembered for its removal."""
    ours = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ours)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def check_free(path: Path, force: bool) -> None:
    """Raise OutputFailed if *path* exists (and *force* is not given), or a ``.part`` of it.

    *force* replaces files, and folders that hold a dump and nothing else.
    """
    if path.name in ("", ".."):
        raise UsageError(f"{str(path)!r} cannot be the name of an output", "name a file with -o")
    if force:
        for old in (path, part_name(path)):
            _check_replaceable(old)
        return
    if os.path.lexists(path):
        raise OutputFailed(f"{path} exists", "--force replaces it")
    if os.path.lexists(part_name(path)):
        raise OutputFailed(
            f"{part_name(path)} exists: another dump runs, or was killed",
            "--force replaces it",
        )


_OURS = re.compile(r"manifest\.json|[0-9]+_mem_[0-9a-f]+\.bin(\.lz4)?")


def _check_replaceable(path: Path) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        for name in os.listdir(path):
            if not _OURS.fullmatch(name):
                raise OutputFailed(
                    f"{path} is a folder that holds more than a dump: {name}",
                    "choose another name with -o",
                )


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if os.path.isdir(path) and not os.path.islink(path):
            _check_replaceable(path)
            for name in os.listdir(path):
                (path / name).unlink()
            path.rmdir()
        else:
            path.unlink()


def _remove_part(part: Path) -> None:
    """Remove a ``.part`` that nobody writes any more."""
    try:
        fd = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # not there, or a symbolic link, or not ours to read
        _remove(part)
        return
    try:
        _lock(fd, part)
        _remove(part)
    finally:
        os.close(fd)


def _lock(fd: int, part: Path) -> None:
    """Take the lock by which others know that *part* is being written; flock(2)."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputFailed(f"another dump is writing {part}", "wait for it, or stop it") from None
    except OSError:  # a file system without locks
        pass


def _is_ours(fd: int, part: Path) -> bool:
    """Whether *part* still is the file or folder that *fd* is."""
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(part))
    except OSError:
        return False


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
        self._kept = False
        try:
            if force:
                _remove_part(self.part)
            self.fd = os.open(self.part, _NEW, 0o600)
        except OSError as error:
            raise output_failed(str(self.part), error) from None
        try:
            _lock(self.fd, self.part)
            if not _is_ours(self.fd, self.part):
                raise OutputFailed(f"another dump is writing {self.part}", "wait for it")
        except BaseException:
            os.close(self.fd)
            raise

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
        self._kept = True
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
        self.close()

    def abort(self) -> None:
        """Leave nothing, unless it was committed or kept; harmless a second time."""
        if self.fd >= 0 and not self._kept and _is_ours(self.fd, self.part):
            with contextlib.suppress(OSError):
                _remove(self.part)
        self.close()

    def close(self) -> None:
        """Close it, which ends the lock."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)


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
        self._kept = False
        try:
            if force:
                _remove_part(self.part)
            self.part.mkdir(mode=0o700)
            self._fd = os.open(self.part, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise output_failed(str(self.part), error) from None
        try:
            _lock(self._fd, self.part)
            if not _is_ours(self._fd, self.part):
                raise OutputFailed(f"another dump is writing {self.part}", "wait for it")
        except BaseException:
            os.close(self._fd)
            raise

    def open(self, name: str) -> int:
        """A descriptor for writing *name*, which is created at the first call."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, 0o600, dir_fd=self._fd)

    def has(self, name: str) -> bool:
        """Whether *name* was written; it may not be, where the target went away."""
        return (self.part / name).exists()

    def keep(self) -> str:
        """Leave it under its ``.part`` name, durable: the name."""
        self._sync()
        self._kept = True
        self._close()
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
        self._close()
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
        """Leave nothing, unless it was committed or kept; harmless a second time."""
        if self._fd >= 0 and not self._kept and _is_ours(self._fd, self.part):
            with contextlib.suppress(OSError):
                _remove(self.part)
        self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


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
