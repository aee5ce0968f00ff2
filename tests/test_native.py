"""The C engine: residency, reads and copies against the truth of real targets."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import targets
from fastdump import _native
from fastdump._native import MEM_ONLY, PAGE_SIZE, SWAPPED, Copier, MemoryGone, Slice
from fastdump.labels import Kind, label_regions
from fastdump.process import LiveProcess
from fastdump.region import Range
from fastdump.snapshot import Snapshot

LIBC = ctypes.CDLL(None, use_errno=True)
MADV_GUARD_INSTALL = 102


@pytest.fixture(params=["PAGEMAP_SCAN", "pagemap"])
def process(request: pytest.FixtureRequest, awkward: targets.Target) -> Iterator[LiveProcess]:
    with LiveProcess(awkward.pid) as found:
        if request.param == "pagemap":
            found.memory.use_pagemap()
        yield found


def exact_slices(process: LiveProcess, awkward: targets.Target) -> Iterator[tuple[dict, Slice]]:
    """Each region that the target knows exactly, as one slice with its file."""
    regions = process.regions()
    labels = dict(zip(regions, label_regions(process, regions), strict=True))
    by_start = {region.start: region for region in regions}
    for truth in awkward.truth["regions"]:
        if not truth["exact"]:
            continue
        region = by_start[truth["start"]]
        flags = SWAPPED if region.readable else SWAPPED | MEM_ONLY
        fd = -1
        if region.has_file and labels[region].kind is not Kind.ANONYMOUS:
            fd = process.open_mapped(region)
        try:
            yield truth, Slice(region.start, region.length, 0, flags, fd, region.offset)
        finally:
            if fd >= 0:
                os.close(fd)


def expected(truth: dict) -> bytes:
    """The region's bytes; zeros where there are none."""
    pieces = [targets.expected(*piece) or bytes(piece[1] - piece[0]) for piece in truth["content"]]
    return b"".join(pieces)


def known(truth: dict) -> bool:
    return all(kind != "other" for _, _, kind, _ in truth["content"])


def test_every_region_is_filled_with_its_true_bytes(
    process: LiveProcess, awkward: targets.Target
) -> None:
    seen = set()
    for truth, whole in exact_slices(process, awkward):
        copier = Copier(process.memory, max(whole.length, PAGE_SIZE))
        content, tally = copier.fill([whole])
        assert tally.accounted == whole.length, truth["name"]
        if known(truth):
            assert bytes(content) == expected(truth), truth["name"]
            seen.add(truth["name"])
    assert {"prot none", "write only", "past eof", "data.so", "shared anonymous"} <= seen


@pytest.mark.parametrize("hole", [PAGE_SIZE, 64 << 10])
def test_every_region_is_written_with_its_true_bytes(
    process: LiveProcess, awkward: targets.Target, hole: int, tmp_path: Path
) -> None:
    for truth, whole in exact_slices(process, awkward):
        path = tmp_path / "region"
        with path.open("wb+") as file:
            os.ftruncate(file.fileno(), whole.length)
            copier = Copier(process.memory, 64 << 10)
            tally = copier.write([whole], file.fileno(), hole)
            assert tally.accounted == whole.length
            assert tally.written <= tally.read + tally.file + tally.zero + tally.absent
            if known(truth):
                assert path.read_bytes() == expected(truth), truth["name"]


def test_gaps_are_those_of_the_truth(process: LiveProcess, awkward: targets.Target) -> None:
    reasons = {"nodata": "past end of file", "guard": "guard page"}
    for truth, whole in exact_slices(process, awkward):
        copier = Copier(process.memory)
        copier.discard([whole])
        wanted = [
            (start, end, reasons[kind])
            for start, end, kind, _ in truth["content"]
            if kind in reasons
        ]
        found = [gap[:3] for gap in copier.gaps]
        if truth["name"] != "userfaultfd":
            assert found == wanted, truth["name"]


