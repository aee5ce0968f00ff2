"""``fastdump extract``: a dump in another format, or ranges of memory as plain bytes."""

from __future__ import annotations

import contextlib
import json
import os
import sys

import click

from fastdump.addresses import ranges_of
from fastdump.cli.completion import complete_region, complete_source
from fastdump.cli.options import check_level, progress_bar
from fastdump.dumped import Dumped
from fastdump.errors import EXIT_COMPLETE, EXIT_GAPS, UsageError, output_failed
from fastdump.extract import extract, write_ranges
from fastdump.outputs import STANDARD_OUTPUT, check_output, created, open_output
from fastdump.source import Source
from fastdump.sources import open_source
from fastdump.text import printable, size
from fastdump.url import shown

_SUFFIXES = {"core": ".core", "lz4": ".core.lz4", "raw": ".raw", "raw-lz4": ".raw-lz4"}
_DEFAULTS = {"lz4": "core", "core": "lz4", "raw": "lz4", "raw-lz4": "lz4"}


@click.command(name="extract")
@click.argument("source", shell_complete=complete_source)
@click.argument("ranges", metavar="[RANGE]...", nargs=-1, shell_complete=complete_region)
@click.option(
    "-f",
    "--format",
    type=click.Choice(list(_SUFFIXES)),
    help="Of the new dump.  [default: lz4; of a .core.lz4, core]",
)
@click.option(
    "-o",
    "--output",
    metavar="PATH",
    help="File or folder to write; - is standard output.  [default: the SOURCE's name with .core, "
    ".core.lz4, .raw or .raw-lz4; of a RANGE, standard output]",
)
@click.option(
    "--level",
    default=1,
    show_default=True,
    callback=check_level,
    help="LZ4 level as of lz4(1): 1 is fast, 3 to 12 is smaller, negative is faster still.",
)
@click.option("--threads", type=click.IntRange(1, 256), help="Threads that unpack and pack.")
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no report; errors only.")
def command(
    source: str,
    ranges: tuple[str, ...],
    format: str | None,
    output: str | None,
    level: int,
    threads: int | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Write the dump SOURCE in another format, or the bytes of each RANGE of a dump or a process.

    A RANGE is ADDRESS+LENGTH, START-END, or the name of a region, as for hexdump. Nothing is lost
    on the way: regions, labels and gaps go along. What a RANGE has no bytes of is written as
    zeros, said so, and the exit code is 3.
    """
    with open_source(source) as found:
        if ranges:
            if format:
                raise UsageError("a RANGE is plain bytes: it has no --format")
            return _write_ranges(found, ranges, output or STANDARD_OUTPUT, force)
        if not isinstance(found, Dumped):
            raise UsageError("SOURCE is a process: extract reads dumps", "dump writes them")
        format = format or _DEFAULTS[found.format]
        output = output or _default_name(source) + _SUFFIXES[format]
        if output == STANDARD_OUTPUT and format not in ("core", "lz4"):
            raise UsageError(f"--format {format} is a folder", "name it with -o")
        check_output(output, force)
        with progress_bar(quiet or as_json) as progress:
            report = extract(
                found, format, output, force=force, level=level, threads=threads, progress=progress
            )
    stream = sys.stderr if output == STANDARD_OUTPUT else sys.stdout
    if as_json:
        lost = [[f"{gap.start:#x}", f"{gap.end:#x}", gap.reason] for gap in report.lost]
        told = {"output": shown(output), "format": format, "content": report.content}
        told |= {"size": report.size, "seconds": report.seconds, "lost": lost}
        print(json.dumps(told), file=stream)
    elif not quiet:
        rate = report.content / report.seconds / 1e9 if report.seconds else 0
        print(
            f"{printable(shown(output))}: {size(report.size)} of {size(report.content)}, "
            f"{report.seconds:.2f} s, {rate:.2f} GB/s",
            file=stream,
        )
    if report.lost:
        length = sum(gap.end - gap.start for gap in report.lost)
        click.echo(
            f"fastdump: incomplete: {size(length)} of {printable(shown(source))} are lost", err=True
        )
    return report.exit_code


def _write_ranges(source: Source, texts: tuple[str, ...], output: str, force: bool) -> int:
    ranges = [found for text in texts for found in ranges_of(text, source)]
    check_output(output, force)
    with contextlib.ExitStack() as stack:
        with created(output):
            place = open_output(output, force)
            stack.callback(place.abort)  # does nothing once it is whole
        try:
            stream = place.stream()
            gaps = write_ranges(source, ranges, stream.write)
            stream.flush()
            place.commit()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise output_failed(shown(output), error) from None
    for gap in gaps:
        click.echo(
            f"fastdump: {gap.start:x}-{gap.end:x}: {printable(gap.reason)}: zeros instead", err=True
        )
    return EXIT_GAPS if gaps else EXIT_COMPLETE


def _default_name(source: str) -> str:
    """The name of a dump without what its format has added."""
    name = os.path.basename(os.path.normpath(shown(source)))
    for suffix in sorted(_SUFFIXES.values(), key=len, reverse=True):
        if name.endswith(suffix) and name != suffix:
            return name[: -len(suffix)]
    return name
