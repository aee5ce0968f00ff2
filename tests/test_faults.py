"""Faults at random moments: the target, the disk, the reader or fastdump itself goes away.

Whatever happens, no file looks whole and is not, the target neither stops nor grows, and no
process or mount is left. A moment is a number of bytes that fastdump has read or written
(proc_pid_io(5)), so no clock is asked. FASTDUMP_TEST_SEED repeats a run or makes another.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import select
import shutil
import signal
import struct
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import lz4.frame
import pytest

import targets
from fastdump._native import Copier, Gap, MemoryGone
from fastdump.description import describe
from fastdump.dump import dump, open_writer
from fastdump.errors import SourceGone
from fastdump.process import LiveProcess
from fastdump.selection import Preset, Rule
from fastdump.snapshot import Snapshot
from fastdump.sources import open_source
from fastdump.survey import Survey

SEED = int(os.environ.get("FASTDUMP_TEST_SEED", "20240501"))
SAMPLE, LONG = 4, 50
SHORT_LENGTH, LONG_LENGTH = 32 << 20, 128 << 20
PAGE = os.sysconf("SC_PAGE_SIZE")
FORMATS = ("lz4", "core", "raw", "raw-lz4")
PAUSES = ("none", "none", "freeze", "fork!")
MANIFEST_MAGIC, SEEK_TABLE_MAGIC = 0x184D2A5D, 0x184D2A5E

cases = pytest.mark.parametrize(
    "case",
    [
        *(pytest.param(i, id=f"sample{i}") for i in range(SAMPLE)),
        *(pytest.param(i + SAMPLE, id=f"long{i}", marks=pytest.mark.long) for i in range(LONG)),
    ],
)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers of this test and case."""
    print(f"FASTDUMP_TEST_SEED={SEED}")
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture
def length(request: pytest.FixtureRequest) -> int:
    """What the target holds."""
    return LONG_LENGTH if request.node.get_closest_marker("long") else SHORT_LENGTH


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[str, list[bool]]]:
    """By test: whether each fault came while fastdump was at work. Some must."""
    found = defaultdict[str, list[bool]](list)
    yield found
    missed = [name for name, hits in found.items() if len(hits) >= SAMPLE and not any(hits)]
    assert not missed, missed


@pytest.fixture
def hit(request: pytest.FixtureRequest, outcomes: dict[str, list[bool]]) -> Callable[[bool], None]:
    """Notes whether the fault of this test came while fastdump was at work."""
    return outcomes[request.function.__name__].append


@pytest.fixture
def target(length: int) -> Iterator[targets.Target]:
    with targets.start("exiter", length) as started:
        yield started


@pytest.fixture(autouse=True)
def nothing_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No process of ours and no mount outlives a test."""
    folder = tmp_path_factory.getbasetemp()
    before = _children(), _mounts(folder)
    yield
    after = _children(), _mounts(folder)
    for pid in after[0] - before[0]:  # of a test that failed: it may be stopped
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert after == before


def _children() -> set[int]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                found.add(int(path.parent.name))
    return found


def _mounts(folder: Path) -> list[str]:
    """Those below *folder*: other tests mount, too."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [line for line in lines if line.split()[1].startswith(f"{folder}/")]


# Running fastdump, and moments


class Moment(NamedTuple):
    """When fastdump has read (``rchar``) or written (``wchar``) so many bytes."""

    counter: str
    count: int


