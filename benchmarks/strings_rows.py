"""The rows of ``fastdump strings``: live and on files, by kind of content.

Contents are images that are repeated: a heap, random bytes, text, zeros. How many strings there
are is found out with GNU strings on one and on two images in a row: each further image adds the
difference. On files the output is compared with that of GNU strings, byte for byte.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import engines
from engines import Bench, Engine, Job, Sample, Subject, fastdump, run_command
from fastdump._strings import kernels
from rows import (
    GIB,
    Check,
    Floor,
    Need,
    Result,
    against_peers,
    fresh_folder,
    interleave,
    program,
    speed_ratio,
)
from truth import WrongOutput

IMAGE_SIZE = 128 << 20
KINDS = ("heap", "random", "text", "zeros")
ROUNDS = 2  # strings(1) takes half a minute for 4 GiB
_SEED = 20240525


# --- contents -----------------------------------------------------------------------------------


def image_of(bench: Bench, kind: str) -> Path:
    """The image of a kind; made when it is first asked for."""
    if kind == "heap":
        return bench.image
    path = bench.image.with_name(f"{kind}.image")
    if not path.exists() or path.stat().st_size != IMAGE_SIZE:
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            for block in _blocks(kind):
                file.write(block)
            file.truncate(IMAGE_SIZE)
        part.rename(path)
    return path


def _blocks(kind: str) -> Iterator[bytes]:
    source = random.Random(_SEED)
    length = 0
    while length < IMAGE_SIZE:
        if kind == "zeros":
            block = bytes(1 << 20)
        elif kind == "random":
            block = source.randbytes(1 << 20)
        else:
            block = "".join(_log_line(source) for _ in range(10_000)).encode()
        length += len(block)
        yield block


def _log_line(source: random.Random) -> str:
    return (
        f"2024-05-01 12:{source.randrange(60):02}:{source.randrange(60):02} INFO "
        f"[worker-{source.randrange(32)}] request served id={source.getrandbits(48):012x} "
        f"path=/api/v1/items/{source.randrange(100_000)} took {source.randrange(500)} ms\n"
    )


def expected_strings(bench: Bench, kind: str, size: int) -> int:
    """How many strings GNU strings finds in *size* bytes of images."""
    image = image_of(bench, kind)
    counts = []
    for times in (1, 2):
        script = 'for i in $(seq "$2"); do cat "$1"; done | strings | wc -l'
        done = run_command(("sh", "-c", script, "sh", image, str(times)))
        counts.append(int(done.stdout))
    images, rest = divmod(size, image.stat().st_size)
    if rest:
        raise ValueError("--size must be a multiple of the image's")
    return counts[0] + (images - 1) * (counts[1] - counts[0])


@contextmanager
def file_of(bench: Bench, kind: str, size: int) -> Iterator[Path]:
    """A file of *size* bytes, in memory."""
    with fresh_folder(bench.tmpfs) as folder:
        path = folder / f"{kind}.bytes"
        script = 'for i in $(seq "$2"); do cat "$1"; done > "$3"'
        image = image_of(bench, kind)
        times = str(size // image.stat().st_size)
        run_command(("sh", "-c", script, "sh", image, times, path))
        yield path


# --- engines ------------------------------------------------------------------------------------


def run_strings(bench: Bench, words: Sequence[str | Path], strings: int, length: int) -> Sample:
    """``fastdump strings``, its output into nothing; it must find as many strings."""
    script = '"$@" --stats 2>&1 > /dev/null'
    done = run_command(("sh", "-c", script, "sh", bench.fastdump, "strings", *words))
    found = re.search(r" in ([\d.]+) s: .*; ([\d,]+) strings", done.stdout)
    if not found or int(found[2].replace(",", "")) != strings:
        raise WrongOutput(f"fastdump strings: {strings} strings expected: {done.stdout}")
    return Sample(done.seconds, float(found[1]), length)


def live(strings: int, *options: str, kernel: str = "") -> Callable[[Job], Sample]:
    """Of the filled memory of the target alone."""

    def run(job: Job) -> Sample:
        truth = job.subject.truth
        addresses = f"{truth.start:x}-{truth.end:x}"
        only = ("--exclude", "????", "--include", addresses)
        words = (*options, *only, "--threads", str(job.bench.threads), str(job.subject.pid))
        bench = job.bench
        if kernel:
            bench = replace(bench, fastdump=_with_kernel(bench, kernel, job.folder))
        return run_strings(bench, words, strings, job.subject.length)

    return run


def _with_kernel(bench: Bench, kernel: str, folder: Path) -> Path:
    path = folder / kernel
    path.write_text(f'#!/bin/sh\nFASTDUMP_KERNEL={kernel} exec "{bench.fastdump}" "$@"\n')
    path.chmod(0o700)
    return path


def on_file(path: Path, strings: int, *options: str) -> Callable[[Job], Sample]:
    return lambda job: run_strings(job.bench, (*options, path), strings, path.stat().st_size)


def peer(path: Path, *command: str) -> Callable[[Job], Sample]:
    """Another tool on the file, its output into nothing; it may find nothing."""
    program(command[0])

    def run(job: Job) -> Sample:
        script = '"$@" > /dev/null || test $? = 1'
        done = run_command(("sh", "-c", script, "sh", *command, path))
        return Sample(done.seconds, done.seconds, path.stat().st_size)

    return run


# --- rows ---------------------------------------------------------------------------------------


@contextmanager
def filled(bench: Bench, kind: str, size: int) -> Iterator[Subject]:
    with replace(bench, image=image_of(bench, kind)).fill(size) as subject:
        yield subject


def rated(
    row: str, bench: Bench, plan: Sequence[Engine], floors: Sequence[Floor], subject: Subject
) -> Result:
    """The first engine against peers, in few rounds."""
    bench = replace(bench, repeat=min(bench.repeat, ROUNDS))
    timings = interleave(bench, row, plan, {"full": subject}, bench.tmpfs)
    return against_peers(row, plan[0].name, timings, floors)


def live_row(kind: str, at_least: float, bench: Bench) -> Result:
    """Against what one would do today: gcore, then strings on its file."""
    strings = expected_strings(bench, kind, bench.size)
    gcore = engines.gcore('strings -a "$1" > /dev/null')
    plan = (Engine("fastdump strings", live(strings)), Engine("gcore, strings -a", gcore))
    floors = (Floor(("gcore, strings -a",), "wall", at_least),)
    with filled(bench, kind, bench.size) as subject:
        return rated(f"strings-live-{kind}", bench, plan, floors, subject)


def rate_row(kind: str, bench: Bench) -> Result:
    """Against reading alone, with as many threads; and the kernels against one another."""
    row = f"strings-rate-{kind}"
    strings = expected_strings(bench, kind, bench.size)
    both = {"avx2", "avx512"} <= set(kernels())
    plan = (
        Engine("read only", fastdump("null")),
        Engine("offsets only", live(strings, "--count")),
        Engine("lines", live(strings)),
        *([Engine("lines, AVX2", live(strings, kernel="avx2"))] if both else ()),
        Engine("lines with addresses", live(strings, "-t", "x")),
    )
    with filled(bench, kind, bench.size) as subject:
        timings = interleave(bench, row, plan, {"full": subject}, bench.tmpfs)
    read = timings["read only"]

    def ratio(name: str, base: str = "") -> float:
        return speed_ratio(timings[name], [timings[base] if base else read], "work")

    checks = [
        Check(row, f"{name} against reading, work", ratio(name), at_least=at_least)
        for name, at_least in (("offsets only", 0.8), ("lines", 0.7), ("lines with addresses", 0.7))
    ]
    if both:
        against = ratio("lines, AVX2", "lines")
        checks.append(Check(row, "AVX2 against AVX-512, work", against, at_least=0.65))
    return Result(list(timings.values()), checks)


def file_row(kind: str, bench: Bench) -> Result:
    """On a file in the page cache, byte for byte what GNU strings prints."""
    row = f"strings-file-{kind}"
    strings = expected_strings(bench, kind, bench.size)
    with file_of(bench, kind, bench.size) as path:
        script = 'cmp <("$1" strings -t x "$2") <(strings -a -t x "$2")'
        run_command(("bash", "-c", script, "bash", bench.fastdump, path))
        plan = (
            Engine("fastdump strings -t x", on_file(path, strings, "-t", "x")),
            Engine("strings -a -t x", peer(path, "strings", "-a", "-t", "x")),
            Engine("eu-strings -a -t x", peer(path, "eu-strings", "-a", "-t", "x")),
            Engine("rg -a -o", peer(path, "rg", "-a", "-o", "-N", r"[\t\x20-\x7e]{4,}")),
        )
        floors = (
            Floor(("strings -a -t x",), "wall", 25),
            Floor(("rg -a -o",), "wall", 10),
            Floor(("eu-strings -a -t x",), "wall", None),
        )
        with engines.small_subject() as subject:
            return rated(row, bench, plan, floors, subject)


def utf16_row(bench: Bench) -> Result:
    row = "strings-utf16"
    with file_of(bench, "heap", bench.size) as path:
        script = 'cmp <("$1" strings -e l -t x "$2") <(strings -a -e l -t x "$2")'
        run_command(("bash", "-c", script, "bash", bench.fastdump, path))
        done = run_command((bench.fastdump, "strings", "-e", "l", "--count", path))
        plan = (
            Engine("fastdump strings -e l", on_file(path, int(done.stdout), "-e", "l")),
            Engine("strings -a -e l", peer(path, "strings", "-a", "-e", "l")),
        )
        floors = (Floor(("strings -a -e l",), "wall", 60),)
        with engines.small_subject() as subject:
            return rated(row, bench, plan, floors, subject)


def top_row(bench: Bench) -> Result:
    """``--top 20`` against the plain scan, and the memory it takes."""
    size = min(2 * GIB, bench.size)
    strings = expected_strings(bench, "heap", size)
    plan = (
        Engine("strings", live(strings)),
        Engine("strings --top 20", live(strings, "--top", "20")),
        Engine("strings --top 20 --exact", live(strings, "--top", "20", "--exact")),
    )
    row = "strings-top"
    with filled(bench, "heap", size) as subject:
        timings = interleave(bench, row, plan, {"full": subject}, bench.tmpfs)
        words = (bench.fastdump, "strings", "--top", "20", str(subject.pid))
        peak = int(engines.run_for_peak(words).rpartition("\n")[2])
    times = {name: timing.median("wall") / timings["strings"].median("wall") for name, timing in
             timings.items()}  # fmt: skip
    return Result(
        list(timings.values()),
        [
            Check(row, "times the plain scan, wall", times["strings --top 20"], below=3),
            Check(row, "the same, --exact", times["strings --top 20 --exact"]),
            Check(row, "own peak memory", peak / 1e6, "MB", below=300),
        ],
    )


def quick_row(bench: Bench) -> Result:
    """The first line of a large process, and all of a small one."""
    row = "strings-quick"
    with filled(bench, "heap", bench.size) as subject:
        script = '"$1" strings "$2" | head -1'
        command = ("sh", "-c", script, "sh", bench.fastdump, str(subject.pid))
        first = min(run_command(command).seconds for _ in range(5))
    with engines.small() as target:
        command = (bench.fastdump, "strings", str(target.pid))
        small = min(run_command(command).seconds for _ in range(10))
    return Result(
        checks=[
            Check(row, "first line of the full target, best of 5", first * 1000, "ms", below=300),
            Check(row, "a small process, best of 10", small * 1000, "ms", below=200),
        ]
    )


def memory_row(bench: Bench) -> Result:
    """Own peak memory on text, where the output is as large as the input."""
    row = "strings-memory"
    checks = []
    for kind in ("heap", "text"):
        with filled(bench, kind, bench.size) as subject:
            words = ("sh", "-c", '"$1" strings -t x "$2" > /dev/null', "sh")
            peak = engines.run_for_peak((*words, bench.fastdump, str(subject.pid)))
            checks.append(Check(row, f"own peak memory, {kind}", int(peak) / 1e6, "MB", below=150))
    return Result(checks=checks)


STRINGS_ROWS: dict[str, Need] = {
    "strings-live-heap": Need(partial(live_row, "heap", 50), memory=2),
    "strings-live-random": Need(partial(live_row, "random", 60), memory=2),
    "strings-live-text": Need(partial(live_row, "text", 25), memory=2),
    "strings-rate-heap": Need(partial(rate_row, "heap"), memory=1),
    "strings-rate-zeros": Need(partial(rate_row, "zeros"), memory=1),
    **{f"strings-file-{kind}": Need(partial(file_row, kind), memory=1) for kind in KINDS},
    "strings-utf16": Need(utf16_row, memory=1),
    "strings-top": Need(top_row, memory=1),
    "strings-quick": Need(quick_row, memory=1),
    "strings-memory": Need(memory_row, memory=1),
}
