"""``fastdump strings PID``, held against strings(1) on a raw dump of the same stopped process.

GNU strings sees zeros where the dump has holes: so must we, absent pages are zeros. It sees them
in gaps too (guard pages, pages past the end of a file), which are no memory: a character of which
a part would lie there is none. That is the only difference.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import targets
import test_faults
from fastdump._strings import kernels
from test_faults import Moment, at, cases, has_ended, hit, outcomes, reach
from test_formats import Dump, run_well
from test_real import PROCESSES, child, ending, growing, program, stop
from test_strings import (
    CODECS,
    ENCODINGS,
    FASTDUMP,
    PAGE,
    SEED,
    check_one_line,
    gnu,
    lines_of,
    rng,
    run,
    same,
)

__all__ = ["hit", "outcomes", "rng"]

MANY = [(n, e) for n in (1, 2, 4, 8, 100) for e in ENCODINGS]
SELECTIONS: list[tuple[str, ...]] = [
    (),
    ("--with-libraries",),
    ("--all",),
    ("--include", "heap", "--exclude", "stack"),
    ("--exclude", "????", "--include", "rw-s"),
    ("--include", "*.bin", "--with-libraries"),
]


def theirs(dump: Dump, length: int = 4, encoding: str = "s") -> Iterator[bytes]:
    """The lines of GNU strings for all files of a raw dump, with addresses for offsets."""
    files = [file for region in dump.regions for file in region["files"]]
    start_of = {file["name"].encode(): int(file["start"], 16) for file in files}
    starts = list(start_of.values())
    assert starts == sorted(starts)
    if not start_of:
        return
    options = ("-n", str(length), "-e", encoding)
    command = [program("strings"), "-a", "-f", "-t", "d", *options, *start_of]
    width = len("x".encode(CODECS[encoding]))
    with ending(*command, stdout=subprocess.PIPE, cwd=dump.path) as process:
        assert process.stdout
        for line in process.stdout:
            name, _, rest = line.partition(b": ")
            offset, _, found = rest.lstrip(b" ").partition(b" ")
            place, text = start_of[name] + int(offset), found[:-1]
            for start, end, _ in dump.gaps if width > 1 else ():
                if place < end < place + len(text) * width:
                    place, text = place + width, text[1:]
                elif place < start < place + len(text) * width:
                    text = text[:-1]
            if len(text) >= length:
                yield b"%7x %s\n" % (place, text)
    assert process.returncode == 0


def compare(
    pid: int, dump: Dump, length: int = 4, encoding: str = "s", selection: Sequence[str] = ()
) -> int:
    """How many lines there are; both are read side by side, however many they are."""
    command = [*FASTDUMP, "strings", str(pid), "-t", "x", "-n", str(length), "-e", encoding]
    count = 0
    with ending(*command, *selection, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        pairs = itertools.zip_longest(process.stdout, theirs(dump, length, encoding))
        for mine, gnus in pairs:
            if mine != gnus:
                where = f"line {count} of -n {length} -e {encoding}"
                pytest.fail(f"{where} is {mine!r}, and of GNU strings {gnus!r}")
            count += 1
        assert process.stderr.read() == b""
    assert process.returncode == 0
    return count


def sample(name: str) -> list[tuple[int, str]]:
    """What is compared in the short tests."""
    if name == "awkward":
        return random.Random(SEED).sample(MANY, 8)
    return [(4, "s"), random.Random(f"{SEED} {name}").choice(MANY[12:])]


CASES = [
    *(pytest.param(name, sample(name), id=name) for name in PROCESSES),
    *(
        pytest.param(
            name,
            [(n, e) for n in (1, 2, 4, 8, 100)],
            id=f"long-{name}-{e}",
            marks=[pytest.mark.long, pytest.mark.timeout(600)],
        )
        for name in PROCESSES
        for e in ENCODINGS
    ),
]


@pytest.mark.parametrize(("name", "combinations"), CASES)
def test_a_process_gives_what_gnu_strings_finds_in_its_dump(
    name: str, combinations: list[tuple[int, str]], tmp_path: Path
) -> None:
    print(f"FASTDUMP_TEST_SEED={SEED}", combinations)
    with PROCESSES[name](tmp_path) as running:
        before = growing(running.pid)
        dump = run_well(running.pid, "raw", tmp_path)
        found = [compare(running.pid, dump, length, encoding) for length, encoding in combinations]
        assert growing(running.pid) - before < 64 << 10
        assert any(found)
        if name != "awkward":  # it knows no text
            assert lines_of(running.pid, "--contains", running.known.decode().strip())


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[targets.Target]:
    with targets.start("awkward", tmp_path_factory.mktemp("awkward")) as target:
        target.stop()
        yield target


@pytest.fixture(scope="module")
def dump_of_stopped(stopped: targets.Target, tmp_path_factory: pytest.TempPathFactory) -> Dump:
    return run_well(stopped.pid, "raw", tmp_path_factory.mktemp("dump"))


@pytest.mark.parametrize("kernel", kernels())
def test_every_kernel(
    stopped: targets.Target, dump_of_stopped: Dump, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTDUMP_KERNEL", kernel)
    for length, encoding in ((1, "l"), (4, "s"), (5, "S"), (2, "b"), (1, "L")):
        compare(stopped.pid, dump_of_stopped, length, encoding)


def test_an_unknown_kernel(stopped: targets.Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDUMP_KERNEL", "6502")
    check_one_line(run(stopped.pid), 2, "6502")


@pytest.mark.parametrize("selection", SELECTIONS, ids=" ".join)
def test_a_selection_is_that_of_a_dump(
    stopped: targets.Target, tmp_path: Path, selection: tuple[str, ...]
) -> None:
    dump = run_well(stopped.pid, "raw", tmp_path, *selection)
    assert compare(stopped.pid, dump, selection=selection) > 0
    compare(stopped.pid, dump, 2, "b", selection)


def test_a_part_of_a_region(stopped: targets.Target, tmp_path: Path) -> None:
    region = stopped.region("jason app")
    middle = (region["start"] + region["end"]) // 2 // PAGE * PAGE
    rule = f"{middle:x}-{region['end']:x}"
    selection = ("--exclude", "????", "--include", rule)
    found = lines_of(stopped.pid, "--json", *selection).splitlines()
    assert found
    places = [int(json.loads(line)["address"], 16) for line in found]
    assert min(places) >= middle
    assert max(places) < region["end"]
    dump = run_well(stopped.pid, "raw", tmp_path, *selection)
    data = dump.read(middle, region["end"] - middle)
    (tmp_path / "part").write_bytes(data)
    assert len(gnu(tmp_path / "part").splitlines()) == len(found)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads(stopped: targets.Target, dump_of_stopped: Dump, threads: int) -> None:
    compare(stopped.pid, dump_of_stopped, selection=("--threads", str(threads)))


def test_json_names_region_and_label(stopped: targets.Target, dump_of_stopped: Dump) -> None:
    records = [json.loads(line) for line in lines_of(stopped.pid, "--json").splitlines()]
    assert records
    plain = list(theirs(dump_of_stopped))
    assert [b"%7x %s\n" % (int(r["address"], 16), r["text"].encode()) for r in records] == plain
    by_start = {f"{region['start']:#x}": region for region in dump_of_stopped.regions}
    for record in records:
        region = by_start[record["region"]]
        assert region["start"] <= int(record["address"], 16) < region["end"]
        assert record["label"] == region["label"]
        if region["path"]:
            assert record["path"] == region["path"]


def test_a_running_target_neither_stops_nor_grows(awkward: targets.Target) -> None:
    before = growing(awkward.pid)
    assert lines_of(awkward.pid, "--all", "-n", "8")
    assert lines_of(awkward.pid, "--top", "5")
    assert growing(awkward.pid) - before < 64 << 10
    status = Path(f"/proc/{awkward.pid}/status").read_text()
    assert status.partition("State:")[2].split()[0] in ("S", "R")


# Wide characters at the edges of what is present in memory.

_EDGES = """
import mmap, sys
encoding, page = sys.argv[1], mmap.PAGESIZE
part = "abcdefg".encode(encoding).strip(b"\\0")
found = mmap.mmap(-1, 64 * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
found.madvise(15)  # MADV_NOHUGEPAGE
for at in (8, 40):
    found[at * page : at * page + len(part)] = part
    found[(at + 4) * page - len(part) : (at + 4) * page] = part
found[56 * page :] = b"\\1" * (8 * page)
found[64 * page - len(part):] = part
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("encoding", ["l", "b", "L", "B"])
def test_zeros_of_absent_pages_are_parts_of_characters(encoding: str, tmp_path: Path) -> None:
    with child(sys.executable, "-c", _EDGES, CODECS[encoding], ready=b"ready") as process:
        stop(process)
        dump = run_well(process.pid, "raw", tmp_path)
        assert compare(process.pid, dump, 6, encoding) >= 5


# What goes wrong.


def test_no_such_process() -> None:
    with targets.start("exiter", PAGE) as target:
        pid = target.pid
    check_one_line(run(pid), 4, str(pid))
    check_one_line(run(pid, "--top", "3"), 4, str(pid))


def test_a_kernel_thread() -> None:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[6]) & 0x200000:  # PF_KTHREAD
                check_one_line(run(path.parent.name), 2, "kernel thread")
                return
    pytest.skip("no kernel thread is visible here")


