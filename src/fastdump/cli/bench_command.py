"""``fastdump bench``: what this machine can do, and which options follow from it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import click

from fastdump.bench import COPY, Figures, measure, nameless_file, thread_counts
from fastdump.cli.completion import complete_pid
from fastdump.cli.table import print_table
from fastdump.crew import usual_threads
from fastdump.dump import default_threads
from fastdump.errors import FastdumpError
from fastdump.process import LiveProcess
from fastdump.text import printable, size

# Records as a program keeps them: text, numbers, pointers, bytes that do not compress. It ends with
# its standard input, so it cannot outlive us.
_FILLED = """
import random, sys
source = random.Random(7)
block = b"".join(
    b'{"id": %d, "user": "user%d@example.com", "state": "active"}\\0' % (i, source.randrange(9999))
    + b"".join((0x7F1200000000 + 16 * source.randrange(1 << 24)).to_bytes(8, "little")
               for _ in range(12))
    + source.randbytes(24) + bytes(source.randrange(64))
    for i in range(20_000)
)
held = [bytearray(block) for _ in range((512 << 20) // len(block))]
print("ready", flush=True)
sys.stdin.read()
"""


@click.command(name="bench")
@click.argument("pid", type=int, required=False, shell_complete=complete_pid)
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 3600),
    default=15,
    show_default=True,
    help="How long to measure, about, in all.",
)
@click.option(
    "--output-dir",
    "folder",
    metavar="DIR",
    default=".",
    help="Where a file without a name, of 1 GiB at the most, is written and is gone afterwards.  "
    "[default: here]",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 256),
    help="The most threads to measure with.  [default: the CPUs, at most 16]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    pid: int | None, seconds: float, folder: str, threads: int | None, as_json: bool
) -> None:
    """Measure how fast a process can be read, scanned, compressed and written here; name what
    bounds a dump, and the options that follow.

    Without PID a process of our own is measured. A sample of 512 MiB at the most is read. The
    process is not stopped and does not grow.
    """
    most = threads or usual_threads()
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(nameless_file(folder))
        target = stack.enter_context(_filled()) if pid is None else pid
        process = stack.enter_context(LiveProcess(target))
        before = process.growth()
        with _progress() as progress:
            figures = measure(
                process, file, folder, seconds=seconds, threads=most, progress=progress
            )
        after = process.growth()
    if as_json:
        growth = {"target_before": before._asdict(), "target_after": after._asdict()}
        print(json.dumps({"pid": pid, "threads": most, **figures.as_dict(), **growth}))
    else:
        _print(figures, "PID" if pid is None else str(pid), folder, most)


@contextlib.contextmanager
def _filled() -> Iterator[int]:
    """A process with 512 MiB of records."""
    process = subprocess.Popen(
        [sys.executable, "-c", _FILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        try:
            assert process.stdout
            if process.stdout.readline() != b"ready\n":
                raise FastdumpError("the process to measure did not start", "name one: a PID")
            yield process.pid
        finally:
            process.kill()


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """The step that runs, on a terminal, else nothing."""
    if not sys.stderr.isatty():
        yield lambda step: None
        return
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        yield lambda step: status.update(step)


def _print(figures: Figures, pid: str, folder: str, threads: int) -> None:
    limit = figures.best(COPY).rate
    counts = thread_counts(threads)
    head = ("GB/s of memory", *(f"{n} threads" if n > 1 else "1 thread" for n in counts), "of copy")
    rows = []
    for step, runs in figures.steps.items():
        ratio = f", ratio {runs[-1].ratio:.2f}" if runs[-1].stored else ""
        rates = [f"{one.rate:.2f}" for one in runs]
        share = f"{max(one.rate for one in runs) / limit:.0%}"
        rows.append((step + ratio, *rates, share))
    print(f"sampled {size(figures.sampled)}, {figures.kernel}, written to {printable(folder)}\n")
    print_table(head, rows, right=range(1, len(head)))
    if not figures.direct:
        print("(no O_DIRECT on that file system)")
    print()
    ways = figures.ways()
    print_table(
        ("so", "GB/s of memory", "ratio", "bound by"),
        [
            (way.options, f"{way.rate:.2f}", f"{way.ratio:.2f}" if way.ratio else "-", way.bound)
            for way in ways
        ],
        right=(1, 2),
    )
    print(f"\n{advice(figures, pid)}")


def advice(figures: Figures, pid: str) -> str:
    """The commands that follow from the figures."""
    dumps = [way for way in figures.ways() if way.ratio]
    fastest, smallest = dumps[0], max(dumps, key=lambda way: way.ratio or 0)
    usual = default_threads("lz4" if "lz4" in fastest.options else "raw")
    few = f" --threads {fastest.threads}" if 2 * fastest.threads <= usual else ""
    verb, _, options = fastest.options.partition(" ")
    lines = [f"fastest    fastdump {verb} {pid} {options}{few}: bound by {fastest.bound}"]
    if smallest != fastest and smallest.rate:
        verb, _, options = smallest.options.partition(" ")
        lines.append(
            f"smallest   fastdump {verb} {pid} {options}: 1/{smallest.ratio:.1f} of the memory, "
            f"{fastest.rate / smallest.rate:.1f} times as long"
        )
    if fastest.bound == "the disk":
        lines.append("           a faster disk, or -o to another machine, is what would help")
    return "\n".join(lines)
