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
    lost = [gap for gap in source.gaps if gap.reason in (TRUNCATED, MISSING)]
    wrong = []
    packed = {
        number: storage.frames if isinstance(storage, PackedFile) else storage
        for number, storage in enumerate(source.storages)
        if isinstance(storage, (PackedFile, Frames))
    }
    total = sum(frames.size for frames in packed.values())
    done = 0
    for number, frames in packed.items():
        for start, end, reason in _lost_of(frames, threads or usual_threads()):
            found = list(source.addresses(number, start, end))
            lost += (Gap(*range_, reason) for range_ in found)
            if sum(range_.end - range_.start for range_ in found) < end - start:
                wrong.append(f"bytes {start:,} to {end:,} of the unpacked dump: {reason}")
        done += frames.size
        progress(done, total)
    return merged(sorted(lost)), wrong


def _lost_of(frames: Frames, threads: int) -> list[tuple[int, int, str]]:
    """The ranges of content that cannot be unpacked, by all threads."""
    lost: list[tuple[int, int, str]] = []

    def work(_: None, number: int) -> None:
        content = frames.unpack(number)
        if isinstance(content, Lost):
            start = frames.index.starts[number]
            lost.append((start, start + content.length, content.reason))

    Crew(iter(range(frames.count)), [None] * threads, work).run()
    return sorted(lost)