def start(*args: object, **options: Any) -> subprocess.Popen[bytes]:
    """Start fastdump; Ctrl-C works in it even where it is off in our own parent."""
    options.setdefault("stdout", subprocess.PIPE)
    return subprocess.Popen(
        [sys.executable, "-m", "fastdump", *map(str, args)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it is a zombie: its counters are there until it is waited for."""
    return bool(os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT))


def reach(process: subprocess.Popen[bytes], reached: Callable[[int], bool]) -> bool:
    """Wait until ``reached(pid)``; False if it ends before."""
    while not has_ended(process):
        with contextlib.suppress(OSError):
            if reached(process.pid):
                return True
    return False


def counters(pid: int) -> dict[str, int]:
    """proc_pid_io(5)."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return {key: int(value) for key, _, value in (line.partition(":") for line in lines)}


def at(moment: Moment) -> Callable[[int], bool]:
    return lambda pid: counters(pid)[moment.counter] >= moment.count


def reads(target: targets.Target) -> Callable[[int], bool]:
    """Whether a process has the target's memory open."""
    name = f"/proc/{target.pid}/mem"
    return lambda pid: any(os.readlink(fd) == name for fd in Path(f"/proc/{pid}/fd").iterdir())


def takes_signals(pid: int) -> bool:
    """Whether a process handles SIGTERM: fastdump has begun, Python has started before."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@pytest.fixture(scope="module")
def io_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, dict[str, int]]]:
    @functools.cache
    def measure(length: int) -> dict[str, dict[str, int]]:
        found = {}
        with targets.start("exiter", length) as target:
            for format in FORMATS:
                output = tmp_path_factory.mktemp("io") / "out"
                process = start("dump", target.pid, "-f", format, "-o", output)
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
                found[format] = counters(process.pid)
                assert process.communicate()[1] == b""
                assert process.returncode == 0
                _remove(output)
        return found

    return measure


@pytest.fixture
def io(io_of: Callable[[int], dict[str, dict[str, int]]], length: int) -> dict[str, dict[str, int]]:
    """What an undisturbed dump of the target reads and writes, for each format."""
    return io_of(length)


def random_moment(rng: random.Random, io: dict[str, int], early: bool = True) -> Moment:
    """One of the start-up (if *early*), of the copying, or of the end."""
    kind = rng.choice(["rchar", "wchar", "wchar", "end"] if early else ["wchar", "wchar", "end"])
    if kind == "end":
        moment = Moment("wchar", io["wchar"] - rng.randrange(PAGE, 2 << 20))
    else:
        moment = Moment(kind, rng.randrange(io[kind]))
    print(moment)
    return moment


def finish(process: subprocess.Popen[bytes]) -> str:
    """Wait for the end of fastdump: what it printed to standard error, never a traceback."""
    _, error = process.communicate()
    text = error.decode()
    print(f"exit code {process.returncode}: {text}")
    assert "Traceback" not in text, text
    assert "Exception ignored" not in text, text
    assert len(text.splitlines()) <= 2, text
    return text


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# What is on the disk


def manifest_of(path: Path, format: str) -> dict[str, Any]:
    """The manifest, found as a reader of the format would; the file ends with nothing else."""
    if format.startswith("raw"):
        return json.loads((path / "manifest.json").read_bytes())
    with path.open("rb") as file:
        if format == "core":
            return _manifest_of_core(file)
        size = file.seek(-9, os.SEEK_END) + 9
        count, _, magic = struct.unpack("<IBI", file.read(9))
        assert magic == 0x8F92EAB1
        table_at = file.seek(size - 9 - 8 * count - 8)
        assert struct.unpack("<II", file.read(8)) == (SEEK_TABLE_MAGIC, 8 * count + 9)
        entries = struct.iter_unpack("<II", file.read(8 * count))
        file.seek(manifest_at := sum(length for length, _ in entries))
        magic, length = struct.unpack("<II", file.read(8))
        assert (magic, manifest_at + 8 + length) == (MANIFEST_MAGIC, table_at)
        assert file.read(8) == b"FASTDUMP"
        return json.loads(lz4.frame.decompress(file.read(length - 8)))


def _manifest_of_core(file: BinaryIO) -> dict[str, Any]:
    file.seek(40)
    (e_shoff,) = struct.unpack("<Q", file.read(8))
    file.seek(e_shoff + 64)
    _, sh_type, _, _, sh_offset, sh_size = struct.unpack("<IIQQQQ", file.read(40))
    assert sh_type == 7  # SHT_NOTE
    file.seek(sh_offset)
    note = file.read(sh_size)
    name_size, desc_size, _ = struct.unpack_from("<III", note)
    desc_at = 12 + -(-name_size // 4) * 4
    return json.loads(note[desc_at : desc_at + desc_size])


def _unpacked(path: Path) -> BinaryIO:
    """What ``lz4 -dc`` makes of a file, without an error."""
    plain = path.with_name(path.name + ".plain")
    with plain.open("wb") as file:
        subprocess.run(["lz4", "-dc", path], stdout=file, stderr=subprocess.PIPE, check=True)
    file = plain.open("rb")
    plain.unlink()
    return file


def bytes_of(path: Path, format: str, start: int, end: int) -> bytearray:
    """The bytes of [start, end) in a dump; those that it lacks are zeros."""
    found = bytearray(end - start)
    for opened, file_at, vaddr, length in _pieces(path, format):
        with opened as file:
            first, last = max(vaddr, start), min(vaddr + length, end)
            if first < last:
                file.seek(file_at + first - vaddr)
                data = file.read(last - first)
                found[first - start : first - start + len(data)] = data
    return found


def _pieces(path: Path, format: str) -> Iterator[tuple[BinaryIO, int, int, int]]:
    if format.startswith("raw"):
        for name in sorted(os.listdir(path)):
            if name != "manifest.json":
                vaddr = int(name.partition(".")[0].rpartition("_")[2], 16)
                packed = format == "raw-lz4"
                opened = _unpacked(path / name) if packed else (path / name).open("rb")
                yield opened, 0, vaddr, opened.seek(0, os.SEEK_END)
        return
    with _unpacked(path) if format == "lz4" else path.open("rb") as core:
        header = core.read(64)
        (e_phoff,) = struct.unpack_from("<Q", header, 32)
        (e_phnum,) = struct.unpack_from("<H", header, 56)
        core.seek(e_phoff)
        for p_type, _, p_offset, p_vaddr, _, p_filesz, _, _ in struct.iter_unpack(
            "<IIQQQQQQ", core.read(56 * e_phnum)
        ):
            if p_type == 1:  # PT_LOAD
                yield os.fdopen(os.dup(core.fileno()), "rb"), p_offset, p_vaddr, p_filesz


def known(manifest: dict[str, Any], start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of [start, end) that are in no gap."""
    for gap in sorted(manifest["gaps"], key=lambda gap: int(gap["start"], 16)):
        first, last = int(gap["start"], 16), int(gap["end"], 16)
        if first >= end or last <= start:
            continue
        if start < first:
            yield start, first
        start = max(start, last)
    if start < end:
        yield start, end


def check_bytes(path: Path, format: str, truth: dict[str, Any], complete: bool) -> int:
    """All that the manifest calls no gap is as the target had it; how many bytes that is."""
    manifest = manifest_of(path, format)
    assert manifest["complete"] == complete
    start, end = truth["start"], truth["end"]
    found = memoryview(bytes_of(path, format, start, end))
    expected = memoryview(targets.pattern(start, end - start, truth["seed"]))
    count = 0
    for first, last in known(manifest, start, end):
        count += last - first
        assert found[first - start : last - start] == expected[first - start : last - start]
    return count


def check_form(path: Path, format: str) -> None:
    """The tools of the format accept it."""
    if format == "lz4":
        subprocess.run(["lz4", "-tq", path], check=True)
    elif format == "core":
        done = subprocess.run(["readelf", "-lW", path], capture_output=True, text=True, check=True)
        assert "Core file" in done.stdout
        assert done.stderr == ""
    elif format == "raw-lz4":
        for packed in path.glob("*.lz4"):
            subprocess.run(["lz4", "-tq", packed], check=True)


def check_whole(path: Path, format: str, truth: dict[str, Any]) -> None:
    assert not path.with_name(path.name + ".part").exists()
    check_form(path, format)
    assert check_bytes(path, format, truth, complete=True) == truth["end"] - truth["start"]


def check_kept(path: Path, format: str, truth: dict[str, Any]) -> None:
    """What is left of a dump whose target went away."""
    check_form(path, format)
    read = check_bytes(path, format, truth, complete=False)
    gaps = {gap["reason"] for gap in manifest_of(path, format)["gaps"]}
    assert read == truth["end"] - truth["start"] or "target gone" in gaps
    with open_source(str(path)) as source:
        told = describe(source)
    assert told["complete"] is False
    assert {gap["reason"] for gap in told["gaps"]} >= gaps


# The target during and after


def cost(target: targets.Target) -> int:
    """What the target takes of its host: VmRSS + VmPTE, in bytes."""
    lines = Path(f"/proc/{target.pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return sum(int(status[key].split()[0]) * 1024 for key in ("VmRSS", "VmPTE"))


def check_unharmed(target: targets.Target, before: int) -> None:
    """It is neither stopped, traced nor grown, and does what it is told."""
    status = Path(f"/proc/{target.pid}/status").read_text()
    assert status.partition("State:")[2].split()[0] in ("S", "R")
    assert status.partition("TracerPid:")[2].split()[0] == "0"
    assert abs(cost(target) - before) <= 64 << 10
    target.send(b"u")
    assert target.read_line() == "ok"


# (a) and (b): the target goes away


@cases
def test_the_target_is_killed(
    tmp_path: Path,
    rng: random.Random,
    target: targets.Target,
    io: dict[str, dict[str, int]],
    hit: Callable[[bool], None],
    case: int,
) -> None:
    format, pause = rng.choice(FORMATS), rng.choice(PAUSES)
    moment = random_moment(rng, io[format])
    options = ("-f", format, "--pause", pause)
    process = start("dump", target.pid, *options, "-o", tmp_path / "out")
    reach(process, at(moment))
    os.kill(target.pid, signal.SIGKILL)
    error = _check_target_gone(process, tmp_path, format, target.truth, moment)
    hit(process.returncode != 0)
    assert "exec" not in error


@cases
def test_the_target_calls_exec(
    tmp_path: Path,
    rng: random.Random,
    target: targets.Target,
    io: dict[str, dict[str, int]],
    hit: Callable[[bool], None],
    case: int,
) -> None:
    format, pause = rng.choice(FORMATS), rng.choice(PAUSES)
    moment = random_moment(rng, io[format], early=False)
    old = target.truth
    options = ("-f", format, "--pause", pause)
    process = start("dump", target.pid, *options, "-o", tmp_path / "out")
    reach(process, reads(target))
    reach(process, at(moment))
    target.send(b"e")
    assert target.read_truth()["pid"] == old["pid"]
    error = _check_target_gone(process, tmp_path, format, old, moment)
    assert process.returncode == 0 or "called exec" in error
    hit(process.returncode != 0)


def _check_target_gone(
    process: subprocess.Popen[bytes],
    folder: Path,
    format: str,
    truth: dict[str, Any],
    moment: Moment,
) -> str:
    """Check what is left of the dump: whole, or kept as far as it was; what fastdump said."""
    error = finish(process)
    if process.returncode == 0:  # it had finished before
        assert os.listdir(folder) == ["out"]
        check_whole(folder / "out", format, truth)
        return error
    assert process.returncode == 4, error
    assert f"process {truth['pid']}" in error
    if moment.counter == "wchar" and moment.count > 1 << 20:
        assert "out.part holds the rest" in error
    if "holds the rest" in error:
        assert os.listdir(folder) == ["out.part"]
        check_kept(folder / "out.part", format, truth)
    else:
        assert os.listdir(folder) == []
    return error


@cases
@pytest.mark.parametrize("how", ["killed", "exec"])
def test_the_target_takes_with_it_what_a_fork_does_not_copy(
    tmp_path: Path, rng: random.Random, io: dict[str, dict[str, int]], how: str, case: int
) -> None:
    """The copy is dumped to its end; what is lost is a gap, and nothing of it is zeros."""
    format = rng.choice(FORMATS)
    moment = random_moment(rng, io[format], early=False)
    with targets.start("exiter", SHORT_LENGTH, "dontfork") as target:
        truth = target.truth
        process = start(
            "dump", target.pid, "-f", format, "--pause", "fork!", "-o", tmp_path / "out"
        )
        reach(process, reads(target))
        reach(process, at(moment))
        if how == "exec":
            target.send(b"e")
            target.read_truth()
        else:
            os.kill(target.pid, signal.SIGKILL)
        error = finish(process)
    if process.returncode == 4:  # it had not been forked
        assert os.listdir(tmp_path) == []
        return
    assert process.returncode in (0, 3), error
    check_form(tmp_path / "out", format)
    read = check_bytes(tmp_path / "out", format, truth, complete=True)
    assert (read == SHORT_LENGTH) == (process.returncode == 0)
    gaps = {gap["reason"] for gap in manifest_of(tmp_path / "out", format)["gaps"]}
    assert ("target gone" in gaps) == (process.returncode == 3)


@cases
def test_the_target_of_a_stream_is_killed(
    tmp_path: Path,
    rng: random.Random,
    target: targets.Target,
    io: dict[str, dict[str, int]],
    hit: Callable[[bool], None],
    case: int,
) -> None:
    moment = Moment("wchar", rng.randrange(io["lz4"]["wchar"]))
    out = tmp_path / "out"
    with out.open("wb") as file:
        process = start("dump", target.pid, "--pause", "none", "-o", "-", stdout=file)
    reach(process, at(moment))
    os.kill(target.pid, signal.SIGKILL)
    error = finish(process) if process.wait() else ""
    hit(process.returncode != 0)
    if process.returncode == 0:
        check_whole(out, "lz4", target.truth)
    else:
        assert process.returncode == 4, error
        if moment.count > 0:
            check_kept(out, "lz4", target.truth)


@pytest.mark.parametrize("format", FORMATS)
def test_the_target_is_killed_after_a_gap_in_what_is_not_written_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: targets.Target, format: str
) -> None:
    rules = [Rule(False, "????"), Rule(True, f"{target.truth['start']:x}-{target.truth['end']:x}")]
    pieces: list[Any] = []
    with (
        LiveProcess(target.pid) as process,
        Snapshot(process) as snapshot,
        contextlib.closing(Survey(process, Preset.DATA, rules)) as survey,
    ):
        writer, name = open_writer(format, str(tmp_path / "out"))
        read = writer.work

        def work(copier: Copier, piece: Any) -> Any:
            result = read(copier, piece)
            pieces.append(piece)
            if len(pieces) < 3:
                return result
            (s,) = getattr(piece, "slices", piece)
            copier.gaps.append(Gap(s.address + PAGE, s.address + 2 * PAGE, "swapped"))
            target.kill()
            raise MemoryGone

        monkeypatch.setattr(writer, "work", work)
        with pytest.raises(SourceGone, match="were not read"):
            dump(survey, snapshot, writer, name, format, threads=1, begun=0)
    check_kept(tmp_path / "out.part", format, target.truth)


# (c): the disk is full


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs")
@cases
def test_the_disk_is_full(
    tmp_path: Path, rng: random.Random, target: targets.Target, length: int, case: int
) -> None:
    format = FORMATS[case % len(FORMATS)]
    options = f"size={rng.choice([16 << 20, rng.randrange(PAGE, length // PAGE * PAGE)])}"
    if format.startswith("raw") and rng.random() < 0.2:
        options = f"nr_inodes={rng.randrange(2, 6)}"
    print(format, options)
    before = cost(target)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", tmp_path]).returncode:
        pytest.skip("may not mount")
    try:
        process = start("dump", target.pid, "-f", format, "-o", tmp_path / "out")
        error = finish(process)
        assert process.returncode == 7, error
        assert "No space left on device" in error
        assert "--plan" in error
        assert os.listdir(tmp_path) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    check_unharmed(target, before)


# (d) and (e): fastdump is told to stop, or killed


@cases
def test_a_signal_ends_it(
    tmp_path: Path,
    rng: random.Random,
    target: targets.Target,
    io: dict[str, dict[str, int]],
    hit: Callable[[bool], None],
    case: int,
) -> None:
    format = rng.choice(FORMATS)
    number = (signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)[case % 4]
    before = cost(target)
    out, part = tmp_path / "out", tmp_path / "out.part"
    if rng.random() < 0.3:
        print("as soon as the .part is there")
        reached: Callable[[int], bool] = lambda pid: part.exists()  # noqa: E731
    else:
        reached = at(random_moment(rng, io[format]))
    process = start("dump", target.pid, "-f", format, "-o", out)
    if reach(process, takes_signals) and reach(process, reached):
        process.send_signal(number)
    error = finish(process)
    hit(process.returncode != 0)
    if out.exists():
        assert process.returncode in (0, 130), error
        assert os.listdir(tmp_path) == ["out"]
        check_whole(out, format, target.truth)
    else:
        assert process.returncode == 130, error
        assert error.strip() == "fastdump: interrupted"
        assert os.listdir(tmp_path) == []
    check_unharmed(target, before)


@cases
def test_fastdump_is_killed(
    tmp_path: Path,
    rng: random.Random,
    target: targets.Target,
    io: dict[str, dict[str, int]],
    hit: Callable[[bool], None],
    case: int,
) -> None:
    format = rng.choice(FORMATS)
    before = cost(target)
    out = tmp_path / "out"
    process = start("dump", target.pid, "-f", format, "-o", out)
    reach(process, at(random_moment(rng, io[format])))
    process.kill()
    process.communicate()
    hit(process.returncode != 0)
    left = set(os.listdir(tmp_path))
    assert left <= {"out", "out.part"}
    if left == {"out", "out.part"}:  # two names of one file, just before the second goes
        assert (tmp_path / "out.part").samefile(out)
        (tmp_path / "out.part").unlink()
    if "out" in left:
        check_whole(out, format, target.truth)
    process = start("dump", target.pid, "-f", format, "-o", out)
    assert ("exists" in finish(process)) == bool(left)
    assert process.returncode == (7 if left else 0)
    process = start("dump", target.pid, "-f", format, "-o", out, "--force")
    assert finish(process) == ""
    assert process.returncode == 0
    assert os.listdir(tmp_path) == ["out"]
    check_whole(out, format, target.truth)
    check_unharmed(target, before)


@cases
def test_a_second_dump_takes_the_name_away(
    tmp_path: Path,
    rng: random.Random,
    target: targets.Target,
    io: dict[str, dict[str, int]],
    hit: Callable[[bool], None],
    case: int,
) -> None:
    format = FORMATS[case % len(FORMATS)]
    out = tmp_path / "out"
    total = io[format]["wchar"]
    force = rng.choice([(), ("--force",)])
    first = start("dump", target.pid, "-f", format, "-o", out, *force)
    stopped = reach(first, at(Moment("wchar", rng.randrange(1, total // 2))))
    if stopped:
        first.send_signal(signal.SIGSTOP)
    second = start("dump", target.pid, "-f", format, "-o", out, "--force")
    if reach(second, at(Moment("wchar", rng.randrange(1, total // 2)))):
        second.send_signal(signal.SIGSTOP)
    first.send_signal(signal.SIGCONT)
    error = finish(first)
    assert first.returncode in (0, 7), error
    hit(stopped)
    second.kill()
    second.communicate()
    if out.exists():
        _remove(tmp_path / "out.part")
        check_whole(out, format, target.truth)
    else:
        assert os.listdir(tmp_path) in ([], ["out.part"])


# (f): the memory changes


@cases
def test_the_target_unmaps_memory(
    tmp_path: Path,
    rng: random.Random,
    target: targets.Target,
    io: dict[str, dict[str, int]],
    hit: Callable[[bool], None],
    case: int,
) -> None:
    format = rng.choice(FORMATS)
    out = tmp_path / "out"
    process = start("dump", target.pid, "--pause", "none", "-f", format, "-o", out)
    reach(process, reads(target))
    reach(process, at(random_moment(rng, io[format], early=False)))
    process.send_signal(signal.SIGSTOP)  # or it may have read all before the target is at it
    target.send(b"u")
    assert target.read_line() == "ok"
    process.send_signal(signal.SIGCONT)
    _, error = process.communicate()
    assert process.returncode in (0, 3), error
    assert (b"incomplete" in error) == (process.returncode == 3), error
    assert os.listdir(tmp_path) == ["out"]
    check_form(out, format)
    manifest = manifest_of(out, format)
    start_, half, end = (target.truth[key] for key in ("start", "half", "end"))
    gaps = [gap for gap in manifest["gaps"] if int(gap["end"], 16) > start_]
    gaps = [gap for gap in gaps if int(gap["start"], 16) < end]
    assert all(int(gap["start"], 16) >= half for gap in gaps)
    assert bool(gaps) == (process.returncode == 3)
    found = bytes_of(out, format, start_, end)
    expected = targets.pattern(start_, end - start_, target.truth["seed"])
    hit(found != expected)
    assert found[: half - start_] == expected[: half - start_]
    zeros = bytes(PAGE)
    for page in range(half - start_, end - start_, PAGE):  # as before, or gone
        assert found[page : page + PAGE] in (expected[page : page + PAGE], zeros)


# (g): the reader of a stream


@cases
def test_the_reader_closes_the_pipe(
    rng: random.Random, target: targets.Target, length: int, case: int
) -> None:
    format = ("lz4", "core")[case % 2]
    process = start("dump", target.pid, "-f", format, "-o", "-")
    assert process.stdout
    count = rng.choice([0, 1, 5000, rng.randrange(length // 2)])
    print(count)
    while count:
        count -= len(os.read(process.stdout.fileno(), min(count, 1 << 20)))
    process.stdout.close()
    process.stdout = None
    error = finish(process)
    assert process.returncode == 7, error
    assert len(error.splitlines()) <= 1, error


@cases
def test_a_signal_while_the_reader_does_not_read(
    rng: random.Random, target: targets.Target, length: int, case: int
) -> None:
    format = ("lz4", "core")[case % 2]
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as pipe, open(writer, "wb") as output:
        process = start("dump", target.pid, "-f", format, "-o", "-", stdout=output)
        count = rng.randrange(length // 4)
        print(count)
        while count:
            count -= len(pipe.read(min(count, 1 << 20)))
        poll = select.poll()
        poll.register(output, select.POLLOUT)
        while poll.poll(0):  # until the pipe is full
            assert not has_ended(process)
        process.send_signal(rng.choice([signal.SIGINT, signal.SIGTERM]))
        process.wait()  # not for the reader, or both would wait for ever
    assert finish(process).strip() == "fastdump: interrupted"
    assert process.returncode == 130


@pytest.mark.parametrize("format", ["lz4", "core"])
def test_a_slow_reader_gets_it_all(
    tmp_path: Path, target: targets.Target, rng: random.Random, format: str
) -> None:
    process = start("dump", target.pid, "-f", format, "-o", "-", "-q")
    assert process.stdout
    with (tmp_path / "out").open("wb") as file:
        while piece := os.read(process.stdout.fileno(), rng.choice([1, 1000, 65536])):
            file.write(piece)
    assert finish(process) == ""
    assert process.returncode == 0
    check_whole(tmp_path / "out", format, target.truth)
