"""LZ4 frames end to end: made, and read by the offset of what they hold.

A seek table behind them tells where each lies. Where there is none, because
the file was cut off or is another program's, the frames are walked: their headers tell how long
they are, so that no content is unpacked. Frames are unpacked one at a time, by the threads that
read; those read at random stay in a small cache. What fails its checksum is lost, never delivered.

Sources: LZ4 Frame Format Description 1.6.4; Zstandard Seekable Format 0.1.0.
"""

from __future__ import annotations

import bisect
import itertools
import json
import struct
import sys
import threading
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator

from fastdump import _native
from fastdump.errors import CorruptDump
from fastdump.storage import TRUNCATED, Lost, Storage
from fastdump.stream import Sink

# The whole frame stays in the L2 cache between being read and being compressed.
FRAME_SIZE = 1 << 20
FRAME_MAGIC = 0x184D2204
_SKIPPABLE_MAGIC = 0x184D2A50  # to ...5F
MANIFEST_MAGIC = 0x184D2A5D
MANIFEST_OWNER = b"FASTDUMP"
SEEK_TABLE_MAGIC = 0x184D2A5E
SEEKABLE_MAGIC = 0x8F92EAB1
_SKIPPABLE = struct.Struct("<II")
_SEEK_ENTRY = struct.Struct("<II")
_SEEK_FOOTER = struct.Struct("<IBI")
_WORD = struct.Struct("<I")
_LONG = struct.Struct("<Q")
# The design's limit for a frame's content: what is read at random must be cheap to unpack.
MOST_CONTENT = 4 << 20
# LZ4 makes data that it cannot compress longer by less than that.
_MOST_FRAME = MOST_CONTENT + (64 << 10)
_MOST_MANIFEST = 128 << 20
_MOST_FRAMES = 1 << 22
_CACHED = 8
CORRUPT = "corrupt: its checksum does not hold"


class Index:
    """Where each frame lies, and what it holds.

    Attributes:
        offsets: Of the frames in the file, and of the end of the last.
        starts: Of their contents, likewise.
        lost: What is wrong behind the last frame; empty if nothing is.
        rebuilt: There was no good seek table: the frames were walked.
    """

    def __init__(self) -> None:
        self.offsets = array("Q", [0])
        self.starts = array("Q", [0])
        self.lost = ""
        self.rebuilt = False

    def add(self, size: int, content: int) -> None:
        self.offsets.append(self.offsets[-1] + size)
        self.starts.append(self.starts[-1] + content)


class Frames(Storage):
    """The content of LZ4 frames. Threads may share it; it owns *file*.

    Attributes:
        index: Of the frames.
        manifest: JSON of the skippable frame behind them; None if there is none.

    Raises:
        CorruptDump: They are no frames that can be read at random.
    """

    def __init__(self, file: Storage, name: str) -> None:
        self.file = file
        self._name = name
        self.index = _by_table(file) or _by_walk(file, name)
        self.size = self.index.starts[-1]
        self._cache: OrderedDict[int, bytes | Lost] = OrderedDict()
        self._lock = threading.Lock()
        self.manifest = self._manifest()

    @property
    def stored(self) -> int:
        return self.file.size

    @property
    def count(self) -> int:
        """Frames."""
        return len(self.index.starts) - 1

    def close(self) -> None:
        self.file.close()
        self._cache.clear()

    def parts(self, offset: int, length: int) -> Iterator[bytes | memoryview | Lost]:
        end = offset + length
        number = max(bisect.bisect_right(self.index.starts, offset) - 1, 0)
        # Long reads go front to back: only their ends can be wanted again.
        alone = length <= MOST_CONTENT
        while offset < end:
            if number >= self.count:
                yield Lost(end - offset, self.index.lost or TRUNCATED)
                return
            start, stop = self.index.starts[number], self.index.starts[number + 1]
            if start < stop:
                content = self._cached(number) if alone else self.unpack(number)
                wanted = min(stop, end) - offset
                if isinstance(content, Lost):
                    yield Lost(wanted, content.reason)
                else:
                    yield memoryview(content)[offset - start : offset - start + wanted]
                offset += wanted
            number += 1

    def _cached(self, number: int) -> bytes | Lost:
        with self._lock:
            content = self._cache.get(number)
            if content is not None:
                self._cache.move_to_end(number)
                return content
        content = self.unpack(number)
        with self._lock:
            self._cache[number] = content
            while len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        return content

    def unpack(self, number: int) -> bytes | Lost:
        """What a frame holds, its checksum checked."""
        offset, end = self.index.offsets[number], self.index.offsets[number + 1]
        length = self.index.starts[number + 1] - self.index.starts[number]
        frame = []
        for part in self.file.parts(offset, end - offset):
            if isinstance(part, Lost):
                return Lost(length, part.reason)
            frame.append(part)
        content = _content(b"".join(frame), length)
        return Lost(length, CORRUPT) if content is None else content

    def _manifest(self) -> bytes | None:
        at = self.index.offsets[-1]
        head = self.file.read(at, _SKIPPABLE.size + len(MANIFEST_OWNER))
        if len(head) < _SKIPPABLE.size + len(MANIFEST_OWNER):
            return None
        magic, size = _SKIPPABLE.unpack_from(head)
        if magic != MANIFEST_MAGIC or not head.endswith(MANIFEST_OWNER):
            return None
        if at + _SKIPPABLE.size + size > self.file.size:  # cut off
            return None
        size -= len(MANIFEST_OWNER) + _WORD.size  # the seek table's checksum
        frame = self.file.read(at + len(head), max(min(size, _MOST_MANIFEST), 0))
        length = _content_size(frame)
        if length is None or not _header_holds(frame[:19]):
            return None
        if max(size, length) > _MOST_MANIFEST:  # without it, gaps would be zeros
            raise CorruptDump("the manifest is too long to be one")
        return _content(frame, length) if len(frame) == size else None


