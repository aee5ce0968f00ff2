"""Search a place for strings: a few threads, output in order, memory bounded.

Memory is read and searched a chunk at a time, while it is in the cache of a thread; no file is
written. Own memory stays the same whatever the size of the target, and of its strings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fastdump import _native
from fastdump._native import PAGE_SIZE, Copier, Gap, Tally
from fastdump._strings import ENCODING_NAMES, Form, Found, Giant, Scanner, ffi, text_of
from fastdump.crew import Crew
from fastdump.gaps import Gaps, merged
from fastdump.place import Piece, Place, Stream
from fastdump.turns import Turns

# A piece should become no more lines than a scanner can hold before it is its turn to write them,
# and is no smaller than what it costs to begin one.
LEAST_PIECE, _MOST_PIECE = 4 << 20, 64 << 20
# Of a string that was too long to be kept, so many bytes are shown where it must be in one piece.
WHOLE_MOST = 64 << 20


@dataclass
class StringsReport(Gaps):
    """What a search came to. Bytes, seconds."""

    strings: int
    bytes: int
    tally: Tally
    gaps: list[Gap]
    seconds: float
    threads: int
    kernel: str
    swap_asked: bool = False


def search(
    place: Place,
    scanners: Sequence[Scanner],
    handle: Callable[[Found | Giant], None] | None = None,
) -> StringsReport:
    """Search a place, one thread a scanner.

    Args:
        handle: Called with all that is found, in address order, never by two threads at
            the same time; None to leave it in the scanners' counts or tables.

    Raises:
        SourceGone: The target exited or called exec.
    """
    begun = time.perf_counter()
    turns = Turns()
    failed: list[BaseException] = []  # the others fail because they are stopped

    def work(scanner: Scanner, item: tuple[int, Piece]) -> None:
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

    crew: Crew[tuple[int, Piece], None, Scanner] = Crew(
        enumerate(place.pieces(_sizes(place, scanners))), list(scanners), work
    )
    try:
        if isinstance(place, Stream):
            for found in place.found(scanners[0]):
                if handle:
                    handle(found)
        else:
            crew.run(patience=1)
        place.check()
    except _native.MemoryGone:
        raise place.gone() from None
    finally:
        turns.stop()
    tally, gaps = Tally(), list(place.gaps)
    tally.add(place.tally)
    for scanner in scanners:
        tally.add(scanner.tally)
        gaps += scanner.gaps
    if not isinstance(place, Stream):
        assert tally.accounted == place.selected, "a selected byte is not accounted for"
    return StringsReport(
        strings=sum(s.strings for s in scanners),
        bytes=sum(s.bytes for s in scanners),
        tally=tally,
        gaps=merged(sorted(gaps)),
        seconds=time.perf_counter() - begun,
        threads=len(scanners),
        kernel=scanners[0].kernel,
        swap_asked=bool(place.survey and place.survey.swap_asked),
    )


def _sizes(place: Place, scanners: Sequence[Scanner]) -> Iterator[int]:
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
            size = LEAST_PIECE  # so that the first lines come at once
        size = min(max(size, LEAST_PIECE), _MOST_PIECE) // PAGE_SIZE * PAGE_SIZE
        left = max(left - size, 0)
        yield size


def giant_text(place: Place, giant: Giant, copier: Copier, unicode: str) -> Iterator[bytes]:
    """The text of a string that must be read again, in parts."""
    rest = b""
    for view in place.read(copier, giant.address, giant.length):
        block = rest + bytes(view)
        whole = len(block) // 4 * 4  # no encoding has a character that is longer
        if ENCODING_NAMES[giant.encoding] == "U":
            whole = _whole_utf8(block)
        yield text_of(giant.encoding, unicode, block[:whole])
        rest = block[whole:]
    yield text_of(giant.encoding, unicode, rest)


def _whole_utf8(block: bytes) -> int:
    """The length of *block* without the character that it ends within."""
    for back in range(1, min(4, len(block)) + 1):
        lead = block[-back]
        if lead >= 0xC0:
            size = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            return len(block) - back if size > back else len(block)
        if lead < 0x80:
            break
    return len(block)


def read_giant(place: Place, giant: Giant, copier: Copier, form: Form, unicode: str) -> Found:
    """A giant as any other string, but at most its first WHOLE_MOST bytes; of a pipe the last."""
    part = giant._replace(length=min(giant.length, WHOLE_MOST))
    if isinstance(place, Stream):
        part = part._replace(address=giant.address + giant.length - part.length)
    head = head_of(place, giant, form)
    text = b"".join(giant_text(place, part, copier, unicode))
    line = head + text + form.separator
    record = ffi.new("struct fastdump_record *")
    record.address, record.length = giant.address, giant.length
    record.region, record.encoding = giant.region, giant.encoding
    record.text, record.text_length, record.line_length = len(head), len(text), len(line)
    return Found(memoryview(line), record, 1)


def head_of(place: Place, giant: Giant, form: Form) -> bytes:
    """What a line has before its text, as GNU strings prints it."""
    if not form.radix:
        return form.prefix
    address = place.printed(giant.address, giant.region)
    return form.prefix + {8: b"%7o ", 10: b"%7d ", 16: b"%7x "}[form.radix] % address
