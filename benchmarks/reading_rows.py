"""The rows of dumps that are read back: all of one, and 4 KiB anywhere in it."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines import Bench, Engine, Job, Sample, Subject, run_command
from rows import Check, Floor, Need, Result, fresh_folder
from strings_rows import filled, rated
from truth import PAGE, WrongOutput

_READS = 2000
_SEED = 20240525


@contextmanager
def packed(bench: Bench) -> Iterator[tuple[Subject, Path]]:
    """A heap, and its ``.core.lz4`` in memory."""
    with filled(bench, "heap", bench.size) as subject, fresh_folder(bench.tmpfs) as folder:
        path = folder / "heap.core.lz4"
        run_command((bench.fastdump, "dump", str(subject.pid), "-o", path, "-q"))
        yield subject, path


def unpacking(fastdump: Path, path: Path) -> Iterator[Engine]:
    """All frames unpacked, and their checksums checked, by fastdump and by lz4(1)."""

    def verify(job: Job) -> Sample:
        done = run_command((job.bench.fastdump, "info", "--verify", "--json", path))
        told = json.loads(done.stdout)
        if told["lost"] or told["problems"]:
            raise WrongOutput(f"fastdump info: {told['lost']} {told['problems']}")
        return Sample(done.seconds, done.seconds, told["content"])

    def lz4(job: Job) -> Sample:
        """One lz4(1) a core, all at once: what they unpack of one file in that time."""
        script = 'for i in $(seq "$1"); do lz4 -dc "$2" > /dev/null & done; wait'
        done = run_command(("sh", "-c", script, "sh", str(job.bench.threads), path))
        share = done.seconds / job.bench.threads
        return Sample(share, share, length)

    length = json.loads(run_command((fastdump, "info", "--json", path)).stdout)["content"]
    yield Engine("fastdump info --verify", verify)
    yield Engine("lz4 -dc on each core", lz4)


def walk_row(bench: Bench) -> Result:
    """Against one lz4(1) on each core."""
    with packed(bench) as (subject, path):
        floors = (Floor(("lz4 -dc on each core",), "wall", 0.8),)
        return rated("lz4-walk", bench, list(unpacking(bench.fastdump, path)), floors, subject)


def read_row(bench: Bench) -> Result:
    """4 KiB at random addresses, by the Python API; each compared with what the target holds."""
    import fastdump

    source = random.Random(_SEED)
    print(f"lz4-read: seed {_SEED}", file=sys.stderr)
    times = []
    with (
        packed(bench) as (subject, path),
        fastdump.open(path) as dump,
        fastdump.attach(subject.pid) as live,
    ):
        truth = subject.truth
        for _ in range(_READS):
            address = source.randrange(truth.start, truth.end - PAGE)
            begun = time.perf_counter()
            found = dump.read(address, PAGE)
            times.append(time.perf_counter() - begun)
            if found != live.read(address, PAGE):
                raise WrongOutput(f"lz4-read: wrong bytes at {address:#x}")
    times.sort()
    middle, late = times[len(times) // 2], times[len(times) * 99 // 100]
    return Result(
        checks=[
            Check("lz4-read", "4 KiB anywhere, median", middle * 1e3, "ms", below=5),
            Check("lz4-read", "4 KiB anywhere, 99 of 100", late * 1e3, "ms", below=5),
        ]
    )


READING_ROWS: dict[str, Need] = {
    "lz4-walk": Need(walk_row, memory=1.6),
    "lz4-read": Need(read_row, memory=1.6),
}
