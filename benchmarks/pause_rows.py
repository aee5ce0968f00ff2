"""The rows of pauses, as a thread of the target sees them that looks at the clock all the time."""

from __future__ import annotations

import functools

from engines import Bench, Target, run_command, start
from rows import GIB, Check, Need, Result, fresh_folder

# Milliseconds for 4 GiB. Other sizes have their share, but the host's own hiccups are no less.
_LIMITS = {"4k": 80.0, "thp": 30.0}
_LEAST_LIMIT = 20.0
_GCORE_TIMES = 20.0


def longest(target: Target) -> float:
    """Milliseconds of the longest pause since the last call."""
    target.send(b"?")
    return float(target.read_truth()["longest"]) / 1e6


def pause_row(bench: Bench, pages: str) -> Result:
    """The least of all rounds, since what else runs on the host makes each longer.

    gcore stops the target until all is in its file.
    """
    row = f"pause-{pages}"
    pauses: dict[str, list[float]] = {"nothing": [], "fork": [], "gcore": []}
    with start("beat", bench.size, *(["thp"] if pages == "thp" else [])) as target:
        for _ in range(bench.repeat):
            longest(target)
            run_command(("sleep", "0.2"))
            pauses["nothing"].append(longest(target))
            with fresh_folder(bench.tmpfs) as folder:
                command = (bench.fastdump, "dump", str(target.pid), "-q", "--pause", "fork!")
                run_command((*command, "-o", folder / "out"))
            pauses["fork"].append(longest(target))
            with fresh_folder(bench.tmpfs) as folder:
                run_command(("gcore", "-o", folder / "out", str(target.pid)))
            pauses["gcore"].append(longest(target))
    least = {name: min(found) for name, found in pauses.items()}
    limit = max(_LIMITS[pages] * bench.size / (4 * GIB), _LEAST_LIMIT)
    return Result(
        checks=[
            Check(row, "without anything", least["nothing"], "ms"),
            Check(row, "fastdump --pause fork", least["fork"], "ms", below=limit),
            Check(row, "gcore", least["gcore"], "ms"),
            Check(
                row,
                "gcore / fastdump",
                least["gcore"] / least["fork"],
                at_least=_GCORE_TIMES,
            ),
        ]
    )


PAUSE_ROWS: dict[str, Need] = {
    f"pause-{pages}": Need(functools.partial(pause_row, pages=pages), memory=2.2)
    for pages in _LIMITS
}
