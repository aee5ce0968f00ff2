"""What grew, for people: a table, and sentences; or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict

import click

from fastdump.addresses import short_name
from fastdump.cli.table import print_table
from fastdump.growth import Grown, suspects
from fastdump.text import cut, printable, size

_MOST_TEXT = 80


def print_growth(
    grown: Sequence[Grown],
    problems: Iterable[str],
    count: int,
    seconds: float | None = None,
    *,
    as_json: bool = False,
) -> None:
    """Print the *count* things that grew most, and the suspects among them; as JSON all of them.

    Args:
        problems: Of the pages that were compared: growth may be what was not found in one of them.
        seconds: Between the first and the last page; None if it is not known.
    """
    if as_json:
        click.echo(json.dumps([asdict(each) for each in grown], indent=2))
    else:
        _print_table(grown, count)
    for problem in problems:
        before = "fastdump: " if as_json else "\n"
        click.echo(f"{before}not sure: {printable(problem)}", err=as_json)
    if not as_json:
        for each in suspects(grown, 3):
            click.echo(f"\n{_sentence(each, seconds)}\n  {printable(each.command)}")


def _print_table(grown: Sequence[Grown], count: int) -> None:
    more = [g for g in grown if g.more_bytes > 0 or g.more > 0]
    if not more:
        click.echo("nothing grew")
        return
    rows = [
        (
            _signed(each.more_bytes),
            f"{each.more:+,}" if each.more else "",
            each.kind,
            "steady" if each.steady else "",
            _name(each),
        )
        for each in more[:count]
    ]
    print_table(("bytes", "objects", "what", "growth", "name"), rows, right=(0, 1))


def _sentence(each: Grown, seconds: float | None) -> str:
    amount = size(each.more_bytes) if each.more_bytes > 0 else ""
    if each.more:
        amount = f"{each.more:,} more" + (f", {amount}" if amount else "")
    rate = ""
    if seconds and each.steady:
        much = f"{size(round(each.more_bytes * 60 / seconds))} a minute"
        if each.more_bytes <= 0:
            much = f"{round(each.more * 60 / seconds):,} a minute"
        rate = f", in proportion to time: {much}"
    return f"{each.kind} {_name(each)} grew: {amount}{rate}"


def _name(each: Grown) -> str:
    return cut(short_name(each.name) if each.kind == "module" else each.name, _MOST_TEXT)


def _signed(length: int) -> str:
    return f"{'+' if length >= 0 else '-'}{size(abs(length))}"
