"""Pauses: what a target can notice of them, what they freeze, and that nothing of them is left.

FASTDUMP_TEST_SEED repeats a run or makes another.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import targets
from fastdump import search, strings
from fastdump._heap import Heap
from fastdump._native import MEM_ONLY, ORIGIN, Copier, Gap, Slice, address_of
from fastdump._words import ModuleRange, Words
from fastdump.dump import dump, open_writer
from fastdump.errors import IncompleteWarning, NotPermitted, SourceGone, UsageError
from fastdump.fork_cost import fork_cost
from fastdump.gaps import EXPECTED_GAPS
from fastdump.live_source import LiveSource
from fastdump.process import LiveProcess
from fastdump.region import Range
from fastdump.selection import Preset
from fastdump.snapshot import LATE, Snapshot, _Guardian
from fastdump.sources import open_source
from fastdump.survey import Survey
from test_real import ending

SEED = int(os.environ.get("FASTDUMP_TEST_SEED", "20240501"))
SAMPLE, LONG = 5, 200
CAP_SYS_RESOURCE = 24
RUN = f"FASTDUMP_TEST_RUN={os.getpid()}"
KINDS = ("freeze", "fork!")
# Each alone, or those that do not disturb each other.
RESTLESS = {
    "waits": ("nanosleep", "futex", "poll", "ppoll"),
    "eintr": ("epoll", "sigwait", "io_uring"),
    "pipe": ("read",),
    "any child": ("wait",),
    "vfork": ("vfork", "spin"),
    "threads": ("threads",),
    "signals": ("signals", "spin"),
    "all": ("nanosleep", "futex", "poll", "epoll", "io_uring", "vfork", "threads", "signals"),
}

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="ptrace of any process needs root")

rounds = pytest.mark.parametrize(
    "rounds",
    [pytest.param(SAMPLE, id="sample"), pytest.param(LONG, id="long", marks=pytest.mark.long)],
)


def children(pid: int) -> list[str]:
    """The children of all threads of a process, zombies too: proc_pid_stat(5), comm and state."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = path.read_text(errors="replace").rpartition(")")
            if int(rest.split()[1]) == pid:
                found.append(f"{name}) {rest.split()[0]}")
    return found


def states(pid: int) -> str:
    """The states of its threads, each once: "S", "RS" ..."""
    found = set()
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):
            found.add(path.read_text(errors="replace").rpartition(")")[2].split()[0])
    return "".join(sorted(found))


def settled(pid: int) -> str:
    """Its states, once no thread runs: one that was let go runs for a moment."""
    while "R" in (found := states(pid)):
        pass
    return found


def guardians() -> list[int]:
    """All that live, and were started by us or by what we started: other tests may run too.

    One that has just begun is still called as the program that started it.
    """
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = path.read_text(errors="replace").rpartition(")")
            state, parent = rest.split()[:2]
            ours = name.endswith("(fastdump-guard") and int(parent) == os.getpid()
            python = os.readlink(path.parent / "exe") == os.path.realpath(sys.executable)
            if python and state not in "ZX":
                environment = (path.parent / "environ").read_bytes().split(b"\0")
                if ours or RUN.encode() in environment:
                    found.append(int(path.parent.name))
    return found


def status(pid: int, key: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(key + ":"))


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(*RUN.split("="))
    yield
    assert guardians() == []


def untouched(target: targets.Target) -> dict[str, Any]:
    """Its own self-check, and what the kernel says of it."""
    target.send(b"?")
    jobs: dict[str, Any] = target.read_truth()["jobs"]
    assert jobs
    assert {name: job[1:] for name, job in jobs.items()} == {name: [0, 0] for name in jobs}
    assert status(target.pid, "TracerPid") == "0"
    assert "t" not in states(target.pid)
    return jobs


