"""Every source keeps one contract, whatever it is: each byte once, in order, the right one or none.

The truth is what ``/proc/PID/mem`` gives of a stopped process, a page at a time. Cores come from
gdb and from the kernel as well, and are seen through gdb's eyes too.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import lz4.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st

import targets
from conftest import program
from fastdump._native import AGAIN, OURS, PLAIN, ZEROS_BEFORE, ZEROS_BEHIND, Gap, Slice
from fastdump.core_source import ElfCore
from fastdump.dumped import Dumped, _extents, uncovered
from fastdump.errors import CorruptDump, FaultError
from fastdump.extract import extract
from fastdump.gaps import TOO_MANY, bounded, union
from fastdump.labels import Kind
from fastdump.region import Range, Region
from fastdump.source import NOT_IN_DUMP, NOT_MAPPED, Chunk, Source, Zeros
from fastdump.sources import open_source
from fastdump.storage import Lost, Storage
from fastdump.verify import verify
from test_formats import DUMP, EPOCH, PAGE_SIZE, regions_of, run_well

SEED = int(os.environ.get("FASTDUMP_TEST_SEED", "20241128"))
# What a byte of memory is.
NONE, THERE, UNKNOWN = 0, 1, 2


class Area(NamedTuple):
    """A range of memory: its bytes, and for each whether it is NONE, THERE or UNKNOWN."""

    start: int
    data: bytes
    mask: bytes

    @property
    def end(self) -> int:
        return self.start + len(self.data)


class Image:
    """Memory as areas in address order; what lies between is NONE."""

    def __init__(self, areas: Iterable[Area]) -> None:
        self.areas = list(areas)

    def of(self, start: int, end: int) -> Area:
        data, mask = bytearray(end - start), bytearray(end - start)
        for area in self.areas:
            low, high = max(start, area.start), min(end, area.end)
            if low < high:
                inside = slice(low - area.start, high - area.start)
                data[low - start : high - start] = area.data[inside]
                mask[low - start : high - start] = area.mask[inside]
        return Area(start, bytes(data), bytes(mask))


def truth_of(target: targets.Target) -> Image:
    """What dd would give. It touches what it reads: come last."""
    unknown = [
        (start, end)
        for region in target.truth["regions"]
        for start, end, kind, _ in region["content"]
        if kind == "uffd-missing"
    ]
    fd = os.open(f"/proc/{target.pid}/mem", os.O_RDONLY)
    areas = []
    for region in regions_of(target.pid):
        data, mask = bytearray(region.length), bytearray(region.length)
        for at in range(region.start, region.end, PAGE_SIZE):
            inside = slice(at - region.start, at - region.start + PAGE_SIZE)
            state = NONE
            if at >= 1 << 63 or any(start <= at < end for start, end in unknown):
                state = UNKNOWN  # [vsyscall] is beyond what pread(2) can be asked for
            else:
                with contextlib.suppress(OSError):
                    data[inside] = os.pread(fd, PAGE_SIZE, at)
                    state = THERE
            mask[inside] = bytes([state]) * PAGE_SIZE
        areas.append(Area(region.start, bytes(data), bytes(mask)))
    os.close(fd)
    return Image(areas)


def walked(source: Source, ranges: Sequence[tuple[int, int]]) -> list[Area]:
    """A walk of *ranges*, which must give each byte of them once, and in order."""
    parts = source.walk([Range(*found) for found in ranges])
    found = []
    for start, end in ranges:
        at, data, mask = start, [], []
        while at < end:
            part = next(parts)
            if isinstance(part, Chunk):
                assert part.address == at
                stop = part.end
                data.append(bytes(part.data))
            else:
                assert part.start == at
                stop = part.end
                data.append(bytes(part.end - part.start))
            if isinstance(part, Gap):
                assert part.reason
            assert at < stop <= end
            mask.append(bytes([NONE if isinstance(part, Gap) else THERE]) * (stop - at))
            at = stop
        found.append(Area(start, b"".join(data), b"".join(mask)))
    assert next(parts, None) is None
    return found


def assert_true(found: Area, truth: Area, *, complete: bool) -> None:
    """Bytes that are there are right; and if *complete*, all that there are."""
    for at in range(0, len(found.data), PAGE_SIZE):
        page = slice(at, at + PAGE_SIZE)
        if found.mask[page] == truth.mask[page] and found.data[page] == truth.data[page]:
            continue
        for i in range(at, min(at + PAGE_SIZE, len(found.data))):
            where = hex(found.start + i)
            if truth.mask[i] == UNKNOWN:
                continue
            if found.mask[i]:
                assert truth.mask[i], f"{where}: a gap has bytes"
                assert found.data[i] == truth.data[i], f"{where}: another byte"
            elif complete:
                assert not truth.mask[i], f"{where}: a gap"


# ---- The sources.


class World:
    """A stopped process, sources of its memory, and the truth of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "files").mkdir()
        # On one CPU: its number lies in memory (rseq(2)), and who kills the target lets it run.
        cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cpus)})
        try:
            self.target = targets.start("awkward", folder / "files", cwd=folder)
        finally:
            os.sched_setaffinity(0, cpus)
        self.target.stop()
        self.pid = self.target.pid
        self.regions = regions_of(self.pid)
        self.ranges = [(r.start, r.end) for r in self.regions]
        self.names: dict[str, str] = {}
        self.truth = Image([])

    def dump(self, format: str, *options: str) -> Path:
        return run_well(self.pid, format, self.folder, *options).path


