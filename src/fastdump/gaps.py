"""Lists of gaps: joined, and those that make a result incomplete."""

from __future__ import annotations

from collections.abc import Iterable

from fastdump._native import Gap
from fastdump.errors import EXIT_COMPLETE, EXIT_GAPS

# Gaps that are no loss: the target itself cannot read there.
EXPECTED_GAPS = frozenset({"past end of file", "guard page"})


def merged(gaps: Iterable[Gap]) -> list[Gap]:
    """Join gaps that follow one another for the same reason."""
    found: list[Gap] = []
    for gap in gaps:
        last = found[-1] if found else None
        if last and last.end == gap.start and last[2:] == gap[2:]:
            found[-1] = last._replace(end=gap.end)
        else:
            found.append(gap)
    return found


class Gaps:
    """What a report says of its gaps. ``swap_asked``: swapped memory was left out as told."""

    gaps: list[Gap]
    swap_asked: bool

    @property
    def unexpected_gaps(self) -> list[Gap]:
        """The gaps that make the result incomplete."""
        expected = EXPECTED_GAPS | ({"swapped"} if self.swap_asked else set())
        return [gap for gap in self.gaps if gap.reason not in expected]

    @property
    def exit_code(self) -> int:
        return EXIT_GAPS if self.unexpected_gaps else EXIT_COMPLETE
