"""``fastdump hexdump``: what hexdump -C shows, of the memory of a process or a dump."""

from __future__ import annotations

import collections
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import click

from fastdump._native import Gap
from fastdump.addresses import DEFAULT_LENGTH, parse_length, ranges_of
from fastdump.cli.completion import complete_region, complete_source
from fastdump.cli.options import debuginfod_option
from fastdump.errors import EXIT_COMPLETE, EXIT_GAPS, UsageError
from fastdump.hexdump import GROUP, MOST_WIDTH, WIDTH, Hexdump, digits_of
from fastdump.region import Range
from fastdump.source import Chunk, Source, Zeros
from fastdump.sources import open_source
from fastdump.text import printable

_WORD = 8  # bytes of a pointer
_MOST_NAMES = 1 << 16  # of pointers, remembered


def _length(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    return None if value is None else parse_length(value)


@click.command(name="hexdump")
@click.argument("source", metavar="SOURCE", shell_complete=complete_source)
@click.argument(
    "addresses",
    metavar="ADDRESS[+LENGTH|-END]...",
    nargs=-1,
    required=True,
    shell_complete=complete_region,
)
@click.option(
    "-n",
    "--length",
    metavar="LENGTH",
    callback=_length,
    help=f"Bytes to show where ADDRESS says no length.  [default: {DEFAULT_LENGTH}; of a NAME all]",
)
@click.option(
    "--width",
    type=click.IntRange(1, MOST_WIDTH),
    default=WIDTH,
    show_default=True,
    help="Bytes of a line.",
)
@click.option(
    "--group",
    type=click.IntRange(1, MOST_WIDTH),
    default=GROUP,
    show_default=True,
    help="Bytes between wider gaps.",
)
@click.option(
    "-v",
    "--no-squeezing",
    "everything",
    is_flag=True,
    help="Show all lines: no * for those that are equal to the one before.",
)
@click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Tell classes of bytes apart: NUL grey, printable cyan, white space green, other ASCII "
    "magenta, above 0x7f yellow.  auto: on a terminal, unless NO_COLOR is set or TERM is dumb.",
)
@click.option(
    "--follow-pointers",
    is_flag=True,
    help="Say behind each line what its aligned 8-byte words point to, with symbols of modules.",
)
@debuginfod_option
def command(
    source: str,
    addresses: Sequence[str],
    length: int | None,
    width: int,
    group: int,
    everything: bool,
    color: str,
    follow_pointers: bool,
    debuginfod: bool,
) -> int:
    """Show memory as hexdump -C does, with virtual addresses. SOURCE is a pid, or a dump.

    ADDRESS is hexadecimal, or a NAME: '[heap]', '[stack]', libc.so.6 or another file that is
    mapped. NAME+OFFSET is an address. A NAME alone means all its regions. LENGTH and OFFSET are
    decimal, or hexadecimal with 0x, and may end in K, M or G.

    What has no bytes is not shown: standard error has its range and the reason, and the exit code
    is 3.
    """
    if debuginfod and not follow_pointers:
        raise UsageError("--debuginfod names what words point to", "it goes with --follow-pointers")
    colored = color == "always" or (
        color == "auto"
        and sys.stdout.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM") != "dumb"
    )
    with open_source(source) as opened:
        ranges = [found for text in addresses for found in ranges_of(text, opened, length)]
        digits = digits_of(max(end for _, end in ranges))
        lines: Hexdump | _Followed
        lines = Hexdump(digits, width=width, group=group, squeeze=not everything, color=colored)
        if follow_pointers:
            from fastdump.pointers import Pointers

            pointers = Pointers(opened, debuginfod)
            name_of = functools.lru_cache(_MOST_NAMES)(pointers.name_of)
            lines = _Followed(lines, digits, width, name_of)
        complete = [_show(opened, each, lines, digits) for each in ranges]
        for problem in pointers.problems if follow_pointers else ():
            click.echo(f"fastdump: {printable(problem)}", err=True)
    return EXIT_COMPLETE if all(complete) else EXIT_GAPS