@rounds
@pytest.mark.parametrize("name", RESTLESS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_target_notices_nothing(kind: str, name: str, rounds: int) -> None:
    with targets.start("restless", *RESTLESS[name]) as target:
        before = status(target.pid, "VmPTE")
        fds = len(os.listdir(f"/proc/{target.pid}/fd"))
        for _ in range(rounds):
            with LiveProcess(target.pid) as process, Snapshot(process, kind) as snapshot:
                assert snapshot.pause.kind == kind.rstrip("!")
                assert snapshot.threads[0].tid == target.pid
            assert snapshot.pause.why == ""
            assert 0 < snapshot.pause.stop <= snapshot.pause.total
        untouched(target)
        if name in ("waits", "signals"):
            assert status(target.pid, "VmPTE") == before
            assert len(os.listdir(f"/proc/{target.pid}/fd")) == fds
            assert children(target.pid) == []
        assert target.process.stdin
        target.process.stdin.close()
        assert target.wait() == 0  # it joins its threads, and its children are its own
        target.process.stdin = open(os.devnull, "wb")  # noqa: SIM115 (for kill())


@rounds
@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_is_one_moment(kind: str, rounds: int) -> None:
    """Two counters far apart, always equal, though each is counted millions of times a second."""

    def word(process: LiveProcess, address: int) -> int:
        buffer = bytearray(8)
        process.read_into(address, buffer)
        return int(struct.unpack("<Q", buffer)[0])

    seen = set()
    with targets.start("restless", "counters") as target:
        for _ in range(rounds):
            with LiveProcess(target.pid) as process:
                with Snapshot(process, kind) as snapshot:
                    slot = 8 * word(snapshot.process, target.truth["current"])
                    one = word(snapshot.process, target.truth["one"] + slot)
                    assert word(snapshot.process, target.truth["other"] + slot) == one
                assert one not in seen
                seen.add(one)
                while word(process, target.truth["one"] + slot) == one:
                    pass  # until it has counted on


def test_a_fork_lets_the_target_run_on() -> None:
    with (
        targets.start("threads", 20) as target,
        LiveProcess(target.pid) as process,
        Snapshot(process, "fork!") as snapshot,
    ):
        assert settled(target.pid) == "S"
        copy = snapshot.process.tid
        assert states(copy) == "t"
        assert status(copy, "PPid") == str(target.pid)
        assert Path(f"/proc/{copy}/oom_score_adj").read_text() == "1000\n"
        target.kill()
        local = target.truth["threads"][7]
        buffer = bytearray(64)
        assert snapshot.process.read_into(local["local"], buffer) == 64
        assert buffer == targets.pattern(local["local"], 64, local["seed"])
    while states(copy) not in ("", "Z"):  # init may reap it or not
        pass


@pytest.mark.parametrize("kind", KINDS)
def test_registers_of_all_threads(kind: str) -> None:
    with targets.start("threads", 40) as target, LiveProcess(target.pid) as process:
        with Snapshot(process, kind) as snapshot:
            threads = snapshot.threads
        locals_of = {thread["tid"]: thread["local"] for thread in target.truth["threads"]}
    assert {thread.tid for thread in threads} == {target.pid, *locals_of}
    for thread in threads[1:]:
        assert 0 <= locals_of[thread.tid] - thread.stack_pointer < 4096
        assert 1 in thread.regsets
        assert 2 in thread.regsets


@rounds
@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_target_stays_stopped(kind: str, rounds: int) -> None:
    with targets.start("restless", "nanosleep", "threads") as target:
        target.stop()
        for _ in range(rounds):
            with LiveProcess(target.pid) as process, Snapshot(process, kind) as snapshot:
                assert snapshot.pause.kind == kind.rstrip("!")
            assert settled(target.pid) == "T"
        target.resume()
        untouched(target)


def test_signals_that_come_meanwhile_are_delivered() -> None:
    with targets.start("restless", "nanosleep") as target:
        with LiveProcess(target.pid) as process, Snapshot(process, "freeze"):
            os.kill(target.pid, signal.SIGTERM)
            assert states(target.pid) == "t"
        assert target.wait() == -signal.SIGTERM


def test_max_pause_ends_a_freeze() -> None:
    with targets.start("threads", 3) as target, LiveProcess(target.pid) as process:
        with Snapshot(process, "freeze", max_pause=0.01) as snapshot:
            while "t" in states(target.pid):
                pass
            region = process.regions()[0]
            snapshot.was_read([])
            assert snapshot.unfrozen([region]) == []
        assert snapshot.pause.kind == "freeze"


def test_a_target_that_is_traced_already() -> None:
    with targets.start("threads", 3) as target, LiveProcess(target.pid) as process:
        with Snapshot(process, "freeze"):
            with pytest.raises(NotPermitted, match="traced by process"):
                Snapshot(process, "fork")
            with Snapshot(process, None) as snapshot:
                assert snapshot.pause.kind == "none"
                assert "traced by process" in snapshot.pause.why
        assert settled(target.pid) == "S"


def test_a_process_forks_itself_but_does_not_freeze_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    marker = bytearray(b"of the moment of the fork")
    with LiveProcess(os.getpid()) as process:
        with Snapshot(process, "fork") as snapshot:
            assert snapshot.pause.kind == "fork"
            address, length = address_of(marker), len(marker)
            marker[:] = bytes(length)
            found = bytearray(length)
            snapshot.process.read_into(address, found)
            assert found == b"of the moment of the fork"
        with pytest.raises(UsageError, match="freeze itself"):
            Snapshot(process, "freeze")
        monkeypatch.setattr("fastdump.fork_cost.headroom", lambda pid: 0)
        with Snapshot(process, None) as snapshot:
            assert snapshot.pause.kind == "none"
            assert "free" in snapshot.pause.why


def test_a_target_that_has_exited() -> None:
    with targets.start("threads", 3) as target, LiveProcess(target.pid) as process:
        target.kill()
        with pytest.raises(SourceGone):
            Snapshot(process, "freeze")


def no_processes() -> None:
    """At its limit of processes, as a user whom it concerns."""
    os.setgid(65534)
    os.setuid(65534)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))


