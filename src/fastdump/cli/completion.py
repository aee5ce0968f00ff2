"""What the shell completes behind ``fastdump COMMAND``: pids, files, names of regions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # every command has this file, few runs complete anything
    import click
    from click.shell_completion import CompletionItem


def complete_pid(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem]:
    """The processes that this user may read, with their names."""
    return list(_processes(typed))


def complete_source(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem]:
    """Processes while a number is typed, else files."""
    if typed.isdecimal() or not typed:
        found = list(_processes(typed))
        if found:
            return found
    return [_item(typed, type="file")]


def complete_region(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem]:
    """What the regions of a process are called: ``[heap]``, ``libc.so.6``."""
    from fastdump.errors import FastdumpError
    from fastdump.process import LiveProcess
    from fastdump.sources import is_pid

    source = str(ctx.params.get("source", ""))
    if not is_pid(source):
        return []
    try:
        with LiveProcess(int(source)) as process:
            names = {os.path.basename(region.path) for region in process.regions()}
    except FastdumpError:
        return []
    # The shell gets a line for each, and no name from a process may be more than a word.
    words = sorted(name for name in names if name.isprintable() and not set(name) & set(" ,\t$`"))
    return [_item(word) for word in words if word and word.startswith(typed)]


def _processes(typed: str) -> Iterator[CompletionItem]:
    for name in sorted(filter(str.isdecimal, os.listdir("/proc")), key=int):
        if not name.startswith(typed):
            continue
        try:
            with open(f"/proc/{name}/comm", encoding="utf-8", errors="replace") as file:
                comm = file.read().rstrip("\n")
            os.stat(f"/proc/{name}/exe")  # of a kernel thread, or one that is not ours, it fails
        except OSError:
            continue
        shown = "".join(c if c.isalnum() or c in "._-" else "?" for c in comm)
        yield _item(name, help=shown)


def _item(*args: str, **kwargs: str) -> CompletionItem:
    from click.shell_completion import CompletionItem

    return CompletionItem(*args, **kwargs)