def _show(source: Source, each: Range, lines: Hexdump | _Followed, digits: int) -> bool:
    """Show one range, each run of bytes as a dump of its own. Returns whether it has no gap."""
    write = sys.stdout.buffer.write
    begun, complete = False, True

    def finish() -> None:
        if begun:
            write(lines.end())
            write(f"{lines.address:0{digits}x}\n".encode())
        sys.stdout.flush()

    for part in _with_joined_gaps(source.walk([each])):
        if isinstance(part, Gap):
            finish()
            begun = complete = False
            reason = printable(part.reason)
            click.echo(f"fastdump: {part.start:x}-{part.end:x}: {reason}", err=True)
            continue
        if not begun:
            lines.begin(part.address if isinstance(part, Chunk) else part.start)
            begun = True
        if isinstance(part, Zeros):
            texts = lines.zeros(part.end - part.start)
        else:
            texts = lines.feed(part.data)
        for text in texts:
            write(text)
    finish()
    return complete


def _with_joined_gaps(parts: Iterable[Chunk | Zeros | Gap]) -> Iterator[Chunk | Zeros | Gap]:
    """The parts of a walk; gaps that follow one another for the same reason are one."""
    last: Gap | None = None
    for part in parts:
        if last and isinstance(part, Gap) and (part.start, *part[2:]) == last[1:]:
            last = last._replace(end=part.end)
            continue
        if last:
            yield last
        last = part if isinstance(part, Gap) else None
        if not last:
            yield part
    if last:
        yield last


class _Followed:
    """Lines of a hex dump, and behind each what the aligned words that begin in it point to.

    A word may end in the lines that follow: a line waits until they are there.
    """

    def __init__(
        self, dump: Hexdump, digits: int, width: int, name_of: Callable[[int], str]
    ) -> None:
        self._dump, self._digits, self._width, self._name_of = dump, digits, width, name_of
        self._behind = -(-(_WORD - 1) // width)  # lines that may wait
        self.begin(0)

    def begin(self, address: int) -> None:
        self._dump.begin(address)
        self._waiting = collections.deque[bytes]()
        self._held = b""  # what these lines hold, and what the dump has of a line that is not whole

    @property
    def address(self) -> int:
        return self._dump.address

    def feed(self, data: Any) -> Iterator[bytes]:
        return self._followed(self._dump.feed(data), bytes(data), len(data))

    def zeros(self, length: int) -> Iterator[bytes]:
        most = (1 + self._behind) * self._width
        return self._followed(self._dump.zeros(length), bytes(min(length, most)), length)

    def end(self) -> bytes:
        start = self._dump.address - len(self._held)
        self._waiting += bytes(self._dump.end()).splitlines()
        return b"".join(self._with_names(line, start, self._held) for line in self._waiting)

    def _followed(self, texts: Iterable[memoryview], data: bytes, length: int) -> Iterator[bytes]:
        """The lines of *length* bytes: *data*, and zeros where it is shorter."""
        start = self._dump.address - len(self._held)
        end = self._dump.address + length
        rest = (len(self._held) + length) % self._width
        data = self._held + data
        for text in texts:
            self._waiting += bytes(text).splitlines()
            while self._waiting and self._last(self._waiting[0]) <= end:
                yield self._with_names(self._waiting.popleft(), start, data)
        self._held = data[-(rest + self._behind * self._width) :]

    def _last(self, line: bytes) -> int:
        """Where the last word that begins in a line ends at the most."""
        return 0 if line == b"*" else int(line[: self._digits], 16) + self._width + _WORD - 1

    def _with_names(self, line: bytes, start: int, data: bytes) -> bytes:
        """A line of *data*, which begins at *start*."""
        names = ""
        if line != b"*":
            address = int(line[: self._digits], 16)
            words = data[address - start : self._last(line) - start]
            for at in range(-address % _WORD, min(self._width, len(words) - _WORD + 1), _WORD):
                name = self._name_of(int.from_bytes(words[at : at + _WORD], "little"))
                names += f"  {at:x}: {name}" if name else ""
        return line + names.encode() + b"\n"
