"""Raw dumps: a folder of plain pieces of memory and ``manifest.json``.

``raw`` has one sparse file a region, ``PID_mem_START.bin`` (START as in maps), byte for byte what
``dd`` gives. ``raw-lz4`` has one ``.bin.lz4`` for each run of data instead: absent memory would
cost a compressed file 1 byte in 255, 8 GB for a reservation of 2 TB, so that it is split there.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from fastdump._native import BLOCK_SIZE, PAGE_SIZE, Copier, Slice
from fastdump.frames import FRAME_SIZE, Compressor
from fastdump.output import PartFolder
from fastdump.stream import Block, Blocks, Stream, hole_size, one_at_a_time
from fastdump.survey import Survey, pieces_of, shares

MANIFEST_NAME = "manifest.json"
# A small file is one write; O_DIRECT would wait for the disk for each.
_DIRECT_FROM = 1 << 20


# For the start of each region, what the manifest says of its files.
FileEntries = dict[int, list[dict[str, object]]]


class Piece(NamedTuple):
    """What one thread copies at a time, and into which file."""

    name: str
    slices: list[Slice]
    length: int  # of the file, in bytes
    last: bool = False  # of its file


class Raw:
    """Writes ``--format raw``."""

    buffer_size = BLOCK_SIZE

    def __init__(self, folder: PartFolder) -> None:
        self._folder = folder
        self._files: FileEntries = {}
        self._blocks = Blocks() if one_at_a_time(folder.fd) else None
        self._open: tuple[str, int, int] | None = None  # what _emit writes: name, fd, hole

    @property
    def most_threads(self) -> int | None:
        return Blocks.threads if self._blocks else None

    @property
    def emit(self) -> Callable[[tuple[Piece, Block | None]], None] | None:
        return self._emit if self._blocks else None

    def begin(self, survey: Survey, threads: int) -> Iterator[Piece]:
        runs = survey.runs()
        survey.count_all_but(s for found in runs for s in found)
        sizes = shares(survey.to_copy, threads)
        return self._pieces(survey, runs, itertools.repeat(Blocks.size) if self._blocks else sizes)

    def _pieces(
        self, survey: Survey, runs: list[list[Slice]], sizes: Iterator[int]
    ) -> Iterator[Piece]:
        for region, choice, found in zip(survey.regions, survey.choices, runs, strict=True):
            if not choice.included:
                continue
            name = f"{survey.process.pid}_mem_{region.start:08x}.bin"
            self._files[region.start] = [file_entry(name, region.start, region.end)]
            if not found:  # a file of zeros
                yield Piece(name, [], region.length)
            for run in found:  # what lies between runs is a hole
                for part in pieces_of([run], sizes):
                    yield Piece(name, part, region.length)

    def work(self, copier: Copier, piece: Piece) -> tuple[Piece, Block | None]:
        if self._blocks:
            return piece, self._blocks.fill(copier, piece.slices) if piece.slices else None
        fd, hole = self._file(piece)
        try:
            if piece.slices:
                copier.write(piece.slices, fd, hole)
        finally:
            os.close(fd)
        return piece, None

    def _emit(self, result: tuple[Piece, Block | None]) -> None:
        piece, block = result
        if self._open is None or self._open[0] != piece.name:
            self._close()
            self._open = (piece.name, *self._file(piece))
        _, fd, hole = self._open
        if self._blocks and block:
            self._blocks.write(block, fd, hole)

    def _file(self, piece: Piece) -> tuple[int, int]:
        """The file of a piece, and the least run of zeros that becomes a hole in it."""
        fd = self._folder.open(piece.name)
        try:
            os.ftruncate(fd, piece.length)
            return fd, hole_size(fd) if piece.length >= _DIRECT_FROM else PAGE_SIZE
        except BaseException:
            os.close(fd)
            raise

    def _close(self) -> None:
        if self._open:
            (_, fd, _), self._open = self._open, None
            os.close(fd)

    def finish(self, manifest: dict[str, object]) -> int:
        self._write_manifest(manifest)
        return self._folder.commit()

    def keep(self, manifest: dict[str, object]) -> str:
        self._write_manifest(manifest)
        return self._folder.keep()

    def abort(self) -> None:
        self._close()
        self._folder.abort()

    def _write_manifest(self, manifest: dict[str, object]) -> None:
        self._close()
        write_manifest(self._folder, manifest, self._files)


class RawLz4:
    """Writes ``--format raw-lz4``."""

    buffer_size = FRAME_SIZE
    most_threads = None

    def __init__(self, folder: PartFolder, level: int = 1) -> None:
        self._folder = folder
        self._compressor = Compressor(level)
        self._files: FileEntries = {}
        self._stream: Stream | None = None

    def begin(self, survey: Survey, threads: int) -> Iterator[Piece]:
        runs = survey.runs()
        survey.count_all_but(s for found in runs for s in found)
        pid = survey.process.pid
        for region, found in zip(survey.regions, runs, strict=True):
            for s in found:
                entry = file_entry(_lz4_name(pid, s), s.address, s.address + s.length)
                self._files.setdefault(region.start, []).append(entry)
        return self._pieces(pid, runs)

    def _pieces(self, pid: int, runs: list[list[Slice]]) -> Iterator[Piece]:
        for found in runs:
            for s in found:
                name, end = _lz4_name(pid, s), s.address + s.length
                for part in pieces_of([s], itertools.repeat(FRAME_SIZE)):
                    last = part[-1].address + part[-1].length == end
                    yield Piece(name, part, s.length, last)

    def work(self, copier: Copier, piece: Piece) -> tuple[Piece, bytes]:
        content, _ = copier.fill(piece.slices)
        return piece, self._compressor.frame(content)

    def emit(self, result: tuple[Piece, bytes]) -> None:
        piece, frame = result
        if self._stream is None:
            fd = self._folder.open(piece.name)
            self._stream = Stream(fd, direct=piece.length >= _DIRECT_FROM)
        self._stream.write(frame)
        if piece.last:
            self._close()

    def finish(self, manifest: dict[str, object]) -> int:
        write_manifest(self._folder, manifest, self._files)
        return self._folder.commit()

    def keep(self, manifest: dict[str, object]) -> str:
        self._close()
        write_manifest(self._folder, manifest, self._files)
        return self._folder.keep()

    def abort(self) -> None:
        if self._stream:
            stream, self._stream = self._stream, None
            with contextlib.suppress(OSError):
                os.close(stream.fd)
        self._folder.abort()

    def _close(self) -> None:
        if self._stream:
            stream, self._stream = self._stream, None
            try:
                stream.flush()
            finally:
                os.close(stream.fd)


def file_entry(name: str, start: int, end: int) -> dict[str, object]:
    """What a manifest says of a file."""
    return {"name": name, "start": f"{start:#x}", "end": f"{end:#x}"}


def _lz4_name(pid: int, run: Slice) -> str:
    return f"{pid}_mem_{run.address:08x}.bin.lz4"


def write_manifest(
    folder: PartFolder,
    manifest: dict[str, object],
    files: FileEntries,
) -> None:
    """The manifest with the files of each region in it."""
    regions = manifest["regions"]
    assert isinstance(regions, list)
    for region in regions:
        named = files.get(int(region["start"], 16), [])
        region["files"] = [entry for entry in named if folder.has(str(entry["name"]))]
    fd = folder.open(MANIFEST_NAME)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