def start_as(preexec: Any, *command: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=preexec
    )
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"
    return process


WAITING = "import sys; print('ready', flush=True); sys.stdin.read()"


@rounds
def test_a_target_at_its_limit_of_processes(rounds: int) -> None:
    with start_as(no_processes, "/usr/bin/python3", "-c", WAITING) as target:
        with LiveProcess(target.pid) as process:
            for _ in range(rounds):
                with Snapshot(process, "fork") as snapshot:
                    assert snapshot.pause.kind == "freeze"
                    assert "Resource temporarily unavailable" in snapshot.pause.why
            with pytest.raises(UsageError, match="clone failed"):
                Snapshot(process, "fork!")
        assert settled(target.pid) == "S"
        target.communicate(b"")
    assert target.returncode == 0


def test_a_freeze_in_place_of_a_fork_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the fork was typed out: nobody has asked for a freeze."""
    monkeypatch.setattr("fastdump.snapshot.MOST_UNASKED", 0.01)
    with start_as(no_processes, "/usr/bin/python3", "-c", WAITING) as target:
        with LiveProcess(target.pid) as process, Snapshot(process, "fork") as snapshot:
            assert snapshot.pause.kind == "freeze"
            while "t" in states(target.pid):
                pass
            late = Slice(process.regions()[0].start, 4096, 0)
            snapshot.was_read([late])
            assert snapshot.unfrozen([]) == [(late.address, late.address + 4096, LATE)]
        assert snapshot.ended_early
        target.communicate(b"")
    assert target.returncode == 0


@rounds
def test_a_target_in_a_pid_namespace(rounds: int) -> None:
    command = ("unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", WAITING)
    with start_as(None, *command) as outer:
        inner = int(Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()[0])
        for _ in range(rounds):
            with LiveProcess(inner) as process, Snapshot(process, "fork!") as snapshot:
                copy = snapshot.process.tid
            assert not Path(f"/proc/{copy}").exists()
        assert children(inner) == []
        assert settled(inner) == "S"
        outer.communicate(b"")
    assert outer.returncode == 0


SECCOMP = """
import ctypes, struct, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
# BPF: the system call number; clone: kill the process; else allow
kill, allow = 0x80000000, 0x7FFF0000
code = struct.pack("=" + "HBBI" * 4, 0x20, 0, 0, 0, 0x15, 0, 1, 56, 6, 0, 0, kill, 6, 0, 0, allow)
program = ctypes.create_string_buffer(code)
class Prog(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
prog = Prog(4, ctypes.addressof(program))
def wait():
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(prog), 0, 0) == 0
    print("ready", flush=True)
    sys.stdin.read()
"""
FIRST_THREAD = "wait()"
# While it waits, the first thread computes: it has no filter.
OTHER_THREAD = """
other = threading.Thread(target=wait)
other.start()
while other.is_alive():
    pass
"""


# One snapshot by a process of its own, and what it came to.
PAUSED = """
import sys
from fastdump.process import LiveProcess
from fastdump.snapshot import LATE, Snapshot
with LiveProcess(int(sys.argv[1])) as process, Snapshot(process, "fork") as snapshot:
    print(snapshot.pause.kind, snapshot.pause.why)
