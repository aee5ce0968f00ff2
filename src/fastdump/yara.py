"""YARA rules over a place, with yara-x (the extra ``yara``).

A rule sees one block at a time: memory without a break in one region, of which at most 32 MiB.
Its condition is about that block, and ``filesize`` is the block's. The blocks of longer memory
overlap by 1 MiB, so that a match of up to that length is whole in one of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fastdump._native import Gap, Memory, Slice, Tally
from fastdump._search import Hit
from fastdump.errors import UsageError
from fastdump.expressions import LONGEST
from fastdump.memory_search import SearchReport, stretches
from fastdump.place import Place
from fastdump.sweep import sweep

_BLOCK = 32 << 20
_OVERLAP = 1 << 20
_MOST_MATCHES = 1 << 20  # of a pattern in a block
_NO_LIMIT = 2**64 - 1


def compile_rules(path: str) -> Any:
    """The ``yara_x.Rules`` of a file.

    Raises:
        UsageError: yara-x is not there, or the rules cannot be compiled.
    """
    try:
        import yara_x
    except ImportError:
        raise UsageError("--yara needs yara-x", "pip install yara-x") from None
    try:
        return yara_x.compile(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yara_x.CompileError) as error:
        message = str(error).replace("\n", "\n  ")
        raise UsageError(f"the rules {path}: {message}") from None


class RulesSearcher:
    """One thread's way to search for rules. ``names`` grows: ``rule:$pattern`` by number."""

    kernel = "yara-x"
    out_size = 1 << 20

    def __init__(self, rules: Any, block_size: int = _BLOCK, overlap: int = _OVERLAP) -> None:
        self._rules = rules
        self._block_size, self._overlap = block_size, overlap
        self._numbers: dict[str, int] = {}
        self.names: list[str] = []
        self.tally, self.gaps, self.written = Tally(), list[Gap](), 0

    def scan(
        self,
        memory: Memory,
        batches: Iterable[Sequence[Slice] | Gap],
        start: int = 0,
        end: int = _NO_LIMIT,
    ) -> Iterator[list[Hit]]:
        """As :meth:`Searcher.scan`, but all of the slices at once."""
        import yara_x

        scanner = yara_x.Scanner(self._rules)  # for one thread: the one that makes it
        scanner.max_matches_per_pattern(_MOST_MATCHES)
        block, address, region = bytearray(), 0, 0
        for at, number, data in stretches(memory, batches, self.tally, self.gaps):
            if (at, number) != (address + len(block), region):
                yield self._hits(scanner, block, address, region, len(block))
                block, address, region = bytearray(), at, number
            block += data
            if len(block) >= self._block_size:
                certain = len(block) - self._overlap
                yield self._hits(scanner, block, address, region, certain)
                del block[:certain]
                address += certain
        yield self._hits(scanner, block, address, region, len(block))

    def _hits(
        self, scanner: Any, block: bytearray, address: int, region: int, stop: int
    ) -> list[Hit]:
        """What begins in the first *stop* bytes; a rule that matches without a pattern is told at
        the first byte.
        """
        if not block:
            return []
        hits = []
        for rule in scanner.scan(bytes(block)).matching_rules:
            found = [
                (f"{rule.identifier}:{pattern.identifier}", match.offset, match.length)
                for pattern in rule.patterns
                for match in pattern.matches
            ]
            for name, offset, length in found or [(rule.identifier, 0, 0)]:
                if offset < stop:
                    hits.append(Hit(address + offset, self._number(name), region, length))
        return sorted(hits)

    def _number(self, name: str) -> int:
        number = self._numbers.setdefault(name, len(self.names))
        if number == len(self.names):
            self.names.append(name)
        return number


def _held(place: Place, hit: Hit) -> Hit | None:
    """A match that lies in more than the zeros around what is searched; one without a length moved
    to where that begins.
    """
    slices = place.slices_in(hit.address, hit.address + (hit.length or LONGEST + 1))
    if slices and not hit.length:
        return hit._replace(address=max(hit.address, slices[0].address))
    return hit if slices else None


def search_rules(
    place: Place, searcher: RulesSearcher, handle: Callable[[list[Hit]], None] | None = None
) -> SearchReport:
    """Search a place; as :func:`search_place`."""
    counts: dict[int, int] = {}

    def count(hits: list[Hit]) -> None:
        hits = [found for hit in hits if (found := _held(place, hit))]
        for hit in hits:
            counts[hit.number] = counts.get(hit.number, 0) + 1
        if handle:
            handle(hits)

    swept = sweep(place, [searcher], count, sizes=itertools.repeat(_NO_LIMIT))
    return SearchReport(
        **vars(swept), counts=[counts.get(n, 0) for n in range(len(searcher.names))]
    )
