"""``fastdump report``: what fills a source, as one page for a browser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from fastdump.cli.completion import complete_source
from fastdump.cli.options import (
    OrderedCommand,
    complain_of_gaps,
    debuginfod_option,
    opened_memory,
    pause_options,
    rule_options,
    rules_of,
)
from fastdump.outputs import STANDARD_OUTPUT, check_output, write_output
from fastdump.text import printable, size
from fastdump.url import shown

_COUNT = 30  # lines of each table


@click.command(name="report", cls=OrderedCommand)
@click.argument("source", metavar="SOURCE", shell_complete=complete_source)
@click.option(
    "-o",
    "--output",
    metavar="PATH",
    default="report.html",
    show_default=True,
    help="File to write; - is standard output.",
)
@click.option("--no-strings", is_flag=True, help="Do not look for repeated text.")
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@debuginfod_option
@rule_options
@pause_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    source: str,
    output: str,
    no_strings: bool,
    force: bool,
    debuginfod: bool,
    include: Sequence[str],
    exclude: Sequence[str],
    **pausing: Any,
) -> int:
    """Write one HTML page on what fills the memory of SOURCE, a pid or a dump.

    A map of the address space, what pages hold, and what `fastdump why` tells: ledger, modules,
    types, text. The page is complete in itself: it makes no request. It needs Plotly
    (`pip install plotly`).
    """
    from fastdump.report import report
    from fastdump.why import why

    check_output(output, force)
    rules = rules_of(ctx, include, exclude)
    with opened_memory(source, pausing) as memory:
        found = why(
            memory,
            rules=rules,
            count=_COUNT,
            strings=not no_strings,
            sample=True,
            debuginfod=debuginfod,
        )
        page = report(memory, found)
    write_output(output, page, force)
    if output != STANDARD_OUTPUT:
        click.echo(f"{printable(shown(output))}: {size(len(page))}")
    complain_of_gaps(found)
    return found.exit_code
