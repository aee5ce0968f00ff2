"""Measure this machine: how fast memory is read, scanned, compressed and written here.

Each step runs the threads and the C functions of the commands over a sample of one process, for a
while and not to an end, and is held against copying in our own memory. Swapped memory is not read,
the process is not stopped, and only pages that it has touched are: it does not grow.
"""

from __future__ import annotations

import io
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from fastdump import _native
from fastdump._native import OURS, PAGE_SIZE, PLAIN, Buffer, Copier, Memory, Slice
from fastdump._strings import Form, Query, Scanner, default_kernel
from fastdump.crew import Crew
from fastdump.errors import FastdumpError, OutputFailed, UsageError
from fastdump.frames import FRAME_SIZE, Compressor
from fastdump.headroom import headroom
from fastdump.output import uninterrupted
from fastdump.plan import samples
from fastdump.process import LiveProcess
from fastdump.selection import Preset
from fastdump.stream import Blocks, set_direct
from fastdump.survey import Survey, pieces_of

LEVELS = (-8, 1, 3, 9)
COPY, READ, STRINGS = "copy in memory", "read", "read, strings"
CACHED, DIRECT = "write, page cache", "write, O_DIRECT"

_SAMPLE = 512 << 20  # beyond what caches hold, so that memory is measured
_AREA = 256 << 20
_PIECE = 16 << 20
_FILE = 1 << 30
_CHECKED = 4 << 20
_ROUNDS = 2  # the better one counts: whatever else runs here only slows it down
_NO_LIMIT = 2**64 - 1
_ENOUGH = 0.95  # of the best rate: more threads are not worth it

State = TypeVar("State")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Measured:
    """A step with so many threads. Bytes of memory, bytes that LZ4 made of them, seconds."""

    step: str
    threads: int
    bytes: int
    stored: int
    seconds: float
    level: int | None = None

    @property
    def rate(self) -> float:
        """GB/s of memory."""
        return self.bytes / self.seconds / 1e9

    @property
    def ratio(self) -> float:
        return self.bytes / self.stored if self.stored else 1.0

    def as_dict(self) -> dict[str, object]:
        return {
            "step": self.step,
            "level": self.level,
            "threads": self.threads,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 4),
            "gb_per_second": round(self.rate, 3),
            "ratio": round(self.ratio, 3) if self.stored else None,
        }


@dataclass(frozen=True)
class Way:
    """What one command would come to: GB/s of memory, what bounds it, bytes a byte of output."""

    options: str
    rate: float
    bound: str
    ratio: float | None
    threads: int

    def as_dict(self) -> dict[str, object]:
        return {
            "options": self.options,
            "gb_per_second": round(self.rate, 3),
            "bound_by": self.bound,
            "ratio": None if self.ratio is None else round(self.ratio, 3),
            "threads": self.threads,
        }


@dataclass(frozen=True)
class Figures:
    """What was measured, and what follows from it."""

    sampled: int
    kernel: str
    direct: bool
    measured: list[Measured]

    @property
    def steps(self) -> dict[str, list[Measured]]:
        """By step, in order of threads."""
        found: dict[str, list[Measured]] = {}
        for one in self.measured:
            found.setdefault(one.step, []).append(one)
        return found

    def best(self, step: str) -> Measured:
        """The fewest threads that reach nearly the best rate."""
        runs = self.steps[step]
        most = max(one.rate for one in runs)
        return next(one for one in runs if one.rate >= _ENOUGH * most)

    def ways(self) -> list[Way]:
        """The ways to dump, the fastest first; then strings, which writes nothing."""
        disk = self.best(DIRECT if self.direct else CACHED)
        read, scan, copy = self.best(READ), self.best(STRINGS), self.best(COPY)
        at_memory = read.rate >= 0.8 * copy.rate
        reading = "memory" if at_memory else "the kernel's copying between processes"
        ways = [
            Way("dump -f raw", disk.rate, "the disk", 1.0, disk.threads)
            if disk.rate < read.rate
            else Way("dump -f raw", read.rate, reading, 1.0, read.threads)
        ]
        for step in self.steps:
            pack = self.best(step)
            if pack.level is None:
                continue
            most = disk.rate * pack.ratio
            bound = "the disk" if most < pack.rate else "LZ4"
            options = f"dump -f lz4 --level {pack.level}"
            ways.append(Way(options, min(most, pack.rate), bound, pack.ratio, pack.threads))
        ways.sort(key=lambda way: -way.rate)
        bound = reading if scan.rate >= 0.8 * read.rate else "scanning"
        return [*ways, Way("strings", scan.rate, bound, None, scan.threads)]

    def as_dict(self) -> dict[str, object]:
        """For ``--json``."""
        return {
            "sampled": self.sampled,
            "kernel": self.kernel,
            "o_direct": self.direct,
            "measured": [one.as_dict() for one in self.measured],
            "ways": [way.as_dict() for way in self.ways()],
        }


