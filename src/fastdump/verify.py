"""Check a dump: every checksum that it has, and that all is there that should be."""

from __future__ import annotations

from collections.abc import Callable

from fastdump._native import Gap
from fastdump.crew import Crew, usual_threads
from fastdump.dumped import Dumped
from fastdump.frames import Frames
from fastdump.gaps import merged
from fastdump.raw_source import MISSING, PackedFile
from fastdump.storage import TRUNCATED, Lost


def verify(
    source: Dumped,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Gap], list[str]]:
    """What is lost: ranges of addresses; and what else is wrong, in words.

    LZ4 frames are all unpacked, for their checksums. Plain files have none: only their length is
    checked.

    Args:
        progress: Called with the bytes done and in all.
    """
    lost = missing(source)
    wrong = []
    packed = {
        number: storage
        for number, storage in enumerate(source.storages)
        if isinstance(storage, (PackedFile, Frames))
    }
    total = sum(storage.size for storage in packed.values())
    done = 0
    for number, storage in packed.items():
        frames = storage.opened if isinstance(storage, PackedFile) else storage
        for start, end, reason in _lost_of(frames, storage.size, threads or usual_threads()):
            found = list(source.addresses(number, start, end))
            lost += (Gap(*range_, reason) for range_ in found)
            if sum(range_.end - range_.start for range_ in found) < end - start:
                wrong.append(f"bytes {start:,} to {end:,} of the unpacked dump: {reason}")
        behind = isinstance(frames, Frames) and frames.size >= storage.size and frames.index.lost
        if behind and isinstance(storage, PackedFile):  # of a core its reader says it
            wrong.append(f"{storage.name}: {behind}")
        done += storage.size
        progress(done, total)
    return merged(sorted(lost)), wrong


def missing(source: Dumped) -> list[Gap]:
    """What is known to be lost before anything is read: a dump is cut off, a file is not there."""
    return [gap for gap in source.gaps if gap.reason in (TRUNCATED, MISSING)]


def _lost_of(frames: Frames | Lost, size: int, threads: int) -> list[tuple[int, int, str]]:
    """The ranges of *size* bytes of content that cannot be unpacked, by all threads."""
    if isinstance(frames, Lost):
        return [(0, size, frames.reason)]
    lost: list[tuple[int, int, str]] = []

    def work(_: None, number: int) -> None:
        content = frames.unpack(number)
        if isinstance(content, Lost):
            start = frames.index.starts[number]
            lost.append((start, start + content.length, content.reason))

    Crew(iter(range(frames.count)), [None] * threads, work).run()
    if frames.size < size:
        lost.append((frames.size, size, frames.index.lost or TRUNCATED))
    return sorted(lost)
