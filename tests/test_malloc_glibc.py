"""The walk of glibc's malloc, held against what malloc says of itself; seeded."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tracemalloc
from collections import UserList
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import foreign
import targets
from fastdump._heap import LIST_BLOCK, BrokenChunk, FreeLists, Segment
from fastdump._native import PLAIN, Memory, Slice
from fastdump.dumped import Dumped
from fastdump.malloc_glibc import GlibcHeap, walk_glibc
from fastdump.region import Range
from fastdump.source import Source
from fastdump.sources import attach, open_source
from fastdump.why import why

SEED = int(os.environ.get("FASTDUMP_TEST_SEED", "20241126"))
IN_USE, MAPPED = 1, 2


# --- segments ----------------------------------------------------------------------------


def random_segment(rng: random.Random) -> tuple[int, bytes, list[tuple[int, int, bool]]]:
    """Address and bytes of a heap, and its chunks: start, end, free."""
    start = rng.randrange(1 << 20, 1 << 40) * 16
    data, chunks, free = bytearray(), list[tuple[int, int, bool]](), False
    for _ in range(rng.randrange(1, 200)):
        size = rng.choice((32, 32, 48, 16 * rng.randrange(2, 100), 16 * rng.randrange(2, 2000)))
        before = len(data)
        previous = chunks[-1][1] - chunks[-1][0] if free else rng.getrandbits(64)
        data += struct.pack("<QQ", previous, size | (0 if free else IN_USE))
        data += rng.randbytes(size - 16)
        free = not free and rng.random() < 0.4
        chunks.append((start + before, start + len(data), free))
    data += struct.pack("<QQ", chunks[-1][1] - chunks[-1][0], 16 | (0 if free else IN_USE))
    return start, bytes(data), chunks


def walked(rng: random.Random, start: int, data: bytes) -> Segment:
    """The segment, fed in parts of any size."""
    segment, at, ended = Segment(start, start + len(data)), 0, False
    while at < len(data):
        assert not ended
        length = min(16 * rng.choice((1, 2, rng.randrange(1, 50), 4096)), len(data) - at)
        ended = segment.feed(start + at, data[at : at + length])
        at += length
    assert ended
    return segment


def test_segments_are_those_of_a_plain_loop() -> None:
    print(f"FASTDUMP_TEST_SEED={SEED}")
    rng = random.Random(SEED)
    for _ in range(200):
        start, data, chunks = random_segment(rng)
        segment = walked(rng, start, data)
        end = chunks[-1][1]
        assert segment.next == end
        assert segment.last == chunks[-1][0]
        for chunk in rng.sample(chunks, min(20, len(chunks))):
            assert segment.chunk_at(rng.randrange(*chunk[:2])) == chunk
        assert segment.chunk_at(start - 1) is None
        assert segment.chunk_at(end) is None
        first, last = sorted(rng.randrange(start, end + 1) for _ in range(2))
        found = segment.tally(first, last)
        for free, count, length in ((False, *found[:2]), (True, *found[2:])):
            inside = [c for c in chunks if c[2] == free and c[0] < last and c[1] > first]
            assert count == sum(c[0] >= first for c in inside)
            assert length == sum(min(c[1], last) - max(c[0], first) for c in inside)
        check_sizes(segment, [c[1] - c[0] for c in chunks if not c[2]])
        assert segment.total() == segment.tally(start, end)
        released = rng.choice(chunks)
        for _ in range(2):
            segment.release(released[0])
            assert segment.chunk_at(released[0]) == (*released[:2], True)
            assert segment.total() == segment.tally(start, end)
        check_sizes(segment, [c[1] - c[0] for c in chunks if not c[2] and c != released])


def check_sizes(segment: Segment, lengths: list[int]) -> None:
    for each in segment.sizes:
        inside = [n for n in lengths if each.size // 2 < n <= each.size]
        assert (each.chunks, each.bytes) == (len(inside), sum(inside))
    assert sum(each.chunks for each in segment.sizes) == len(lengths)


def test_a_broken_segment_is_told() -> None:
    rng = random.Random(SEED)
    broken = 0
    for _ in range(200):
        start, data, chunks = random_segment(rng)
        at = rng.choice(chunks)[0] - start
        size = int.from_bytes(data[at + 8 : at + 16], "little")
        wrong = rng.choice((8, size ^ 8, size | MAPPED, size + 16 * len(data), 0, 1 << 63))
        if wrong & ~7 == size & ~7 and not wrong & MAPPED:
            continue  # only the bit that says of what arena it is
        bad = data[: at + 8] + wrong.to_bytes(8, "little") + data[at + 16 :]
        segment = Segment(start, start + len(bad))
        with contextlib.suppress(BrokenChunk):  # a size of 0 may be its end
            segment.feed(start, bad)
        broken += segment.next == start + at
    assert broken > 100


def test_lists_of_free_chunks_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    """And lists that lead to no chunk, back, or to a free one break there."""
    print(f"FASTDUMP_TEST_SEED={SEED}")
    rng = random.Random(SEED)
    broken = 0
    for _ in range(200):
        start, data, chunks = random_segment(rng)
        listed = [chunk for chunk in chunks if not chunk[2]]
        listed = rng.sample(listed, rng.randrange(1, len(listed) + 1))
        header, masked = rng.choice((0, 16)), rng.random() < 0.5
        behind = rng.choice(
            (0, 0, start - 16, chunks[-1][1], rng.choice(chunks)[0] + 8, listed[0][0],
             rng.choice(listed)[0], *[c[0] for c in chunks if c[2]][:1])
        )  # fmt: skip
        entries = [chunk[0] + header for chunk in listed]
        entries.append(behind + header if behind else 0)
        image = bytearray(data)
        for (chunk, *_), link in zip(listed, entries[1:], strict=True):
            word = link ^ (chunk + 16 >> 12 if masked else 0)
            image[chunk + 16 - start : chunk + 24 - start] = word.to_bytes(8, "little")
        (tmp_path / "image").write_bytes(image)

        def read(address: int, start: int = start, image: bytes = bytes(image)) -> bytes:
            at = address - start
            return image[at : at + 8 * rng.randrange(1, LIST_BLOCK // 8)]

        segment = walked(rng, start, bytes(image))
        with open(tmp_path / "image", "rb") as file:
            slices = [Slice(start, len(image), 0, PLAIN, file.fileno())][: rng.randrange(2)]
            lists = FreeLists([segment], Memory.of_files(), slices, read)
            sizes = [end - at for at, end, _ in listed]
            alike = len(list(itertools.takewhile(sizes[0].__eq__, sizes)))
            options = {"header": header, "release": False, "most": len(listed)}
            found = lists.follow(entries[0], size=sizes[0], **options)
            whole = not behind and alike == len(listed)
            assert found == (alike, alike * sizes[0], whole)
            expected = len(listed), sum(sizes), not behind
            assert lists.follow(entries[0], **options) == expected
            options.pop("most")
            assert lists.follow(entries[0], **options).whole == (not behind)
            assert segment.total().live == len(chunks) - sum(chunk[2] for chunk in chunks)
            assert lists.follow(entries[0], header=header) == expected
        free = {chunk[0] for chunk in chunks if chunk[2]} | {chunk[0] for chunk in listed}
        assert free == {at for at, *_ in chunks if segment.chunk_at(at)[2]}  # type: ignore[index]
        broken += behind != 0
    assert 50 < broken < 190


# --- malloc ------------------------------------------------------------------------------


# Debian's of today, 2.36 or later; and 2.31, 2.41, and what will be in the next release.
THREADS, RELEASES = (1, 4, 64), ("bullseye", "trixie", "sid")
WHERE = [
    pytest.param(
        (release, threads),
        id=f"{release or 'here'}-{threads}",
        marks=pytest.mark.long if release and (release, threads) != ("trixie", 4) else (),
    )
    for release in ("", *RELEASES)
    for threads in THREADS
]


@pytest.fixture(scope="module", params=WHERE)
def arenas(request: pytest.FixtureRequest) -> Iterator[targets.Target]:
    release, threads = request.param
    program: list[str] = []
    if release:
        root = foreign.root_of(release, foreign.C_PACKAGES)
        program = [*foreign.loader(root), str(foreign.built("arenas", root))]
    with targets.start("arenas", threads, program=program) as target:
        yield target


def check(heap: GlibcHeap | None, truth: dict[str, Any]) -> None:
    """Every total is malloc's own, to the byte."""
    assert heap
    assert heap.problems == []
    assert heap.system_bytes == truth["arena"]
    # In 2.43 each realloc() of a mapped chunk adds 16 to hblkhd, for good.
    more = truth["hblkhd"] - heap.mapped_bytes
    assert more == 0 or (not heap.arenas[0].fast and 0 < more < 1 << 16 and more % 16 == 0)
    assert len(heap.mapped) == truth["hblks"]
    assert heap.fast_bytes == truth["fsmblks"]
    assert heap.free_bytes + heap.fast_bytes + heap.top_bytes == truth["fordblks"]
    in_arenas = heap.live_bytes - heap.mapped_bytes
    assert in_arenas + heap.cached_bytes + heap.own_bytes == truth["uordblks"]
    report = ElementTree.fromstring(truth["malloc_info"])
    each = [
        int(found.attrib["size"])
        for found in report.findall("heap/system")
        if found.attrib["type"] == "current"
    ]
    assert sorted(arena.system_mem for arena in heap.arenas) == sorted(each)


