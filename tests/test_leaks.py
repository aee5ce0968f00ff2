"""Leaks: programs that know what they leaked, and random heaps against a plain search."""

from __future__ import annotations

import bisect
import json
import os
import random
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import targets
from fastdump import leaks as leaks_module
from fastdump._heap import Segment
from fastdump._native import PLAIN, Gap, Memory, Slice
from fastdump.cli import cli
from fastdump.errors import FastdumpError, UsageError
from fastdump.labels import Kind, Label
from fastdump.leaks import Leaks, _Hunt, leaks
from fastdump.live_source import LiveSource
from fastdump.malloc_glibc import STATES, Arena, GlibcHeap
from fastdump.modules import Modules
from fastdump.process import LiveProcess
from fastdump.region import Range, Region
from fastdump.selection import Preset, Rule
from fastdump.snapshot import Snapshot
from fastdump.source import Chunk, Source, Zeros
from fastdump.sources import attach, open_source
from test_malloc_glibc import random_segment

SEED = int(os.environ.get("FASTDUMP_TEST_SEED", "20241126"))
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="ptrace of any process needs root")

# --- random heaps ------------------------------------------------------------------------

ROOTS, MODULE = 0x10000, 0x20000


class Fake(Source):
    """Memory in parts of any length; what is zero may be told to be so."""

    name, format = "fake", "core"

    def __init__(self, rng: random.Random, memory: dict[int, bytearray]) -> None:
        self._rng, self._memory = rng, sorted(memory.items())
        self._starts = [start for start, _ in self._memory]

    @property
    def regions(self) -> Sequence[Region]:
        return [
            Region(start, start + len(data), "rw-p", 0, "00:00", 0, "")
            for start, data in self._memory
        ]

    @property
    def labels(self) -> Sequence[Label]:
        module = Label(Kind.LIBRARY, "/lib/some.so")
        return [module if r.start == MODULE else Label(Kind.ANONYMOUS) for r in self.regions]

    def walk(self, ranges: Iterable[Range]) -> Iterator[Chunk | Zeros | Gap]:
        for at, end in ranges:
            start, data = self._memory[bisect.bisect_right(self._starts, at) - 1]
            while at < end:
                stop = min(at + 16 * self._rng.choice((1, 3, 20, 100, 1 << 12)), end)
                part = memoryview(data)[at - start : stop - start]
                assert len(part) == stop - at
                if any(part) or self._rng.random() < 0.5:
                    yield Chunk(at, part)
                else:
                    yield Zeros(at, stop)
                at = stop

    def place(self, *, preset: Preset = Preset.DATA, rules: Sequence[Rule] = (),
              with_libraries: bool = False, swap: bool | None = None) -> Any:  # fmt: skip
        raise NotImplementedError

    def close(self) -> None:
        pass


