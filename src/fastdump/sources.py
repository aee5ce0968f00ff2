"""What a SOURCE names: a process, a core, a dump, or (where that makes sense) any other file."""

from __future__ import annotations

import contextlib
import os
import stat

from fastdump.errors import UsageError
from fastdump.source import Source

_LZ4_FRAME = b"\x04\x22\x4d\x18"
_MOST_BLOCK = (4 << 20) + 64  # with its headers


def open_source(name: str) -> Source:
    """A pid, an ELF core, a ``.core.lz4``, or the folder of a raw dump.

    Raises:
        SourceGone, NotPermitted, UsageError: As :class:`LiveProcess`; or there is no such file.
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


def open_dump(path: str) -> Source | None:
    """The same without a pid; None if it is some other file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {os.strerror(error.errno or 0)}",
            "name a pid, a file, or the folder of a raw dump",
        ) from None
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, fd)
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            from fastdump.raw_source import RawDump

            try:
                return RawDump(path, path)
            except OSError as error:
                what = error.filename or path
                raise UsageError(f"cannot read {what}: {error.strerror}") from None
        magic = os.pread(fd, 18, 0) if stat.S_ISREG(mode) else b""
        packed = magic[:4] == _LZ4_FRAME and is_core(_unpacked(fd))
        if not packed and not is_core(magic):
            return None
        from fastdump.core_source import ElfCore
        from fastdump.frames import Frames
        from fastdump.storage import LocalFile

        file = LocalFile(fd)
        source = ElfCore(Frames(file, path) if packed else file, path)
        stack.pop_all()  # the source owns it now
        return source


def is_core(magic: bytes) -> bool:
    """Whether a file that begins so is an ELF core."""
    if len(magic) < 18 or magic[:4] != b"\x7fELF":
        return False
    return magic[16:18] in (b"\4\0", b"\0\4")


def _unpacked(fd: int) -> bytes:
    """The first bytes that an LZ4 file holds."""
    import lz4.frame

    try:  # a block is unpacked as a whole
        found: bytes = lz4.frame.LZ4FrameDecompressor().decompress(
            os.pread(fd, _MOST_BLOCK, 0), max_length=18
        )
    except (RuntimeError, ValueError):
        return b""
    return found
