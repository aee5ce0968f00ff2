"""The rows of curves: by the size of the target, by threads, by the number of its regions.

Each engine of a point is named "ENGINE, NUMBER UNIT": so the report draws it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import engines
from engines import Bench, Engine, Job, Sample, Subject, fastdump, pattern, run_command, start
from rows import GIB, Check, Need, Result, footprint, interleave, speed_ratio
from strings_rows import ROUNDS
from truth import PAGE, PatternTruth, WrongOutput

SIZES = (0.25, 0.5, 1, 2, 4, 8, 12)  # GiB
REGIONS = (100, 1000, 10_000, 70_000)
DD_MOST = 1000  # regions: it starts a process for each
MAX_MAP_COUNT = Path("/proc/sys/vm/max_map_count")
SHORT = 0.5  # GiB: below, Python's start is what is measured


def few_rounds(bench: Bench) -> Bench:
    return replace(bench, repeat=min(bench.repeat, ROUNDS))


def size_row(bench: Bench) -> Result:
    """Seconds, own peak memory and growth of the target, against reading by a C loop."""
    row, bench, result = "scale-size", few_rounds(bench), Result()
    for gib in SIZES:
        if bench.quick and gib * GIB > bench.size:
            break
        x = f"{gib:g} GiB"
        plan = (
            Engine(f"fastdump null, {x}", fastdump("null", peak=True)),
            Engine(f"bare read, {x}", engines.bare_read),
            Engine(f"fastdump lz4, {x}", fastdump("lz4", peak=True)),
        )
        with bench.fill(int(gib * GIB)) as subject:
            before = footprint(subject.pid)
            timings = interleave(bench, row, plan, {"full": subject}, bench.tmpfs)
            growth = footprint(subject.pid) - before
        null, bare, lz4 = timings.values()
        result.timings += timings.values()
        least = 0.9 if gib > SHORT else None
        peak = max(null.median("peak"), lz4.median("peak"))
        result.checks += [
            Check(
                row, f"null against bare read, work, {x}", speed_ratio(null, [bare], "work"),
                at_least=least,
            ),
            Check(row, f"own peak memory, {x}", peak / 1e6, "MB", below=150),
            Check(row, f"growth of the target, {x}", growth / 1e6, "MB", below=1),
        ]  # fmt: skip
    return result


def with_threads(run: Callable[[Job], Sample], threads: int) -> Callable[[Job], Sample]:
    return lambda job: run(replace(job, bench=replace(job.bench, threads=threads)))


def threads_row(bench: Bench) -> Result:
    """1, 2, 4 ... and all CPUs, against the loops of the same number of threads."""
    row, bench, result = "scale-threads", few_rounds(bench), Result()
    counts = sorted({1 << i for i in range(8) if 1 << i < bench.threads} | {bench.threads})
    with bench.fill(min(bench.size, GIB)) as subject:
        for count in counts:
            x = f"{count} threads"
            runs = {
                "fastdump null": fastdump("null"),
                "bare read": engines.bare_read,
                "bare memcpy": engines.bare_memcpy,
                "fastdump lz4": fastdump("lz4"),
            }
            plan = [Engine(f"{name}, {x}", with_threads(run, count)) for name, run in runs.items()]
            timings = interleave(bench, row, plan, {"full": subject}, bench.tmpfs)
            result.timings += timings.values()
            null, bare, memcpy, _ = timings.values()
            result.checks += [
                Check(
                    row, f"null against bare read, work, {x}", speed_ratio(null, [bare], "work"),
                    at_least=0.9,
                ),
                Check(row, f"null against memcpy, GB/s, {x}", null.rate / memcpy.rate),
            ]  # fmt: skip
    return result


# --- regions ------------------------------------------------------------------------------------


def check_files(job: Job) -> None:
    """A file for each writable region, which is every second page."""
    truth, found = job.subject.truth, 0
    for path in job.folder.rglob("*_mem_*.bin"):
        address = int(path.stem.rpartition("_")[2], 16)
        if truth.start <= address < truth.end:
            found += 1
            if path.read_bytes() != truth.read(address, PAGE):
                raise WrongOutput(f"{path.name}: bytes differ")
    expected = (truth.end - truth.start) // PAGE // 2
    if found != expected:
        raise WrongOutput(f"{found} files of {expected}")


def dd_loop(job: Job) -> Sample:
    words = ("bash", "-c", engines.DD_LOOP, "bash", str(job.subject.pid), job.folder)
    done = run_command(words)
    check_files(job)
    return Sample(done.seconds, done.seconds, job.subject.length // 2)


def raw_files(job: Job) -> Sample:
    output = job.folder / "out"
    words = (job.bench.fastdump, "dump", str(job.subject.pid), "-q", "-f", "raw", "-o", output)
    done = run_command(words)
    check_files(job)
    return Sample(done.seconds, done.seconds, job.subject.length // 2)


def regions_row(bench: Bench) -> Result:
    """Pages by turns read-only and writable; as many as vm.max_map_count allows."""
    row, bench, result = "scale-regions", few_rounds(bench), Result()
    most = int(MAX_MAP_COUNT.read_text()) - 1000
    for count in REGIONS:
        count = min(count, most)
        x = f"{count} regions"
        plan = [
            Engine(f"fastdump lz4, {x}", fastdump("lz4")),
            Engine(f"gcore, {x}", engines.gcore()),
        ]
        if count <= DD_MOST:
            plan += [Engine(f"fastdump raw, {x}", raw_files), Engine(f"dd loop, {x}", dd_loop)]
        target = start("many_maps", count)
        told = target.truth
        truth = PatternTruth(told["start"], told["end"], partial(pattern, seed=told["seed"]))
        with Subject(target, truth) as subject:
            before = footprint(subject.pid)
            timings = interleave(bench, row, plan, {"full": subject}, bench.tmpfs)
            growth = footprint(subject.pid) - before
        result.timings += timings.values()
        lz4, gcore = timings[plan[0].name], timings[plan[1].name]
        result.checks += [
            Check(row, f"lz4, seconds, wall, {x}", lz4.median("wall"), "s", below=10),
            Check(row, f"lz4 against gcore, wall, {x}", speed_ratio(lz4, [gcore], "wall")),
        ]
        if count <= DD_MOST:
            raw, dd = timings[plan[2].name], timings[plan[3].name]
            ratio = speed_ratio(raw, [dd], "wall")
            result.checks.append(Check(row, f"raw against dd loop, wall, {x}", ratio))
        else:  # dd touches every page that it reads, gcore too
            result.checks.append(Check(row, f"growth, gcore's too, {x}", growth / 1e6, "MB"))
    return result


SCALING_ROWS: dict[str, Need] = {
    "scale-size": Need(size_row, memory=1.4, fixed=15 * GIB),
    "scale-threads": Need(threads_row, memory=1.4),
    "scale-regions": Need(regions_row),
}
