"""Tables: Rich's on a terminal, plain columns in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence

# Rich lays out each cell by itself: a second for 2,000 rows, a minute for 70,000.
_MOST_RICH = 2000


def print_table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[int],
    dim: Collection[int] = (),
) -> None:
    """Print *rows*, the columns numbered in *right* to the right; rows in *dim* are faint."""
    if sys.stdout.isatty() and len(rows) <= _MOST_RICH:
        _print_rich(head, rows, right, dim)
    else:
        _print_plain(head, rows, right)


def _print_plain(
    head: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int]
) -> None:
    columns = list(zip(head, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    form = "  ".join(f"{{:{'>' if i in right else '<'}{width}}}" for i, width in enumerate(widths))
    sys.stdout.write("".join(form.format(*row).rstrip() + "\n" for row in [head, *rows]))


def _print_rich(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Collection[int],
    dim: Collection[int],
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(head):
        last = i >= len(head) - 2
        table.add_column(
            name, justify="right" if i in right else "left", no_wrap=not last, overflow="fold"
        )
    for number, row in enumerate(rows):
        # Text, not str: what comes from the target is never read as markup.
        table.add_row(*(Text(cell) for cell in row), style="dim" if number in dim else "")
    Console(highlight=False).print(table)