"""


def test_a_target_that_calls_exec_is_left_alone() -> None:
    """The new program knows nothing of the copy, and is not asked to wait for it."""
    with (
        targets.start("exiter", "1M") as target,
        LiveProcess(target.pid) as process,
        Snapshot(process, "fork!") as snapshot,
    ):
        target.send(b"e")
        target.read_truth()
        snapshot.release()
        assert "a dead copy is left" in snapshot.pause.why
        assert status(target.pid, "TracerPid") == "0"
        assert "t" not in states(target.pid)


FROZEN = """
set -e
mount -t cgroup2 none "$1"
group=$1/fastdump-$2
mkdir "$group"
trap 'echo 0 >"$group/cgroup.freeze"; echo $2 >"$1/cgroup.procs"; rmdir "$group"' EXIT
echo $2 >"$group/cgroup.procs"
echo 1 >"$group/cgroup.freeze"
until grep -q 'frozen 1' "$group/cgroup.events"; do :; done
"$3" -m fastdump dump "$2" -f null --pause "$4" --json
"""


@pytest.mark.parametrize("pause", ["fork", "fork!"])
def test_a_target_in_a_frozen_cgroup(tmp_path: Path, pause: str) -> None:
    """It would not run the system call before it is thawed, and wait with registers of ours."""
    with targets.start("restless", "nanosleep") as target:
        words = (tmp_path, str(target.pid), sys.executable, pause)
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", FROZEN, "sh", *words], capture_output=True, text=True
        )
        if "mount:" in done.stderr:
            pytest.skip("no cgroup v2")
        if pause == "fork":
            came = json.loads(done.stdout)["pause"]
            assert (done.returncode, came["kind"]) == (0, "freeze")
            assert "its cgroup is frozen" in came["why"]
        else:
            assert done.returncode == UsageError.exit_code
            assert "its cgroup is frozen" in done.stderr
        untouched(target)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of clone is of x86_64")
@pytest.mark.parametrize("powerful", [True, False], ids=["root", "without sys_admin"])
@pytest.mark.parametrize("thread", [FIRST_THREAD, OTHER_THREAD], ids=["first", "other"])
def test_a_seccomp_filter_that_kills_whoever_forks(thread: str, powerful: bool) -> None:
    without = [] if powerful else ["setpriv", "--bounding-set=-sys_admin"]
    with start_as(None, sys.executable, "-c", SECCOMP + thread) as target:
        command = [*without, sys.executable, "-c", PAUSED, str(target.pid)]
        paused = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        assert target.poll() is None
        if status(target.pid, "Seccomp") == "0":
            assert paused == "fork \n"  # by that thread
        elif powerful:
            # It is suspended for that call (PTRACE_O_SUSPEND_SECCOMP), where the kernel can do so.
            assert paused == "fork \n" or "seccomp" in paused
        else:
            assert paused.startswith("freeze its seccomp filter cannot be suspended")
        target.communicate(b"")
    assert target.returncode == 0


USERFAULTFD = """
import ctypes, fcntl, mmap, os, struct, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
uffd = libc.syscall(323 if os.uname().machine == "x86_64" else 282, os.O_CLOEXEC)
# linux/userfaultfd.h: UFFDIO_API, UFFD_FEATURE_EVENT_FORK; UFFDIO_REGISTER, _MODE_MISSING
fcntl.ioctl(uffd, 0xC018AA3F, struct.pack("3Q", 0xAA, 2, 0))
area = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
at = ctypes.addressof(ctypes.c_char.from_buffer(area))
fcntl.ioctl(uffd, 0xC020AA00, struct.pack("4Q", at, 4096, 1, 0))
def read():
    while True:
        event, fd = struct.unpack("<Q I 20x", os.read(uffd, 32))
        os.close(fd)
