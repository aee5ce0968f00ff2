"""``fastdump bench``: its table and JSON, its checks; it leaves nothing and changes nothing."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import targets
from fastdump import bench
from fastdump.bench import CACHED, COPY, DIRECT, LEVELS, READ, STRINGS, Figures, Measured
from fastdump.cli import bench_command, cli
from fastdump.errors import FastdumpError, SourceGone
from fastdump.frames import Compressor
from fastdump.process import LiveProcess
from test_faults import finish, reach, start, takes_signals

PACKED = [f"read, LZ4 level {level}" for level in LEVELS]
MIB = 1 << 20


@pytest.fixture(scope="module")
def text() -> Iterator[targets.Target]:
    with targets.start("fill", "text", 8 * MIB) as target:
        yield target


@pytest.fixture
def file(tmp_path: Path) -> Iterator[io.FileIO]:
    with bench.nameless_file(str(tmp_path)) as opened:
        yield opened


def run(*args: object) -> Any:
    return CliRunner().invoke(cli, ["bench", *map(str, args)], catch_exceptions=False)


def test_json(text: targets.Target, tmp_path: Path) -> None:
    done = run(text.pid, "--seconds", 0.2, "--threads", 3, "--json", "--output-dir", tmp_path)
    found = json.loads(done.stdout)
    assert (done.exit_code, found["pid"], found["threads"]) == (0, text.pid, 3)
    steps = [COPY, READ, STRINGS, *PACKED, *([DIRECT] if found["o_direct"] else []), CACHED]
    runs = [(one["step"], one["threads"]) for one in found["measured"]]
    assert runs == [(step, threads) for step in steps for threads in (1, 2, 3)]
    for one in found["measured"]:
        assert one["bytes"] > 0
        rate, seconds = one["gb_per_second"], one["seconds"]  # rounded to 0.001 and 0.0001
        assert (rate - 6e-4) * (seconds - 6e-5) < one["bytes"] / 1e9
        assert (rate + 6e-4) * (seconds + 6e-5) > one["bytes"] / 1e9
        assert (one["ratio"] is not None) == (one["level"] is not None)
        assert one["level"] is None or one["ratio"] > 2  # it is text
    assert 8 * MIB <= found["sampled"] < 9 * MIB
    ways = [way["options"] for way in found["ways"]]
    packed = [f"dump -f lz4 --level {level}" for level in LEVELS]
    assert sorted(ways) == sorted(["dump -f raw", "strings", *packed])
    rates = [way["gb_per_second"] for way in found["ways"][:-1]]
    assert rates == sorted(rates, reverse=True)
    assert not list(tmp_path.iterdir())


def test_table_of_a_process_of_its_own(tmp_path: Path) -> None:
    done = run("--seconds", 0.2, "--threads", 1, "--output-dir", tmp_path)
    lines = done.stdout.splitlines()
    assert done.exit_code == 0
    assert lines[2].split() == ["GB/s", "of", "memory", "1", "thread", "of", "copy"]
    for step in (COPY, READ, STRINGS, *PACKED, CACHED):
        assert sum(line.startswith((f"{step} ", f"{step}, ratio")) for line in lines) == 1, step
    assert lines[-1].startswith(("fastest ", "smallest ", "  "))
    assert any(line.startswith("fastest    fastdump dump PID -f ") for line in lines)
    assert not list(tmp_path.iterdir())


def test_a_huge_reservation_does_not_grow(tmp_path: Path) -> None:
    with targets.start("sparse", "private") as target:
        done = run(target.pid, "--seconds", 0.2, "--json", "--output-dir", tmp_path)
        assert Path(f"/proc/{target.pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"
    found = json.loads(done.stdout)
    before, after = found["target_before"], found["target_after"]
    assert after["pte"] == before["pte"]
    assert after["rss"] - before["rss"] < MIB
    assert found["sampled"] < 600 << 20


def test_a_step_that_makes_wrong_bytes_fails(
    text: targets.Target, file: io.FileIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame, write, feed = Compressor.frame, os.pwrite, bench.Scanner.feed

    def wrong_frame(self: Compressor, content: Any) -> bytes:
        return frame(self, bytes(content)[:-1] + b"?")

    def wrong_write(fd: int, view: memoryview, offset: int) -> int:
        return write(fd, view, offset + 4096)

    def wrong_feed(self: Any, data: Any, address: int, last: bool) -> Any:
        return feed(self, data[: 1 << 20] if self.kernel == "scalar" else data, address, last)

    for owner, name, wrong, message in (
        (Compressor, "frame", wrong_frame, "LZ4 frame does not hold"),
        (bench.os, "pwrite", wrong_write, "does not hold what was written"),
        (bench.Scanner, "feed", wrong_feed, "kernels disagree"),
    ):
        if name == "feed" and bench.default_kernel() == "scalar":
            continue  # it would be compared with itself
        with monkeypatch.context() as patch, LiveProcess(text.pid) as process:
            patch.setattr(owner, name, wrong)
            with pytest.raises(FastdumpError, match=message):
                bench.measure(process, file, "here", seconds=0.1, threads=1)


def test_without_o_direct(
    text: targets.Target, file: io.FileIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "set_direct", lambda fd, on: False)
    with LiveProcess(text.pid) as process:
        figures = bench.measure(process, file, "here", seconds=0.1, threads=1)
    assert not figures.direct
    assert DIRECT not in figures.steps
    assert figures.ways()


def test_a_target_that_exits_ends_it(file: io.FileIO) -> None:
    def kill_it(step: str) -> None:
        if step == STRINGS:
            target.kill()

    with (
        targets.start("fill", "text", 8 * MIB) as target,
        LiveProcess(target.pid) as process,
        pytest.raises(SourceGone),
    ):
        bench.measure(process, file, "here", seconds=0.1, threads=1, progress=kill_it)


def test_interrupted_it_leaves_nothing(text: targets.Target, tmp_path: Path) -> None:
    def measures(pid: int) -> bool:
        return len(os.listdir(f"/proc/{pid}/task")) > 1

    process = start("bench", text.pid, "--seconds", 3000, "--output-dir", tmp_path)
    assert reach(process, takes_signals)
    assert reach(process, measures)
    process.send_signal(signal.SIGINT)
    assert finish(process).strip() == "fastdump: interrupted"
    assert process.returncode == 130
    assert not list(tmp_path.iterdir())


def test_errors(text: targets.Target, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastdump", "bench"]
    for words, code, message in (
        ([text.pid, "--output-dir", tmp_path / "none"], 7, "No such file"),
        ([4194305, "--output-dir", tmp_path], 4, "no process 4194305"),
        ([text.pid, "--seconds", 0], 2, "--seconds"),
    ):
        done = subprocess.run(
            [*command, *map(str, words)], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, message in done.stderr) == (code, True), done.stderr


def figures(read: float, disk: float, lz4: dict[int, tuple[float, float]]) -> Figures:
    """GB/s of reading and of the disk; of levels, and their ratios; two threads are no better."""
    steps = [(COPY, 10.0, None, 0.0), (READ, read, None, 0.0), (STRINGS, read, None, 0.0)]
    steps += [(f"read, LZ4 level {k}", rate, k, ratio) for k, (rate, ratio) in lz4.items()]
    steps += [(DIRECT, disk, None, 0.0), (CACHED, disk / 2, None, 0.0)]
    size = 1_000_000_000
    return Figures(
        size,
        "scalar",
        True,
        [
            Measured(step, threads, size, int(size / ratio) if ratio else 0, 1 / rate, level)
            for step, rate, level, ratio in steps
            for threads in (1, 2)
        ],
    )


def test_what_bounds_a_dump_and_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_command, "default_threads", lambda format: 2)
    slow = figures(8, 0.5, {1: (2, 3), 9: (0.1, 5)})
    found = {way.options: (round(way.rate, 3), way.bound, way.threads) for way in slow.ways()}
    assert found == {
        "dump -f raw": (0.5, "the disk", 1),
        "dump -f lz4 --level 1": (1.5, "the disk", 1),
        "dump -f lz4 --level 9": (0.1, "LZ4", 1),
        "strings": (8, "memory", 1),
    }
    assert bench_command.advice(slow, "7").splitlines() == [
        "fastest    fastdump dump 7 -f lz4 --level 1 --threads 1: bound by the disk",
        "smallest   fastdump dump 7 -f lz4 --level 9: 1/5.0 of the memory, 15.0 times as long",
        "           a faster disk, or -o to another machine, is what would help",
    ]
    fast = figures(4, 20, {1: (2, 3)})
    assert [(way.options, way.rate, way.bound) for way in fast.ways()] == [
        ("dump -f raw", 4, "the kernel's copying between processes"),
        ("dump -f lz4 --level 1", 2, "LZ4"),
        ("strings", 4, "the kernel's copying between processes"),
    ]