def test_every_total_is_that_of_malloc(arenas: targets.Target) -> None:
    for _ in range(2):
        with attach(arenas.pid) as source:
            check(walk_glibc(source), arenas.truth)
        arenas.send(b"x")
        arenas.read_truth()


def test_what_the_program_holds_is_live(arenas: targets.Target) -> None:
    """And little else: a cache and a control block for each thread, and what stdio has."""
    truth = arenas.truth
    with attach(arenas.pid) as source:
        heap = walk_glibc(source)
        assert heap
        held: set[int] = set()
        workers = len(heap.arenas) - 1 or 1
        for number in range(workers):
            at = truth["workers"] + number * truth["stride"] + truth["held"]
            held |= set(struct.unpack(f"<{truth['most']}Q", source.read(at, truth["most"] * 8)))
    held.discard(0)
    assert len(held) == truth["live_count"]
    for pointer in held:
        chunk = heap.chunk_at(pointer - 16)
        assert chunk
        assert not chunk[2]
    assert 0 < heap.live - len(held) <= 4 * len(heap.arenas) + 12


def test_a_dump_tells_the_same(arenas: targets.Target, in_tmp: Path) -> None:
    for form in ("core", "lz4"):
        command = ["dump", str(arenas.pid), "-q", "-f", form, "-o", f"dumped.{form}"]
        subprocess.run([sys.executable, "-m", "fastdump", *command], check=True)
        with open_source(f"dumped.{form}") as source:
            check(walk_glibc(source), arenas.truth)


