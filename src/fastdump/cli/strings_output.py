"""What becomes of strings: lines, JSON, a count, a Parquet file, or the list of what takes most."""

from __future__ import annotations

import bisect
import contextlib
import functools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import click

from fastdump import string_search
from fastdump._native import Copier
from fastdump._strings import (
    ENCODING_NAMES,
    TALLIED_TEXT,
    Form,
    Found,
    Giant,
    Query,
    Row,
    Scanner,
    Tallied,
    rows_of,
)
from fastdump.cli.standard_output import write_all
from fastdump.cli.table import print_table
from fastdump.crew import usual_threads
from fastdump.errors import UsageError
from fastdump.hexdump import Hexdump
from fastdump.matches import decode
from fastdump.place import Place, Stream
from fastdump.string_search import StringsReport
from fastdump.text import printable, size
from fastdump.top import top

# A set of as many 64-bit hashes takes about 130 MB.
_MOST_UNIQUE = 2_000_000
# What steers a terminal, by where it can come from: C1 control codes; those in UTF-8, and marks of
# writing direction, by which text looks like other text; ways back to what was written.
_STEERING = {
    "S": rb"[\x80-\x9f]",
    "U": rb"\xc2[\x80-\x9f]|\xd8\x9c|\xe2\x80[\x8e\x8f\xaa-\xae]|\xe2\x81[\xa6-\xa9]",
    "-w": rb"[\r\v\f]",
}


class Wanted(NamedTuple):
    """The options of the command."""

    query: Query
    radix: int = 0
    separator: str = "\n"
    with_name: bool = False
    match: str | None = None
    contains: str | None = None
    ignore_case: bool = False
    unique: bool = False
    count_only: bool = False
    top: int | None = None
    exact: bool = False
    by: str | None = None
    context: int | None = None
    as_json: bool = False
    parquet: str | None = None
    force: bool = False
    threads: int | None = None

    @property
    def plain(self) -> bool:
        """C makes the lines, and nothing needs to be done with them but to write them."""
        return not (
            self.match is not None
            or self.contains is not None
            or self.unique
            or self.context
            or self.as_json
            or self.parquet
        )

    def form(self, place: Place) -> Form:
        name = os.fsencode(f"{place.name}: ") if self.with_name else b""
        return Form(self.radix, name, os.fsencode(self.separator), place.biases)


