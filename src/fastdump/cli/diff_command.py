"""``fastdump diff``: what grew between two sources or saved pages."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import click

from fastdump._native import Gap
from fastdump.cli.completion import complete_source
from fastdump.cli.growth_output import print_growth
from fastdump.cli.options import (
    complain_of_gaps,
    debuginfod_option,
    json_option,
    top_option,
)
from fastdump.errors import CorruptDump, input_failed, not_opened
from fastdump.gaps import Missed
from fastdump.growth import LONG, growth
from fastdump.sources import is_pid, open_source

_MOST_PAGE = 64 << 20


@click.command(name="diff")
@click.argument("old", metavar="A", shell_complete=complete_source)
@click.argument("new", metavar="B", shell_complete=complete_source)
@top_option(20, "Lines of the table.")
@json_option
@debuginfod_option
def command(old: str, new: str, count: int, as_json: bool, debuginfod: bool) -> int:
    """Tell what grew from A to B: modules, types, sizes, repeated text, ranked.

    Each is a page that `fastdump why PID --save FILE` wrote, or a pid or a dump.
    """
    names = old, new
    pages = [_page(name, debuginfod) for name in names]
    both = zip(names, pages, strict=True)
    problems = [f"{name}: {problem}" for name, page in both for problem in _problems(page)]
    print_growth(growth(pages, [0, 1]), problems, count, as_json=as_json)
    missed = [_missed(page) for page in pages]
    for found in missed:
        complain_of_gaps(found)
    return max(found.exit_code for found in missed)


def _problems(page: Mapping[str, Any]) -> Iterator[str]:
    yield from page["problems"]
    if page.get("sampled", 1) != 1:  # as `why --json` printed it
        yield "its text is estimated: pages of --save count all of it"


def _missed(page: Mapping[str, Any]) -> Missed:
    return Missed([Gap(**gap) for gap in page["gaps"]])


def _page(name: str, debuginfod: bool) -> Mapping[str, Any]:
    """A saved page, or that of a source.

    Raises:
        CorruptDump: It is JSON, but no page.
    """
    if not is_pid(name) and os.path.isfile(name) and 0 < os.path.getsize(name) <= _MOST_PAGE:
        try:
            with open(name, "rb") as file:
                text = file.read() if file.peek(1)[:1] == b"{" else b""
        except PermissionError as error:
            raise not_opened(name, error) from None
        except OSError as error:
            raise input_failed(name, error) from None
        if text:
            return _checked(name, text)
    from fastdump.why import why

    with open_source(name) as source:
        return why(source, count=LONG, debuginfod=debuginfod).to_json()


def _checked(name: str, text: bytes) -> Mapping[str, Any]:
    try:
        page: Mapping[str, Any] = json.loads(text)
        growth([page], [0])
        told = [_missed(page).loss, *page["problems"]]
        if not all(isinstance(each, str) for each in told):
            raise TypeError("a problem is a sentence")
    except (AttributeError, LookupError, OverflowError, RecursionError, TypeError, ValueError):
        raise CorruptDump(
            f"{name} is no page that `fastdump why --save` wrote", "name one, a pid, or a dump"
        ) from None
    if page.get("version") != 1:
        raise CorruptDump(f"{name} was written by another version of fastdump")
    return page
