"""Options that several commands share."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fastdump.errors import FastdumpError, UsageError
from fastdump.gaps import Gaps
from fastdump.selection import Preset, Rule
from fastdump.snapshot import FORK, FREEZE, MOST_UNASKED, NONE, PAUSES, Snapshot
from fastdump.text import printable, size

if TYPE_CHECKING:
    from fastdump.place import Place
    from fastdump.source import Source
    from fastdump.survey import Survey
    from fastdump.sweep import Sweep

Command = TypeVar("Command", bound=Callable[..., Any])
_RULES = "fastdump.rules"


class OrderedCommand(click.Command):
    """Keeps the order of ``--include`` and ``--exclude``, which click gives an option at a time."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        ctx.meta[_RULES] = [p.name for p in order if p.name in ("include", "exclude")]
        return super().parse_args(ctx, args)


def rules_of(ctx: click.Context, include: Sequence[str], exclude: Sequence[str]) -> list[Rule]:
    """The rules in the order of the command line."""
    patterns = {"include": iter(include), "exclude": iter(exclude)}
    return [Rule(name == "include", next(patterns[name])) for name in ctx.meta[_RULES]]


def preset_of(default: Preset, everything: bool) -> Preset:
    return Preset.ALL if everything else default


def selection_options(command: Command) -> Command:
    """What is selected: the same for every command that reads memory."""
    for option in (
        click.option(
            "--exclude",
            multiple=True,
            metavar="RULE",
            help="Leave out what RULE matches.",
        ),
        click.option(
            "--include",
            multiple=True,
            metavar="RULE",
            help="Take in what RULE matches: a label (heap, library, 'shared memory' ...), a path "
            "or its last part with wildcards (libc.so.6, '/usr/lib/*'), permissions (rw-p, ? "
            "for any), or addresses (7f00-7f80). Of several rules the last that matches wins.",
        ),
        click.option("--all", "everything", is_flag=True, help="All that can be read."),
        click.option(
            "--with-libraries",
            is_flag=True,
            help="The writable memory of libraries too, not only what they modified.",
        ),
    ):
        command = option(command)
    return command


def rule_options(command: Command) -> Command:
    """What of a source is looked at, for commands that have one selection to begin with."""
    for option in (
        click.option(
            "--exclude", multiple=True, metavar="RULE", help="Leave out what RULE matches."
        ),
        click.option(
            "--include",
            multiple=True,
            metavar="RULE",
            help="Take in what RULE matches, as of maps.",
        ),
    ):
        command = option(command)
    return command


def top_option(lines: int, help: str) -> Callable[[Command], Command]:
    """How long a table is, as ``count``."""
    return click.option(
        "--top",
        "count",
        type=click.IntRange(1, 1000),
        default=lines,
        show_default=True,
        help=help,
    )


json_option = click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")

swap_option = click.option(
    "--swap/--no-swap",
    default=None,
    help="Read swapped memory, which brings it back into the target's RAM, or leave it out.  "
    "[default: read it while the host and the target's cgroup have room]",
)


debuginfod_option = click.option(
    "--debuginfod",
    is_flag=True,
    help="Fetch debug files of stripped modules from the servers that DEBUGINFOD_URLS names, with "
    "debuginfod-find. Without it no server is ever asked.",
)

_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def seconds_of(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Seconds of ``2s``, ``500ms``, ``5m``, ``1h``, or a plain number."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)(ms|s|m|min|h)?", value, re.ASCII)
    seconds = float(found[1]) * _UNITS[found[2] or "s"] if found else 0.0
    if not 0 < seconds < 1e9:
        raise click.BadParameter(f"{value!r} is no time: try 2s, 500ms or 5m")
    return seconds


def pause_options(command: Command) -> Command:
    """How the target is stopped: the same for every command that can."""
    for option in (
        click.option(
            "--ignore-headroom",
            is_flag=True,
            help="Fork even if the memory that the copy may take (pages written meanwhile) "
            "is not free.",
        ),
        click.option(
            "--max-pause",
            callback=seconds_of,
            metavar="TIME",
            help="End a freeze after TIME (2s, 500ms), and read the rest while the target runs.",
        ),
        click.option(
            "--pause",
            type=click.Choice(PAUSES),
            help="none: the target is not stopped. freeze: it is stopped until all is read. fork: "
            "it is stopped for some 10 to 20 ms a GiB, and a copy-on-write copy of it is read; "
            "where that cannot be, freeze for 2 s at most, which is said. fork!: an error then.  "
            "[default: fork for lz4, core and leaks; else none]",
        ),
    ):
        command = option(command)
    return command


