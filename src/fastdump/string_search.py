"""Printable strings in the memory of a process, or in a file: what strings(1) finds in its pieces.

Memory is read and searched a chunk at a time by a few threads, while it is in their caches; no
file is written. Own memory stays the same whatever the size of the target, and of its strings.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fastdump import _native
from fastdump._native import PAGE_SIZE, Copier, Gap, Tally
from fastdump._strings import (
    ENCODING_NAMES,
    RECORD,
    Form,
    Found,
    Giant,
    Query,
    Row,
    Scanner,
    Table,
    Tallied,
    default_kernel,
    ffi,
    raw_records,
    text_of,
)
from fastdump.crew import Crew
from fastdump.gaps import Gaps, merged
from fastdump.labels import Label
from fastdump.place import Piece, Place, Stream, open_file, place_of, place_of_file
from fastdump.process import LiveProcess
from fastdump.region import Region
from fastdump.selection import Preset, Rule
from fastdump.survey import Survey
from fastdump.turns import Turns

# A piece should become no more lines than a scanner can hold before it is its turn to write them,
# and is no smaller than what it costs to begin one.
_LEAST_PIECE, _MOST_PIECE = 4 << 20, 64 << 20
# Of a string that was too long to be kept, so many bytes are shown where it must be in one piece.
WHOLE_MOST = 64 << 20
_TABLE_BYTES = 160 << 20
_ENTRY_BYTES = 192  # of a table: a cache line, and 128 bytes of text


class Match(NamedTuple):
    """One string.

    ``length`` is in bytes of memory; ``encoding`` a name as of ``strings -e``, or ``U``.
    """

    address: int
    length: int
    text: str
    encoding: str
    region: Region
    label: Label


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
    notes: list[str] = field(default_factory=list)


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
            for found in scanner.scan(place.memory, piece.slices, piece.start, piece.end):
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
    survey = place.survey
    tally, gaps = Tally(), list(survey.gaps) if survey else []
    if survey:
        tally.add(survey.tally)
    for scanner in scanners:
        tally.add(scanner.tally)
        gaps += scanner.gaps
    if isinstance(place, Stream):
        gaps += place.gaps
    else:
        assert tally.accounted == place.selected, "a selected byte is not accounted for"
    return StringsReport(
        strings=sum(s.strings for s in scanners),
        bytes=sum(s.bytes for s in scanners),
        tally=tally,
        gaps=merged(sorted(gaps)),
        seconds=time.perf_counter() - begun,
        threads=len(scanners),
        kernel=scanners[0].kernel,
        swap_asked=bool(survey and survey.swap_asked),
        notes=sorted({label.note for label in place.labels if label.note}) if survey else [],
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
            size = _LEAST_PIECE  # so that the first lines come at once
        size = min(max(size, _LEAST_PIECE), _MOST_PIECE) // PAGE_SIZE * PAGE_SIZE
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


# --- records ----------------------------------------------------------------------------


class Batch:
    """Strings in a row, as columns; made without a Python object for each.

    Attributes:
        text: The texts of all, one after the other, without separators.
    """

    def __init__(self, place: Place, found: Found) -> None:
        self.place = place
        self.text = bytes(found.lines)
        self._count = found.count
        self._records = raw_records(found)
        self._base = found.records[0].line if found.count else 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Match]:
        for record in RECORD.iter_unpack(self._records):
            row = Row._make(record)
            name = ENCODING_NAMES[row.encoding]
            at = row.at - self._base
            yield Match(
                row.address,
                row.length,
                decode(self.text[at : at + row.text_length], name),
                name,
                self.place.regions[row.region],
                self.place.labels[row.region],
            )

    def to_numpy(self) -> Any:
        """A structured NumPy array: address, length, region, encoding, text, text_length.

        ``region`` is a number in ``place.regions``, ``encoding`` one of ``ENCODING_NAMES``,
        ``text`` an offset in :attr:`text`. Needs NumPy.
        """
        import numpy

        names = ["address", "length", "region", "encoding", "line", "text", "text_length", "end"]
        kinds = ["<u8", "<u8", "<u4", "<i4", "<u4", "<u4", "<u4", "<u4"]
        array = numpy.frombuffer(self._records, dtype=list(zip(names, kinds, strict=True))).copy()
        array["text"] -= self._base
        return array[["address", "length", "region", "encoding", "text", "text_length"]]

    def to_arrow(self) -> Any:
        """An Arrow record batch: address, length, text, encoding, region, label. Needs PyArrow."""
        from fastdump.parquet import record_batch

        rows = [Row._make(record) for record in RECORD.iter_unpack(self._records)]
        rows = [row._replace(at=row.at - self._base) for row in rows]
        return record_batch(self.place, rows, self.text)


def decode(text: bytes, encoding: str) -> str:
    """Text of a string as Python has it: 8-bit characters are taken for Latin-1."""
    return text.decode("utf-8" if encoding == "U" else "latin-1", "replace")


# --- the most -----------------------------------------------------------------------------


@dataclass
class Top:
    """The strings that take the most memory."""

    rows: list[Tallied]
    error: int
    distinct: int
    report: StringsReport


def top(
    place: Place,
    query: Query,
    count: int,
    *,
    exact: bool = False,
    groups: Sequence[int] | None = None,
    threads: int | None = None,
    kernel: str | None = None,
) -> Top:
    """The *count* strings that take the most bytes of a place.

    Args:
        exact: Equal strings; else those that are alike but for numbers.
        groups: For each region the number of its group: rows are of one group each.
    """
    threads = threads or default_threads()
    capacity = 1 << ((_TABLE_BYTES // _ENTRY_BYTES // threads).bit_length() - 1)
    scanners = [
        Scanner(query, kernel=kernel or default_kernel(), table=Table(capacity, exact, groups))
        for _ in range(threads)
    ]
    report = search(place, scanners)
    tables = [scanner.table for scanner in scanners if scanner.table]
    first = tables[0]
    for table in tables:
        table.settle()
    for table in tables[1:]:
        first.merge(table)
    return Top(first.top(count), first.error, first.used, report)


def default_threads() -> int:
    """The CPUs that we may use, at most 16: memory bandwidth ends there at the latest."""
    return min(len(os.sched_getaffinity(0)), 16)


# --- the Python API -------------------------------------------------------------------------


@contextlib.contextmanager
def opened(
    source: int | str | os.PathLike[str] | Place,
    *,
    rules: Sequence[Rule] = (),
    preset: Preset = Preset.DATA,
    with_libraries: bool = False,
    swap: bool | None = None,
) -> Iterator[Place]:
    """A place to search: a pid, the path of a file, or a place already.

    Raises:
        SourceGone, NotPermitted, UsageError: As :class:`LiveProcess`, or the file cannot be read.
    """
    if isinstance(source, Place):
        yield source
    elif isinstance(source, int):
        with LiveProcess(source) as process:
            survey = Survey(process, preset, rules, with_libraries=with_libraries, swap=swap)
            with contextlib.closing(place_of(survey)) as place:
                yield place
    else:
        path = os.fspath(source)
        with contextlib.closing(place_of_file(path, open_file(path))) as place:
            yield place


def batches(
    source: int | str | os.PathLike[str] | Place,
    *,
    min_length: int = 4,
    encodings: Sequence[str] = ("s",),
    whitespace: bool = False,
    rules: Sequence[Rule] = (),
    preset: Preset = Preset.DATA,
    with_libraries: bool = False,
    swap: bool | None = None,
) -> Iterator[Batch]:
    """The strings of *source* in address order, some thousands at a time.

    A string of more than 64 KiB that does not lie within one chunk comes in a batch of its own;
    of more than 64 MiB, only its first 64 MiB.

    Args:
        source: A pid, the path of a file, or a :class:`Place`.
        min_length: Characters.
        encodings: As ``strings -e``: ``s S b l B L``, or ``U`` for UTF-8.
        rules, preset, with_libraries, swap: What is searched of a process: see :class:`Survey`.

    Raises:
        SourceGone: The target exited or called exec.
        NotPermitted: The kernel does not let us read it.
        UsageError: There is no such file, or encoding.
    """
    query = Query(min_length, tuple(encodings), whitespace)
    with opened(
        source, rules=rules, preset=preset, with_libraries=with_libraries, swap=swap
    ) as place:
        scanner = Scanner(query, Form(separator=b""), with_records=True)
        copier = Copier(place.memory)
        try:
            for piece in place.pieces(itertools.repeat(_LEAST_PIECE)):
                for found in scanner.scan(place.memory, piece.slices, piece.start, piece.end):
                    if isinstance(found, Giant):
                        found = read_giant(place, found, copier, Form(separator=b""), query.unicode)
                    yield Batch(place, found)
            place.check()
        except _native.MemoryGone:
            raise place.gone() from None


def read_giant(place: Place, giant: Giant, copier: Copier, form: Form, unicode: str) -> Found:
    """A giant as any other string, but at most its first WHOLE_MOST bytes."""
    part = giant._replace(length=min(giant.length, WHOLE_MOST))
    head = form.prefix + address_text(giant.address, form.radix)
    text = b"".join(giant_text(place, part, copier, unicode))
    line = head + text + form.separator
    record = ffi.new("struct fastdump_record *")
    record.address, record.length = giant.address, giant.length
    record.region, record.encoding = giant.region, giant.encoding
    record.text, record.text_length, record.line_length = len(head), len(text), len(line)
    return Found(memoryview(line), record, 1)


def address_text(address: int, radix: int) -> bytes:
    """As GNU strings prints it."""
    return {0: b"", 8: b"%7o ", 10: b"%7d ", 16: b"%7x "}[radix] % (() if not radix else address)


def strings(source: int | str | os.PathLike[str] | Place, **options: Any) -> Iterator[Match]:
    """The strings of *source*, one by one; the options are those of :func:`batches`.

    >>> for match in fastdump.strings(pid, min_length=8):  # doctest: +SKIP
    ...     print(f"{match.address:x}", match.text)
    """
    for batch in batches(source, **options):
        yield from batch