CORE = "dumped.core"


def dump(target: targets.Target) -> None:
    command = ["dump", str(target.pid), "-q", "-f", "core", "-o", CORE]
    subprocess.run([sys.executable, "-m", "fastdump", *command], check=True)


def forge(words: dict[int, int]) -> None:
    """Change words of the core, by their address."""
    with open_source(CORE) as source:
        assert isinstance(source, Dumped)
        slices = source.slices
    with open(CORE, "r+b") as file:
        for address, word in words.items():
            found = next(s for s in slices if s.address <= address < s.address + s.length)
            file.seek(found.file_offset + address - found.address)
            file.write(word.to_bytes(8, "little"))


def problems() -> list[str]:
    with open_source(CORE) as source:
        heap = walk_glibc(source)
    assert heap
    assert all(segment.start < segment.end for segment in heap.segments)
    return heap.problems


def test_a_heap_that_makes_no_sense_is_told(in_tmp: Path) -> None:
    with targets.start("arenas", 1) as target:
        dump(target)
    with open_source(CORE) as source:
        heap = walk_glibc(source)
    assert heap
    victim = heap.segments[0].start
    forge({victim + 8: 0x1238})  # its size
    assert any(f"no chunk at {victim:#x}" in problem for problem in problems())


FAST = 400_000


