"""The ledger of servers and a browser: its sum is what the kernel says, and little is doubted; of a
broken heap nothing is said that is not known."""

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
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import targets
import test_real
from fastdump.cli import cli
from fastdump.dumped import Dumped
from fastdump.ledger import FREE, LIVE, OWN, UNKNOWN
from fastdump.malloc_glibc import walk_glibc
from fastdump.selection import Rule
from fastdump.sources import attach, open_source
from fastdump.why import Why, why
from test_real import child, stop
from test_why import rss, told

JAVA = """
import java.util.*;
class Fill {
    public static void main(String[] words) throws Exception {
        List<Object> kept = new ArrayList<>();
        for (int i = 0; i < 400000; i++) { kept.add("string " + i); kept.add(new int[i % 50]); }
        System.out.println("ready");
        System.in.read();
        System.out.println(kept.size());
    }
}
"""
PAGE = """
<script>
const kept = [];
for (let i = 0; i < 300000; i++) kept.push({index: i, name: "item " + i});
</script>
"""


def check(pid: int) -> None:
    """Of a process that is stopped, or that waits."""
    page, resident = told(pid, strings=False), rss(pid)
    assert page.total == pytest.approx(resident, rel=0.002)
    assert all(bucket.bytes >= 0 for bucket in page.ledger)
    assert [p for p in page.problems if "is in use" not in p] == []
    text = CliRunner().invoke(cli, ["why", str(pid), "--no-strings"]).output
    assert re.search(r"\d+\.\d%  anonymous, unknown\n", text)


def test_redis(tmp_path: Path) -> None:
    with test_real.redis(tmp_path) as running:
        check(running.pid)


def buckets(page: Why) -> dict[str, int]:
    return {bucket.name: bucket.bytes for bucket in page.ledger}


def test_what_was_not_walked_is_unknown(in_tmp: Path) -> None:
    """Behind a header that was overwritten nothing is known to be malloc's."""
    with targets.start("arenas", 4) as target:
        command = ["dump", str(target.pid), "-f", "core", "-o", "app.core"]
        assert CliRunner().invoke(cli, command).exit_code == 0
    with open_source("app.core") as source:
        assert isinstance(source, Dumped)
        before, heap = why(source, strings=False), walk_glibc(source)
        assert heap
        segment = heap.arenas[1].segments[0]
        broken = segment.chunk_at(segment.start + (segment.end - segment.start) // 4)
        assert broken
        (place,) = (
            s.file_offset + broken[0] + 8 - s.address
            for s in source.slices
            if s.address <= broken[0] < s.address + s.length
        )
    with open("app.core", "r+b") as file:
        file.seek(place)
        file.write(bytes(8))
    with open_source("app.core") as source:
        page = why(source, strings=False)
    had, found = buckets(before), buckets(page)
    assert any("no chunk at" in problem for problem in page.problems)
    assert page.total == before.total
    assert found[OWN] == had[OWN]
    lost = had[LIVE] + had[FREE] - found[LIVE] - found[FREE]
    assert found[UNKNOWN] - had[UNKNOWN] == lost > 100_000
    assert page.heap
    assert before.heap
    assert page.heap.own_bytes == before.heap.own_bytes


def test_what_was_not_read_is_unknown() -> None:
    """What a rule leaves out, a heap or a part of a region, is resident all the same."""
    with targets.start("arenas", 1) as target:
        target.stop()
        before = told(target.pid, strings=False)
        with attach(target.pid) as source:
            heap = next(region for region in source.regions if region.path == "[heap]")
        middle = (heap.start + heap.end) // 2
        for pattern in ("heap", f"{heap.start:x}-{middle:x}"):
            page = told(target.pid, strings=False, rules=[Rule(False, pattern)])
            assert page.total == pytest.approx(before.total, rel=0.002)
            assert 0 <= buckets(page)[OWN] <= buckets(before)[OWN]
            left_out = buckets(page)[UNKNOWN] - buckets(before)[UNKNOWN]
            assert left_out > (middle - heap.start) // 2
        target.resume()


STACK_IN_HEAP = """
import ctypes, sys, threading
libc = ctypes.CDLL(None)
libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: all from the arena
libc.aligned_alloc.restype = ctypes.c_void_p
def fill():
    place = libc.aligned_alloc(4096, 16 << 20)
    ctypes.memset(place, 1, 16 << 20)
    libc.madvise(ctypes.c_void_p(place + (4 << 20)), ctypes.c_size_t(4096), 16)  # MADV_DONTDUMP
    attributes, thread = ctypes.create_string_buffer(64), ctypes.c_ulong()
    libc.pthread_attr_init(attributes)
    libc.pthread_attr_setstack(attributes, ctypes.c_void_p(place), ctypes.c_size_t(1 << 20))
    libc.pthread_create(ctypes.byref(thread), attributes, libc.pause, None)
thread = threading.Thread(target=fill)
thread.start()
thread.join()
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_heap_that_begins_in_the_region_of_a_stack_counts_once() -> None:
    with child(sys.executable, "-c", STACK_IN_HEAP, ready=b"ready") as process:
        stop(process)
        check(process.pid)


def test_of_a_heap_that_is_not_known_nothing_is_told(in_tmp: Path) -> None:
    """A raw dump has neither the data of libc nor the names of Python's types."""
    text = "a = [bytes(1000) for _ in range(50_000)]; print('ready', flush=True); input()"
    with child(sys.executable, "-c", text, ready=b"ready") as process:
        dump = ["dump", str(process.pid), "-f", "raw", "-o", "app.raw"]
        assert CliRunner().invoke(cli, dump).exit_code == 0
        whole = told(process.pid, strings=False)
        rules = [Rule(False, "heap")]
        left_out = told(process.pid, strings=False, rules=rules)
    with open_source("app.raw") as source:
        page = why(source, strings=False)
    assert whole.problems == left_out.problems == []
    assert [problem.partition(":")[0] for problem in page.problems] == [
        "glibc's malloc was not found",
        "the objects of CPython are not counted",
    ]
    for found in (page, left_out):
        texts = [suspect.text for suspect in found.suspects]
        assert any("not known to be glibc's" in text for text in texts)
        assert not any("that is not glibc's" in text for text in texts)


def needed(name: str) -> str:
    path = shutil.which(name)
    if not path:
        pytest.skip(f"{name} is not installed")
    return path


@pytest.mark.long
def test_jvm(tmp_path: Path) -> None:
    """Of its own memory some looks like chunks of malloc, in one run and not in another."""
    (tmp_path / "Fill.java").write_text(JAVA)
    for _ in range(8):
        with child(needed("java"), "-Xmx512m", tmp_path / "Fill.java", ready=b"ready") as process:
            stop(process)
            check(process.pid)


@pytest.mark.long
def test_postgresql() -> None:
    """A server process is forked: its heap is two regions."""
    with postgresql() as (folder, run):
        command = [*run, needed("psql"), "-h", str(folder), "-U", "postgres", "-AtqX"]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd="/") as client:
            assert client.stdin
            assert client.stdout
            client.stdin.write(
                b"create table t as select i, repeat('x', i % 500) s"
                b" from generate_series(1, 50000) i; select count(*) from t;"
                b" select pg_backend_pid();\n"
            )
            client.stdin.flush()
            assert client.stdout.readline() == b"50000\n"
            check(int(client.stdout.readline()))
            client.stdin.close()


