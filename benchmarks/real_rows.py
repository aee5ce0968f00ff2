"""The rows of real processes with data: CPython, Node.js, a JVM, PostgreSQL, Redis.

They are stopped (SIGSTOP) while they are measured, so that what they hold can be checked: in the
region with the most pages, against ``/proc/PID/mem``.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import engines
from engines import Bench, Engine, Job, Sample, Subject, Target, fastdump, run_command
from rows import Check, Need, Result, footprint, interleave, program, speed_ratio
from strings_rows import ROUNDS
from truth import LiveTruth, WrongOutput

ITEMS = 1_000_000  # some 300 MB in each; a quarter with --quick

PYTHON = """
import sys
kept = [{"id": i, "name": f"user {i}", "tags": [str(i), i / 3]} for i in range(int(sys.argv[1]))]
print("ready", flush=True)
sys.stdin.read()
"""
NODE = """
const kept = [];
for (let i = 0; i < Number(process.argv[1]); i++)
    kept.push({id: i, name: "user " + i, tags: ["t" + i, i / 3]});
process.stdin.resume();
process.stdin.on("end", () => process.exit(kept.length > 0 ? 0 : 1));
console.log("ready");
"""
JAVA = """
import java.util.*;
public class Kept {
    public static void main(String[] arguments) throws Exception {
        int count = Integer.parseInt(arguments[0]);
        Map<String, Object[]> kept = new HashMap<>();
        for (int i = 0; i < count; i++)
            kept.put("user " + i, new Object[] {i, "tag " + i, i / 3.0});
        System.out.println("ready");
        System.in.read();
        System.exit(kept.size() > 0 ? 0 : 1);
    }
}
"""
# The rows that are sorted stay in the memory of the session's own process.
SQL = """
SET work_mem = '2GB';
BEGIN;
DECLARE kept CURSOR FOR
    SELECT md5(i::text) AS name, repeat('x', i % 100) FROM generate_series(1, {count}) i
    ORDER BY name;
FETCH 1 FROM kept;
SELECT 'pid ' || pg_backend_pid();
"""


class Running:
    """A process that stands still; as ``tests.targets.Target`` as far as engines care."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        os.kill(pid, signal.SIGSTOP)

    def kill(self) -> None:
        """Who started it ends it."""


@contextlib.contextmanager
def child(*command: str | Path, ready: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that has said *ready*; it is killed at the end."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
    )
    with process:
        try:
            assert process.stdout
            if not any(ready in line for line in process.stdout):
                raise WrongOutput(f"{Path(command[0]).name} ended too early")
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def cpython(count: int, folder: Path) -> Iterator[int]:
    with child(sys.executable, "-c", PYTHON, str(count), ready="ready") as process:
        yield process.pid


@contextlib.contextmanager
def node(count: int, folder: Path) -> Iterator[int]:
    with child(program("node"), "-e", NODE, str(count), ready="ready") as process:
        yield process.pid


@contextlib.contextmanager
def jvm(count: int, folder: Path) -> Iterator[int]:
    (folder / "Kept.java").write_text(JAVA)
    run_command((program("javac"), "-d", folder, folder / "Kept.java"))
    # Else gcore writes gigabytes of what it reserves.
    small = ("-Xmx512m", "-XX:CompressedClassSpaceSize=32m", "-XX:ReservedCodeCacheSize=64m")
    command = (program("java"), *small, "-Xshare:off", "-cp", folder, "Kept", str(count))
    with child(*command, ready="ready") as process:
        yield process.pid


@contextlib.contextmanager
def redis(count: int, folder: Path) -> Iterator[int]:
    path = folder / "redis.sock"
    words = ("--port", "0", "--save", "", "--appendonly", "no", "--daemonize", "no")
    command = (program("redis-server"), *words, "--dir", folder, "--unixsocket", path)
    with child(*command, ready="eady to accept connections") as process:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            text = f"for i = 1, {count} do redis.call('SET', 'user:' .. i, 'session ' .. i .. "
            text += "' ' .. string.rep('x', i % 100)) end return 'done'"
            client.sendall(f"*3\r\n$4\r\nEVAL\r\n${len(text)}\r\n{text}\r\n$1\r\n0\r\n".encode())
            if b"done" not in client.recv(4096):
                raise WrongOutput("redis-server does not take the data")
        yield process.pid


