"""``fastdump dump``: the main job."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator

import click

from fastdump.cli.completion import complete_pid
from fastdump.cli.options import (
    OrderedCommand,
    check_level,
    complain_of_gaps,
    pause_lines,
    pause_options,
    preset_of,
    progress_bar,
    rules_of,
    selection_options,
    swap_option,
    warn_swapped,
)
from fastdump.dump import FORMATS, DumpReport, default_threads, dump, open_writer
from fastdump.outputs import check_output, created
from fastdump.plan import Plan, make_plan
from fastdump.process import LiveProcess
from fastdump.selection import Preset
from fastdump.snapshot import NONE, Snapshot
from fastdump.survey import Survey
from fastdump.text import printable, size


@click.command(name="dump", cls=OrderedCommand)
@click.argument("pid", type=int, shell_complete=complete_pid)
@click.option(
    "-o",
    "--output",
    metavar="PATH",
    help="File or folder to write; - streams to standard output, s3:// or ssh:// to a server "
    "(core, lz4).  "
    "[default: PID.core.lz4, PID.core, PID.raw, PID.raw-lz4]",
)
@click.option(
    "-f",
    "--format",
    type=click.Choice(list(FORMATS)),
    default="lz4",
    show_default=True,
    help="lz4: an ELF core in LZ4 frames. core: an ELF core for gdb and others. raw: a folder "
    "with one file a region, as dd gives it. raw-lz4: the same, compressed. "
    "null: read only, to measure.",
)
@selection_options
@swap_option
@pause_options
@click.option(
    "--level",
    default=1,
    show_default=True,
    callback=check_level,
    help="LZ4 level as of lz4(1): 1 is fast, 3 to 12 is smaller, negative is faster still.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 256),
    default=None,
    help="Threads that read and compress.  [default: the CPUs, at most 16; one more for LZ4]",
)
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@click.option(
    "--plan", is_flag=True, help="Say what would be read and written; read a small sample only."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report (or plan) as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no report; errors only.")
@click.pass_context
def command(
    ctx: click.Context,
    pid: int,
    output: str | None,
    format: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    everything: bool,
    with_libraries: bool,
    swap: bool | None,
    pause: str | None,
    max_pause: float | None,
    ignore_headroom: bool,
    level: int,
    threads: int | None,
    force: bool,
    plan: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Dump the memory of the live process PID, which does not grow.

    For a core it is stopped for some milliseconds, in which the registers of its threads are read
    and a copy-on-write copy of its memory is made, which is then dumped (--pause fork).

    By default: private writable memory without that of libraries, and what a debugger needs
    besides. Only pages that the process really holds are read; what could not be read is
    reported as a gap, and the exit code is then 3.
    """
    begun = time.perf_counter()
    preset, default_name = FORMATS[format]
    if plan or (pause is None and preset is not Preset.DEBUGGER):
        pause = NONE
    if output is None:
        output = default_name.format(pid=pid)
    if format == "null":
        output = ""
    if output and not plan:
        check_output(output, force)
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(LiveProcess(pid))
        if not plan:  # before the target is stopped: an output may be slow to open
            with created(output):
                writer, name = open_writer(format, output, force=force, level=level)
                stack.callback(writer.abort)  # does nothing once it is whole
        snapshot = stack.enter_context(
            Snapshot(process, pause, max_pause=max_pause, check_memory=not ignore_headroom)
        )
        survey = Survey(
            snapshot.process,
            preset_of(preset, everything),
            rules_of(ctx, include, exclude),
            with_libraries=with_libraries,
            swap=swap,
            threads=snapshot.threads,
        )
        with contextlib.closing(survey):
            if plan:
                planned = threads or default_threads(format)
                _print_plan(make_plan(survey, format, output, planned, level), output, as_json)
                return 0
            if survey.swapped and not survey.read_swapped and swap is None:
                warn_swapped(survey)
            with progress_bar(quiet or as_json) as progress:
                report = dump(
                    survey,
                    snapshot,
                    writer,
                    name,
                    format,
                    threads=threads,
                    begun=begun,
                    progress=progress,
                )
    stream = sys.stderr if output == "-" else sys.stdout
    if as_json:
        print(json.dumps(report.as_dict()), file=stream)
    elif not quiet:
        print("\n".join(_report_lines(report)), file=stream)
    complain_of_gaps(report)
    return report.exit_code


def _print_plan(plan: Plan, output: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(plan.as_dict()))
        return
    print(f"selected   {size(plan.selected)} of addresses")
    print(f"to read    {size(plan.present)} in RAM, {size(plan.zero)} known zeros (not read)")
    if plan.swapped:
        does = "would be read" if plan.read_swapped else "would be left out"
        print(f"swapped    {size(plan.swapped)}, {does}; {size(plan.headroom or 0)} free")
    print(f"to write   about {size(plan.size)} (ratio {plan.ratio} in {size(plan.sampled)})")
    print(f"time       about {plan.seconds} s with {plan.threads} threads, the disk not counted")
    if plan.free is not None:
        fits = "enough" if plan.fits else "NOT enough"
        print(f"free       {size(plan.free)} at {printable(output)}: {fits}")


def _report_lines(report: DumpReport) -> Iterator[str]:
    totals, seconds = report.totals, report.seconds
    copied = totals["read"] + totals["file"]
    if report.output:
        ratio = f", ratio {report.ratio:.2f}" if report.ratio else ""
        yield f"{printable(report.output)}: {size(report.size)}{ratio}"
    yield f"  selected  {size(totals['selected'])}"
    yield f"  read      {size(totals['read'])}"
    for key, text in (
        ("file", "from the mapped files: not in the process's memory"),
        ("zero", "zero pages, known without reading"),
        ("absent", "never touched: zeros"),
        ("clean", "the same in the file on disk, left out"),
    ):
        if totals[key]:
            yield f"  {key:<9} {size(totals[key])} ({text})"
    if report.swapped:
        what = "left out" if report.swapped_left_out else "read back into its RAM"
        yield f"  swapped   {size(report.swapped)} ({what})"
    for reason, length in report.gap_bytes.items():
        yield f"  gap       {size(length)}: {reason}"
    for note in report.notes:
        yield f"  note      {printable(note)}"
    yield from pause_lines(report.pause)
    copying = seconds["copy"]
    yield (
        f"  time      {seconds['total']:.2f} s: survey {seconds['survey']:.2f}, "
        f"layout {seconds['layout']:.2f}, copy {copying:.2f}, finish {seconds['finish']:.2f}"
    )
    if copying and copied:
        rates = [f"copied {copied / copying / 1e9:.2f} GB/s"]
        if seconds["read"]:
            rates.append(f"reading alone {copied / seconds['read'] / 1e9:.2f} GB/s")
        yield f"  speed     {', '.join(rates)}, {report.threads} threads"
    if report.after:
        rss = report.after.rss - report.before.rss
        pte = report.after.pte - report.before.pte
        yield f"  target    VmRSS {rss >> 10:+} KiB, VmPTE {pte >> 10:+} KiB since the start"
