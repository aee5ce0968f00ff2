"""``fastdump strings``: what strings(1) finds, in the memory of a process or a dump."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import click

from fastdump._strings import MOST_LENGTH, Query
from fastdump.cli.completion import complete_source
from fastdump.cli.options import (
    OrderedCommand,
    complain,
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
from fastdump.cli.strings_output import Wanted, open_output
from fastdump.errors import FastdumpError, OutputFailed, UsageError
from fastdump.place import Place, Stream, WholeFile, open_file, tells_its_size
from fastdump.selection import Preset
from fastdump.sources import open_whole
from fastdump.string_search import WHOLE_MOST
from fastdump.text import size
from fastdump.url import is_url

_STANDARD_INPUT = "{standard input}"  # as strings(1) calls it
_RADIX = {"x": 16, "d": 10, "o": 8}
_UNICODE = {
    "d": "default",
    "l": "locale",
    "x": "hex",
    "e": "escape",
    "h": "highlight",
    "i": "invalid",
}
_COUNT = re.compile(r"-[0-9]+")
_NUMBER = re.compile(r"0x[0-9a-f]+|[0-9]+", re.ASCII)
_WANTED: tuple[str, ...] = (
    "separator",
    "with_name",
    "match",
    "contains",
    "ignore_case",
    "unique",
    "count_only",
)
_WANTED += ("top", "exact", "by", "context", "as_json", "parquet", "force", "threads")


class _StringsCommand(OrderedCommand):
    """Takes ``-8`` for ``-n 8``, as strings(1) does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options = [p for p in self.params if isinstance(p, click.Option) and not p.is_flag]
        valued = {name for option in options for name in option.opts}
        short, is_value = [], False
        for index, arg in enumerate(args):
            if is_value:  # of the option before, also where it looks like a length: --contains -1
                short.append(arg)
                is_value = False
            elif arg == "--":
                short += args[index:]
                break
            else:
                short.append(f"-n{arg[1:]}" if _COUNT.fullmatch(arg) else arg)
                is_value = _wants_value(arg, valued)
        return super().parse_args(ctx, short)


def _wants_value(arg: str, valued: set[str]) -> bool:
    """Whether the next argument is its value: of ``--match``, ``-s``, ``-fs``, not of ``-tx``."""
    if arg[:1] != "-" or arg[1:2] == "-":
        return arg in valued
    first = next((at for at, letter in enumerate(arg) if f"-{letter}" in valued), 0)
    return 0 < first == len(arg) - 1