def pause_lines(pause: Mapping[str, Any]) -> Iterator[str]:
    """What a pause came to, from :meth:`Snapshot.as_dict`; nothing if none was asked for."""
    if pause["asked"] == NONE:
        return
    told = pause["kind"]
    if told != NONE:
        seconds = pause["seconds"]
        told += f": {seconds['total'] * 1e3:.1f} ms (stop {seconds['stop'] * 1e3:.1f}"
        if pause["kind"] == FORK:
            told += f", fork {seconds['fork'] * 1e3:.1f}"
        threads = pause["threads"]
        told += f"), {threads} threads" if threads != 1 else "), 1 thread"
    yield f"  pause     {told}"
    if pause["why"]:
        yield f"  pause     {pause['asked']} was asked for: {printable(pause['why'])}"
    without = len(pause["without_registers"])
    if without:
        yield f"  pause     {without} threads wait in the kernel: they have no registers"


@contextlib.contextmanager
def selected(
    source: Source,
    *,
    rules: Sequence[Rule],
    preset: Preset,
    with_libraries: bool,
    swap: bool | None,
) -> Iterator[Place]:
    """What is selected of a source; says so where swapped memory is left out."""
    place = source.place(preset=preset, rules=rules, with_libraries=with_libraries, swap=swap)
    with contextlib.closing(place):
        survey = place.survey
        if survey and survey.swapped and not survey.read_swapped and swap is None:
            warn_swapped(survey)
        yield place


@contextlib.contextmanager
def opened(
    name: str, options: Mapping[str, Any], unasked: str | None = NONE
) -> Iterator[Source | None]:
    """The source that *name* names, a process paused as asked for; None if it is another file.

    A freeze lasts 2 s unless ``--max-pause`` says so: the output may have a slow reader.

    Args:
        options: Of the command. What a pause came to is told with ``stats``; of a command that has
            no such option, with ``--pause``.
        unasked: The pause without ``--pause``, as of :class:`Snapshot`.
    """
    from fastdump.sources import is_pid, open_dump, open_source

    pause = options["pause"] or unasked
    if pause == NONE or not is_pid(name):
        if options["pause"] not in (None, NONE):
            raise UsageError("--pause goes with a pid", "a dump is as it is")
        source = open_source(name) if is_pid(name) else open_dump(name)
        with source or contextlib.nullcontext():
            yield source
        return
    from fastdump.live_source import LiveSource
    from fastdump.process import LiveProcess

    with LiveProcess(int(name)) as process:
        snapshot = Snapshot(
            process,
            pause,
            max_pause=options["max_pause"] or (MOST_UNASKED if pause == FREEZE else None),
            check_memory=not options["ignore_headroom"],
        )
        with snapshot:
            yield LiveSource(snapshot.process, snapshot)
    told: list[str] = []
    if options.get("stats", options["pause"] is not None) or snapshot.pause.why:
        told += pause_lines(snapshot.as_dict())
    if snapshot.ended_early:
        told.append("  pause     it ended before all was read: the rest is not of that moment")
    for line in told:
        click.echo(f"fastdump:{line.replace('  pause    ', ' pause:', 1)}", err=True)


@contextlib.contextmanager
def opened_memory(
    name: str, options: Mapping[str, Any], unasked: str | None = NONE
) -> Iterator[Source]:
    """The same, for commands to which any other file is an error."""
    from fastdump.sources import open_source

    with opened(name, options, unasked) as source:
        yield source or open_source(name)


def complain(error: FastdumpError) -> None:
    """Say what happened and what to try, on two lines."""
    click.echo(f"fastdump: {printable(str(error))}", err=True)
    if error.hint:
        click.echo(f"  hint: {printable(error.hint)}", err=True)


def warn_swapped(survey: Survey) -> None:
    """Say loudly that swapped memory is left out."""
    click.echo(
        f"fastdump: {size(survey.swapped)} are swapped out, and left out: reading them brings "
        f"them back into RAM, and only {size(survey.headroom or 0)} are free\n"
        "  hint: --swap reads them all the same, --no-swap accepts it",
        err=True,
    )


def check_level(ctx: click.Context, param: click.Parameter, value: int) -> int:
    """Of LZ4."""
    if not -65537 <= value <= 12 or value == 0:
        raise click.BadParameter("1 to 12, or negative for acceleration")
    return value


@contextlib.contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, else nothing."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    with Progress(
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def complain_of_gaps(report: Gaps) -> None:
    """Say what could not be read, if that was not expected."""
    if report.loss:
        click.echo(f"fastdump: incomplete: {printable(report.loss)}", err=True)


def stats_of(report: Sweep) -> str:
    """How much was searched, and how fast."""
    tally = report.tally
    searched = tally.read + tally.file
    rate = searched / report.seconds / 1e9 if report.seconds else 0
    known = f", {size(tally.zero + tally.absent)} known zeros" if tally.zero + tally.absent else ""
    return (
        f"searched {size(searched)}{known} in {report.seconds:.3f} s: {rate:.2f} GB/s, "
        f"{report.threads} threads, {report.kernel}"
    )
