"""The part of the C extension that finds strings: thin, typed wrappers over ``csrc/api.h``."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fastdump._native import (
    _GAP_CAPACITY,
    MORE,
    Buffer,
    Gap,
    Memory,
    Slice,
    Tally,
    _c_slices,
    _check,
    _take_gaps,
    _tally_of,
    aligned_buffer,
    ffi,
    lib,
)
from fastdump.errors import UsageError

# Names as of ``strings -e``; U is UTF-8 (``strings -U``).
ENCODINGS: dict[str, int] = {
    "s": lib.FASTDUMP_7BIT,
    "S": lib.FASTDUMP_8BIT,
    "l": lib.FASTDUMP_UTF16LE,
    "b": lib.FASTDUMP_UTF16BE,
    "L": lib.FASTDUMP_UTF32LE,
    "B": lib.FASTDUMP_UTF32BE,
    "U": lib.FASTDUMP_UTF8,
}
ENCODING_NAMES = {number: name for name, number in ENCODINGS.items()}
UNICODE: dict[str, int] = {
    "locale": lib.FASTDUMP_UNICODE_LOCALE,
    "hex": lib.FASTDUMP_UNICODE_HEX,
    "escape": lib.FASTDUMP_UNICODE_ESCAPE,
    "highlight": lib.FASTDUMP_UNICODE_HIGHLIGHT,
}
HEAD: int = lib.FASTDUMP_HEAD
EDGES: int = lib.FASTDUMP_EDGES
LEAST_EDGES: int = lib.FASTDUMP_LEAST_EDGES
TALLIED_TEXT: int = lib.FASTDUMP_TALLIED_TEXT
_SLACK: int = lib.FASTDUMP_SLACK

# A quarter of an L2 cache of 1 MiB: it holds this, where it is read from, and the lines.
CHUNK_SIZE = 256 << 10
_MOST_ROOM = 16 << 20
MOST_LENGTH = 1 << 24
_NO_LIMIT = 2**64 - 1


def _numbers() -> dict[str, int]:
    """The kernels that this CPU can run, the best first, by their numbers in the C table."""
    names = itertools.takewhile(
        lambda name: name != ffi.NULL, map(lib.fastdump_kernel_name, itertools.count())
    )
    return {
        ffi.string(name).decode(): number
        for number, name in enumerate(names)
        if lib.fastdump_kernel_supported(number)
    }


def kernels() -> list[str]:
    """The kernels that this CPU can run, the best first."""
    return list(_numbers())


def kernel_number(name: str) -> int:
    """The number of a kernel in the table of ``csrc/dispatch.c``.

    Raises:
        UsageError: There is none of that name, or this CPU cannot run it.
    """
    numbers = _numbers()
    if name not in numbers:
        raise UsageError(
            f"there is no kernel {name!r} for this CPU", f"kernels here: {', '.join(numbers)}"
        )
    return numbers[name]


def default_kernel() -> str:
    """What FASTDUMP_KERNEL names, else the best one."""
    return os.environ.get("FASTDUMP_KERNEL") or kernels()[0]


class Finder:
    """One encoding in one stream: what a kernel remembers from call to call."""

    def __init__(
        self, kernel: str, encoding: str, min_length: int, whitespace: bool = False
    ) -> None:
        self._kernel = kernel_number(kernel)
        self._finder = ffi.new("struct fastdump_finder *")
        _check(lib.fastdump_finder_begin(self._finder, ENCODINGS[encoding], whitespace, min_length))

    def find(
        self, data: Any, last: bool, base: int = 0, capacity: int = EDGES
    ) -> tuple[int, list[int]]:
        """The bytes of *data* consumed, and the edges in them; see ``csrc/scan.inc.h``."""
        view = ffi.from_buffer(data)
        edges = ffi.new("uint32_t[]", capacity)
        count = ffi.new("uint64_t *")
        done = lib.fastdump_find(
            self._kernel, self._finder, view, len(view), last, base, capacity, edges, count
        )
        return done, ffi.unpack(edges, count[0]) if count[0] else []


@dataclass(frozen=True)
class Query:
    """Which strings are looked for. See strings(1).

    Args:
        min_length: Characters.
        encodings: Keys of ENCODINGS.
        whitespace: All white space is printable: ``-w``.
        unicode: How UTF-8 is shown: a key of UNICODE.

    Raises:
        UsageError: There is no such encoding, or length.
    """

    min_length: int = 4
    encodings: tuple[str, ...] = ("s",)
    whitespace: bool = False
    unicode: str = "locale"

    def __post_init__(self) -> None:
        unknown = [name for name in self.encodings if name not in ENCODINGS]
        if unknown or not 0 < len(self.encodings) <= lib.FASTDUMP_FINDERS:
            names = ", ".join(unknown) or "none"
            raise UsageError(f"encodings: {names}", f"there are {', '.join(ENCODINGS)}")
        if not 1 <= self.min_length <= MOST_LENGTH:
            raise UsageError(f"a string cannot have {self.min_length} characters")


class Form(NamedTuple):
    """What a line looks like: prefix, address in *radix* (0: none), text, separator.

    ``biases``: for each region, what is added to its addresses.
    """

    radix: int = 0
    prefix: bytes = b""
    separator: bytes = b"\n"
    biases: Sequence[int] | None = None


class Giant(NamedTuple):
    """A string that was too long to be kept: it is to be read again."""

    address: int
    length: int
    region: int
    encoding: int


@dataclass(eq=False, repr=False)
class Found:
    """Strings in a row: their lines, valid until the next step, and ``count`` records."""

    lines: memoryview
    records: Any
    count: int


class Row(NamedTuple):
    """One string of a :class:`Found`: places in its lines are in bytes."""

    address: int
    length: int
    region: int
    encoding: int
    line: int
    at: int
    text_length: int
    line_length: int

    @property
    def line_end(self) -> int:
        return self.line + self.line_length

    def text(self, lines: bytes) -> bytes:
        return lines[self.at : self.at + self.text_length]

    def whole(self, lines: bytes) -> bytes:
        """The line, with its separator."""
        return lines[self.line : self.line + self.line_length]


RECORD = struct.Struct("<QQIiIIII")  # struct fastdump_record of csrc/api.h


def raw_records(found: Found) -> bytes:
    return bytes(ffi.buffer(found.records, RECORD.size * found.count)) if found.count else b""


def rows_of(found: Found) -> list[Row]:
    """The strings, their places as from the first byte of ``found.lines``."""
    rows = map(Row._make, RECORD.iter_unpack(raw_records(found)))
    base = found.records[0].line if found.count else 0
    if not base:
        return list(rows)
    return [row._replace(line=row.line - base, at=row.at - base) for row in rows]


class Table:
    """Equal strings, or strings alike but for numbers; bounded memory.

    Args:
        capacity: Entries, a power of 2; each takes 192 bytes.
        exact: Equal ones only; else numbers are placeholders.
        groups: For each region a number: strings of two groups count apart.
    """

    def __init__(self, capacity: int, exact: bool, groups: Sequence[int] | None = None) -> None:
        self._table = ffi.new("struct fastdump_table *")
        self._entries = aligned_buffer(capacity * ffi.sizeof("struct fastdump_tallied"))
        self._texts = aligned_buffer(capacity * TALLIED_TEXT)
        self._groups = ffi.new("uint32_t[]", groups) if groups is not None else ffi.NULL
        self._table.entries = _cast("struct fastdump_tallied *", self._entries)
        self._table.texts = _cast("unsigned char *", self._texts)
        self._table.capacity = capacity
        self._table.exact = exact
        self._table.groups = self._groups

    @property
    def error(self) -> int:
        """No total is low by more than so many bytes."""
        return int(self._table.error)

    def settle(self) -> None:
        """Enter what waits; before the table is read."""
        lib.fastdump_table_settle(self._table)

    def merge(self, other: Table) -> None:
        """Enter all that is in *other*, which is settled."""
        lib.fastdump_table_merge(self._table, other._table)

    def top(self, count: int) -> list[Tallied]:
        """The entries with the most bytes."""
        self.settle()
        chosen = ffi.new("uint64_t[]", max(count, 1))
        length = lib.fastdump_table_top(self._table, count, chosen)
        return [self._entry(chosen[i]) for i in range(length)]

    def _entry(self, index: int) -> Tallied:
        entry = self._table.entries[index]
        kept = min(entry.text_length, TALLIED_TEXT)
        at = index * TALLIED_TEXT
        return Tallied(
            key=entry.key,
            length=entry.bytes,
            count=entry.count,
            address=entry.address,
            text=bytes(self._texts.view[at : at + kept]),
            text_length=entry.text_length,
            regions=[number - 1 for number in entry.regions if number],
            more=bool(entry.more),
        )


@dataclass(frozen=True)
class Tallied:
    """One entry of a table: ``count`` strings, which take ``length`` bytes of memory in all.

    ``more``: they lie in other regions than the named ones too.
    """

    key: int
    length: int
    count: int
    address: int
    text: bytes
    text_length: int
    regions: list[int]
    more: bool


def _cast(kind: str, buffer: Buffer) -> Any:
    return ffi.cast(kind, buffer.address)


@dataclass(eq=False, repr=False)
class Scanner:
    """One thread's way to find strings: its buffers, and what it has found and read.

    Args:
        form: Make lines; None to count only.
        with_records: Records as well.
        table: Count equal strings in it instead.
        out_size: Bytes of lines that it gathers before they must be taken, at least.
    """

    query: Query
    form: Form | None = None
    kernel: str = field(default_factory=default_kernel)
    with_records: bool = False
    table: Table | None = None
    chunk_size: int = CHUNK_SIZE
    out_size: int = 4 << 20

    def __post_init__(self) -> None:
        self.tally = Tally()
        self.gaps: list[Gap] = []
        self.written = 0  # bytes of lines
        scan = self._scan = ffi.new("struct fastdump_scan *")
        form = self.form or Form(separator=b"")
        scan.kernel = kernel_number(self.kernel)
        scan.mode = lib.FASTDUMP_LINES if self.form else lib.FASTDUMP_COUNT_STRINGS
        if self.table:
            scan.mode = lib.FASTDUMP_TALLIES
            scan.table = self.table._table
        scan.radix = form.radix
        scan.unicode = UNICODE[self.query.unicode]
        scan.finders = len(self.query.encodings)
        whitespace, length = self.query.whitespace, self.query.min_length
        for i, name in enumerate(self.query.encodings):
            finder = scan.finder + i
            _check(lib.fastdump_finder_begin(finder, ENCODINGS[name], whitespace, length))
        # C may copy some bytes more than there are.
        self._prefix = ffi.new("unsigned char[]", form.prefix + bytes(_SLACK))
        self._separator = ffi.new("unsigned char[]", form.separator + bytes(_SLACK))
        scan.prefix, scan.prefix_length = self._prefix, len(form.prefix)
        scan.separator, scan.separator_length = self._separator, len(form.separator)
        self._biases = ffi.NULL
        if form.biases:
            self._biases = ffi.new("uint64_t[]", form.biases)
        scan.biases = self._biases
        # What a chunk may become at the worst must fit: of long lines a chunk holds fewer.
        scan.size = self.chunk_size
        while lib.fastdump_scan_room(scan) > _MOST_ROOM and scan.size > 4096:
            scan.size //= 2
        scan.room = lib.fastdump_scan_room(scan)
        self._buffer = aligned_buffer(HEAD + scan.size + _SLACK)
        scan.buffer = _cast("unsigned char *", self._buffer)
        scan.capacity = 4 * scan.room + self.out_size
        self._out = aligned_buffer(scan.capacity + _SLACK)
        scan.out = _cast("unsigned char *", self._out)
        self._edges = aligned_buffer(4 * EDGES * scan.finders)
        scan.edges = _cast("uint32_t *", self._edges)
        if self.with_records:
            most = lib.fastdump_scan_records(scan)
            scan.records_capacity = 4 * most + (64 << 10)
            self._records = aligned_buffer(
                scan.records_capacity * ffi.sizeof("struct fastdump_record")
            )
            scan.records = _cast("struct fastdump_record *", self._records)
        self._c_gaps = ffi.new("struct fastdump_gap[]", _GAP_CAPACITY)

    @property
    def strings(self) -> int:
        """Strings found so far."""
        return int(self._scan.strings)

    @property
    def bytes(self) -> int:
        """Bytes of memory that they take."""
        return int(self._scan.bytes)

    def _begin(self, start: int = 0, end: int = _NO_LIMIT) -> None:
        lib.fastdump_scan_begin(self._scan)
        self._scan.own_start, self._scan.own_end = start, end

    def scan(
        self,
        memory: Memory,
        batches: Iterable[Sequence[Slice] | Gap],
        start: int = 0,
        end: int = _NO_LIMIT,
    ) -> Iterator[Found | Giant]:
        """Find the strings that become long enough in ``[start, end)``.

        Args:
            batches: Slices, and what there is none of, in ascending order; each is done with
                before the next is asked for, and those of a tail are only as far as needed.

        Raises:
            MemoryGone: The target exited or called exec.
        """
        self._begin(start, end)
        for batch in batches:
            if isinstance(batch, Gap):
                self.gaps.append(batch)
                self.tally.gap += batch.end - batch.start
            elif not (yield from self._scan_batch(memory, batch)):
                return
        yield from self._scan_batch(memory, ())

    def _scan_batch(
        self, memory: Memory, slices: Sequence[Slice]
    ) -> Generator[Found | Giant, None, bool]:
        """Whether the slices that follow are wanted; without any, it is the end."""
        if slices:
            slices = [*slices[:-1], slices[-1]._replace(flags=slices[-1].flags | MORE)]
        c_slices = _c_slices(slices)
        cursor = ffi.new("struct fastdump_cursor *")
        tally = ffi.new("struct fastdump_tally *")
        done = 0
        while not done:
            done = _check(
                lib.fastdump_scan_slices(
                    memory._target,
                    c_slices,
                    len(slices),
                    self._scan,
                    _GAP_CAPACITY,
                    cursor,
                    self._c_gaps,
                    tally,
                )
            )
            self.gaps += _take_gaps(cursor, self._c_gaps)
            yield from self._take()
        self.tally.add(_tally_of(tally))
        return done == 2

    def feed(self, data: Any, address: int, last: bool) -> Iterator[Found | Giant]:
        """Find the strings in the bytes of a stream, those at *address* (0: it begins).

        The length is a multiple of 64, but for the last ones.
        """
        if address == 0:
            self._begin()
        view = ffi.from_buffer(data)
        length = len(view)
        done = 0
        while done < length or (last and length == 0):
            done += lib.fastdump_scan_bytes(
                self._scan, view + done, length - done, address + done, 0, last
            )
            yield from self._take()
            if length == 0:
                break
        self.tally.read += length

    def open_giants(self) -> list[int]:
        """The addresses of strings that are too long to be kept, and go on."""
        finders = self._scan.finder[0 : self._scan.finders]
        return [finder.start for finder in finders if finder.open and finder.giant]

    def _take(self) -> Iterator[Found | Giant]:
        """What was found since the last call."""
        scan = self._scan
        self.written += scan.filled
        giants = [scan.giant[i] for i in range(scan.giants)]
        line = record = 0
        for giant in giants:
            yield from self._found(line, giant.filled, record, giant.records)
            line, record = giant.filled, giant.records
            yield Giant(giant.address, giant.length, giant.region, giant.encoding)
        yield from self._found(line, scan.filled, record, scan.records_used)
        scan.giants = scan.filled = scan.records_used = 0

    def _found(self, line: int, line_end: int, record: int, record_end: int) -> Iterator[Found]:
        if line == line_end:
            return
        records = self._scan.records + record if self.with_records else None
        yield Found(self._out.view[:line_end][line:], records, record_end - record)


def text_of(encoding: int, unicode: str, data: Any) -> bytes:
    """The text of a string, or of some of its characters, from its bytes in memory."""
    view = ffi.from_buffer(data)
    text = ffi.new("unsigned char[]", 9 * len(view) + _SLACK)
    padded = ffi.new("unsigned char[]", bytes(ffi.buffer(view)) + bytes(_SLACK))
    length = lib.fastdump_text(encoding, UNICODE[unicode], padded, len(view), text)
    return bytes(ffi.buffer(text, length))