def test_several_processes_of_which_one_is_gone(stopped: targets.Target, tmp_path: Path) -> None:
    with targets.start("exiter", PAGE) as target:
        gone = target.pid
    (tmp_path / "file").write_bytes(b"text of a file")
    done = run("-f", gone, stopped.pid, tmp_path / "file")
    assert done.code == 4
    expected = lines_of("-f", stopped.pid) + lines_of("-f", tmp_path / "file")
    same(done.out, expected)
    assert str(gone) in done.err.splitlines()[0]


@pytest.fixture
def target() -> Iterator[targets.Target]:
    with targets.start("exiter", 64 << 20) as started:
        yield started


FORMS: list[tuple[str, ...]] = [(), ("-t", "x"), ("--json",), ("--match", "a"), ("--context", "16")]


@pytest.mark.parametrize("how", ["exit", "exec"])
@pytest.mark.parametrize("form", FORMS, ids=" ".join)
def test_the_target_ends_while_the_reader_waits(
    target: targets.Target, form: tuple[str, ...], how: str
) -> None:
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as pipe:
        with open(writer, "wb") as output:
            process = test_faults.start("strings", target.pid, "-n", 3, *form, stdout=output)
            poll = select.poll()
            poll.register(output, select.POLLOUT)
            while poll.poll(0):  # until the pipe is full
                assert not has_ended(process)
        if how == "exit":
            target.send(b"x")
            assert target.wait() == 0
        else:
            old = target.pid
            target.send(b"e")
            assert target.read_truth()["pid"] == old
        while pipe.read(1 << 20):
            pass
    error = test_faults.finish(process)
    assert process.returncode == 4, error
    assert f"process {target.pid}" in error
    assert ("called exec" in error) == (how == "exec")