def test_long_fastbins_are_not_read_chunk_by_chunk(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor remembered: whatever their order, of a process and of a core."""
    calls = 0

    def count(source: Source, name: str) -> None:
        method = getattr(source, name)

        def counted(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            return method(*args)

        monkeypatch.setattr(source, name, counted)

    def walk(source: Source, truth: dict[str, Any]) -> None:
        nonlocal calls
        calls = 0
        for name in ("read", "read_into", "walk"):
            count(source, name)
        tracemalloc.start()
        heap = walk_glibc(source)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        check(heap, truth)
        assert heap
        report = ElementTree.fromstring(truth["malloc_info"])
        assert heap.fast == int(report.findall("total")[0].attrib["count"]) > 0.99 * FAST
        assert calls < FAST / 50
        assert peak < 10 * FAST

    with targets.start("arenas", 1, FAST) as target:
        dump(target)
        with attach(target.pid) as source:
            walk(source, target.truth)
        with open_source(CORE) as source:
            walk(source, target.truth)


def test_a_fastbin_that_makes_no_sense_is_told(in_tmp: Path) -> None:
    with targets.start("arenas", 1) as target:
        dump(target)
    with open_source(CORE) as source:
        heap = walk_glibc(source)
    assert heap
    first = next(filter(None, heap.arenas[0].fast))
    for link in (first, first + 8, 16, heap.segments[0].end):
        forge({first + 16: link ^ first + 16 >> 12})
        assert problems() == [f"the fastbin with {first:#x} is broken"]


def test_arenas_that_end_before_they_begin_are_told(in_tmp: Path) -> None:
    """Nothing is written for them, to owners of chunks or elsewhere."""
    with targets.start("arenas", 4) as target:
        dump(target)
    with open_source(CORE) as source:
        heap = walk_glibc(source)
        assert heap
        main, other = heap.arenas[0], heap.arenas[1]
        libc = [r for r in source.regions if "libc.so" in r.path and r.writable]
        words = [
            (region.start + 8 * number, word)
            for region in libc
            for number, (word,) in enumerate(
                struct.iter_unpack("<Q", source.read(region.start, region.length))
            )
        ]
    info = other.heaps[0].start
    forge({info + 16: 0x40})  # heap_info.size
    assert f"the heaps of the arena at {other.address:#x} were not found" in problems()
    start, end = main.heaps[0]
    forge({at: end - 16 for at, word in words if word == start})  # malloc_par.sbrk_base
    forge({main.address + 96: main.segments[0].start})  # malloc_state.top
    assert "malloc's count of mapped chunks was not found" in problems()
    with open_source(CORE) as source:
        assert why(source, strings=False).problems


POINTERS = """
import ctypes, json, sys
calloc = ctypes.CDLL(None).calloc
calloc.restype, calloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t, ctypes.c_size_t]
sizes = {0x2F8: 152, 0x288: 128, 0x248: 64}  # of a cache of each layout, and of its counts
held = []
for size, counts in sizes.items():
    pointers = [calloc(1, 64) for _ in range((size - counts) // 8)]
    place = calloc(1, size)
    ctypes.memmove(place + counts, (ctypes.c_uint64 * len(pointers))(*pointers), size - counts)
    held += [place, *pointers]
print("ready", json.dumps(held), flush=True)
sys.stdin.read()
"""


def test_an_array_of_pointers_is_no_cache_of_a_thread() -> None:
    """Though it is as long as one, and what it points to could be a list of one chunk."""
    command = [sys.executable, "-c", POINTERS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        held = json.loads(process.stdout.readline().removeprefix(b"ready"))
        with attach(process.pid) as source:
            heap = walk_glibc(source)
        process.communicate()
    assert heap
    assert heap.problems == []
    for place in held:
        chunk = heap.chunk_at(place - 16)
        assert chunk
        assert not chunk[2]


CROWD = """
import ctypes, os, sys, threading
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
threading.stack_size(1 << 17)
filled, end = os.pipe(), os.pipe()  # locks and barriers allocate
def fill():
    for place in [libc.malloc(1000) for _ in range(7)]:
        libc.free(place)
    os.write(filled[1], b"x")
    os.read(end[0], 1)
for _ in range(1500):
    threading.Thread(target=fill).start()
    os.read(filled[0], 1)
print("ready", flush=True)
sys.stdin.read()
os.close(end[1])
"""


def test_the_caches_of_many_threads_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them in one arena; how many were not looked at is told."""
    tunables = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}
    command = [sys.executable, "-c", CROWD]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=tunables) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        with attach(process.pid) as source:
            heap = walk_glibc(source)
            monkeypatch.setattr("fastdump._heap._MOST_CACHES", 100)
            some = walk_glibc(source)
        process.communicate()
    assert heap
    assert some
    assert heap.problems == []
    assert heap.cached >= 1500 * 7
    (problem,) = some.problems
    assert "only 100 were looked at" in problem
    assert 100 < some.cached < 200 * 7
    assert some.live + some.cached == heap.live + heap.cached


