"""``.core.lz4``: an ELF core as a stream of independent LZ4 frames.

Each frame holds at most 1 MiB of the core, its size and its checksum, so that it can be read
and checked alone. Behind the last frame follow two skippable frames, which ``lz4 -dc`` passes
over: the manifest (an LZ4 frame of JSON), and a seek table in the layout of the Zstandard
seekable format, so that a reader finds any byte of the core without unpacking the rest.

Sources: LZ4 Frame Format Description 1.6.4; Zstandard Seekable Format 0.1.0.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterator

from fastdump import _native
from fastdump._native import Copier, Slice
from fastdump.elfcore import lay_out
from fastdump.output import Output
from fastdump.stream import Stream
from fastdump.survey import Survey, pieces_of

# The whole frame stays in the L2 cache between being read and being compressed.
FRAME_SIZE = 1 << 20
SEEK_TABLE_MAGIC = 0x184D2A5E
SEEKABLE_MAGIC = 0x8F92EAB1
MANIFEST_MAGIC = 0x184D2A5D
MANIFEST_OWNER = b"FASTDUMP"
_SKIPPABLE = struct.Struct("<II")
_SEEK_ENTRY = struct.Struct("<II")
_SEEK_FOOTER = struct.Struct("<IBI")


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

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._entries = bytearray()

    def write(self, frame: bytes, content_length: int) -> None:
        self._stream.write(frame)
        self._entries += _SEEK_ENTRY.pack(len(frame), content_length)

    def close(self, manifest: dict[str, object], compressor: Compressor) -> int:
        """Write the skippable frames, and flush; the length of it all in bytes."""
        text = json.dumps(manifest, separators=(",", ":")).encode("ascii")
        payload = MANIFEST_OWNER + compressor.frame(text)
        self._stream.write(_SKIPPABLE.pack(MANIFEST_MAGIC, len(payload)) + payload)
        count = len(self._entries) // _SEEK_ENTRY.size
        table = bytes(self._entries) + _SEEK_FOOTER.pack(count, 0, SEEKABLE_MAGIC)
        self._stream.write(_SKIPPABLE.pack(SEEK_TABLE_MAGIC, len(table)) + table)
        self._stream.flush()
        return self._stream.length


class Lz4Core:
    """Writes ``--format lz4``, to a file or a pipe."""

    buffer_size = FRAME_SIZE
    most_threads = None

    def __init__(self, output: Output, level: int = 1) -> None:
        self._output = output
        self._compressor = Compressor(level)

    def begin(self, survey: Survey, threads: int) -> Iterator[list[Slice]]:
        self._layout = lay_out(survey)
        survey.count_all_but(self._layout.slices)
        self._frames = FrameStream(self._output.stream())
        self._write(self._layout.header)
        return pieces_of(self._layout.slices, itertools.repeat(FRAME_SIZE))

    def work(self, copier: Copier, piece: list[Slice]) -> tuple[bytes, int]:
        content, _ = copier.fill(piece)
        return self._compressor.frame(content), len(content)

    def emit(self, result: tuple[bytes, int]) -> None:
        self._frames.write(*result)

    def finish(self, manifest: dict[str, object]) -> int:
        self._write(self._layout.tail(manifest))
        size = self._frames.close(manifest, self._compressor)
        self._output.commit()
        return size

    def keep(self, manifest: dict[str, object]) -> str:
        self._frames.close(manifest, self._compressor)
        return self._output.keep()

    def abort(self) -> None:
        self._output.abort()

    def _write(self, content: bytes) -> None:
        for at in range(0, len(content), FRAME_SIZE):
            part = content[at : at + FRAME_SIZE]
            self._frames.write(self._compressor.frame(part), len(part))
