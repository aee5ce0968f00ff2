"""``.core.lz4``: an ELF core as a stream of independent LZ4 frames.

Each frame holds at most 1 MiB of the core, its size and its checksum, so that it can be read
and checked alone. Behind the last frame follow two skippable frames, which ``lz4 -dc`` passes
over: the manifest (an LZ4 frame of JSON), and a seek table in the layout of the Zstandard
seekable format, so that a reader finds any byte of the core without unpacking the rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from fastdump._native import Copier, Slice
from fastdump.elfcore import layout_of
from fastdump.frames import FRAME_SIZE, Compressor, FrameStream
from fastdump.output import Output
from fastdump.survey import Survey, pieces_of


class Lz4Writer:
    """Writes ``--format lz4``, to a file or a pipe."""

    buffer_size = FRAME_SIZE
    most_threads = None

    def __init__(self, output: Output, level: int = 1) -> None:
        self._output = output
        self._compressor = Compressor(level)

    def begin(self, survey: Survey, threads: int) -> Iterator[list[Slice]]:
        self._layout = layout_of(survey)
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