@cases
def test_the_target_is_killed_at_any_moment(
    tmp_path: Path,
    rng: random.Random,
    target: targets.Target,
    hit: Callable[[bool], None],
    case: int,
) -> None:
    form = rng.choice([*FORMS, ("--top", "5"), ("--count",), ("-e", "s,l", "-n", "2")])
    quiet = "--top" in form or "--count" in form
    moment = Moment("wchar", 0 if quiet else rng.randrange(20 << 20))
    print(form, moment)
    with (tmp_path / "out").open("wb") as output:
        process = test_faults.start("strings", target.pid, "-n", 3, *form, stdout=output)
    reach(process, test_faults.reads(target))
    reach(process, at(moment))
    target.kill()
    error = test_faults.finish(process)
    assert process.returncode in (0, 4), error
    hit(process.returncode != 0)
    if process.returncode == 4:
        assert f"process {target.pid}" in error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(
    rng: random.Random, target: targets.Target, number: signal.Signals
) -> None:
    form = rng.choice(FORMS)
    print(form)
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as pipe, open(writer, "wb") as output:
        process = test_faults.start("strings", target.pid, "-n", 3, *form, stdout=output)
        count = rng.randrange(128 << 10)  # far less than all of it
        while count > 0:
            count -= len(pipe.read(min(count, 1 << 16)))
        poll = select.poll()
        poll.register(output, select.POLLOUT)
        while poll.poll(0):
            assert not has_ended(process)
        process.send_signal(number)
        process.wait()
    assert test_faults.finish(process).strip() == "fastdump: interrupted"
    assert process.returncode == 130
