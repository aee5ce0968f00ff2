"""The strings that take the most memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastdump._strings import Query, Scanner, Table, Tallied
from fastdump.crew import usual_threads
from fastdump.place import Place
from fastdump.string_search import StringsReport, search

_TABLE_BYTES = 160 << 20
_SAMPLE_TABLE_BYTES = 40 << 20  # of 128 MiB of a heap 10 were enough for no error
_ENTRY_BYTES = 192  # of a table: a cache line, and 128 bytes of text


@dataclass
class Top:
    """The strings that take the most memory."""

    rows: list[Tallied]
    error: int
    report: StringsReport


def top(
    place: Place,
    query: Query,
    count: int,
    *,
    exact: bool = False,
    groups: Sequence[int] | None = None,
    threads: int | None = None,
    every: int = 1,
) -> Top:
    """The *count* strings that take the most bytes of a place.

    Args:
        exact: Equal strings; else those that are alike but for numbers.
        groups: For each region the number of its group: rows are of one group each.
        every: As of :func:`fastdump.sweep.sweep`; the rows are those of what was searched.
    """
    threads = threads or usual_threads()
    room = _TABLE_BYTES if every == 1 else _SAMPLE_TABLE_BYTES
    capacity = 1 << ((room // _ENTRY_BYTES // threads).bit_length() - 1)
    scanners = [Scanner(query, table=Table(capacity, exact, groups)) for _ in range(threads)]
    report = search(place, scanners, every=every)
    tables = [scanner.table for scanner in scanners if scanner.table]
    first = tables[0]
    for table in tables:
        table.settle()
    for table in tables[1:]:
        first.merge(table)
    return Top(first.top(count), first.error, report)