class FakeHeap:
    """A heap of several segments, and what a plain search finds in it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.memory = {ROOTS: bytearray(8 * rng.randrange(2, 100)), MODULE: bytearray(0x1000)}
        self.chunks: list[tuple[int, int, bool]] = []  # start, end of the program's part, free
        self.arenas: list[Arena] = []
        self.mapped: list[Range] = []
        at = 1 << 32
        for _ in range(rng.randrange(1, 5)):
            at += 4096 * rng.randrange(1, 50)
            if rng.random() < 0.3:
                end = at + 4096 * rng.randrange(1, 4)
                self.memory[at] = bytearray(end - at)
                self.mapped.append(Range(at, end))
                self.chunks.append((at, end, False))
            else:
                end = self._add_arena(at)
            at = -(-end // 4096) * 4096
        self.starts = [chunk[0] for chunk in self.chunks]
        self._write()

    def _add_arena(self, at: int) -> int:
        _, data, chunks = random_segment(self.rng)
        shift = at - chunks[0][0]
        memory = self.memory[at] = bytearray(data)
        for start, end, free in chunks:
            start, end = start + shift, end + shift
            memory[start + 16 - at : min(end + 8, at + len(data)) - at] = bytes(
                min(end + 8, at + len(data)) - start - 16
            )
            if free:  # its neighbour tells how long it is
                memory[end - at : end + 8 - at] = struct.pack("<Q", end - start)
            self.chunks.append((start, end + 8, free))
        segment = Segment(at, at + len(data))
        assert segment.feed(at, memory)
        heap = Range(at, at + len(data))
        self.arenas.append(Arena(1, STATES[0], 0, 0, [], segments=[segment], heaps=[heap]))
        return heap.end

    def _write(self) -> None:
        """Pointers: in roots, from chunk to chunk, to what is near a chunk, into the module."""
        rng, live = self.rng, [chunk for chunk in self.chunks if not chunk[2]]
        places = [ROOTS + at for at in range(0, len(self.memory[ROOTS]), 8)]
        for at in rng.sample(places, min(len(places), rng.randrange(50))):
            self._put(at, self._somewhere())
        for start, end, free in self.chunks:
            for _ in range(rng.choice((0, 1, 2, 5, 9))):
                at = start + 16 + 8 * rng.randrange((end - start - 16) // 8 - free)
                into_module = rng.random() < 0.3
                self._put(
                    at, MODULE + rng.randrange(64, 0xF00) if into_module else self._somewhere()
                )
            if not free and rng.random() < 0.2:
                self._put(start + 16, MODULE + 8 * rng.randrange(8, 12))
        assert live

    def _somewhere(self) -> int:
        start, end, _ = self.rng.choice(self.chunks)
        edges = (start - 1, start, start + 15, start + 16, end - 1, end, end + 7, end + 8)
        return self.rng.choice((start + 16, self.rng.randrange(start, end), *edges))

    def _put(self, at: int, word: int) -> None:
        start = max(start for start in self.memory if start <= at)
        struct.pack_into("<Q", self.memory[start], at - start, word)

    def heap(self) -> GlibcHeap:
        heap = GlibcHeap(self.arenas, self.mapped)
        heap.index()
        heap.live = sum(not free for _, _, free in self.chunks)
        heap.live_bytes = sum(s.total().live_bytes for s in heap.segments)
        return heap

    # The plain search: by the words of the specification alone.

    def words(self, start: int, end: int) -> tuple[int, ...]:
        base = max(found for found in self.memory if found <= start)
        return struct.unpack_from(f"<{(end - start) // 8}Q", self.memory[base], start - base)

    def chunk_of(self, word: int) -> tuple[int, int, bool] | None:
        number = bisect.bisect_right(self.starts, word - 16) - 1
        found = self.chunks[number] if number >= 0 else None
        return found if found and word < found[1] and not found[2] else None

    def reached(self) -> set[tuple[int, int, bool]]:
        words = list(self.words(ROOTS, ROOTS + len(self.memory[ROOTS])))
        found: set[tuple[int, int, bool]] = set()
        while words:
            chunk = self.chunk_of(words.pop())
            if chunk and chunk not in found:
                found.add(chunk)
                words += filter(None, self.words(chunk[0] + 16, chunk[1]))
        return found

    def leaked(self) -> Counter[tuple[int, str, bool]]:
        """Size, module and whether indirectly → chunks."""
        reached = self.reached()
        lost = [c for c in self.chunks if not c[2] and c not in reached]
        pointed = {
            self.chunk_of(word)
            for chunk in lost
            for word in self.words(chunk[0] + 16, chunk[1])
            if word and self.chunk_of(word) != chunk
        }
        found: Counter[tuple[int, str, bool]] = Counter()
        for chunk in lost:
            words = self.words(chunk[0] + 16, chunk[1])
            named = any(MODULE <= word < MODULE + 0x1000 for word in words)
            mapped = Range(chunk[0], chunk[1]) in self.mapped
            size = chunk[1] - chunk[0] - (0 if mapped else 8)
            found[size, "/lib/some.so" if named else "", chunk in pointed] += 1
        return found


def counts(found: Leaks) -> Counter[tuple[int, str, bool]]:
    """As of :meth:`FakeHeap.leaked`."""
    counted: Counter[tuple[int, str, bool]] = Counter()
    for row in found.rows:
        counted[row.size, row.module, False] += row.direct.chunks
        counted[row.size, row.module, True] += row.indirect.chunks
    return +counted


@pytest.mark.parametrize("direct", [False, True])
def test_leaks_are_those_of_a_plain_search(
    direct: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With windows of any size, by sweeps and chunk by chunk."""
    print(f"FASTDUMP_TEST_SEED={SEED}")
    rng = random.Random(SEED)
    leaked: Counter[bool] = Counter()
    reached = 0
    for _ in range(20):
        fake = FakeHeap(rng)
        monkeypatch.setattr(leaks_module, "_WINDOW", rng.choice((1024, 1 << 14, 1 << 20)))
        monkeypatch.setattr(leaks_module, "_GRAIN", rng.choice((256, 1 << 14)))
        monkeypatch.setattr(leaks_module, "_FEW", rng.choice((1, 256)))
        source, heap = Fake(rng, fake.memory), fake.heap()
        hunt = _Hunt(source, Modules(source), heap)
        with open(tmp_path / "memory", "w+b", buffering=0) as file:
            if direct:
                hunt._memory, hunt._direct = Memory.of_files(), []
                for start, data in sorted(fake.memory.items()):
                    at = file.seek(0, os.SEEK_END)
                    file.write(data)
                    hunt._direct.append(Slice(start, len(data), 0, PLAIN, file.fileno(), at))
            found = hunt.result()
        expected = fake.leaked()
        assert counts(found) == expected
        assert found.reachable.chunks == len(fake.reached())
        reached += found.reachable.chunks
        for key, count in expected.items():
            leaked[key[2]] += count
    assert min(reached, *leaked.values()) > 100  # of each kind enough to be wrong about


