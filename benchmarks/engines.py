"""The engines: fastdump, and every peer that it is held against.

An engine runs one command into a fresh folder, times it, then checks what it wrote, outside of
the timed part. All get the same: the same target, the same medium, no terminal, standard output
into a pipe that stays all but empty.
"""

from __future__ import annotations

import functools
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import heap_image
from truth import (
    PAGE,
    FilledTruth,
    SparseTruth,
    Truth,
    WrongOutput,
    check_core,
    check_output,
    check_raw_file,
)

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tests.targets import Target, pattern, start  # noqa: E402

Command = Sequence[str | Path]


@dataclass(frozen=True)
class Finished:
    """A command that has ended well."""

    seconds: float
    stdout: str


def run_command(command: Command, stdin: str = "") -> Finished:
    """Run to the end, or raise WrongOutput with what it had to say."""
    with tempfile.TemporaryFile() as stderr, tempfile.TemporaryFile() as source:
        source.write(stdin.encode())
        source.seek(0)
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdin=source, stdout=subprocess.PIPE, stderr=stderr)
        assert process.stdout
        stdout = process.stdout.read()
        process.wait()
        seconds = time.perf_counter() - begun
        process.stdout.close()
        if process.returncode:
            stderr.seek(0)
            said = stderr.read().decode(errors="replace").strip()
            raise WrongOutput(f"{Path(command[0]).name}: status {process.returncode}: {said}")
    return Finished(seconds, stdout.decode(errors="replace"))


@dataclass(frozen=True)
class Sample:
    """One run of one engine. Seconds and bytes.

    ``wall`` is the whole command from fork to exit, ``work`` what the program measured of itself
    (the same as ``wall`` for programs that say nothing); ``length`` is what was dumped, ``size``
    what lies on the medium afterwards.
    """

    wall: float
    work: float
    length: int
    size: int = 0
    peak: int = 0

    def figure(self, measure: str) -> float:
        return float(getattr(self, measure))


@dataclass(frozen=True)
class Subject:
    """A target that runs, and what its memory holds; leaving the ``with`` block kills it."""

    target: Target
    truth: Truth

    def __enter__(self) -> Subject:
        return self

    def __exit__(self, *exception: object) -> None:
        self.target.kill()

    @property
    def pid(self) -> int:
        return self.target.pid

    @property
    def length(self) -> int:
        return self.truth.end - self.truth.start

    @property
    def ranges(self) -> str:
        return f"{self.truth.start:x} {self.truth.end:x}\n"


@dataclass
class Bench:
    """What all rows share: the options, the tools, the folders."""

    size: int
    repeat: int
    quick: bool
    threads: int
    tmpfs: Path
    disk: Path
    image: Path
    bare: Path
    fastdump: Path
    chap: Path | None = None

    def fill(self, size: int, *options: str) -> Subject:
        """Start a target with *size* bytes of the image, in 4 KiB pages unless asked for others.

        Args:
            options: ``zero=PERCENT``, ``reszero=PERCENT``: runs of zeros; ``thp``; see fill.c.
        """
        target = start("fill", self.image, size, *options)
        told = target.truth
        zeros = sum(int(option.partition("=")[2] or 0) for option in options)
        truth = FilledTruth(self.image, told["start"], told["end"], told["run_size"], zeros)
        return Subject(target, truth)


def sparse(mode: str) -> Subject:
    """Start a target with a huge mapping that holds little or nothing: ``private``, ``shared``."""
    target = start("sparse", mode)
    told = target.truth
    page = functools.partial(pattern, length=PAGE, seed=told["seed"])
    return Subject(target, SparseTruth(told["start"], told["end"], told["touched"], page))


def small() -> Target:
    """Start a process with next to no memory."""
    return start("fill", "zeros", 1 << 20)


def small_subject() -> Subject:
    """A target for rows that do not need one."""
    target = small()
    told = target.truth
    page = functools.partial(pattern, length=PAGE, seed=0)
    return Subject(target, SparseTruth(told["start"], told["end"], [], page))


@dataclass(frozen=True)
class Job:
    """One run of an engine: the folder is fresh and is removed afterwards."""

    bench: Bench
    subject: Subject
    folder: Path


@dataclass(frozen=True)
class Engine:
    """``subject`` is a key of the row's subjects."""

    name: str
    run: Callable[[Job], Sample]
    subject: str = "full"


