"""``fastdump why``: what fills the memory, and which module put it there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import click
from click.core import ParameterSource

from fastdump.addresses import short_name
from fastdump.cli.completion import complete_source
from fastdump.cli.options import (
    OrderedCommand,
    complain_of_gaps,
    debuginfod_option,
    json_option,
    opened_memory,
    pause_options,
    rule_options,
    rules_of,
    seconds_of,
    top_option,
)
from fastdump.cli.table import print_table
from fastdump.errors import UsageError
from fastdump.growth import LONG, Series
from fastdump.text import cut, printable, share, size
from fastdump.why import Why, why

_MOST_TEXT = 100


@click.command(name="why", cls=OrderedCommand)
@click.argument("source", metavar="SOURCE", shell_complete=complete_source)
@top_option(10, "Lines of each table.")
@click.option("--no-strings", is_flag=True, help="Do not look for repeated text.")
@json_option
@click.option(
    "--folded", is_flag=True, help="Print lines for flame graphs: module;type;size class and bytes."
)
@click.option(
    "--pprof",
    metavar="FILE",
    help="Write a profile to FILE, for pprof: chunks and bytes by module, type and size class; - "
    "is standard output, which then has nothing else.",
)
@click.option(
    "--save",
    metavar="FILE",
    help="Write the page to FILE too, as JSON with long tables: for fastdump diff; - as "
    "of --pprof.",
)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.option(
    "--every",
    metavar="TIME",
    callback=seconds_of,
    help="Look again after each TIME (10, 60s, 5m, 1h), --count times in all, and tell what grew.",
)
@click.option(
    "--count",
    "samples",
    type=click.IntRange(2, 10_000),
    default=10,
    show_default=True,
    help="Samples of --every.",
)
@debuginfod_option
@rule_options
@pause_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    source: str,
    count: int,
    no_strings: bool,
    as_json: bool,
    folded: bool,
    pprof: str | None,
    save: str | None,
    force: bool,
    every: float | None,
    samples: int,
    debuginfod: bool,
    include: Sequence[str],
    exclude: Sequence[str],
    **pausing: Any,
) -> int:
    """Tell what fills the memory of SOURCE, a pid or a dump, and which module put it there.

    It needs no symbols and no restart, and works on stripped programs. The process is not stopped
    without --pause: while it runs, its heap may change under the walk, and then the page says what
    does not fit.

    \b
    ledger    every resident byte in one bucket
    modules   whose pointers the live chunks of malloc hold, by how sure that is
    types     classes of C++, trait objects of Rust, types of Python
    text      strings that are alike but for numbers: of 256 MiB or more
              estimates, but for --save and --every
    suspects  what stands out, and the command that shows more
    """
    rules = rules_of(ctx, include, exclude)
    if every is None and ctx.get_parameter_source("samples") is not ParameterSource.DEFAULT:
        raise UsageError("--count is how often --every looks", "name both")
    if every is not None and (save or folded or pprof):
        raise UsageError("--every prints no page", "--save, --folded and --pprof are for one look")
    files = [name for name in (save, pprof) if name]
    streamed = bool(files) and _check(files, as_json + folded, force)
    long = bool(save or folded or pprof or as_json or every is not None)

    def look() -> Why:
        with opened_memory(source, pausing) as memory:
            return why(
                memory,
                rules=rules,
                count=LONG if long else count,
                strings=not no_strings,
                sample=not save and every is None,
                pages=as_json or bool(save),
                debuginfod=debuginfod,
            )

    if every is not None:
        return _watch(look, every, samples, count, as_json)
    found = look()
    if files:
        _write(found, save, pprof, force)
    if folded:
        for line in found.folded():
            click.echo(line)
    elif as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    elif not streamed:
        _print(found, count)
    complain_of_gaps(found)
    return found.exit_code


def _check(files: Sequence[str], printed: int, force: bool) -> bool:
    """Check what can be of output files; whether one of them is standard output.

    Args:
        printed: How many things are to be printed besides.
    """
    from fastdump.outputs import STANDARD_OUTPUT, check_output  # 8 ms: pathlib

    streamed = files.count(STANDARD_OUTPUT)
    if streamed and streamed + printed > 1:
        raise UsageError("standard output has room for one of these", "name a FILE")
    for name in files:
        check_output(name, force)
    return streamed > 0


def _write(found: Why, save: str | None, pprof: str | None, force: bool) -> None:
    from fastdump.outputs import write_output  # as above

    if save:
        write_output(save, json.dumps(found.to_json()).encode(), force)
    if pprof:
        from fastdump.pprof import profile

        write_output(pprof, profile(found.stacks(), time.time_ns()), force)


def _watch(look: Callable[[], Why], every: float, samples: int, count: int, as_json: bool) -> int:
    """Look several times; tell what grew so far after each but the first, as JSON at the end."""
    from fastdump.cli.growth_output import print_growth  # 2 ms that one look does without

    series, code = Series(), 0
    first: list[str] = []
    last: list[str] = []

    def tell() -> None:
        problems = dict.fromkeys([*first, *last])
        print_growth(series.grown(), problems, count, series.seconds, as_json=as_json)

    due = time.monotonic()
    try:
        for number in range(samples):
            time.sleep(max(due - time.monotonic(), 0))
            begun = time.monotonic()
            due = begun + every
            page = look()
            series.add(page.to_json(), begun)
            first, last = first if number else page.problems, page.problems
            code = max(code, page.exit_code)
            complain_of_gaps(page)
            del page  # it knows every chunk: the next one needs the room
            if number and not as_json:
                tell()
                click.echo()
    finally:  # the target may be gone, the user may have had enough
        if as_json and len(series) > 1:
            tell()
    return code


def _print(found: Why, count: int) -> None:
    _print_ledger(found)
    if found.modules:
        click.echo()
        _print_modules(found, count)
    if found.types:
        click.echo()
        rows = [
            (
                f"{each.objects:,}",
                size(each.bytes) if each.bytes else "-",
                each.language,
                cut(each.name, _MOST_TEXT),
                printable(short_name(each.module)),
            )
            for each in found.types[:count]
        ]
        print_table(("objects", "bytes", "language", "type", "module"), rows, right=(0, 1))
    if found.templates:
        click.echo()
        texts = [
            (f"{t.strings:,}", size(t.bytes), cut(t.text, _MOST_TEXT))
            for t in found.templates[:count]
        ]
        print_table(("strings", "bytes", found.text_title), texts, right=(0, 1))
    for problem in found.problems:
        click.echo(f"\nnot sure: {printable(problem)}")
    for suspect in found.suspects:
        click.echo(f"\n{printable(suspect.text)}\n  {printable(suspect.command)}")


def _print_ledger(found: Why) -> None:
    rows = [
        (size(bucket.bytes), share(bucket.bytes, found.total), bucket.name)
        for bucket in found.ledger
    ]
    told = f"sum; the kernel says {size(found.rss)}" if found.rss else "sum: what the dump has"
    rows.append((size(found.total), "", told))
    print_table(("bytes", "share", "ledger"), rows, right=(0, 1))


def _print_modules(found: Why, count: int) -> None:
    rows = [
        (
            size(module.bytes),
            share(module.bytes, found.live_bytes),
            f"{module.chunks:,}",
            *(share(length, module.bytes) for length in module.tiers.values()),
            printable(short_name(module.path)),
        )
        for module in found.modules[:count]
    ]
    unowned = found.live_bytes - sum(module.bytes for module in found.modules)
    rows.append((size(unowned), share(unowned, found.live_bytes), "", *[""] * 5, "none found"))
    head = ("bytes", "of live", "chunks", *next(iter(found.modules)).tiers, "module")
    print_table(head, rows, right=range(len(head) - 1))
