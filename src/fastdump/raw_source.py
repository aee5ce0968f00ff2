"""A raw dump as a source: a folder of ``PID_mem_START.bin``, with or without a manifest.

Those of ``fastdump dump`` have one, which tells regions, labels and gaps. Without it each file
is a region: so are those that a loop of ``dd`` over ``/proc/PID/mem`` leaves behind.

Consistency: that of the dump. Page visibility: all of each file; its holes are zeros.
"""

from __future__ import annotations

import bisect
import itertools
import os
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from fastdump._native import PLAIN, Gap, Slice
from fastdump.dumped import Dumped, uncovered
from fastdump.errors import CorruptDump, FastdumpError, UsageError, input_failed
from fastdump.frames import Frames
from fastdump.gaps import union
from fastdump.labels import Kind, Label
from fastdump.manifest import Manifest, read_manifest
from fastdump.place import data_of
from fastdump.region import Range, Region
from fastdump.storage import TRUNCATED, Folder, Lost, NamedFile, Storage

MANIFEST_NAME = "manifest.json"
_NAME = re.compile(r"([0-9]+)_mem_([0-9a-f]{1,16})\.bin(\.lz4)?")
_MOST_MANIFEST = 256 << 20  # indented, so longer than that of a core
MISSING = "its file is missing"


class PackedFile(Storage):
    """LZ4 frames in a file that is opened when it is needed.

    Args:
        size: Bytes of content that it should have; None to ask the frames.
    """

    def __init__(self, folder: Folder, name: str, size: int | None) -> None:
        self._folder, self.name = folder, name
        self._frames: Frames | None = None
        self._lock = threading.Lock()
        self.size = self._open().size if size is None else size

    def _open(self) -> Frames:
        with self._lock:
            if self._frames is None:
                try:
                    self._frames = Frames(self._folder.file(self.name), self.name)
                except OSError as error:
                    raise input_failed(self.name, error) from None
            return self._frames

    def parts(self, offset: int, length: int) -> Iterator[bytes | memoryview | Lost]:
        frames = self.opened
        if isinstance(frames, Lost):
            yield Lost(length, frames.reason)
        else:
            yield from frames.parts(offset, length)

    @property
    def stored(self) -> int:
        return self._folder.file(self.name).stored

    @property
    def opened(self) -> Frames | Lost:
        """The frames; or why there are none: it is one file of many."""
        try:
            return self._open()
        except FastdumpError as error:
            corrupt = "corrupt: " if isinstance(error, CorruptDump) else ""
            return Lost(self.size, f"{corrupt}{error}")

    def close(self) -> None:
        if self._frames:
            self._frames.close()


