"""Dump a live process: survey, copy, manifest, report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fastdump import _native
from fastdump._native import GONE, Copier, Gap, Slice, Tally
from fastdump.crew import Crew, usual_threads
from fastdump.elfcore import CoreFile, CoreStream
from fastdump.errors import SourceGone, output_failed
from fastdump.gaps import Gaps, bounded, merged, union
from fastdump.lz4core import Lz4Writer
from fastdump.manifest import make_manifest, totals
from fastdump.output import PartFile
from fastdump.outputs import open_folder, open_output
from fastdump.process import Growth
from fastdump.rawdump import Raw, RawLz4
from fastdump.selection import Preset
from fastdump.snapshot import Snapshot
from fastdump.survey import Survey, pieces_of, shares
from fastdump.text import size
from fastdump.url import shown

# What each format selects when nothing else is asked for, and the name it gets.
FORMATS = {
    "lz4": (Preset.DEBUGGER, "{pid}.core.lz4"),
    "core": (Preset.DEBUGGER, "{pid}.core"),
    "raw": (Preset.DATA, "{pid}.raw"),
    "raw-lz4": (Preset.DATA, "{pid}.raw-lz4"),
    "null": (Preset.DATA, ""),
}

STANDARD_OUTPUT = "standard output"


class Writer(Protocol):
    """A format: what is copied into where.

    ``begin`` gives the pieces, ``work`` copies one in any thread, ``emit`` takes the results
    in order (None where order does not matter). More than ``most_threads`` do not help.
    ``finish`` makes the output whole and gives its size in bytes on the disk; ``keep`` leaves
    what there is under its ``.part`` name, and gives that; ``abort`` leaves nothing.
    """

    buffer_size: int

    @property
    def emit(self) -> Callable[[Any], None] | None: ...
    @property
    def most_threads(self) -> int | None: ...
    def begin(self, survey: Survey, threads: int) -> Iterator[Any]: ...
    def work(self, copier: Copier, piece: Any) -> Any: ...
    def finish(self, manifest: dict[str, object]) -> int: ...
    def keep(self, manifest: dict[str, object]) -> str: ...
    def abort(self) -> None: ...


class Null:
    """``--format null``: reads, and keeps nothing; the speed of reading alone."""

    buffer_size = 2 << 20  # nothing else needs the cache: 1.5% faster than 1 MiB
    emit = None
    most_threads = None

    def begin(self, survey: Survey, threads: int) -> Iterator[list[Slice]]:
        slices = [s for found in survey.runs() for s in found]
        survey.count_all_but(slices)
        return pieces_of(slices, shares(survey.to_copy, threads))

    def work(self, copier: Copier, piece: list[Slice]) -> None:
        copier.discard(piece)

    def finish(self, manifest: dict[str, object]) -> int:
        return 0

    def keep(self, manifest: dict[str, object]) -> str:
        return "nothing"

    def abort(self) -> None:
        pass


@dataclass
class DumpReport(Gaps):
    """What a dump came to. Bytes, seconds."""

    output: str
    format: str
    threads: int
    complete: bool
    totals: dict[str, int]
    gaps: list[Gap]
    swapped: int
    swapped_left_out: bool
    swap_asked: bool
    headroom: int | None
    size: int
    seconds: dict[str, float]
    before: Growth
    after: Growth | None
    pause: dict[str, object]
    notes: list[str] = field(default_factory=list)

    @property
    def gap_bytes(self) -> Counter[str]:
        """Bytes of gaps for each reason."""
        found: Counter[str] = Counter()
        for gap in self.gaps:
            found[gap.reason] += gap.end - gap.start
        return found

    @property
    def ratio(self) -> float:
        """Bytes with content for each byte of output."""
        content = self.totals["read"] + self.totals["file"] + self.totals["zero"]
        return content / self.size if self.size else 0.0

    def as_dict(self) -> dict[str, object]:
        """For ``--json``."""
        copied = self.totals["read"] + self.totals["file"]
        return {
            "output": self.output,
            "format": self.format,
            "threads": self.threads,
            "complete": self.complete,
            "exit_code": self.exit_code,
            "bytes": self.totals,
            "gaps": dict(self.gap_bytes),
            "gap_list": [gap._asdict() for gap in self.gaps[:1000]],
            "swapped": self.swapped,
            "swapped_left_out": self.swapped_left_out,
            "headroom": self.headroom,
            "size": self.size,
            "ratio": round(self.ratio, 3),
            "seconds": {k: round(v, 4) for k, v in self.seconds.items()},
            "gb_per_second": {
                k: round(copied / v / 1e9, 3) for k, v in self.seconds.items() if v > 0
            },
            "target_before": self.before._asdict(),
            "target_after": self.after._asdict() if self.after else None,
            "pause": self.pause,
            "notes": self.notes,
        }


def open_writer(
    format: str, output: str, *, force: bool = False, level: int = 1
) -> tuple[Writer, str]:
    """The writer of a format, and what its output is called.

    Args:
        output: A path or a URL, ``-`` for standard output.

    Raises:
        OutputFailed: The output exists or cannot be created.
        UsageError: The format is a folder, and the output cannot be one.
    """
    if format == "null":
        return Null(), ""
    if format == "raw":
        return Raw(open_folder(output, force)), output
    if format == "raw-lz4":
        return RawLz4(open_folder(output, force), level), output
    opened = open_output(output, force)
    name = STANDARD_OUTPUT if output == "-" else shown(output)
    if format == "lz4":
        return Lz4Writer(opened, level), name
    return CoreFile(opened) if isinstance(opened, PartFile) else CoreStream(opened), name


def default_threads(format: str) -> int:
    """The usual number, and one more for LZ4.

    One of those that compress waits for the disk: with 2 CPUs LZ4 to a disk is a quarter faster.
    At least two, so that one can read while one writes.
    """
    threads = usual_threads()
    return threads + 1 if "lz4" in format else max(threads, 2)


def dump(
    survey: Survey,
    snapshot: Snapshot,
    writer: Writer,
    output: str,
    format: str,
    *,
    threads: int | None,
    begun: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DumpReport:
    """Copy what *survey* selected of *snapshot* through *writer*; once it is read the pause ends.

    Args:
        threads: How many copy; None for as many as help.
        begun: time.perf_counter() before the survey: its seconds are in the report.
        progress: Called with the bytes done and in all, from any thread.

    Raises:
        SourceGone: The target exited or called exec; the message says where what was read is.
        OutputFailed: Nothing that looks whole is left.
    """
    process = survey.process
    if threads is None:
        threads = default_threads(format)
        threads = min(threads, writer.most_threads or threads)
    seconds = {"survey": time.perf_counter() - begun}
    copiers: list[Copier] = []
    kept = False
    try:
        before = process.growth()
        identity = process.identity
        started = time.perf_counter()
        pieces = writer.begin(survey, threads)
        copiers = [Copier(process.memory, writer.buffer_size) for _ in range(threads)]
        done = 0

        def advance(piece: Any) -> None:
            nonlocal done
            done += sum(s.length for s in _slices(piece))
            progress(done, survey.to_copy)

        def work(copier: Copier, piece: Any) -> Any:
            result = writer.work(copier, piece)
            snapshot.was_read(_slices(piece))
            return result

        crew: Crew[Any, Any, Copier] = Crew(
            pieces, copiers, work, writer.emit, advance, at_leisure=process.is_copy
        )
        seconds["layout"] = time.perf_counter() - started
        started = time.perf_counter()
        try:
            crew.run(patience=1 if output == STANDARD_OUTPUT else None)
            process.check()
        except (_native.MemoryGone, SourceGone):
            snapshot.release()
            error = _kept(survey, snapshot, writer, identity, copiers, crew.undone())
            kept = True
            raise error from None
        seconds["copy"] = time.perf_counter() - started
        snapshot.release()
        tally, gaps = _sum(survey, copiers)
        assert tally.accounted == survey.selected, "a selected byte is not accounted for"
        started = time.perf_counter()
        manifest = make_manifest(survey, snapshot, identity, tally, gaps, complete=True)
        size = writer.finish(manifest)
        seconds["finish"] = time.perf_counter() - started
    except OSError as error:
        writer.abort()
        raise output_failed(output, error) from None
    except _native.MemoryGone:
        writer.abort()
        raise process.gone() from None
    except BaseException:
        if not kept:
            writer.abort()
        raise
    seconds["total"] = time.perf_counter() - begun
    seconds["read"] = tally.read_ns / 1e9 / threads
    seconds["write"] = tally.write_ns / 1e9 / threads
    try:
        after = process.growth()
    except SourceGone:
        after = None
    left_out = bool(survey.swapped) and not survey.read_swapped
    return DumpReport(
        output=output,
        format=format,
        threads=threads,
        complete=True,
        totals=totals(survey, tally),
        gaps=gaps,
        swapped=survey.swapped,
        swapped_left_out=left_out,
        swap_asked=survey.swap_asked,
        headroom=survey.headroom,
        size=size,
        seconds=seconds,
        before=before,
        after=after,
        pause=snapshot.as_dict(),
        notes=sorted({label.note for label in survey.labels if label.note}),
    )


def _slices(piece: Any) -> Sequence[Slice]:
    slices: Sequence[Slice] = getattr(piece, "slices", piece)
    return slices


def _sum(survey: Survey, copiers: Sequence[Copier]) -> tuple[Tally, list[Gap]]:
    tally, gaps = Tally(), list(survey.gaps)
    tally.add(survey.tally)
    for copier in copiers:
        tally.add(copier.tally)
        gaps += copier.gaps
    return tally, bounded(merged(sorted(gaps)), survey.regions)


def _kept(
    survey: Survey,
    snapshot: Snapshot,
    writer: Writer,
    identity: dict[str, object],
    copiers: Sequence[Copier],
    undone: Iterator[Any],
) -> SourceGone:
    """Keep what was read before the target went away; the error that tells so."""
    tally, gaps = _sum(survey, copiers)
    gone = [Gap(s.address, s.address + s.length, GONE) for piece in undone for s in _slices(piece)]
    # What was read of a piece and not written is gone with it, and so are the gaps in it.
    gaps = bounded(merged(union(gone, gaps)), survey.regions)
    lost = sum(gap.end - gap.start for gap in gaps if gap.reason == GONE)
    error = survey.process.gone()
    where = writer.keep(make_manifest(survey, snapshot, identity, tally, gaps, complete=False))
    return SourceGone(
        f"{error}; {size(lost)} of what was selected were not read", f"{where} holds the rest"
    )
