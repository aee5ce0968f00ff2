"""Run the benchmarks: fastdump against its peers and against the machine's limits.

    python benchmarks/run.py [--size 4GiB] [--only ROW ...] [--repeat 5] [--quick]
                             [--tmpfs DIR] [--disk DIR] [--chap PATH] [--json FILE] [--record]

A benchmark is also a test: every output of every round is compared with the bytes that the target
holds, outside of the timed part. The exit status is 1 if an output is wrong or a limit missed.

Rows, and where each one is biased:

null       Reading alone (``--format null``) against a C loop of process_vm_readv. Nobody dumps to
           nothing: it isolates the walk. The loop is told where the data is; fastdump must ask.
raw-tmpfs  To memory, against a C loop of read and pwrite, the ``dd`` loop and gcore. For fastdump:
           its two or more threads; dd and gcore have one. Against it: it also dumps the stack
           and small mappings, and starts Python. gcore writes libraries' data as well (a few MB)
           and stops the target meanwhile, which is its purpose.
raw-disk   The same to a disk, each synced. ``write-direct`` writes memory that is already there,
           so it is a limit of the disk, not a rival. Caches below the guest are out of our reach.
lz4        Against ``lz4 -1`` on all cores, which reads a file in tmpfs; both throw their output
           away. fastdump reads another process. The ratio depends on the image: see heap_image.py.
lz4-disk   To a disk, synced, against gcore + lz4 -1, which uses one core and the disk twice, as
           anybody would type it. In tmpfs it is about 3.4 times.
zeros40    Targets of which 40% are zeros: the zero page (known without reading), or pages of
           their own (which must be read to be known).
memory     fastdump's own peak resident memory.
sparse     Huge reservations: time, output, and growth of the target.
start      The shortest commands, Python's start included.
strings-*  See strings_rows.py. For fastdump: threads, as above. Output goes to /dev/null, as no
           terminal or pipe takes so much; gcore needs room for its file. ``rg`` prints no offsets.
hexdump-*  A live process against ``hexdump -C`` on a file of the same bytes in memory: random ones,
           and zeros (one line, whatever the size). Output goes to /dev/null. Against it: it reads
           another process, and starts Python, which is most of what 128 MiB take.
leaks-*    Against it: memory is read four times, by one thread: malloc's walk, the marks, and twice
           where leaks are, which here is everywhere. The counts are the target's own.
lz4-walk   ``info --verify`` of a ``.core.lz4`` in memory against ``lz4 -dc``, which has one thread
           and throws its output away: as many of them at once as there are cores, since two
           cores of a virtual machine are rarely twice one. Both check all checksums.
lz4-read   4 KiB anywhere in it, through the Python API; the index is in memory by then.
pause-*    The longest time that a thread of the target which does nothing but look at the clock
           could not, for ``--pause fork`` and gcore, to memory: a disk would make gcore's longer.
why        ``why`` of a C++ service against reading the process once by one thread,
           and against chap, if ``--chap`` names it, which reads a core from memory.
search-yara  One rule of 200 words, on a live process. For fastdump: its threads. yara(1) reads
           libraries too, which are little here.
content-*  raw to memory and lz4 into nothing, by what the memory holds; huge pages too.
scale-*    Curves by size, threads and regions: see scaling_rows.py. In ``lz4`` of small regions the
           frames go to memory; gcore's core is not compressed.
real-*     Processes with a million items (a quarter with --quick), stopped so that what they hold
           can be checked. They are small: Python's start is most of what fastdump takes.

Times are of two kinds: "wall" is the whole command from fork to exit; "work" is what a program
says of itself (fastdump from its survey to the rename, bare from the moment all threads are
ready), and the same as wall for the others. A ratio is the median over the rounds of
peer's / fastdump's time of the same round.
"""

from __future__ import annotations

import argparse
import compileall
import gc
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import engines
import heap_image
import report
from content_rows import CONTENT_ROWS
from engines import HERE, Bench
from heap_image import parse_size
from hexdump_rows import HEXDUMP_ROWS
from leaks_rows import LEAKS_ROWS
from pause_rows import PAUSE_ROWS
from reading_rows import READING_ROWS
from real_rows import REAL_ROWS
from rows import ROWS as DUMP_ROWS
from rows import Absent, Need, Result
from scaling_rows import SCALING_ROWS
from search_rows import SEARCH_ROWS
from strings_rows import STRINGS_ROWS
from truth import WrongOutput
from why_rows import WHY_ROWS