def disk_usage(path: Path) -> int:
    """Bytes that a file or a folder takes on its medium; holes take none."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.stat().st_blocks * 512 for file in files)


# --- fastdump -----------------------------------------------------------------------------------


def work_seconds(report: dict[str, Any]) -> float:
    """Of a report: the walk alone for ``null``; otherwise all from the survey to the rename."""
    seconds = report["seconds"]
    if report["format"] == "null":
        return float(seconds["walk"] if "walk" in seconds else seconds["copy"])
    return float(seconds["total"])


# Runs a command and says its peak memory in a last line. A process counts as its own what its
# parent had resident when it was started, so the parent must be smaller than this runner is.
PEAK = """
import os, sys
pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(pid, 0)
print(usage.ru_maxrss * 1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def run_for_peak(command: Command, stdin: str = "") -> str:
    """The output of a command, and in its last line the peak memory of it and its children."""
    return run_command((sys.executable, "-IS", "-c", PEAK, *command), stdin).stdout.rstrip("\n")


def fastdump(
    format: str, *options: str, peak: bool = False, default_threads: bool = False
) -> Callable[[Job], Sample]:
    """``fastdump dump PID --format FORMAT``.

    Args:
        peak: Find out its peak memory too, which costs some time.
        default_threads: As many as it takes by itself, else as many as ``bare``.
    """

    def run(job: Job) -> Sample:
        output = job.folder / "out"
        where: Command = () if format == "null" else ("-o", output)
        around: Command = (sys.executable, "-IS", "-c", PEAK) if peak else ()
        command = (job.bench.fastdump, "dump", str(job.subject.pid), "--format", format, "--json")
        threads = () if default_threads else ("--threads", str(job.bench.threads))
        done = run_command((*around, *command, *threads, *options, *where))
        text, _, last = done.stdout.rstrip("\n").rpartition("\n") if peak else (done.stdout, "", 0)
        report = json.loads(text)
        size = 0
        if format != "null":
            size = disk_usage(output)
            check_output(format, output, job.subject.pid, job.subject.truth)
        accounted = report["bytes"]["read"] + report["bytes"]["zero"] + report["bytes"]["absent"]
        if accounted < job.subject.length:
            raise WrongOutput(f"fastdump accounts for {accounted} of {job.subject.length} bytes")
        return Sample(done.seconds, work_seconds(report), job.subject.length, size, int(last))

    return run


def fastdump_to_nothing(job: Job) -> Sample:
    """``fastdump dump PID -o - > /dev/null``: what ``lz4 -1 -c FILE > /dev/null`` is to a file.

    Its output is that of ``fastdump("lz4")``, which other rows check.
    """
    script = 'exec "$1" dump "$2" --json -o - 2>&1 > /dev/null'
    done = run_command(("sh", "-c", script, "sh", job.bench.fastdump, str(job.subject.pid)))
    report = json.loads(done.stdout)
    if report["bytes"]["read"] < job.subject.length or report["exit_code"]:
        raise WrongOutput(f"fastdump read {report['bytes']} of {job.subject.length} bytes")
    return Sample(done.seconds, work_seconds(report), job.subject.length, report["size"])


# --- the machine's limits -----------------------------------------------------------------------


def build_bare(output: Path) -> Path:
    """Compile bare.c if it is newer than the program."""
    source = HERE / "bare.c"
    if not output.exists() or output.stat().st_mtime < source.stat().st_mtime:
        output.parent.mkdir(parents=True, exist_ok=True)
        flags = ("-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-pthread")
        compiler = shlex.split(os.environ.get("CC", "cc"))
        subprocess.run([*compiler, *flags, source, "-o", output], check=True)
    return output


def run_bare(job: Job, *arguments: str | Path, threads: int = 0) -> Sample:
    count = str(threads or job.bench.threads)
    command: Command = (job.bench.bare, *arguments, "--threads", count)
    done = run_command(command, job.subject.ranges)
    report = json.loads(done.stdout)
    output = job.folder / "out"
    size = disk_usage(output) if output.exists() else 0
    return Sample(done.seconds, report["seconds"], report["bytes"], size)


def bare_read(job: Job) -> Sample:
    # 1 MiB as fastdump: the faster block where the L2 cache holds it.
    return run_bare(job, "read", str(job.subject.pid), "--block", str(1 << 20))


def bare_memcpy(job: Job) -> Sample:
    return run_bare(job, "memcpy", str(min(job.subject.length, 1 << 30)))


def bare_copy(command: str) -> Callable[[Job], Sample]:
    """``copy``, or ``copy-direct``: it reads the filled range alone, into one file."""

    def run(job: Job) -> Sample:
        output = job.folder / "out"
        sample = run_bare(job, command, str(job.subject.pid), output)
        check_raw_file(output, job.subject.truth)
        return sample

    return run


def bare_write_direct(threads: int = 0) -> Callable[[Job], Sample]:
    """O_DIRECT writes of as many bytes as the target has; nothing is read."""

    def run(job: Job) -> Sample:
        length = str(job.subject.length)
        return run_bare(job, "write-direct", job.folder / "out", length, threads=threads)

    return run


# --- other tools --------------------------------------------------------------------------------

# Word for word the loop of the blog post, but for the folder it writes to.
DD_LOOP = r"""
cd "$2"
procdump()
(
    cat /proc/$1/maps | grep "rw-p" | grep -v so | awk '{print $1}' | ( IFS="-"
    while read a b; do
        dd if=/proc/$1/mem bs=$( getconf PAGESIZE ) iflag=skip_bytes,count_bytes \
           skip=$(( 0x$a )) count=$(( 0x$b - 0x$a )) of="$1_mem_$a.bin"
    done )
)
procdump $1
"""


def dd_loop(job: Job) -> Sample:
    pid = job.subject.pid
    done = run_command(("bash", "-c", DD_LOOP, "bash", str(pid), job.folder))
    check_output("raw", job.folder, pid, job.subject.truth)
    return Sample(done.seconds, done.seconds, job.subject.length, disk_usage(job.folder))


def gcore(then: str = "") -> Callable[[Job], Sample]:
    """``gcore``, then perhaps a command of the shell on its file, ``$1``."""

    def run(job: Job) -> Sample:
        core = job.folder / f"core.{job.subject.pid}"
        gcore_part = 'gcore -o "${1%.*}" "${1##*.}"'
        script = f"set -e; {gcore_part}; {then}" if then else f"exec {gcore_part}"
        done = run_command(("bash", "-c", script, "bash", core))
        packed = core.with_name(core.name + ".lz4")
        if packed.exists():
            check_output("lz4", packed, job.subject.pid, job.subject.truth)
        else:
            with core.open("rb") as stream:
                check_core(stream, job.subject.truth)
        size = disk_usage(packed if packed.exists() else core)
        return Sample(done.seconds, done.seconds, job.subject.length, size)

    return run


def lz4_on_all_cores(job: Job) -> Sample:
    """``lz4 -1`` of the same bytes, one process a core, each on its part in tmpfs, into nothing."""
    parts, packed = lz4_parts(job.bench, job.subject.truth)
    script = 'for part; do lz4 -1 -c "$part" > /dev/null & jobs="$jobs $!"; done; '
    script += 'for job in $jobs; do wait "$job" || exit 1; done'
    done = run_command(("bash", "-c", script, "bash", *parts))
    return Sample(done.seconds, done.seconds, job.subject.length, packed)


PARTS = "parts"


def lz4_parts(bench: Bench, truth: Truth) -> tuple[list[Path], int]:
    """Files that hold the target's bytes, a part for each core; and what lz4 makes of them."""
    folder = bench.tmpfs / PARTS
    packed = folder / "packed"
    if not folder.exists():
        folder.mkdir()
        share = -(-(truth.end - truth.start) // bench.threads // PAGE) * PAGE
        for number, begin in enumerate(range(truth.start, truth.end, share)):
            end = min(begin + share, truth.end)
            with (folder / f"{number:03}.part").open("wb") as file:
                for address in range(begin, end, heap_image.MIB):
                    file.write(truth.read(address, min(heap_image.MIB, end - address)))
        script = 'cd "$1"; for part in *.part; do lz4 -1 -c "$part"; done | wc -c > packed'
        run_command(("bash", "-c", script, "bash", folder))
    return sorted(folder.glob("*.part")), int(packed.read_text())


def remove_parts(bench: Bench) -> None:
    shutil.rmtree(bench.tmpfs / PARTS, ignore_errors=True)