def _content(frame: bytes, length: int) -> bytes | None:
    """The *length* bytes that a frame holds; None if it does not, or a checksum of it is wrong.

    Never more are unpacked, whatever the frame says.
    """
    import lz4.frame

    try:
        unpacker = lz4.frame.LZ4FrameDecompressor()
        content: bytes = unpacker.decompress(frame, max_length=length)
        if not unpacker.eof and len(content) == length:  # an empty block, or no end yet
            content += unpacker.decompress(b"", max_length=1)
    except (RuntimeError, ValueError, EOFError):
        return None
    whole = unpacker.eof and not unpacker.unused_data and len(content) == length
    return content if whole else None


def _content_size(frame: bytes) -> int | None:
    """The content size in a frame's header; None if it has none."""
    if len(frame) < 15 or _WORD.unpack_from(frame)[0] != FRAME_MAGIC or not frame[4] & 8:
        return None
    size: int = _LONG.unpack_from(frame, 6)[0]
    return size


def _by_table(file: Storage) -> Index | None:
    """The index by the seek table at the end of a file; None without one that fits."""
    footer = file.read(max(file.size - _SEEK_FOOTER.size, 0), _SEEK_FOOTER.size)
    if len(footer) < _SEEK_FOOTER.size:
        return None
    count, descriptor, magic = _SEEK_FOOTER.unpack(footer)
    size = count * 8 + _SEEK_FOOTER.size
    at = file.size - size - _SKIPPABLE.size
    if magic != SEEKABLE_MAGIC or descriptor or at < 0 or count > _MOST_FRAMES:
        return None
    if file.read(at, _SKIPPABLE.size) != _SKIPPABLE.pack(SEEK_TABLE_MAGIC, size):
        return None
    table = file.read(at + _SKIPPABLE.size, count * 8)
    # A wrong size would show in its own frame only, and move the bytes of all that follow.
    if len(table) < count * 8 or file.read(at - 4, 4) != _checksum(table):
        return None
    entries = array("I", table)
    if sys.byteorder == "big":
        entries.byteswap()
    sizes, contents = entries[::2], entries[1::2]
    if not count or max(sizes) > _MOST_FRAME or max(contents) > MOST_CONTENT:
        return None
    index = Index()
    index.offsets = array("Q", itertools.accumulate(sizes, initial=0))
    index.starts = array("Q", itertools.accumulate(contents, initial=0))
    return index if index.offsets[-1] <= at else None


def _checksum(table: bytes) -> bytes:
    """Of a seek table, which has none of its own."""
    return _WORD.pack(zlib.crc32(table))