class Output:
    """Where the strings of the places go, one after the other."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted

    def search(self, place: Place) -> StringsReport:
        raise NotImplementedError

    def finish(self) -> None:
        """After the last place."""

    def scanners(self, place: Place, form: Form | None, with_records: bool) -> list[Scanner]:
        threads = 1 if isinstance(place, Stream) else self.wanted.threads
        return [
            Scanner(self.wanted.query, form, with_records=with_records)
            for _ in range(threads or usual_threads())
        ]


class Lines(Output):
    """As strings(1) prints them."""

    def search(self, place: Place) -> StringsReport:
        write = _writer(self.wanted.query)
        form = self.wanted.form(place)
        copier = Copier(place.memory)

        def handle(found: Found | Giant) -> None:
            if isinstance(found, Found):
                write(found.lines)
                return
            write(string_search.head_of(place, found, form))
            for text in string_search.giant_text(place, found, copier, self.wanted.query.unicode):
                write(text)
            write(form.separator)

        return string_search.search(place, self.scanners(place, form, False), handle)


class Counts(Output):
    """How many there are, over all places."""

    _count = 0

    def search(self, place: Place) -> StringsReport:
        report = string_search.search(place, self.scanners(place, None, False))
        self._count += report.strings
        return report

    def finish(self) -> None:
        click.echo(self._count)


class Records(Output):
    """Strings that are looked at one by one: filtered, shown with context, as JSON, in Parquet."""

    def __init__(
        self, wanted: Wanted, write_rows: Callable[[Place, Found, list[Row]], None] | None
    ):
        super().__init__(wanted)
        self._filter = Filter(wanted)
        self._seen: set[int] = set()
        self._write_rows = write_rows
        self._write = _writer(wanted.query)
        self._dump = functools.cache(lambda digits: Hexdump(digits, squeeze=False))

    def search(self, place: Place) -> StringsReport:
        if self.wanted.context and isinstance(place, Stream):
            raise UsageError("a pipe cannot be read again for --context", "name a file")
        form = self.wanted.form(place)
        if self.wanted.as_json or self._write_rows:  # Arrow wants the texts without a break
            form = Form(separator=b"" if self._write_rows else b"\n")
        copier = Copier(place.memory)

        def handle(found: Found | Giant) -> None:
            if isinstance(found, Giant):
                if found.length > string_search.WHOLE_MOST:
                    part = "last" if isinstance(place, Stream) else "first"
                    click.echo(
                        f"fastdump: the string at {found.address:#x} is {size(found.length)} long: "
                        f"only its {part} {size(string_search.WHOLE_MOST)} are taken",
                        err=True,
                    )
                unicode = self.wanted.query.unicode
                found = string_search.read_giant(place, found, copier, form, unicode)
            self._take(place, found, copier)

        return string_search.search(place, self.scanners(place, form, True), handle)

    def _take(self, place: Place, found: Found, copier: Copier) -> None:
        lines = bytes(found.lines)
        rows = list(self._filter.rows(lines, rows_of(found)))
        if self.wanted.unique:
            rows = [row for row in rows if self._is_new(hash(row.text(lines)))]
        if self._write_rows:
            self._write_rows(place, found, rows)
        elif self.wanted.as_json:
            self._write("".join(self._json(place, row, lines) for row in rows).encode("ascii"))
        elif self.wanted.context:
            for row in rows:
                self._write(row.whole(lines))
                self._write(self._context(place, row, copier))
        else:
            self._write(b"".join(row.whole(lines) for row in rows))

    def finish(self) -> None:
        if len(self._seen) >= _MOST_UNIQUE:
            click.echo(
                f"fastdump: more than {_MOST_UNIQUE:,} different strings: --unique has "
                "forgotten the rest, and some may have been printed again",
                err=True,
            )

    def _is_new(self, key: int) -> bool:
        if key in self._seen:
            return False
        if len(self._seen) < _MOST_UNIQUE:
            self._seen.add(key)
        return True

    def _json(self, place: Place, row: Row, lines: bytes) -> str:
        import json  # 3 ms, for those who ask for it

        region, encoding = place.regions[row.region], ENCODING_NAMES[row.encoding]
        found = {
            "address": f"{row.address:#x}",
            "length": row.length,
            "text": decode(row.text(lines), encoding),
            "encoding": encoding,
            "region": f"{region.start:#x}",
            "path": place.region_name(row.region),
            "label": place.labels[row.region].kind.value,
        }
        if self.wanted.with_name:
            found["source"] = place.name
        return json.dumps(found) + "\n"

    def _context(self, place: Place, row: Row, copier: Copier) -> bytes:
        start, data = place.around(copier, row.address, row.length, self.wanted.context or 0)
        dump = self._dump(16 if start + len(data) > 1 << 32 else 8)
        dump.begin(start, aligned=True)
        lines = b"".join(map(bytes, dump.feed(data))) + bytes(dump.end())
        return b"".join(b"    %b" % line for line in lines.splitlines(keepends=True))


class Filter:
    """--contains and --match."""

    # What looks at more than the characters that it matches must be given one string at a time.
    _LOOKS_AROUND = re.compile(r"(?<!\[)\^|\$|\\[AZBb]|\(\?(?!:)")

    def __init__(self, wanted: Wanted) -> None:
        self._fold = wanted.ignore_case
        self._literal = os.fsencode(wanted.contains) if wanted.contains is not None else None
        if self._fold and self._literal is not None:
            self._literal = self._literal.lower()
        self._regex: re.Pattern[bytes] | None = None
        if wanted.match is not None:
            try:
                flags = re.IGNORECASE if self._fold else 0
                self._regex = re.compile(os.fsencode(wanted.match), flags)
            except (re.error, OverflowError, RecursionError) as error:
                raise UsageError(f"--match {wanted.match}: {error}") from None
            self._jump = not self._LOOKS_AROUND.search(wanted.match)

    def rows(self, lines: bytes, rows: Sequence[Row]) -> Iterable[Row]:
        """Those of the rows that fit."""
        if self._literal is not None:
            rows = list(self._with_literal(lines.lower() if self._fold else lines, rows))
        if self._regex is None:
            return rows
        if self._literal is None and self._jump:
            return self._by_jumps(self._regex, lines, rows)
        search = self._regex.search
        return (row for row in rows if search(row.text(lines)))

    def _with_literal(self, lines: bytes, rows: Sequence[Row]) -> Iterator[Row]:
        literal = self._literal or b""
        ends = [row.line_end for row in rows]
        at = 0
        while (at := lines.find(literal, at)) >= 0:
            number = bisect.bisect_right(ends, at)
            if number == len(rows):
                return
            row = rows[number]
            if literal in row.text(lines):
                yield row
            at = row.line_end

    def _by_jumps(
        self, regex: re.Pattern[bytes], lines: bytes, rows: Sequence[Row]
    ) -> Iterator[Row]:
        """Search all lines at once; what is found may be no string's own, so it is checked."""
        ends = [row.line_end for row in rows]
        at = 0
        while found := regex.search(lines, at):
            number = bisect.bisect_right(ends, found.start())
            if number == len(rows):
                return
            if regex.search(rows[number].text(lines)):
                yield rows[number]
            at = ends[number]


