"""What a SOURCE names: a process, a core, a dump, or (where that makes sense) any other file."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from fastdump.errors import UsageError, not_opened
from fastdump.source import Source
from fastdump.storage import LocalFile, Storage
from fastdump.url import is_url, local_path, shown

if TYPE_CHECKING:
    from fastdump.place import WholeFile

_LZ4_FRAME = b"\x04\x22\x4d\x18"
_MOST_BLOCK = (4 << 20) + 64  # with its headers
_MOST_HEAD = 23  # of a frame, and the size of its first block


def open_source(name: str) -> Source:
    """A pid, an ELF core, a ``.core.lz4``, or the folder of a raw dump: its path, or its URL.

    Raises:
        SourceGone, NotPermitted, UsageError: As :class:`LiveProcess`; or there is no such file,
            or its server does not let us read it.
        CorruptDump: It cannot be understood.
    """
    if is_pid(name):
        return attach(int(name))
    source = open_dump(name)
    if source is None:
        raise UsageError(
            f"{name} is no core and no dump",
            "name a pid, an ELF core, a .core.lz4, or the folder of a raw dump",
        )
    return source


def attach(pid: int) -> Source:
    """The memory of the live process *pid*; it is not stopped.

    Raises:
        SourceGone: There is no such process.
        NotPermitted: The kernel does not let us read it.
        UsageError: It is a kernel thread.
    """
    # What dumps do without: some milliseconds.
    from fastdump.live_source import LiveSource
    from fastdump.process import LiveProcess

    return LiveSource(LiveProcess(pid))


def is_pid(name: str) -> bool:
    return name.isascii() and name.isdigit()


def open_dump(name: str) -> Source | None:
    """The same without a pid; None if it is some other file."""
    if is_url(name):
        return _open_remote(name)
    try:
        fd = os.open(local_path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise not_opened(name, error, "name a pid, a file, or the folder of a raw dump") from None
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return _dump_in(LocalFile(fd), name)
    os.close(fd)
    if stat.S_ISDIR(mode):
        from fastdump.raw_source import LocalFolder, RawDump

        try:
            return RawDump(LocalFolder(local_path(name)), name)
        except OSError as error:
            raise not_opened(error.filename or name, error) from None
    return None


def _open_remote(url: str) -> Source | None:
    from fastdump.remote import RemoteFolder, open_remote

    found = open_remote(url)
    if not isinstance(found, RemoteFolder):
        return _dump_in(found, shown(url))
    from fastdump.raw_source import RawDump

    return RawDump(found, shown(url))


def _dump_in(file: Storage, name: str) -> Source | None:
    """The core that a file holds; None if it holds none. The source owns *file*."""
    with contextlib.ExitStack() as stack:
        stack.callback(file.close)
        magic = file.read(0, min(18, file.size))
        packed = magic[:4] == _LZ4_FRAME and is_core(_unpacked(file))
        if not packed and not is_core(magic):
            return None
        from fastdump.core_source import ElfCore
        from fastdump.frames import Frames

        source = ElfCore(Frames(file, name) if packed else file, name)
        stack.pop_all()
        return source


def open_whole(name: str) -> WholeFile:
    """Any file by its path or URL, as it is.

    Raises:
        UsageError, NotPermitted: It cannot be read, is a folder, or does not tell its size.
    """
    from fastdump.place import WholeFile, open_regular

    if not is_url(name):
        return open_regular(name)
    from fastdump.remote import RemoteFolder, open_remote

    file = open_remote(name)
    if isinstance(file, RemoteFolder):
        raise UsageError(f"{shown(name)} is a folder", "name its files")
    return WholeFile(shown(name), file, [(0, file.size)] if file.size else [])


def is_core(magic: bytes) -> bool:
    """Whether a file that begins so is an ELF core."""
    if len(magic) < 18 or magic[:4] != b"\x7fELF":
        return False
    return magic[16:18] in (b"\4\0", b"\0\4")


def _unpacked(file: Storage) -> bytes:
    """The first bytes that an LZ4 file holds."""
    import lz4.frame

    head = file.read(0, min(_MOST_HEAD, file.size)).ljust(_MOST_HEAD, b"\0")
    flags = head[4]
    at = 7 + (8 if flags & 8 else 0) + (4 if flags & 1 else 0)
    size = int.from_bytes(head[at : at + 4], "little") & 0x7FFFFFFF
    end = at + 4 + size + (4 if flags & 16 else 0)  # of a block, which is unpacked as a whole
    try:
        found: bytes = lz4.frame.LZ4FrameDecompressor().decompress(
            file.read(0, min(end, _MOST_BLOCK, file.size)), max_length=18
        )
    except (RuntimeError, ValueError):
        return b""
    return found