class LocalFolder(Folder):
    """A folder on this machine."""

    def __init__(self, path: str) -> None:
        self._path = path

    def files(self) -> dict[str, int]:
        with os.scandir(self._path) as scanned:
            entries = list(scanned)
        if any(e.name == MANIFEST_NAME and not e.is_file() for e in entries):
            raise CorruptDump("the manifest is no file")
        return {e.name: e.stat().st_size for e in entries if e.is_file()}

    def file(self, name: str) -> Storage:
        return NamedFile(os.path.join(self._path, name))

    def data(self, name: str, size: int) -> Iterator[tuple[int, int]]:
        fd = os.open(os.path.join(self._path, name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield from data_of(fd, size)
        finally:
            os.close(fd)


class RawDump(Dumped):
    """A folder of pieces of memory.

    Raises:
        CorruptDump: Its manifest is broken, or its files overlap.
        UsageError: It holds no dump, or those of several processes.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        there = folder.files()
        manifest = _manifest(folder) if MANIFEST_NAME in there else None
        if manifest:
            files = [
                (file, found, number)
                for number, recorded in enumerate(manifest.regions)
                for file, found in recorded.files
            ]
            regions = [recorded.region for recorded in manifest.regions]
            labels = [recorded.label for recorded in manifest.regions]
            whole: Sequence[Sequence[Range]] = [recorded.whole for recorded in manifest.regions]
            gaps = list(manifest.gaps)
        else:
            files = _files_of(folder, there, name)
            regions = [Region(r.start, r.end, "rw-p", 0, "00:00", 0, "") for _, r, _ in files]
            labels = [Label(Kind.ANONYMOUS) for _ in files]
            whole, gaps = [[found] for _, found, _ in files], []
        files.sort(key=lambda entry: entry[1])
        for (_, one, _), (_, other, _) in itertools.pairwise(files):
            if one.end > other.start:
                raise CorruptDump(f"two files of {name} hold {other.start:#x}")
        storages: list[Storage] = []
        slices: list[Slice] = []
        lost: list[Gap] = []
        for file, found, number in files:
            parsed = _NAME.fullmatch(file)
            if not parsed or int(parsed[2], 16) != found.start:
                raise CorruptDump(f"the manifest of {name} names the file {file!r}")
            covered = list(_within(whole[number], found))
            held = covered or [found]  # in a region that is not dumped as a whole: data only
            if file not in there:
                lost += (Gap(*part, MISSING) for part in held)
                continue
            length = found.end - found.start
            at = Slice(found.start, length, found.start, PLAIN, len(storages), 0)
            if file.endswith(".lz4"):
                storages.append(PackedFile(folder, file, length))
                slices.append(at)
                continue
            storages.append(folder.file(file))
            size = min(there[file], length)
            for first, last in folder.data(file, size) if covered else [(0, size)]:
                for start, end in _within(held, Range(found.start + first, found.start + last)):
                    slices.append(at.part(start - found.start, end - start))
            behind = Range(found.start + size, found.end)
            lost += (Gap(*part, TRUNCATED) for part in _within(held, behind))
        gaps = union(gaps, lost)
        packed = any(file.endswith(".lz4") for file, _, _ in files)
        super().__init__(
            name,
            "raw-lz4" if packed else "raw",
            regions,
            labels,
            slices,
            uncovered(regions, whole, slices, gaps),
            storages,
            whole,
            manifest,
        )
        self._pid = int(files[0][0].partition("_")[0]) if files else 0

    @property
    def process(self) -> dict[str, Any]:
        if self.manifest and "process" in self.manifest.raw:
            return dict(self.manifest.raw["process"])
        return {"pid": self._pid}


def _within(ranges: Sequence[Range], area: Range) -> Iterator[Range]:
    """What of *ranges*, which are in order, lies in *area*."""
    first = bisect.bisect_right(ranges, area.start, key=lambda range_: range_.end)
    for number in range(first, len(ranges)):
        start, end = max(ranges[number].start, area.start), min(ranges[number].end, area.end)
        if start >= end:
            return
        yield Range(start, end)


def _manifest(folder: Folder) -> Manifest:
    file = folder.file(MANIFEST_NAME)
    if file.size > _MOST_MANIFEST:
        raise CorruptDump("the manifest is too long to be one")
    text = file.read(0, file.size)
    if len(text) < file.size:
        raise UsageError("the manifest cannot be read", "who may read it?")
    return read_manifest(text)


def _files_of(folder: Folder, there: dict[str, int], name: str) -> list[tuple[str, Range, int]]:
    """The files of a folder without a manifest, by address."""
    found = []
    pids = set()
    for file, size in there.items():
        parsed = _NAME.fullmatch(file)
        if not parsed:
            continue
        pids.add(int(parsed[1]))
        if parsed[3]:
            size = PackedFile(folder, file, None).size
        start = int(parsed[2], 16)
        if start + size >= 1 << 64:
            raise CorruptDump(f"{file} goes beyond the end of all addresses")
        if size:
            found.append((file, Range(start, start + size)))
    if len(pids) > 1:
        raise UsageError(
            f"{name} holds dumps of the processes {', '.join(map(str, sorted(pids)))}",
            "move those of one to a folder of their own",
        )
    if not found:
        raise UsageError(f"{name} is a folder without a dump", "it has no PID_mem_START.bin")
    found.sort(key=lambda entry: entry[1])
    return [(file, range_, number) for number, (file, range_) in enumerate(found)]
