"""The row of ``fastdump why``: the whole command, against reading the same process once.

The target is a service in C++ (see service.cpp); its objects are counted, and every resident byte.
chap reads a core, which is made beforehand, and is asked to ``summarize used``. "Work" is what a
command took of all CPUs: a rate by that is one of a core.
"""

from __future__ import annotations

import json
import re
import resource
import sys

from engines import (
    Bench,
    Command,
    Engine,
    Job,
    Sample,
    Target,
    run_command,
    run_for_peak,
    small_subject,
    start,
)
from rows import Check, Need, Result, fresh_folder, interleave, speed_ratio
from truth import WrongOutput

_LEAST = 2.0  # GB/s a core
# Of chap, which says of itself that it takes 15 s and 2.6 GB of memory for a GB.
_LEAST_OF_CHAP = 25.0
_LEAST_MEMORY_OF_CHAP = 20.0
_ASK_CHAP = "summarize used\n"


def _resident(target: Target) -> int:
    with open(f"/proc/{target.pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("Rss:"))


def _cpu_seconds() -> float:
    """Of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def why_row(bench: Bench) -> Result:
    """The whole page; but for text it has one thread."""
    with (
        start("service", bench.size >> 20) as target,
        fresh_folder(bench.tmpfs) as folder,
        small_subject() as small,
    ):
        truth, length = target.truth, _resident(target)

        def measured(command: Command, stdin: str = "") -> tuple[str, Sample]:
            before = _cpu_seconds()
            done = run_command(command, stdin)
            return done.stdout, Sample(done.seconds, _cpu_seconds() - before, length)

        def check() -> None:
            page = json.loads(
                run_command((bench.fastdump, "why", str(target.pid), "--json")).stdout
            )
            counts = {each["name"]: each["objects"] for each in page["types"]}
            found = counts.get("Session"), counts.get("Request")
            problems = page["problems"] or (not page["templates"] and "no text")
            if found != (truth["sessions"], truth["requests"]) or problems:
                raise WrongOutput(f"fastdump why: {found} of {truth}, {problems}")
            if abs(page["total"] - length) > length // 500:
                raise WrongOutput(f"fastdump why: {page['total']} of {length} bytes")

        def why(job: Job) -> Sample:
            told, sample = measured((job.bench.fastdump, "why", str(target.pid)))
            for name in ("sessions", "requests"):
                if not re.search(rf"^ *{truth[name]:,} .* C\+\+ ", told, re.MULTILINE):
                    raise WrongOutput(f"fastdump why: not {truth[name]:,} {name}")
            if "not sure" in told or "text, # for numbers" not in told:
                raise WrongOutput("fastdump why: not the whole page")
            return sample

        def read(job: Job) -> Sample:
            command = ("dump", str(target.pid), "--format", "null", "--threads", "1", "-q")
            return measured((job.bench.fastdump, *command))[1]

        def chap(job: Job) -> Sample:
            assert bench.chap
            told, sample = measured((bench.chap, core), _ASK_CHAP)
            if "allocations" not in told:
                raise WrongOutput(f"chap: {told[-200:]}")
            return sample

        plan = [Engine("fastdump why", why), Engine("read only, 1 thread", read)]
        if bench.chap:
            core = folder / "core"
            dump = ("dump", str(target.pid), "-q", "-f", "core", "--all", "-o", core)
            run_command((bench.fastdump, *dump))
            plan.append(Engine("chap", chap))
        else:
            print("why: chap is not measured: --chap names its program", file=sys.stderr)
        check()
        timings = interleave(bench, "why", plan, {"full": small}, bench.tmpfs)
        peaks = [run_for_peak((bench.fastdump, "why", str(target.pid)))]
        if bench.chap:
            peaks.append(run_for_peak((bench.chap, core), _ASK_CHAP))
    peak, *others = (int(output.rpartition("\n")[2]) for output in peaks)
    own = timings["fastdump why"]
    reading = speed_ratio(own, [timings["read only, 1 thread"]], "work")
    checks = [
        Check("why", "a core, start included", own.rate, "GB/s", at_least=_LEAST),
        Check("why", "against reading once, work", reading),
        Check("why", "own peak memory, of what is resident", peak / length * 100, "%"),
    ]
    if bench.chap:
        ratio = speed_ratio(own, [timings["chap"]], "wall")
        checks.append(Check("why", "against chap, wall", ratio, at_least=_LEAST_OF_CHAP))
        smaller = others[0] / peak
        checks.append(
            Check("why", "memory, against chap's", smaller, at_least=_LEAST_MEMORY_OF_CHAP)
        )
    return Result(list(timings.values()), checks)


WHY_ROWS: dict[str, Need] = {"why": Need(why_row, memory=1.3)}