FORKED = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: all from the heap
libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
before = [libc.malloc(1000) for _ in range(2000)]
behind = [0] * 2000  # so that in between nothing else is allocated
if os.fork() == 0:
    for number in range(2000):
        behind[number] = libc.malloc(10_000)
    for place in behind[int(sys.argv[1]) :]:
        libc.free(place)
    print("ready", os.getpid(), flush=True)
    sys.stdin.read()
    os._exit(0)
os.wait()
"""


@pytest.mark.parametrize("kept", [2000, 0], ids=["kept", "freed"])
def test_the_heap_of_a_forked_process_is_walked_to_its_end(kept: int, in_tmp: Path) -> None:
    """What it adds to its heap may be a region of its own; if it is freed, the top is in both."""
    command = [sys.executable, "-c", FORKED, str(kept)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        pid = int(process.stdout.readline().removeprefix(b"ready"))
        sources = [str(pid)]
        if shutil.which("gcore"):  # such a core has no names of regions
            subprocess.run(["gcore", "-o", "core", str(pid)], check=True, capture_output=True)
            sources.append(f"core.{pid}")
        for name in sources:
            with open_source(name) as source:
                heap = walk_glibc(source)
            assert heap
            assert heap.problems == []
            assert heap.live >= 2000 + kept
        process.communicate()


STRAYS = """
import ctypes, mmap, sys
kept = [ctypes.create_string_buffer(200_000 + 4096 * n) for n in range(3)]
private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
other = mmap.mmap(-1, 4 << 20, flags=private)
for number in (100, 200, 300):  # pages that begin as a mapped chunk of 192 KiB would
    other[number * 4096 + 8 : number * 4096 + 16] = (0x30002).to_bytes(8, "little")
print("ready", flush=True)
sys.stdin.read()
"""


def test_what_looks_like_a_mapped_chunk_is_none() -> None:
    command = [sys.executable, "-c", STRAYS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        with attach(process.pid) as source:
            heap = walk_glibc(source)
        process.communicate()
    assert heap
    assert heap.problems == []
    assert 0x30000 not in {end - start for start, end in heap.mapped}


def test_segments_of_a_range_are_found_without_those_before() -> None:
    looked = 0

    class Looked(UserList[Segment]):
        def __getitem__(self, number: Any) -> Any:
            nonlocal looked
            looked += 1
            return super().__getitem__(number)

    ranges = [Range(at, at + 4096) for at in range(1 << 20, 1 << 24, 8192)]
    heap = GlibcHeap([], ranges)
    heap.index()
    heap.segments = Looked(heap.segments)  # type: ignore[assignment]
    for start, end in ranges:
        found = list(heap.segments_in(start + 1, end + 8192))
        assert [segment.start for segment in found] == [
            r.start for r in ranges if start <= r.start <= end + 4096
        ]
    assert looked <= 4 * len(ranges)


def test_of_segments_that_overlap_the_first_counts() -> None:
    mapped = [Range(0x10000, 0x30000), Range(0x20000, 0x28000), Range(0x30000, 0x40000)]
    heap = GlibcHeap([], mapped)
    heap.index()
    assert [segment.start for segment in heap.segments] == [0x10000, 0x30000]
    assert heap.problems == ["the heap at 0x20000 lies in another one"]
