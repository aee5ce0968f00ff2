"""A dump in another format, or ranges of it as plain bytes.

A core and a ``.core.lz4`` have the same content: it is unpacked, or packed, and nothing else is
done to it. A raw dump has no notes and no headers, so a core that is made of one gets new ones.
Regions, labels and gaps go with it in all cases; what a damaged dump has lost becomes a gap.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from fastdump import __version__
from fastdump._native import PAGE_SIZE, Buffer, Gap, Slice, address_of, is_zero, write_sparse
from fastdump.core_source import ElfCore
from fastdump.crew import Crew, usual_threads
from fastdump.dumped import Dumped
from fastdump.elf import NT_FILE
from fastdump.elfcore import (
    CoreLayout,
    lay_out,
    machine_of,
    mapped_files_note,
    note,
    prpsinfo_note,
)
from fastdump.errors import EXIT_COMPLETE, EXIT_GAPS, CorruptDump, output_failed
from fastdump.frames import FRAME_SIZE, Compressor, FrameStream
from fastdump.gaps import bounded, merged, union
from fastdump.manifest import SCHEMA
from fastdump.output import Output, PartFile, PartFolder, write_at
from fastdump.outputs import STANDARD_OUTPUT, open_folder, open_output
from fastdump.rawdump import FileEntries, file_entry, write_manifest
from fastdump.region import Range
from fastdump.selection import Part
from fastdump.source import NOT_IN_DUMP, Source, Zeros
from fastdump.storage import Lost
from fastdump.stream import Stream
from fastdump.survey import pieces_of
from fastdump.verify import missing

_FOLDER_PIECE = 4 << 20
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ExtractReport:
    """What was written. Bytes; ``lost``: what should have been there, and is a gap now."""

    output: str
    format: str
    content: int
    size: int
    seconds: float
    lost: list[Gap]

    @property
    def exit_code(self) -> int:
        return EXIT_GAPS if self.lost else EXIT_COMPLETE


class Damaged(Exception):
    """What was to be passed on as it is, is not whole."""


def extract(
    source: Dumped,
    format: str,
    output: str,
    *,
    force: bool = False,
    level: int = 1,
    threads: int | None = None,
    progress: Progress = lambda done, total: None,
) -> ExtractReport:
    """Write *source* in another format: ``core``, ``lz4``, ``raw`` or ``raw-lz4``.

    Args:
        output: A path; for cores also a URL, or ``-`` for standard output.
        level: Of LZ4, as of lz4(1).
        progress: Called with the bytes done and in all.

    Raises:
        OutputFailed: Nothing that looks whole is left.
        CorruptDump: What it holds cannot be written in that format.
    """
    begun = time.perf_counter()
    job = _Job(source, output, force, level, threads or usual_threads(), progress)
    try:
        if format in ("raw", "raw-lz4"):
            content, size = job.to_folder(packed=format == "raw-lz4")
        else:
            content, size = job.to_core(packed=format == "lz4")
    except OSError as error:
        raise output_failed(output, error) from None
    lost = merged(sorted(job.lost))
    return ExtractReport(output, format, content, size, time.perf_counter() - begun, lost)


def write_ranges(
    source: Source, ranges: Iterable[Range], write: Callable[[Any], object]
) -> list[Gap]:
    """Write the bytes of *ranges*, one after the other; gaps as zeros: they are returned.

    Raises:
        SourceGone: The target exited or called exec.
    """
    gaps = []
    zeros = memoryview(bytes(1 << 20))
    for part in source.walk(ranges):
        if isinstance(part, (Gap, Zeros)):
            if isinstance(part, Gap):
                gaps.append(part)
            for at in range(part.start, part.end, len(zeros)):
                write(zeros[: part.end - at])
        else:
            write(part.data)
    return merged(gaps)


def manifest_of(source: Dumped, lost: Iterable[Gap] = ()) -> dict[str, Any]:
    """The manifest of *source*, or one that is made of what a foreign dump tells."""
    if source.manifest:
        found = dict(source.manifest.raw)
        found["regions"] = [
            {key: value for key, value in region.items() if key != "files"}
            for region in found["regions"]
        ]
    else:
        data, _ = source.known()
        found = {
            "schema": SCHEMA,
            "tool": f"fastdump {__version__}",
            "made_of": source.format,
            "process": source.process,
            "page_size": PAGE_SIZE,
            "regions": [
                {
                    "start": f"{region.start:#x}",
                    "end": f"{region.end:#x}",
                    "perms": region.perms,
                    "offset": region.offset,
                    "dev": region.dev,
                    "inode": region.inode,
                    "path": region.path,
                    "label": label.kind.value,
                    "module": label.module,
                    "note": label.note,
                    "dumped": (
                        Part.WHOLE if whole or held == region.length else Part.MODIFIED
                    ).value,
                    "reason": "as it was found",
                }
                for region, label, whole, held in zip(
                    source.regions, source.labels, source.whole, data, strict=True
                )
            ],
        }
    known = [gap for gap in source.gaps if gap.reason != NOT_IN_DUMP]
    found["gaps"] = [
        {"start": f"{g.start:#x}", "end": f"{g.end:#x}", "reason": g.reason, "errno": g.errno}
        for g in bounded(merged(union(known, list(lost))), source.regions)
    ]
    return found


class Block(NamedTuple):
    """Some of an output: plain bytes, and what is to be read, in order.

    ``offset``: in a core. ``name``: of a file in a folder, ``size`` bytes long.
    """

    offset: int
    length: int
    parts: Sequence[bytes | Slice]
    name: str = ""
    size: int = 0
    last: bool = False  # of its file


class _Sink(Protocol):
    """Where blocks go, in order."""

    def pack(self, content: bytes) -> bytes:
        """Called by any thread."""

    def emit(self, packed: bytes, block: Block) -> None: ...
    def finish(self, manifest: dict[str, Any] | None) -> int:
        """The bytes that it takes."""

    def abort(self) -> None: ...


class _SparseCore:
    """A core in a file, with holes."""

    def __init__(self, file: PartFile) -> None:
        self._file = file
        self._end = 0

    def pack(self, content: bytes) -> bytes:
        return content

    def emit(self, packed: bytes, block: Block) -> None:
        self._end = block.offset + block.length
        if block.offset % PAGE_SIZE or block.length % PAGE_SIZE:
            self._file.write_at(packed, block.offset)
        else:
            buffer = Buffer(memoryview(packed), address_of(packed))
            write_sparse(self._file.fd, buffer, block.length, block.offset, PAGE_SIZE)

    def finish(self, manifest: dict[str, Any] | None) -> int:
        os.ftruncate(self._file.fd, self._end)
        return self._file.commit()

    def abort(self) -> None:
        self._file.abort()


class _PlainCore:
    """A core in a pipe, or on a server."""

    def __init__(self, output: Output) -> None:
        self._output, self._stream = output, output.stream()

    def pack(self, content: bytes) -> bytes:
        return content

    def emit(self, packed: bytes, block: Block) -> None:
        self._stream.write(packed)

    def finish(self, manifest: dict[str, Any] | None) -> int:
        self._stream.flush()
        self._output.commit()
        return self._stream.length

    def abort(self) -> None:
        self._output.abort()


class _PackedCore:
    """A ``.core.lz4``."""

    def __init__(self, output: Output, level: int) -> None:
        self._output = output
        self._compressor = Compressor(level)
        self._frames = FrameStream(output.stream())

    def pack(self, content: bytes) -> bytes:
        return self._compressor.frame(content)

    def emit(self, packed: bytes, block: Block) -> None:
        self._frames.write(packed, block.length)

    def finish(self, manifest: dict[str, Any] | None) -> int:
        size = self._frames.close(manifest, self._compressor)
        self._output.commit()
        return size

    def abort(self) -> None:
        self._output.abort()


class _RawFolder:
    """A raw dump: each block is written at its place in its file."""

    def __init__(self, folder: PartFolder, files: FileEntries) -> None:
        self._folder, self._files = folder, files

    def pack(self, content: bytes) -> bytes:
        return content

    def emit(self, packed: bytes, block: Block) -> None:
        fd = self._folder.open(block.name)
        try:
            os.ftruncate(fd, block.size)
            if not is_zero(packed):
                write_at(fd, packed, block.offset)
        finally:
            os.close(fd)

    def finish(self, manifest: dict[str, Any] | None) -> int:
        assert manifest
        write_manifest(self._folder, manifest, self._files)
        return self._folder.commit()

    def abort(self) -> None:
        self._folder.abort()


class _PackedFolder(_RawFolder):
    """A raw dump in LZ4 frames."""

    def __init__(self, folder: PartFolder, files: FileEntries, level: int) -> None:
        super().__init__(folder, files)
        self._compressor = Compressor(level)
        self._stream: Stream | None = None

    def pack(self, content: bytes) -> bytes:
        return self._compressor.frame(content)

    def emit(self, packed: bytes, block: Block) -> None:
        if self._stream is None:
            self._stream = Stream(self._folder.open(block.name))
        self._stream.write(packed)
        if block.last:
            self._close()

    def _close(self) -> None:
        if self._stream:
            stream, self._stream = self._stream, None
            os.close(stream.fd)

    def abort(self) -> None:
        self._close()
        super().abort()


@contextlib.contextmanager
def _whole_or_nothing(sink: _Sink) -> Iterator[None]:
    try:
        yield
    finally:
        sink.abort()  # does nothing once it is whole


@dataclass
class _Job:
    """One call of :func:`extract`. Its results: bytes of content, bytes written.

    Attributes:
        lost: What the source should have, and has not; in no order.
    """

    source: Dumped
    output: str
    force: bool
    level: int
    threads: int
    progress: Progress

    def __post_init__(self) -> None:
        self.lost = missing(self.source)

    def to_core(self, packed: bool) -> tuple[int, int]:
        source = self.source
        if isinstance(source, ElfCore) and not source.is_cut_off:
            size = source.storages[0].size
            sink = self._core(packed)
            with contextlib.suppress(Damaged), _whole_or_nothing(sink):
                self._copy(sink, _content_blocks(source, size), size, strict=True)
                return size, sink.finish(source.manifest.raw if source.manifest else None)
            if self.output == STANDARD_OUTPUT:
                raise CorruptDump(
                    f"{source.name} is damaged: the output is not whole",
                    "write to a file with -o: what is lost becomes a gap",
                )
        layout = _layout(source)
        blocks = itertools.chain(
            _plain_blocks(layout.header, 0),
            (
                Block(piece[0].offset, sum(s.length for s in piece), piece)
                for piece in pieces_of(layout.slices, itertools.repeat(FRAME_SIZE))
            ),
        )
        sink = self._core(packed)
        with _whole_or_nothing(sink):
            self._copy(sink, blocks, layout.end)
            manifest = manifest_of(source, self.lost)
            tail = layout.tail(manifest)
            for block in _plain_blocks(tail, layout.end):
                sink.emit(*self._packed(sink, block))
            return layout.end + len(tail), sink.finish(manifest)

    def _core(self, packed: bool) -> _Sink:
        output = open_output(self.output, self.force)
        if packed:
            return _PackedCore(output, self.level)
        return _SparseCore(output) if isinstance(output, PartFile) else _PlainCore(output)

    def to_folder(self, packed: bool) -> tuple[int, int]:
        files: FileEntries = {}
        blocks = list(_file_blocks(self.source, packed, files))
        folder = open_folder(self.output, self.force)
        sink = _PackedFolder(folder, files, self.level) if packed else _RawFolder(folder, files)
        size = sum(block.length for block in blocks)
        with _whole_or_nothing(sink):
            self._copy(sink, iter(blocks), size)
            return size, sink.finish(manifest_of(self.source, self.lost))

    def _copy(self, sink: _Sink, blocks: Iterator[Block], total: int, strict: bool = False) -> None:
        """Read and write all blocks; what is lost of them is known then.

        Raises:
            Damaged: Something is lost, and *strict*.
        """
        done = 0

        def work(_: None, block: Block) -> tuple[bytes, Block]:
            return self._packed(sink, block, strict)

        def advance(block: Block) -> None:
            nonlocal done
            done += block.length
            self.progress(done, total)

        states = [None] * self.threads
        Crew(blocks, states, work, lambda result: sink.emit(*result), advance).run()

    def _packed(self, sink: _Sink, block: Block, strict: bool = False) -> tuple[bytes, Block]:
        return sink.pack(b"".join(self._read(block, strict))), block

    def _read(self, block: Block, strict: bool) -> Iterator[bytes | memoryview]:
        """What a block holds; what is lost as zeros: it becomes a gap."""
        for part in block.parts:
            if isinstance(part, bytes):
                yield part
                continue
            storage = self.source.storages[max(part.file, 0)]
            at = part.address
            for found in storage.parts(part.file_offset, part.length):
                if not isinstance(found, Lost):
                    yield found
                    at += len(found)
                    continue
                if strict:
                    raise Damaged
                self.lost.append(Gap(at, at + found.length, found.reason))
                yield bytes(found.length)
                at += found.length


def _content_blocks(source: ElfCore, size: int) -> Iterator[Block]:
    """All of a core as it is; headers, memory and what follows apart, as ``dump`` cuts it."""
    held = [(s.p_offset, s.p_offset + s.p_filesz) for s in source.elf.segments if s.p_filesz]
    first = min((start for start, _ in held), default=0)
    last = max((end for _, end in held), default=0)
    for start, end in itertools.pairwise((0, min(first, size), min(last, size), size)):
        for at in range(start, end, FRAME_SIZE):
            length = min(FRAME_SIZE, end - at)
            yield Block(at, length, [Slice(at, length, at, file_offset=at)])


def _plain_blocks(data: bytes, offset: int) -> Iterator[Block]:
    for at in range(0, len(data), FRAME_SIZE):
        part = data[at : at + FRAME_SIZE]
        yield Block(offset + at, len(part), [part])


def _layout(source: Dumped) -> CoreLayout:
    """A new core: with the notes of the old one, or with what a manifest knows."""
    slices = iter(source.slices)
    s = next(slices, None)
    runs: list[list[Slice]] = []
    for region in source.regions:
        found = []
        while s and s.address < region.end:
            found.append(s)
            s = next(slices, None)
        runs.append(found)
    if isinstance(source, ElfCore):
        elf = source.elf
        if not elf.is_native:
            raise CorruptDump(f"{source.name} is damaged, and of another kind of machine")
        notes = [note(n.name, n.type, n.desc) for n in elf.notes]
        return lay_out(elf.machine, source.regions, runs, b"".join(notes))
    raw = source.manifest.raw if source.manifest else {}
    process = source.process
    notes = [
        prpsinfo_note(process),
        note("CORE", NT_FILE, mapped_files_note(source.regions, str(process.get("exe", "")))),
    ]
    machine = machine_of(str((raw.get("host") or {}).get("machine") or platform.machine()))
    return lay_out(machine, source.regions, runs, b"".join(notes))


def _file_blocks(source: Dumped, packed: bool, files: FileEntries) -> Iterator[Block]:
    """The files of a raw dump, in blocks.

    A range that the dump covers is one file, its zeros holes in it. Elsewhere, and where
    frames would have to hold them, each run of data is a file.
    """
    pid = source.process.get("pid", 0)
    for region, whole in zip(source.regions, source.whole, strict=True):
        ranges: list[Range] = [] if packed else list(whole)
        for extent in source.extents(region.start, region.end):
            inside = any(r.start <= extent.start and extent.end <= r.end for r in ranges)
            if extent.slice and not inside:
                ranges.append(Range(extent.start, extent.end))
        for start, end in sorted(ranges):
            name = f"{pid}_mem_{start:08x}.bin" + (".lz4" if packed else "")
            files.setdefault(region.start, []).append(file_entry(name, start, end))
            found = [e.slice for e in source.extents(start, end) if e.slice]
            if not found and not packed:
                yield Block(0, 0, [], name, end - start, last=True)
            size = FRAME_SIZE if packed else _FOLDER_PIECE
            for s in found:
                for piece in pieces_of([s], itertools.repeat(size)):
                    at = piece[0].address
                    length = sum(part.length for part in piece)
                    yield Block(at - start, length, piece, name, end - start, at + length == end)