def test_residency_counts_what_the_truth_says(
    process: LiveProcess, awkward: targets.Target
) -> None:
    truth = awkward.region("mixed")
    (found,) = process.memory.residency([Range(truth["start"], truth["end"])])
    sums = {"pattern": 0, "zero": 0, "zeropage": 0, "absent": 0}
    for start, end, kind, _ in truth["content"]:
        sums[kind] += end - start
    # pagemap cannot tell the zero page: it counts as present.
    assert found.present + found.zero == sums["pattern"] + sums["zero"] + sums["zeropage"]
    assert found.zero in (0, sums["zeropage"])
    assert found.swapped == 0


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    pages=st.lists(st.integers(0, 63), min_size=1, max_size=12),
    size=st.integers(1, 20),
    hole=st.integers(1, 20),
)
def test_any_slices_any_buffer_any_hole(
    pages: list[int], size: int, hole: int, awkward: targets.Target,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    truth = awkward.region("mixed")
    content = expected(truth)
    slices, output = [], b""
    for page in pages:
        at = page * PAGE_SIZE % len(content)
        length = min(3 * PAGE_SIZE, len(content) - at)
        slices.append(Slice(truth["start"] + at, length, len(output)))
        output += content[at : at + length]
    path = tmp_path_factory.getbasetemp() / "any"
    with LiveProcess(awkward.pid) as process, path.open("wb+") as file:
        os.ftruncate(file.fileno(), 0)
        os.ftruncate(file.fileno(), len(output))
        writer = Copier(process.memory, size * PAGE_SIZE)
        writer.write(slices, file.fileno(), hole * PAGE_SIZE)
        assert path.read_bytes() == output
        keeper = Copier(process.memory, len(output))
        assert bytes(keeper.fill(slices)[0]) == output
        assert keeper.tally.accounted == writer.tally.accounted == len(output)


@settings(deadline=None, max_examples=40)
@given(min_gap=st.integers(0, 70), limit=st.integers(1, 40))
def test_runs_hold_all_data_and_keep_their_distance(
    min_gap: int, limit: int, awkward: targets.Target
) -> None:
    truth = awkward.region("mixed")
    data = {
        page
        for start, end, kind, _ in truth["content"]
        if kind in ("pattern", "zero")
        for page in range(start, end, PAGE_SIZE)
    }
    with LiveProcess(awkward.pid) as process:
        whole = Slice(truth["start"], truth["end"] - truth["start"], 0)
        runs = process.memory.runs([whole], min_gap * PAGE_SIZE, limit)
    pages = {page for run in runs for page in range(run.start, run.end, PAGE_SIZE)}
    assert data <= pages
    assert {run.start for run in runs} | {run.end - PAGE_SIZE for run in runs} <= data
    assert len(runs) <= limit + 1
    for left, right in itertools.pairwise(runs):
        assert right.start - left.end >= max(min_gap, 1) * PAGE_SIZE


def test_runs_are_joined_over_gaps_only_for_want_of_room(awkward: targets.Target) -> None:
    truths = [truth for truth in awkward.truth["regions"] if truth["name"] == "guard"]
    if not truths:
        pytest.skip("no guard pages before Linux 6.13")
    start, end = truths[0]["start"], truths[0]["end"]
    with LiveProcess(awkward.pid) as process:
        apart, joined = (
            process.memory.runs([Slice(start, end - start, 0)], 1 << 20, limit) for limit in (1, 0)
        )
    edges = [start + pages * PAGE_SIZE for pages in (0, 2, 4, 6)]
    assert apart == [tuple(edges[:2]), tuple(edges[2:])]
    assert joined == [(edges[0], edges[3])]


def own_mapping(pages: int) -> tuple[mmap.mmap, int]:
    memory = mmap.mmap(-1, pages * PAGE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return memory, ctypes.addressof(ctypes.c_char.from_buffer(memory))


@contextlib.contextmanager
def unmapped(address: int) -> Iterator[None]:
    """A page of our own is not there; afterwards it is empty: Python will unmap the whole of it."""
    at, size = ctypes.c_void_p(address), ctypes.c_size_t(PAGE_SIZE)
    LIBC.munmap(at, size)
    try:
        yield
    finally:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10  # MAP_FIXED
        LIBC.mmap.restype = ctypes.c_void_p
        LIBC.mmap(at, size, 3, flags, -1, ctypes.c_long(0))


def test_more_gaps_than_the_array_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, address = own_mapping(512)
    for page in range(512):
        memory[page * PAGE_SIZE] = 1
    for page in range(0, 512, 2):
        at = ctypes.c_void_p(address + page * PAGE_SIZE)
        if LIBC.madvise(at, ctypes.c_size_t(PAGE_SIZE), MADV_GUARD_INSTALL):
            pytest.skip("no guard pages before Linux 6.13")
    monkeypatch.setattr(_native, "_GAP_CAPACITY", 24)
    with LiveProcess(os.getpid()) as process:
        copier = Copier(process.memory, 16 * PAGE_SIZE)
        tally = copier.discard([Slice(address, 512 * PAGE_SIZE, 0)])
    assert [gap.start for gap in copier.gaps] == [
        address + page * PAGE_SIZE for page in range(0, 512, 2)
    ]
    assert (tally.gap, tally.read) == (256 * PAGE_SIZE, 256 * PAGE_SIZE)


@pytest.mark.parametrize("of_file", [False, True])
def test_one_bad_page_costs_one_page(of_file: bool) -> None:
    memory, address = own_mapping(64)
    memory[:] = random.Random(1).randbytes(len(memory))
    content = bytearray(memory[:])
    bad = 17
    content[bad * PAGE_SIZE : (bad + 1) * PAGE_SIZE] = bytes(PAGE_SIZE)
    with LiveProcess(os.getpid()) as process, open("/proc/self/mem", "rb") as file:
        copier = Copier(process.memory, 64 * PAGE_SIZE)
        # EVERY: as if the page had been there when the page tables were asked.
        whole = Slice(address, 64 * PAGE_SIZE, 0, _native.EVERY)
        if of_file:  # one with a bad sector: EIO
            whole = whole._replace(flags=_native.PLAIN, file=file.fileno(), file_offset=address)
        with unmapped(address + bad * PAGE_SIZE):
            view, tally = copier.fill([whole])
            assert bytes(view) == content
    (gap,) = copier.gaps
    assert (gap.start, gap.end, gap.reason) == (
        address + bad * PAGE_SIZE,
        address + (bad + 1) * PAGE_SIZE,
        "unreadable",
    )
    assert (tally.read + tally.file, tally.gap) == (63 * PAGE_SIZE, PAGE_SIZE)


@pytest.mark.parametrize("command", [b"x", b"e"], ids=["exit", "exec"])
def test_a_dead_address_space_is_never_read_as_absent(command: bytes) -> None:
    with targets.start("exiter", "1M") as target, LiveProcess(target.pid) as process:
        whole = Slice(target.truth["start"], 1 << 20, 0)
        copier = Copier(process.memory)
        target.send(command)
        if command == b"x":
            target.wait()
        else:
            target.read_truth()
        assert not process.memory.alive
        for call in (
            lambda: process.memory.residency([Range(whole.address, whole.address + 4096)]),
            lambda: process.memory.runs([whole], 0, 9),
            lambda: process.memory.read_into(whole.address, bytearray(9)),
            lambda: copier.fill([whole]),
            lambda: copier.discard([whole]),
            lambda: copier.count([whole]),
        ):
            with pytest.raises(MemoryGone):
                call()
        assert copier.tally.accounted == 0


def test_a_full_device_is_an_output_error(awkward: targets.Target) -> None:
    truth = awkward.region("mixed")
    with LiveProcess(awkward.pid) as process, Path("/dev/full").open("wb") as full:
        copier = Copier(process.memory)
        with pytest.raises(_native.OutputError) as error:
            copier.write([Slice(truth["start"], PAGE_SIZE, 0)], full.fileno(), PAGE_SIZE)
    assert error.value.errno == 28


def test_shared_memory_is_what_stat_calls_tmpfs(tmp_path: Path) -> None:
    for path in (tmp_path, "/dev/shm", "/proc"):
        kind = subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, check=True)
        fd = os.open(path, os.O_RDONLY)
        assert _native.is_shared_memory(fd) == (kind.stdout == b"tmpfs\n")
        os.close(fd)


@settings(deadline=None)
@given(st.integers(0, 400), st.lists(st.integers(0, 399), max_size=2))
def test_is_zero_equals_a_plain_loop_up_to_a_guard_page(length: int, set_at: list[int]) -> None:
    memory, address = own_mapping(2)
    LIBC.mprotect(ctypes.c_void_p(address + PAGE_SIZE), ctypes.c_size_t(PAGE_SIZE), 0)
    buffer = memoryview(memory)[PAGE_SIZE - length : PAGE_SIZE]
    for at in set_at:
        if at < length:
            buffer[at] = 1
    assert _native.is_zero(buffer) == (not any(buffer))


def test_a_hole_in_one_huge_buffer_is_out_of_bounds(awkward: targets.Target) -> None:
    with LiveProcess(awkward.pid) as process:
        copier = Copier(process.memory, PAGE_SIZE)
        start = awkward.region("mixed")["start"]
        with pytest.raises(OSError, match="Invalid argument"):
            copier.fill([Slice(start, 2 * PAGE_SIZE, 0)])
        with pytest.raises(OSError, match="Invalid argument"):
            copier._copy([Slice(start, PAGE_SIZE, 2**64 - PAGE_SIZE)], 0, -2, 0)


# --- what processes share by fork ----------------------------------------------------------

_SHARING = """
import mmap, os, sys
area = mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE)
area.write(os.urandom(len(area)))
child = os.fork()
if not child:
    os.read(0, 1)
    os._exit(0)
print(child, flush=True)
os.read(0, 1)
"""


def private_bytes(pid: int) -> int:
    """What a process has for itself alone."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(
        int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith("Private_")
    )


@pytest.mark.parametrize("kind", ["child", "copy", "origin"])
def test_reading_what_is_shared_by_fork_does_not_copy_it(kind: str) -> None:
    """Pinned, as by process_vm_readv, each of these pages would become two."""
    with subprocess.Popen(
        [sys.executable, "-c", _SHARING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        with LiveProcess(child) as process, contextlib.ExitStack() as stack:
            if kind != "child":
                copy = stack.enter_context(Snapshot(process, "fork!")).process
                process = copy if kind == "copy" else process
            before = private_bytes(process.tid)
            regions = [r for r in process.regions() if r.readable and not r.has_file]
            copier = Copier(process.memory)
            copier.discard([Slice(r.start, r.length, 0) for r in regions])
            assert copier.tally.read > 32 << 20
            assert private_bytes(process.tid) - before < 1 << 20
        parent.communicate("")
