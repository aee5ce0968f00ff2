"""The rows of ``fastdump leaks``: a heap of small chunks, of which the target knows what leaked."""

from __future__ import annotations

import functools
import json

import engines
from engines import Bench, Sample, run_command, start
from rows import Check, Need, Result, Timing, speed_ratio
from truth import WrongOutput

_CHUNK = 88  # bytes of one on average, with its header
_ORDERS = {"ascending": 0, "descending": 1, "table": 3}
_MOST_OWN = 5.0  # percent of the heap, without what a small heap takes: that is Python


def peak_of(bench: Bench, pid: int) -> int:
    """Bytes of its own peak memory."""
    command = (bench.fastdump, "leaks", str(pid), "--json")
    return int(engines.run_for_peak(command).rpartition("\n")[2])


def leaks_row(bench: Bench, order: str) -> Result:
    """Reading alone does the same system calls once, and nothing with the bytes."""
    row = f"leaks-{order}"
    samples: dict[str, list[Sample]] = {"reading alone": [], "leaks": []}
    with start("chunks", bench.size // _CHUNK, _ORDERS[order]) as target:
        truth, pid = target.truth, str(target.pid)
        null = ("dump", pid, "--format", "null", "--threads", "1", "--pause", "none", "-q")
        command = (bench.fastdump, "leaks", pid, "--json")
        for number in range(bench.repeat + 1):
            alone = run_command((bench.fastdump, *null)).seconds
            done = run_command(command)
            found = json.loads(done.stdout)
            counts = found["direct"]["chunks"], found["indirect"]["chunks"]
            expected = truth["direct"], truth["leaked"] - truth["direct"]
            if counts != expected or not found["exact"]:
                raise WrongOutput(f"fastdump leaks: {expected} expected, found {counts}")
            if number:
                for name, seconds in (("reading alone", alone), ("leaks", done.seconds)):
                    samples[name].append(Sample(seconds, seconds, truth["bytes"]))
        peak = peak_of(bench, target.pid)
    with start("chunks", 1000, _ORDERS[order]) as small:
        base = peak_of(bench, small.pid)
    timings = {name: Timing(row, name, taken) for name, taken in samples.items()}
    own = (peak - base) / truth["bytes"] * 100
    ratio = speed_ratio(timings["leaks"], [timings["reading alone"]], "wall")
    return Result(
        list(timings.values()),
        [
            Check(row, "against reading alone, wall", ratio),
            Check(row, "own peak memory, of the heap", own, "%", below=_MOST_OWN),
        ],
    )


LEAKS_ROWS: dict[str, Need] = {
    f"leaks-{order}": Need(functools.partial(leaks_row, order=order), memory=1.5)
    for order in _ORDERS
}