def thread_counts(most: int) -> list[int]:
    """1, 2, 4 ... and *most*."""
    return sorted({*itertools.takewhile(lambda n: n < most, (1 << i for i in range(16))), most})


def nameless_file(folder: str) -> io.FileIO:
    """A file in *folder* without a name: nothing is left of it, even if we are killed.

    Raises:
        OutputFailed: There cannot be one.
    """
    try:
        with uninterrupted():  # without O_TMPFILE it has a name for a moment
            return tempfile.TemporaryFile(dir=folder, buffering=0)
    except OSError as error:
        raise _failed(folder, error) from None


def _failed(folder: str, error: OSError) -> OutputFailed:
    return OutputFailed(
        f"cannot write to {folder}: {os.strerror(error.errno or 0)}",
        "name another with --output-dir",
    )


def measure(
    process: LiveProcess,
    file: io.FileIO,
    folder: str,
    *,
    seconds: float,
    threads: int,
    progress: Callable[[str], None] = lambda step: None,
) -> Figures:
    """Run all steps with 1 to *threads* threads, some *seconds* in all.

    Args:
        file: To write to; what it holds is lost.
        folder: What messages call it.
        progress: Called with each step before it runs.

    Raises:
        SourceGone: The target exited or called exec.
        OutputFailed: The file cannot be written.
        FastdumpError: What a step made is wrong.
    """
    survey = Survey(process, Preset.DATA, swap=False)
    try:
        runs = [s for found in survey.runs() for s in found]
        sample = [
            s._replace(offset=s.address)
            for s in samples(runs, _SAMPLE // _native.BLOCK_SIZE, _native.BLOCK_SIZE)
        ]
        steps = _Steps(process.memory, sample, file, folder)
        figures = steps.run(seconds, thread_counts(threads), progress)
        process.check()
        return figures
    except _native.MemoryGone:
        raise process.gone() from None
    finally:
        survey.close()


class _Steps:
    """The steps over one sample, whose first part is also in an area of ours."""

    def __init__(
        self, memory: Memory, sample: Sequence[Slice], file: io.FileIO, folder: str
    ) -> None:
        if not sample:
            raise UsageError("the process has no memory of its own in RAM", "name another")
        self._memory, self._sample = memory, sample
        self._fd, self._folder = file.fileno(), folder
        self._kernel = default_kernel()
        self._written: dict[int, int] = {}  # by O_DIRECT, for each number of threads
        disk = os.fstatvfs(self._fd)
        # What a bench may take of a disk that is nearly full.
        self._blocks = min(_FILE, disk.f_bavail * disk.f_frsize // 4) // Blocks.size
        if not self._blocks:
            raise OutputFailed(f"no room in {folder}", "name another with --output-dir")
        held = min(_AREA, headroom(os.getpid()) // 4) // Blocks.size * Blocks.size
        self._area = _native.aligned_buffer(max(held, Blocks.size))
        copier = Copier(memory, PAGE_SIZE)
        frames = itertools.cycle(self._pieces(FRAME_SIZE))
        for start in range(0, len(self._area.view), FRAME_SIZE):
            copier.fill(_packed(next(frames)), self._part(start, FRAME_SIZE))

    def _pieces(self, length: int) -> list[list[Slice]]:
        return list(pieces_of(self._sample, itertools.repeat(length)))

    def _part(self, start: int, length: int) -> Buffer:
        return Buffer(self._area.view[start : start + length], self._area.address + start)

    def run(
        self, seconds: float, counts: Sequence[int], progress: Callable[[str], None]
    ) -> Figures:
        self._check_strings()
        direct = set_direct(self._fd, True)
        steps: dict[str, Callable[[int, float], Measured]] = {
            COPY: self._copy,
            READ: self._read,
            STRINGS: self._scan,
            **{f"read, LZ4 level {level}": partial(self._pack, level) for level in LEVELS},
            **({DIRECT: self._write_direct} if direct else {}),
            CACHED: self._write_cached,
        }
        each = seconds / (len(steps) * len(counts) * _ROUNDS)
        found: dict[tuple[str, int], list[Measured]] = {}
        for _ in range(_ROUNDS):
            for name, step in steps.items():
                for threads in counts:
                    progress(name)
                    found.setdefault((name, threads), []).append(step(threads, each))
        measured = [max(runs, key=lambda one: one.rate) for runs in found.values()]
        sampled = sum(s.length for s in self._sample)
        return Figures(sampled, self._kernel, direct, measured)

    def _copy(self, threads: int, seconds: float) -> Measured:
        """memcpy of the area into the buffer of each thread."""
        own = Slice(0, len(self._area.view), 0, PLAIN | OURS, -1, self._area.address)
        copiers = [Copier(Memory.of_files()) for _ in range(threads)]
        pieces = pieces_of([own], itertools.repeat(_PIECE))
        spent = _timed(copiers, Copier.discard, itertools.cycle(pieces), seconds)
        return Measured(COPY, threads, sum(c.tally.file for c in copiers), 0, spent)

    def _read(self, threads: int, seconds: float) -> Measured:
        copiers = [Copier(self._memory) for _ in range(threads)]
        pieces = itertools.cycle(self._pieces(_PIECE))
        spent = _timed(copiers, Copier.discard, pieces, seconds)
        return Measured(READ, threads, _read_by(copiers), 0, spent)

    def _scan(self, threads: int, seconds: float) -> Measured:
        """Lines of strings, thrown away."""
        scanners = [Scanner(Query(), Form()) for _ in range(threads)]
        pieces = itertools.cycle(self._pieces(_PIECE))

        def work(scanner: Scanner, piece: list[Slice]) -> None:
            for _ in scanner.scan(self._memory, [piece], piece[0].address, _NO_LIMIT):
                pass

        spent = _timed(scanners, work, pieces, seconds)
        return Measured(STRINGS, threads, sum(s.tally.read for s in scanners), 0, spent)

    def _pack(self, level: int, threads: int, seconds: float) -> Measured:
        """Frames in memory, as ``--format lz4`` makes them, thrown away."""
        compressor = Compressor(level)
        self._check_frame(compressor)
        copiers = [Copier(self._memory) for _ in range(threads)]
        pieces = itertools.cycle([_packed(piece) for piece in self._pieces(FRAME_SIZE)])
        stored = [0] * threads

        def work(thread: int, piece: list[Slice]) -> None:
            content, _ = copiers[thread].fill(piece)
            stored[thread] += len(compressor.frame(content))

        spent = _timed(range(threads), work, pieces, seconds)
        step = f"read, LZ4 level {level}"
        return Measured(step, threads, _read_by(copiers), sum(stored), spent, level)

    def _write_direct(self, threads: int, seconds: float) -> Measured:
        done = self._write(DIRECT, itertools.count(), threads, seconds)
        self._written[threads] = done.bytes // Blocks.size
        return done

    def _write_cached(self, threads: int, seconds: float) -> Measured:
        """No more than by O_DIRECT in that time: else fsync(2) has no end on a slow disk."""
        blocks = self._written.get(threads, self._blocks)
        return self._write(CACHED, iter(range(blocks)), threads, seconds)

    def _write(self, name: str, blocks: Iterator[int], threads: int, seconds: float) -> Measured:
        """Blocks of the area, front to back, over and over, then fsync(2)."""
        written = [0] * threads

        def work(thread: int, block: int) -> None:
            offset = block % self._blocks * Blocks.size
            view = self._part(offset % len(self._area.view), Blocks.size).view
            while view:
                count = os.pwrite(self._fd, view, offset)
                view, offset = view[count:], offset + count
            written[thread] += Blocks.size

        try:
            os.ftruncate(self._fd, 0)
            set_direct(self._fd, name == DIRECT)
            begun = time.perf_counter()
            _timed(range(threads), work, blocks, seconds)
            os.fsync(self._fd)
            spent = time.perf_counter() - begun
            self._check_written()
        except OSError as error:
            raise _failed(self._folder, error) from None
        return Measured(name, threads, sum(written), 0, spent)

    # What the steps make is checked, outside of what is timed.

    def _check_strings(self) -> None:
        found = set()
        for kernel in (self._kernel, "scalar"):
            scanner = Scanner(Query(), kernel=kernel)
            for _ in scanner.feed(self._area.view[:_CHECKED], 0, True):
                pass
            found.add((scanner.strings, scanner.bytes))
        if len(found) != 1:
            raise FastdumpError(f"the kernels disagree on strings: {found}", "report it")

    def _check_frame(self, compressor: Compressor) -> None:
        import lz4.frame

        content = self._area.view[:FRAME_SIZE]
        if lz4.frame.decompress(compressor.frame(content)) != content:
            raise FastdumpError("an LZ4 frame does not hold what was compressed", "report it")

    def _check_written(self) -> None:
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        set_direct(self._fd, False)
        if os.pread(self._fd, Blocks.size, 0) != self._area.view[: Blocks.size]:
            raise FastdumpError(
                f"{self._folder}: a file does not hold what was written", "check that disk"
            )


def _timed(
    states: Sequence[State],
    work: Callable[[State, Item], object],
    items: Iterator[Item],
    seconds: float,
) -> float:
    """Work on *items*, a thread a state, until *seconds* are over or they are: how long it took."""

    def due() -> Iterator[Item]:
        for item in items:  # one at least
            yield item
            if time.perf_counter() >= begun + seconds:
                return

    begun = time.perf_counter()
    Crew(due(), list(states), work).run()
    return time.perf_counter() - begun


def _read_by(copiers: Sequence[Copier]) -> int:
    return sum(copier.tally.read for copier in copiers)


def _packed(slices: Sequence[Slice]) -> list[Slice]:
    """The same, one right behind the other in their output."""
    ends = itertools.accumulate(s.length for s in slices)
    return [s._replace(offset=end - s.length) for s, end in zip(slices, ends, strict=True)]
