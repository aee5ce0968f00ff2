"""Outputs: files that have their name only once they are whole.

A file is written as ``NAME.part`` (mode 0600, O_EXCL, O_NOFOLLOW), synced, and renamed; a folder
likewise. The ``.part`` is locked while it is written, so that no second dump takes it away.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from fastdump import _native
from fastdump.errors import OutputFailed, UsageError, output_failed
from fastdump.stream import Sink, Stream

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

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

    *force* replaces files, but no devices and pipes; and folders that hold a dump and nothing else.
    """
    if path.name in ("", ".."):
        raise UsageError(f"{str(path)!r} cannot be the name of an output", "name a file")
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
    kind = stat.S_IFMT(os.lstat(path).st_mode) if os.path.lexists(path) else stat.S_IFREG
    if kind not in (stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR):
        raise OutputFailed(f"{path} is no regular file", "choose another name, or - to stream")
    if kind == stat.S_IFDIR:
        for name in os.listdir(path):
            if not _OURS.fullmatch(name):
                raise OutputFailed(
                    f"{path} is a folder that holds more than a dump: {name}",
                    "choose another name",
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


def _replace(path: Path, part: Path) -> None:
    """Give *part* the name *path*; what has it now is removed only then.

    A folder is put aside first, so that an interrupt leaves no half of it under its name.
    """
    try:
        part.rename(path)
        return
    except OSError as error:  # rename(2) replaces files by files, and empty folders by folders
        if error.errno not in (errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST):
            raise
    _check_replaceable(path)
    aside = path.with_name(f"fastdump-old-{os.urandom(4).hex()}")
    with uninterrupted():
        path.rename(aside)
        try:
            part.rename(path)
        except OSError:
            aside.rename(path)
            raise
    _remove(aside)


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


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def write_at(fd: int, data: bytes, offset: int) -> None:
    """Write all of *data* at *offset*: pwrite(2) may write less, on a disk that is nearly full."""
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


class Output(Protocol):
    """Where a stream goes: a :class:`PartFile`, :class:`StandardOutput`, or a URL."""

    def stream(self) -> Sink: ...
    def commit(self) -> int: ...
    def keep(self) -> str: ...
    def abort(self) -> None: ...


class StandardOutput:
    """The pipe or file that the shell gave us: what is written cannot be taken back."""

    def stream(self) -> Stream:
        return Stream(1)

    def commit(self) -> int:
        """Nothing: it has no name."""
        return 0

    def keep(self) -> str:
        return "the output"

    def abort(self) -> None:
        """Nothing can be taken back."""


class _Part:
    """A ``NAME.part`` of ours, until it is committed (gets its name), kept, or aborted.

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
            self.fd = self._create()
        except OSError as error:
            raise output_failed(str(self.part), error) from None
        try:
            _lock(self.fd, self.part)
            if not _is_ours(self.fd, self.part):
                raise OutputFailed(f"another dump is writing {self.part}", "wait for it")
        except BaseException:
            os.close(self.fd)
            raise

    def _create(self) -> int:
        """Create the ``.part``: its descriptor."""
        raise NotImplementedError

    def _sync(self) -> None:
        """Write everything to the disk, and give the page cache back."""
        raise NotImplementedError

    def _rename(self) -> None:
        """Give it its name; never that of another, unless forced."""
        raise NotImplementedError

    def _size(self) -> int:
        """Bytes that it takes on the disk."""
        raise NotImplementedError

    def sync(self) -> None:
        """Make what is written durable."""
        try:
            self._sync()
        except OSError as error:
            raise output_failed(str(self.part), error) from None

    def commit(self) -> int:
        """Make it durable, and give it its name; the bytes that it takes on the disk."""
        self.sync()
        size = self._size()
        try:
            self._rename()
            # Who may write in a folder may not be allowed to read it: it has its name all the same.
            with contextlib.suppress(PermissionError), _opened(str(self.path.parent)) as folder:
                os.fsync(folder)
        except OSError as error:
            raise output_failed(str(self.path), error) from None
        self._close()
        return size

    def keep(self) -> str:
        """Leave it under its ``.part`` name, durable: the name."""
        self.sync()
        self._kept = True
        self._close()
        return str(self.part)

    def abort(self) -> None:
        """Leave nothing, unless it was committed or kept; harmless a second time."""
        if self.fd >= 0 and not self._kept and _is_ours(self.fd, self.part):
            with contextlib.suppress(OSError):
                _remove(self.part)
        self._close()

    def _close(self) -> None:
        if self.fd >= 0:  # which ends the lock
            fd, self.fd = self.fd, -1
            os.close(fd)


class PartFile(_Part):
    """One output file."""

    def _create(self) -> int:
        return os.open(self.part, _NEW, 0o600)

    def stream(self) -> Stream:
        """Write it front to back."""
        return Stream(self.fd, direct=True)

    def write_at(self, data: bytes, offset: int) -> None:
        """Write all of *data* at *offset*."""
        write_at(self.fd, data, offset)

    def _sync(self) -> None:
        os.fsync(self.fd)
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def _size(self) -> int:
        return os.fstat(self.fd).st_blocks * 512

    def _rename(self) -> None:
        if self._force:
            _replace(self.path, self.part)
            return
        try:
            os.link(self.part, self.path, follow_symlinks=False)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            self.part.rename(self.path)
        else:
            self.part.unlink()


class PartFolder(_Part):
    """One output folder, of files without folders."""

    def _create(self) -> int:
        self.part.mkdir(mode=0o700)
        return os.open(self.part, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def open(self, name: str) -> int:
        """A descriptor for writing *name*, which is created at the first call."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, 0o600, dir_fd=self.fd)

    def has(self, name: str) -> bool:
        """Whether *name* was written; it may not be, where the target went away."""
        return (self.part / name).exists()

    def _sync(self) -> None:
        paths = [entry.path for entry in os.scandir(self.part)]
        if len(paths) > _MANY_FILES:
            _native.syncfs(self.fd)
        for path in paths:
            with _opened(path) as fd:
                if len(paths) <= _MANY_FILES:
                    os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.fsync(self.fd)

    def _size(self) -> int:
        return sum(entry.stat().st_blocks * 512 for entry in os.scandir(self.part))

    def _rename(self) -> None:
        if self._force:
            _replace(self.path, self.part)
            return
        if os.path.lexists(self.path):  # rename(2) replaces an empty folder
            raise FileExistsError(17, os.strerror(17))
        self.part.rename(self.path)
