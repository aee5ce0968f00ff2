"""``fastdump search``: patterns in memory, with the exit codes of grep(1)."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click

from fastdump._search import Hit
from fastdump.cli.completion import complete_source
from fastdump.cli.options import (
    OrderedCommand,
    complain_of_gaps,
    opened,
    pause_options,
    preset_of,
    rules_of,
    selected,
    selection_options,
    stats_of,
    swap_option,
)
from fastdump.errors import EXIT_COMPLETE, UsageError, input_failed
from fastdump.hexdump import WIDTH, Hexdump
from fastdump.memory_search import Reader, search_place
from fastdump.patterns import Pattern, parse
from fastdump.place import Place
from fastdump.selection import Preset
from fastdump.sources import open_whole
from fastdump.sweep import Enough
from fastdump.text import printable


@dataclass
class Output:
    """Where matches go: lines, with context or without, or JSON."""

    place: Place
    names: list[str]
    several: bool
    context: int | None
    as_json: bool
    quiet: bool
    most: int | None
    shown: int = 0

    def __post_init__(self) -> None:
        self._reader = Reader(self.place)
        self._dump = Hexdump(16, squeeze=False)

    def take(self, hits: list[Hit]) -> None:
        """More matches.

        Raises:
            Enough: They are as many as are wanted.
        """
        if self.most is not None:
            hits = hits[: self.most - self.shown]
        self.shown += len(hits)
        if not self.quiet:
            show = self._json if self.as_json else self._lines
            sys.stdout.write("".join(map(show, hits)))
            sys.stdout.flush()
        if self.shown == self.most:
            raise Enough

    def _json(self, hit: Hit) -> str:
        region = self.place.regions[hit.region]
        start, data = self._reader.around(hit, self.context or 0, self.context or 0)
        found = {
            "address": f"{hit.address:#x}",
            "length": hit.length,
            "pattern": self.names[hit.number],
            "bytes": data[hit.address - start :][: hit.length].hex(),
            "region": f"{region.start:#x}",
            "path": self.place.region_name(hit.region),
            "label": self.place.labels[hit.region].kind.value,
        }
        if self.context is not None:
            found["context"] = {"address": f"{start:#x}", "bytes": data.hex()}
        return json.dumps(found) + "\n"

    def _lines(self, hit: Hit) -> str:
        name = printable(self.place.region_name(hit.region))
        label = self.place.labels[hit.region].kind.value
        words = [f"{hit.address:x}", name if name == label else f"{name} ({label})"]
        if self.several:
            words.append(printable(self.names[hit.number]))
        if self.context is None:
            part = hit._replace(length=min(hit.length, WIDTH))
            _, data = self._reader.around(part, 0, WIDTH - part.length)
            words.append(self._hexdump(hit.address, data, False)[0].partition("  ")[2])
            return "  ".join(words) + "\n"
        start, data = self._reader.around(hit, self.context, self.context)
        lines = self._hexdump(start, data, True)
        return "  ".join(words) + "\n" + "".join(f"    {line}\n" for line in lines)

    def _hexdump(self, address: int, data: bytes, aligned: bool) -> list[str]:
        dump = self._dump
        dump.begin(address, aligned=aligned)
        return b"".join([*map(bytes, dump.feed(data)), dump.end()]).decode("ascii").splitlines()


@click.command(name="search", cls=OrderedCommand)
@click.argument("source", shell_complete=complete_source)
@click.argument("patterns", metavar="[PATTERN]...", nargs=-1)
@click.option(
    "-f",
    "--file",
    "files",
    multiple=True,
    type=click.File("rb"),
    metavar="FILE",
    help="More patterns, one a line.",
)
@click.option("-i", "--ignore-case", is_flag=True, help="ASCII letters of text in both cases.")
@click.option(
    "-C",
    "--context",
    type=click.IntRange(0, 1 << 20),
    metavar="N",
    help="Show N bytes before and behind each match, as hexdump -C does.",
)
@click.option("-c", "--count", "count_only", is_flag=True,
              help="Print how many matches there are, a line for each pattern.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each match.")
@click.option("-m", "--max-count", "most", type=click.IntRange(1), metavar="N",
              help="Stop after N matches.")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Print nothing, and stop at the first match.")
@click.option(
    "--align",
    type=click.IntRange(1),
    default=1,
    metavar="N",
    help="Only matches at addresses that are multiples of N.",
)
@click.option(
    "--yara",
    "rules_file",
    type=click.Path(exists=True, dir_okay=False),
    metavar="RULES",
    help="The patterns of this file of YARA rules that match. Needs yara-x.",
)
@selection_options
@swap_option
@pause_options
@click.option(
    "--threads",
    type=click.IntRange(1, 256),
    default=None,
    help="Threads that read and search.  [default: the CPUs, at most 16]",
)
@click.option(
    "--stats", is_flag=True, help="Say at the end, on standard error, how much and how fast."
)
@click.pass_context
def command(ctx: click.Context, /, source: str, patterns: tuple[str, ...], **options: Any) -> int:
    """Find patterns in the memory of a live process (SOURCE is its pid), of a core or a dump, or
    in any other file: every place of each, with its address.

    \b
    PATTERN  text            the bytes of its UTF-8; text: before it if it looks like one of these
             u16:text        the same as UTF-16, little endian
             hex:de ad ?? e? bytes; ? is any digit
             u32:1234        a number: u8 i8 uint16 int16 u32 i32 u64 i64 f32 f64
             ptr:ADDRESS     aligned pointers to it; ptr:START-END, ptr:START+LENGTH: into it;
                             ptr:NAME: into the regions of that name (libc.so.6, [heap])
             regex:...       a regular expression of Python, over bytes

    Exit code 0: found; 1: nothing found; 3: memory could not be read, so that there may be more.
    """
    options["rules"] = rules_of(ctx, options.pop("include"), options.pop("exclude"))
    options["preset"] = preset_of(Preset.DATA, options.pop("everything"))
    names = [*patterns, *(line for file in options["files"] for line in _lines_of(file))]
    wanted = [parse(name, options["ignore_case"]) for name in dict.fromkeys(names)]
    if options["rules_file"]:
        if wanted or options["align"] > 1 or options["ignore_case"]:
            raise UsageError("--yara takes no PATTERN, --align or --ignore-case")
    elif not wanted:
        raise UsageError(
            "no PATTERN", "name what to search for; fastdump search --help has the kinds"
        )
    if options["count_only"] and (options["as_json"] or options["most"] or options["quiet"]):
        raise UsageError("--count cannot be combined with --json, --max-count or --quiet")
    with _opened(source, options) as place:
        return _search(place, wanted, options)


def _lines_of(file: Any) -> Iterator[str]:
    try:
        lines = file.read().splitlines()
    except OSError as error:
        raise input_failed(file.name, error) from None
    return (os.fsdecode(line) for line in lines if line)


def _search(place: Place, wanted: list[Pattern], options: dict[str, Any]) -> int:
    output = Output(
        place,
        [pattern.text for pattern in wanted],
        len(wanted) != 1,
        options["context"],
        options["as_json"],
        options["quiet"],
        1 if options["quiet"] else options["most"],
    )
    handle = None if options["count_only"] else output.take
    if options["rules_file"]:
        from fastdump import yara

        searcher = yara.RulesSearcher(yara.compile_rules(options["rules_file"]))
        output.names = searcher.names
        report = yara.search_rules(place, searcher, handle)
    else:
        report = search_place(
            place, wanted, handle, align=options["align"], threads=options["threads"]
        )
    if options["count_only"]:
        for name, count in zip(output.names, report.counts, strict=True):
            click.echo(f"{count}  {printable(name)}" if output.several else count)
    if options["stats"]:
        click.echo(f"{stats_of(report)}; {report.matches:,} matches", err=True)
    if output.shown == output.most:
        return EXIT_COMPLETE  # it has all that was asked for
    complain_of_gaps(report)
    return report.exit_code


@contextlib.contextmanager
def _opened(source: str, options: dict[str, Any]) -> Iterator[Place]:
    """The place that a SOURCE names: a process, a core, a dump, or a file."""
    names = ("rules", "preset", "with_libraries", "swap")
    with opened(source, options) as dump:
        if dump:
            with selected(dump, **{name: options[name] for name in names}) as place:
                yield place
            return
    with contextlib.closing(open_whole(source)) as place:
        yield place