def test_more_pointers_than_the_stack_has_room_for() -> None:
    """A table that leads to all of a segment, which is read as one window."""
    rng = random.Random(SEED)
    start, count = 1 << 32, 10_000
    table = 16 + 8 * count
    memory = bytearray(struct.pack("<QQ", 0, table | 1))
    memory += struct.pack(f"<{count}Q", *(start + table + 48 * n + 16 for n in range(count)))
    for n in range(count + 100):
        word = start + table + 48 * rng.randrange(n + 1) + 24
        memory += struct.pack("<QQQQQQ", 0, 48 | 1, word if n < count else 0, 0, 0, 0)
    memory += struct.pack("<QQ", 0, 16 | 1)
    segment = Segment(start, start + len(memory))
    assert segment.feed(start, memory)
    heap = GlibcHeap(
        [Arena(1, STATES[0], 0, 0, [], [segment], [Range(start, start + len(memory))])], []
    )
    heap.index()
    heap.live, heap.live_bytes = segment.total()[:2]
    roots = {ROOTS: bytearray(struct.pack("<Q", start + 16)), MODULE: bytearray(16)}
    source = Fake(rng, {start: memory, **roots})
    found = _Hunt(source, Modules(source), heap).result()
    assert (found.reachable.chunks, found.direct.chunks) == (count + 1, 100)


# --- a program that knows ----------------------------------------------------------------


@pytest.fixture(scope="module")
def leaky() -> Iterator[targets.Target]:
    targets.build("leaky")
    with targets.start("leaky", targets.BUILD / "leaky_lib.so") as target:
        yield target


def by_size(found: Leaks) -> dict[int, tuple[int, int]]:
    """Leaked directly and indirectly."""
    sizes: dict[int, tuple[int, int]] = {}
    for row in found.rows:
        direct, indirect = sizes.get(row.size, (0, 0))
        sizes[row.size] = direct + row.direct.chunks, indirect + row.indirect.chunks
    return sizes


def is_true(found: Leaks, target: targets.Target) -> None:
    """Each case of the target's truth, and nothing else, leaked."""
    cases = {int(size): tuple(each) for size, each in target.truth["cases"].items()}
    expected = {size: each[1:] for size, each in cases.items() if any(each[1:])}
    assert by_size(found) == expected
    kept = sum(each[0] for each in cases.values())
    assert kept < found.reachable.chunks < kept + 300  # and what libraries need
    assert found.problems == []
    assert found.exit_code == 0
    if not found.pause:
        return  # cores of the usual kinds do not have the names of types
    (row,) = (row for row in found.rows if row.type == "Forgotten")
    assert (row.direct.chunks, row.indirect.chunks) == (7, 0)
    assert os.path.basename(row.module) == "leaky"