class TopList(Output):
    """What takes the most memory, of each place."""

    def search(self, place: Place) -> StringsReport:
        wanted = self.wanted
        groups = _groups(place, wanted.by)
        found = top(
            place,
            wanted.query,
            wanted.top or 0,
            exact=wanted.exact,
            groups=groups,
            threads=1 if isinstance(place, Stream) else wanted.threads,
        )
        searched = found.report.tally.read + found.report.tally.file
        rows = [self._row(place, row, searched) for row in found.rows]
        if wanted.as_json:
            import json

            for row in rows:
                click.echo(json.dumps({**row, "low_by_at_most": found.error}))
            return found.report
        head = ("bytes", "share", "count", "first at", "in", "text")
        cells = [
            (
                size(row["bytes"]),
                f"{row['share']:.1%}",
                f"{row['count']:,}",
                str(row["address"]).removeprefix("0x"),
                printable(", ".join(row["in"])),
                printable(row["text"]) + ("..." if row["cut"] else ""),
            )
            for row in rows
        ]
        print_table(head, cells, right=(0, 1, 2, 3))
        shown = sum(row["bytes"] for row in rows)
        total = found.report.bytes
        part = f", {shown / total:.0%} of them above" if total else ""
        click.echo(
            f"\n{size(searched)} searched: {found.report.strings:,} strings, {size(total)}{part}; "
            + (f"no total is low by more than {size(found.error)}" if found.error else "all exact")
        )
        return found.report

    def _row(self, place: Place, row: Tallied, searched: int) -> dict[str, Any]:
        names = list(dict.fromkeys(self._name(place, number) for number in row.regions))
        return {
            "bytes": row.length,
            "share": row.length / searched if searched else 0.0,
            "count": row.count,
            "address": f"{row.address:#x}",
            "in": names + (["..."] if row.more else []),
            "text": row.text.decode("utf-8" if "U" in self.wanted.query.encodings else "latin-1",
                                    "replace"),
            "cut": row.text_length > TALLIED_TEXT,
        }  # fmt: skip

    def _name(self, place: Place, number: int) -> str:
        if self.wanted.by == "label":
            return place.labels[number].kind.value
        return place.region_name(number)


def _groups(place: Place, by: str | None) -> list[int] | None:
    if by is None:
        return None
    if by == "region":
        return list(range(len(place.regions)))
    kinds = list(dict.fromkeys(label.kind for label in place.labels))
    return [kinds.index(label.kind) for label in place.labels]


def open_output(wanted: Wanted, stack: contextlib.ExitStack) -> Output:
    """What the options ask for."""
    if wanted.top:
        return TopList(wanted)
    if wanted.count_only:
        return Counts(wanted)
    if wanted.parquet:
        from fastdump.parquet import ParquetOutput

        parquet = stack.enter_context(
            ParquetOutput(wanted.parquet, wanted.force, wanted.query.encodings)
        )
        return Records(wanted, parquet.write)
    return Lines(wanted) if wanted.plain else Records(wanted, None)


def _writer(query: Query) -> Callable[[bytes | memoryview], None]:
    """Writes to standard output; to a terminal nothing of the target's that steers it."""
    sources = {*query.encodings, *(["-w"] if query.whitespace else [])}
    steering = [pattern for source, pattern in _STEERING.items() if source in sources]
    if steering and sys.stdout.isatty():
        pattern = re.compile(b"|".join(steering))
        return lambda data: write_all(pattern.sub(b"?", bytes(data)))
    return write_all