@contextlib.contextmanager
def postgresql() -> Iterator[tuple[Path, list[str]]]:
    """A server that listens in a folder, and how to run what it lets in."""
    postgres, initdb = needed("postgres"), needed("initdb")
    run = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        os.chmod(folder, 0o755)
        data.mkdir()
        if run:
            shutil.chown(data, "postgres")
        make = [*run, initdb, "-D", data, "-A", "trust", "-U", "postgres"]
        subprocess.run(make, check=True, capture_output=True, cwd="/")
        serve = [*run, postgres, "-D", data, "-k", data, "-c", "listen_addresses="]
        with subprocess.Popen(serve, stderr=subprocess.PIPE, cwd="/") as server:
            try:
                assert server.stderr
                assert any(b"ready to accept" in line for line in server.stderr)
                yield data, run
            finally:
                server.terminate()
                server.communicate()


@pytest.mark.long
def test_browser(tmp_path: Path) -> None:
    """Each of its processes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        port = server.getsockname()[1]
        page = tmp_path / "page.html"
        page.write_text(PAGE + f'<img src="http://127.0.0.1:{port}/">')
        options = ["--headless=new", "--no-sandbox", "--no-zygote", "--disable-gpu"]
        options += ["--disable-dev-shm-usage", f"--user-data-dir={tmp_path}/profile"]
        command = [needed("chromium"), *options, "--remote-debugging-port=0", page.as_uri()]
        quiet = subprocess.DEVNULL
        # Killed, it leaves its folder of sockets where TMPDIR says.
        browser = subprocess.Popen(
            command,
            env={**os.environ, "TMPDIR": str(tmp_path)},
            stdout=quiet,
            stderr=quiet,
            start_new_session=True,
        )
        with browser:
            try:
                client, _ = server.accept()  # what comes before the image has run
                with client:
                    processes = [pid for pid in family(browser.pid) if rss(pid)]
                    for pid in processes:
                        check_stopped(pid)
            finally:
                os.killpg(browser.pid, signal.SIGKILL)
    assert len(processes) >= 4


def family(pid: int) -> list[int]:
    """A process and all that it has started."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [int(n) for task in tasks for n in (task / "children").read_text().split()]
    return [pid, *(found for child in children for found in family(child))]


def check_stopped(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        os.sched_yield()
    try:
        check(pid)
    finally:
        os.kill(pid, signal.SIGCONT)