@root_only
@pytest.mark.parametrize("pause", ["fork!", "freeze"])
def test_leaks_of_a_process_are_exact(leaky: targets.Target, pause: str) -> None:
    with LiveProcess(leaky.pid) as process, Snapshot(process, pause) as snapshot:
        found = leaks(LiveSource(snapshot.process, snapshot))
    assert found.pause == pause.rstrip("!")
    is_true(found, leaky)


@root_only
@pytest.mark.parametrize("format", ["core", "lz4"])
def test_leaks_of_a_core_are_exact(leaky: targets.Target, format: str, tmp_path: Path) -> None:
    path = tmp_path / "a.core"
    options = ["--format", format, "--pause", "fork!", "-o", str(path)]
    dumped = CliRunner().invoke(cli, ["dump", str(leaky.pid), *options])
    assert dumped.exit_code == 0, dumped.output
    with open_source(str(path)) as source:
        is_true(leaks(source), leaky)


@root_only
def test_leaks_of_a_core_of_gdb_are_exact(leaky: targets.Target, tmp_path: Path) -> None:
    command = ["gcore", "-o", str(tmp_path / "a"), str(leaky.pid)]
    subprocess.run(command, check=True, capture_output=True)
    with open_source(str(tmp_path / f"a.{leaky.pid}")) as source:
        is_true(leaks(source), leaky)


def test_without_registers_it_says_so(leaky: targets.Target) -> None:
    with attach(leaky.pid) as source:
        found = leaks(source)
    assert found.pause == "none"
    assert any("no registers" in problem for problem in found.problems)
    assert any("not stopped" in problem for problem in found.problems)
    cases = leaky.truth["cases"]
    assert by_size(found)[1008] == tuple(cases["1008"][1:])
    assert not found.to_json()["exact"]


@root_only
def test_a_freeze_that_ended_early_is_told(leaky: targets.Target) -> None:
    with (
        LiveProcess(leaky.pid) as process,
        Snapshot(process, "freeze", max_pause=0.001) as snapshot,
    ):
        while not snapshot.is_over:
            pass
        found = leaks(LiveSource(snapshot.process, snapshot))
    assert found.problems == ["the freeze ended before all was read"]


@root_only
def test_a_broken_heap_is_told(leaky: targets.Target, tmp_path: Path) -> None:
    """Of a dump whose main arena has a header overwritten."""
    path = tmp_path / "a.core"
    options = ["--format", "core", "--pause", "fork!", "-o", str(path)]
    assert CliRunner().invoke(cli, ["dump", str(leaky.pid), *options]).exit_code == 0
    with open_source(str(path)) as source:
        before = leaks(source)
        example = next(row.example for row in before.rows if row.size == 1008)
        (place,) = (
            s.file_offset + example - 8 - s.address
            for s in source.slices  # type: ignore[attr-defined]
            if s.address <= example < s.address + s.length
        )
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(struct.pack("<Q", 7))
    with open_source(str(path)) as source:
        found = leaks(source)
    assert any("has no chunk at" in problem for problem in found.problems)
    done = CliRunner().invoke(cli, ["leaks", str(path)])
    assert "not sure: malloc has no chunk at" in done.output


@root_only
def test_a_gap_is_told(leaky: targets.Target, tmp_path: Path) -> None:
    """A dump without what keeps most, and a raw one, which has no data of libraries."""
    kept = f"{leaky.truth['kept']:x}-{leaky.truth['kept'] + 0x1000:x}"
    for format, expected in (("core", 3), ("raw", UsageError.exit_code)):
        path = str(tmp_path / format)
        options = ["--format", format, "--pause", "fork!", "--exclude", kept, "-o", path]
        assert CliRunner().invoke(cli, ["dump", str(leaky.pid), *options]).exit_code == 0
        done = run(path)
        assert exit_code(done) == expected
    assert "no heap of glibc's malloc" in str(done.exception)
    done = run(str(tmp_path / "core"))
    assert "not sure: memory could not be read" in done.output
    assert "incomplete: " in done.output