threading.Thread(target=read, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def waits_for_its_forks() -> Iterator[subprocess.Popen[bytes]]:
    with start_as(None, sys.executable, "-c", USERFAULTFD) as target:
        yield target
        assert settled(target.pid) == "S"
        assert status(target.pid, "TracerPid") == "0"
        assert children(target.pid) == []
        target.communicate(b"")
    assert target.returncode == 0


def test_a_target_that_waits_for_its_own_forks(
    waits_for_its_forks: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is known as one, though other descriptors are closed while they are looked at."""

    def readlink(path: str | Path) -> str:
        if str(path).endswith("/fd/0"):
            raise FileNotFoundError(str(path))
        return real(path)

    real = os.readlink
    with LiveProcess(waits_for_its_forks.pid) as process:
        monkeypatch.setattr(os, "readlink", readlink)
        with Snapshot(process, "fork") as snapshot:
            assert snapshot.pause.kind == "freeze"
            assert "userfaultfd" in snapshot.pause.why


def test_a_fork_that_waits_for_a_stopped_thread_ends(
    waits_for_its_forks: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LiveProcess, "answers_forks", False)
    monkeypatch.setattr("fastdump.snapshot.MOST_UNASKED", 0.01)
    with LiveProcess(waits_for_its_forks.pid) as process:
        with Snapshot(process, "fork") as snapshot:
            assert snapshot.pause.kind == "freeze"
            assert snapshot.pause.why == "clone failed in it: Timer expired"
            assert snapshot.is_over
        with pytest.raises(UsageError, match="Timer expired"):
            Snapshot(process, "fork!")


def test_the_command_is_killed_while_a_fork_waits(
    waits_for_its_forks: subprocess.Popen[bytes],
) -> None:
    pid = waits_for_its_forks.pid
    blind = "from fastdump.process import LiveProcess\nLiveProcess.answers_forks = False\n"
    command = (sys.executable, "-c", blind + SNAPSHOT, str(pid), "fork")
    with start_as(None, *command) as process:
        while "D" not in states(pid):
            pass
        process.kill()
    while set(guardians()) - {pid}:
        pass


MIB = 1 << 20
UNCOPIED = """
import ctypes, mmap, sys
libc = ctypes.CDLL(None, use_errno=True)
areas = {}
kinds = ("plain", 2, 0), ("dontfork", 2, 10), ("wipe", 2, 18), ("shared", 1, 0)
for name, flags, advice in kinds:
    area = mmap.mmap(-1, 1 << 20, flags=flags | mmap.MAP_ANONYMOUS)
    area[:] = (name.encode() * 2**20)[: 1 << 20]
    at = ctypes.addressof(ctypes.c_char.from_buffer(area))
    if advice:
        assert libc.madvise(ctypes.c_void_p(at), 1 << 20, advice) == 0
    areas[name] = (at, area)
print("ready", flush=True)
print(" ".join(f"{name} {at}" for name, (at, _) in areas.items()), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def uncopied() -> Iterator[tuple[subprocess.Popen[bytes], dict[str, int]]]:
    """A target, and the addresses of its areas, each of 1 MiB, full of its name."""
    with start_as(None, sys.executable, "-c", UNCOPIED) as target:
        assert target.stdout
        words = target.stdout.readline().decode().split()
        yield target, dict(zip(words[::2], map(int, words[1::2]), strict=True))
        target.communicate(b"")


def content(name: str) -> bytes:
    return (name.encode() * MIB)[:MIB]


def test_what_a_fork_does_not_copy(tmp_path: Path) -> None:
    with uncopied() as (target, places):
        output = tmp_path / "out"
        command = [sys.executable, "-m", "fastdump", "dump", str(target.pid), "-o", str(output)]
        command += ["-f", "raw", "--pause", "fork!", "--include", "shared memory"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["pause"] == "fork"

    def reasons(at: int) -> list[str]:
        return [
            found["reason"]
            for found in manifest["unfrozen"]
            if int(found["start"], 16) <= at < int(found["end"], 16)
        ]

    assert reasons(places["plain"]) == []
    assert reasons(places["dontfork"]) == ["not copied by fork (MADV_DONTFORK)"]
    assert reasons(places["wipe"]) == ["cleared by fork (MADV_WIPEONFORK)"]
    assert reasons(places["shared"]) == ["shared"]
    files = {
        int(file["start"], 16): file
        for region in manifest["regions"]
        for file in region.get("files", ())
    }
    for name, at in places.items():
        start = max(start for start in files if start <= at)
        with (output / files[start]["name"]).open("rb") as file:
            file.seek(at - start)
            assert file.read(MIB) == content(name), name


@pytest.mark.parametrize("moment", ["fork", "survey", "copy"])
@pytest.mark.parametrize("format", ["lz4", "core", "raw", "raw-lz4"])
def test_what_a_fork_does_not_copy_is_a_gap_once_the_target_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, moment: str
) -> None:
    output = str(tmp_path / "out")
    with uncopied() as (target, places), LiveProcess(target.pid) as process:

        def end(*_: object) -> None:
            target.kill()
            target.wait()

        def before(place: object, name: str) -> None:
            """Let it end before what is called *name* runs."""
            real = getattr(place, name)
            monkeypatch.setattr(place, name, lambda *given: (end(), real(*given))[1])

        if moment == "fork":  # the copy is there, and nothing was asked of it
            before(_Guardian, "registers")
        with Snapshot(process, "fork!") as snapshot:
            if moment == "survey":
                end()
            survey = Survey(snapshot.process, Preset.DEBUGGER, threads=snapshot.threads)
            with contextlib.closing(survey):
                writer, _ = open_writer(format, output)
                if moment == "copy":
                    before(writer, "work")
                report = dump(survey, snapshot, writer, output, format, threads=2, begun=0.0)
    assert report.exit_code == 3
    assert set(report.gap_bytes) - EXPECTED_GAPS == {"target gone"}
    with open_source(output) as source:
        assert source.read(places["plain"], MIB) == content("plain")
        for name in ("dontfork", "wipe"):
            where = Range(places[name], places[name] + MIB)
            assert list(source.walk([where])) == [Gap(*where, "target gone")]


@pytest.mark.parametrize("moment", ["survey", "reading"])
@pytest.mark.parametrize("pagemap", [False, True], ids=["scan", "pagemap"])
def test_those_who_only_read_are_told_what_is_gone(
    tmp_path: Path, moment: str, pagemap: bool
) -> None:
    with (
        uncopied() as (target, places),
        LiveProcess(target.pid) as process,
        Snapshot(process, "fork!") as snapshot,
        contextlib.closing(LiveSource(snapshot.process)) as source,
    ):

        def end() -> None:
            target.kill()
            target.wait()

        if pagemap:
            process.memory.use_pagemap()  # which reads as empty, then
        if moment == "survey":
            end()
        place = source.place()
        if moment == "reading":
            end()
        for read in (
            lambda: [m.address for m in search(place, [b"plain", b"dontfork", b"wipe"])],
            lambda: [m.address for m in strings(place, min_length=MIB)],
        ):
            with pytest.warns(IncompleteWarning, match="2.0 MiB could not be read: target gone"):
                found = read()
            areas = {name for name, at in places.items() for a in found if at <= a < at + MIB}
            assert areas == {"plain"}
        area = Range(places["dontfork"], places["dontfork"] + MIB)
        assert list(source.walk([area])) == [Gap(*area, "target gone")]
        words = Words([ModuleRange(0, 1, 1)], Heap([]), lambda _: [])
        slices = [Slice(area.start, MIB, 0, ORIGIN | MEM_ONLY)]
        gaps = words.enter_slices(place.memory, slices)
        copier = Copier(place.memory)
        with (tmp_path / "out").open("wb") as file:
            copier.write(slices, file.fileno(), 4096)
        assert [*gaps, *copier.gaps] == 2 * [Gap(*area, "target gone")]


# Commands that only read


def fastdump(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastdump", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("pause", ["freeze", "fork!"])
def test_strings_and_search_pause_as_well(pause: str) -> None:
    with targets.start("restless", "nanosleep", "epoll") as target:
        plain = fastdump("search", target.pid, "hex:7f 45 4c 46", "--all", "--count")
        for options in (("search", target.pid, "hex:7f 45 4c 46", "--all", "--count"),
                        ("strings", target.pid, "--count")):  # fmt: skip
            done = fastdump(*options, "--pause", pause, "--stats")
            assert done.returncode == 0, done.stderr
            assert f"fastdump: pause: {pause.rstrip('!')}: " in done.stderr
            assert int(done.stdout) > 0
            if options[0] == "search":
                assert done.stdout == plain.stdout
        untouched(target)


def test_a_freeze_of_a_slow_reader_ends(tmp_path: Path) -> None:
    with targets.start("awkward", tmp_path) as target:
        command = [sys.executable, "-m", "fastdump", "strings", str(target.pid), "--all"]
        command += ["--pause", "freeze", "--max-pause", "50ms"]
        with ending(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout
            process.stdout.read(1)  # and now nothing, until the target runs
            while "t" in states(target.pid):
                pass
            _, error = process.communicate()
        assert b"it ended before all was read" in error


def test_only_a_process_can_be_paused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    done = fastdump("strings", tmp_path / "file", "--pause", "fork")
    assert done.returncode == 2
    assert "--pause goes with a pid" in done.stderr


# What a fork costs


def test_the_memory_that_a_copy_takes_is_what_the_target_writes() -> None:
    with targets.start("restless", "writes") as target, LiveProcess(target.pid) as process:
        assert fork_cost(process).memory > 1 << 20
    with targets.start("fill", "random", 64 << 20) as target, LiveProcess(target.pid) as process:
        cost = fork_cost(process)
        assert cost.memory < 1 << 20
        assert cost.fits
        assert 0.0005 < cost.seconds < 0.002


def test_no_fork_without_memory_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdump.fork_cost.headroom", lambda pid: 1 << 20)
    with targets.start("threads", 3) as target, LiveProcess(target.pid) as process:
        with Snapshot(process, "fork") as snapshot:
            assert snapshot.pause.kind == "freeze"
            assert "1.0 MiB are free" in snapshot.pause.why
        with pytest.raises(UsageError, match="free"):
            Snapshot(process, "fork!")
        with Snapshot(process, "fork!", check_memory=False) as snapshot:
            assert snapshot.pause.kind == "fork"


def test_no_fork_that_takes_too_long() -> None:
    with targets.start("fill", "random", 64 << 20) as target, LiveProcess(target.pid) as process:
        with Snapshot(process, "fork", max_pause=1e-5) as snapshot:
            assert snapshot.pause.kind == "freeze"
            assert "a fork may take" in snapshot.pause.why
        with Snapshot(process, "fork", max_pause=10) as snapshot:
            assert snapshot.pause.kind == "fork"


# The command dies


SNAPSHOT = """
import sys
from fastdump.process import LiveProcess
from fastdump.snapshot import LATE, Snapshot
with LiveProcess(int(sys.argv[1])) as process:
    print("ready", flush=True)
    while True:
        with Snapshot(process, sys.argv[2]):
            pass
"""


@rounds
@pytest.mark.parametrize("kind", KINDS)
def test_the_command_is_killed_at_any_moment(kind: str, rounds: int) -> None:
    print(f"FASTDUMP_TEST_SEED={SEED}")
    rng = random.Random(f"{SEED} {kind}")
    with targets.start("restless", "nanosleep", "epoll", "spin", "signals") as target:
        for _ in range(rounds):
            command = (sys.executable, "-c", SNAPSHOT, str(target.pid), kind)
            process = start_as(None, *command)
            # Random work instead of a clock: it is in its loop of snapshots all the time.
            for _ in range(rng.randrange(200)):
                states(target.pid)
            process.kill()
            process.communicate()
            while guardians():
                pass
            assert children(target.pid) == []
            assert "t" not in states(target.pid)
        untouched(target)


@pytest.mark.parametrize("kind", KINDS)
def test_the_guardian_is_killed(kind: str) -> None:
    """Outside of the milliseconds of the fork itself the target runs on, and the copy dies."""
    with targets.start("restless", "nanosleep", "epoll", "spin") as target:
        with LiveProcess(target.pid) as process:
            snapshot = Snapshot(process, kind)
            copy = snapshot.process.tid
            os.kill(guardians()[0], signal.SIGKILL)
            while guardians() or "t" in states(target.pid):
                pass
            snapshot.release()
        if kind == "freeze":
            assert "killed" in snapshot.pause.why
        else:
            assert settled(copy) in ("", "Z")  # a zombie is the price
        untouched(target)


def test_nobody_else_sees_the_guardian() -> None:
    """No child of the calling program, no SIGCHLD, none of its descriptors."""
    heard = []
    before = signal.signal(signal.SIGCHLD, lambda *_: heard.append(1))
    one, other = socket.socketpair()
    try:
        with targets.start("threads", 3) as target, LiveProcess(target.pid) as process:
            with Snapshot(process, "fork!"):
                (guardian,) = guardians()
                assert os.getsid(guardian) == guardian
                assert len(os.listdir(f"/proc/{guardian}/fd")) == 4
                if int(status(guardian, "CapEff"), 16) >> CAP_SYS_RESOURCE & 1:
                    assert Path(f"/proc/{guardian}/oom_score_adj").read_text() == "-1000\n"
                other.close()
                assert one.recv(1) == b""
            assert heard == []
    finally:
        signal.signal(signal.SIGCHLD, before)
        one.close()