def piped(world: World) -> Path:
    """``dump -o -``, as ``lz4``."""
    path = world.folder / "piped.core.lz4"
    with open(path, "wb") as file:
        command = [*DUMP, str(world.pid), "--format", "lz4", "--all", "--pause", "none", "-o", "-"]
        subprocess.run(command, stdout=file, check=True, timeout=120, env={**os.environ, **EPOCH})
    return path


def by_dd(world: World) -> Path:
    """What the script of many a blog leaves: a file for each rw-p line, by dd."""
    folder = world.folder / "blog"
    folder.mkdir()
    for region in world.regions:
        if region.perms == "rw-p":
            subprocess.run(
                [
                    "dd", f"if=/proc/{world.pid}/mem", "bs=4096", "status=none",
                    f"of={folder}/{world.pid}_mem_{region.start:08x}.bin",
                    f"skip={region.start // 4096}", f"count={region.length // 4096}",
                ],
                capture_output=True,
                timeout=60,
            )  # fmt: skip
    return folder


def run_gdb(pid: int, *arguments: str) -> str:
    """What gdb prints. The memfd library of the awkward target calls itself /proc/self/fd/3, which
    gdb takes for a pipe of its own, and waits: it gets the library there.
    """
    library = os.devnull
    with contextlib.suppress(FileNotFoundError):
        for region in regions_of(pid):
            if region.path.startswith("/memfd:library"):
                library = f"/proc/{pid}/map_files/{region.start:x}-{region.end:x}"
                break
    script = 'exec 3<"$1"; shift; exec gdb -nx -batch "$@"'
    result = subprocess.run(
        ["sh", "-c", script, "sh", library, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        env={**os.environ, "LC_ALL": "C", "DEBUGINFOD_URLS": ""},
    )
    assert result.returncode == 0, os.fsdecode(result.stderr)
    return os.fsdecode(result.stdout)


def by_gcore(world: World) -> Path:
    path = world.folder / "gcore"
    run_gdb(world.pid, "-p", str(world.pid), "-ex", f"generate-core-file {path}")
    return path


def by_kernel(world: World) -> Path:
    """The core that the kernel writes of a crash; it ends the target."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith("|") or "/" in pattern or "%" in pattern:
        pytest.skip(f"the kernel's cores go elsewhere: {pattern}")
    try:
        limit = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(world.pid, resource.RLIMIT_CORE, limit)
    except (PermissionError, ValueError):
        pytest.skip("no permission to raise RLIMIT_CORE")
    os.kill(world.pid, signal.SIGABRT)
    os.kill(world.pid, signal.SIGCONT)
    assert world.target.wait() == -signal.SIGABRT
    (path,) = (found for found in world.folder.iterdir() if found.name.startswith(pattern))
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("sources"))
    try:
        world.names["process"] = str(world.pid)
        for format in ("core", "lz4", "raw", "raw-lz4"):
            world.names[format] = str(world.dump(format, "--all"))
            world.names[f"{format} by default"] = str(world.dump(format))
        world.names["piped"] = str(piped(world))
        world.names["dd"] = str(by_dd(world))
        if shutil.which("gdb"):
            world.names["gcore"] = str(by_gcore(world))
        world.truth = truth_of(world.target)
        yield world
    finally:
        world.target.kill()


@pytest.fixture(scope="module")
def crash(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("crash"))
    try:
        world.truth = truth_of(world.target)
        world.names["kernel"] = str(by_kernel(world))
        yield world
    finally:
        world.target.kill()


WHOLE = ("process", "core", "lz4", "raw", "raw-lz4", "piped")
DEFAULT = tuple(f"{name} by default" for name in ("core", "lz4", "raw", "raw-lz4"))
FOREIGN = ("gcore", "kernel", "dd")


@dataclass
class Known:
    """A source, and what is known of it."""

    kind: str
    source: Source
    world: World

    def ranges(self) -> list[tuple[int, int]]:
        return [(r.start, r.end) for r in self.source.regions]


@pytest.fixture(params=[*WHOLE, *DEFAULT, *FOREIGN])
def known(request: pytest.FixtureRequest) -> Iterator[Known]:
    kind = request.param
    world = request.getfixturevalue("crash" if kind == "kernel" else "world")
    if kind == "gcore":
        program("gdb")
    with open_source(world.names[kind]) as source:
        yield Known(kind, source, world)


# ---- What each of them has.


def test_regions_are_in_order_and_each_has_a_label(known: Known) -> None:
    at = 0
    for region in known.source.regions:
        assert at <= region.start < region.end
        at = region.end
    assert len(known.source.labels) == len(known.source.regions) > 10


def test_dumps_of_ours_know_what_maps_says(known: Known) -> None:
    if known.kind in FOREIGN:
        pytest.skip("not ours")
    with open_source(str(known.world.pid)) as live:
        assert list(known.source.regions) == list(live.regions)
        kinds = [(label.kind, label.module) for label in live.labels]
        assert [(label.kind, label.module) for label in known.source.labels] == kinds


def test_a_walk_gives_every_byte_that_there_is(known: Known) -> None:
    for area in walked(known.source, known.ranges()):
        truth = known.world.truth.of(area.start, area.end)
        # Near a page that cannot be read, gdb and the kernel write zeros, and dd stops.
        if known.kind not in FOREIGN or set(truth.mask) == {THERE}:
            assert_true(area, truth, complete=known.kind in WHOLE)


def test_foreign_dumps_hold_all_private_writable_memory(known: Known) -> None:
    if known.kind not in FOREIGN:
        pytest.skip("ours")
    compared = 0
    for region in known.world.regions:
        truth = known.world.truth.of(region.start, region.end)
        if region.perms == "rw-p" and set(truth.mask) == {THERE}:
            (found,) = walked(known.source, [(region.start, region.end)])
            if known.kind == "kernel" and not any(truth.data) and not any(found.mask):
                continue  # never touched: the kernel writes nothing
            assert_true(found, truth, complete=True)
            compared += 1
    assert compared > 20


def test_gaps_say_why(known: Known) -> None:
    allowed = {"guard page", "past end of file"}
    for region, label in zip(known.source.regions, known.source.labels, strict=True):
        for part in known.source.walk([Range(region.start, region.end)]):
            if isinstance(part, Gap) and known.kind in (*WHOLE, *DEFAULT):
                left_out = known.kind in DEFAULT or label.kind is Kind.KERNEL
                assert part.reason in allowed or left_out, hex(part.start)
                if left_out and known.kind != "process":
                    assert part.reason in (*allowed, NOT_IN_DUMP)


def test_known_zeros_are_zeros_and_guard_pages_gaps(known: Known) -> None:
    if known.kind not in (*WHOLE, *DEFAULT):
        pytest.skip("not ours")
    kinds = set()
    for region in known.world.target.truth["regions"]:
        if region["perms"] != "rw-p" or region["label"] != "anonymous":
            continue
        for start, end, kind, _ in region["content"]:
            (found,) = walked(known.source, [(start, end)])
            if kind in ("absent", "zero", "zeropage"):
                assert found.mask == bytes([THERE]) * (end - start), (region["name"], kind)
                assert not any(found.data)
            elif kind in ("guard", "nodata"):
                assert not any(found.mask), (region["name"], kind)
            kinds.add(kind)
    assert {"absent", "zero", "zeropage", "guard"} <= kinds


def _random_ranges(source: Source, generator: random.Random) -> list[tuple[int, int]]:
    """Ranges that begin and end at, near or far from the borders of regions, in no order."""
    borders = [edge for region in source.regions for edge in (region.start, region.end)]
    found = []
    for _ in range(generator.randrange(1, 6)):
        start = generator.choice(borders) + generator.choice((-1, 0, 0, 1, -4096, 4096, 70_001))
        start = min(max(start, 0), (1 << 64) - 1)
        length = generator.choice((0, 1, 2, 7, 4095, 4096, 4097, 70_000, 300_000))
        found.append((start, min(start + length, 1 << 64)))
    return found


@pytest.mark.parametrize("rounds", [60, pytest.param(150, marks=pytest.mark.long)])
def test_any_ranges_give_what_the_whole_walk_gives(known: Known, rounds: int) -> None:
    print("FASTDUMP_TEST_SEED:", SEED)
    generator = random.Random(SEED)
    whole = Image(walked(known.source, known.ranges()))
    for _ in range(rounds):
        ranges = _random_ranges(known.source, generator)
        for found in walked(known.source, ranges):
            assert found == whole.of(found.start, found.end), [hex(at) for at in ranges[0]]


def test_what_no_region_has_is_not_mapped(known: Known) -> None:
    regions = known.source.regions
    first, last = regions[0].start, regions[-1].end
    for start, end in ((0, first), (0, 1), (first - 1, first), (last, last), (last, 1 << 64)):
        parts = list(known.source.walk([Range(start, end)]))
        expected = [Gap(start, end, NOT_MAPPED, errno.EFAULT)] if start < end else []
        assert parts == expected
    assert list(known.source.walk([])) == []


@pytest.mark.parametrize("rounds", [80, pytest.param(200, marks=pytest.mark.long)])
def test_read_into_reads_up_to_a_gap_and_fails_at_it(known: Known, rounds: int) -> None:
    whole = Image(walked(known.source, known.ranges()))
    print("FASTDUMP_TEST_SEED:", SEED)
    generator = random.Random(SEED)
    for _ in range(rounds):
        for start, end in _random_ranges(known.source, generator):
            if start == end:
                continue
            area = whole.of(start, end)
            there = area.mask.find(NONE) if NONE in area.mask else end - start
            buffer = bytearray(b"\xa5" * (end - start))
            if not there:
                with pytest.raises(FaultError) as failed:
                    known.source.read_into(start, buffer)
                assert failed.value.address == start
                assert failed.value.errno
                assert not set(buffer) - {0xA5}
                continue
            assert known.source.read_into(start, buffer) == there
            assert buffer[:there] == area.data[:there]
            assert not set(buffer[there:]) - {0xA5}
            if there == end - start:
                assert known.source.read(start, end - start) == area.data
            else:
                with pytest.raises(FaultError) as failed:
                    known.source.read(start, end - start)
                assert failed.value.address == start + there


# ---- A region of which rules chose a part.


@pytest.fixture(scope="module")
def holed(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Area]:
    """Dumps without some pages in the middle of a region, and what there is of it."""
    folder = tmp_path_factory.mktemp("holed")
    region = world.target.region("mixed")
    hole = slice(12 * PAGE_SIZE, 40 * PAGE_SIZE)
    start, end = region["start"] + hole.start, region["start"] + hole.stop
    for format in ("core", "lz4", "raw", "raw-lz4"):
        found = run_well(world.pid, format, folder, "--exclude", f"{start:x}-{end:x}")
        found.path.rename(folder / format)
    truth = world.truth.of(region["start"], region["end"])
    data, mask = bytearray(truth.data), bytearray(truth.mask)
    assert any(data[hole])
    data[hole], mask[hole] = bytes(end - start), bytes([NONE]) * (end - start)
    return folder, Area(truth.start, bytes(data), bytes(mask))


@pytest.mark.parametrize("format", ["core", "lz4", "raw", "raw-lz4"])
def test_what_a_rule_leaves_out_of_a_region_is_not_zero(
    holed: tuple[Path, Area], tmp_path: Path, format: str
) -> None:
    folder, area = holed
    with open_source(str(folder / format)) as source:
        assert walked(source, [(area.start, area.end)]) == [area]
        with pytest.raises(FaultError, match=NOT_IN_DUMP):
            source.read(area.start + 12 * PAGE_SIZE, 1)
        assert isinstance(source, Dumped)
        for other in ("core", "raw"):
            extract(source, other, str(tmp_path / other))
            with open_source(str(tmp_path / other)) as made:
                assert walked(made, [(area.start, area.end)]) == [area]


@pytest.mark.parametrize("left", [None, 0, 8 * PAGE_SIZE, 20 * PAGE_SIZE, 50 * PAGE_SIZE])
def test_what_was_left_out_of_a_file_is_not_lost_with_it(
    holed: tuple[Path, Area], tmp_path: Path, left: int | None
) -> None:
    whole, area = holed
    folder = shutil.copytree(whole / "raw", tmp_path / "raw")
    (file,) = folder.glob(f"*_mem_{area.start:08x}.bin")
    if left is None:
        file.unlink()
    else:
        os.truncate(file, left)
    expected = [
        (max(start, area.start + (left or 0)), end)
        for start, end in (
            (area.start, area.start + 12 * PAGE_SIZE),
            (area.start + 40 * PAGE_SIZE, area.end),
        )
        if end > area.start + (left or 0)
    ]
    with open_source(str(folder)) as source:
        assert isinstance(source, Dumped)
        lost, _ = verify(source)
        assert [gap[:2] for gap in lost] == expected


# ---- Strings.


def strings(name: str, *options: str) -> list[bytes]:
    command = [sys.executable, "-m", "fastdump", "strings", "-t", "x", *options, name]
    result = subprocess.run(command, capture_output=True, timeout=120)
    assert result.returncode in (0, 3), os.fsdecode(result.stderr)
    return result.stdout.splitlines()


def strings_in(areas: Iterable[Area]) -> list[bytes]:
    """What strings(1) is to find, in memory of which gaps end strings."""
    return [
        b"%7x %s" % (area.start + run.start() + found.start(), found[0])
        for area in areas
        for run in re.finditer(b"[^\0]+", area.mask)
        for found in re.finditer(rb"[\t\x20-\x7e]{4,}", area.data[run.start() : run.end()])
    ]


def test_strings_are_those_of_the_bytes(known: Known) -> None:
    found = strings(known.world.names[known.kind], "--all")
    assert found == strings_in(walked(known.source, known.ranges()))
    assert len(found) > 1000


# ---- gdb's view of cores.

CORES = ("core", "core by default", "gcore", "kernel")


@pytest.fixture
def core(known: Known) -> ElfCore:
    if known.kind not in CORES:
        pytest.skip("no core")
    program("gdb")
    assert isinstance(known.source, ElfCore)
    return known.source


def test_gdb_sees_the_same_segments(known: Known, core: ElfCore) -> None:
    output = run_gdb(known.world.pid, "-c", core.name, "-ex", "maintenance info sections")
    line = re.compile(r"0x(\w+)->0x(\w+) at 0x(\w+): load\d+a? .*HAS_CONTENTS")
    seen = [tuple(int(word, 16) for word in found.groups()) for found in line.finditer(output)]
    with_bytes = [s for s in core.elf.segments if s.p_filesz]
    assert seen == [(s.p_vaddr, s.p_vaddr + s.p_filesz, s.p_offset) for s in with_bytes]
    assert len(seen) > 20


def test_gdb_sees_the_same_bytes(known: Known, core: ElfCore, tmp_path: Path) -> None:
    print("FASTDUMP_TEST_SEED:", SEED)
    generator = random.Random(SEED)
    ranges = []
    for start, end in known.ranges():
        area = walked(core, [(start, end)])[0]
        for run in re.finditer(b"[^\0]+", area.mask):
            at = start + generator.randrange(run.start(), run.end())
            ranges.append((at, min(at + generator.randrange(1, 20_000), start + run.end())))
    commands = [
        word
        for number, (at, end) in enumerate(ranges)
        for word in ("-ex", f"dump binary memory {tmp_path}/{number} {at:#x} {end:#x}")
    ]
    run_gdb(known.world.pid, "-c", core.name, *commands)
    for number, (at, end) in enumerate(ranges):
        assert (tmp_path / str(number)).read_bytes() == core.read(at, end - at), hex(at)
    assert len(ranges) > 20


# ---- Huge and odd ones.


@pytest.mark.parametrize("format", ["process", "core", "lz4", "raw", "raw-lz4"])
def test_a_thousand_pages_in_two_tebibytes(format: str, tmp_path: Path) -> None:
    with targets.start("sparse", "private") as target:
        name = str(target.pid)
        if format != "process":
            name = str(run_well(target.pid, format, tmp_path).path)
        start, end, seed = (target.truth[key] for key in ("start", "end", "seed"))
        touched = set(target.truth["touched"])
        at = start
        with open_source(name) as source:
            for part in source.walk([Range(start, end)]):
                assert not isinstance(part, Gap)
                if isinstance(part, Zeros):
                    assert part.start == at
                    assert not touched & set(range(part.start, part.end, 1 << 31))
                else:
                    assert part.address == at
                    for page in range(0, len(part.data), PAGE_SIZE):
                        content = bytes(part.data[page : page + PAGE_SIZE])
                        here = at + page in touched
                        touched.discard(at + page)
                        expected = targets.pattern(at + page, PAGE_SIZE, seed)
                        assert content == (expected if here else bytes(PAGE_SIZE))
                at = part.end
            assert at == end
            assert not touched
            middle = start + (1 << 40) + 12_345
            assert source.read(middle, 100) == bytes(100)


def elf_core(
    segments: Sequence[tuple[int, bytes, int]], *, wide: bool = True, order: str = "<"
) -> bytes:
    """A core of (address, bytes, length in memory), without a note; any alignment."""
    header = struct.Struct(order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"))
    phdr = struct.Struct(order + ("IIQQQQQQ" if wide else "IIIIIIII"))
    first = 16 + header.size
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    machine = 62 if wide else 3
    fields = (4, machine, 1, 0, first, 0, 0, first, phdr.size, len(segments), 0, 0, 0)
    out = [ident + header.pack(*fields)]
    offset = first + phdr.size * len(segments)
    for address, content, length in segments:
        if wide:
            out.append(phdr.pack(1, 6, offset, address, 0, len(content), length, 1))
        else:
            out.append(phdr.pack(1, offset, address, 0, len(content), length, 6, 1))
        offset += len(content)
    return b"".join([*out, *(content for _, content, _ in segments)])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("wide", [True, False])
def test_segments_of_any_alignment_and_length(wide: bool, order: str, tmp_path: Path) -> None:
    print("FASTDUMP_TEST_SEED:", SEED)
    generator = random.Random(SEED)
    at, segments, areas = 0x1001, [], []
    lengths = [generator.choice((1, 3, 100, 4000, 5000)) for _ in range(300)]
    lengths[150:150] = [9 << 20, 1, (4 << 20) - 1]
    for length in lengths:
        unit = bytes(generator.choices(b"abcdefg\0\1\2", k=min(length, 5003)))
        content = (unit * (length // len(unit) + 1))[:length]
        more = generator.choice((0, 0, 1, 5000))
        segments.append((at, content, length + more))
        areas.append(Area(at, content + bytes(more), b"\1" * length + b"\0" * more))
        at += length + more + generator.choice((0, 1, 77))
    path = tmp_path / "odd.core"
    path.write_bytes(elf_core(segments, wide=wide, order=order))
    packed = tmp_path / "odd.core.lz4"
    core = path.read_bytes()
    packed.write_bytes(
        b"".join(
            lz4.frame.compress(core[i : i + 99_991], content_checksum=True)
            for i in range(0, len(core), 99_991)
        )
    )
    expected = strings_in(areas)
    assert len(expected) > 300
    for name in (path, packed):
        with open_source(str(name)) as source:
            assert walked(source, [(a.start, a.end) for a in areas]) == areas
        for threads in ("1", "3"):
            assert strings(str(name), "--threads", threads) == expected


def test_a_core_packed_by_lz4_is_one_or_says_what_to_do(tmp_path: Path) -> None:
    """Blocks of 4 MiB, which can be unpacked only as a whole."""
    content = bytes(random.Random(1).choices(b"0123456789abcdef", k=6 << 20))
    path = tmp_path / "app.core"
    path.write_bytes(elf_core([(0x10000, content, len(content))]))
    for options in ((), ("--content-size",), ("-9", "-BD"), ("-B4",)):
        subprocess.run(["lz4", "-qf", *options, path, f"{path}.lz4"], check=True)
        with pytest.raises(CorruptDump, match="cannot be read at random"):
            open_source(f"{path}.lz4")


def test_a_core_with_many_segments_is_known_when_packed(tmp_path: Path) -> None:
    with targets.start("many_maps", 30_000) as target:
        path = run_well(target.pid, "lz4", tmp_path).path
        start, seed = target.truth["start"], target.truth["seed"]
        with open_source(str(path)) as source:
            assert source.format == "lz4"
            assert source.read(start, 64) == targets.pattern(start, 64, seed)


# ---- The parts of it, against plain loops.

SMALL = st.integers(0, 60)


@st.composite
def disjoint(draw: st.DrawFn, most: int = 6) -> list[tuple[int, int]]:
    """Ranges in order, without overlap; some touch."""
    edges = sorted(draw(st.lists(SMALL, max_size=2 * most, unique=True)))
    found = list(zip(edges[::2], edges[1::2], strict=False))
    if draw(st.booleans()):
        found += [(end, start) for (_, end), (start, _) in itertools.pairwise(found)]
    return sorted(found)


def gaps_of(ranges: Sequence[tuple[int, int]], reason: str) -> list[Gap]:
    return [Gap(start, end, reason) for start, end in ranges]


def by_byte(ranges: Iterable[tuple[Any, ...]]) -> dict[int, Any]:
    """What each address has: the last item of its range; no two may have it."""
    found: dict[int, Any] = {}
    for start, end, *rest in ranges:
        for at in range(start, end):
            assert at not in found
            found[at] = rest
    return found


@given(disjoint(), disjoint())
def test_union_prefers_the_first(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    first, second = gaps_of(one, "first"), gaps_of(other, "second")
    found = union(first, second)
    assert by_byte(found) == by_byte(second) | by_byte(first)
    assert found == sorted(found)
    assert all(gap.start < gap.end for gap in found)


@given(disjoint(), disjoint(), st.integers(1, 4))
def test_too_many_gaps_are_joined_in_their_regions(
    holes: list[tuple[int, int]], lines: list[tuple[int, int]], most: int
) -> None:
    gaps = gaps_of(holes, "gap")
    regions = [Region(start, end, "rw-p", 0, "00:00", 0, "") for start, end in lines]
    with mock.patch.multiple("fastdump.gaps", MOST_GAPS=most, PAGE_SIZE=1):
        found = bounded(gaps, regions)
    assert len(found) <= max(most, len(regions) + 1)
    assert by_byte(found).keys() >= by_byte(gaps).keys()
    assert found == gaps or len(gaps) > most
    for gap in found:
        inside = [g for g in gaps if gap.start <= g.start < gap.end]
        assert (inside[0].start, inside[-1].end) == (gap.start, gap.end)
        assert gap.reason == ("gap" if len(inside) == 1 else TOO_MANY)
        assert not any(gap.start < r.start <= inside[-1].start for r in regions)


@given(disjoint(), disjoint())
def test_extents_are_slices_but_for_gaps(
    ranges: list[tuple[int, int]], holes: list[tuple[int, int]]
) -> None:
    slices = [Slice(start, end - start, start, PLAIN, n, 1000) for n, (start, end) in
              enumerate(ranges)]  # fmt: skip
    gaps = gaps_of(holes, "gap")
    found = list(_extents(slices, gaps))
    at = 0
    got: dict[int, Any] = {}
    for extent in found:
        assert at <= extent.start < extent.end
        at = extent.end
        if extent.slice:
            assert extent.gap is None
            s = extent.slice
            assert (s.address, s.length) == (extent.start, extent.end - extent.start)
            got |= {s.address + i: (s.file, s.file_offset + i) for i in range(s.length)}
        else:
            assert extent.gap in gaps
            assert extent.gap[:2] == extent[:2]
            got |= dict.fromkeys(range(extent.start, extent.end), "gap")
    expected: dict[int, Any] = {
        at: (n, 1000 + at - start) for n, (start, end) in enumerate(ranges)
        for at in range(start, end)
    }  # fmt: skip
    for start, end in holes:
        expected |= dict.fromkeys(range(start, end), "gap")
    assert got == expected


@given(disjoint(), disjoint(), disjoint(), disjoint())
def test_what_a_dump_neither_has_nor_covers_is_a_gap(
    lines: list[tuple[int, int]],
    covered: list[tuple[int, int]],
    ranges: list[tuple[int, int]],
    holes: list[tuple[int, int]],
) -> None:
    regions = [Region(start, end, "rw-p", 0, "00:00", 0, "") for start, end in lines]
    whole = [
        [Range(max(a, start), min(b, end)) for a, b in covered if max(a, start) < min(b, end)]
        for start, end in lines
    ]
    slices = [Slice(start, end - start, start) for start, end in ranges]
    gaps = gaps_of(holes, "gap")
    found = uncovered(regions, whole, slices, gaps)
    assert found == sorted(found)
    taken = {at for start, end in [*covered, *ranges, *holes] for at in range(start, end)}
    new = {at for start, end in lines for at in range(start, end)} - taken
    assert by_byte(found) == by_byte(gaps) | {at: [NOT_IN_DUMP, 0] for at in new}


class Parts(Storage):
    """Bytes in parts of given sizes, some of which are lost."""

    def __init__(self, sizes: Sequence[tuple[int, bool]]) -> None:
        self.sizes = sizes
        self.size = sum(size for size, _ in sizes)
        self.content = random.Random(self.size).randbytes(self.size)

    def parts(self, offset: int, length: int) -> Iterator[bytes | memoryview | Lost]:
        assert (offset, length) == (0, self.size)
        for size, lost in self.sizes:
            part = self.content[offset : offset + size]
            yield Lost(size, "lost") if lost else memoryview(part) if size % 2 else part
            offset += size

    def close(self) -> None:
        pass


@given(
    st.lists(
        st.tuples(st.sampled_from([1, 2, 63, 64, 65, 127, 128, 200, 4096]), st.booleans()),
        max_size=12,
    ),
    st.sampled_from([0, AGAIN]),
)
def test_native_code_is_handed_whole_blocks(sizes: list[tuple[int, bool]], again: int) -> None:
    storage = Parts(sizes)
    flags = again | ZEROS_BEFORE | ZEROS_BEHIND
    whole = Slice(0x1000, storage.size, 0x9000, flags, 0, 0, 7)
    found: dict[int, Any] = {}
    runs: list[list[Slice]] = [[]]
    for batch in storage.batches([whole] if storage.size else []):
        if isinstance(batch, Gap):
            assert batch.reason == "lost"
            found |= dict.fromkeys(range(batch.start, batch.end), "lost")
            runs.append([])
            continue
        (s,) = batch
        assert s.offset == 0x9000 + s.address - 0x1000
        assert s.region == 7
        assert s.flags & (PLAIN | OURS | AGAIN) == PLAIN | OURS | again
        assert bool(s.flags & ZEROS_BEFORE) == (s.address == 0x1000)
        assert bool(s.flags & ZEROS_BEHIND) == (s.address + s.length == 0x1000 + whole.length)
        content = ctypes.string_at(s.file_offset, s.length)
        found |= {s.address + i: byte for i, byte in enumerate(content)}
        runs[-1].append(s)
    at = 0x1000
    for size, lost in sizes:
        for i in range(at, at + size):
            if lost:
                assert found.pop(i, "lost") == "lost"
            else:
                assert found.pop(i) == storage.content[i - 0x1000]
        at += size
    assert not found
    for run in runs:
        for one, other in itertools.pairwise(run):
            if one.address + one.length == other.address:
                assert one.length % 64 == 0
