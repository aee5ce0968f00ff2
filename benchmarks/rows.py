"""The rows: what is measured, and what it must come to.

Every row is a function of the bench that gives timings and checks. A check without a limit is
there for information. The limits are the project's own promises; they are ratios within one run,
since absolute figures drift on shared machines.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import engines
from engines import Bench, Engine, Job, Sample, Subject, fastdump, run_command

GIB = 1 << 30
FORMATS = ("raw", "raw-lz4", "core", "lz4")


@dataclass(frozen=True)
class Check:
    """A figure, and the limit it must keep to, if any."""

    row: str
    what: str
    value: float
    unit: str = "x"
    at_least: float | None = None
    below: float | None = None

    @property
    def verdict(self) -> str:
        if self.at_least is None and self.below is None:
            return "-"
        kept = (self.at_least is None or self.value >= self.at_least) and (
            self.below is None or self.value < self.below
        )
        return "PASS" if kept else "FAIL"


@dataclass(frozen=True)
class Timing:
    """One engine of one row over its rounds."""

    row: str
    engine: str
    samples: list[Sample]

    def median(self, measure: str) -> float:
        return statistics.median(sample.figure(measure) for sample in self.samples)

    def least(self, measure: str) -> float:
        return min(sample.figure(measure) for sample in self.samples)

    @property
    def rate(self) -> float:
        """GB/s of the median run's work."""
        return self.samples[0].length / self.median("work") / 1e9


@dataclass
class Result:
    timings: list[Timing] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)


Row = Callable[[Bench], Result]


class Absent(Exception):
    """A program that a row needs is not installed: it is left out, which is no failure."""


def program(name: str) -> str:
    """The path of a program.

    Raises:
        Absent: It is not installed.
    """
    if path := shutil.which(name):
        return path
    raise Absent(f"{name} is not installed")


# --- running ------------------------------------------------------------------------------------


