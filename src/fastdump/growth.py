"""Growth: what two or more pages of :mod:`fastdump.why` differ in, ranked."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastdump.text import suggested, suggested_map

# What is no more than this part of the growth that stands out most is none worth a line.
_LEAST = 0.001
# How near to a line in time growth is, for it to be called steady: 1 is a straight one.
_STRAIGHT = 0.98
_LEAST_SAMPLES = 3
# Lines of each table of a page that is compared: what is not in it counts as nothing.
LONG = 500


@dataclass
class Grown:
    """One thing that became more, or less. Bytes; ``counts``: chunks, objects or strings.

    ``steady``: it grew with time, by nearly the same in each second.
    ``own``: a type of the program's own, see :class:`fastdump.why.TypeShare`.
    """

    kind: str
    name: str
    bytes: list[int]
    counts: list[int]
    steady: bool
    command: str
    own: bool

    @property
    def more_bytes(self) -> int:
        return self.bytes[-1] - self.bytes[0]

    @property
    def more(self) -> int:
        return self.counts[-1] - self.counts[0]


class _Row:
    """One thing in each page so far, in columns."""

    def __init__(self, pages: int) -> None:
        self.bytes, self.counts = array("q", [0] * pages), array("q", [0] * pages)
        self.command = ""

    def next_page(self) -> None:
        self.bytes.append(0)
        self.counts.append(0)
        self.command = ""

    @property
    def has_changed(self) -> bool:
        return (self.bytes[0], self.counts[0]) != (self.bytes[-1], self.counts[-1])


class Series:
    """Pages of one program, made one after the other; 16 bytes of each row of them are kept."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._rows: dict[tuple[str, str], _Row] = {}
        self._own: set[str] = set()  # types of the program's own

    def __len__(self) -> int:
        return len(self._times)

    @property
    def seconds(self) -> float:
        """From the first page to the last."""
        return self._times[-1] - self._times[0]

    def add(self, page: Mapping[str, Any], time: float) -> None:
        """Take the next page, as of ``fastdump why --json``, which was made at a *time* in seconds.

        Its rows of one name are summed: a type of several modules, text that was cut alike.

        Raises:
            AttributeError, LookupError, OverflowError, TypeError, ValueError: It is no page.
        """
        self._times.append(time)
        for row in self._rows.values():
            row.next_page()
        for (kind, name), (length, count, command) in _rows(page):
            if not isinstance(name, str):
                raise TypeError(f"{name!r} is no name of a {kind}")
            if (kind, name) not in self._rows:
                self._rows[kind, name] = _Row(len(self))
            row = self._rows[kind, name]
            row.bytes[-1] += length
            row.counts[-1] += count
            row.command = row.command or command  # of the largest, which comes first
        self._own |= {_type_name(each) for each in page["types"] if each["own"]}
        # What came and went is forgotten: of text there may be more without end.
        self._rows = {k: row for k, row in self._rows.items() if row.command or row.has_changed}

    def grown(self) -> list[Grown]:
        """What differs between the first page and the last, what grew most first."""
        found = []
        for (kind, name), row in self._rows.items():
            if row.has_changed:
                lengths, counts = list(row.bytes), list(row.counts)
                steady = _is_steady(self._times, lengths if any(lengths) else counts)
                own = kind == "type" and name in self._own
                found.append(Grown(kind, name, lengths, counts, steady, row.command, own))
        return sorted(found, key=lambda g: (-g.more_bytes, -g.more, g.kind, g.name))


def growth(pages: Sequence[Mapping[str, Any]], times: Sequence[float]) -> list[Grown]:
    """What differs between the first and the last of *pages*, what grew most first.

    Args:
        pages: As of ``fastdump why --save``, of one program.
        times: When each was made, in seconds.
    """
    series = Series()
    for page, time in zip(pages, times, strict=True):
        series.add(page, time)
    return series.grown()


def _rows(page: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], tuple[int, int, str]]]:
    """Kind and name → bytes, how many, and the command that shows more."""
    source = page["source"]
    for each in page["ledger"]:
        yield ("ledger", each["name"]), (each["bytes"], 0, suggested_map(source))
    for each in page["modules"]:
        command = suggested("hexdump", source, f"{each['example']:x} --follow-pointers")
        yield ("module", each["path"]), (each["bytes"], each["chunks"], command)
    for each in page["types"]:
        command = suggested("hexdump", source, f"{each['example']:x} --follow-pointers")
        yield ("type", _type_name(each)), (each["bytes"], each["objects"], command)
    for each in page["sizes"]:
        name = f"{each['size'] // 2 + 1} to {each['size']} bytes"
        yield ("size class", name), (each["bytes"], each["chunks"], suggested("why", source))
    for each in page["templates"]:
        command = suggested("strings", source, "--top 20")
        yield ("text", each["text"]), (each["bytes"], each["strings"], command)


def _type_name(found: Mapping[str, Any]) -> str:
    return f"{found['language']} {found['name']}"


def _is_steady(times: Sequence[float], values: Sequence[int]) -> bool:
    """Whether values grow on a line in time: by the coefficient of determination."""
    count = len(times)
    if count < _LEAST_SAMPLES or any(b < a for a, b in itertools.pairwise(values)):
        return False
    mean_t, mean_v = sum(times) / count, sum(values) / count
    along = sum((t - mean_t) * (v - mean_v) for t, v in zip(times, values, strict=True))
    spread = sum((t - mean_t) ** 2 for t in times) * sum((v - mean_v) ** 2 for v in values)
    return along > 0 and along * along >= _STRAIGHT * spread


def suspects(grown: Sequence[Grown], most: int = 5) -> list[Grown]:
    """What to look at first.

    A type of the program's own says more than the memory that it causes, and than the ``str`` and
    ``dict`` that it is made of; after types come text, modules and sizes, by bytes.
    """
    more = [g for g in grown if g.more_bytes > 0 or (g.kind == "type" and g.more > 0)]
    objects = max((g.more for g in more if g.kind == "type"), default=0)
    largest = max((g.more_bytes for g in more), default=0)

    def rank(each: Grown) -> tuple[int, int]:
        order = {"type": 1, "text": 2, "module": 3, "size class": 4, "ledger": 5}[each.kind]
        if each.own and each.more * 10 >= objects:
            order = 0
        return order, -each.more_bytes

    worth = [g for g in more if g.more_bytes > largest * _LEAST or g.more * 10 >= objects > 0]
    return sorted(worth, key=rank)[:most]
