"""The Python API of strings: one by one, or as columns."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from fastdump import _native
from fastdump._native import Copier
from fastdump._strings import (
    ENCODING_NAMES,
    RECORD,
    Form,
    Found,
    Giant,
    Query,
    Row,
    Scanner,
    raw_records,
)
from fastdump.labels import Label
from fastdump.place import Place
from fastdump.region import Region
from fastdump.selection import Preset, Rule
from fastdump.source import Source
from fastdump.sources import attach, open_dump, open_whole
from fastdump.string_search import read_giant
from fastdump.sweep import LEAST_PIECE, missed


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


class Batch:
    """Strings in a row, as columns; made without a Python object for each.

    Attributes:
        text: The texts of all, one after the other, without separators.
    """

    def __init__(self, place: Place, found: Found, query: Query) -> None:
        self.place = place
        self.text = bytes(found.lines)
        self._query = query
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
        from fastdump.parquet import columns_of

        return columns_of(self._records, self._base)

    def to_arrow(self) -> Any:
        """A ``pyarrow.RecordBatch``: address, length, text, encoding, region, label.

        ``text`` is a string, of 8-bit encodings and UTF-8 bytes. Needs PyArrow and NumPy.
        """
        from fastdump.parquet import record_batch

        return record_batch(self.place, self.to_numpy(), self.text, self._query.encodings)


def decode(text: bytes, encoding: str) -> str:
    """Text of a string as Python has it: 8-bit characters are taken for Latin-1."""
    return text.decode("utf-8" if encoding == "U" else "latin-1", "replace")


@contextlib.contextmanager
def opened(
    source: int | str | os.PathLike[str] | Source | Place,
    *,
    rules: Sequence[Rule] = (),
    preset: Preset = Preset.DATA,
    with_libraries: bool = False,
    swap: bool | None = None,
) -> Iterator[Place]:
    """A place to search: of a pid, of a core, a dump or any other file by its path, of a source.

    Raises:
        SourceGone, NotPermitted, UsageError: As ``fastdump.attach``, or the file cannot be read,
            or is a pipe, a device, or one of /proc.
        CorruptDump: The core or dump cannot be understood.
    """
    if isinstance(source, Place):
        yield source
        return
    with contextlib.ExitStack() as stack:
        found: Source | None
        if isinstance(source, Source):
            found = source
        elif isinstance(source, int):
            found = stack.enter_context(attach(source))
        else:
            found = open_dump(os.fspath(source))
            if found:
                stack.enter_context(found)
        if found:
            place = found.place(
                preset=preset, rules=rules, with_libraries=with_libraries, swap=swap
            )
        else:
            place = open_whole(os.fspath(source))  # type: ignore[arg-type]
        yield stack.enter_context(contextlib.closing(place))


def batches(
    source: int | str | os.PathLike[str] | Source | Place,
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
        source: A pid, the path of a core, a dump or any other file, or one that is open.
        min_length: Characters.
        encodings: As ``strings -e``: ``s S b l B L``, or ``U`` for UTF-8.
        rules, preset, with_libraries, swap: What is searched of a process: see :class:`Survey`.

    Raises:
        SourceGone: The target exited or called exec.
        NotPermitted: The kernel does not let us read it.
        UsageError: There is no such file, or encoding.

    Warns:
        IncompleteWarning: When all was searched, of memory that could not be read.
    """
    query = Query(min_length, tuple(encodings), whitespace)
    with opened(
        source, rules=rules, preset=preset, with_libraries=with_libraries, swap=swap
    ) as place:
        scanner = Scanner(query, Form(separator=b""), with_records=True)
        copier = Copier(place.memory)
        try:
            for piece in place.pieces(itertools.repeat(LEAST_PIECE)):
                for found in scanner.scan(
                    place.memory, place.batches(piece.slices), piece.start, piece.end
                ):
                    if isinstance(found, Giant):
                        found = read_giant(place, found, copier, Form(separator=b""), query.unicode)
                    yield Batch(place, found, query)
            place.check()
        except _native.MemoryGone:
            raise place.gone() from None
        missed(place, [scanner]).warn()


def strings(
    source: int | str | os.PathLike[str] | Source | Place, **options: Any
) -> Iterator[Match]:
    """The strings of *source*, one by one; the options are those of ``fastdump.batches``.

    >>> for match in fastdump.strings(pid, min_length=8):  # doctest: +SKIP
    ...     print(f"{match.address:x}", match.text)
    """
    for batch in batches(source, **options):
        yield from batch