def _by_walk(file: Storage, name: str) -> Index:
    """The index by the headers of frames and blocks, as far as they make sense."""
    index = Index()
    index.rebuilt = True
    while index.offsets[-1] < file.size:
        at = index.offsets[-1]
        head = file.read(at, 19)
        magic = _WORD.unpack(head[:4].ljust(4, b"\0"))[0]
        if magic & 0xFFFFFFF0 == _SKIPPABLE_MAGIC and at:
            break  # ours have such at the end only
        content = _content_size(head)
        if magic == FRAME_MAGIC and len(head) >= 7 and (content is None or content > MOST_CONTENT):
            raise CorruptDump(
                f"{name} has LZ4 frames that cannot be read at random"
                + (f" ({content:,} bytes in one)" if content else ""),
                "unpack it with lz4 -d, and name the result",
            )
        if magic != FRAME_MAGIC or content is None or not _header_holds(head):
            index.lost = TRUNCATED if len(head) < 19 else f"no LZ4 frame at offset {at:#x}"
            break
        size = _frame_size(file, at, head)
        if size is None:
            index.lost = TRUNCATED
            break
        index.add(size, content)
    return index


def _header_holds(head: bytes) -> bool:
    """Whether the checksum of a frame's header does: of all of it but the magic number."""
    import lz4.frame

    try:
        lz4.frame.get_frame_info(head)
    except RuntimeError:
        return False
    return True


def _frame_size(file: Storage, at: int, head: bytes) -> int | None:
    """Bytes from a frame's magic number to its end; None if the file ends before."""
    flags = head[4]
    offset = at + 7 + (8 if flags & 8 else 0) + (4 if flags & 1 else 0)
    while True:
        word = file.read(offset, 4)
        if len(word) < 4:
            return None
        size = _WORD.unpack(word)[0]
        offset += 4
        if not size:
            break
        offset += (size & 0x7FFFFFFF) + (4 if flags & 16 else 0)
        if offset - at > _MOST_FRAME or offset > file.size:
            return None
    offset += 4 if flags & 4 else 0
    return offset - at if offset <= file.size else None


class Compressor:
    """Makes LZ4 frames. Threads may share it.

    Args:
        level: As of lz4(1): 1 or 2 fast, 3 to 12 high compression, negative faster still.
    """

    def __init__(self, level: int = 1) -> None:
        self._level = level
        self._zeros: dict[int, bytes] = {}

    def frame(self, content: memoryview | bytes) -> bytes:
        """One LZ4 frame, with content size and checksum."""
        # Zero pages are what sparse memory is full of: the frame of a run is made once.
        if _native.is_zero(content):
            known = self._zeros.get(len(content))
            if known is None:
                known = self._zeros[len(content)] = self._compress(bytes(len(content)))
                if len(self._zeros) > 16:
                    self._zeros.clear()
            return known
        return self._compress(content)

    def _compress(self, content: memoryview | bytes) -> bytes:
        import lz4.frame

        frame: bytes = lz4.frame.compress(
            content,
            compression_level=self._level,
            block_size=lz4.frame.BLOCKSIZE_MAX1MB,
            block_linked=False,
            content_checksum=True,
            store_size=True,
        )
        return frame


class FrameStream:
    """LZ4 frames in a stream, and the seek table behind them."""

    def __init__(self, stream: Sink) -> None:
        self._stream = stream
        self._entries = bytearray()

    def write(self, frame: bytes, content_length: int) -> None:
        self._stream.write(frame)
        self._entries += _SEEK_ENTRY.pack(len(frame), content_length)

    def close(self, manifest: dict[str, object] | None, compressor: Compressor) -> int:
        """Write the skippable frames, and flush; the length of it all in bytes."""
        entries, count = bytes(self._entries), len(self._entries) // _SEEK_ENTRY.size
        payload = MANIFEST_OWNER
        if manifest:
            text = json.dumps(manifest, separators=(",", ":")).encode("ascii")
            payload += compressor.frame(text)
        payload += _checksum(entries)
        self._stream.write(_SKIPPABLE.pack(MANIFEST_MAGIC, len(payload)) + payload)
        table = entries + _SEEK_FOOTER.pack(count, 0, SEEKABLE_MAGIC)
        self._stream.write(_SKIPPABLE.pack(SEEK_TABLE_MAGIC, len(table)) + table)
        self._stream.flush()
        return self._stream.length