@contextlib.contextmanager
def postgresql(count: int, folder: Path) -> Iterator[int]:
    """A session of a server that is ours; it refuses to run as root."""
    initdb, postgres, psql = (program(name) for name in ("initdb", "postgres", "psql"))
    options: dict[str, Any] = {"cwd": folder, "stderr": subprocess.STDOUT}
    if not os.geteuid():
        options |= {"user": "postgres", "group": "postgres", "extra_groups": []}
        shutil.chown(folder, "postgres", "postgres")
    made = subprocess.run(
        (initdb, "-D", folder / "data", "-A", "trust", "-U", "bench", "--no-sync"),
        **options | {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT},
    )
    if made.returncode:
        raise WrongOutput(f"initdb: {made.stdout.decode(errors='replace')}")
    server = (postgres, "-D", folder / "data", "-k", folder, "-c", "listen_addresses=")
    words = ("-h", folder, "-U", "bench", "-AtXq", "-d", "postgres")
    with child(*server, ready="ready to accept connections", **options) as process:
        try:
            session = subprocess.Popen(
                (psql, *words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
            )
            with session:
                try:
                    assert session.stdin
                    assert session.stdout
                    session.stdin.write(SQL.format(count=count))
                    session.stdin.flush()
                    found = (re.match(r"pid (\d+)", line) for line in session.stdout)
                    pid = next((int(match[1]) for match in found if match), 0)
                    if not pid:
                        raise WrongOutput("psql ended too early")
                    yield pid
                    os.kill(pid, signal.SIGCONT)
                finally:
                    session.kill()
        finally:
            process.send_signal(signal.SIGQUIT)  # it takes its own processes along
            process.wait()


# --- what they hold -----------------------------------------------------------------------------


def private_regions(pid: int) -> list[tuple[int, int, int]]:
    """Private writable memory that is no file's: bytes in RAM, start, end of each region."""
    found, region = [], (0, 0)
    for line in Path(f"/proc/{pid}/smaps").read_text(errors="replace").splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) rw.p \S+ \S+ (\d+)", line):
            region = (int(match[1], 16), int(match[2], 16)) if match[3] == "0" else (0, 0)
        elif re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            region = (0, 0)
        elif line.startswith("Rss:") and region[1]:
            found.append((int(line.split()[1]) * 1024, *region))
    return found


def of_all(run: Callable[[Job], Sample], length: int) -> Callable[[Job], Sample]:
    """The bytes of all regions are what it took; and stopped again: gdb may have let it run on."""

    def again(job: Job) -> Sample:
        sample = run(job)
        os.kill(job.subject.pid, signal.SIGSTOP)
        return replace(sample, length=length)

    return again


def strings(job: Job) -> Sample:
    words = ("sh", "-c", '"$1" strings "$2" > /dev/null', "sh")
    done = run_command((*words, job.bench.fastdump, str(job.subject.pid)))
    return Sample(done.seconds, done.seconds, job.subject.length)


def check_strings(bench: Bench, subject: Subject, folder: Path) -> None:
    """Those of the largest region are what strings(1) finds in its bytes."""
    truth, path = subject.truth, folder / "bytes"
    with path.open("wb") as file:
        for at in range(truth.start, truth.end, 1 << 20):
            file.write(truth.read(at, min(1 << 20, truth.end - at)))
    script = (
        'set -o pipefail; cmp <("$1" strings --exclude "????" --include "$2" "$3")'
        ' <(strings -a "$4")'
    )
    addresses = f"{truth.start:x}-{truth.end:x}"
    run_command(("bash", "-c", script, "bash", bench.fastdump, addresses, str(subject.pid), path))


def real_row(name: str, started: Callable[[int, Path], Any], bench: Bench) -> Result:
    """Raw files to memory against the dd loop and gcore; strings against gcore and strings."""
    row = f"real-{name}"
    count = ITEMS // 4 if bench.quick else ITEMS
    bench = replace(bench, repeat=min(bench.repeat, ROUNDS))
    runs = {
        "fastdump raw": fastdump("raw"),
        "fastdump strings": strings,
        "gcore": engines.gcore(),
        "gcore, strings -a": engines.gcore('strings -a "$1" > /dev/null'),
        "dd loop": engines.dd_loop,
    }
    with contextlib.ExitStack() as stack:
        # Others may have to enter it: it is not in the bench's own folders.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastdump-bench-")))
        pid = stack.enter_context(started(count, folder))
        target = cast(Target, Running(pid))
        regions = private_regions(pid)
        length = sum(resident for resident, _, _ in regions)
        subject = Subject(target, LiveTruth(pid, *max(regions)[1:]))
        before = footprint(pid)
        for run in (fastdump("raw"), strings):  # dd touches pages that were not there
            with tempfile.TemporaryDirectory(dir=bench.tmpfs) as output:
                run(Job(bench, subject, Path(output)))
        growth = footprint(pid) - before
        check_strings(bench, subject, folder)
        plan = [Engine(name, of_all(run, length)) for name, run in runs.items()]
        timings = interleave(bench, row, plan, {"full": subject}, bench.tmpfs)
    raw, own, gcore, gcore_strings, dd = timings.values()
    return Result(
        list(timings.values()),
        [
            Check(row, "raw against gcore, wall", speed_ratio(raw, [gcore], "wall")),
            Check(row, "raw against dd loop, wall", speed_ratio(raw, [dd], "wall")),
            Check(
                row, "strings against gcore, strings -a, wall",
                speed_ratio(own, [gcore_strings], "wall"), at_least=3,
            ),
            Check(row, "growth of the target", growth / 1e6, "MB", below=1),
        ],
    )  # fmt: skip


REAL_ROWS: dict[str, Need] = {
    f"real-{run.__name__}": Need(partial(real_row, run.__name__, run), memory=1)
    for run in (cpython, node, jvm, postgresql, redis)
}
