"""``fastdump maps``: every region, and what would be dumped of it."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import click

from fastdump._native import Residency
from fastdump.cli.completion import complete_pid
from fastdump.cli.options import OrderedCommand, preset_of, rules_of, selection_options
from fastdump.cli.table import print_table
from fastdump.dump import FORMATS
from fastdump.labels import Label
from fastdump.process import LiveProcess
from fastdump.region import Region
from fastdump.selection import Choice
from fastdump.survey import Survey
from fastdump.text import printable, size


class Row(NamedTuple):
    """All that is known of one region."""

    region: Region
    label: Label
    residency: Residency
    choice: Choice

    @property
    def resident(self) -> int:
        """Bytes in RAM."""
        return self.residency.present + self.residency.zero


# Numbers descend: the largest is what one looks for.
_SORTS: dict[str, Callable[[Row], Any]] = {
    "address": lambda row: row.region.start,
    "size": lambda row: -row.region.length,
    "resident": lambda row: -row.resident,
    "swapped": lambda row: -row.residency.swapped,
    "perms": lambda row: row.region.perms,
    "label": lambda row: (row.label.kind.value, row.label.module),
    "path": lambda row: row.region.path,
}
_HEAD = ("address", "size", "resident", "swapped", "perms", "label", "dump", "why", "path")


@click.command(name="maps", cls=OrderedCommand)
@click.argument("pid", type=int, shell_complete=complete_pid)
@click.option(
    "-f",
    "--format",
    type=click.Choice(list(FORMATS)),
    default="lz4",
    show_default=True,
    help="Show what `dump --format` would take.",
)
@selection_options
@click.option(
    "--sort",
    type=click.Choice(list(_SORTS)),
    default="address",
    show_default=True,
    help="Numbers largest first.",
)
@click.option("--reverse", is_flag=True, help="Turn the order round.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: bytes, all regions, totals.")
@click.pass_context
def command(
    ctx: click.Context,
    pid: int,
    format: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    everything: bool,
    with_libraries: bool,
    sort: str,
    reverse: bool,
    as_json: bool,
) -> None:
    """Show every region of process PID: its size, how much of it is resident and swapped,
    what it is (label), how much of it would be dumped, and why.

    Nothing of the process is read but its maps and page tables.
    """
    preset = preset_of(FORMATS[format][0], everything)
    with LiveProcess(pid) as process:
        survey = Survey(
            process, preset, rules_of(ctx, include, exclude), with_libraries=with_libraries
        )
        survey.close()
        of_each = survey.regions, survey.labels, survey.residency, survey.choices
        rows = [Row(*row) for row in zip(*of_each, strict=True)]
    rows.sort(key=_SORTS[sort], reverse=reverse)
    totals = _totals(rows)
    if as_json:
        _print_json(rows, totals)
    else:
        _print_text(rows, totals)


def _totals(rows: list[Row]) -> dict[str, dict[str, int]]:
    """For each label: regions, bytes, resident, swapped, and resident in what is dumped."""
    found: dict[str, dict[str, int]] = defaultdict(
        lambda: dict.fromkeys(("regions", "size", "resident", "swapped", "dumped"), 0)
    )
    for row in rows:
        for total in (found[row.label.kind.value], found["total"]):
            total["regions"] += 1
            total["size"] += row.region.length
            total["resident"] += row.resident
            total["swapped"] += row.residency.swapped
            total["dumped"] += row.resident if row.choice.included else 0
    found["total"] = found.pop("total")
    return dict(found)


def _print_json(rows: list[Row], totals: dict[str, dict[str, int]]) -> None:
    regions = [
        {
            "start": f"{row.region.start:#x}",
            "end": f"{row.region.end:#x}",
            "size": row.region.length,
            "resident": row.resident,
            "zero": row.residency.zero,
            "swapped": row.residency.swapped,
            "perms": row.region.perms,
            "offset": row.region.offset,
            "dev": row.region.dev,
            "inode": row.region.inode,
            "path": row.region.path,
            "label": row.label.kind.value,
            "module": row.label.module,
            "note": row.label.note,
            "dump": row.choice.part.value,
            "why": row.choice.reason,
        }
        for row in rows
    ]
    json.dump({"regions": regions, "totals": totals}, sys.stdout)
    print()


def _cells(row: Row) -> tuple[str, ...]:
    region = row.region
    path = region.path or (f".bss of {row.label.module}" if row.label.module else "")
    why = row.choice.reason + (f"; {row.label.note}" if row.label.note else "")
    return (
        f"{region.start:x}-{region.end:x}",
        size(region.length),
        size(row.resident) if row.resident else "-",
        size(row.residency.swapped) if row.residency.swapped else "-",
        region.perms,
        row.label.kind.value,
        row.choice.part.value if row.choice.included else "-",
        printable(why),
        printable(path),
    )


def _total_cells(label: str, total: dict[str, int]) -> tuple[str, ...]:
    sizes = [size(total[key]) for key in ("size", "resident", "swapped", "dumped")]
    return (label, str(total["regions"]), *sizes)


def _print_text(rows: list[Row], totals: dict[str, dict[str, int]]) -> None:
    cells = [_cells(row) for row in rows]
    total_cells = [_total_cells(label, total) for label, total in totals.items()]
    total_head = ("label", "regions", "size", "resident", "swapped", "resident in dump")
    dim = {number for number, row in enumerate(cells) if row[6] == "-"}
    print_table(_HEAD, cells, right=range(1, 4), dim=dim)
    print()
    print_table(total_head, total_cells, right=range(1, 6))