def test_another_allocator_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(SEED)
    source = Fake(rng, {ROOTS: bytearray(64), MODULE: bytearray(64)})
    monkeypatch.setattr(
        Fake,
        "labels",
        [Label(Kind.ANONYMOUS), Label(Kind.LIBRARY, "/usr/lib/libjemalloc.so.2")],
    )
    with pytest.raises(UsageError, match="no heap of glibc's malloc, but uses jemalloc"):
        leaks(source)


# --- the command -------------------------------------------------------------------------


def run(*words: str) -> Any:
    return CliRunner().invoke(cli, ["leaks", *words], standalone_mode=False)


def exit_code(done: Any) -> int:
    """That of the program, which :func:`fastdump.cli.main` makes of it."""
    error = done.exception
    return error.exit_code if isinstance(error, FastdumpError) else int(done.return_value)


@root_only
def test_the_page(leaky: targets.Target) -> None:
    done = run(str(leaky.pid), "--top", "3")
    assert done.exit_code == 0
    assert "a copy of the process, by fork" in done.output
    lines = [line.split() for line in done.output.splitlines()]
    assert ["1", "19,999"] in [line[2:4] for line in lines]
    assert "more rows" in done.output
    assert f"fastdump why {leaky.pid} --every 60s" in done.output
    assert "are reachable: memory may grow there too" in done.output
    assert "not sure" not in done.output


@root_only
def test_the_page_as_json(leaky: targets.Target) -> None:
    found = json.loads(run(str(leaky.pid), "--json").output)
    assert (found["pause"], found["exact"]) == ("fork", True)
    assert found["live"]["chunks"] == sum(
        found[name]["chunks"] for name in ("reachable", "direct", "indirect")
    )
    assert sum(row["direct"]["bytes"] for row in found["leaks"]) == found["direct"]["bytes"]
    assert sum(row["indirect"]["chunks"] for row in found["leaks"]) == found["indirect"]["chunks"]


def test_a_file_that_is_no_dump() -> None:
    done = run(__file__)
    assert exit_code(done) == UsageError.exit_code


def test_a_pause_of_a_dump(tmp_path: Path) -> None:
    assert exit_code(run(str(tmp_path), "--pause", "fork")) == UsageError.exit_code


# --- large heaps -------------------------------------------------------------------------

MEASURE = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
sys.exit(done.returncode)
"""


def leaks_and_peak(name: str) -> tuple[dict[str, Any], int]:
    """What it finds, and the peak of its memory in bytes (ru_maxrss): all of it, Python too."""
    program = [sys.executable, "-m", "fastdump", "leaks", name, "--json"]
    command = [sys.executable, "-c", MEASURE, *program]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    text, _, peak = output.rstrip("\n").rpartition("\n")
    return json.loads(text), int(peak)


ORDERS = ("ascending", "descending", "random", "table")


@root_only
@pytest.mark.parametrize(
    ("count", "order"),
    [
        *((100_000, order) for order in range(len(ORDERS))),
        *(
            pytest.param(18_000_000, n, marks=[pytest.mark.long, pytest.mark.timeout(900)])
            for n in range(len(ORDERS))
        ),
    ],
)
def test_many_chunks_are_exact(count: int, order: int) -> None:
    """In any order of pointers; with less than 5% of the heap, of a large one."""
    with targets.start("chunks", count, order) as target:
        truth = target.truth
        found, peak = leaks_and_peak(str(target.pid))
    assert found["exact"], found["problems"]
    assert found["direct"]["chunks"] == truth["direct"]
    assert found["direct"]["chunks"] + found["indirect"]["chunks"] == truth["leaked"]
    assert truth["kept"] < found["reachable"]["chunks"] < truth["kept"] + 100
    if count > 1_000_000:
        assert peak < truth["bytes"] * 0.05