@contextmanager
def fresh_folder(parent: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def interleave(
    bench: Bench,
    row: str,
    plan: Sequence[Engine],
    subjects: dict[str, Subject],
    medium: Path,
) -> dict[str, Timing]:
    """Run all engines once for warming up, then *repeat* rounds, each begun by another one.

    The warm-up round is checked like the others: it is what touches memory and medium first.
    """
    samples: dict[str, list[Sample]] = {engine.name: [] for engine in plan}
    for number in range(bench.repeat + 1):
        turn = number % len(plan)
        for engine in (*plan[turn:], *plan[:turn]):
            if medium == bench.disk:
                os.sync()  # nobody pays for what another one has left to be written
            with fresh_folder(medium) as folder:
                sample = engine.run(Job(bench, subjects[engine.subject], folder))
            if number:
                samples[engine.name].append(sample)
    return {name: Timing(row, name, taken) for name, taken in samples.items()}


def speed_ratio(own: Timing, peers: Sequence[Timing], measure: str) -> float:
    """How many times faster *own* is than the best of *peers*: the median over the rounds."""
    return statistics.median(
        min(peer.samples[number].figure(measure) for peer in peers) / sample.figure(measure)
        for number, sample in enumerate(own.samples)
    )


@dataclass(frozen=True)
class Floor:
    """fastdump, the row's first engine, must reach *at_least* of the best of *peers*."""

    peers: tuple[str, ...]
    measure: str
    at_least: float | None


def against_peers(
    row: str, own: str, timings: dict[str, Timing], floors: Sequence[Floor]
) -> Result:
    """The first engine, called *own*, against each floor's peers."""
    first = next(iter(timings.values()))
    checks = []
    for floor in floors:
        ratio = speed_ratio(first, [timings[peer] for peer in floor.peers], floor.measure)
        what = f"{own} against {' or '.join(floor.peers)}, {floor.measure}"
        checks.append(Check(row, what, ratio, at_least=floor.at_least))
    return Result(list(timings.values()), checks)


def speed_row(
    name: str, medium: str, plan: Sequence[Engine], floors: Sequence[Floor], bench: Bench
) -> Result:
    """One target of the full size, several engines, fastdump first."""
    with bench.fill(bench.size) as subject:
        timings = interleave(bench, name, plan, {"full": subject}, getattr(bench, medium))
    return against_peers(name, "fastdump", timings, floors)


# --- speed --------------------------------------------------------------------------------------

NULL = partial(
    speed_row,
    "null",
    "tmpfs",
    (
        Engine("fastdump null", fastdump("null")),
        Engine("bare read", engines.bare_read),
        Engine("bare memcpy", engines.bare_memcpy),
    ),
    (Floor(("bare read",), "work", 0.95), Floor(("bare read",), "wall", None)),
)

RAW_TMPFS = partial(
    speed_row,
    "raw-tmpfs",
    "tmpfs",
    (
        Engine("fastdump raw", fastdump("raw")),
        Engine("bare copy", engines.bare_copy("copy")),
        Engine("dd loop", engines.dd_loop),
        Engine("gcore", engines.gcore()),
    ),
    (
        Floor(("bare copy",), "work", 0.90),
        Floor(("bare copy",), "wall", None),
        Floor(("dd loop",), "wall", 1.6),
        Floor(("gcore",), "wall", 1.6),
    ),
)

RAW_DISK = partial(
    speed_row,
    "raw-disk",
    "disk",
    (
        Engine("fastdump raw", fastdump("raw", default_threads=True)),
        Engine("bare write-direct", engines.bare_write_direct()),
        Engine("bare write-direct, 1 thread", engines.bare_write_direct(1)),
        Engine("bare copy-direct", engines.bare_copy("copy-direct")),
        Engine("bare copy, buffered", engines.bare_copy("copy")),
        Engine("gcore, sync", engines.gcore('sync "$1"')),
    ),
    (
        Floor(("bare write-direct", "bare write-direct, 1 thread"), "work", 0.90),
        Floor(("bare copy-direct",), "work", None),
        Floor(("bare copy, buffered",), "work", None),
        Floor(("gcore, sync",), "wall", 1.7),
    ),
)

LZ4_SPEED = partial(
    speed_row,
    "lz4",
    "tmpfs",
    (
        Engine("fastdump lz4, to /dev/null", engines.fastdump_to_nothing),
        Engine("lz4 -1, all cores, to /dev/null", engines.lz4_on_all_cores),
    ),
    (
        Floor(("lz4 -1, all cores, to /dev/null",), "wall", 0.90),
        Floor(("lz4 -1, all cores, to /dev/null",), "work", None),
    ),
)

LZ4_DISK = partial(
    speed_row,
    "lz4-disk",
    "disk",
    (
        Engine("fastdump lz4", fastdump("lz4", default_threads=True)),
        Engine("gcore, lz4 -1, sync", engines.gcore('lz4 -1 -q "$1" "$1.lz4"; sync "$1.lz4"')),
    ),
    (Floor(("gcore, lz4 -1, sync",), "wall", 4.0),),
)


def lz4_row(bench: Bench) -> Result:
    try:
        result = LZ4_SPEED(bench)
    finally:
        engines.remove_parts(bench)
    own, peer = result.timings
    result.checks += [
        Check("lz4", "bytes of memory for each byte of fastdump's output", own_ratio(own)),
        Check("lz4", "the same of lz4 -1", own_ratio(peer)),
        Check("lz4", "lz4 -b1 -B7 of the image in memory, one core", lz4_in_memory(bench), "GB/s"),
    ]
    return result


def own_ratio(timing: Timing) -> float:
    return timing.samples[0].length / timing.median("size")


def lz4_in_memory(bench: Bench) -> float:
    """GB/s of lz4's own benchmark."""
    done = run_command(("sh", "-c", 'lz4 -b1 -B7 -i2 "$1" 2>&1', "sh", bench.image))
    figures = re.findall(r"\([\d.]+\), *([\d.]+) MB/s", done.stdout)
    return float(figures[-1]) / 1000


# --- zero pages ---------------------------------------------------------------------------------

ZERO_SHARE = 40
PROPORTION = 1 / (1 - ZERO_SHARE / 100)


def zeros_row(bench: Bench) -> Result:
    """The full target against two with 40% zeros: pages of the zero page, and pages of their own.

    Reading a page is the only way to learn that it is a page of zeros of its own, so that case
    has no floor for reading; what it spares is compression and writing.
    """
    result = Result()
    options = {"full": (), "zero": (f"zero={ZERO_SHARE}",), "reszero": (f"reszero={ZERO_SHARE}",)}
    with ExitStack() as stack:
        subjects = {
            name: stack.enter_context(bench.fill(bench.size, *words))
            for name, words in options.items()
        }
        for format in ("null", "raw", "lz4"):
            plan = [Engine(f"{format}, {name}", fastdump(format), name) for name in subjects]
            timings = interleave(bench, "zeros40", plan, subjects, bench.tmpfs)
            result.timings += timings.values()
            full = [timings[f"{format}, full"]]
            for name, floor in (("zero", 0.85 * PROPORTION), ("reszero", None)):
                ratio = speed_ratio(timings[f"{format}, {name}"], full, "work")
                what = f"{format}, {ZERO_SHARE}% {name} against full, work"
                result.checks.append(Check("zeros40", what, ratio, at_least=floor))
    return result


# --- frugality ----------------------------------------------------------------------------------


def memory_row(bench: Bench) -> Result:
    """Own peak memory, whatever the size of the target."""
    result = Result()
    for size in (2 * GIB,) if bench.quick else (2 * GIB, 12 * GIB):
        with bench.fill(size) as subject:
            for format in ("null", *FORMATS):
                with fresh_folder(bench.disk) as folder:
                    sample = fastdump(format, peak=True)(Job(bench, subject, folder))
                what = f"own peak memory, {format}, {size // GIB} GiB"
                result.checks.append(Check("memory", what, sample.peak / 1e6, "MB", below=150))
    return result


def footprint(pid: int) -> int:
    """Bytes of memory that a process costs, its page tables included."""
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(re.findall(r"^(\w+):\s+(\d+) kB$", status, re.MULTILINE))
    return (int(fields["VmRSS"]) + int(fields["VmPTE"])) * 1024


def sparse_row(bench: Bench) -> Result:
    """2 TiB reserved with 1,000 pages touched, and 64 GiB of shared memory never touched."""
    result = Result()
    for mode in ("private", "shared"):
        for format in ("null", *FORMATS):
            with engines.sparse(mode) as subject, fresh_folder(bench.tmpfs) as folder:
                run = fastdump(format, "--all")
                before = footprint(subject.pid)
                sample = run(Job(bench, subject, folder))
                growth = footprint(subject.pid) - before
            for what, value, unit, limit in (
                ("work", sample.work, "s", 1.0),
                ("output", sample.size / 1e6, "MB", 20.0),
                ("growth of the target", growth / 1e6, "MB", 1.0),
            ):
                what = f"{mode}, {format}: {what}"
                result.checks.append(Check("sparse", what, value, unit, below=limit))
    return result


def start_row(bench: Bench) -> Result:
    """How long the shortest commands take, as a person at a terminal notices it."""
    with engines.small() as target:
        commands = {"--help": (100, ("--help",)), "maps": (250, ("maps", str(target.pid)))}
        checks = []
        for name, (limit, words) in commands.items():
            runs = [run_command((bench.fastdump, *words)).seconds for _ in range(10)]
            what = f"fastdump {name}, best of 10"
            checks.append(Check("start", what, min(runs) * 1000, "ms", below=limit))
    return Result(checks=checks)


@dataclass(frozen=True)
class Need:
    """A row, and what it asks of the machine, in multiples of --size.

    ``fixed``: bytes of both memory and disk, with or without --size, but not with --quick.
    """

    run: Row
    memory: float = 0.0
    disk: float = 0.0
    fixed: int = 0


ROWS: dict[str, Need] = {
    "null": Need(NULL, memory=1),
    "raw-tmpfs": Need(RAW_TMPFS, memory=2),
    "raw-disk": Need(RAW_DISK, memory=2, disk=1),
    "lz4": Need(lz4_row, memory=2.2),
    "lz4-disk": Need(LZ4_DISK, memory=1.5, disk=1.7),
    "zeros40": Need(zeros_row, memory=3.6),
    "memory": Need(memory_row, fixed=12 * GIB),
    "sparse": Need(sparse_row),
    "start": Need(start_row),
}
