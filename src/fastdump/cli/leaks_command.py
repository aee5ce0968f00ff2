"""``fastdump leaks``: the chunks of malloc that nothing leads to any more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from fastdump.addresses import short_name
from fastdump.cli.completion import complete_source
from fastdump.cli.options import (
    complain_of_gaps,
    debuginfod_option,
    json_option,
    opened_memory,
    pause_options,
    top_option,
)
from fastdump.cli.table import print_table
from fastdump.leaks import Leaks, leaks
from fastdump.text import cut, printable, share, size, suggested

_MOST_TEXT = 60


@click.command(name="leaks")
@click.argument("source", metavar="SOURCE", shell_complete=complete_source)
@top_option(10, "Lines of the table.")
@json_option
@debuginfod_option
@pause_options
def command(source: str, count: int, as_json: bool, debuginfod: bool, **options: Any) -> int:
    """Tell which chunks of glibc's malloc nothing in SOURCE, a pid or a dump, leads to any more.

    A chunk is kept by any word that points into it, in registers, in stacks, in thread-local
    storage, in the data of modules, in other private memory, or in a chunk that is kept. The rest
    leaked: directly, or indirectly, if another leaked chunk points to it.

    Unless --pause says otherwise a process is copied by a fork, else frozen for 2 s at most, else
    read as it runs: the output says which. Memory that grows need not be leaked: what a program
    keeps and never uses again is reachable. fastdump why SOURCE tells what that is.
    """
    with opened_memory(source, {**options, "stats": False}, unasked=None) as memory:
        found = leaks(memory, debuginfod=debuginfod)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    else:
        _print(found, count)
    complain_of_gaps(found)
    return found.exit_code


def _print(found: Leaks, count: int) -> None:
    totals = (
        ("live", found.live),
        ("reachable", found.reachable),
        ("leaked directly", found.direct),
        ("leaked indirectly", found.indirect),
    )
    if found.pause:
        click.echo(f"{_PAUSES[found.pause]}\n")
    rows = [
        (f"{each.chunks:,}", size(each.bytes), share(each.bytes, found.live.bytes), name)
        for name, each in totals
    ]
    print_table(("chunks", "bytes", "of live", "chunks of malloc"), rows, right=(0, 1, 2))
    if found.rows:
        click.echo()
        leaked = [
            (
                size(row.bytes),
                f"{row.direct.chunks:,}",
                f"{row.indirect.chunks:,}",
                f"{row.size:,}" if row.size else "any",
                f"{row.example:x}",
                cut(row.type, _MOST_TEXT) or "-",
                printable(short_name(row.module)) or "-",
            )
            for row in found.rows[:count]
        ]
        head = ("leaked", "direct", "indirect", "size", "example", "type", "module")
        print_table(head, leaked, right=range(5))
    if len(found.rows) > count:
        rest = found.rows[count:]
        click.echo(
            f"{len(rest):,} more rows, {size(sum(row.bytes for row in rest))}: --top, --json"
        )
    for problem in found.problems:
        click.echo(f"\nnot sure: {printable(problem)}")
    for note in found.notes:
        click.echo(f"\n{printable(note)}")
    for text, command in _next(found):
        click.echo(f"\n{text}\n  {printable(command)}")


_PAUSES = {
    "fork": "Read was a copy of the process, by fork.",
    "freeze": "The process was frozen while it was read.",
    "none": "The process ran while it was read.",
}


def _next(found: Leaks) -> Iterator[tuple[str, str]]:
    """Sentences, each with the command that shows more."""
    name = found.name
    if found.rows:
        command = suggested("hexdump", name, f"{found.rows[0].example:x} --follow-pointers")
        yield "What is in one of the first row:", command
    reachable = found.reachable.bytes
    kept = f"{size(reachable)}, {share(reachable, found.live.bytes)}, are reachable"
    yield f"{kept}: memory may grow there too. What it holds:", suggested("why", name)
    if found.pause:
        yield "What grows, reachable or not:", suggested("why", name, "--every 60s")
    else:
        yield "What grew, reachable or not, up to a later dump:", suggested("diff", name, "LATER")
