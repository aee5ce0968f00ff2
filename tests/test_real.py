"""Real processes: what ``--format raw`` holds is byte for byte what dd(1) gives.

fastdump runs before dd, which makes the target grow: it touches every page that it reads.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import targets
from conftest import program
from fastdump.labels import Kind
from fastdump.region import Region
from test_formats import PAGE_SIZE, Dump, regions_of, run_well

CHUNK = 4 << 20

PYTHON_TARGET = """
import os, random, sys
random.seed(20240607)
class Node:
    def __init__(self, index):
        self.index, self.name, self.children = index, f"node {index}", []
kept = {
    "strings": [f"{i:08d}-{random.random():.17f}" for i in range(200_000)],
    "wide": ["\\u20ac\\U0001f40d" * random.randrange(1, 40) for _ in range(50_000)],
    "bytes": [random.randbytes(random.randrange(2000)) for _ in range(20_000)],
    "numbers": [random.getrandbits(random.randrange(1, 300)) for _ in range(200_000)],
    "floats": [random.random() for _ in range(200_000)],
    "tuples": [(i, str(i), None) for i in range(100_000)],
    "dicts": [{"id": i, i: {i}} for i in range(20_000)],
    "nodes": [Node(i) for i in range(50_000)],
    "large": bytearray(random.randbytes(8 << 20)),
}
freed = [bytes(100_000) for _ in range(200)]
del freed[::2]
print("ready", flush=True)
sys.stdin.read()
"""

NODE_TARGET = """
const kept = {strings: [], objects: [], buffers: [], wide: new Map()};
for (let i = 0; i < 40000; i++) {
    kept.strings.push("string number " + i);
    kept.objects.push({index: i, half: i / 2, list: [i, i + 1, i + 2]});
    kept.wide.set(i, "\\u20ac".repeat(i % 20));
}
for (let i = 0; i < 64; i++) kept.buffers.push(Buffer.alloc(65536, i));
process.stdin.resume();
process.stdin.on("end", () => process.exit(kept.strings.length > 0 ? 0 : 1));
console.log("ready");
"""


class Running(NamedTuple):
    """A real process that has stopped, and what is known to be in its memory."""

    pid: int
    known: bytes


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGSTOP a child, and wait until each of its threads has stopped."""
    process.send_signal(signal.SIGSTOP)
    state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert state
    assert state.si_code == os.CLD_STOPPED
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        assert (task / "stat").read_text().rpartition(")")[2].split()[0] == "T"


@contextlib.contextmanager
def child(*command: str | Path, ready: bytes) -> Iterator[subprocess.Popen[bytes]]:
    """A child process that has written a line with *ready* in it; it is killed at the end."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        try:
            assert process.stdout
            assert any(ready in line for line in process.stdout), "it ended too early"
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def ending(*command: str | Path, **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process that ends by itself, or the test has failed, and it is killed; its pipes are
    closed first."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
            with process:
                pass
        finally:
            process.kill()


@contextlib.contextmanager
def python(folder: Path) -> Iterator[Running]:
    with child(sys.executable, "-c", PYTHON_TARGET, ready=b"ready") as process:
        stop(process)
        yield Running(process.pid, b"node 49999")


@contextlib.contextmanager
def node(folder: Path) -> Iterator[Running]:
    with child(program("node"), "-e", NODE_TARGET, ready=b"ready") as process:
        stop(process)
        yield Running(process.pid, b"string number ")


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[Running]:
    path = folder / "redis.sock"
    words = f"--port 0 --daemonize no --appendonly no --dir {folder} --unixsocket {path}".split()
    server = (program("redis-server"), *words, "--save", "")
    with child(*server, ready=b"eady to accept connections") as process:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            for i in range(5000):
                client.sendall(b"SET key:%d value-%d-%s\r\n" % (i, i, b"x" * (i % 700)))
                client.sendall(b"HSET hash:%d a %d b %s\r\n" % (i % 50, i, b"y" * (i % 90)))
            client.sendall(b"QUIT\r\n")
            with client.makefile("rb") as replies:
                assert sum(line == b"+OK\r\n" for line in replies) == 5001
        stop(process)
        yield Running(process.pid, b"value-4999-")


@contextlib.contextmanager
def awkward_target(folder: Path) -> Iterator[Running]:
    with targets.start("awkward", folder) as target:
        target.stop()
        region = target.region("jason app")
        yield Running(target.pid, targets.pattern(region["start"], 4096, region["content"][0][3]))


Start = Callable[[Path], contextlib.AbstractContextManager[Running]]
PROCESSES: dict[str, Start] = {
    "python": python,
    "node": node,
    "redis": redis,
    "awkward": awkward_target,
}


def growing(pid: int) -> int:
    """VmRSS and VmPTE, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("VmRSS", "VmPTE")))