ROWS = DUMP_ROWS | STRINGS_ROWS | SEARCH_ROWS | HEXDUMP_ROWS | READING_ROWS | PAUSE_ROWS
ROWS |= CONTENT_ROWS | SCALING_ROWS | REAL_ROWS | WHY_ROWS | LEAKS_ROWS
WORK = HERE.parent / "build" / "benchmarks"
HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"
RESERVE = 1 << 30  # memory and disk that stay free


# --- the machine --------------------------------------------------------------------------------


def first_match(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    return match[1].strip() if match else ""


def say(*command: str | Path) -> str:
    """The output of a command, empty if there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def version(*command: str | Path) -> str:
    return first_match(r"(\d+\.[\d.]+\S*)", say(*command).partition("\n")[0])


def setting(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def file_system(path: Path) -> str:
    mounted = say("findmnt", "-n", "-o", "FSTYPE", "-T", path).splitlines()
    return mounted[-1] if mounted else ""


def busy_cpus(seconds: float = 2) -> float:
    """How many CPUs others keep busy; not the load average, which remembers the last run."""

    def idle() -> int:  # ticks: proc_stat(5), idle and iowait
        return sum(map(int, setting("/proc/stat").partition("\n")[0].split()[4:6]))

    before, begun = idle(), time.monotonic()
    time.sleep(seconds)
    ticks = (time.monotonic() - begun) * os.sysconf("SC_CLK_TCK")
    return max((os.cpu_count() or 1) - (idle() - before) / ticks, 0.0)


def describe_machine(bench: Bench) -> dict[str, Any]:
    """What a reader needs to judge the figures; no names of hosts, no paths."""
    memory = first_match(r"^MemTotal: *(\d+)", setting("/proc/meminfo"))
    return {
        "cpu": first_match(r"^model name\s*:(.*)", setting("/proc/cpuinfo")) or platform.machine(),
        "cores": os.cpu_count(),
        "threads": bench.threads,
        "load": round(busy_cpus(), 1),
        "memory_gib": round(int(memory or 0) / (1 << 20), 1),
        "virtual": "hypervisor" in setting("/proc/cpuinfo"),
        "kernel": platform.release().partition("-")[0],
        "huge_pages": first_match(r"\[(\w+)\]", setting(HUGE_PAGES)),
        "tmpfs": file_system(bench.tmpfs),
        "disk": file_system(bench.disk),
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()),
        "versions": {
            "fastdump": version(bench.fastdump, "--version"),
            "gdb": first_match(r"(\d+\.[\d.]+)\s*$", say("gdb", "--version").partition("\n")[0]),
            "lz4": version("lz4", "--version").rstrip(","),
            "dd": version("dd", "--version"),
            "strings": first_match(r"([\d.]+)\s*$", say("strings", "--version").partition("\n")[0]),
            "eu-strings": version("eu-strings", "--version"),
            "rg": version("rg", "--version"),
            "hexdump": version("hexdump", "--version"),
            "yara": version("yara", "--version"),
            "node": version("node", "--version"),
            "java": version("java", "--version"),
            "postgres": version("postgres", "--version"),
            "redis-server": version("redis-server", "--version"),
            "cc": first_match(r"(\d+\.\d+\.\d+)\s*$", say("cc", "--version").partition("\n")[0]),
        },
    }


def available_memory() -> int:
    return int(first_match(r"^MemAvailable: *(\d+)", setting("/proc/meminfo"))) * 1024


def lacking(bench: Bench, need: Need) -> str:
    """What the machine has too little of for a row; empty if nothing."""
    fixed = RESERVE + (0 if bench.quick else need.fixed)
    memory = int(need.memory * bench.size) + fixed
    if available_memory() < memory:
        return f"it needs {memory / 1e9:.1f} GB of free memory"
    disk = int(need.disk * bench.size) + fixed
    if shutil.disk_usage(bench.disk).free < disk:
        return f"it needs {disk / 1e9:.1f} GB of free disk"
    return ""


# --- the record -----------------------------------------------------------------------------------


def as_record(result: Result) -> dict[str, Any]:
    """What was measured, for JSON."""
    return {
        "timings": [
            {
                "row": timing.row,
                "engine": timing.engine,
                "gb_per_second": round(timing.rate, 3),
                "samples": [
                    {k: round(v, 4) for k, v in asdict(sample).items()} for sample in timing.samples
                ],
            }
            for timing in result.timings
        ],
        "checks": [
            {**asdict(check), "value": round(check.value, 4), "verdict": check.verdict}
            for check in result.checks
        ],
    }


def read_record(path: Path) -> dict[str, Any] | None:
    """The record, if there is one."""
    return json.loads(path.read_text()) if path.exists() else None


def write_record(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


# --- running ------------------------------------------------------------------------------------


def run_row(name: str, bench: Bench) -> tuple[Result | Absent, str]:
    """Run a row; also why it has failed or was left out, if so."""
    need = ROWS[name]
    if lack := lacking(bench, need):
        return Result(), f"left out: {lack}"
    try:
        return need.run(bench), ""
    except Absent as absent:
        return absent, ""
    except (WrongOutput, OSError, KeyError, ValueError) as error:
        return Result(), f"{type(error).__name__}: {error}"


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], epilog=f"rows: {', '.join(ROWS)}"
    )
    parser.add_argument("--size", type=parse_size, help="of the target (default: 4GiB)")
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", default=list(ROWS))
    parser.add_argument("--repeat", type=int, help="rounds after the warm-up (default: 5)")
    parser.add_argument("--quick", action="store_true", help="1GiB, 3 rounds, no 12 GiB target")
    parser.add_argument("--tmpfs", type=Path, default=Path("/dev/shm"), metavar="DIR")
    parser.add_argument("--disk", type=Path, default=WORK, metavar="DIR")
    parser.add_argument("--image", type=Path, default=WORK / "heap.image", help="made if absent")
    parser.add_argument("--fastdump", type=Path, default=Path(sys.executable).with_name("fastdump"))
    parser.add_argument("--chap", type=Path, metavar="PATH", help="its program, for the row why")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a record")
    parser.add_argument(
        "--record",
        action="store_true",
        help="write it to records/ (rows that were not run keep their figures of the same day), "
        "and the tables and plots of README.md and docs/ anew",
    )
    options = parser.parse_args()
    options.size = options.size or parse_size("1GiB" if options.quick else "4GiB")
    options.repeat = options.repeat or (3 if options.quick else 5)
    return options


def main() -> int:
    options = parse_options()
    if options.record and not importlib.util.find_spec("matplotlib"):
        print("--record draws plots: pip install matplotlib", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folders are removed
    WORK.mkdir(parents=True, exist_ok=True)
    image = heap_image.make_image(options.image)
    ratio, speed = heap_image.lz4_figures(image)
    gc.collect()
    # As an installed package has it; some environments forbid Python to write it by itself.
    compileall.compile_dir(HERE.parent / "src", quiet=1)
    with (
        tempfile.TemporaryDirectory(prefix="fastdump-bench-", dir=options.tmpfs) as tmpfs,
        tempfile.TemporaryDirectory(prefix="fastdump-bench-", dir=options.disk) as disk,
    ):
        bench = Bench(
            size=options.size,
            repeat=options.repeat,
            quick=options.quick,
            threads=len(os.sched_getaffinity(0)),
            tmpfs=Path(tmpfs),
            disk=Path(disk),
            image=image,
            bare=engines.build_bare(WORK / "bare"),
            fastdump=options.fastdump,
            chap=options.chap,
        )
        machine = describe_machine(bench)
        print(json.dumps(machine, indent=1))
        print(f"image: LZ4 fast {ratio:.2f} : 1 at {speed:.2f} GB/s on one core", flush=True)

        record: dict[str, Any] = {
            "schema": 2,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "machine": machine,
            "image": {"size": image.stat().st_size, "lz4_ratio": round(ratio, 2)},
            "rows": list(ROWS),
        }
        if options.record:
            options.json = report.RECORDS / f"{record['date']}.json"
        earlier = read_record(options.json) if options.record else None
        total, failures, absent, runs = Result(), [], {}, {}
        for name in options.only:
            started = time.monotonic()
            result, problem = run_row(name, bench)
            seconds = round(time.monotonic() - started, 1)
            runs[name] = {"size": options.size, "repeat": options.repeat, "seconds": seconds}
            if problem:
                failures.append(f"{name}: {problem}")
                print(f"\n{name}: {problem}", flush=True)
            elif isinstance(result, Absent):
                absent[name] = str(result)
                print(f"\n{name}: left out: {result}", flush=True)
            else:
                total.timings += result.timings
                total.checks += result.checks
                print(f"\n### {name} ({seconds:.0f} s)\n", flush=True)
                shown = as_record(result)
                if shown["timings"]:
                    print(report.timing_table(shown["timings"]), end="\n\n")
                print(report.check_table(shown["checks"]), flush=True)
            taken = {"runs": runs, **as_record(total), "failures": failures, "absent": absent}
            record = report.merged(earlier, record | taken) if earlier else record | taken
            if options.json:  # after each row: a run takes an hour, and may be cut off
                write_record(options.json, record)
    if options.record:
        report.rewrite(record)
    missed = [check for check in total.checks if check.verdict == "FAIL"]
    for check in missed:
        print(f"MISSED: {check.row}: {check.what}: {check.value:.2f} {check.unit}", file=sys.stderr)
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if missed or failures else 0


if __name__ == "__main__":
    sys.exit(main())
