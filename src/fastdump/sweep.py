"""Sweep a place: a few threads scan it, what they find comes in order, memory is bounded.

Memory is read and scanned a chunk at a time, while it is in the cache of a thread; no file is
written. Own memory stays the same whatever the size of the target.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from fastdump import _native
from fastdump._native import PAGE_SIZE, Gap, Memory, Slice, Tally
from fastdump.crew import Crew
from fastdump.gaps import Gaps, Missed, merged
from fastdump.place import Piece, Place, Stream
from fastdump.turns import Turns

Found_co = TypeVar("Found_co", covariant=True)
Found = TypeVar("Found")

# A piece should become no more than a scanner can hold before it is its turn to hand it over, and
# is no smaller than what it costs to begin one.
LEAST_PIECE, _MOST_PIECE = 4 << 20, 64 << 20
SAMPLE = 1 << 20


class Scans(Protocol[Found_co]):
    """One thread's way to scan, and what it has read and found.

    Attributes:
        written: Bytes of all that it has found.
        out_size: Bytes of that which it holds at the most before they must be taken.
    """

    tally: Tally
    gaps: list[Gap]
    written: int
    out_size: int
    kernel: str

    def scan(
        self, memory: Memory, batches: Iterable[Sequence[Slice] | Gap], start: int, end: int
    ) -> Iterator[Found_co]:
        """What is found in a piece; see :class:`Piece`."""
        ...


@dataclass
class Sweep(Gaps):
    """What it came to. Bytes, seconds."""

    tally: Tally
    gaps: list[Gap]
    seconds: float
    threads: int
    kernel: str
    swap_asked: bool


class Enough(Exception):
    """Raised by who handles what is found: no more is wanted."""


def sweep(
    place: Place,
    scanners: Sequence[Scans[Found]],
    handle: Callable[[Found], None] | None = None,
    stream: Iterator[Found] | None = None,
    sizes: Iterator[int] | None = None,
    every: int = 1,
) -> Sweep:
    """Scan a place, one thread a scanner.

    Args:
        handle: Called with all that is found, in address order, never by two threads at
            the same time; None to leave it in the scanners' counts or tables.
        stream: What the first scanner finds in a pipe, which is read as it goes.
        sizes: Of the pieces; by default as they suit the scanners.
        every: Of so many pieces scan one alone, of SAMPLE bytes.

    Raises:
        SourceGone: The target exited or called exec.
    """
    begun = time.perf_counter()
    turns = Turns()
    failed: list[BaseException] = []  # the others fail because they are stopped
    enough = False

    def work(scanner: Scans[Found], item: tuple[int, Piece]) -> None:
        number, piece = item
        try:
            for found in scanner.scan(
                place.memory, place.batches(piece.slices), piece.start, piece.end
            ):
                if handle:
                    turns.wait(number)
                    handle(found)
            turns.end(number)
        except BaseException as error:
            failed.append(error)
            turns.stop()
            raise failed[0] from None

    whole = every == 1
    pieces = (
        place.pieces(sizes or _sizes(place, scanners)) if whole else place.sample(SAMPLE, every)
    )
    crew: Crew[tuple[int, Piece], None, Scans[Found]] = Crew(
        enumerate(pieces),
        list(scanners),
        work,
        at_leisure=bool(place.survey and place.survey.process.is_copy),
    )
    try:
        if stream:
            for found in stream:
                if handle:
                    handle(found)
        else:
            crew.run(patience=1)
        place.check()
    except Enough:
        enough = True
    except _native.MemoryGone:
        raise place.gone() from None
    finally:
        turns.stop()
    tally = Tally()
    tally.add(place.tally)
    for scanner in scanners:
        tally.add(scanner.tally)
    if not enough and whole and not isinstance(place, Stream):
        assert tally.accounted == place.selected, "a selected byte is not accounted for"
    return Sweep(
        tally=tally,
        seconds=time.perf_counter() - begun,
        threads=len(scanners),
        kernel=scanners[0].kernel,
        **vars(missed(place, scanners)),
    )


def missed(place: Place, scanners: Iterable[Scans[Any]]) -> Missed:
    """What of a place could not be read."""
    gaps = [*place.gaps, *itertools.chain.from_iterable(scanner.gaps for scanner in scanners)]
    return Missed(merged(sorted(gaps)), bool(place.survey and place.survey.swap_asked))


def _sizes(place: Place, scanners: Sequence[Scans[Found]]) -> Iterator[int]:
    """Sizes of pieces: by what the ones before became, and smaller at the end, so that all threads
    end together.
    """
    left = sum(s.length for s in place.slices)
    while True:
        found = sum(scanner.written for scanner in scanners)
        read = sum(scanner.tally.read + scanner.tally.file for scanner in scanners)
        size = left // (len(scanners) * 4)
        if found:
            size = min(size, scanners[0].out_size * read // found)
        elif not read:
            size = LEAST_PIECE  # so that what is first comes at once
        size = min(max(size, LEAST_PIECE), _MOST_PIECE) // PAGE_SIZE * PAGE_SIZE
        left = max(left - size, 0)
        yield size