def dd(pid: int, region: Region) -> bytes:
    """What dd makes of a region, with zeros for each page that it cannot read.

    dd is run again behind such a page: with conv=noerror it goes on at a wrong address
    ("invalid file offset after failed read"), since it takes the file to be empty.
    """
    content = bytearray()
    while len(content) < region.length:
        done = len(content)
        command = ["dd", f"if=/proc/{pid}/mem", "bs=4096", "iflag=skip_bytes,count_bytes"]
        command += ["status=none", f"skip={region.start + done}", f"count={region.length - done}"]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        content += result.stdout
        if result.returncode:
            content += bytes(PAGE_SIZE)
        assert len(content) > done
    return bytes(content)


def same_as(file: Path, content: bytes) -> bool:
    with open(file, "rb") as opened:
        if os.fstat(opened.fileno()).st_size != len(content):
            return False
        return all(
            opened.read(CHUNK) == content[at : at + CHUNK] for at in range(0, len(content), CHUNK)
        )


def blog_choice(region: Region) -> bool:
    """The recipe that everybody copies: ``grep rw-p /proc/PID/maps | grep -v so``."""
    return region.perms == "rw-p" and "so" not in region.path


@pytest.mark.parametrize("name", PROCESSES)
def test_raw_is_what_dd_gives_and_the_target_does_not_grow(name: str, tmp_path: Path) -> None:
    with PROCESSES[name](tmp_path) as running:
        pid = running.pid
        before = growing(pid)
        options: list[tuple[str, ...]] = [(), ("--with-libraries",), ("--all",)]
        dumps: list[Dump] = [run_well(pid, "raw", tmp_path, *words) for words in options]
        growth = growing(pid) - before
        files: dict[int, list[Path]] = {}  # of each region, by its start
        for found in dumps:
            for region in found.regions:
                named = [found.path / file["name"] for file in region["files"]]
                files.setdefault(region["start"], []).extend(named)

        userfaults = _in_userfaultfd(pid)
        regions = regions_of(pid)
        different = [
            f"{file.parent.name}/{file.name}: {region}"
            for region in regions
            if files[region.start] and region.start not in userfaults
            for content in [dd(pid, region)]
            for file in files[region.start]
            if not same_as(file, content)
        ]
        assert not different
        assert growth < 64 << 10

        default, with_libraries, everything = dumps
        for region in filter(blog_choice, regions):
            label = default.region_at(region.start)["label"]
            assert bool(default.region_at(region.start)["files"]) == (label != Kind.LIBRARY.value)
            assert with_libraries.region_at(region.start)["files"]
        for region in regions:
            in_all = bool(everything.region_at(region.start)["files"])
            assert in_all == (region.path not in _KERNEL_ONLY)
        assert any(running.known in content for content in _contents(default))


_KERNEL_ONLY = {"[vvar]", "[vvar_vclock]", "[vsyscall]"}


def _contents(found: Dump) -> Iterator[bytes]:
    for file in found.path.glob("*.bin"):
        with open(file, "rb") as opened:
            while content := opened.read(CHUNK):
                yield content


def _in_userfaultfd(pid: int) -> set[int]:
    """The starts of regions of which VmFlags of smaps say that faults are handled in user space."""
    at, found = 0, set()
    for line in os.fsdecode(Path(f"/proc/{pid}/smaps").read_bytes()).split("\n"):
        head = line.split(" ", 1)[0]
        if "-" in head and not head.endswith(":"):
            at = int(head.partition("-")[0], 16)
        elif head == "VmFlags:" and {"um", "uw", "ui"} & set(line.split()):
            found.add(at)
    return found
