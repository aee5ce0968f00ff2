"""Tables: Rich's on a terminal, plain columns in a pipe or where it is too narrow."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence

# Rich lays out each cell by itself: a second for 2,000 rows, a minute for 70,000.
_MOST_RICH = 2000
_LEAST_FOLDED = 20  # characters in a line of a cell that is folded
_FOLDED = 2  # columns, the last


def print_table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[int],
    dim: Collection[int] = (),
) -> None:
    """Print *rows*, the columns numbered in *right* to the right; rows in *dim* are faint.

    On a terminal that is too narrow for them lines are plain too: it breaks them, nothing is cut.
    """
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    rich = sys.stdout.isatty() and len(rows) <= _MOST_RICH
    if not (rich and _print_rich(head, rows, widths, right, dim)):
        _print_plain(head, rows, widths, right)


def _print_plain(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    widths: Sequence[int],
    right: Collection[int],
) -> None:
    form = "  ".join(f"{{:{'>' if i in right else '<'}{width}}}" for i, width in enumerate(widths))
    sys.stdout.write("".join(form.format(*row).rstrip() + "\n" for row in [head, *rows]))


def _print_rich(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    widths: Sequence[int],
    right: Collection[int],
    dim: Collection[int],
) -> bool:
    """Print them if the terminal is wide enough, and say whether it is."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    least = [*widths[:-_FOLDED], *(min(width, _LEAST_FOLDED) for width in widths[-_FOLDED:])]
    if sum(least) + 2 * (len(head) - 1) > console.width:
        return False
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(head):
        last = i >= len(head) - _FOLDED
        table.add_column(
            name, justify="right" if i in right else "left", no_wrap=not last, overflow="fold"
        )
    for number, row in enumerate(rows):
        # Text, not str: what comes from the target is never read as markup.
        table.add_row(*(Text(cell) for cell in row), style="dim" if number in dim else "")
    console.print(table)
    return True
