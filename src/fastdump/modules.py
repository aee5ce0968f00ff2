"""The modules of a source, by number."""

from __future__ import annotations

import bisect

from fastdump._words import MOST_MODULES, ModuleRange
from fastdump.labels import Kind
from fastdump.source import Source

OTHERS = "other modules"


class Modules:
    """1 is the executable; the last one stands for the rest.

    Attributes:
        paths: By number.
        numbers: By path.
        ranges: Of all of them, in address order.
    """

    def __init__(self, source: Source) -> None:
        sizes: dict[str, int] = {}
        for region, label in zip(source.regions, source.labels, strict=True):
            if label.module:
                first = label.kind is Kind.EXECUTABLE
                size = (1 << 62) if first else region.length
                sizes[label.module] = sizes.get(label.module, 0) + size
        self.paths = ["", *sorted(sizes, key=lambda path: -sizes[path])]
        numbers = {path: min(n, MOST_MODULES) for n, path in enumerate(self.paths)}
        if len(self.paths) > MOST_MODULES + 1:
            self.paths[MOST_MODULES:] = [OTHERS]
        self.ranges = [
            ModuleRange(region.start, region.end, numbers[label.module])
            for region, label in zip(source.regions, source.labels, strict=True)
            if label.module
        ]
        self.numbers = numbers
        self._starts = [found.start for found in self.ranges]

    def path_at(self, address: int) -> str:
        """The module that an address lies in, or nothing."""
        number = bisect.bisect_right(self._starts, address) - 1
        if number >= 0 and address < self.ranges[number].end:
            return self.paths[self.ranges[number].module]
        return ""
