"""What users call addresses: numbers, ranges of them, and names of regions.

======================  =======================================================================
``ADDRESS``             hexadecimal, with 0x or without
``ADDRESS+LENGTH``      the length decimal or 0x hexadecimal, with K, M or G for powers of 1024
``ADDRESS-END``         up to, but without, END
``NAME``                all regions of that name: ``[heap]``, a path, or its last part
``NAME+OFFSET``         an address: so many bytes behind the first one's start
``NAME+OFFSET+LENGTH``  as above
======================  =======================================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Protocol

from fastdump.errors import UsageError
from fastdump.labels import Label
from fastdump.region import Range, Region

DEFAULT_LENGTH = 256
_ADDRESS = re.compile(r"(?:0x)?[0-9a-f]{1,16}", re.ASCII | re.IGNORECASE)
_LENGTH = re.compile(r"(0x[0-9a-f]{1,16}|[0-9]{1,20})([kmg]?)", re.ASCII | re.IGNORECASE)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_LIMIT = (1 << 64) - 1
_MOST_CANDIDATES = 8


class Mapped(Protocol):
    """What has regions: a source, or a place."""

    @property
    def name(self) -> str: ...
    @property
    def regions(self) -> Sequence[Region]: ...
    @property
    def labels(self) -> Sequence[Label]: ...


def parse_length(text: str) -> int:
    """Bytes.

    Raises:
        UsageError: It is no number.
    """
    found = _LENGTH.fullmatch(text)
    if not found:
        raise UsageError(f"{text!r} is no length", "16, 0x10, 64K, 2M and 1G are")
    return int(found[1], 16 if "x" in found[1].lower() else 10) * _UNITS[found[2].lower()]


def ranges_of(text: str, source: Mapped, length: int | None = None) -> list[Range]:
    """The ranges that *text* means in *source*, ascending; those that touch are one.

    Args:
        length: Bytes where *text* names none; by default all of a name, and of an address
            DEFAULT_LENGTH, no further than what is mapped there without a break.

    Raises:
        UsageError: It means nothing, or nothing in this source, or several things.
    """
    first, minus, last = text.partition("-")
    if minus and _ADDRESS.fullmatch(first) and _ADDRESS.fullmatch(last):
        return [_checked(text, int(first, 16), int(last, 16))]
    name, *numbers = _split(text)
    if _ADDRESS.fullmatch(name):
        start = int(name, 16)
    else:
        named = _named(name, source)
        if not numbers:
            if length == 0:
                raise UsageError(f"{text} with a length of 0 is empty")
            return list(_head(_joined(named), length))
        start = named[0].start + parse_length(numbers.pop(0))
    if len(numbers) > 1:
        raise UsageError(f"{text} has two lengths", "ADDRESS+LENGTH is a range")
    if numbers:
        length = parse_length(numbers[0])
    if length is None:
        length = _default_length(start, source.regions)
    return [_checked(text, start, start + length)]


def _split(text: str) -> list[str]:
    """The name or address, and up to two numbers behind it; a name may have a + itself."""
    numbers: list[str] = []
    while len(numbers) < 2:
        rest, plus, number = text.rpartition("+")
        if not plus or not _LENGTH.fullmatch(number):
            break
        text = rest
        numbers.insert(0, number)
    return [text, *numbers]


def _checked(text: str, start: int, end: int) -> Range:
    if start >= end:
        raise UsageError(f"{text} is empty")
    if end > _LIMIT:
        raise UsageError(f"{text} goes beyond the last address")
    return Range(start, end)


def _default_length(start: int, regions: Sequence[Region]) -> int:
    end = start
    for region in regions:
        if region.start <= end < region.end:
            end = region.end
    return min(end - start, DEFAULT_LENGTH) or DEFAULT_LENGTH


def _joined(regions: Sequence[Region]) -> list[Range]:
    found: list[Range] = []
    for region in regions:
        if found and found[-1].end == region.start:
            found[-1] = Range(found[-1].start, region.end)
        else:
            found.append(Range(region.start, region.end))
    return found


def _head(ranges: Sequence[Range], length: int | None) -> Iterator[Range]:
    """The first *length* bytes of ranges, or all."""
    left = sum(end - start for start, end in ranges) if length is None else length
    for start, end in ranges:
        if left:
            end = min(end, start + left)
            left -= end - start
            yield Range(start, end)


def region_name(region: Region, label: Label) -> str:
    """What a region is called: its file's or module's path, a name in brackets, or nothing."""
    return (label.module or region.path).removesuffix(" (deleted)")


def short_name(path: str) -> str:
    """The last part of a path."""
    return path if path.startswith("[") else path.rpartition("/")[2]


def _named(name: str, source: Mapped) -> list[Region]:
    found: dict[str, list[Region]] = {}
    for region, label in zip(source.regions, source.labels, strict=True):
        path = region_name(region, label)
        if path:
            found.setdefault(path, []).append(region)
    if name in found:
        return found[name]
    fitting = [path for path in found if short_name(path) == name]
    if len(fitting) == 1:
        return found[fitting[0]]
    if fitting:
        raise UsageError(
            f"{name} is the name of {len(fitting)} files", f"give a path: {_listed(fitting)}"
        )
    import difflib  # 1 ms, for a message

    names = list(dict.fromkeys(map(short_name, found)))
    alike = [n for n in names if name.lower() in n.lower()]
    alike = alike or difflib.get_close_matches(name, names, _MOST_CANDIDATES)
    raise UsageError(
        f"{name!r} is neither an address nor the name of a region of {source.name}",
        f"there is {_listed(alike or names)}" if names else "no region has a name",
    )


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _MOST_CANDIDATES
    return ", ".join(names[:_MOST_CANDIDATES]) + (f" and {rest} more" if rest > 0 else "")
