"""Lists of gaps: joined, and those that make a result incomplete."""

from __future__ import annotations

import bisect
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastdump._native import PAGE_SIZE, Gap
from fastdump.errors import EXIT_COMPLETE, EXIT_GAPS, IncompleteWarning
from fastdump.region import Region, following
from fastdump.text import size

# Gaps that are no loss: the target itself cannot read there.
EXPECTED_GAPS = frozenset({"past end of file", "guard page"})

# A reader takes some hundred MiB for them.
MOST_GAPS = 1 << 19
TOO_MANY = "too many gaps"


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


def union(gaps: Sequence[Gap], others: Sequence[Gap]) -> list[Gap]:
    """Both in order; where they overlap, those of the first list."""
    found = list(gaps)
    starts = [gap.start for gap in gaps]
    for other in others:
        at = other.start
        for gap in following(gaps, starts, at):
            if gap.start >= other.end:
                break
            if at < gap.start:
                found.append(other._replace(start=at, end=gap.start))
            at = max(at, gap.end)
        if at < other.end:
            found.append(other._replace(start=at))
    return sorted(found)


def bounded(gaps: list[Gap], regions: Sequence[Region]) -> list[Gap]:
    """At most MOST_GAPS of them, or one for each region: what a manifest can list.

    Where there are more, those nearest to one another in a region become one, for the reason
    TOO_MANY: what lies between them counts as lost.
    """
    starts = [region.start for region in regions]
    distance = PAGE_SIZE
    while len(gaps) > MOST_GAPS and distance < 1 << 64:
        found = gaps[:1]
        for gap in gaps[1:]:
            last = found[-1]
            if gap.start - last.end <= distance and (
                bisect.bisect_right(starts, last.start) == bisect.bisect_right(starts, gap.start)
            ):
                found[-1] = Gap(last.start, gap.end, TOO_MANY)
            else:
                found.append(gap)
        gaps, distance = found, 2 * distance
    return gaps


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

    @property
    def loss(self) -> str:
        """How much could not be read, and why; empty if that was to be expected."""
        gaps = self.unexpected_gaps
        if not gaps:
            return ""
        lost = size(sum(gap.end - gap.start for gap in gaps))
        return f"{lost} could not be read: {', '.join(sorted({gap.reason for gap in gaps}))}"


@dataclass
class Missed(Gaps):
    """Gaps by themselves, of those who have no report."""

    gaps: list[Gap]
    swap_asked: bool = False

    def warn(self) -> None:
        """Issue an IncompleteWarning, if there is a loss."""
        if self.loss:
            warnings.warn(self.loss, IncompleteWarning, stacklevel=3)
