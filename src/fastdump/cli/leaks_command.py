"""``fastdump leaks``: the chunks of malloc that nothing leads to any more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from fastdump.addresses import short_name
from fastdump.cli.completion import complete_source
from fastdump.cli.options import complain_of_gaps, opened, pause_options
from fastdump.cli.table import print_table
from fastdump.errors import UsageError
from fastdump.leaks import Count, Leaks, leaks
from fastdump.text import printable, size

_MOST_TEXT = 60


@click.command(name="leaks")
@click.argument("source", metavar="SOURCE", shell_complete=complete_source)
@click.option(
    "--top",
    "count",
    type=click.IntRange(1, 1000),
    default=10,
    show_default=True,
    help="Lines of the table.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
@pause_options
def command(source: str, count: int, as_json: bool, **options: Any) -> int:
    """Tell which chunks of glibc's malloc nothing in SOURCE, a pid or a dump, leads to any more.

    A chunk is kept by any word that points into it, in registers, in stacks, in thread-local
    storage, in the data of modules, in other private memory, or in a chunk that is kept. The rest
    leaked: directly, or indirectly, if another leaked chunk points to it.

    Unless --pause says otherwise a process is copied by a fork, else frozen for 2 s at most, else
    read as it runs: the output says which. Memory that grows need not be leaked: what a program
    keeps and never uses again is reachable. fastdump why SOURCE tells what that is.
    """
    with opened(source, {**options, "stats": False}, unasked=None) as dump:
        if dump is None:
            raise UsageError(f"{source} is no core and no dump", "fastdump dump PID makes one")
        found = leaks(dump)
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
        (f"{each.chunks:,}", size(each.bytes), _share(each, found.live), name)
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
                _cut(row.type) or "-",
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
        command = f"fastdump hexdump {name} {found.rows[0].example:x} --follow-pointers"
        yield "What is in one of the first row:", command
    kept = f"{size(found.reachable.bytes)}, {_share(found.reachable, found.live)}, are reachable"
    yield f"{kept}: memory may grow there too. What it holds:", f"fastdump why {name}"
    if found.pause:
        yield "What grows, reachable or not:", f"fastdump why {name} --every 60s"
    else:
        yield "What grew, reachable or not, up to a later dump:", f"fastdump diff {name} LATER"


def _share(part: Count, whole: Count) -> str:
    return f"{100 * part.bytes / whole.bytes:.1f}%" if whole.bytes else "-"


def _cut(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _MOST_TEXT else text[: _MOST_TEXT - 3] + "..."