def _length(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """As strtoul(3) with base 0: ``0x10`` and ``010`` are numbers too."""
    text = value.lower()
    base = 16 if text.startswith("0x") else 8 if text.startswith("0") else 10
    try:
        number = int(text, base) if _NUMBER.fullmatch(text) else 0
    except ValueError:  # 08
        number = 0
    if not 1 <= number <= MOST_LENGTH:
        raise click.BadParameter(f"{value!r} is no number from 1 to {MOST_LENGTH}")
    return number


def _encodings(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> list[str]:
    names = [name for text in value for name in text.split(",")]
    for name in names:
        if name not in ("s", "S", "b", "l", "B", "L"):
            raise click.BadParameter(f"{name!r} is none of s, S, b, l, B, L")
    return list(dict.fromkeys(names))


def _unicode(ctx: click.Context, param: click.Parameter, value: str) -> str:
    name = _UNICODE.get(value, value)
    if name not in _UNICODE.values():
        raise click.BadParameter(f"{value!r} is none of {', '.join(_UNICODE.values())}")
    return name


@click.command(name="strings", cls=_StringsCommand)
@click.argument("sources", metavar="[SOURCE]...", nargs=-1, shell_complete=complete_source)
@click.option(
    "-n",
    "--bytes",
    "min_length",
    metavar="NUMBER",
    default="4",
    show_default=True,
    callback=_length,
    help="Characters that a string must have; -8 is short for -n 8.",
)
@click.option(
    "-t",
    "--radix",
    type=click.Choice(list(_RADIX)),
    help="Print the address of each string: x hexadecimal, d decimal, o octal. Of a file that "
    "is no core, its offset.",
)
@click.option(
    "--file-offsets",
    is_flag=True,
    help="With -t, of a core or a dump: the offset of each string in the file (of a .core.lz4, in "
    "what lz4 -d makes of it), not its address.",
)
@click.option("-o", "octal", is_flag=True, help="The same as -t o.")
@click.option(
    "-e",
    "--encoding",
    "encodings",
    multiple=True,
    metavar="ENCODINGS",
    default=("s",),
    callback=_encodings,
    help="s 7-bit, S 8-bit, l and b 16-bit (little, big endian), L and B 32-bit; several in one "
    "pass with commas (s,l).  [default: s]",
)
@click.option(
    "-U",
    "--unicode",
    metavar="HOW",
    default="default",
    callback=_unicode,
    help="UTF-8 is printable as well, and shown as it is (locale), as <0x...> (hex), as \\u... "
    "(escape), or that in red (highlight); invalid: it ends a string.",
)
@click.option("-w", "--include-all-whitespace", "whitespace", is_flag=True,
              help="Line breaks and the like are printable too.")  # fmt: skip
@click.option("-s", "--output-separator", "separator", metavar="TEXT", default="\n",
              help="Put TEXT behind each string, not a line break.")  # fmt: skip
@click.option("-f", "--print-file-name", "with_name", is_flag=True,
              help="Print the SOURCE before each string.")  # fmt: skip
@click.option("-a", "--all-bytes", is_flag=True, hidden=True, help="For strings(1): ignored.")
@click.option(
    "--match",
    metavar="REGEX",
    help="Only strings in which this regular expression (of Python) is found.",
)
@click.option("--contains", metavar="TEXT", help="Only strings that contain TEXT; fast.")
@click.option("-i", "--ignore-case", is_flag=True, help="For --match and --contains.")
@click.option("--unique", is_flag=True, help="Each string once: where it is found first.")
@click.option("-c", "--count", "count_only", is_flag=True, help="Print how many there are.")
@click.option(
    "--top",
    type=click.IntRange(1, 100_000),
    metavar="N",
    help="What fills the memory: the N strings that take the most bytes in all, those that are "
    "alike but for numbers taken as one.",
)
@click.option("--exact", is_flag=True, help="With --top: only equal strings are taken as one.")
@click.option(
    "--by",
    type=click.Choice(["region", "label"]),
    help="With --top: count strings of each region, or label, apart.",
)
@click.option(
    "--context",
    type=click.IntRange(1, 1 << 20),
    metavar="N",
    help="Show the string and N bytes before and behind it as hexdump -C does.",
)
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each string (or row).")
@click.option(
    "--parquet",
    metavar="FILE",
    help="Write a Parquet file: address, length, text, encoding, region, label. Needs PyArrow.",
)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
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
def command(ctx: click.Context, /, sources: tuple[str, ...], **options: Any) -> int:
    """Print the printable strings in the memory of a live process (SOURCE is its pid), of a core
    or a dump, or in any other file: those that strings(1) finds, in the same order, with their
    addresses.

    Nothing is written to a disk, the process is not stopped and does not grow. By default its
    private writable memory is searched, without that of libraries. `--top 20` tells what fills it.
    """
    if not sources:
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError("no SOURCE", "name a pid, a dump or a file; - is standard input")
        sources = ("-",)
    options["rules"] = rules_of(ctx, options.pop("include"), options.pop("exclude"))
    options["preset"] = preset_of(Preset.DATA, options.pop("everything"))
    radix = 8 if options.pop("octal") else _RADIX.get(options.pop("radix") or "", 0)
    unicode = options.pop("unicode")
    encodings = options.pop("encodings")
    if unicode == "invalid":  # it ends a string: so it is as 7-bit
        encodings, unicode = ["s"], "default"
    elif unicode != "default":
        encodings = ["U"]
    if unicode == "highlight" and not sys.stdout.isatty():
        unicode = "escape"
    query = Query(
        options.pop("min_length"),
        tuple(encodings),
        options.pop("whitespace"),
        "locale" if unicode == "default" else unicode,
    )
    wanted = Wanted(query=query, radix=radix, **{k: options[k] for k in _WANTED if k in options})
    _check(wanted)
    code = 0
    with contextlib.ExitStack() as stack:
        output = open_output(wanted, stack)
        for source in sources:
            try:
                with _opened(source, options) as place:
                    report = output.search(place)
                code = code or report.exit_code
                if options["stats"]:
                    found = f"{report.strings:,} strings, {size(report.bytes)}"
                    click.echo(f"{stats_of(report)}; {found}", err=True)
                complain_of_gaps(report)
            except FastdumpError as error:
                if len(sources) == 1 or isinstance(error, OutputFailed):
                    raise
                complain(error)
                code = code or error.exit_code
        output.finish()
    return code


def _check(wanted: Wanted) -> None:
    """Options that make no sense together."""
    ways = [
        name
        for name, given in (
            ("--top", wanted.top),
            ("--count", wanted.count_only),
            ("--parquet", wanted.parquet),
            ("--context", wanted.context),
        )
        if given
    ]
    if len(ways) > 1:
        raise UsageError(f"{ways[0]} and {ways[1]} cannot be combined")
    if wanted.as_json and ways and ways[0] != "--top":
        raise UsageError(f"--json and {ways[0]} cannot be combined")
    if not wanted.top and (wanted.exact or wanted.by):
        raise UsageError(f"--{'exact' if wanted.exact else 'by'} goes with --top")
    chosen = wanted.contains is not None or wanted.match is not None
    if wanted.ignore_case and not chosen:
        raise UsageError("--ignore-case goes with --match and --contains")
    if (wanted.top or wanted.count_only) and (chosen or wanted.unique):
        raise UsageError(f"{ways[0]} takes all strings: it cannot be combined with a filter")


@contextlib.contextmanager
def _opened(source: str, options: dict[str, Any]) -> Iterator[Place]:
    """The place that a SOURCE names: a process, a core, a dump, a file, or a pipe."""
    names = ("rules", "preset", "with_libraries", "swap")
    with contextlib.nullcontext() if source == "-" else opened(source, options) as dump:
        if dump:
            with selected(dump, **{name: options[name] for name in names}) as place:
                if options["file_offsets"]:
                    if dump.format == "process":
                        raise UsageError(
                            "a process has no file offsets", "its addresses are printed"
                        )
                    place.print_file_offsets()
                yield place
            return
    if is_url(source):
        with contextlib.closing(open_whole(source)) as place:
            yield place
        return
    fd, name = (os.dup(0), _STANDARD_INPUT) if source == "-" else (open_file(source), source)
    # Standard input may begin anywhere.
    if os.fstat(fd).st_size and tells_its_size(fd) and not os.lseek(fd, 0, os.SEEK_CUR):
        with contextlib.closing(WholeFile.of(name, fd)) as place:
            yield place
        return
    with open(fd, "rb", buffering=0) as file:
        yield Stream(name, WHOLE_MOST, file)
